// The host's files as a filesystem, through the gofer. What the rest of the sentry needs of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/gofer/connection.h"
#include "sentry/vfs/inode.h"

namespace sentry {

enum class GoferCache {
  // Only this sandbox changes the files: what was learnt stays true. For the root file system.
  kExclusive,
  // Others change them too: names and attributes are asked for again. For bind mounts.
  kShared,
};

// Takes over the socket to the gofer and greets it. `on_broken` is called once, from any thread,
// when the gofer has gone; requests fail with EIO from then on. May be called off the fibers.
base::Result<base::Ref<GoferConnection>> ConnectGofer(base::UniqueFd socket,
                                                      std::function<void()> on_broken);

// The root of mount `index` of the gofer as a new filesystem of type "gofer"; a directory, or a
// regular file if a file is bind-mounted. Call once per mount: two filesystems over one mount would
// not know of each other's changes.
base::Result<base::Ref<Inode>> MountGofer(const base::Ref<GoferConnection>& connection,
                                          uint32_t index, GoferCache cache);

// True if the gofer enforces that mount `index` is read-only; ask after MountGofer.
bool GoferMountReadonly(const Inode& root);

}  // namespace sentry
