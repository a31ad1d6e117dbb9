// What libraries would ask the host for at a time when the sentry can no longer open its files.
#pragma once

namespace sentry {

// Makes them ask now. To be called between PrepareMounts and EnterEmptyRoot, after all who read
// /sys/devices/system/cpu. What fails here shows as a refused host call later.
void WarmUpLibraries();

}  // namespace sentry
