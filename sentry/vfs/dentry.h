// Dentry and the dentry cache (Linux: struct dentry, fs/dcache.c).
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/path_words.h"
#include "sentry/vfs/types.h"

namespace sentry {

// A name in a directory. Positive (has an inode) or negative (known not to exist). A child holds a
// reference to its parent; a parent holds plain pointers to its children, removed when they die;
// the cache keeps recently used ones alive.
//
// What changes when: the inode is set once, by Instantiate, and stays until the dentry dies, so an
// open file whose name went still has it. Name and parent change by Move and Exchange alone, which
// run with the inode locks of the directories held exclusively, while the dentry is in no
// directory's set; readers hold the dentry's mutex or the parent's. No two dentry mutexes are ever
// held at once.
class Dentry : public base::RefCounted {
 public:
  // A root, or a disconnected dentry (pipes, sockets, memfd) of this name.
  static base::Ref<Dentry> NewRoot(base::Ref<Inode> inode, std::string name = "/");

  // The one root dentry of a filesystem's root inode, shared by all its mounts.
  static base::Ref<Dentry> RootOf(const base::Ref<Inode>& inode);

  base::Ref<Dentry> parent() const;  // itself for a root
  std::string name() const;
  // Null: negative. The pointer stays valid as long as this dentry is referenced.
  Inode* inode_ptr() const { return inode_.load(std::memory_order_acquire); }
  base::Ref<Inode> inode() const;
  bool IsNegative() const { return inode_ptr() == nullptr; }
  // Its name was removed (unlink, rmdir, replaced by rename).
  bool unlinked() const { return unlinked_.load(std::memory_order_acquire); }
  // True if `this` is `other` or one of its ancestors. Stable only under the rename lock.
  bool IsAncestorOf(const Dentry& other) const;
  // Set while a mount stands on this dentry in any namespace.
  bool is_mountpoint() const { return mount_count_.load(std::memory_order_acquire) > 0; }
  void AddMountCount(int n) {
    mount_count_.fetch_add(n, std::memory_order_acq_rel);
    AllPathsChanged();
  }

  // The cached child, or null if nothing is known. Needs no lock.
  base::Ref<Dentry> FindChild(std::string_view name) const;
  // Enters a child, positive or negative. If one of that name is cached already, that one is
  // returned. The caller holds the directory inode's lock (shared is enough). The dentry cache
  // keeps it unless its inode or one above does not want that (Inode::keeps_dentries).
  base::Ref<Dentry> AddChild(std::string_view name, base::Ref<Inode> inode_or_null);
  // After the filesystem has done it, with the directories' inode locks held exclusively: turns a
  // negative dentry positive; removes the name (the inode stays); moves `moved` to (new_parent,
  // new_name), after the caller removed what stood there; exchanges two.
  void Instantiate(base::Ref<Inode> inode);
  void MarkUnlinked();
  static void Move(Dentry& moved, Dentry& new_parent, std::string_view new_name);
  static void Exchange(Dentry& a, Dentry& b);
  // Drops a cached child that is no longer right from its directory, unless a mount stands on it.
  void Invalidate();
  // Drops all cached descendants that nobody uses.
  void PruneChildren();
  // Changes with what the name leads to, and when it is no longer known.
  PathWord& word() { return word_; }
  // A number of its own, which no other gets.
  uint64_t number();
  // Cached children at this moment.
  std::vector<base::Ref<Dentry>> CachedChildren() const;

  // Changes with every Move and Exchange; for retries of walks to the root.
  static uint64_t rename_sequence();

 protected:
  void OnZeroRefs() override;

 private:
  friend class DentryCache;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  struct NameHash {
    using is_transparent = void;
    size_t operator()(std::string_view name) const;
    size_t operator()(const Dentry* d) const;
  };
  struct NameEq {
    using is_transparent = void;
    bool operator()(const Dentry* a, const Dentry* b) const { return a == b; }
    bool operator()(const Dentry* a, std::string_view b) const;
    bool operator()(std::string_view a, const Dentry* b) const { return (*this)(b, a); }
  };

  Dentry(base::Ref<Dentry> parent, std::string_view name, base::Ref<Inode> inode);
  ~Dentry() override;
  // Removes `child` from the set if it is in it.
  bool EraseChild(Dentry* child);
  void InsertChild(Dentry* child);
  void Touch();

  mutable absl::Mutex mutex_;
  base::Ref<Dentry> parent_;  // null for a root
  std::string name_;
  std::atomic<Inode*> inode_;  // owns a reference
  absl::flat_hash_set<Dentry*, NameHash, NameEq> children_ ABSL_GUARDED_BY(mutex_);
  const bool kept_;  // by the cache, while nobody uses it
  bool registered_root_ = false;
  std::atomic<bool> unlinked_{false};
  std::atomic<bool> recently_used_{false};
  std::atomic<int> mount_count_{0};
  std::atomic<uint64_t> number_{0};
  PathWord word_;
  // The cache's list; guarded by its mutex.
  Dentry* lru_prev_ = nullptr;
  Dentry* lru_next_ = nullptr;
};

// Keeps recently used dentries alive: a clock over all of them with a bound on how many. One per
// process. Thread-safe.
class DentryCache {
 public:
  static DentryCache& Get();
  // Takes a reference to `d`, dropping older ones that nobody else uses when over the bound.
  void Add(Dentry& d);
  // Gives the reference up again, if it was held.
  void Remove(Dentry& d);
  size_t size() const;
  void set_limit(size_t limit);
  size_t limit() const;
  // Drops whatever nobody else uses. Returns how many went.
  size_t DropUnused();

 private:
  DentryCache();
  void Unlink(Dentry& d) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PushBack(Dentry& d) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  mutable absl::Mutex mutex_;
  // Oldest first.
  Dentry* head_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Dentry* tail_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t size_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t limit_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
