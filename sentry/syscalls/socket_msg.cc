// send, recv and their kin, with control messages: net/socket.c, net/core/scm.c.
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "sentry/fiber/fiber.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/net/unix/inflight.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/read_target.h"
#include "sentry/syscalls/socket_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

constexpr size_t kMaxFiles = 253;           // SCM_MAX_FD
constexpr size_t kMaxControl = 128 * 1024;  // net.core.optmem_max
constexpr size_t kHeader = sizeof(cmsghdr);
constexpr int kScmPidFd = 4;          // SCM_PIDFD, which the headers may not know
constexpr uint32_t kMaxBatch = 1024;  // UIO_MAXIOV, of sendmmsg and recvmmsg

// struct msghdr and mmsghdr of amd64.
struct UserMsghdr {
  uint64_t name;
  int32_t name_length;
  uint32_t pad;
  uint64_t iov, iov_count, control, control_length;
  int32_t flags;
  uint32_t pad2;
};
static_assert(sizeof(UserMsghdr) == 56);
constexpr uint64_t kMmsgSize = 64, kMmsgLength = 56;

size_t Align(size_t n) { return (n + 7) & ~size_t{7}; }

// May the task claim to be `c` (scm_check_creds)?
Result<SenderCreds> CheckCreds(Task& t, const ucred& c) {
  SenderCreds out;
  const Credentials& mine = t.creds();
  base::Ref<Pid> own = t.thread_group().pid();
  if (c.pid == own->NumberIn(t.pid_namespace())) {
    out.pid = own;
  } else {
    if (!mine.HasCapIn(CAP_SYS_ADMIN, *t.pid_namespace().user_ns())) return Error(EPERM);
    out.pid = t.pid_namespace().Find(c.pid);
    if (out.pid == nullptr) return Error(ESRCH);
  }
  out.uid = TRY(t.user_ns().MapUidIn(c.uid));
  out.gid = TRY(t.user_ns().MapGidIn(c.gid));
  bool uid_ok = out.uid == mine.ruid || out.uid == mine.euid || out.uid == mine.suid;
  bool gid_ok = out.gid == mine.rgid || out.gid == mine.egid || out.gid == mine.sgid;
  if (!uid_ok && !t.HasCap(CAP_SETUID)) return Error(EPERM);
  if (!gid_ok && !t.HasCap(CAP_SETGID)) return Error(EPERM);
  return out;
}

Status AddFiles(Task& t, std::span<const std::byte> data, SendArgs* args) {
  size_t count = data.size() / sizeof(int);
  if (count + args->files.size() > kMaxFiles) return Error(EINVAL);
  for (size_t i = 0; i < count; ++i) {
    int fd;
    memcpy(&fd, data.data() + i * sizeof(int), sizeof(fd));
    base::Ref<FileDescription> file = fd < 0 ? nullptr : t.fd_table().Get(fd);
    if (file == nullptr) return Error(EBADF);
    args->files.push_back(std::move(file));
  }
  return base::Ok();
}

// The control messages of a sendmsg (__scm_send).
Status ParseControl(Task& t, const UserMsghdr& msg, SendArgs* args) {
  if (msg.control == 0 || msg.control_length == 0) return base::Ok();
  if (msg.control_length > kMaxControl) return Error(ENOBUFS);
  std::vector<std::byte> buffer(msg.control_length);
  TRY(t.memory().Read(msg.control, buffer));
  for (size_t at = 0; at + kHeader <= buffer.size();) {
    cmsghdr h;
    memcpy(&h, buffer.data() + at, sizeof(h));
    if (h.cmsg_len < kHeader || h.cmsg_len > buffer.size() - at) return Error(EINVAL);
    auto data = std::span<const std::byte>(buffer).subspan(at + kHeader, h.cmsg_len - kHeader);
    at += Align(h.cmsg_len);
    if (h.cmsg_level != SOL_SOCKET) {
      args->control.push_back({h.cmsg_level, h.cmsg_type, {data.begin(), data.end()}});
      continue;
    }
    switch (h.cmsg_type) {
      case SCM_RIGHTS:
        TRY(AddFiles(t, data, args));
        break;
      case SCM_CREDENTIALS: {
        ucred c;
        if (data.size() != sizeof(c)) return Error(EINVAL);
        memcpy(&c, data.data(), sizeof(c));
        args->creds = TRY(CheckCreds(t, c));
        break;
      }
      default:
        return Error(EINVAL);
    }
  }
  return base::Ok();
}

// Writes control messages into the guest's buffer, as put_cmsg() and scm_detach_fds().
class ControlWriter {
 public:
  ControlWriter(Task& t, uint64_t addr, uint64_t length)
      : t_(t), addr_(addr), left_(addr != 0 ? length : 0) {}

  Status Put(int level, int type, std::span<const std::byte> data) {
    if (left_ < kHeader) {
      truncated_ = true;
      return base::Ok();
    }
    size_t length = kHeader + data.size();
    if (left_ < length) {
      truncated_ = true;
      length = left_;
    }
    cmsghdr h{};
    h.cmsg_len = length;
    h.cmsg_level = level;
    h.cmsg_type = type;
    std::vector<std::byte> buffer(length);
    memcpy(buffer.data(), &h, kHeader);
    if (length > kHeader) memcpy(buffer.data() + kHeader, data.data(), length - kHeader);
    TRY(t_.memory().Write(addr_ + used_, buffer));
    size_t space = std::min(Align(kHeader + data.size()), left_);
    used_ += space;
    left_ -= space;
    return base::Ok();
  }

  // Installs as many files as there is room for.
  Status PutFiles(const FileList& files, bool cloexec) {
    size_t room = left_ > kHeader ? (left_ - kHeader) / sizeof(int) : 0;
    std::vector<int> fds;
    for (const auto& file : files) {
      if (fds.size() >= room) break;
      Result<int> fd = t_.InstallFile(file, cloexec);
      if (!fd.ok()) break;
      fds.push_back(*fd);
    }
    if (fds.size() < files.size()) truncated_ = true;
    if (fds.empty()) return base::Ok();
    return Put(SOL_SOCKET, SCM_RIGHTS, std::as_bytes(std::span(fds)));
  }

  bool HasRoomFor(size_t length) const { return left_ >= kHeader + length; }
  bool truncated() const { return truncated_; }
  void set_truncated() { truncated_ = true; }
  uint64_t used() const { return used_; }

 private:
  Task& t_;
  const uint64_t addr_;
  uint64_t left_, used_ = 0;
  bool truncated_ = false;
};

// Flags of sendmsg(2) and its kin: a bit is the kernel's own (MSG_CMSG_COMPAT).
Result<int> UserFlags(int flags) {
  if ((static_cast<uint32_t>(flags) >> 31) != 0) return Error(EINVAL);
  return flags;
}

Result<UserMsghdr> CopyInHeader(Task& t, uint64_t addr) {
  UserMsghdr msg = TRY(UserPtr<UserMsghdr>(addr).CopyIn(t.memory()));
  if (msg.name == 0) msg.name_length = 0;
  if (msg.name_length < 0) return Error(EINVAL);
  msg.name_length = std::min<int32_t>(msg.name_length, sizeof(sockaddr_storage));
  if (msg.iov_count > kIovMax) return Error(EMSGSIZE);
  if (msg.control_length > static_cast<uint64_t>(std::numeric_limits<int>::max())) {
    return Error(ENOBUFS);
  }
  return msg;
}

Result<uint64_t> SendTo(Socket& socket, IoSource& src, SendArgs args) {
  Result<size_t> n = socket.Send(src, std::move(args));
  if (!n.ok()) socket.NoteNoSpace(n.error());
  return uint64_t{TRY(n)};
}

Result<uint64_t> DoSendmsg(Task& t, SocketRef& s, uint64_t addr, int flags) {
  UserMsghdr msg = TRY(CopyInHeader(t, addr));
  SendArgs args;
  args.flags = flags;
  args.nonblock = s.file->nonblock() || (flags & MSG_DONTWAIT) != 0;
  args.to = TRY(CopyInAddress(t, msg.name, msg.name_length));
  UserIovec iovec = TRY(ImportIovec(t.memory(), msg.iov, msg.iov_count));
  TRY(ParseControl(t, msg, &args));
  UserIoSource src(t.memory(), std::move(iovec));
  return SendTo(*s.socket, src, std::move(args));
}

// What a receive returns: with MSG_TRUNC the length of the whole message.
uint64_t LengthOf(const SocketRef& s, const RecvArgs& args, size_t n) {
  bool message = s.socket->type() != SOCK_STREAM;
  return message && (args.flags & MSG_TRUNC) ? args.full_length : n;
}

// scm_pidfd_recv(): who sent it, as SO_PASSPIDFD asks for.
Status PutPidFd(Task& t, const RecvArgs& args, ControlWriter* control) {
  if (!control->HasRoomFor(sizeof(int))) {
    control->set_truncated();
    return base::Ok();
  }
  if (args.creds.pid == nullptr) return base::Ok();
  const Result<int> made = t.InstallFile(NewPidFd(t.kernel(), args.creds.pid, 0), /*cloexec=*/true);
  const int fd = made.ok() ? *made : -made.error().code();
  return control->Put(SOL_SOCKET, kScmPidFd, std::as_bytes(std::span(&fd, 1)));
}

Result<uint64_t> DoRecvmsg(Task& t, SocketRef& s, uint64_t addr, int flags) {
  UserMsghdr msg = TRY(CopyInHeader(t, addr));
  UserIovec iovec = TRY(ImportIovec(t.memory(), msg.iov, msg.iov_count));
  base::UserMemory& target = ReadTarget(t, iovec);
  UserIoDest dst(target, std::move(iovec));
  RecvArgs args;
  args.flags = flags;
  args.nonblock = s.file->nonblock() || (flags & MSG_DONTWAIT) != 0;
  size_t n = TRY(s.socket->Receive(dst, &args));
  ControlWriter control(t, msg.control, msg.control_length);
  Status status;
  if (args.has_creds && (msg.control != 0 || !args.files.empty())) {
    ucred c;
    c.pid = args.creds.pid != nullptr ? args.creds.pid->NumberIn(t.pid_namespace()) : 0;
    c.uid = t.user_ns().MapUidOut(args.creds.uid);
    c.gid = t.user_ns().MapGidOut(args.creds.gid);
    status = control.Put(SOL_SOCKET, SCM_CREDENTIALS, std::as_bytes(std::span(&c, 1)));
  }
  for (const ControlMessage& c : args.control) {
    if (status.ok()) status = control.Put(c.level, c.type, c.data);
  }
  if (!args.files.empty()) {
    if (status.ok()) status = control.PutFiles(args.files, (flags & MSG_CMSG_CLOEXEC) != 0);
    DropFiles(std::move(args.files));
  }
  if (args.has_pidfd && status.ok()) status = PutPidFd(t, args, &control);
  TRY(status);
  if (control.truncated()) args.out_flags |= MSG_CTRUNC;
  if (msg.name != 0) {
    size_t fit = std::min<size_t>(static_cast<size_t>(msg.name_length), args.from.length);
    if (fit > 0) TRY(t.memory().Write(msg.name, std::span(args.from.bytes).first(fit)));
    TRY(UserPtr<uint32_t>(addr + offsetof(UserMsghdr, name_length))
            .CopyOut(t.memory(), args.from.length));
  }
  int out_flags = args.out_flags | (flags & MSG_CMSG_CLOEXEC);
  TRY(UserPtr<int>(addr + offsetof(UserMsghdr, flags)).CopyOut(t.memory(), out_flags));
  TRY(UserPtr<uint64_t>(addr + offsetof(UserMsghdr, control_length))
          .CopyOut(t.memory(), control.used()));
  return LengthOf(s, args, n);
}

}  // namespace

Result<uint64_t> SysSendto(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  if (s.file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(a.Int(0), *s.file);
  SendArgs args;
  args.flags = a.Int(3);
  args.nonblock = s.file->nonblock() || (args.flags & MSG_DONTWAIT) != 0;
  if (a[4] != 0) args.to = TRY(CopyInAddress(t, a[4], a.Int(5)));
  UserIoSource src(t.memory(), TRY(ImportRange(a[1], a[2])));
  return SendTo(*s.socket, src, std::move(args));
}

Result<uint64_t> SysRecvfrom(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  if (s.file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(a.Int(0), *s.file);
  RecvArgs args;
  args.flags = a.Int(3);
  args.nonblock = s.file->nonblock() || (args.flags & MSG_DONTWAIT) != 0;
  UserIovec range = TRY(ImportRange(a[1], a[2]));
  base::UserMemory& target = ReadTarget(t, range);
  UserIoDest dst(target, std::move(range));
  size_t n = TRY(s.socket->Receive(dst, &args));
  DropFiles(std::move(args.files));
  if (a[4] != 0) TRY(CopyOutAddress(t, args.from, a[4], a[5]));
  return LengthOf(s, args, n);
}

Result<uint64_t> SysSendmsg(Task& t, const SyscallArgs& a) {
  const int flags = TRY(UserFlags(a.Int(2)));
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  return DoSendmsg(t, s, a[1], flags);
}

Result<uint64_t> SysRecvmsg(Task& t, const SyscallArgs& a) {
  const int flags = TRY(UserFlags(a.Int(2)));
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  return DoRecvmsg(t, s, a[1], flags);
}

Result<uint64_t> SysSendmmsg(Task& t, const SyscallArgs& a) {
  const int flags = TRY(UserFlags(a.Int(3)));
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  uint32_t count = std::min(a.Uint(2), kMaxBatch);
  for (uint32_t i = 0; i < count; ++i) {
    uint64_t at = a[1] + i * kMmsgSize;
    Result<uint64_t> n = DoSendmsg(t, s, at, flags);
    if (n.ok()) {
      Status stored =
          UserPtr<uint32_t>(at + kMmsgLength).CopyOut(t.memory(), static_cast<uint32_t>(*n));
      if (!stored.ok()) n = stored.error();
    }
    if (!n.ok()) return i > 0 ? Result<uint64_t>(uint64_t{i}) : n;
  }
  return uint64_t{count};
}

Result<uint64_t> SysRecvmmsg(Task& t, const SyscallArgs& a) {
  uint32_t count = std::min(a.Uint(2), kMaxBatch);
  int flags = TRY(UserFlags(a.Int(3)));
  int64_t deadline = fiber::kNoDeadline;
  auto now = [] {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
  };
  if (a[4] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[4]).CopyIn(t.memory()));
    if (ts.tv_sec < 0 || ts.tv_nsec < 0 || ts.tv_nsec >= 1'000'000'000) return Error(EINVAL);
    if (ts.tv_sec < 1'000'000'000) deadline = now() + ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
  }
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  uint32_t done = 0;
  Result<uint64_t> last = uint64_t{0};
  while (done < count) {
    uint64_t at = a[1] + done * kMmsgSize;
    last = DoRecvmsg(t, s, at, flags & ~MSG_WAITFORONE);
    if (last.ok()) {
      Status stored =
          UserPtr<uint32_t>(at + kMmsgLength).CopyOut(t.memory(), static_cast<uint32_t>(*last));
      if (!stored.ok()) last = stored.error();
    }
    if (!last.ok()) break;
    ++done;
    if (flags & MSG_WAITFORONE) flags |= MSG_DONTWAIT;
    // The time limit is looked at between messages only, as in Linux.
    if (deadline != fiber::kNoDeadline && now() >= deadline) break;
  }
  if (a[4] != 0 && deadline != fiber::kNoDeadline) {
    int64_t left = std::max<int64_t>(deadline - now(), 0);
    timespec ts{left / 1'000'000'000, left % 1'000'000'000};
    TRY(UserPtr<timespec>(a[4]).CopyOut(t.memory(), ts));
  }
  if (done > 0 || last.ok()) return uint64_t{done};
  return last;
}

}  // namespace sentry
