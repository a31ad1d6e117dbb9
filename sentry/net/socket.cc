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
#include "sentry/kernel/task.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

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

}  // namespace

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
    c.all = t->credentials();
  }
  return c;
}

SenderCreds CurrentRealCreds() {
  SenderCreds c = CurrentCreds();
  c.all = nullptr;
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
  Result<size_t> n = Send(src, std::move(args));
  if (!n.ok()) NoteNoSpace(n.error());
  return n;
}

// What sock_wake_async() is called with where these events come from.
int Socket::AsyncBand(uint32_t events) const {
  if ((events & EPOLLERR) != 0 && (events & (EPOLLHUP | EPOLLPRI)) != EPOLLHUP) return POLL_ERR;
  if ((events & EPOLLHUP) != 0) return POLL_HUP;
  if ((events & EPOLLIN) != 0) return POLL_IN;
  if ((events & EPOLLOUT) == 0 || !no_space_.exchange(false)) return 0;
  return POLL_OUT;
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

}  // namespace sentry
