// UDP, ICMP and raw sockets as files.
#include <linux/sockios.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/task.h"
#include "sentry/net/inet/datagram.h"
#include "sentry/net/inet/udp.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

template <typename T>
Result<T> As(std::span<const std::byte> value) {
  T out;
  if (value.size() < sizeof(out)) return Error(EINVAL);
  memcpy(&out, value.data(), sizeof(out));
  return out;
}

}  // namespace

Status DatagramSocket::Bind(Task& t, const SockAddr& address) {
  if (type() == SOCK_RAW && address.length >= sizeof(sockaddr_in)) {
    // IPv4 does not look at the family here, IPv6 calls a wrong one an invalid argument.
    if (domain() == AF_INET6 && address.family() != AF_INET6) return Error(EINVAL);
    SockAddr named = address;
    const sa_family_t family = static_cast<sa_family_t>(domain());
    memcpy(named.bytes.data(), &family, sizeof(family));
    return endpoint_->Bind(t, TRY(ParseBindAddress(named, domain())));
  }
  return endpoint_->Bind(t, TRY(ParseBindAddress(address, domain())));
}

Status DatagramSocket::Connect(Task&, const SockAddr& address, bool) {
  if (address.length < sizeof(sa_family_t)) return Error(EINVAL);
  if (address.family() == AF_UNSPEC) {
    endpoint_->Disconnect();
    return base::Ok();
  }
  int as = domain() == AF_INET6 && address.family() == AF_INET ? AF_INET : domain();
  return endpoint_->Connect(TRY(ParseInetAddress(address, as)));
}

Result<SockAddr> DatagramSocket::PeerAddress() {
  return TRY(endpoint_->PeerName()).ToSockAddr(domain());
}

Result<size_t> DatagramSocket::Send(IoSource& src, SendArgs args) {
  size_t n = TRY(endpoint_->Send(src, args));
  AfterSend(args, n);
  return n;
}

Result<size_t> DatagramSocket::Receive(IoDest& dst, RecvArgs* args) {
  return endpoint_->Receive(dst, args, ReceiveDeadline());
}

Result<std::vector<std::byte>> DatagramSocket::GetOption(Task& t, int level, int name) {
  if (level == IPPROTO_UDP && type() == SOCK_DGRAM && protocol() == IPPROTO_UDP) {
    return OptionBytes(TRY(static_cast<UdpEndpoint&>(*endpoint_).GetUdpOption(name)));
  }
  return InetSocket::GetOption(t, level, name);
}

// struct ip_mreq, ip_mreqn, ipv6_mreq and group_req.
Status DatagramSocket::SetMembership(int level, int name, std::span<const std::byte> value) {
  IpAddress group;
  int device = 0;
  bool join = name == IP_ADD_MEMBERSHIP;
  if (name == MCAST_JOIN_GROUP || name == MCAST_LEAVE_GROUP) {
    join = name == MCAST_JOIN_GROUP;
    auto request = TRY(As<group_req>(value));
    device = static_cast<int>(request.gr_interface);
    SockAddr a;
    a.length = sizeof(request.gr_group);
    memcpy(a.bytes.data(), &request.gr_group, sizeof(request.gr_group));
    group = TRY(ParseInetAddress(a, level == IPPROTO_IP ? AF_INET : AF_INET6)).ip;
  } else if (level == IPPROTO_IPV6) {
    join = name == IPV6_JOIN_GROUP;
    auto request = TRY(As<ipv6_mreq>(value));
    group = IpAddress::FromV6(request.ipv6mr_multiaddr);
    device = static_cast<int>(request.ipv6mr_interface);
  } else {
    ip_mreqn request{};
    auto simple = TRY(As<ip_mreq>(value));
    if (value.size() >= sizeof(request)) request = TRY(As<ip_mreqn>(value));
    group = IpAddress::FromV4(simple.imr_multiaddr);
    device = request.imr_ifindex;
    if (device == 0 && endpoint_->stack().IsLocal(IpAddress::FromV4(simple.imr_interface))) {
      device = InetStack::kLoopbackIndex;
    }
  }
  return join ? endpoint_->Join(group, device) : endpoint_->Leave(group, device);
}

// The four options by which sources of a group are chosen, as struct ip_mreq_source or
// group_source_req.
bool DatagramSocket::IsSourceOption(int level, int name) {
  return (level == IPPROTO_IP && name >= IP_UNBLOCK_SOURCE && name <= IP_DROP_SOURCE_MEMBERSHIP) ||
         name == MCAST_BLOCK_SOURCE || name == MCAST_UNBLOCK_SOURCE ||
         name == MCAST_JOIN_SOURCE_GROUP || name == MCAST_LEAVE_SOURCE_GROUP;
}

Status DatagramSocket::SetSource(int level, int name, std::span<const std::byte> value) {
  const bool v4 = level == IPPROTO_IP;
  IpAddress group, source;
  int device = 0;
  if (name >= MCAST_BLOCK_SOURCE) {
    const auto request = TRY(As<group_source_req>(value));
    device = static_cast<int>(request.gsr_interface);
    auto address = [&](const sockaddr_storage& a) {
      SockAddr out;
      out.length = sizeof(a);
      memcpy(out.bytes.data(), &a, sizeof(a));
      return ParseInetAddress(out, v4 ? AF_INET : AF_INET6);
    };
    Result<InetAddress> to = address(request.gsr_group), from = address(request.gsr_source);
    if (!to.ok() || !from.ok()) return Error(EADDRNOTAVAIL);
    group = to->ip;
    source = from->ip;
  } else {
    if (value.size() != sizeof(ip_mreq_source)) return Error(EINVAL);
    const auto request = TRY(As<ip_mreq_source>(value));
    group = IpAddress::FromV4(request.imr_multiaddr);
    source = IpAddress::FromV4(request.imr_sourceaddr);
    if (endpoint_->stack().IsLocal(IpAddress::FromV4(request.imr_interface))) {
      device = InetStack::kLoopbackIndex;
    }
  }
  const bool joins = name == IP_ADD_SOURCE_MEMBERSHIP || name == MCAST_JOIN_SOURCE_GROUP;
  const bool blocks = name == IP_BLOCK_SOURCE || name == MCAST_BLOCK_SOURCE;
  const bool leaves = name == IP_DROP_SOURCE_MEMBERSHIP || name == MCAST_LEAVE_SOURCE_GROUP;
  if (joins) {
    Status joined = endpoint_->Join(group, device, /*include=*/true);
    if (!joined.ok() && joined.error().code() != EADDRINUSE) return joined;
  }
  return endpoint_->ChangeSource(group, device, source, joins || leaves, joins || blocks);
}

// struct in_addr, ip_mreq or ip_mreqn; of IPv6 an index.
Status DatagramSocket::SetMulticastDevice(int level, std::span<const std::byte> value) {
  int device = 0;
  if (level == IPPROTO_IPV6) {
    device = TRY(OptionInt(value));
    if (device != 0 && device != InetStack::kLoopbackIndex) return Error(ENODEV);
    endpoint_->ip().multicast_device6 = device;
    return base::Ok();
  }
  in_addr address{};
  if (value.size() >= sizeof(ip_mreqn)) {
    auto request = TRY(As<ip_mreqn>(value));
    device = request.imr_ifindex;
    address = request.imr_address;
  } else if (value.size() >= sizeof(ip_mreq)) {
    address = TRY(As<ip_mreq>(value)).imr_interface;
  } else {
    address = TRY(As<in_addr>(value));
  }
  if (device != 0 && device != InetStack::kLoopbackIndex) return Error(EADDRNOTAVAIL);
  if (device == 0 && address.s_addr != INADDR_ANY) {
    if (!endpoint_->stack().IsLocal(IpAddress::FromV4(address))) return Error(EADDRNOTAVAIL);
    device = InetStack::kLoopbackIndex;
  }
  endpoint_->ip().multicast_device = device;
  endpoint_->ip().multicast_address = address.s_addr;
  return base::Ok();
}

Status DatagramSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == IPPROTO_UDP && type() == SOCK_DGRAM && protocol() == IPPROTO_UDP) {
    return static_cast<UdpEndpoint&>(*endpoint_).SetUdpOption(name, TRY(OptionInt(value)));
  }
  if (HasIpLevel(level)) {
    bool v4 = level == IPPROTO_IP;
    if (v4 ? name == IP_ADD_MEMBERSHIP || name == IP_DROP_MEMBERSHIP
           : name == IPV6_JOIN_GROUP || name == IPV6_LEAVE_GROUP) {
      return SetMembership(level, name, value);
    }
    if (name == MCAST_JOIN_GROUP || name == MCAST_LEAVE_GROUP) {
      return SetMembership(level, name, value);
    }
    if (IsSourceOption(level, name)) return SetSource(level, name, value);
    if (name == (v4 ? IP_MULTICAST_IF : IPV6_MULTICAST_IF)) {
      return SetMulticastDevice(level, value);
    }
  }
  return InetSocket::SetOption(t, level, name, value);
}

Result<uint64_t> DatagramSocket::Ioctl(const IoctlArgs& args) {
  int n = 0;
  switch (args.cmd) {
    case SIOCINQ:
      n = static_cast<int>(endpoint_->FirstLength());
      break;
    case SIOCOUTQ:
      break;
    case SIOCGSTAMP_OLD: {
      const timespec time = TRY(endpoint_->LastTime());
      TRY(base::UserPtr<timeval>(args.arg).CopyOut(args.memory,
                                                   {time.tv_sec, time.tv_nsec / 1000}));
      return uint64_t{0};
    }
    case SIOCGSTAMPNS_OLD:
      TRY(base::UserPtr<timespec>(args.arg).CopyOut(args.memory, TRY(endpoint_->LastTime())));
      return uint64_t{0};
    default:
      return InetSocket::Ioctl(args);
  }
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, n));
  return uint64_t{0};
}

}  // namespace sentry
