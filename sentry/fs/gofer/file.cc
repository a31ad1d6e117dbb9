// Open files and directories.
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>

#include "sentry/fiber/blocking.h"
#include "sentry/fiber/phase.h"
#include "sentry/fs/gofer/content.h"
#include "sentry/fs/gofer/inode.h"
#include "sentry/fs/gofer/read_block.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/dir_file.h"
#include "sentry/vfs/file_description.h"

namespace sentry {
namespace {

// Data passes between the host's file and the guest's memory through a buffer of the sentry. Small
// ones are on the fiber's stack; large ones are kept for the next call.
constexpr size_t kSmall = 4096;
constexpr size_t kLarge = 128 * 1024;
// Larger reads are better made by the stub, from a mapping of its own.
constexpr size_t kMapped = 512;
// So many of them are answered with bytes that are kept before.
constexpr uint32_t kContentReads = 4;
// After so many reads small ones are too: the stub then makes them by itself.
constexpr uint32_t kManyReads = 12;

class LargeBuffers {
 public:
  static LargeBuffers& Get() {
    static LargeBuffers* buffers = new LargeBuffers;
    return *buffers;
  }
  std::unique_ptr<char[]> Take() {
    {
      absl::MutexLock l(&mutex_);
      if (!free_.empty()) {
        auto buffer = std::move(free_.back());
        free_.pop_back();
        return buffer;
      }
    }
    return std::make_unique_for_overwrite<char[]>(kLarge);
  }
  void Give(std::unique_ptr<char[]> buffer) {
    absl::MutexLock l(&mutex_);
    if (free_.size() < kKept) free_.push_back(std::move(buffer));
  }

 private:
  static constexpr size_t kKept = 8;
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<char[]>> free_ ABSL_GUARDED_BY(mutex_);
};

class IoBuffer {
 public:
  explicit IoBuffer(size_t size) {
    if (size > kSmall) large_ = LargeBuffers::Get().Take();
  }
  ~IoBuffer() {
    if (large_) LargeBuffers::Get().Give(std::move(large_));
  }
  char* data() { return large_ ? large_.get() : small_; }
  size_t size() const { return large_ ? kLarge : kSmall; }

 private:
  std::unique_ptr<char[]> large_;
  char small_[kSmall];
};

class GoferFile : public SeekableFile {
 public:
  // `fd`: null if it need not be open yet, which is so for reading alone.
  GoferFile(Path path, uint32_t flags, GoferInode* inode, base::Ref<base::HostFd> fd)
      : SeekableFile(std::move(path), flags), inode_(inode), fd_(fd.release()) {
    inode_->AddOpen();
    ClosesUnseen();
    if (readable() && inode_->gofer_fs().exclusive()) MayBeLent();
  }

  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool nonblock) override;
  base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool nonblock) override;
  base::Result<size_t> PWriteAppend(IoSource& src, uint64_t* offset, bool nonblock) override;
  base::Status Sync(bool data_only) override;
  base::Status Allocate(int mode, uint64_t offset, uint64_t length) override;
  base::Status Truncate(uint64_t size) override { return inode_->Truncate(size); }
  base::Result<HostMapping> Mmap(uint64_t offset, uint64_t length, int prot, bool shared) override;

 protected:
  ~GoferFile() override {
    if (base::HostFd* fd = fd_.load(std::memory_order_acquire)) fd->DecRef();
    inode_->DropOpen();
  }
  base::Result<int64_t> SeekDataOrHole(uint64_t offset, uint64_t size, bool data) override;
  std::optional<Lendable> LookForLending(bool begin) override {
    // Nobody has asked for it yet: it is not to cost an exchange.
    if (begin && inode_->HasStaleAttr()) return std::nullopt;
    const auto file = inode_->LookForLending();
    if (!file) return std::nullopt;
    Lendable lendable{.size = file->size, .source = file->source};
    if (!begin) return lendable;
    if (const base::Ref<GoferContent> bytes = inode_->Begin(fd_.load(), file->size)) {
      lendable.begin = bytes->From(0);
      lendable.keeps_begin = bytes;
    }
    return lendable;
  }

 private:
  base::Result<size_t> WriteChunks(IoSource& src, int fd, uint64_t offset, bool append);
  // What the reader is to copy from its own mapping of the file: so many bytes, and whether these
  // are all that a read gets.
  struct Mapped {
    size_t n = 0;
    bool all = false;
  };
  Mapped ReadMapped(IoDest& dst, uint64_t offset, int fd);
  // The bytes that are kept of the file, if it is them who answer a read.
  base::Ref<GoferContent> ContentFor(const IoDest& dst, uint64_t offset);
  // The host's descriptor for a use of it now; opened when it is wanted first. May park.
  base::Result<base::HostFd*> HostFile();

  GoferInode* const inode_;  // kept by path()
  // For reading, or for reading and writing. Null until there is one; then for good, with a
  // reference.
  std::atomic<base::HostFd*> fd_;
  std::atomic<uint32_t> content_reads_{0};  // large ones
  std::atomic<uint32_t> reads_{0};
  GoferReadBlock block_;
};

base::Result<base::HostFd*> GoferFile::HostFile() {
  inode_->Settle();
  if (base::HostFd* fd = fd_.load(std::memory_order_acquire)) return fd;
  base::Ref<base::HostFd> fresh = TRY(inode_->EnsureFd(false));
  base::HostFd* expected = nullptr;
  if (!fd_.compare_exchange_strong(expected, fresh.get(), std::memory_order_acq_rel)) {
    return expected;
  }
  return fresh.release();
}

base::Ref<GoferContent> GoferFile::ContentFor(const IoDest& dst, uint64_t offset) {
  if (reads_.load(std::memory_order_relaxed) >= kManyReads) return nullptr;
  base::Ref<GoferContent> content = inode_->Content();
  if (!content || std::min(dst.remaining(), content->From(offset).size()) < kMapped) return content;
  // Who reads it over and over has it mapped.
  if (content_reads_.fetch_add(1, std::memory_order_relaxed) >= kContentReads) return nullptr;
  return content;
}

GoferFile::Mapped GoferFile::ReadMapped(IoDest& dst, uint64_t offset, int fd) {
  const base::Ref<base::FileSource> source = inode_->MappedSource();
  if (!source) return {};
  const base::Result<uint64_t> size = inode_->SizeNow(fd);
  if (!size.ok()) return {};
  if (offset >= *size) return {.all = true};
  const size_t want = std::min(dst.remaining(), *size - offset);
  const size_t n = dst.PutFile(source, offset, want);
  return {n, n == want};
}

base::Result<size_t> GoferFile::PRead(IoDest& dst, uint64_t offset, bool) {
  if (offset > kMaxFileSize) return base::Error(EINVAL);
  const bool often = reads_.fetch_add(1, std::memory_order_relaxed) >= kManyReads;
  if (const base::Ref<GoferContent> content = ContentFor(dst, offset)) {
    const std::span<const std::byte> bytes = content->From(offset);
    return dst.Put(bytes.first(std::min(bytes.size(), dst.remaining())));
  }
  const int fd = TRY(HostFile())->get();
  size_t done = 0;
  if (dst.remaining() >= kMapped || often) {
    const Mapped mapped = ReadMapped(dst, offset, fd);
    if (mapped.all) return mapped.n;
    done = mapped.n;
  }
  IoBuffer buffer(dst.remaining());
  if (done > 0) {
    // The rest is read.
  } else if (auto known = block_.Read(*inode_, fd, buffer.data(), dst.remaining(), offset)) {
    return *known == 0 ? 0 : dst.Put(std::as_bytes(std::span(buffer.data(), *known)));
  }
  bool kept = false;
  while (dst.remaining() > 0) {
    const size_t want = std::min(dst.remaining(), buffer.size());
    const std::optional<uint64_t> version = inode_->DataVersion();
    bool end = false;
    auto n = inode_->ReadAt(fd, buffer.data(), want, offset + done, &end);
    if (!n.ok()) {
      if (done > 0) return done;
      return n.error();
    }
    if (end && version) {
      block_.SetEnd(*version, offset + done + *n);
      // Of a file that is longer or shorter than it says, nobody knows when it changes.
      if (offset + done == 0 && inode_->EndsAt(*n)) {
        inode_->KeepContent(*version, std::as_bytes(std::span(buffer.data(), *n)));
        kept = true;
      }
    }
    if (*n == 0) break;
    auto put = dst.Put(std::as_bytes(std::span(buffer.data(), *n)));
    if (!put.ok()) {
      if (done > 0) return done;
      return put.error();
    }
    done += *put;
    if (*put < *n || *n < want) break;
  }
  if (done > 0) inode_->WasRead();
  // What was kept is of use once it is known whether that changed the access time; now the host
  // tells by one call.
  if (kept) (void)inode_->GetAttr();
  return done;
}

base::Result<size_t> GoferFile::WriteChunks(IoSource& src, int fd, uint64_t offset, bool append) {
  const uint32_t sync = flags() & O_SYNC;
  const int rwf = (append ? RWF_APPEND : 0) | (sync == O_SYNC          ? RWF_SYNC
                                               : (sync & O_DSYNC) != 0 ? RWF_DSYNC
                                                                       : 0);
  IoBuffer buffer(src.remaining());
  size_t done = 0;
  while (src.remaining() > 0) {
    const size_t want = std::min(src.remaining(), buffer.size());
    auto got = src.Get(std::as_writable_bytes(std::span(buffer.data(), want)));
    if (!got.ok()) {
      if (done > 0) return done;
      return got.error();
    }
    if (*got == 0) break;
    const iovec iov = {buffer.data(), *got};
    const auto write = [&]() -> ssize_t {
      // With RWF_APPEND and -1 the host's file position becomes the end of what was written.
      const off_t at = append ? -1 : static_cast<off_t>(offset + done);
      const fiber::ScopedPhase phase(fiber::Phase::kHostCall);
      const ssize_t n = pwritev2(fd, &iov, 1, at, rwf);
      return n < 0 ? -errno : n;
    };
    // Into the page cache: as quick as memory. Else it waits for the disk.
    ssize_t n = sync != 0 ? fiber::BlockingCall(write) : write();
    if (n == -ENOSPC || n == -EDQUOT) {
      inode_->gofer_fs().connection().FlushForgotten();  // may give room back
      n = fiber::BlockingCall(write);
    }
    if (n < 0) {
      if (done > 0) return done;
      return base::Error(static_cast<int>(-n));
    }
    done += static_cast<size_t>(n);
    if (static_cast<size_t>(n) < want) break;
  }
  return done;
}

base::Result<size_t> GoferFile::PWrite(IoSource& src, uint64_t offset, bool nonblock) {
  // As Linux: pwrite(2) appends too if the file is open for appending.
  if ((flags() & O_APPEND) != 0) return PWriteAppend(src, &offset, nonblock);
  if (offset > kMaxFileSize) return base::Error(EINVAL);
  const int fd = TRY(HostFile())->get();
  fiber::MutexLock l(&inode_->data_mutex());
  const PathChange change(inode_->attr_word());
  const size_t n = TRY(WriteChunks(src, fd, offset, false));
  if (n > 0) inode_->Wrote(offset + n);
  return n;
}

base::Result<size_t> GoferFile::PWriteAppend(IoSource& src, uint64_t* offset, bool) {
  // The host appends, so that a writer outside of the sandbox loses nothing either.
  const int fd = TRY(HostFile())->get();
  fiber::MutexLock l(&inode_->data_mutex());
  const PathChange change(inode_->attr_word());
  const size_t n = TRY(WriteChunks(src, fd, 0, true));
  if (n == 0) return n;
  const off_t end = lseek(fd, 0, SEEK_CUR);
  if (end < 0) return base::LastError();
  *offset = static_cast<uint64_t>(end) - n;
  inode_->Wrote(static_cast<uint64_t>(end));
  return n;
}

base::Status GoferFile::Sync(bool data_only) {
  const int fd = TRY(HostFile())->get();
  const int error =
      fiber::BlockingCall([&] { return (data_only ? fdatasync(fd) : fsync(fd)) == 0 ? 0 : errno; });
  if (error != 0) return base::Error(error);
  return base::Ok();
}

base::Status GoferFile::Allocate(int mode, uint64_t offset, uint64_t length) {
  constexpr int kModes = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_COLLAPSE_RANGE |
                         FALLOC_FL_ZERO_RANGE | FALLOC_FL_INSERT_RANGE | FALLOC_FL_UNSHARE_RANGE;
  if ((mode & ~kModes) != 0) return base::Error(EOPNOTSUPP);
  const int fd = TRY(HostFile())->get();
  fiber::MutexLock l(&inode_->data_mutex());
  const PathChange change(inode_->attr_word());
  const int error = fiber::BlockingCall([&] {
    return fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0 ? 0
                                                                                            : errno;
  });
  if (error != 0) return base::Error(error);
  inode_->Wrote(offset + length);
  return base::Ok();
}

base::Result<HostMapping> GoferFile::Mmap(uint64_t offset, uint64_t, int, bool shared) {
  // A private mapping never writes to the file, whatever its protection becomes. A shared one of a
  // file that is open for writing may be made writable later. Other stubs get no description that
  // could write, whoever else has the file open.
  if (!shared || !writable()) return HostMapping{TRY(inode_->MappingFd()), offset};
  inode_->SetMappedWritable();
  return HostMapping{base::Ref<base::HostFd>(TRY(HostFile())), offset};
}

base::Result<int64_t> GoferFile::SeekDataOrHole(uint64_t offset, uint64_t, bool data) {
  const int fd = TRY(HostFile())->get();
  // The host's position is used by appends.
  fiber::MutexLock l(&inode_->data_mutex());
  const off_t at = lseek(fd, static_cast<off_t>(offset), data ? SEEK_DATA : SEEK_HOLE);
  if (at < 0) return base::LastError();
  return at;
}

// Positions: 0 is ".", 1 is "..", then the entries of the listing taken when position 0 was read.
class GoferDirFile : public DirFile {
 public:
  GoferDirFile(Path path, uint32_t flags, GoferInode* inode)
      : DirFile(std::move(path), flags), inode_(inode) {
    ClosesUnseen();
  }

  base::Status Sync(bool) override { return inode_->SyncDirectory(); }

  base::Status GetDents(const DirEmit& emit) override {
    fiber::MutexLock l(&pos_mutex_);
    if (inode_->dead()) return base::Error(ENOENT);
    if (pos_ == 0 || !listing_) listing_ = TRY(inode_->List());
    if (pos_ == 0) {
      if (!emit(DirEntry{".", inode_->ino(), DT_DIR, 1})) return base::Ok();
      pos_ = 1;
    }
    if (pos_ == 1) {
      base::Ref<Dentry> up = path().dentry->parent();
      if (!emit(DirEntry{"..", up->inode_ptr()->ino(), DT_DIR, 2})) return base::Ok();
      pos_ = 2;
    }
    while (pos_ - 2 < listing_->items.size()) {
      const GoferListing::Item& item = listing_->items[pos_ - 2];
      if (!emit(DirEntry{item.name, item.ino, item.type, static_cast<int64_t>(pos_ + 1)})) break;
      ++pos_;
    }
    return base::Ok();
  }

 private:
  GoferInode* const inode_;                      // kept by path()
  std::shared_ptr<const GoferListing> listing_;  // under pos_mutex_
};

}  // namespace

base::Result<base::Ref<FileDescription>> GoferInode::Open(const OpenArgs& args) {
  if (IsDir()) {
    return base::Ref<FileDescription>(base::MakeRef<GoferDirFile>(args.path, args.flags, this));
  }
  if (!IsReg()) return base::Error(IsSymlink() ? ELOOP : ENXIO);
  base::Ref<base::HostFd> fd;
  const bool write = (args.flags & O_ACCMODE) != O_RDONLY;
  if (write || !Content()) fd = TRY(EnsureFd(write));
  if ((args.flags & O_TMPFILE) == O_TMPFILE && (args.flags & O_EXCL) != 0) {
    never_linked_.store(true, std::memory_order_relaxed);
  }
  return base::Ref<FileDescription>(
      base::MakeRef<GoferFile>(args.path, args.flags, this, std::move(fd)));
}

base::Status GoferInode::SyncDirectory() {
  return gofer::ParseEmpty(Call(gofer::MakeOn(gofer::Op::kFsync, handle_)));
}

}  // namespace sentry
