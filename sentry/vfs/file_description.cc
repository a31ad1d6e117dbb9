#include "sentry/vfs/file_description.h"

#include <signal.h>

#include <algorithm>
#include <utility>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/lanes/lane_ends.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

// O_CREAT is kept where the open has made the file, as Linux's FMODE_CREATED; no call shows it.
constexpr uint32_t kCreationFlags = O_EXCL | O_NOCTTY | O_TRUNC;
constexpr uint32_t kSettableFlags = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;

std::atomic<FileDescription::AsyncSender> g_async_sender{nullptr};

// O_PATH takes part with O_DIRECTORY and O_NOFOLLOW alone.
uint32_t KeptFlags(uint32_t flags) {
  if ((flags & O_PATH) != 0) return flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW);
  return flags & ~(kCreationFlags | O_CLOEXEC);
}

bool CanRead(uint32_t flags) {
  return (flags & O_ACCMODE) == O_RDONLY || (flags & O_ACCMODE) == O_RDWR;
}
bool CanWrite(uint32_t flags) {
  return (flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR;
}

}  // namespace

// Registered with the queue of a file that has O_ASYNC.
class FileDescription::AsyncWaiter : public fiber::Waiter {
 public:
  AsyncWaiter(const FileDescription& file, int fd) : file_(file), fd_(fd) {}
  void set_fd(int fd) { fd_.store(fd, std::memory_order_relaxed); }
  void OnEvent(uint32_t events) override {
    if ((events & kWakeQuietly) != 0) return;
    const int band = file_.AsyncBand(events);
    if (band != 0) file_.NotifyOwner(fd_.load(std::memory_order_relaxed), band);
  }

 private:
  const FileDescription& file_;
  std::atomic<int> fd_;
};

FileDescription::FileDescription(Path path, uint32_t flags)
    : path_(std::move(path)),
      flags_(KeptFlags(flags)),
      path_only_((flags & O_PATH) != 0),
      readable_(!path_only_ && CanRead(flags)),
      writable_(!path_only_ && CanWrite(flags)) {}

FileDescription::~FileDescription() {
  Inode* i = inode();
  if (i == nullptr) return;
  if (FileLocks* locks = i->locks_if_any(); locks != nullptr && locks->any()) {
    locks->Unflock(this);
    locks->ReleaseRecords(this);
    if (locks->has_leases()) (void)locks->DropLease(*this);
  }
  if (holds_write_access_) {
    i->DropWriteAccess();
    path_.mount->DropWriter();
  }
  if (!path_only_) NotifyDentry(*path_.dentry, writable_ ? IN_CLOSE_WRITE : IN_CLOSE_NOWRITE);
}

void FileDescription::set_holds_write_access() {
  holds_write_access_ = true;
  path_.mount->AddWriter();
}

Inode* FileDescription::inode() const { return path_.dentry ? path_.dentry->inode_ptr() : nullptr; }

base::Status FileDescription::SetStatusFlags(uint32_t flags) {
  uint32_t old = flags_.load(std::memory_order_relaxed);
  uint32_t wanted;
  do {
    wanted = (old & ~kSettableFlags) | (flags & kSettableFlags);
  } while (!flags_.compare_exchange_weak(old, wanted, std::memory_order_relaxed));
  if (((old ^ wanted) & O_NONBLOCK) != 0 && may_have_lanes_) LaneEnds::Tell(*this);
  return base::Ok();
}

FileDescription::AsyncOwner FileDescription::async_owner() const {
  absl::MutexLock l(&owner_mutex_);
  return async_owner_;
}

void FileDescription::set_async_owner(AsyncOwner owner) {
  {
    absl::MutexLock l(&owner_mutex_);
    std::swap(async_owner_, owner);
  }
  OnAsyncOwner();
}

void FileDescription::SetAsyncSender(AsyncSender sender) { g_async_sender.store(sender); }

void FileDescription::NotifyOwner(int fd, int band) const {
  AsyncSender sender = g_async_sender.load(std::memory_order_acquire);
  if (sender != nullptr) sender(async_owner(), fd, band);
}

bool FileDescription::CanAsync() const {
  const Inode* i = inode();
  return i != nullptr && (i->type() == S_IFIFO || i->type() == S_IFSOCK);
}

int FileDescription::AsyncBand(uint32_t events) const {
  if (readable_ && (events & (EPOLLIN | EPOLLHUP)) != 0) return POLL_IN;
  return writable_ && (events & (EPOLLOUT | EPOLLERR)) != 0 ? POLL_OUT : 0;
}

void FileDescription::SetAsync(int fd, bool on) {
  if (on) OnAsyncOn();
  fiber::WaitQueue* queue = wait_queue();
  absl::MutexLock l(&async_mutex_);
  if (!on) {
    if (async_ != nullptr && queue != nullptr) queue->Unregister(async_.get());
    async_ = nullptr;
    flags_.fetch_and(~uint32_t{O_ASYNC}, std::memory_order_relaxed);
  } else if (async_ != nullptr) {
    async_->set_fd(fd);
  } else {
    async_ = std::make_unique<AsyncWaiter>(*this, fd);
    if (queue != nullptr) queue->Register(async_.get(), ~uint32_t{0});
    flags_.fetch_or(O_ASYNC, std::memory_order_relaxed);
  }
  has_async_.store(on, std::memory_order_release);
}

base::Result<size_t> FileDescription::Read(IoDest&, bool) { return base::Error(EINVAL); }
base::Result<size_t> FileDescription::Write(IoSource&, bool) { return base::Error(EINVAL); }
base::Result<size_t> FileDescription::PRead(IoDest&, uint64_t, bool) { return base::Error(ESPIPE); }
base::Result<size_t> FileDescription::PWrite(IoSource&, uint64_t, bool) {
  return base::Error(ESPIPE);
}
base::Result<int64_t> FileDescription::Seek(int64_t, int) { return base::Error(ESPIPE); }
base::Status FileDescription::GetDents(const DirEmit&) { return base::Error(ENOTDIR); }
base::Result<uint64_t> FileDescription::Ioctl(const IoctlArgs&) { return base::Error(ENOTTY); }
base::Status FileDescription::Sync(bool) { return base::Error(EINVAL); }
base::Status FileDescription::Allocate(int, uint64_t, uint64_t) { return base::Error(ENODEV); }
base::Status FileDescription::Truncate(uint64_t) { return base::Error(EINVAL); }
base::Result<HostMapping> FileDescription::Mmap(uint64_t, uint64_t, int, bool) {
  return base::Error(ENODEV);
}
base::Result<InodeAttr> FileDescription::GetAttr() {
  Inode* i = inode();
  if (i == nullptr) return base::Error(EBADF);
  return i->GetAttr();
}
base::Status FileDescription::SetAttr(const AttrChange& change) {
  Inode* i = inode();
  if (i == nullptr) return base::Error(EBADF);
  return i->SetAttr(change);
}
uint32_t FileDescription::Readiness() { return EPOLLIN | EPOLLOUT | EPOLLRDNORM | EPOLLWRNORM; }
fiber::WaitQueue* FileDescription::wait_queue() { return nullptr; }
base::Result<uint64_t> FileDescription::Fcntl(int, uint64_t) { return base::Error(EINVAL); }
std::string FileDescription::Describe() const {
  return path_.dentry ? path_.dentry->name() : std::string();
}

// Whatever the guest has made of it, it is a position.
void SeekableFile::RecallPosition() {
  if (lent_ == nullptr) return;
  if (const std::optional<uint64_t> position = lent_->Recall()) {
    pos_ = std::min(*position, max_offset());
  }
}

bool SeekableFile::LendTo(FdTable& table, int fd, const base::Ref<LaneBinding>& binding,
                          bool begin) {
  if (!pos_mutex_.TryLock()) return false;
  const bool lent = LendLocked(table, fd, binding, begin);
  pos_mutex_.Unlock();
  return lent;
}

bool SeekableFile::LendLocked(FdTable& table, int fd, const base::Ref<LaneBinding>& binding,
                              bool begin) {
  if (lent_ == nullptr) {
    lent_ = std::make_unique<LentFile>(inode()->attr_word());
  } else if (!lent_->Pays()) {
    return false;
  }
  // Looking may be a change itself, so it is done again if something has changed meanwhile.
  for (int i = 0; i < 2; i++) {
    lent_->Watch();
    const std::optional<Lendable> file = LookForLending(begin);
    // Who watches accesses (IN_ACCESS) is told of them by the sentry.
    if (!file || AnyWatches()) return false;
    if (table.ShowFile(fd, this, binding, *lent_, file->size, file->source, file->begin)) {
      lent_->Lend(pos_);
      return true;
    }
  }
  lent_->Failed();
  return false;
}

base::Result<size_t> SeekableFile::Read(IoDest& dst, bool nonblock) {
  fiber::MutexLock l(&pos_mutex_);
  RecallPosition();
  // Linux: rw_verify_area.
  if (pos_ <= kMaxFileSize && dst.remaining() > kMaxFileSize - pos_) return base::Error(EINVAL);
  const size_t n = TRY(PRead(dst, pos_, nonblock));
  pos_ += n;
  return n;
}

base::Result<size_t> SeekableFile::Write(IoSource& src, bool nonblock) {
  fiber::MutexLock l(&pos_mutex_);
  RecallPosition();
  if ((flags() & O_APPEND) != 0) {
    uint64_t offset = pos_;
    const size_t n = TRY(PWriteAppend(src, &offset, nonblock));
    if (n > 0) pos_ = offset + n;
    return n;
  }
  const size_t n = TRY(PWrite(src, pos_, nonblock));
  pos_ += n;
  return n;
}

base::Result<size_t> SeekableFile::PWriteAppend(IoSource& src, uint64_t* offset, bool nonblock) {
  *offset = TRY(GetAttr()).size;
  return PWrite(src, *offset, nonblock);
}

base::Result<int64_t> SeekableFile::SeekDataOrHole(uint64_t offset, uint64_t size, bool data) {
  return static_cast<int64_t>(data ? offset : size);
}

base::Result<int64_t> SeekableFile::Seek(int64_t offset, int whence) {
  fiber::MutexLock l(&pos_mutex_);
  RecallPosition();
  int64_t base_offset = 0;
  switch (whence) {
    case SEEK_SET:
      break;
    case SEEK_CUR:
      if (offset == 0) return static_cast<int64_t>(pos_);
      base_offset = static_cast<int64_t>(pos_);
      break;
    case SEEK_END:
      base_offset = static_cast<int64_t>(TRY(GetAttr()).size);
      break;
    case SEEK_DATA:
    case SEEK_HOLE: {
      const uint64_t size = TRY(GetAttr()).size;
      if (offset < 0 || static_cast<uint64_t>(offset) >= size) return base::Error(ENXIO);
      offset = TRY(SeekDataOrHole(static_cast<uint64_t>(offset), size, whence == SEEK_DATA));
      break;
    }
    default:
      return base::Error(EINVAL);
  }
  int64_t target;
  if (__builtin_add_overflow(base_offset, offset, &target)) return base::Error(EINVAL);
  if (target < 0 || static_cast<uint64_t>(target) > max_offset()) return base::Error(EINVAL);
  pos_ = static_cast<uint64_t>(target);
  return target;
}

}  // namespace sentry
