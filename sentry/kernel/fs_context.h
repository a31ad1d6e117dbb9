// FsContext: root, working directory and umask of a process (Linux: fs_struct).
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/types.h"

namespace sentry {

// Shared with CLONE_FS. Thread-safe.
class FsContext : public base::RefCounted {
 public:
  FsContext(Path root, Path cwd, mode_t umask) : root_(root), cwd_(cwd), umask_(umask) {}
  base::Ref<FsContext> Fork() const {
    absl::MutexLock l(&mutex_);
    return base::MakeRef<FsContext>(root_, cwd_, umask_);
  }
  Path root() const {
    absl::MutexLock l(&mutex_);
    return root_;
  }
  Path cwd() const {
    absl::MutexLock l(&mutex_);
    return cwd_;
  }
  mode_t umask() const {
    absl::MutexLock l(&mutex_);
    return umask_;
  }
  void SetRoot(Path root) {
    absl::MutexLock l(&mutex_);
    std::swap(root_, root);
  }
  void SetCwd(Path cwd) {
    absl::MutexLock l(&mutex_);
    std::swap(cwd_, cwd);
  }
  // Returns the old one.
  mode_t SetUmask(mode_t umask) {
    absl::MutexLock l(&mutex_);
    return std::exchange(umask_, umask & 0777);
  }
  // pivot_root(2): whoever stands at `from` goes to `to` (Linux: chroot_fs_refs).
  void Replace(const Path& from, const Path& to) {
    absl::MutexLock l(&mutex_);
    if (root_ == from) root_ = to;
    if (cwd_ == from) cwd_ = to;
  }

 private:
  ~FsContext() override = default;
  mutable absl::Mutex mutex_;
  Path root_ ABSL_GUARDED_BY(mutex_);
  Path cwd_ ABSL_GUARDED_BY(mutex_);
  mode_t umask_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
