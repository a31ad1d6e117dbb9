// sysfs and the cgroup filesystem, in as far as programs read them: processors, memory nodes, the
// loopback device, and the limits of the sandbox. Read-only.
#pragma once

namespace sentry {

class Kernel;
class Vfs;

// Registers "sysfs", "cgroup2" and "cgroup".
void RegisterSys(Kernel* kernel, Vfs& vfs);

}  // namespace sentry
