#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <span>

#include "sentry/fs/tmpfs/tmpfs_inode.h"
#include "sentry/vfs/dentry.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace sentry {
namespace {

constexpr uint32_t kLargeFile = 0100000;  // O_LARGEFILE, which libc has as 0
constexpr uint32_t kAllSeals =
    F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;

// The first `limit` bytes of another source.
class FirstBytes : public IoSource {
 public:
  FirstBytes(IoSource& source, uint64_t limit) : source_(source), left_(limit) {}
  size_t remaining() const override { return std::min<uint64_t>(left_, source_.remaining()); }
  base::Result<size_t> Get(std::span<std::byte> dst) override {
    const size_t n = TRY(source_.Get(dst.first(std::min<uint64_t>(dst.size(), left_))));
    left_ -= n;
    return n;
  }

 private:
  IoSource& source_;
  uint64_t left_;
};

class RegularFile : public SeekableFile {
 public:
  RegularFile(Path path, uint32_t flags, TmpfsRegular* inode)
      : SeekableFile(std::move(path), flags), inode_(inode) {
    if (readable()) MayBeLent();
    ClosesUnseen();
  }

  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool) override {
    const uint32_t reads = reads_.fetch_add(1, std::memory_order_relaxed);
    if (reads == kManyReads) inode_->PrepareMapping();
    const size_t n = TRY(inode_->Read(dst, offset, reads >= kManyReads));
    inode_->TouchAccess(*path().mount, flags());
    return n;
  }
  base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool) override {
    return inode_->Write(src, &offset, /*append=*/false);
  }
  base::Result<size_t> PWriteAppend(IoSource& src, uint64_t* offset, bool) override {
    return inode_->Write(src, offset, /*append=*/true);
  }
  base::Status Sync(bool) override { return base::Ok(); }
  base::Status Allocate(int mode, uint64_t offset, uint64_t length) override {
    return inode_->Allocate(mode, offset, length);
  }
  base::Status Truncate(uint64_t size) override {
    AttrChange change;
    change.set_size = true;
    change.size = size;
    return inode_->SetAttr(change);
  }
  base::Result<HostMapping> Mmap(uint64_t offset, uint64_t, int prot, bool shared) override {
    return inode_->Map(offset, shared, shared && writable(), prot);
  }
  base::Status SetStatusFlags(uint32_t wanted) override {
    if (((wanted ^ flags()) & O_APPEND) != 0 && inode_->append_only()) return base::Error(EPERM);
    return SeekableFile::SetStatusFlags(wanted);
  }
  base::Result<uint64_t> Fcntl(int cmd, uint64_t arg) override {
    switch (cmd) {
      case F_GET_SEALS:
        return uint64_t{inode_->seals()};
      case F_ADD_SEALS:
        if (!writable()) return base::Error(EPERM);
        TRY(inode_->AddSeals(static_cast<uint32_t>(arg)));
        return uint64_t{0};
      default:
        return base::Error(EINVAL);
    }
  }

 protected:
  base::Result<int64_t> SeekDataOrHole(uint64_t offset, uint64_t, bool data) override {
    return static_cast<int64_t>(TRY(inode_->Seek(offset, data)));
  }
  std::optional<Lendable> LookForLending(bool) override {
    const auto file = inode_->LookForLending();
    if (!file || inode_->TouchesAccess(*path().mount, flags())) return std::nullopt;
    return Lendable{.size = file->first, .source = file->second};
  }

 private:
  // Who has read so often has the bytes mapped from then on.
  static constexpr uint32_t kManyReads = 24;
  TmpfsRegular* const inode_;  // kept by path()
  std::atomic<uint32_t> reads_{0};
};

}  // namespace

base::Result<base::Ref<FileDescription>> TmpfsRegular::Open(const OpenArgs& args) {
  if (append_only()) {  // may_open()
    const bool writes = (args.flags & O_ACCMODE) != O_RDONLY;
    if (writes && (args.flags & O_APPEND) == 0) return base::Error(EPERM);
    if ((args.flags & O_TRUNC) != 0) return base::Error(EPERM);
  }
  if ((args.flags & O_TMPFILE) == O_TMPFILE && (args.flags & O_EXCL) == 0) set_linkable();
  return base::Ref<FileDescription>(base::MakeRef<RegularFile>(args.path, args.flags, this));
}

void TmpfsRegular::FillAttr(InodeAttr* attr) {
  fiber::ReaderLock l(&data_lock_);
  attr->size = data_.size();
  attr->blocks = data_.blocks();
}

bool TmpfsRegular::WatchAttr(AttrWords* words) {
  words->push_back(&attr_word());
  fiber::ReaderLock l(&data_lock_);
  return !data_.mapped();
}

uint64_t TmpfsRegular::Size() {
  fiber::ReaderLock l(&data_lock_);
  return data_.size();
}

base::Result<size_t> TmpfsRegular::Read(IoDest& dst, uint64_t offset, bool often) {
  fiber::ReaderLock l(&data_lock_);
  if (!often || offset >= data_.size()) return data_.Read(dst, offset);
  const base::Ref<base::FileSource> source = data_.Source();
  if (!source) return data_.Read(dst, offset);
  const size_t want = std::min<uint64_t>(dst.remaining(), data_.size() - offset);
  const size_t done = dst.PutFile(source, offset, want);
  if (done == want) return done;
  const base::Result<size_t> rest = data_.Read(dst, offset + done);
  if (!rest.ok()) return done > 0 ? base::Result<size_t>(done) : rest;
  return done + *rest;
}

void TmpfsRegular::PrepareMapping() {
  fiber::WriterLock l(&data_lock_);
  if (data_.size() > 0 && !data_.mapped()) (void)data_.MakeSource();
}

std::optional<std::pair<uint64_t, uint64_t>> TmpfsRegular::LookForLending() {
  fiber::ReaderLock l(&data_lock_);
  if (data_.mapped()) return std::nullopt;
  const base::Ref<base::FileSource> source = data_.Source();
  return std::pair(data_.size(), source ? source->id() : 0);
}

base::Result<size_t> TmpfsRegular::Write(IoSource& src, uint64_t* offset, bool append) {
  const PathChange change(attr_word());
  size_t n;
  {
    fiber::WriterLock l(&data_lock_);
    if (append) *offset = data_.size();
    if ((seals_ & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) return base::Error(EPERM);
    uint64_t limit = src.remaining(), end;
    if ((seals_ & F_SEAL_GROW) != 0 && limit > 0 &&
        (__builtin_add_overflow(*offset, limit, &end) || end > data_.size())) {
      // shmem_write_begin() looks at one page after the other.
      const uint64_t whole = data_.size() - data_.size() % kMemoryPage;
      if (*offset >= whole) return base::Error(EPERM);
      limit = whole - *offset;
    }
    FirstBytes first(src, limit);
    n = TRY(data_.Write(first, *offset));
  }
  if (n > 0) Touch(false, true, true);
  return n;
}

base::Status TmpfsRegular::Resize(uint64_t size) {
  fiber::WriterLock l(&data_lock_);
  if (size > kMaxFileSize) return base::Error(EFBIG);
  if ((seals_ & F_SEAL_SHRINK) != 0 && size < data_.size()) return base::Error(EPERM);
  if ((seals_ & F_SEAL_GROW) != 0 && size > data_.size()) return base::Error(EPERM);
  const PathChange change(attr_word());
  return data_.Truncate(size);
}

base::Status TmpfsRegular::Allocate(int mode, uint64_t offset, uint64_t length) {
  if ((mode & ~FALLOC_FL_KEEP_SIZE) != 0 && append_only()) return base::Error(EPERM);
  if (immutable()) return base::Error(EPERM);
  if ((mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) != 0) return base::Error(EOPNOTSUPP);
  const PathChange change(attr_word());
  {
    fiber::WriterLock l(&data_lock_);
    if ((mode & FALLOC_FL_PUNCH_HOLE) != 0) {
      if ((mode & FALLOC_FL_KEEP_SIZE) == 0) return base::Error(EOPNOTSUPP);
      if ((seals_ & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) return base::Error(EPERM);
      TRY(data_.Punch(offset, length));
    } else {
      const bool grows = offset + length > data_.size();
      if ((seals_ & F_SEAL_GROW) != 0 && grows) return base::Error(EPERM);
      TRY(data_.Reserve(offset, length));
      if ((mode & FALLOC_FL_KEEP_SIZE) == 0 && grows) TRY(data_.Extend(offset + length));
    }
  }
  Touch(false, true, true);
  return base::Ok();
}

base::Result<uint64_t> TmpfsRegular::Seek(uint64_t offset, bool data) {
  fiber::ReaderLock l(&data_lock_);
  if (offset >= data_.size()) return base::Error(ENXIO);
  return data_.Seek(offset, data);
}

base::Result<HostMapping> TmpfsRegular::Map(uint64_t offset, bool shared, bool may_write,
                                            int prot) {
  if (append_only() && may_write) return base::Error(EACCES);
  fiber::WriterLock l(&data_lock_);
  if ((seals_ & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) {
    if (shared && (prot & PROT_WRITE) != 0) return base::Error(EPERM);
    may_write = false;
  }
  auto file = data_.HostFile(may_write);
  attr_word().Changed();
  return HostMapping{TRY(std::move(file)), offset};
}

uint32_t TmpfsRegular::seals() {
  fiber::ReaderLock l(&data_lock_);
  return seals_;
}

void TmpfsRegular::set_seals(uint32_t seals) {
  fiber::WriterLock l(&data_lock_);
  seals_ = seals;
}

base::Status TmpfsRegular::AddSeals(uint32_t seals) {
  if ((seals & ~kAllSeals) != 0) return base::Error(EINVAL);
  const mode_t mode = TRY(GetPerm()).mode;
  fiber::WriterLock l(&data_lock_);
  if ((seals_ & F_SEAL_SEAL) != 0) return base::Error(EPERM);
  if ((seals & F_SEAL_WRITE) != 0 && (seals_ & F_SEAL_WRITE) == 0 && data_.writable_mappings()) {
    return base::Error(EBUSY);
  }
  // Sealing the mode of an executable file seals what is executed too.
  if ((seals & F_SEAL_EXEC) != 0 && (mode & 0111) != 0) {
    seals |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
  }
  seals_ |= seals;
  return base::Ok();
}

base::Result<base::Ref<FileDescription>> NewMemfd(Vfs& vfs, const Credentials& creds,
                                                  std::string_view name, uint32_t flags) {
  // Linux's internal mount of shmem: no limit of its own.
  static const base::Ref<TmpfsFilesystem>* const internal =
      new base::Ref<TmpfsFilesystem>(base::MakeRef<TmpfsFilesystem>(TmpfsOptions{}));
  TmpfsFilesystem* fs = internal->get();
  const uint64_t ino = TRY(fs->TakeInode());
  const bool noexec = (flags & MFD_NOEXEC_SEAL) != 0;
  const NewInode args{S_IFREG | (noexec ? 0666u : 0777u), creds.fsuid, creds.fsgid, 0};
  auto inode = base::MakeRef<TmpfsRegular>(fs, ino, args);
  inode->AddLink(-1);
  if ((flags & (MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL)) != 0) {
    inode->set_seals(noexec ? F_SEAL_EXEC : 0);
  }
  Path path = vfs.AnonymousPath(inode, "/memfd:" + std::string(name) + " (deleted)");
  TmpfsRegular* regular = inode.get();
  auto file = base::MakeRef<RegularFile>(std::move(path), uint32_t{O_RDWR} | kLargeFile, regular);
  TRY(regular->GetWriteAccess());
  file->set_holds_write_access();
  return base::Ref<FileDescription>(std::move(file));
}

}  // namespace sentry
