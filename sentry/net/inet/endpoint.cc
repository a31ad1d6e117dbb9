#include "sentry/net/inet/endpoint.h"

#include <linux/in6.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/async/sigio.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr int kProtocolOption =
    52;                          // IP_PROTOCOL: inet_num, which is the port of those that have one
constexpr int kMaxMtu4 = 65535;  // IP_MAX_MTU

}  // namespace

// __inet_bind() and __inet6_bind().
Status InetEndpoint::CheckBind(Task& t, const InetAddress& address, bool stream) {
  bool free = ip_.flag(IPPROTO_IP, IP_FREEBIND) || ip_.flag(IPPROTO_IPV6, IPV6_FREEBIND) ||
              ip_.flag(IPPROTO_IP, IP_TRANSPARENT);
  bool privileged = address.port != 0 && address.port < stack_->unprivileged_port_start.load() &&
                    !stack_->HasCap(t, CAP_NET_BIND_SERVICE);
  if (v6()) {
    if (address.ip.IsMulticast() && stream) return Error(EINVAL);
    if (privileged) return Error(EACCES);
    if (address.ip.v4() && ip_.flag(IPPROTO_IPV6, IPV6_V6ONLY)) return Error(EINVAL);
    if (address.ip.IsLinkLocal() && address.scope == 0) return Error(EINVAL);
    if (!free) TRY(stack_->CheckBind(address.ip));
    return base::Ok();
  }
  if (!free) TRY(stack_->CheckBind(address.ip));
  return privileged ? Status(Error(EACCES)) : base::Ok();
}

void InetEndpoint::SetPortUser() {
  reuse_address = options_->flag(SO_REUSEADDR);
  reuse_port = options_->flag(SO_REUSEPORT);
  v6only = v6() && ip_.flag(IPPROTO_IPV6, IPV6_V6ONLY);
  if (Task* t = Task::Current()) uid = t->creds().euid;
}

Status InetEndpoint::Resolve(InetAddress* to, IpAddress* source) const {
  if (v6() && to->ip.v4() && ip_.flag(IPPROTO_IPV6, IPV6_V6ONLY)) return Error(ENETUNREACH);
  if (to->ip.IsLinkLocal() && to->scope == 0) return Error(EINVAL);
  // A socket that is bound to an address of the one kind does not reach the other.
  if (local.port != 0 && !local.ip.IsAny() && local.ip.v4() != to->ip.v4()) {
    if (!to->ip.IsAny()) return Error(local.ip.v4() ? EAFNOSUPPORT : ENETUNREACH);
    to->ip = IpAddress::Loopback(local.ip.v4());
  }
  if (options_->device.load() > InetStack::kLoopbackIndex) return Error(ENODEV);
  *source = TRY(stack_->Route(&to->ip));
  if (!local.ip.IsAny()) *source = local.ip;
  return base::Ok();
}

void InetEndpoint::CompleteZeroCopy() {
  zero_copy_.Complete();
  queue_.WakeAll(EPOLLERR);
}

void InetEndpoint::SetDescription(FileDescription* file) {
  absl::MutexLock lock(&description_mutex_);
  description_ = file;
}

void InetEndpoint::SendSigurg() {
  FileDescription::AsyncOwner owner;
  {
    absl::MutexLock lock(&description_mutex_);
    if (description_ == nullptr) return;
    owner = description_->async_owner();
  }
  sentry::SendSigurg(owner);
}

InetSocket::InetSocket(Vfs& vfs, InetEndpoint& endpoint, int type, int protocol, uint32_t flags)
    : Socket(vfs, endpoint.family(), type, protocol, flags, endpoint.options_ref()),
      vfs_(vfs),
      base_(endpoint) {
  endpoint.set_ino(inode()->ino());
  endpoint.SetDescription(this);
}

Result<SockAddr> InetSocket::LocalAddress() { return base_.LocalName().ToSockAddr(domain()); }

Result<std::vector<std::byte>> InetSocket::GetOption(Task& t, int level, int name) {
  if (level == SOL_SOCKET) return Socket::GetOption(t, level, name);
  if (!HasIpLevel(level)) return Error(base_.v6() ? ENOPROTOOPT : EOPNOTSUPP);
  if (name == (level == IPPROTO_IP ? int{IP_MTU} : int{IPV6_MTU})) {
    if (base_.remote.port == 0 && !PeerAddress().ok()) return Error(ENOTCONN);
    return OptionBytes(level == IPPROTO_IP ? kMaxMtu4 : static_cast<int>(InetStack::kMtu));
  }
  if (level == IPPROTO_IP && name == kProtocolOption) {
    return OptionBytes<int>(type() == SOCK_RAW ? protocol() : base_.LocalName().port);
  }
  return base_.ip().Get(level, name);
}

bool InetSocket::HasIpLevel(int level) const {
  if (level == IPPROTO_IPV6) return base_.v6();
  return level == IPPROTO_IP && !(base_.v6() && type() == SOCK_RAW);
}

Status InetSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == SOL_SOCKET && (name == SO_BINDTODEVICE || name == SO_BINDTOIFINDEX)) {
    return BindToDevice(name, value, base_.stack().HasCap(t, CAP_NET_RAW));
  }
  if (level != SOL_SOCKET) {
    if (!HasIpLevel(level)) return Error(ENOPROTOOPT);
    if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY &&
        (type() == SOCK_RAW || base_.LocalName().port != 0)) {
      return Error(EINVAL);
    }
    if (level == IPPROTO_IP && name == IP_HDRINCL && type() != SOCK_RAW) return Error(ENOPROTOOPT);
    return base_.ip().Set(t, base_.stack(), level, name, value, type());
  }
  TRY(Socket::SetOption(t, level, name, value));
  // They count from now on, also where the port is bound already.
  if (name == SO_REUSEADDR || name == SO_REUSEPORT) {
    base_.table().SetReuse(base_, options().flag(SO_REUSEADDR), options().flag(SO_REUSEPORT));
  }
  return base::Ok();
}

}  // namespace sentry
