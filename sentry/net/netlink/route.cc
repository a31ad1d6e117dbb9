#include "sentry/net/netlink/route.h"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>

#include <array>
#include <string>

#include "sentry/net/netlink/host_route.h"
#include "sentry/net/netlink/request.h"

namespace sentry {
namespace {

using base::Error;
using base::Status;

constexpr uint32_t kLowerUp = 0x10000;              // IFF_LOWER_UP
constexpr uint8_t kOperUnknown = 0, kOperDown = 2;  // IF_OPER_*
constexpr char kLo[] = "lo";
constexpr size_t kMaxRequests = 64;  // of one datagram

std::span<const std::byte> AddressBytes(const IpAddress& ip) {
  auto all = std::as_bytes(std::span(ip.bytes));
  return ip.v4() ? all.subspan(12) : all;
}

std::optional<IpAddress> AddressFrom(int family, NetlinkBytes bytes) {
  if (family == AF_INET && bytes.size() >= sizeof(in_addr)) {
    in_addr a;
    memcpy(&a, bytes.data(), sizeof(a));
    return IpAddress::FromV4(a);
  }
  if (family == AF_INET6 && bytes.size() >= sizeof(in6_addr)) {
    in6_addr a;
    memcpy(&a, bytes.data(), sizeof(a));
    return IpAddress::FromV6(a);
  }
  return std::nullopt;
}

// --- links ---

void WriteLink(InetStack& s, const nlmsghdr& header, NetlinkWriter* to) {
  ifinfomsg m{};
  m.ifi_type = ARPHRD_LOOPBACK;
  m.ifi_index = InetStack::kLoopbackIndex;
  m.ifi_flags = IFF_LOOPBACK | (s.up() ? IFF_UP | IFF_RUNNING | kLowerUp : 0);
  NetlinkWriter& w = *to;
  w.Begin(header, m);
  w.Attribute(IFLA_IFNAME, kLo);
  w.Attribute(IFLA_TXQLEN, uint32_t{1000});
  w.Attribute(IFLA_OPERSTATE, s.up() ? kOperUnknown : kOperDown);
  w.Attribute(IFLA_LINKMODE, uint8_t{0});
  w.Attribute(IFLA_MTU, InetStack::kMtu);
  w.Attribute(IFLA_MIN_MTU, uint32_t{0});
  w.Attribute(IFLA_MAX_MTU, uint32_t{0});
  w.Attribute(IFLA_GROUP, uint32_t{0});
  w.Attribute(IFLA_PROMISCUITY, uint32_t{0});
  w.Attribute(IFLA_NUM_TX_QUEUES, uint32_t{1});
  w.Attribute(IFLA_NUM_RX_QUEUES, uint32_t{1});
  w.Attribute(IFLA_CARRIER, uint8_t{1});
  w.Attribute(IFLA_QDISC, s.up() ? "noqueue" : "noop");
  w.Attribute(IFLA_CARRIER_CHANGES, uint32_t{0});
  std::array<uint8_t, 6> mac{};
  w.Attribute(IFLA_ADDRESS, mac);
  w.Attribute(IFLA_BROADCAST, mac);
  uint64_t packets = s.counters.packets.load(), bytes = s.counters.bytes.load();
  rtnl_link_stats64 stats64{};
  stats64.rx_packets = stats64.tx_packets = packets;
  stats64.rx_bytes = stats64.tx_bytes = bytes;
  w.Attribute(IFLA_STATS64, stats64);
  rtnl_link_stats stats{};
  stats.rx_packets = stats.tx_packets = static_cast<uint32_t>(packets);
  stats.rx_bytes = stats.tx_bytes = static_cast<uint32_t>(bytes);
  w.Attribute(IFLA_STATS, stats);
  w.End();
}

// Is the request about lo? ENODEV, EINVAL.
Status CheckLink(const ifinfomsg& m, NetlinkBytes rest) {
  NetlinkAttributes attributes(rest);
  if (m.ifi_index == InetStack::kLoopbackIndex) return base::Ok();
  if (m.ifi_index != 0) return Error(ENODEV);
  std::optional<NetlinkBytes> name = attributes.Find(IFLA_IFNAME);
  if (!name) return Error(EINVAL);
  std::string_view text(reinterpret_cast<const char*>(name->data()), name->size());
  return text.substr(0, text.find('\0')) == kLo ? base::Ok() : Status(Error(ENODEV));
}

Status GetLink(const RouteRequest& r) {
  if (!r.dump()) {
    if (r.message.payload.size() < sizeof(ifinfomsg)) return Error(EINVAL);
    NetlinkBytes rest;
    auto m = FixedHeader<ifinfomsg>(r.message.payload, &rest);
    TRY(CheckLink(m, rest));
  }
  WriteLink(r.stack, r.Header(RTM_NEWLINK), &r.out);
  return base::Ok();
}

Status SetLink(const RouteRequest& r) {
  if (r.message.payload.size() < sizeof(ifinfomsg)) return Error(EINVAL);
  NetlinkBytes rest;
  auto m = FixedHeader<ifinfomsg>(r.message.payload, &rest);
  Status found = CheckLink(m, rest);
  if (!found.ok()) {
    // There are no other kinds of devices.
    bool create = r.type() == RTM_NEWLINK && (r.flags() & NLM_F_CREATE);
    return create ? Status(Error(EOPNOTSUPP)) : found;
  }
  if (r.type() == RTM_NEWLINK && (r.flags() & NLM_F_EXCL)) return Error(EEXIST);
  NetlinkAttributes attributes(rest);
  for (uint16_t type : {IFLA_ADDRESS, IFLA_MTU, IFLA_MASTER, IFLA_NET_NS_PID, IFLA_NET_NS_FD}) {
    if (attributes.Find(type)) return Error(EOPNOTSUPP);
  }
  uint32_t change = m.ifi_change != 0 ? m.ifi_change : (m.ifi_flags != 0 ? ~0u : 0);
  if (change & IFF_UP) r.stack.SetUp((m.ifi_flags & IFF_UP) != 0, r.asker());
  return base::Ok();
}

// --- addresses ---

void WriteAddress(const nlmsghdr& header, const InetStack::Address& a, NetlinkWriter* to) {
  bool v4 = a.ip.v4(), host = a.ip.IsLoopback();
  ifaddrmsg m{};
  m.ifa_family = v4 ? AF_INET : AF_INET6;
  m.ifa_prefixlen = static_cast<uint8_t>(a.prefix);
  m.ifa_flags = IFA_F_PERMANENT;
  m.ifa_scope = static_cast<uint8_t>(host ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE);
  m.ifa_index = InetStack::kLoopbackIndex;
  NetlinkWriter& w = *to;
  w.Begin(header, m);
  w.Attribute(IFA_ADDRESS, AddressBytes(a.ip));
  if (v4) {
    w.Attribute(IFA_LOCAL, AddressBytes(a.ip));
    w.Attribute(IFA_LABEL, kLo);
  }
  w.Attribute(IFA_FLAGS, uint32_t{IFA_F_PERMANENT});
  ifa_cacheinfo cache{};
  cache.ifa_prefered = cache.ifa_valid = 0xffffffffu;
  w.Attribute(IFA_CACHEINFO, cache);
  w.End();
}

Status GetAddress(const RouteRequest& r) {
  NetlinkBytes rest;
  auto m = FixedHeader<ifaddrmsg>(r.message.payload, &rest);
  if (!r.dump()) {
    if (m.ifa_family != AF_INET6) return Error(EOPNOTSUPP);
    std::optional<NetlinkBytes> wanted = NetlinkAttributes(rest).Find(IFA_ADDRESS);
    auto ip = wanted ? AddressFrom(AF_INET6, *wanted) : std::nullopt;
    if (!ip) return Error(EINVAL);
    for (const auto& a : r.stack.addresses()) {
      if (a.ip == *ip) return WriteAddress(r.Header(RTM_NEWADDR), a, &r.out), base::Ok();
    }
    return Error(EADDRNOTAVAIL);
  }
  for (const auto& a : r.stack.addresses()) {
    int family = a.ip.v4() ? AF_INET : AF_INET6;
    if (m.ifa_family == AF_UNSPEC || m.ifa_family == family) {
      WriteAddress(r.Header(RTM_NEWADDR), a, &r.out);
    }
  }
  return base::Ok();
}

Status ChangeAddress(const RouteRequest& r) {
  if (r.message.payload.size() < sizeof(ifaddrmsg)) return Error(EINVAL);
  NetlinkBytes rest;
  auto m = FixedHeader<ifaddrmsg>(r.message.payload, &rest);
  if (m.ifa_family != AF_INET && m.ifa_family != AF_INET6) return Error(EAFNOSUPPORT);
  if (m.ifa_index != InetStack::kLoopbackIndex) return Error(ENODEV);
  if (m.ifa_prefixlen > (m.ifa_family == AF_INET ? 32 : 128)) return Error(EINVAL);
  NetlinkAttributes attributes(rest);
  std::optional<NetlinkBytes> found = attributes.Find(IFA_LOCAL);
  if (!found) found = attributes.Find(IFA_ADDRESS);
  std::optional<IpAddress> ip = found ? AddressFrom(m.ifa_family, *found) : std::nullopt;
  if (!ip || ip->IsAny() || ip->IsMulticast() || ip->v4() != (m.ifa_family == AF_INET)) {
    return Error(EINVAL);
  }
  InetStack::Address address{*ip, m.ifa_prefixlen};
  if (r.type() == RTM_DELADDR) return r.stack.RemoveAddress(address, r.asker());
  Status added = r.stack.AddAddress(address, r.asker());
  // What is there stays as it is.
  const bool replaces = (r.flags() & (NLM_F_REPLACE | NLM_F_EXCL)) == NLM_F_REPLACE;
  return !added.ok() && added.error().code() == EEXIST && replaces ? base::Ok() : added;
}

// --- routes ---

struct Route {
  IpAddress to;
  int prefix;
  uint8_t table, type, scope;
  IpAddress source;
  bool has_source;
};

void WriteRoute(const nlmsghdr& header, const Route& route, uint32_t flags, NetlinkWriter* to) {
  bool v4 = route.to.v4();
  rtmsg m{};
  m.rtm_family = v4 ? AF_INET : AF_INET6;
  m.rtm_dst_len = static_cast<uint8_t>(route.prefix);
  m.rtm_table = route.table;
  m.rtm_protocol = RTPROT_KERNEL;
  m.rtm_scope = v4 ? route.scope : uint8_t{RT_SCOPE_UNIVERSE};
  m.rtm_type = route.type;
  m.rtm_flags = flags;
  NetlinkWriter& w = *to;
  w.Begin(header, m);
  w.Attribute(RTA_TABLE, uint32_t{route.table});
  w.Attribute(RTA_DST, AddressBytes(route.to));
  if (!v4) w.Attribute(RTA_PRIORITY, uint32_t{route.table == RT_TABLE_MAIN ? 256u : 0u});
  if (route.has_source && v4) w.Attribute(RTA_PREFSRC, AddressBytes(route.source));
  w.Attribute(RTA_OIF, uint32_t{InetStack::kLoopbackIndex});
  if (flags != 0 || !v4) w.Attribute(RTA_CACHEINFO, rta_cacheinfo{});
  if (!v4) w.Attribute(RTA_PREF, uint8_t{0});
  w.End();
}

// The routes that an address of the loopback device has.
std::vector<Route> RoutesOf(const InetStack::Address& a) {
  std::vector<Route> out;
  if (!a.ip.v4()) {
    out.push_back({a.ip, a.prefix, RT_TABLE_MAIN, RTN_UNICAST, RT_SCOPE_UNIVERSE, {}, false});
    out.push_back({a.ip, 128, RT_TABLE_LOCAL, RTN_LOCAL, RT_SCOPE_UNIVERSE, {}, false});
    return out;
  }
  auto local = [&](IpAddress to, int prefix) {
    out.push_back({to, prefix, RT_TABLE_LOCAL, RTN_LOCAL, RT_SCOPE_HOST, a.ip, true});
  };
  uint32_t host = a.prefix >= 32 ? 0 : 0xffffffffu >> a.prefix;
  if (a.prefix < 32) local(IpAddress::V4(a.ip.v4_bits() & ~host), a.prefix);
  local(a.ip, 32);
  if (a.prefix < 31) {
    out.push_back({IpAddress::V4(a.ip.v4_bits() | host), 32, RT_TABLE_LOCAL, RTN_BROADCAST,
                   RT_SCOPE_LINK, a.ip, true});
  }
  return out;
}

Status GetRoute(const RouteRequest& r) {
  NetlinkBytes rest;
  auto m = FixedHeader<rtmsg>(r.message.payload, &rest);
  if (!r.dump()) {
    if (m.rtm_family != AF_INET && m.rtm_family != AF_INET6) return Error(EOPNOTSUPP);
    std::optional<NetlinkBytes> wanted = NetlinkAttributes(rest).Find(RTA_DST);
    IpAddress to = IpAddress::Any(m.rtm_family == AF_INET);
    if (wanted) {
      auto given = AddressFrom(m.rtm_family, *wanted);
      if (!given) return Error(EINVAL);
      to = *given;
    }
    IpAddress source = TRY(r.stack.Route(&to));
    WriteRoute(r.Header(RTM_NEWROUTE),
               {to, to.v4() ? 32 : 128, RT_TABLE_LOCAL, RTN_LOCAL, RT_SCOPE_UNIVERSE, source, true},
               RTM_F_CLONED, &r.out);
    return base::Ok();
  }
  if (!r.stack.up()) return base::Ok();
  for (const auto& a : r.stack.addresses()) {
    int family = a.ip.v4() ? AF_INET : AF_INET6;
    if (m.rtm_family != AF_UNSPEC && m.rtm_family != family) continue;
    for (const Route& route : RoutesOf(a)) WriteRoute(r.Header(RTM_NEWROUTE), route, 0, &r.out);
  }
  return base::Ok();
}

// The rules that every network has.
Status GetRules(const RouteRequest& r) {
  if (!r.dump()) return Error(EOPNOTSUPP);
  NetlinkBytes rest;
  auto m = FixedHeader<rtmsg>(r.message.payload, &rest);
  struct Rule {
    uint32_t priority;
    uint8_t table;
  };
  for (int family : {AF_INET, AF_INET6}) {
    if (m.rtm_family != AF_UNSPEC && m.rtm_family != family) continue;
    for (Rule rule :
         {Rule{0, RT_TABLE_LOCAL}, Rule{32766, RT_TABLE_MAIN}, Rule{32767, RT_TABLE_DEFAULT}}) {
      if (family == AF_INET6 && rule.table == RT_TABLE_DEFAULT) continue;
      rtmsg out{};  // struct fib_rule_hdr has the same shape; FR_ACT_TO_TBL is 1
      out.rtm_family = static_cast<uint8_t>(family);
      out.rtm_table = rule.table;
      out.rtm_type = 1;
      r.out.Begin(r.Header(RTM_NEWRULE), out);
      r.out.Attribute(RTA_TABLE, uint32_t{rule.table});
      if (rule.priority != 0) r.out.Attribute(RTA_PRIORITY, rule.priority);
      r.out.End();
    }
  }
  return base::Ok();
}

Status Answer(const RouteRequest& r) {
  // What is not a GET needs the capability (rtnetlink_rcv_msg).
  if (!r.get() && !r.admin) return Error(EPERM);
  switch (r.type()) {
    case RTM_GETLINK:
      return GetLink(r);
    case RTM_NEWLINK:
    case RTM_SETLINK:
      return SetLink(r);
    case RTM_GETADDR:
      return GetAddress(r);
    case RTM_NEWADDR:
    case RTM_DELADDR:
      return ChangeAddress(r);
    case RTM_GETROUTE:
      return GetRoute(r);
    case RTM_GETRULE:
      return GetRules(r);
    case RTM_GETNEIGH:
    case RTM_GETQDISC:
    case RTM_GETNEIGHTBL:
    case RTM_GETADDRLABEL:
      return r.dump() ? base::Ok() : Status(Error(ENOENT));
    default:
      return Error(EOPNOTSUPP);
  }
}

// NLMSG_ERROR: the code and the request's header; with an error, the whole request.
void WriteError(const RouteRequest& r, int error) {
  r.out.Error(r.Header(NLMSG_ERROR), r.message, error, r.cap_ack);
}

}  // namespace

std::vector<RouteNews> TellNews(InetStack& stack, const NetworkNews& news) {
  std::vector<RouteNews> out;
  nlmsghdr header{};
  header.nlmsg_seq = news.asker.sequence;
  header.nlmsg_pid = news.asker.port;
  NetlinkWriter w;
  if (news.kind == NetworkNews::Kind::kLink) {
    header.nlmsg_type = RTM_NEWLINK;
    WriteLink(stack, header, &w);
    out.push_back({RTNLGRP_LINK, w.Take()});
    return out;
  }
  const bool v4 = news.address.ip.v4();
  header.nlmsg_type = news.added ? RTM_NEWADDR : RTM_DELADDR;
  WriteAddress(header, news.address, &w);
  out.push_back({v4 ? RTNLGRP_IPV4_IFADDR : RTNLGRP_IPV6_IFADDR, w.Take()});
  if (!stack.up()) return out;
  header.nlmsg_type = news.added ? RTM_NEWROUTE : RTM_DELROUTE;
  for (const Route& route : RoutesOf(news.address)) {
    WriteRoute(header, route, 0, &w);
    out.push_back({v4 ? RTNLGRP_IPV4_ROUTE : RTNLGRP_IPV6_ROUTE, w.Take()});
  }
  return out;
}

std::vector<std::vector<std::byte>> AnswerRoute(InetStack& stack, HostNetwork* host, bool admin,
                                                bool cap_ack, uint32_t port, NetlinkBytes request) {
  std::vector<std::vector<std::byte>> answers;
  for (size_t i = 0; i < kMaxRequests; ++i) {
    std::optional<NetlinkMessage> message = NextMessage(&request);
    if (!message) break;
    NetlinkWriter out;
    RouteRequest r{stack, admin, cap_ack, port, *message, out, answers};
    Status status;
    bool asks = (r.flags() & NLM_F_REQUEST) && r.type() >= NLMSG_MIN_TYPE;
    if (asks) {
      // rtnetlink_rcv_msg ignores what has no family.
      if (r.message.payload.size() < sizeof(rtgenmsg)) continue;
      status = host != nullptr ? AnswerFromHost(*host, r) : Answer(r);
    }
    if (!out.empty()) answers.push_back(out.Take());
    if (asks && r.dump() && status.ok()) {
      out.Begin(r.Header(NLMSG_DONE), int32_t{0});
      answers.push_back(out.Take());
      continue;
    }
    if (status.ok() && !(r.flags() & NLM_F_ACK)) continue;
    WriteError(r, status.ok() ? 0 : status.error().code());
    answers.push_back(out.Take());
  }
  return answers;
}

}  // namespace sentry
