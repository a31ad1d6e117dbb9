// Character devices without hardware (Linux: drivers/char/mem.c, random.c), and what stands in a
// container's /dev.
#pragma once

#include <span>
#include <string>

#include "sentry/base/result.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

// null (1, 3), zero (1, 5), full (1, 7), random (1, 8), urandom (1, 9).
void RegisterMemoryDevices(Vfs& vfs);

// A node that is to be made.
struct DevNode {
  std::string path;  // absolute, in the container
  mode_t mode;       // type and permissions
  dev_t rdev = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

// Makes what the OCI runtime specification wants in every container's /dev ("Default Devices":
// null zero full random urandom tty, and ptmx, fd, stdin, stdout, stderr as symbolic links),
// console if asked, and then `nodes`. What is there already stays. `ctx` starts at the container's
// root with all capabilities. Errors tell the path in `failed`.
base::Status PopulateDev(Vfs& vfs, const WalkContext& ctx, bool console,
                         std::span<const DevNode> nodes, std::string* failed);

}  // namespace sentry
