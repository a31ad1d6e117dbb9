// Inodes of tmpfs. Internal to sentry/fs/tmpfs.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fs/tmpfs/memory_data.h"
#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/fs/tmpfs/tmpfs_flags.h"
#include "sentry/vfs/inode.h"

namespace sentry {

class TmpfsFilesystem : public Filesystem {
 public:
  explicit TmpfsFilesystem(const TmpfsOptions& options);
  base::Result<struct statfs> StatFs() override;
  std::string ShowOptions() const override;
  base::Status Reconfigure(std::string_view data) override;
  bool cheap_lookup() const override { return true; }
  bool keeps_names() const override { return true; }

  PageQuota& pages() { return pages_; }
  // ENOSPC beyond nr_inodes; a number for a new inode.
  base::Result<uint64_t> TakeInode();
  void ReturnInode() { used_inodes_.fetch_sub(1, std::memory_order_relaxed); }

 private:
  ~TmpfsFilesystem() override = default;
  const TmpfsOptions options_;
  PageQuota pages_;
  std::atomic<uint64_t> max_inodes_;
  std::atomic<uint64_t> used_inodes_{0};
  std::atomic<uint64_t> next_ino_{1};
};

// Attributes and extended attributes: all kinds of inodes.
class TmpfsInode : public Inode {
 public:
  // Takes over one inode of the filesystem's budget.
  TmpfsInode(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args);
  base::Result<InodeAttr> GetAttr() override;
  bool WatchAttr(AttrWords* words) override {
    words->push_back(&attr_word());
    return true;
  }
  base::Status SetAttr(const AttrChange& change) override;
  base::Status CheckPermission(const Credentials& creds, int may) override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;  // ENXIO
  base::Result<std::string> GetXattr(std::string_view name) override;
  base::Status SetXattr(std::string_view name, std::string_view value, int flags) override;
  base::Result<std::vector<std::string>> ListXattr() override;
  base::Status RemoveXattr(std::string_view name) override;

  TmpfsFilesystem& tmpfs() const { return static_cast<TmpfsFilesystem&>(fs()); }
  // kFileImmutable, kFileAppend, kFileNoDump, kFileNoAtime.
  uint32_t file_flags() const { return file_flags_.load(std::memory_order_relaxed); }
  void set_file_flags(uint32_t flags) { file_flags_.store(flags, std::memory_order_relaxed); }
  bool append_only() const { return (file_flags() & kFileAppend) != 0; }
  bool immutable() const { return (file_flags() & kFileImmutable) != 0; }
  // EPERM: its attributes, names and content stay, all of them or all but the end.
  base::Status CheckChangeable() const {
    return immutable() || append_only() ? base::Error(EPERM) : base::Status();
  }
  // One name more or fewer.
  void AddLink(int n);
  // A name of other than a directory goes. Each but the last was counted as an inode when it was
  // made, as Linux does, so that names are bounded too.
  void DropName();
  uint32_t nlink() const;
  // Made by O_TMPFILE without O_EXCL: may get a first name though it has none.
  void set_linkable() { linkable_ = true; }
  bool linkable() const { return linkable_; }
  // Stamps the times that are told, with the current time.
  void Touch(bool atime, bool mtime, bool ctime);
  void TouchAccess(const Mount& mount, uint32_t open_flags);
  // It would change the access time now.
  bool TouchesAccess(const Mount& mount, uint32_t open_flags);

 protected:
  ~TmpfsInode() override;
  void OnZeroRefs() override;
  // What the contents add to the attributes.
  virtual void FillAttr(InodeAttr*) {}
  virtual base::Status Resize(uint64_t) { return base::Error(EINVAL); }

 private:
  bool AccessIsDue(const Mount& mount, uint32_t open_flags, const timespec& now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  mutable absl::Mutex mutex_;  // leaf
  InodeAttr attr_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::string, std::less<>> xattrs_ ABSL_GUARDED_BY(mutex_);
  // Of names and values; whole pages are charged for them.
  base::Status ChargeXattrs(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t xattr_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> linkable_{false};
  std::atomic<uint32_t> file_flags_{0};
};

class TmpfsRegular : public TmpfsInode {
 public:
  TmpfsRegular(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args)
      : TmpfsInode(fs, ino, args), data_(&fs->pages()) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;
  bool WatchAttr(AttrWords* words) override;

  // The contents; the data lock may be held over a park (copies to guest memory).
  // `often`: by a mapping that the reader has, if the bytes can be mapped.
  base::Result<size_t> Read(IoDest& dst, uint64_t offset, bool often);
  // Makes them so, if it can.
  void PrepareMapping();
  // How long it is, and base::FileSource::id of the bytes (0: there is none). Nothing if guests map
  // it.
  std::optional<std::pair<uint64_t, uint64_t>> LookForLending();
  base::Result<size_t> Write(IoSource& src, uint64_t* offset, bool append);
  base::Status Allocate(int mode, uint64_t offset, uint64_t length);
  base::Result<uint64_t> Seek(uint64_t offset, bool data);
  base::Result<HostMapping> Map(uint64_t offset, bool shared, bool may_write, int prot);
  base::Status Resize(uint64_t size) override;
  uint64_t Size();

  // F_GET_SEALS; F_SEAL_SEAL until set_sealable.
  uint32_t seals();
  base::Status AddSeals(uint32_t seals);
  void set_seals(uint32_t seals);

 protected:
  void FillAttr(InodeAttr* attr) override;

 private:
  ~TmpfsRegular() override = default;
  fiber::SharedMutex data_lock_;
  MemoryData data_ ABSL_GUARDED_BY(data_lock_);
  uint32_t seals_ ABSL_GUARDED_BY(data_lock_) = 1;  // F_SEAL_SEAL
};

class TmpfsSymlink : public TmpfsInode {
 public:
  // What a target takes of the filesystem's pages (SHORT_SYMLINK_LEN): who makes one charges it.
  static uint64_t PagesFor(std::string_view target) { return target.size() < 128 ? 0 : 1; }
  TmpfsSymlink(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args, std::string_view target)
      : TmpfsInode(fs, ino, args), target_(target) {}
  base::Result<std::string> ReadLink() override { return target_; }

 protected:
  void FillAttr(InodeAttr* attr) override { attr->size = target_.size(); }

 private:
  ~TmpfsSymlink() override { tmpfs().pages().Uncharge(PagesFor(target_)); }
  const std::string target_;
};

// A directory. Entries have cursors that never change and grow with every creation, so that a
// reader who stopped at one goes on behind it whatever happened meanwhile.
class TmpfsDirectory : public TmpfsInode {
 public:
  TmpfsDirectory(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args);

  base::Result<base::Ref<Inode>> Lookup(std::string_view name) override;
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
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;

  bool empty() const;
  // May a name of `victim` go? (may_delete)
  base::Status CheckRemovable(const TmpfsInode& victim) const {
    return append_only() ? base::Error(EPERM) : victim.CheckChangeable();
  }
  // Entries with a cursor >= `from`, in order, until `emit` returns false. lock() is held shared.
  void ForEach(uint64_t from, const DirEmit& emit);

 protected:
  void FillAttr(InodeAttr* attr) override;

 private:
  struct Entry {
    std::string name;
    base::Ref<TmpfsInode> inode;
    uint64_t cursor;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view name) const;
    size_t operator()(const Entry* e) const { return (*this)(std::string_view(e->name)); }
  };
  struct Eq {
    using is_transparent = void;
    bool operator()(const Entry* a, const Entry* b) const { return a->name == b->name; }
    bool operator()(const Entry* a, std::string_view b) const { return a->name == b; }
    bool operator()(std::string_view a, const Entry* b) const { return b->name == a; }
  };
  struct Slot {
    uint64_t cursor;
    std::unique_ptr<Entry> entry;  // null: removed
  };
  ~TmpfsDirectory() override;
  template <typename T, typename... Args>
  base::Result<base::Ref<T>> Make(const NewInode& args, Args&&... more);
  Entry* Find(std::string_view name) const;
  void AddEntry(std::string_view name, base::Ref<TmpfsInode> inode);
  base::Ref<TmpfsInode> RemoveEntry(std::string_view name);

  // Guarded by lock().
  absl::flat_hash_set<Entry*, Hash, Eq> by_name_;
  std::vector<Slot> slots_;   // ascending cursors
  uint64_t next_cursor_ = 2;  // 0 and 1 are "." and ".."
  std::atomic<size_t> count_{0};
};

}  // namespace sentry
