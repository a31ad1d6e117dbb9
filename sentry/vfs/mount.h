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
  void set_flags(uint64_t flags) { flags_.store(flags, std::memory_order_relaxed); }
  bool read_only() const;  // by the mount

 private:
  friend class MountNamespace;
  ~Mount() override;
  const base::Ref<Filesystem> fs_;
  const base::Ref<Dentry> root_;
  const std::string source_;
  const int id_;
  std::atomic<uint64_t> flags_;
  // Guarded by the mutex of the namespaces.
  MountNamespace* ns_ = nullptr;
  base::Ref<Mount> parent_;       // null for the namespace's root mount
  base::Ref<Dentry> mountpoint_;  // in parent_
  int children_ = 0;
  // Groups of MountNamespace; 0: none. Those of a group have the same mounts below them, and what
  // happens in the master's group happens here too.
  int peer_group_ = 0, master_group_ = 0;
  bool unbindable_ = false;
};

// How a mount shares what is mounted below it: numbers of groups, as mountinfo tells them; 0: none.
struct Propagation {
  int shared = 0, master = 0;
  bool unbindable = false;
};

// The tree of mounts that a task sees. Thread-safe. The mutex, one for all (Linux: namespace_sem),
// is not held across a park and comes before those of dentries.
class MountNamespace : public base::RefCounted {
 public:
  // With `root` as its root mount.
  static base::Ref<MountNamespace> New(base::Ref<Mount> root);
  // A copy for CLONE_NEWNS: all mounts cloned; `paths` (root and cwd of the task) are moved over.
  // `less_privileged`: what is shared becomes a slave there.
  base::Ref<MountNamespace> Copy(std::span<Path*> paths, bool less_privileged = false);

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

  // mount(MS_SHARED, MS_PRIVATE, MS_SLAVE or MS_UNBINDABLE), with MS_REC of all below. EINVAL if it
  // is no mount of this namespace.
  base::Status SetPropagation(const Mount& mount, uint64_t type, bool recursive);
  Propagation PropagationOf(const Mount& mount) const;

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
  // Takes `mount` and what is below it out of the tree.
  void RemoveTreeLocked(Mount& mount, std::vector<base::Ref<base::RefCounted>>* drop)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `mount` and all below it, parents first.
  std::vector<Mount*> TreeLocked(Mount& mount) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // --- propagation.cc (Linux: fs/pnode.c) ---
  // Mounts that share, and those that follow them. A group without peers has no slaves.
  struct PeerGroup {
    std::vector<Mount*> peers, slaves;
    int master = 0;  // the group that its peers follow
  };
  static int NewGroup() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Join(Mount& mount, int group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void LeavePeers(Mount& mount) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void SetMaster(Mount& mount, int group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // It shares nothing any more, as one that goes.
  static void Isolate(Mount& mount) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A clone shares as its original does.
  static void ShareLike(Mount& clone, const Mount& original, bool as_slave)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void ChangeType(Mount& mount, uint64_t type) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What was placed at `point` of `parent` comes to all that share with it.
  void PropagateTree(Mount& top, Mount& parent, Dentry& point)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void PropagateTo(int group, const std::vector<Mount*>& model, Dentry& point,
                          std::vector<const Mount*>* seen) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static std::vector<Mount*> CloneOnto(const std::vector<Mount*>& model, Mount& parent,
                                       Dentry& point) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // All that would hear of what happens below `mount`, without itself.
  static std::vector<Mount*> Receivers(const Mount& mount) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static absl::flat_hash_map<int, PeerGroup> groups_ ABSL_GUARDED_BY(mutex_);

  static absl::Mutex mutex_;
  base::Ref<Mount> root_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<Mount>> mounts_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Key, Mount*> by_place_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> version_{0};
  const uint64_t id_;
};

// Linux's sysctl fs.mount-max: ENOSPC beyond.
inline constexpr size_t kMaxMounts = 100000;

}  // namespace sentry
