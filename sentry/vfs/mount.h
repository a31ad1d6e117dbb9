// Mount and MountNamespace (Linux: struct mount, struct mnt_namespace).
#pragma once

#include <atomic>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/id_allocator.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/path_words.h"
#include "sentry/vfs/types.h"

namespace sentry {

// Linux's sysctl fs.mount-max: ENOSPC beyond.
inline constexpr size_t kMaxMounts = 100000;
// statmount(2)'s ids of mounts are greater (Linux: MNT_UNIQUE_ID_OFFSET).
inline constexpr uint64_t kUniqueMountIds = uint64_t{1} << 31;

// A filesystem (or a part of it) attached at a place of a mount namespace.
class Mount : public base::RefCounted {
 public:
  // flags: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME...
  Mount(base::Ref<Filesystem> fs, base::Ref<Dentry> root, uint64_t flags, std::string source);
  Filesystem& fs() const { return *fs_; }
  const base::Ref<Dentry>& root() const { return root_; }
  const std::string& source() const { return source_; }
  int id() const { return id_; }
  // As statmount(2) and STATX_MNT_ID_UNIQUE tell it.
  uint64_t unique_id() const { return kUniqueMountIds + static_cast<uint64_t>(id_); }
  uint64_t flags() const { return flags_.load(std::memory_order_relaxed); }
  void set_flags(uint64_t flags) {
    flags_.store(flags, std::memory_order_relaxed);
    AllPathsChanged();
  }
  bool read_only() const;  // by the mount or by its filesystem
  // Files that are open for writing through it: it cannot become read-only.
  void AddWriter();
  void DropWriter();
  int writers() const { return writers_.load(std::memory_order_acquire); }

 private:
  friend class MountNamespace;
  struct ById {
    bool operator()(const Mount* a, const Mount* b) const { return a->id_ < b->id_; }
  };
  using Set = std::set<Mount*, ById>;

  ~Mount() override;
  const base::Ref<Filesystem> fs_;
  const base::Ref<Dentry> root_;
  const std::string source_;
  const int id_;
  std::atomic<uint64_t> flags_;
  std::atomic<int> writers_{0};
  // Guarded by the mutex of the namespaces.
  MountNamespace* ns_ = nullptr;  // null: in none yet, or in none any more
  base::Ref<Mount> parent_;       // null for a namespace's root mount
  base::Ref<Dentry> mountpoint_;  // in parent_
  Set children_;
  // Groups of MountNamespace; 0: none. Those of a group have the same mounts below them, and what
  // happens in the master's group happens here too. All of a group have one master.
  int peer_group_ = 0, master_group_ = 0;
  bool unbindable_ = false;
};

// How a mount shares what is mounted below it: numbers of groups, as mountinfo tells them; 0: none.
struct Propagation {
  int shared = 0, master = 0;
  int from = 0;  // the nearest of its masters that has a mount in sight, if not `master`
  bool unbindable = false;
};

// The tree of mounts that a task sees, or one that is in sight of nobody but who holds a descriptor
// of it (Linux: anonymous namespaces; open_tree, fsmount). Thread-safe. The mutex, one for all
// (Linux: namespace_sem), is not held across a park and comes before those of dentries.
class MountNamespace : public base::RefCounted {
 public:
  // With `root` as its root mount. user_ns: who is privileged in it may mount; null: any who is
  // privileged in a namespace of their own.
  static base::Ref<MountNamespace> New(base::Ref<Mount> root,
                                       base::Ref<UserNamespace> user_ns = nullptr);
  // An anonymous one of a new mount.
  base::Ref<MountNamespace> NewDetached(base::Ref<Mount> root) const;
  // An anonymous one of a copy of `what`, as Bind makes it. EINVAL, ENOSPC.
  base::Result<base::Ref<MountNamespace>> CloneDetached(const Path& what, bool recursive);
  // A copy for CLONE_NEWNS: all mounts cloned; `paths` (root and cwd of the task) are moved over.
  // In that of another user namespace, what is shared becomes a slave.
  base::Ref<MountNamespace> Copy(std::span<Path*> paths, base::Ref<UserNamespace> user_ns);
  // The one with this id(); null if there is none, or it is anonymous.
  static base::Ref<MountNamespace> Find(uint64_t id);

  base::Ref<Mount> root_mount() const;
  const base::Ref<UserNamespace>& user_ns() const { return user_ns_; }
  // Mounts `mount`, which is in no namespace, on `where`, on top of what is mounted there already,
  // and wherever `where` propagates. Linux: do_add_mount, attach_recursive_mnt. ENOTDIR for a
  // directory on a file and the reverse, EINVAL if `where` is not in this namespace, ENOENT if it
  // was removed, EBUSY for the same filesystem root on itself, ENOSPC.
  base::Status Attach(base::Ref<Mount> mount, const Path& where);
  // umount2 with MNT_DETACH, MNT_FORCE, MNT_EXPIRE bits: EINVAL if it is no mount of this namespace
  // or its root, EBUSY unless MNT_DETACH if it, or what goes with it, has mounts below or is in
  // use, which is told by references beyond those of the namespace and `caller_refs`.
  base::Status Detach(const base::Ref<Mount>& mount, int flags, uint32_t caller_refs = 1);
  // mount(MS_MOVE), move_mount(2): EINVAL, ENOENT, ELOOP (into itself), ENOSPC. `mount` is of this
  // namespace or the root of an anonymous one. beneath: under the mount whose root `where` is,
  // which may not be the caller's root.
  base::Status Move(const base::Ref<Mount>& mount, const Path& where, bool beneath = false,
                    const Mount* caller_root = nullptr);
  // pivot_root(2) for a task whose root is `root`. The caller then moves tasks that stand at the
  // old root to the new one (FsContext::Replace).
  base::Status PivotRoot(const Path& root, const Path& new_root, const Path& put_old);
  // A bind mount: a clone of what.mount with what.dentry as root, with its mounts below if
  // `recursive`, on `where`.
  base::Status Bind(const Path& what, const Path& where, bool recursive, uint64_t flags);

  // mount(MS_SHARED, MS_PRIVATE, MS_SLAVE or MS_UNBINDABLE), with MS_REC of all below. EINVAL if it
  // is in no namespace.
  static base::Status SetPropagation(Mount& mount, uint64_t type, bool recursive);
  // mount_setattr(2): for `mount`, or all from it downward. EINVAL if it is neither of this
  // namespace nor the root of an anonymous one, EBUSY for MS_RDONLY while there are writers.
  struct AttrChange {
    uint64_t set = 0, clear = 0;  // of Mount::flags()
    uint64_t propagation = 0;     // MS_SHARED and the like
    bool recursive = false;
  };
  base::Status SetAttr(Mount& mount, const AttrChange& change);
  // MOVE_MOUNT_SET_GROUP: `to` shares as `from` does, of whose filesystem it is a part. EINVAL.
  static base::Status ShareAs(const Path& from, const Path& to);
  // As a task with this root sees it.
  static Propagation PropagationOf(const Mount& mount, const Path& root);

  // The topmost mount on `path`, or null.
  base::Ref<Mount> MountedOn(const Path& path) const;
  // Turns a place into the root of the topmost mount on it, if there is one.
  void CrossDown(Path* path) const;
  // Where `mount` stands: the parent's path; empty for the root mount and for detached ones.
  Path MountPoint(const Mount& mount) const;
  base::Ref<Mount> ParentOf(const Mount& mount) const;
  bool Contains(const Mount& mount) const;
  // Is it at or below `root`?
  static bool IsReachable(const Mount& mount, const Path& root);
  // In creation order, as /proc/PID/mountinfo lists them.
  std::vector<base::Ref<Mount>> Mounts() const;
  // By Mount::unique_id(); null: it is not here.
  base::Ref<Mount> FindMount(uint64_t unique_id) const;
  // Changes with every change of the tree (poll of /proc/PID/mounts).
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  uint64_t id() const { return id_; }

 private:
  using Key = std::pair<const Mount*, const Dentry*>;
  using Drop = std::vector<base::Ref<base::RefCounted>>;  // dropped without the mutex
  using Tree = std::vector<base::Ref<Mount>>;             // parents first
  // A tree that is to stand on `parent`.
  struct Graft {
    Tree tree;
    Mount* parent;
  };
  class Propagator;

  explicit MountNamespace(base::Ref<UserNamespace> user_ns, bool anonymous, uint64_t origin);
  ~MountNamespace() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  static Mount* At(const Mount* mount, const Dentry* dentry) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static Mount* TopLocked(const Mount* mount, const Dentry* dentry)
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // True if `ancestor` is `mount` or above it.
  static bool IsAbove(const Mount& ancestor, const Mount& mount) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // May a task of this namespace make changes there? (Linux: may_use_mount)
  bool MayUse(const Mount& mount) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Is it the root of an anonymous namespace?
  static bool IsDetachedRoot(const Mount& mount) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  static void PlaceLocked(Mount& mount, Mount& parent, Dentry& where)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void UnplaceLocked(Mount& mount, Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AdoptLocked(const base::Ref<Mount>& mount, Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void LeaveLocked(Mount& mount, Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `mount` and all below it, parents first.
  static Tree TreeLocked(Mount& mount) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Clones of what.mount and, if recursive, of what is bindable below what.dentry.
  static base::Result<Tree> CloneLocked(const Path& what, bool recursive, uint64_t flags)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static base::Ref<Mount> CloneOf(const Mount& mount, const base::Ref<Dentry>& root,
                                  uint64_t more_flags = 0);
  // Puts a tree on `point` of `parent`, and copies of it wherever that propagates.
  static base::Status GraftLocked(Tree tree, Mount& parent, Dentry& point, Drop* drop)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Undoes what was made of a tree that is not to be.
  static void DiscardLocked(const Tree& tree, Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // GraftLocked of a new tree, after checks of where it is to go.
  base::Status AttachLocked(Tree tree, const Path& where, Drop* drop)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static base::Status MayMoveBeneath(const Mount& mount, const Mount& over,
                                     const Mount* caller_root) ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  // --- propagation.cc (Linux: fs/pnode.c) ---
  // Mounts that share, and those that follow them. A group without peers has no slaves.
  struct PeerGroup {
    Mount::Set peers, slaves;
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
  // All that would hear of what happens below `mount`, without itself.
  static std::vector<Mount*> Receivers(const Mount& mount) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Would a mount at `point` of `parent` come to stand on the root of `mount`?
  static bool WouldCover(const Mount& parent, const Dentry& point, const Mount& mount)
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Is something that unmounting `mount` takes along in use?
  static bool CopiesBusy(const Mount& mount) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Takes `mount`, what is below it, and what came with them elsewhere, out of their trees.
  static void RemoveTreeLocked(Mount& mount, Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  static absl::Mutex mutex_;
  // What stands on a dentry of a mount, of all namespaces.
  static absl::flat_hash_map<Key, Mount*>& by_place_ ABSL_GUARDED_BY(mutex_);
  static absl::flat_hash_map<int, PeerGroup>& groups_ ABSL_GUARDED_BY(mutex_);
  static base::IdAllocator& group_ids_ ABSL_GUARDED_BY(mutex_);
  static absl::flat_hash_map<uint64_t, MountNamespace*>& all_ ABSL_GUARDED_BY(mutex_);
  base::Ref<Mount> root_ ABSL_GUARDED_BY(mutex_);
  std::map<int, base::Ref<Mount>> mounts_ ABSL_GUARDED_BY(mutex_);  // by Mount::id()
  std::atomic<uint64_t> version_{0};
  const base::Ref<UserNamespace> user_ns_;
  const bool anonymous_;
  const uint64_t origin_;  // an anonymous one's: whose mounts it has copies of; 0: nobody's
  const uint64_t id_;
};

}  // namespace sentry
