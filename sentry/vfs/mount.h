// Mount and MountNamespace (Linux: struct mount, struct mnt_namespace).
#pragma once

#include <atomic>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/path_words.h"
#include "sentry/vfs/types.h"

namespace sentry {

// A filesystem (or a part of it) attached at a place of a mount namespace.
class Mount : public base::RefCounted {
 public:
  // flags: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME...
  Mount(base::Ref<Filesystem> fs, base::Ref<Dentry> root, uint64_t flags, std::string source);
  Filesystem& fs() const { return *fs_; }
  const base::Ref<Dentry>& root() const { return root_; }
  const std::string& source() const { return source_; }
  int id() const { return id_; }
  uint64_t flags() const { return flags_.load(std::memory_order_relaxed); }
  void set_flags(uint64_t flags) {
    flags_.store(flags, std::memory_order_relaxed);
    AllPathsChanged();
  }
  bool read_only() const;  // by the mount

 private:
  friend class MountNamespace;
  ~Mount() override;
  const base::Ref<Filesystem> fs_;
  const base::Ref<Dentry> root_;
  const std::string source_;
  const int id_;
  std::atomic<uint64_t> flags_;
  // Guarded by the mutex of the namespace.
  MountNamespace* ns_ = nullptr;
  base::Ref<Mount> parent_;       // null for the namespace's root mount
  base::Ref<Dentry> mountpoint_;  // in parent_
  int children_ = 0;
};

// The tree of mounts that a task sees. Thread-safe. Its mutex is held neither across a park nor
// together with another namespace's, and comes before those of dentries.
class MountNamespace : public base::RefCounted {
 public:
  // With `root` as its root mount.
  static base::Ref<MountNamespace> New(base::Ref<Mount> root);
  // A copy for CLONE_NEWNS: all mounts cloned; `paths` (root and cwd of the task) are moved over.
  base::Ref<MountNamespace> Copy(std::span<Path*> paths);

  base::Ref<Mount> root_mount() const;
  // Mounts `mount` on `where`, on top of what is mounted there already. Linux: do_add_mount,
  // graft_tree. ENOTDIR for a directory on a file and the reverse, EINVAL if `where` is not in this
  // namespace, ENOENT if it was removed, EBUSY for the same filesystem root on itself.
  base::Status Attach(base::Ref<Mount> mount, const Path& where);
  // umount2 with MNT_DETACH, MNT_FORCE, MNT_EXPIRE bits: EINVAL if it is no mount of this namespace
  // or its root, EBUSY unless MNT_DETACH if it has mounts below or is in use, which is told by
  // references beyond those of the namespace and `caller_refs`.
  base::Status Detach(const base::Ref<Mount>& mount, int flags, uint32_t caller_refs = 1);
  // mount(MS_MOVE): EINVAL, ELOOP (into itself), ENOTDIR.
  base::Status Move(const base::Ref<Mount>& mount, const Path& where);
  // pivot_root(2) for a task whose root is `root`. The caller then moves tasks that stand at the
  // old root to the new one (FsContext::Replace).
  base::Status PivotRoot(const Path& root, const Path& new_root, const Path& put_old);
  // A bind mount: a clone of what.mount with what.dentry as root, with its mounts below if
  // `recursive`, on `where`.
  base::Status Bind(const Path& what, const Path& where, bool recursive, uint64_t flags);

  // The topmost mount on `path`, or null.
  base::Ref<Mount> MountedOn(const Path& path) const;
  // Turns a place into the root of the topmost mount on it, if there is one.
  void CrossDown(Path* path) const;
  // Where `mount` stands: the parent's path; empty for the root mount and for detached ones.
  Path MountPoint(const Mount& mount) const;
  base::Ref<Mount> ParentOf(const Mount& mount) const;
  bool Contains(const Mount& mount) const;
  // In creation order, as /proc/PID/mountinfo lists them.
  std::vector<base::Ref<Mount>> Mounts() const;
  // Changes with every change of the tree (poll of /proc/PID/mounts).
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  uint64_t id() const { return id_; }

 private:
  using Key = std::pair<const Mount*, const Dentry*>;

  MountNamespace();
  ~MountNamespace() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  Mount* TopLocked(const Mount* mount, const Dentry* dentry) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // True if `ancestor` is `mount` or above it.
  bool IsAbove(const Mount& ancestor, const Mount& mount) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Places into the tree what is in no place; the count of mounts grows only by AddLocked.
  void PlaceLocked(Mount& mount, Mount& parent, Dentry& where)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UnplaceLocked(Mount& mount, std::vector<base::Ref<base::RefCounted>>* drop)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status AttachLocked(const base::Ref<Mount>& mount, const Path& where, bool is_new)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  base::Ref<Mount> root_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<Mount>> mounts_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Key, Mount*> by_place_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> version_{0};
  const uint64_t id_;
};

// Linux's sysctl fs.mount-max: ENOSPC beyond.
inline constexpr size_t kMaxMounts = 100000;

}  // namespace sentry
