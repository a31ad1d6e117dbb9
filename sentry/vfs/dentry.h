// Dentry and the dentry cache; Mount and MountNamespace.
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/types.h"

namespace sentry {

// A name in a directory. Positive (has an inode) or negative (known not to exist). A child holds a
// reference to its parent; a parent holds plain pointers to its children, removed when they die;
// an LRU of recently used dentries keeps cached ones alive. name, parent and inode change only
// under the filesystem-wide rename lock plus the dentry's mutex; readers take the mutex.
class Dentry : public base::RefCounted {
 public:
  // A root, or a disconnected dentry (pipes, sockets, memfd) of this name.
  static base::Ref<Dentry> NewRoot(base::Ref<Inode> inode, std::string name = "/");

  base::Ref<Dentry> parent() const;  // itself for a root
  std::string name() const;
  base::Ref<Inode> inode() const;    // null: negative
  bool IsNegative() const { return inode() == nullptr; }
  bool unlinked() const { return unlinked_.load(std::memory_order_acquire); }
  // True if `this` is `other` or one of its ancestors.
  bool IsAncestorOf(const Dentry& other) const;
  // Set while a mount stands on this dentry in any namespace.
  bool is_mountpoint() const { return mount_count_.load(std::memory_order_acquire) > 0; }
  void AddMountCount(int n) { mount_count_.fetch_add(n, std::memory_order_acq_rel); }

  // The cache of one directory. Caller holds the directory inode's lock (shared is enough for
  // Find; exclusive or the creation race resolved by Add, which returns what is there already).
  base::Ref<Dentry> FindChild(std::string_view name) const;
  base::Ref<Dentry> AddChild(std::string_view name, base::Ref<Inode> inode_or_null);
  // After the filesystem has done it: turns a negative dentry positive; marks as unlinked and
  // negative; moves `moved` to (new_parent, new_name), dropping what stood there; exchanges.
  void Instantiate(base::Ref<Inode> inode);
  void MarkUnlinked();
  static void Move(Dentry& moved, Dentry& new_parent, std::string_view new_name);
  static void Exchange(Dentry& a, Dentry& b);
  // Drops a cached child that is no longer right.
  void Invalidate();

 protected:
  void OnZeroRefs() override;

 private:
  Dentry(base::Ref<Dentry> parent, std::string name, base::Ref<Inode> inode);
  ~Dentry() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  mutable absl::Mutex mutex_;
  base::Ref<Dentry> parent_ ABSL_GUARDED_BY(mutex_);
  std::string name_ ABSL_GUARDED_BY(mutex_);
  base::Ref<Inode> inode_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, Dentry*> children_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> unlinked_{false};
  std::atomic<int> mount_count_{0};
};

}  // namespace sentry
