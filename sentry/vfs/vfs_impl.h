// Shared by the parts of Vfs. Internal to sentry/vfs.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

struct Vfs::Impl {
  mutable absl::Mutex mutex;
  std::vector<std::unique_ptr<FilesystemType>> types ABSL_GUARDED_BY(mutex);
  base::Ref<Filesystem> anonymous;
  base::Ref<Mount> anonymous_mount;
};

// Linux: may_create without the existence check. ENOENT in a removed directory, EACCES.
base::Status MayCreate(const Credentials& creds, Inode& dir);
// Linux: may_delete. `want_dir`: the victim has to be one (rmdir).
base::Status MayDelete(const Credentials& creds, Inode& dir, const Dentry& victim, bool want_dir);
// Linux: inode_init_owner and vfs_prepare_mode: owner, group and permissions of what is created in
// `dir`. `type_and_mode` before the umask.
base::Result<NewInode> PrepareNewInode(const WalkContext& ctx, Inode& dir, mode_t type_and_mode,
                                       dev_t rdev);

}  // namespace sentry
