#include "sentry/net/inet/endpoint.h"

#include <linux/in6.h>
#include <net/if.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr char kLoopbackName[] = "lo";

struct OptionName {
  int level, name;
  bool set_at_first = false;
};
// Options that are on or off; a bit of IpOptions::flags_ each.
constexpr OptionName kFlags[] = {
    {IPPROTO_IP, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS},
    {IPPROTO_IP, IP_PKTINFO},
    {IPPROTO_IP, IP_RECVOPTS},
    {IPPROTO_IP, IP_RETOPTS},
    {IPPROTO_IP, IP_HDRINCL},
    {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_FREEBIND},
    {IPPROTO_IP, IP_TRANSPARENT},
    {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IP, IP_NODEFRAG},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_MULTICAST_ALL, true},
    {IPPROTO_IP, IP_MULTICAST_LOOP, true},
    {IPPROTO_IPV6, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_FLOWINFO},
    {IPPROTO_IPV6, IPV6_FLOWINFO_SEND},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, true},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_FREEBIND},
    {IPPROTO_IPV6, IPV6_TRANSPARENT},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, true},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL, true},
};
static_assert(std::size(kFlags) <= 64);

int FlagIndex(int level, int name) {
  for (size_t i = 0; i < std::size(kFlags); ++i) {
    if (kFlags[i].level == level && kFlags[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

uint64_t FirstFlags() {
  uint64_t flags = 0;
  for (size_t i = 0; i < std::size(kFlags); ++i) {
    if (kFlags[i].set_at_first) flags |= uint64_t{1} << i;
  }
  return flags;
}

bool NeedsAdmin(int level, int name) {
  return (level == IPPROTO_IP && name == IP_TRANSPARENT) ||
         (level == IPPROTO_IPV6 && name == IPV6_TRANSPARENT);
}

}  // namespace

Result<int> OptionInt(std::span<const std::byte> value, bool allow_byte) {
  int number = 0;
  if (value.size() >= sizeof(number)) {
    memcpy(&number, value.data(), sizeof(number));
    return number;
  }
  if (allow_byte && !value.empty()) return static_cast<int>(value[0]);
  return Error(EINVAL);
}

IpOptions::IpOptions() : flags_(FirstFlags()) {}

bool IpOptions::flag(int level, int name) const {
  return (flags_.load(std::memory_order_relaxed) >> FlagIndex(level, name) & 1) != 0;
}

void IpOptions::SetFlag(int level, int name, bool on) {
  uint64_t bit = uint64_t{1} << FlagIndex(level, name);
  if (on) {
    flags_.fetch_or(bit);
  } else {
    flags_.fetch_and(~bit);
  }
}

void IpOptions::CopyFrom(const IpOptions& other) {
  flags_ = other.flags_.load();
  ttl = other.ttl.load();
  tos = other.tos.load();
  mtu_discover = other.mtu_discover.load();
  multicast_ttl = other.multicast_ttl.load();
  hops = other.hops.load();
  traffic_class = other.traffic_class.load();
  mtu_discover6 = other.mtu_discover6.load();
  multicast_hops = other.multicast_hops.load();
  multicast_device = other.multicast_device.load();
  multicast_device6 = other.multicast_device6.load();
}

Result<std::vector<std::byte>> IpOptions::Get(int level, int name) const {
  if (FlagIndex(level, name) >= 0) return OptionBytes<int>(flag(level, name) ? 1 : 0);
  auto or_default = [](int value) { return value < 0 ? 64 : value; };
  if (level == IPPROTO_IP) {
    switch (name) {
      case IP_TTL:
        return OptionBytes(or_default(ttl.load()));
      case IP_MINTTL:
        return OptionBytes(0);
      case IP_TOS:
        return OptionBytes(tos.load());
      case IP_MTU_DISCOVER:
        return OptionBytes(mtu_discover.load());
      case IP_MULTICAST_TTL:
        return OptionBytes(multicast_ttl.load());
      case IP_MULTICAST_IF: {
        in_addr a{multicast_device.load() != 0 ? htonl(INADDR_LOOPBACK) : INADDR_ANY};
        return OptionBytes(a);
      }
      case IP_OPTIONS:
        return std::vector<std::byte>();
      default:
        return Error(ENOPROTOOPT);
    }
  }
  switch (name) {
    case IPV6_UNICAST_HOPS:
      return OptionBytes(or_default(hops.load()));
    case IPV6_MULTICAST_HOPS:
      return OptionBytes(multicast_hops.load());
    case IPV6_MULTICAST_IF:
      return OptionBytes(multicast_device6.load());
    case IPV6_TCLASS:
      return OptionBytes(traffic_class.load());
    case IPV6_MTU_DISCOVER:
      return OptionBytes(mtu_discover6.load());
    case IPV6_MTU:
      return OptionBytes(static_cast<int>(InetStack::kMtu));
    default:
      return Error(ENOPROTOOPT);
  }
}

Status IpOptions::Set(Task& t, InetStack& stack, int level, int name,
                      std::span<const std::byte> value) {
  int number = TRY(OptionInt(value, level == IPPROTO_IP));
  auto store = [&](std::atomic<int>* to, int low, int high) -> Status {
    if (number < low || number > high) return Error(EINVAL);
    to->store(number);
    return base::Ok();
  };
  if (FlagIndex(level, name) >= 0) {
    if (NeedsAdmin(level, name) && number != 0 && !stack.HasCap(t, CAP_NET_ADMIN) &&
        !stack.HasCap(t, CAP_NET_RAW)) {
      return Error(EPERM);
    }
    SetFlag(level, name, number != 0);
    return base::Ok();
  }
  if (level == IPPROTO_IP) {
    switch (name) {
      case IP_TTL:
        if (number == 0) return Error(EINVAL);
        return store(&ttl, -1, 255);
      case IP_MINTTL:
        return number >= 0 && number <= 255 ? base::Ok() : Status(Error(EINVAL));
      case IP_TOS:
        tos = number & 0xff;
        return base::Ok();
      case IP_MTU_DISCOVER:
        return store(&mtu_discover, IP_PMTUDISC_DONT, IP_PMTUDISC_OMIT);
      case IP_MULTICAST_TTL:
        if (number == -1) number = 1;
        return store(&multicast_ttl, 0, 255);
      default:
        return Error(ENOPROTOOPT);
    }
  }
  switch (name) {
    case IPV6_UNICAST_HOPS:
      return store(&hops, -1, 255);
    case IPV6_MULTICAST_HOPS:
      if (number == -1) number = 1;
      return store(&multicast_hops, 0, 255);
    case IPV6_TCLASS:
      if (number == -1) number = 0;
      return store(&traffic_class, 0, 255);
    case IPV6_MTU_DISCOVER:
      return store(&mtu_discover6, IPV6_PMTUDISC_DONT, IPV6_PMTUDISC_OMIT);
    case IPV6_MTU:
      return number >= 1280 ? base::Ok() : Status(Error(EINVAL));
    default:
      return Error(ENOPROTOOPT);
  }
}

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
  SignalAsyncOwner(owner, MakeSiginfo(SIGURG, SI_KERNEL));
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
  if (level == SOL_SOCKET && (name == SO_BINDTODEVICE || name == SO_BINDTOIFINDEX)) {
    int device = options().device.load();
    if (name == SO_BINDTOIFINDEX) return OptionBytes(device);
    return device != 0 ? OptionBytes(std::to_array(kLoopbackName)) : std::vector<std::byte>();
  }
  if (level == IPPROTO_IP) return base_.ip().Get(level, name);
  if (level == IPPROTO_IPV6) {
    if (!base_.v6()) return Error(EOPNOTSUPP);
    return base_.ip().Get(level, name);
  }
  return Socket::GetOption(t, level, name);
}

// sock_setbindtodevice(): all there is goes over lo, so to be bound to it excludes nothing.
Status InetSocket::BindToDevice(Task& t, int name, std::span<const std::byte> value) {
  int device = 0;
  if (name == SO_BINDTOIFINDEX) {
    device = TRY(OptionInt(value));
    if (device < 0) return Error(EINVAL);
  } else {
    std::string_view text(reinterpret_cast<const char*>(value.data()),
                          std::min<size_t>(value.size(), IFNAMSIZ - 1));
    text = text.substr(0, text.find('\0'));
    if (!text.empty()) device = text == kLoopbackName ? InetStack::kLoopbackIndex : -1;
  }
  if (options().device.load() != 0 && !base_.stack().HasCap(t, CAP_NET_RAW)) return Error(EPERM);
  if (device != 0 && device != InetStack::kLoopbackIndex) return Error(ENODEV);
  options().device = device;
  return base::Ok();
}

Status InetSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == SOL_SOCKET && (name == SO_BINDTODEVICE || name == SO_BINDTOIFINDEX)) {
    return BindToDevice(t, name, value);
  }
  if (level == IPPROTO_IPV6 && !base_.v6()) return Error(ENOPROTOOPT);
  if (level == IPPROTO_IP || level == IPPROTO_IPV6) {
    if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY && base_.LocalName().port != 0) {
      return Error(EINVAL);
    }
    return base_.ip().Set(t, base_.stack(), level, name, value);
  }
  TRY(Socket::SetOption(t, level, name, value));
  // They count from now on, also where the port is bound already.
  if (level == SOL_SOCKET && (name == SO_REUSEADDR || name == SO_REUSEPORT)) {
    base_.table().SetReuse(base_, options().flag(SO_REUSEADDR), options().flag(SO_REUSEPORT));
  }
  return base::Ok();
}

}  // namespace sentry
