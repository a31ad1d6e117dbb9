// FsContext: root, working directory and umask of a process (Linux: fs_struct).
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/lanes/path_table.h"
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
  // All of it at once.
  struct View {
    Path root, cwd;
    mode_t umask;
  };
  View view() const {
    absl::MutexLock l(&mutex_);
    return {root_, cwd_, umask_};
  }
  mode_t umask() const {
    absl::MutexLock l(&mutex_);
    return umask_;
  }
  void SetRoot(Path root) {
    absl::MutexLock l(&mutex_);
    LeavePaths();
    std::swap(root_, root);
  }
  void SetCwd(Path cwd) {
    absl::MutexLock l(&mutex_);
    std::swap(cwd_, cwd);
    PublishCwd();
  }
  // Returns the old one.
  mode_t SetUmask(mode_t umask) {
    absl::MutexLock l(&mutex_);
    return std::exchange(umask_, umask & 0777);
  }
  // pivot_root(2): whoever stands at `from` goes to `to` (Linux: chroot_fs_refs).
  void Replace(const Path& from, const Path& to) {
    absl::MutexLock l(&mutex_);
    if (root_ == from) {
      LeavePaths();
      root_ = to;
    }
    if (cwd_ == from) cwd_ = to;
    PublishCwd();
  }

  // The number of a directory in tables of paths: no other place has it.
  static uint64_t NumberOf(const Path& path) {
    return path.dentry->number() << 31 | static_cast<uint32_t>(path.mount->id());
  }
  // Where the working directory stands in the table of paths, and its number there: from now on, it
  // is kept right. With name 0 nowhere, since paths do not begin at the table's root.
  struct Place {
    uint64_t name = 0, directory = 0;
  };
  Place EnterPaths(PathTable& table) {
    absl::MutexLock l(&mutex_);
    if (paths_.get() != &table) {
      LeavePaths();
      if (root_.dentry != root_.mount->root() || root_.mount->id() != table.root_mount()) return {};
      place_ = {0, NumberOf(cwd_)};
      place_.name = table.NewPlace(place_.directory);
      if (place_.name == 0) return {};
      paths_ = base::Ref<PathTable>(&table);
    }
    return place_;
  }

 private:
  ~FsContext() override {
    absl::MutexLock l(&mutex_);
    LeavePaths();
  }
  void PublishCwd() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!paths_) return;
    place_.directory = NumberOf(cwd_);
    paths_->SetPlace(place_.name, place_.directory);
  }
  void LeavePaths() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (paths_) paths_->FreePlace(place_.name);
    paths_ = nullptr;
    place_ = {};
  }
  mutable absl::Mutex mutex_;
  Path root_ ABSL_GUARDED_BY(mutex_);
  Path cwd_ ABSL_GUARDED_BY(mutex_);
  mode_t umask_ ABSL_GUARDED_BY(mutex_);
  base::Ref<PathTable> paths_ ABSL_GUARDED_BY(mutex_);
  Place place_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
