// Attributes, links, extended attributes, and host descriptors of inodes.
#include "sentry/fs/gofer/inode.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "sentry/base/host_io.h"
#include "sentry/base/time.h"
#include "sentry/fiber/blocking.h"
#include "sentry/fiber/phase.h"

namespace sentry {
namespace {

// With relatime an access time is renewed after this long at the latest.
constexpr int64_t kRelatimeSeconds = 24 * 60 * 60;

timespec ToTimespec(const gofer::Time& t) { return {t.sec, t.nsec}; }
gofer::Time ToTime(const timespec& t) { return {t.tv_sec, static_cast<uint32_t>(t.tv_nsec), 0}; }

}  // namespace

GoferInode::GoferInode(GoferFilesystem* fs, uint64_t ino, const gofer::Node& node, std::string link)
    : Inode(fs, ino, node.attr.mode),
      handle_(node.handle),
      host_dev_(uint64_t{node.attr.dev_major} << 32 | node.attr.dev_minor),
      host_ino_(node.attr.ino),
      attr_(node.attr),
      link_(std::move(link)),
      fetched_ns_(base::MonotonicNs()) {
  absl::MutexLock l(&mutex_);
  AttrChanged();
}

GoferInode::~GoferInode() { gofer_fs().Drop(this, handle_); }

bool GoferInode::Is(const gofer::Attr& attr) const {
  return attr.ino == host_ino_ && (uint64_t{attr.dev_major} << 32 | attr.dev_minor) == host_dev_ &&
         (attr.mode & S_IFMT) == type();
}

InodeAttr GoferInode::ToInodeAttr(const gofer::Attr& a) const {
  InodeAttr out;
  out.ino = ino();
  out.dev = fs().dev();
  out.mode = (a.mode & ~static_cast<mode_t>(S_IFMT)) | type();
  out.nlink = a.nlink;
  out.uid = a.uid;
  out.gid = a.gid;
  out.rdev = makedev(a.rdev_major, a.rdev_minor);
  out.size = a.size;
  out.blocks = a.blocks;
  out.blksize = a.blksize;
  out.atime = ToTimespec(a.atime);
  out.mtime = ToTimespec(a.mtime);
  out.ctime = ToTimespec(a.ctime);
  out.btime = ToTimespec(a.btime);
  return out;
}

void GoferInode::Apply(const gofer::Attr& attr) {
  if ((attr.mode & S_IFMT) != type()) return;  // an honest gofer never sends another file's
  if (!Is(attr)) gofer_fs().Renumber(this, attr);
  absl::MutexLock l(&mutex_);
  attr_ = attr;
  fetched_ns_ = base::MonotonicNs();
  AttrChanged();
}

void GoferInode::AttrChanged() {
  if (gofer_fs().exclusive()) CachePerm(attr_.mode, attr_.uid, attr_.gid);
  const auto order = [](const gofer::Time& t) { return std::pair(t.sec, t.nsec); };
  const bool due = order(attr_.atime) <= std::max(order(attr_.mtime), order(attr_.ctime)) ||
                   attr_.atime.sec + kRelatimeSeconds < CurrentTime().tv_sec;
  if (read_at_atime_) {
    const bool kept = order(*read_at_atime_) == order(attr_.atime);
    atime_kept_.store(due && kept, std::memory_order_relaxed);
    read_at_atime_.reset();
  }
  atime_due_.store(due, std::memory_order_relaxed);
  attr_word().Changed();
}

bool GoferInode::WatchAttr(AttrWords* words) {
  words->push_back(&attr_word());
  return gofer_fs().exclusive() && !mapped_writable_.load(std::memory_order_acquire);
}

// A change of owners changes the time of the last change, of which a coarse clock shows one for
// many changes in a row.
bool GoferInode::OwnersHold(const struct stat& st, bool changed) const {
  if (changed && base::MonotonicNs() - fetched_ns_ < kOwnersNs) return true;
  const struct timespec known = ToTimespec(attr_.ctime);
  if (st.st_ctim.tv_sec != known.tv_sec || st.st_ctim.tv_nsec != known.tv_nsec) return false;
  const struct timespec now = CurrentTime();
  return (now.tv_sec - known.tv_sec) * 1'000'000'000 + now.tv_nsec - known.tv_nsec > kCoarseNs;
}

base::Result<InodeAttr> GoferInode::GetAttr() {
  Settle();
  const bool exclusive = gofer_fs().exclusive();
  base::Ref<base::HostFd> fd;
  {
    absl::MutexLock l(&mutex_);
    const bool mapped = mapped_writable_.load(std::memory_order_acquire);
    const bool fresh = exclusive || base::MonotonicNs() - fetched_ns_ < kSharedNs;
    if (fresh && !mapped && !stale_.load(std::memory_order_acquire)) return ToInodeAttr(attr_);
    fd = write_fd_ ? write_fd_ : read_fd_;
  }
  // Before the question: a change after it makes the answer stale again.
  const bool changed = stale_.exchange(false, std::memory_order_seq_cst);
  struct stat st;
  const bool seen = fd && base::HostStat(fd->get(), &st) == 0;
  if (absl::MutexLock l(&mutex_); seen && (exclusive || OwnersHold(st, changed))) {
    // What the host changes by itself. Owners are in the sentry's own user namespace here.
    attr_.mode = st.st_mode;
    attr_.nlink = static_cast<uint32_t>(st.st_nlink);
    attr_.size = static_cast<uint64_t>(st.st_size);
    attr_.blocks = static_cast<uint64_t>(st.st_blocks);
    attr_.atime = ToTime(st.st_atim);
    attr_.mtime = ToTime(st.st_mtim);
    attr_.ctime = ToTime(st.st_ctim);
    AttrChanged();
    return ToInodeAttr(attr_);
  }
  auto attr = gofer::ParseAttr(Call(gofer::MakeOn(gofer::Op::kGetAttr, handle_)));
  if (!attr.ok()) {
    MarkStale();
    return attr.error();
  }
  // Somebody has changed them meanwhile: it is not known which of the two the gofer served first.
  if (unsettled_.load(std::memory_order_acquire)) return ToInodeAttr(*attr);
  Apply(*attr);
  return ToInodeAttr(*attr);
}

base::Status GoferInode::SetAttr(const AttrChange& change) {
  changed_.store(true, std::memory_order_relaxed);
  gofer::SetAttrRequest r = {};
  r.handle = handle_;
  if (change.set_size) TRY(Truncate(change.size));
  if (change.set_mode) r.mask |= gofer::kSetMode, r.mode = change.mode & 07777;
  if (change.set_uid) r.mask |= gofer::kSetUid, r.uid = change.uid;
  if (change.set_gid) r.mask |= gofer::kSetGid, r.gid = change.gid;
  if (change.set_atime) {
    r.mask |= change.atime_now ? gofer::kSetAtimeNow : gofer::kSetAtime;
    if (!change.atime_now) r.atime = ToTime(change.atime);
  }
  if (change.set_mtime) {
    r.mask |= change.mtime_now ? gofer::kSetMtimeNow : gofer::kSetMtime;
    if (!change.mtime_now) r.mtime = ToTime(change.mtime);
  }
  attr_word().Changing();
  if (r.mask == 0 || ChangeLate(r)) return base::Ok();
  const auto attr = gofer::ParseAttr(Call(gofer::MakeSetAttr(r)));
  if (gofer_fs().exclusive()) NoteChange(r.mask, attr.ok());
  if (!attr.ok()) return attr.error();
  Apply(*attr);
  return base::Ok();
}

base::Status GoferInode::Truncate(uint64_t size) {
  if (size > kMaxFileSize) return base::Error(EFBIG);
  changed_.store(true, std::memory_order_relaxed);
  Settle();
  fiber::MutexLock data(&data_mutex_);
  const PathChange change(attr_word());
  base::Ref<base::HostFd> fd;
  {
    absl::MutexLock l(&mutex_);
    fd = write_fd_;
  }
  if (!fd) {
    gofer::SetAttrRequest r = {};
    r.handle = handle_;
    r.mask = gofer::kSetSize;
    r.size = size;
    Apply(TRY(gofer::ParseAttr(Call(gofer::MakeSetAttr(r)))));
    data_version_.fetch_add(1, std::memory_order_seq_cst);
    FileReplaced();
    return base::Ok();
  }
  const int error = fiber::BlockingCall(
      [&] { return ftruncate(fd->get(), static_cast<off_t>(size)) == 0 ? 0 : errno; });
  if (error != 0) return base::Error(error);
  Wrote(size);
  return base::Ok();
}

base::Result<std::string> GoferInode::ReadLink() {
  if (!IsSymlink()) return base::Error(EINVAL);
  {
    absl::MutexLock l(&mutex_);
    if (!link_.empty()) return link_;
  }
  std::string link = TRY(gofer::ParseLink(Call(gofer::MakeOn(gofer::Op::kReadlink, handle_))));
  absl::MutexLock l(&mutex_);
  return link_ = std::move(link);
}

// --- extended attributes ---

// The gofer's own rule, asked here first: ls and cp try names on each file that it refuses.
static base::Status CheckXattr(std::string_view name, bool write) {
  if (name.size() > gofer::kMaxXattrName) return base::Error(ERANGE);
  if (name.starts_with("user.") || (!write && name == "security.capability")) return base::Ok();
  return base::Error(EOPNOTSUPP);
}

base::Result<std::string> GoferInode::GetXattr(std::string_view name) {
  TRY(CheckXattr(name, false));
  // Every exec asks for this one.
  const bool caps = gofer_fs().exclusive() && name == "security.capability";
  if (caps && no_file_caps_.load(std::memory_order_relaxed)) return base::Error(ENODATA);
  auto value = gofer::ParseXattr(Call(gofer::MakeGetXattr(handle_, name, gofer::kMaxXattr)),
                                 gofer::kMaxXattr);
  if (!value.ok()) {
    const int error = value.error().code();
    if (caps && (error == ENODATA || error == EOPNOTSUPP)) no_file_caps_.store(true);
    return value.error();
  }
  return std::move(value->bytes);
}

base::Status GoferInode::SetXattr(std::string_view name, std::string_view value, int flags) {
  TRY(CheckXattr(name, true));
  if (value.size() > gofer::kMaxXattr) return base::Error(E2BIG);
  TRY(gofer::ParseEmpty(
      Call(gofer::MakeSetXattr(handle_, name, value, static_cast<uint32_t>(flags)))));
  MarkStale();  // ctime
  return base::Ok();
}

base::Result<std::vector<std::string>> GoferInode::ListXattr() {
  auto list =
      gofer::ParseXattr(Call(gofer::MakeListXattr(handle_, gofer::kMaxXattr)), gofer::kMaxXattr);
  std::vector<std::string> names;
  if (!list.ok()) {
    if (list.error().code() == EOPNOTSUPP) return names;
    return list.error();
  }
  std::string_view rest = list->bytes;
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find('\0'));
    if (!name.empty()) names.emplace_back(name);
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
  }
  return names;
}

base::Status GoferInode::RemoveXattr(std::string_view name) {
  TRY(CheckXattr(name, true));
  TRY(gofer::ParseEmpty(Call(gofer::MakeRemoveXattr(handle_, name))));
  MarkStale();
  return base::Ok();
}

bool GoferInode::EndsAt(uint64_t offset) const {
  if (!DataVersion() || stale_.load(std::memory_order_acquire)) return false;
  absl::MutexLock l(&mutex_);
  return attr_.size == offset;
}

ssize_t GoferInode::ReadHere(int fd, std::span<char> buffer, uint64_t offset, int flags,
                             bool* end) const {
  size_t done = 0;
  while (done < buffer.size()) {
    const iovec iov = {buffer.data() + done, buffer.size() - done};
    const ssize_t n = preadv2(fd, &iov, 1, static_cast<off_t>(offset + done), flags);
    if (n < 0) return done > 0 ? static_cast<ssize_t>(done) : -static_cast<ssize_t>(errno);
    done += static_cast<size_t>(n);
    if (n == 0 || EndsAt(offset + done)) {
      *end = true;
      break;
    }
  }
  return static_cast<ssize_t>(done);
}

// A read of what is in the host's page cache does not wait, and is tried first.
base::Result<size_t> GoferInode::ReadAt(int fd, char* buffer, size_t size, uint64_t offset,
                                        bool* end) {
  GoferFilesystem& fs = gofer_fs();
  size_t done = 0;
  bool ended = false;
  const auto read = [&](int flags) {
    const std::span<char> rest = std::span(buffer, size).subspan(done);
    return ReadHere(fd, rest, offset + done, flags, &ended);
  };
  const auto timed = [&] {
    const int64_t begin = base::MonotonicNs();
    const ssize_t n = read(0);
    return std::pair(n, base::MonotonicNs() - begin);
  };
  ssize_t n = -EAGAIN;
  bool all = false;  // that there is
  {
    const fiber::ScopedPhase phase(fiber::Phase::kHostCall);
    if (fs.nowait()) {
      n = read(RWF_NOWAIT);
      if (n == -EOPNOTSUPP || n == -EINVAL) fs.set_no_nowait();
    }
    if (!fs.nowait() && fs.in_memory()) {
      n = read(0);
      all = true;
    } else if (!fs.nowait() && fs.direct_reads().TryBegin()) {
      const auto [got, ns] = timed();
      fs.direct_reads().End(ns);
      n = got;
      all = true;
    }
  }
  if (n > 0) done = static_cast<size_t>(n);
  if (!all && done < size && !ended && (n >= 0 || n == -EAGAIN || !fs.nowait())) {
    n = fiber::BlockingCall([&] {
      const auto [got, ns] = timed();
      fs.direct_reads().Took(ns);
      return got;
    });
    if (n > 0) done += static_cast<size_t>(n);
  }
  if (n < 0 && done == 0) return base::Error(static_cast<int>(-n));
  if (ended) *end = true;
  return done;
}

}  // namespace sentry
