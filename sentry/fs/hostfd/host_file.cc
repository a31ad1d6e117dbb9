#include "sentry/fs/hostfd/host_file.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_io.h"
#include "sentry/fiber/blocking.h"
#include "sentry/fiber/fd_watch.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {

// One transfer's bytes on the way between the host and the guest.
constexpr size_t kChunk = 64 << 10;

InodeAttr AttrOf(const struct stat& st, const Inode& inode) {
  InodeAttr attr;
  attr.ino = inode.ino();
  attr.dev = inode.fs().dev();
  attr.mode = st.st_mode;
  attr.nlink = 1;
  attr.rdev = st.st_rdev;
  attr.size = S_ISREG(st.st_mode) ? static_cast<uint64_t>(st.st_size) : 0;
  attr.blocks = S_ISREG(st.st_mode) ? static_cast<uint64_t>(st.st_blocks) : 0;
  attr.atime = st.st_atim;
  attr.mtime = st.st_mtim;
  attr.ctime = st.st_ctim;
  return attr;
}

// The host's owner means nothing inside; the guest may change the mode that it sees.
class HostInode : public AnonInode {
 public:
  HostInode(Filesystem* fs, base::Ref<base::HostFd> host, mode_t mode, uint32_t access)
      : AnonInode(fs, mode, 0, 0), host_(std::move(host)), access_(access) {}
  // Through /proc/PID/fd: another description of the same host descriptor, so that the position of
  // a regular file is shared (Linux gives a new one), for no more than the descriptor allows.
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;
  base::Result<InodeAttr> GetAttr() override {
    InodeAttr shown = TRY(AnonInode::GetAttr());
    struct stat st;
    if (base::HostStat(host_->get(), &st) != 0) return base::LastError();
    InodeAttr attr = AttrOf(st, *this);
    attr.mode = shown.mode;
    attr.uid = shown.uid;
    attr.gid = shown.gid;
    return attr;
  }

 private:
  ~HostInode() override = default;
  const base::Ref<base::HostFd> host_;
  const uint32_t access_;  // the host's O_ACCMODE
};

class HostFile : public FileDescription {
 public:
  HostFile(Path path, uint32_t flags, base::Ref<base::HostFd> host, mode_t type)
      : FileDescription(std::move(path), flags), host_(std::move(host)), type_(type) {}

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  base::Result<int64_t> Seek(int64_t offset, int whence) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  base::Status Sync(bool data_only) override;
  uint32_t Readiness() override;
  bool CanPoll() const override { return !S_ISREG(type_); }
  fiber::WaitQueue* wait_queue() override;
  std::string Describe() const override;

 private:
  ~HostFile() override { watch_.Stop(); }
  base::Status AwaitReady(short events, bool nonblock);
  // A transfer at the host's position that does not wait: EAGAIN. `n` is at most kChunk.
  base::Result<size_t> Transfer(std::byte* bytes, size_t n, bool write);

  const base::Ref<base::HostFd> host_;
  const mode_t type_;
  fiber::WaitQueue queue_;
  absl::Mutex watch_mutex_;
  fiber::FdWatch watch_ ABSL_GUARDED_BY(watch_mutex_);
};

base::Result<base::Ref<FileDescription>> HostInode::Open(const OpenArgs& args) {
  const uint32_t asked = args.flags & O_ACCMODE;
  if (access_ != O_RDWR && asked != access_) return base::Error(EACCES);
  return base::Ref<FileDescription>(base::MakeRef<HostFile>(args.path, args.flags, host_, type()));
}

base::Status HostFile::AwaitReady(short events, bool nonblock) {
  if (S_ISREG(type_)) return base::Ok();
  struct pollfd p = {host_->get(), events, 0};
  if (base::HostPoll(&p, 1, 0) == 1) return base::Ok();
  if (nonblock) return base::Error(EAGAIN);
  if (fiber::WaitFd(host_->get(), static_cast<uint32_t>(events), {.interruptible = true}) ==
      fiber::WakeReason::kInterrupted) {
    return base::Error(base::kERESTARTSYS);
  }
  return base::Ok();
}

base::Result<size_t> HostFile::Transfer(std::byte* bytes, size_t n, bool write) {
  iovec iov = {bytes, n};
  ssize_t done = write ? pwritev2(host_->get(), &iov, 1, -1, RWF_NOWAIT)
                       : preadv2(host_->get(), &iov, 1, -1, RWF_NOWAIT);
  if (done >= 0) return static_cast<size_t>(done);
  bool unknown = errno == EOPNOTSUPP || errno == EINVAL;
  if (!unknown && !(errno == EAGAIN && S_ISREG(type_))) return base::LastError();
  if (S_ISSOCK(type_)) {
    msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    done = write ? sendmsg(host_->get(), &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
                 : recvmsg(host_->get(), &msg, MSG_DONTWAIT);
    if (done < 0) return base::LastError();
    return static_cast<size_t>(done);
  }
  // A file of a disk, which does not take for ever but may take a while; or, where the host's pipes
  // and terminals do not know RWF_NOWAIT, one that was ready a moment ago. A ready pipe takes
  // PIPE_BUF bytes without a wait; more could hold a task that nobody could kill meanwhile.
  if (write && !S_ISREG(type_)) iov.iov_len = std::min<size_t>(n, PIPE_BUF);
  struct Outcome {
    ssize_t done;
    int error;
  };
  Outcome o = fiber::BlockingCall([&] {
    ssize_t r = write ? base::HostWrite(host_->get(), iov.iov_base, iov.iov_len)
                      : base::HostRead(host_->get(), iov.iov_base, iov.iov_len);
    return Outcome{r, errno};
  });
  if (o.done < 0) return base::Error(o.error);
  return static_cast<size_t>(o.done);
}

base::Result<size_t> HostFile::Read(IoDest& dst, bool nonblock) {
  if (dst.remaining() == 0) return size_t{0};
  std::array<std::byte, 4096> small;
  std::vector<std::byte> large;
  size_t want = std::min(dst.remaining(), kChunk);
  std::byte* buffer = small.data();
  if (want > small.size()) {
    large.resize(want);
    buffer = large.data();
  }
  for (;;) {
    TRY(AwaitReady(POLLIN, nonblock));
    auto n = Transfer(buffer, want, false);
    if (!n.ok()) {
      if (n.error().code() == EAGAIN && !nonblock) continue;  // somebody else took it
      return n.error();
    }
    return dst.Put(std::span(buffer, *n));
  }
}

base::Result<size_t> HostFile::Write(IoSource& src, bool nonblock) {
  size_t total = 0;
  std::vector<std::byte> buffer(std::min(src.remaining(), kChunk));
  while (src.remaining() > 0) {
    auto got = src.Get(std::span(buffer).first(std::min(src.remaining(), buffer.size())));
    if (!got.ok()) return total > 0 ? base::Result<size_t>(total) : got.error();
    for (size_t sent = 0; sent < *got;) {
      base::Status ready = AwaitReady(POLLOUT, nonblock);
      auto n = ready.ok() ? Transfer(buffer.data() + sent, *got - sent, true)
                          : base::Result<size_t>(ready.error());
      if (!n.ok()) {
        if (n.error().code() == EAGAIN && !nonblock) continue;
        return total > 0 ? base::Result<size_t>(total) : n.error();
      }
      sent += *n;
      total += *n;
    }
  }
  return total;
}

base::Result<int64_t> HostFile::Seek(int64_t offset, int whence) {
  if (!S_ISREG(type_)) return base::Error(ESPIPE);
  off_t at = lseek(host_->get(), offset, whence);
  if (at < 0) return base::LastError();
  return int64_t{at};
}

base::Result<uint64_t> HostFile::Ioctl(const IoctlArgs& args) {
  if (args.cmd != FIONREAD) return base::Error(ENOTTY);
  int available = 0;
  if (ioctl(host_->get(), FIONREAD, &available) != 0) return base::LastError();
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, available));
  return uint64_t{0};
}

base::Status HostFile::Sync(bool data_only) {
  if (!S_ISREG(type_)) return base::Error(EINVAL);
  int error = fiber::BlockingCall([&] {
    int r = data_only ? fdatasync(host_->get()) : fsync(host_->get());
    return r == 0 ? 0 : errno;
  });
  return error == 0 ? base::Ok() : base::Status(base::Error(error));
}

uint32_t HostFile::Readiness() {
  struct pollfd p = {host_->get(), POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRNORM,
                     0};
  if (base::HostPoll(&p, 1, 0) < 0) return EPOLLERR;
  return static_cast<uint32_t>(p.revents);
}

fiber::WaitQueue* HostFile::wait_queue() {
  absl::MutexLock l(&watch_mutex_);
  if (!watch_.started()) {
    base::Status started =
        watch_.Start(host_->get(), EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP,
                     fiber::FdWatch::Mode::kEdge, [this](uint32_t events) { queue_.Wake(events); });
    if (!started.ok()) return nullptr;  // always ready
  }
  return &queue_;
}

std::string HostFile::Describe() const {
  std::string ino = std::to_string(inode()->ino());
  if (S_ISFIFO(type_)) return "pipe:[" + ino + "]";
  if (S_ISSOCK(type_)) return "socket:[" + ino + "]";
  return "host:[" + ino + "]";
}

}  // namespace

base::Result<base::Ref<FileDescription>> ImportHostFile(Vfs& vfs, base::UniqueFd fd) {
  struct stat st;
  if (base::HostStat(fd.get(), &st) != 0) return base::LastError();
  int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0) return base::LastError();
  auto host = base::MakeRef<base::HostFd>(fd.release());
  const uint32_t kept = static_cast<uint32_t>(flags) & (O_ACCMODE | O_APPEND);
  auto inode = base::MakeRef<HostInode>(vfs.anonymous_filesystem().get(), host,
                                        (st.st_mode & S_IFMT) | mode_t{0600}, kept & O_ACCMODE);
  std::string name = "host:[" + std::to_string(inode->ino()) + "]";
  Path path = vfs.AnonymousPath(std::move(inode), std::move(name));
  return base::Ref<FileDescription>(
      base::MakeRef<HostFile>(std::move(path), kept, std::move(host), st.st_mode & S_IFMT));
}

}  // namespace sentry
