// What a kernel of a sandbox is equipped with at boot.
#pragma once

namespace sentry {

class Kernel;

// Registers every filesystem type and special file.
void RegisterFilesystems(Kernel& kernel);

}  // namespace sentry
