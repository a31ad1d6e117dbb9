// Open files of an overlay.
#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "sentry/fs/overlay/overlay_inode.h"
#include "sentry/vfs/dir_file.h"
#include "sentry/vfs/file_description.h"

namespace sentry {
namespace {

// Reads the lower file until it is copied, then the copy: unlike Linux's overlay, a descriptor that
// was opened before a write sees it.
class OverlayFile : public SeekableFile {
 public:
  OverlayFile(Path path, uint32_t flags, OverlayInode* inode, base::Ref<FileDescription> inner,
              bool is_upper)
      : SeekableFile(std::move(path), flags),
        inode_(inode),
        inner_(std::move(inner)),
        is_upper_(is_upper) {
    ClosesUnseen();
  }

  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool nonblock) override {
    return TRY(Inner())->PRead(dst, offset, nonblock);
  }
  base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool nonblock) override {
    return TRY(Inner())->PWrite(src, offset, nonblock);
  }
  base::Result<size_t> PWriteAppend(IoSource& src, uint64_t* offset, bool nonblock) override {
    base::Ref<FileDescription> inner = TRY(Inner());
    auto* seekable = dynamic_cast<SeekableFile*>(inner.get());
    if (seekable == nullptr) return base::Error(EINVAL);
    return seekable->PWriteAppend(src, offset, nonblock);
  }
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override { return TRY(Inner())->Ioctl(args); }
  base::Status Sync(bool data_only) override { return TRY(Inner())->Sync(data_only); }
  base::Status Allocate(int mode, uint64_t offset, uint64_t length) override {
    return TRY(Inner())->Allocate(mode, offset, length);
  }
  base::Status Truncate(uint64_t size) override {
    AttrChange change;
    change.set_size = true;
    change.size = size;
    return inode_->SetAttr(change);
  }
  base::Result<HostMapping> Mmap(uint64_t offset, uint64_t length, int prot, bool shared) override {
    return TRY(Inner())->Mmap(offset, length, prot, shared);
  }

 protected:
  base::Result<int64_t> SeekDataOrHole(uint64_t offset, uint64_t, bool data) override {
    return TRY(Inner())->Seek(static_cast<int64_t>(offset), data ? SEEK_DATA : SEEK_HOLE);
  }

 private:
  base::Result<base::Ref<FileDescription>> Inner() {
    {
      absl::MutexLock l(&mutex_);
      if (is_upper_ || inode_->upper() == nullptr) return inner_;
    }
    bool is_upper;
    base::Ref<FileDescription> fresh = TRY(inode_->OpenReal(flags(), &is_upper));
    absl::MutexLock l(&mutex_);
    if (!is_upper_) {
      std::swap(inner_, fresh);  // the old one is dropped without the mutex
      is_upper_ = true;
    }
    return inner_;
  }

  OverlayInode* const inode_;  // kept by path()
  absl::Mutex mutex_;
  base::Ref<FileDescription> inner_ ABSL_GUARDED_BY(mutex_);
  bool is_upper_ ABSL_GUARDED_BY(mutex_);
};

// Lists what both layers had when the listing began; a seek to the start begins another.
class OverlayDirectoryFile : public DirFile {
 public:
  OverlayDirectoryFile(Path path, uint32_t flags, OverlayInode* dir)
      : DirFile(std::move(path), flags), dir_(dir) {
    ClosesUnseen();
  }

  base::Status GetDents(const DirEmit& emit) override {
    fiber::MutexLock l(&pos_mutex_);
    if (!listed_) TRY(List());
    for (; pos_ < entries_.size(); pos_++) {
      const Listed& e = entries_[pos_];
      const std::string_view name = std::string_view(names_).substr(e.name, e.length);
      if (!emit(DirEntry{name, e.ino, e.type, static_cast<int64_t>(pos_ + 1)})) break;
    }
    return base::Ok();
  }

 private:
  void OnSeek() override {
    if (pos_ == 0) listed_ = false;
  }

  struct Listed {
    uint64_t ino;
    uint32_t name;  // in names_
    uint16_t length;
    uint8_t type;
  };
  void Add(std::string_view name, uint64_t ino, uint8_t type) {
    entries_.push_back(
        {ino, static_cast<uint32_t>(names_.size()), static_cast<uint16_t>(name.size()), type});
    names_ += name;
  }
  base::Status List() {
    entries_.clear();
    names_.clear();
    fiber::ReaderLock l(&dir_->lock());
    if (dir_->dead()) return base::Error(ENOENT);
    Add(".", dir_->ino(), DT_DIR);
    Add("..", path().dentry->parent()->inode_ptr()->ino(), DT_DIR);
    TRY(dir_->ForEachEntry([&](const DirEntry& e) {
      if (names_.size() > UINT32_MAX - kNameMax - 1) return false;
      Add(e.name, e.ino, e.type);
      return true;
    }));
    listed_ = true;
    return base::Ok();
  }

  OverlayInode* const dir_;  // kept by path()
  // Guarded by pos_mutex_.
  bool listed_ = false;
  std::vector<Listed> entries_;
  std::string names_;
};

}  // namespace

base::Result<base::Ref<FileDescription>> OverlayInode::Open(const OpenArgs& args) {
  if (IsDir()) {
    return base::Ref<FileDescription>(
        base::MakeRef<OverlayDirectoryFile>(args.path, args.flags, this));
  }
  if (!IsReg()) return base::Error(ENXIO);
  const bool writes = (args.flags & O_ACCMODE) != O_RDONLY;
  if (writes) TRY(CopyUp(/*data=*/(args.flags & O_TRUNC) == 0));
  bool is_upper;
  base::Ref<FileDescription> inner = TRY(OpenReal(args.flags & ~uint32_t{O_TRUNC}, &is_upper));
  return base::Ref<FileDescription>(
      base::MakeRef<OverlayFile>(args.path, args.flags, this, std::move(inner), is_upper));
}

}  // namespace sentry
