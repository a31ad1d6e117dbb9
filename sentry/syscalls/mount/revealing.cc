// New mounts of proc and sysfs in less privileged namespaces.
#include <linux/magic.h>

#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/syscalls/mount/mount_util.h"
#include "sentry/vfs/mount_locks.h"

namespace sentry {
namespace {

bool IsEmptyDirectory(Inode* inode) {
  auto* dir = dynamic_cast<PseudoDir*>(inode);
  return dir != nullptr && dir->List().empty();
}

}  // namespace

// mnt_already_visible().
base::Status CheckRevealing(Task& t, Mount& mount) {
  MountNamespace& ns = t.mount_namespace();
  const uint64_t magic = mount.fs().magic();
  if (magic != PROC_SUPER_MAGIC && magic != SYSFS_MAGIC) return base::Ok();
  if (ns.user_ns() == nullptr || ns.user_ns()->parent() == nullptr) return base::Ok();
  const std::vector<base::Ref<Mount>> mounts = ns.Mounts();
  auto hides = [&](const Mount& m) {
    for (const base::Ref<Mount>& child : mounts) {
      if ((child->flags() & kMountLocked) == 0) continue;
      const Path place = ns.MountPoint(*child);
      if (place.mount.get() == &m && !IsEmptyDirectory(place.dentry->inode_ptr())) return true;
    }
    return false;
  };
  for (const base::Ref<Mount>& m : mounts) {
    if (m->fs().magic() != magic || m->root()->parent() != m->root()) continue;
    uint64_t locks = m->flags();
    if (m->fs().read_only()) locks |= kLockReadOnly;
    const bool writable = (locks & kLockReadOnly) != 0 && (mount.flags() & MS_RDONLY) == 0;
    const bool times =
        (locks & kLockTimes) != 0 && ((m->flags() ^ mount.flags()) & kTimeFlags) != 0;
    if (writable || times || hides(*m)) continue;
    mount.set_flags(mount.flags() | (locks & (kLockReadOnly | kLockTimes)));
    return base::Ok();
  }
  return base::Error(EPERM);
}

}  // namespace sentry
