#include "sentry/net/socket.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "sentry/fiber/fiber.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/task.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr int kBufferMax = 212992;  // net.core.{r,w}mem_max
constexpr int kMinSendBuffer = 4608, kMinReceiveBuffer = 2304;
constexpr int64_t kSecond = 1'000'000'000;

Path SocketPath(Vfs& vfs, const Credentials* creds) {
  static Filesystem* fs = base::MakeRef<Filesystem>("sockfs", SOCKFS_MAGIC).release();
  auto inode = base::MakeRef<AnonInode>(fs, S_IFSOCK | 0777, creds != nullptr ? creds->fsuid : 0,
                                        creds != nullptr ? creds->fsgid : 0);
  std::string name = "socket:[" + std::to_string(inode->ino()) + "]";
  return vfs.AnonymousPath(std::move(inode), std::move(name));
}

Path SocketPath(Vfs& vfs) {
  Task* t = Task::Current();
  return SocketPath(vfs, t != nullptr ? &t->creds() : nullptr);
}

template <typename T>
Result<T> ValueFrom(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(T)) return Error(EINVAL);
  T value;
  memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// sock_set_timeout(): a negative time is none, and one that is gone at once.
Result<int64_t> TimeoutFrom(std::span<const std::byte> value) {
  timeval tv = TRY(ValueFrom<timeval>(value));
  if (tv.tv_usec < 0 || tv.tv_usec >= 1'000'000) return Error(EDOM);
  if (tv.tv_sec < 0 || tv.tv_sec > std::numeric_limits<int64_t>::max() / kSecond - 1)
    return int64_t{0};
  return tv.tv_sec * kSecond + tv.tv_usec * 1000;
}

timeval ToTimeval(int64_t ns) { return {ns / kSecond, ns % kSecond / 1000}; }

}  // namespace

int SocketOptions::Bit(int name) {
  constexpr int kNames[] = {SO_DEBUG,     SO_REUSEADDR, SO_DONTROUTE,       SO_BROADCAST,
                            SO_KEEPALIVE, SO_OOBINLINE, SO_NO_CHECK,        SO_REUSEPORT,
                            SO_PASSSEC,   SO_PASSCRED,  SO_TIMESTAMP,       SO_TIMESTAMPNS,
                            SO_ZEROCOPY,  SO_RXQ_OVFL,  SO_SELECT_ERR_QUEUE};
  const int* it = std::find(std::begin(kNames), std::end(kNames), name);
  return it == std::end(kNames) ? -1 : static_cast<int>(it - kNames);
}

void SocketOptions::SetFlag(int name, bool on) {
  uint32_t bit = 1u << Bit(name);
  if (on) {
    flags.fetch_or(bit);
  } else {
    flags.fetch_and(~bit);
  }
}

void SocketOptions::CopyFrom(const SocketOptions& other) {
  flags = other.flags.load();
  receive_timeout_ns = other.receive_timeout_ns.load();
  send_timeout_ns = other.send_timeout_ns.load();
  receive_buffer = other.receive_buffer.load();
  send_buffer = other.send_buffer.load();
  receive_buffer_locked = other.receive_buffer_locked.load();
  send_buffer_locked = other.send_buffer_locked.load();
  receive_low = other.receive_low.load();
  priority = other.priority.load();
  device = other.device.load();
  mark = other.mark.load();
  linger_seconds = other.linger_seconds.load();
}

sa_family_t SockAddr::family() const {
  if (length < sizeof(sa_family_t)) return AF_UNSPEC;
  sa_family_t family;
  memcpy(&family, bytes.data(), sizeof(family));
  return family;
}

SenderCreds CurrentCreds() {
  SenderCreds c;
  if (Task* t = Task::Current()) {
    c.pid = t->thread_group().pid();
    c.uid = t->creds().euid;
    c.gid = t->creds().egid;
  }
  return c;
}

SenderCreds CurrentRealCreds() {
  SenderCreds c = CurrentCreds();
  if (Task* t = Task::Current()) {
    c.uid = t->creds().ruid;
    c.gid = t->creds().rgid;
  }
  return c;
}

void RaiseSocketSigpipe() {
  Task* t = Task::Current();
  if (t == nullptr) return;
  siginfo_t info = MakeSiginfo(SIGPIPE, SI_USER);
  SetSender(&info, *t, *t);
  t->SendSignal(info);
}

void SignalAsyncOwner(const FileDescription::AsyncOwner& owner, const siginfo_t& info) {
  if (owner.id == 0) return;
  Kernel& kernel = Kernel::Get();
  PidNamespace& ns = *kernel.root_pid_ns();
  if (owner.type == F_OWNER_PGRP) {
    base::Ref<ProcessGroup> group = kernel.FindProcessGroup(ns, owner.id);
    if (group != nullptr) kernel.SignalProcessGroup(*group, info);
  } else if (owner.type == F_OWNER_TID) {
    base::Ref<Task> task = kernel.FindTask(ns, owner.id);
    if (task != nullptr) task->SendSignal(info);
  } else {
    base::Ref<ThreadGroup> process = kernel.FindThreadGroup(ns, owner.id);
    if (process != nullptr) process->SendSignal(info);
  }
}

Socket::Socket(Vfs& vfs, int domain, int type, int protocol, uint32_t flags,
               base::Ref<SocketOptions> options)
    : FileDescription(SocketPath(vfs), O_RDWR | (flags & O_NONBLOCK)),
      domain_(domain),
      type_(type),
      protocol_(protocol),
      options_(options != nullptr ? std::move(options) : base::MakeRef<SocketOptions>()) {}

Status Socket::Bind(Task&, const SockAddr&) { return Error(EOPNOTSUPP); }
Status Socket::Connect(Task&, const SockAddr&, bool) { return Error(EOPNOTSUPP); }
Status Socket::Listen(int) { return Error(EOPNOTSUPP); }
Result<base::Ref<FileDescription>> Socket::Accept(uint32_t, bool) { return Error(EOPNOTSUPP); }
Status Socket::Shutdown(int) { return Error(EOPNOTSUPP); }
Result<SockAddr> Socket::LocalAddress() { return Error(EOPNOTSUPP); }
Result<SockAddr> Socket::PeerAddress() { return Error(EOPNOTSUPP); }
Result<size_t> Socket::Send(IoSource&, SendArgs) { return Error(EOPNOTSUPP); }
Result<size_t> Socket::Receive(IoDest&, RecvArgs*) { return Error(EOPNOTSUPP); }

Result<size_t> Socket::Read(IoDest& dst, bool nonblock) {
  if (dst.remaining() == 0) return size_t{0};  // unlike recv(2), which waits (sock_read_iter)
  RecvArgs args;
  args.nonblock = nonblock;
  return Receive(dst, &args);
}

Result<size_t> Socket::Write(IoSource& src, bool nonblock) {
  SendArgs args;
  args.nonblock = nonblock;
  return Send(src, std::move(args));
}

int64_t Socket::DeadlineOf(int64_t timeout_ns) {
  if (timeout_ns == 0) return fiber::kNoDeadline;
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  int64_t deadline;
  if (__builtin_add_overflow(ts.tv_sec * kSecond + ts.tv_nsec, timeout_ns, &deadline)) {
    return fiber::kNoDeadline;
  }
  return deadline;
}

Error Socket::Interrupted(int64_t deadline_ns) {
  return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
}

Result<std::vector<std::byte>> Socket::GetOption(Task& t, int level, int name) {
  if (level != SOL_SOCKET) return Error(EOPNOTSUPP);
  return GetSocketOption(t, name);
}

Status Socket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level != SOL_SOCKET) return Error(EOPNOTSUPP);
  return SetSocketOption(t, name, value);
}

Result<std::vector<std::byte>> Socket::GetSocketOption(Task& t, int name) {
  const SocketOptions& o = *options_;
  if (SocketOptions::Bit(name) >= 0) return OptionBytes<int>(o.flag(name) ? 1 : 0);
  switch (name) {
    case SO_TYPE:
      return OptionBytes(type_);
    case SO_DOMAIN:
      return OptionBytes(domain_);
    case SO_PROTOCOL:
      return OptionBytes(protocol_);
    case SO_ERROR:
      return OptionBytes(TakeError());
    case SO_ACCEPTCONN:
      return OptionBytes<int>(listening() ? 1 : 0);
    case SO_SNDBUF:
      return OptionBytes(send_buffer());
    case SO_RCVBUF:
      return OptionBytes(o.receive_buffer.load());
    case SO_RCVTIMEO:
      return OptionBytes(ToTimeval(o.receive_timeout_ns.load()));
    case SO_SNDTIMEO:
      return OptionBytes(ToTimeval(o.send_timeout_ns.load()));
    case SO_RCVLOWAT:
      return OptionBytes(o.receive_low.load());
    case SO_SNDLOWAT:
      return OptionBytes(1);
    case SO_PRIORITY:
      return OptionBytes(o.priority.load());
    case SO_MARK:
      return OptionBytes(o.mark.load());
    case SO_LINGER: {
      int seconds = o.linger_seconds.load();
      return OptionBytes(linger{seconds >= 0 ? 1 : 0, std::max(seconds, 0)});
    }
    case SO_COOKIE:
      return OptionBytes(inode()->ino());
    case SO_PEERCRED: {
      ucred c = {0, static_cast<uid_t>(-1), static_cast<gid_t>(-1)};
      if (auto peer = peer_creds()) {
        c.pid = peer->pid != nullptr ? peer->pid->NumberIn(t.pid_namespace()) : 0;
        c.uid = t.user_ns().MapUidOut(peer->uid);
        c.gid = t.user_ns().MapGidOut(peer->gid);
      }
      return OptionBytes(c);
    }
    default:
      return Error(ENOPROTOOPT);
  }
}

Status Socket::SetBuffer(Task& t, int name, int number) {
  bool force = name == SO_SNDBUFFORCE || name == SO_RCVBUFFORCE;
  if (force && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
  // Doubled for bookkeeping, as Linux does.
  int size = std::clamp(number, 0, kBufferMax) * 2;
  if (name == SO_SNDBUF || name == SO_SNDBUFFORCE) {
    set_send_buffer(std::max(size, kMinSendBuffer));
    options_->send_buffer_locked = true;
  } else {
    options_->receive_buffer = std::max(size, kMinReceiveBuffer);
    options_->receive_buffer_locked = true;
  }
  OnOptionChange();
  return base::Ok();
}

Status Socket::SetSocketOption(Task& t, int name, std::span<const std::byte> value) {
  SocketOptions& o = *options_;
  int number = TRY(ValueFrom<int>(value));
  if (SocketOptions::Bit(name) >= 0) {
    if (name == SO_DEBUG && number != 0 && !t.HasCap(CAP_NET_ADMIN)) return Error(EACCES);
    bool inet = domain_ == AF_INET || domain_ == AF_INET6;
    if (name == SO_ZEROCOPY && !inet) return Error(EOPNOTSUPP);
    if (name == SO_ZEROCOPY && number != 0 && number != 1) return Error(EINVAL);
    o.SetFlag(name, number != 0);
    // One of the two at a time.
    if (name == SO_TIMESTAMP) o.SetFlag(SO_TIMESTAMPNS, false);
    if (name == SO_TIMESTAMPNS) o.SetFlag(SO_TIMESTAMP, false);
    return base::Ok();
  }
  switch (name) {
    case SO_RCVTIMEO:
      o.receive_timeout_ns = TRY(TimeoutFrom(value));
      return base::Ok();
    case SO_SNDTIMEO:
      o.send_timeout_ns = TRY(TimeoutFrom(value));
      return base::Ok();
    case SO_LINGER: {
      auto l = TRY(ValueFrom<linger>(value));
      o.linger_seconds = l.l_onoff != 0 ? std::max(l.l_linger, 0) : -1;
      return base::Ok();
    }
    case SO_SNDBUFFORCE:
    case SO_RCVBUFFORCE:
    case SO_SNDBUF:
    case SO_RCVBUF:
      return SetBuffer(t, name, number);
    case SO_RCVLOWAT:
      o.receive_low = number < 0 ? std::numeric_limits<int>::max() : std::max(number, 1);
      OnOptionChange();
      return base::Ok();
    case SO_PRIORITY:
      if ((number < 0 || number > 6) && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      o.priority = number;
      return base::Ok();
    case SO_MARK:
      if (!t.HasCap(CAP_NET_RAW) && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      o.mark = static_cast<uint32_t>(number);
      return base::Ok();
    default:
      return Error(ENOPROTOOPT);
  }
}

}  // namespace sentry
