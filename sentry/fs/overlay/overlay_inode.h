// Inodes of an overlay. Internal to sentry/fs/overlay.
#pragma once

#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fs/overlay/overlay.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

class OverlayInode;

// What an upper inode remembers of the lower one that it was copied from; kept by the upper inode
// itself, so that it lives exactly as long.
class UpperState : public Inode::Special {
 public:
  UpperState(base::Ref<Inode> lower_inode, std::string pool, int links)
      : lower(std::move(lower_inode)), pool_name(std::move(pool)), nlink(links) {}
  const base::Ref<Inode> lower;
  std::string pool_name;   // guarded by the filesystem's pool_mutex_; empty: not in the pool
  std::atomic<int> nlink;  // of other than directories: names in both layers that are left
  absl::Mutex mutex;
  // Of directories: names of the lower directory that are hidden.
  absl::flat_hash_set<std::string> whiteouts ABSL_GUARDED_BY(mutex);
};

// Copies are not made at the place of the original's name, but in the "pool": the root directory of
// the upper filesystem, under a number. The index leads from the lower inode to its copy, so every
// name of a lower inode (hard links) finds it, and directories need not be copied because something
// below them is. Names that are made or moved here stand in the upper copy of their directory.
class OverlayFilesystem : public Filesystem {
 public:
  OverlayFilesystem(const base::Ref<Inode>& lower, const base::Ref<Inode>& pool);
  base::Result<struct statfs> StatFs() override;
  std::string ShowOptions() const override;
  bool keeps_names() const override { return lower_mount_->fs().keeps_names(); }

  // The one inode for what stands in the layers; `upper` alone, or `lower` alone.
  base::Ref<OverlayInode> Wrap(base::Ref<Inode> lower, base::Ref<Inode> upper);
  // A place for opening inodes of a layer.
  Path UpperPath(const base::Ref<Inode>& inode) const;
  Path LowerPath(const base::Ref<Inode>& inode) const;
  const Credentials& creds() const { return *creds_; }

 private:
  friend class OverlayInode;
  ~OverlayFilesystem() override;

  const base::Ref<Mount> lower_mount_, upper_mount_;
  const base::Ref<Credentials> creds_;  // of the overlay itself: all capabilities

  absl::Mutex pool_mutex_;  // stands for the pool directory's lock; before mutex_
  const base::Ref<Inode> pool_;
  uint64_t next_pool_name_ ABSL_GUARDED_BY(pool_mutex_) = 0;

  absl::Mutex mutex_;  // leaf
  // Lower inode -> its copy, while a name in the lower layer can lead to it.
  struct Copy {
    base::Ref<Inode> lower, upper;
  };
  absl::flat_hash_map<const Inode*, Copy> index_ ABSL_GUARDED_BY(mutex_);
  // Lower inodes that were not copied and lost some of their names.
  struct Lost {
    base::Ref<Inode> lower;
    int links;
  };
  absl::flat_hash_map<const Inode*, Lost> lost_ ABSL_GUARDED_BY(mutex_);
  // By upper or lower inode.
  absl::flat_hash_map<const Inode*, OverlayInode*> live_ ABSL_GUARDED_BY(mutex_);
};

class OverlayInode : public Inode {
 public:
  OverlayInode(OverlayFilesystem* fs, base::Ref<Inode> lower, base::Ref<Inode> upper,
               base::Ref<UpperState> state, int lost_links);

  base::Result<InodeAttr> GetAttr() override;
  bool WatchAttr(AttrWords* words) override {
    words->push_back(&attr_word());
    return real().WatchAttr(words);
  }
  base::Status SetAttr(const AttrChange& change) override;
  base::Result<base::Ref<Inode>> Lookup(std::string_view name) override;
  base::Result<std::vector<base::Ref<Inode>>> LookupMany(
      std::span<const std::string_view> names) override;
  bool looks_up_many() const override;
  base::Result<base::Ref<Inode>> Create(std::string_view name, const NewInode& args) override;
  base::Result<base::Ref<Inode>> Mkdir(std::string_view name, const NewInode& args) override;
  base::Result<base::Ref<Inode>> Symlink(std::string_view name, std::string_view target,
                                         const NewInode& args) override;
  base::Status Link(std::string_view name, Inode& target) override;
  base::Status Unlink(std::string_view name, Inode& victim) override;
  base::Status Rmdir(std::string_view name, Inode& victim) override;
  base::Status Rename(std::string_view name, Inode& moved, Inode& new_dir,
                      std::string_view new_name, Inode* replaced, uint32_t flags) override;
  base::Result<base::Ref<Inode>> Tmpfile(const NewInode& args) override;
  base::Result<std::string> ReadLink() override { return real().ReadLink(); }
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;
  base::Result<std::string> GetXattr(std::string_view name) override;
  base::Status SetXattr(std::string_view name, std::string_view value, int flags) override;
  base::Result<std::vector<std::string>> ListXattr() override { return real().ListXattr(); }
  base::Status RemoveXattr(std::string_view name) override;

  // Null until there is one; then for good.
  Inode* upper() const { return upper_.load(std::memory_order_acquire); }
  Inode* lower() const { return lower_.get(); }
  // The layer's inode that counts.
  Inode& real() const { return upper() ? *upper() : *lower_; }
  OverlayFilesystem& overlay() const { return static_cast<OverlayFilesystem&>(fs()); }
  // Opens the layer's file that counts now.
  base::Result<base::Ref<FileDescription>> OpenReal(uint32_t flags, bool* is_upper);
  // Calls `emit` for each entry but "." and "..", both layers merged, in no order that stays.
  base::Status ForEachEntry(const DirEmit& emit);
  // The number that names of `upper_inode` show.
  static uint64_t InoOf(Inode& upper_inode);

 private:
  friend class OverlayFilesystem;
  ~OverlayInode() override;

  // Makes the copy in the upper layer, unless there is one; with `data` its bytes too.
  base::Status CopyUp(bool data = true);
  base::Status FillCopy(Inode& copy, const InodeAttr& attr, bool data);
  base::Status CopyData(Inode& copy, const InodeAttr& attr);
  void RefreshPerm();

  bool HasUpperName(std::string_view name);
  bool IsWhiteout(std::string_view name);
  void AddWhiteout(std::string_view name);
  // Gives the entry `name` -> child a name in the upper directory, hiding the lower one.
  base::Status EnsureUpperName(std::string_view name, OverlayInode& child);
  // One name of this inode has gone.
  void LoseLink();
  void DropFromPool();
  base::Result<bool> IsEmptyDir();

  const base::Ref<Inode> lower_;
  std::atomic<Inode*> upper_;    // owns a reference
  base::Ref<UpperState> state_;  // set before upper_, if there is a lower inode
  std::atomic<int> lost_links_;
  fiber::Mutex copy_up_mutex_;
};

}  // namespace sentry
