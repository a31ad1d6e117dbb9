// The mounts of a container: what the OCI configuration asks for, built in a fresh namespace.
#pragma once

#include <string>

#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/boot/boot_spec.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/types.h"

namespace sentry {

class GoferConnection;
class Vfs;

// What BuildMounts made.
struct ContainerMounts {
  base::Ref<MountNamespace> ns;
  Path root;
  Path devpts;  // the root of the first devpts mount; empty if there is none
};

// Builds the root, the mounts, /dev, sysctls, read-only and masked paths in the order in which runc
// does it. `creds` has all capabilities; the mount namespace is `user_ns`'s. Runs on a fiber. On
// error `why` is one line that names the mount.
base::Result<ContainerMounts> BuildMounts(Vfs& vfs, const base::Ref<GoferConnection>& gofer,
                                          const ContainerSpec& spec, const Credentials& creds,
                                          const base::Ref<UserNamespace>& user_ns,
                                          std::string* why);

// mkdir -p. Existing directories stay as they are.
base::Status MakeDirectories(Vfs& vfs, const ContainerMounts& mounts, const Credentials& creds,
                             const std::string& path, mode_t mode);

}  // namespace sentry
