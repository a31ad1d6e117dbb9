// Sockets: making, naming, connecting, options. Messages are in socket_msg.cc. net/socket.c.
#include "sentry/net/socket.h"

#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/net/host/host_socket.h"
#include "sentry/net/inet/inet.h"
#include "sentry/net/netlink/netlink_socket.h"
#include "sentry/net/packet/packet_socket.h"
#include "sentry/net/unix/unix_socket.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/socket_util.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

Result<SocketRef> GetSocket(Task& t, int fd) {
  SocketRef ref;
  ref.file = TRY(GetOpenFile(t, fd));
  ref.socket = Socket::From(*ref.file);
  if (ref.socket == nullptr) return Error(ENOTSOCK);
  return ref;
}

Result<SockAddr> CopyInAddress(Task& t, uint64_t addr, int length) {
  SockAddr a;
  if (length < 0 || static_cast<size_t>(length) > a.bytes.size()) return Error(EINVAL);
  a.length = static_cast<uint32_t>(length);
  if (length > 0) TRY(t.memory().Read(addr, std::span(a.bytes).first(a.length)));
  return a;
}

Status CopyOutAddress(Task& t, const SockAddr& a, uint64_t addr, uint64_t length_addr) {
  int room = TRY(UserPtr<int>(length_addr).CopyIn(t.memory()));
  if (room < 0) return Error(EINVAL);
  size_t n = std::min<size_t>(static_cast<size_t>(room), a.length);
  if (n > 0) TRY(t.memory().Write(addr, std::span(a.bytes).first(n)));
  return UserPtr<int>(length_addr).CopyOut(t.memory(), static_cast<int>(a.length));
}

namespace {

constexpr int kTypeMask = 0xf, kSockMax = 11;
constexpr size_t kMaxOption = 4096;

// Splits SOCK_NONBLOCK and SOCK_CLOEXEC off.
Result<int> TypeOf(int type_and_flags) {
  int flags = type_and_flags & ~kTypeMask;
  if (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) return Error(EINVAL);
  int type = type_and_flags & kTypeMask;
  if (type >= kSockMax) return Error(EINVAL);
  return type;
}

Result<base::Ref<FileDescription>> NewSocket(Task& t, int domain, int type, int protocol,
                                             uint32_t flags) {
  Vfs& vfs = t.kernel().vfs();
  switch (domain) {
    case AF_UNIX:
      return NewUnixSocket(vfs, type, protocol, flags);
    case AF_INET:
    case AF_INET6:
      if (HostNetwork* host = HostNetwork::Current(t)) {
        return NewHostSocket(t, vfs, *host, domain, type, protocol, flags);
      }
      return NewInetSocket(t, vfs, domain, type, protocol, flags);
    case AF_NETLINK:
      return NewNetlinkSocket(t, vfs, type, protocol, flags);
    case AF_PACKET:
      if (HostNetwork::Current(t) != nullptr) return Error(EPERM);
      return NewPacketSocket(t, vfs, type, protocol, flags);
    default:
      return Error(EAFNOSUPPORT);
  }
}

Result<uint64_t> DoAccept(Task& t, const SyscallArgs& a, int flags) {
  TRY(GetOpenFile(t, a.Int(0)));
  if (flags & ~(SOCK_CLOEXEC | SOCK_NONBLOCK)) return Error(EINVAL);
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  uint32_t status = flags & SOCK_NONBLOCK ? O_NONBLOCK : 0;
  base::Ref<FileDescription> made = TRY(s.socket->Accept(status, s.file->nonblock()));
  if (a[1] != 0) {
    Result<SockAddr> peer = Socket::From(*made)->AcceptedAddress();
    if (!peer.ok()) return Error(ECONNABORTED);
    TRY(CopyOutAddress(t, *peer, a[1], a[2]));
  }
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(made), (flags & SOCK_CLOEXEC) != 0)));
}

}  // namespace

Result<uint64_t> SysSocket(Task& t, const SyscallArgs& a) {
  int domain = a.Int(0), type = TRY(TypeOf(a.Int(1)));
  uint32_t flags = a.Int(1) & SOCK_NONBLOCK ? O_NONBLOCK : 0;
  base::Ref<FileDescription> file = TRY(NewSocket(t, domain, type, a.Int(2), flags));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (a.Int(1) & SOCK_CLOEXEC) != 0)));
}

Result<uint64_t> SysSocketpair(Task& t, const SyscallArgs& a) {
  int domain = a.Int(0), type = TRY(TypeOf(a.Int(1)));
  bool cloexec = (a.Int(1) & SOCK_CLOEXEC) != 0;
  uint32_t flags = a.Int(1) & SOCK_NONBLOCK ? O_NONBLOCK : 0;
  if (domain != AF_UNIX) {
    // It is only found to be the wrong kind when there is one.
    TRY(NewSocket(t, domain, type, a.Int(2), flags));
    return Error(EOPNOTSUPP);
  }
  auto [first, second] = TRY(NewUnixPair(t.kernel().vfs(), type, a.Int(2), flags));
  int fds[2];
  fds[0] = TRY(t.InstallFile(std::move(first), cloexec));
  Result<int> other = t.InstallFile(std::move(second), cloexec);
  if (other.ok()) fds[1] = *other;
  Status status =
      other.ok() ? t.memory().Write(a[3], std::as_bytes(std::span(fds))) : other.error();
  if (!status.ok()) {
    t.fd_table().Remove(fds[0]);
    if (other.ok()) t.fd_table().Remove(fds[1]);
    return status.error();
  }
  return uint64_t{0};
}

Result<uint64_t> SysBind(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  TRY(s.socket->Bind(t, TRY(CopyInAddress(t, a[1], a.Int(2)))));
  return uint64_t{0};
}

Result<uint64_t> SysConnect(Task& t, const SyscallArgs& a) {
  TRY(GetOpenFile(t, a.Int(0)));
  const SockAddr to = TRY(CopyInAddress(t, a[1], a.Int(2)));
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  Status status = s.socket->Connect(t, to, s.file->nonblock());
  if (!status.ok()) s.socket->NoteNoSpace(status.error());
  TRY(status);
  return uint64_t{0};
}

Result<uint64_t> SysListen(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  TRY(s.socket->Listen(a.Int(1)));
  return uint64_t{0};
}

Result<uint64_t> SysAccept(Task& t, const SyscallArgs& a) { return DoAccept(t, a, 0); }
Result<uint64_t> SysAccept4(Task& t, const SyscallArgs& a) { return DoAccept(t, a, a.Int(3)); }

Result<uint64_t> SysGetsockname(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  TRY(CopyOutAddress(t, TRY(s.socket->LocalAddress()), a[1], a[2]));
  return uint64_t{0};
}

Result<uint64_t> SysGetpeername(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  TRY(CopyOutAddress(t, TRY(s.socket->PeerAddress()), a[1], a[2]));
  return uint64_t{0};
}

Result<uint64_t> SysShutdown(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  TRY(s.socket->Shutdown(a.Int(1)));
  return uint64_t{0};
}

Result<uint64_t> SysSetsockopt(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  int length = a.Int(4);
  if (length < 0) return Error(EINVAL);
  std::vector<std::byte> value(std::min<size_t>(static_cast<size_t>(length), kMaxOption));
  if (!value.empty()) TRY(t.memory().Read(a[3], value));
  TRY(s.socket->SetOption(t, a.Int(1), a.Int(2), value));
  return uint64_t{0};
}

namespace {

// What getsockopt(2) wants of the length of a buffer besides that a value is cut to it.
Result<size_t> BytesOfOption(Task& t, int level, int name, int length, size_t size,
                             uint64_t length_addr) {
  const auto room = static_cast<size_t>(length);
  if (level != SOL_SOCKET) return std::min(room, size);
  switch (name) {
    case SO_COOKIE:
    case SO_NETNS_COOKIE:
      if (room < size) return Error(EINVAL);
      break;
    case SO_PEERNAME:
      if (room > size) return Error(EINVAL);
      break;
    case SO_PEERGROUPS:
      if (room >= size) break;
      TRY(UserPtr<int>(length_addr).CopyOut(t.memory(), static_cast<int>(size)));
      return Error(ERANGE);
    default:
      break;
  }
  return std::min(room, size);
}

// SO_GET_FILTER: lengths are numbers of instructions.
Result<uint64_t> GetFilter(Task& t, const Socket& socket, uint64_t addr, int length,
                           uint64_t length_addr) {
  base::Ref<const SocketFilter> filter = socket.options().filter();
  const int count = filter != nullptr ? static_cast<int>(filter->code().size()) : 0;
  if (length != 0 && count != 0) {
    if (length < count) return Error(EINVAL);
    TRY(t.memory().Write(addr, std::as_bytes(std::span(filter->code()))));
  }
  TRY(UserPtr<int>(length_addr).CopyOut(t.memory(), count));
  return uint64_t{0};
}

}  // namespace

Result<uint64_t> SysGetsockopt(Task& t, const SyscallArgs& a) {
  SocketRef s = TRY(GetSocket(t, a.Int(0)));
  int length = TRY(UserPtr<int>(a[4]).CopyIn(t.memory()));
  if (length < 0) return Error(EINVAL);
  const int level = a.Int(1), name = a.Int(2);
  if (level == SOL_SOCKET && name == SO_GET_FILTER) {
    return GetFilter(t, *s.socket, a[3], length, a[4]);
  }
  std::vector<std::byte> value = TRY(s.socket->GetOption(t, level, name));
  const size_t n = TRY(BytesOfOption(t, level, name, length, value.size(), a[4]));
  if (n > 0) TRY(t.memory().Write(a[3], std::span(value).first(n)));
  TRY(UserPtr<int>(a[4]).CopyOut(t.memory(), static_cast<int>(n)));
  return uint64_t{0};
}

}  // namespace sentry
