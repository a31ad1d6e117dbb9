// One mount of the gofer as a Filesystem. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <deque>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fs/gofer/connection.h"
#include "sentry/fs/gofer/content.h"
#include "sentry/fs/gofer/direct_reads.h"
#include "sentry/fs/gofer/gofer_fs.h"
#include "sentry/fs/gofer/tree_walk.h"
#include "sentry/vfs/inode.h"

namespace sentry {

class GoferInode;
struct GoferListing;
struct GoferSiblings;

// Files of one directory that the gofer is opening for reading.
struct GoferOpening : base::RefCounted {
  struct File {
    uint64_t ino;  // on the host
    gofer::Handle handle;
    uint64_t replaced;  // GoferInode::replaced_ when it was asked for
  };
  std::vector<File> files;
  size_t end = 0;  // where those behind them begin
  base::Ref<GoferLateCall> call;
};

class GoferFilesystem : public Filesystem {
 public:
  GoferFilesystem(base::Ref<GoferConnection> connection, GoferCache cache);

  GoferConnection& connection() const { return *connection_; }
  bool exclusive() const { return cache_ == GoferCache::kExclusive; }
  bool needs_revalidation() const override { return !exclusive(); }
  bool keeps_names() const override { return exclusive(); }
  bool readonly() const { return readonly_; }
  base::Result<struct statfs> StatFs() override;
  base::Status Sync() override;

  // The root inode, from what the gofer answered. Once.
  base::Ref<GoferInode> MakeRoot(const gofer::AttachReply& attach);
  // The inode that `node` is: the one that is known, if there is one (hard links; the handle then
  // goes back to the gofer), else a new one, which keeps the handle.
  base::Ref<GoferInode> Obtain(const gofer::Node& node, std::string link);
  // The host's file behind `inode` has other numbers now, those of `attr`.
  void Renumber(GoferInode* inode, const gofer::Attr& attr);
  // The inodes that are known of files of `type` on host device `dev`; null for one that is not.
  std::vector<base::Ref<GoferInode>> FindFiles(uint64_t dev, std::span<const uint64_t> inos,
                                               mode_t type = S_IFREG);
  // Tells the files among `siblings` that have inodes of the others.
  void Introduce(uint64_t dev, const std::shared_ptr<const GoferSiblings>& siblings);
  // Called by the destructor of an inode.
  void Drop(GoferInode* inode, gofer::Handle handle);

  // Inodes whose host descriptors are open though no file is: the oldest are closed when there are
  // many. Enter may close another inode's.
  void EnterIdle(GoferInode* inode);
  void LeaveIdle(GoferInode* inode);

  // Which inodes keep the bytes of their files.
  GoferContents& contents() { return contents_; }

  // Directories of which all names are known: the oldest forget them.
  void EnterNamed(GoferInode* inode);

  // What is opened before it is asked for: of one directory at a time, so that few descriptors
  // wait.
  void KeepOpening(const std::shared_ptr<const GoferSiblings>& siblings,
                   base::Ref<GoferOpening> opening);
  base::Ref<GoferOpening> TakeOpening(const std::shared_ptr<const GoferSiblings>& siblings);
  // Who opens files lately goes on from each to the next: true for some directories after that was
  // seen in one.
  void SawTreeRead() { tree_reads_.store(kTreeReads, std::memory_order_relaxed); }
  bool ExpectsTreeRead();
  GoferTreeWalk& tree_walk() { return tree_walk_; }

  // Whether the gofer could make such changes (SetAttrMask) of files of that owner on that device
  // of the host the last time. Not so where it has no power over the owner's files, or the device
  // has no place for permissions.
  bool CanChange(uint64_t dev, uint32_t uid, uint32_t mask);
  void NoteChange(uint64_t dev, uint32_t uid, uint32_t mask, bool done);

  // Keeps a directory's listing, for the next reader or, if the filesystem is shared, for its
  // siblings alone; the oldest go.
  void KeepListing(std::shared_ptr<const GoferListing> listing);
  // The gofer has no handle left: drops all that is kept for later use, the dentry cache included.
  void Reclaim();
  // How many children of a directory may be looked up at once.
  size_t max_prefetch() const { return max_prefetch_; }
  // How many names of one directory are kept.
  static constexpr size_t kMaxNames = 4096;

  // False once the host said that this file system knows no RWF_NOWAIT.
  bool nowait() const { return nowait_.load(std::memory_order_relaxed); }
  void set_no_nowait() { nowait_.store(false, std::memory_order_relaxed); }
  // For when it does not.
  DirectReads& direct_reads() { return direct_reads_; }
  // True if reading never waits for a disk.
  bool in_memory() const { return in_memory_; }

 private:
  static constexpr int kTreeReads = 8;
  // Host device and inode number.
  using Key = std::pair<uint64_t, uint64_t>;
  ~GoferFilesystem() override;
  static Key KeyOf(const gofer::Attr& attr);
  uint64_t InoOf(const Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const base::Ref<GoferConnection> connection_;
  const GoferCache cache_;
  const size_t max_prefetch_;
  const size_t max_idle_;
  gofer::Handle root_handle_ = 0;  // set once by MakeRoot, as are the next two
  bool readonly_ = false;
  bool in_memory_ = false;
  std::atomic<bool> nowait_{true};
  DirectReads direct_reads_;
  std::atomic<int> tree_reads_{0};
  GoferTreeWalk tree_walk_;

  absl::Mutex mutex_;  // before nothing
  absl::flat_hash_map<Key, GoferInode*> inodes_ ABSL_GUARDED_BY(mutex_);
  // Host devices below the mount, the root's first: inode numbers of the others are made distinct.
  std::vector<uint64_t> devices_ ABSL_GUARDED_BY(mutex_);

  GoferContents contents_;

  absl::Mutex idle_mutex_;  // leaf
  std::list<GoferInode*> idle_ ABSL_GUARDED_BY(idle_mutex_);
  std::list<GoferInode*> named_ ABSL_GUARDED_BY(idle_mutex_);
  std::deque<std::shared_ptr<const GoferListing>> listings_ ABSL_GUARDED_BY(idle_mutex_);
  size_t listed_entries_ ABSL_GUARDED_BY(idle_mutex_) = 0;
  std::weak_ptr<const GoferSiblings> opening_of_ ABSL_GUARDED_BY(idle_mutex_);
  base::Ref<GoferOpening> opening_ ABSL_GUARDED_BY(idle_mutex_);

  absl::Mutex changes_mutex_;                                              // leaf
  std::pair<uint64_t, uint32_t> changed_ ABSL_GUARDED_BY(changes_mutex_);  // device, owner
  uint32_t can_change_ ABSL_GUARDED_BY(changes_mutex_) = 0;
};

}  // namespace sentry
