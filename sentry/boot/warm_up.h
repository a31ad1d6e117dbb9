// What libraries would ask the host for at a time when the sentry can no longer open its files.
#pragma once

namespace sentry {

// A contended absl::Mutex asks for its thread's priority. The C library asks the host once, and
// hands what it knows on to the threads that this one makes: to be called before there is another.
void LearnPriority();

// Makes them ask now. To be called between PrepareMounts and EnterEmptyRoot, after all who read
// /sys/devices/system/cpu. What fails here shows as a refused host call later.
void WarmUpLibraries();

}  // namespace sentry
