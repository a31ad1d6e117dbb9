#include "sentry/net/netlink/host_route.h"

#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <optional>
#include <string_view>

namespace sentry {
namespace {

using base::Error;
using base::Status;

// Readers with a page of room get whole messages (NLMSG_GOODSIZE).
constexpr size_t kDatagram = 3584;

// Passes a message of the host's on.
void Pass(const RouteRequest& r, const HostNetwork::RouteMessage& m) {
  if (!r.out.empty() && r.out.size() + m.payload.size() > kDatagram) {
    r.answers.push_back(r.out.Take());
  }
  nlmsghdr header = r.Header(m.type);
  // NLM_F_DUMP_INTR and NLM_F_DUMP_FILTERED.
  header.nlmsg_flags |= m.flags & (NLM_F_DUMP_INTR | NLM_F_DUMP_FILTERED);
  r.out.BeginRaw(header);
  r.out.Raw(m.payload);
  r.out.End();
}

std::string_view Text(NetlinkBytes bytes) {
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return text.substr(0, text.find('\0'));
}

// The family that a dump is asked for, which every request begins with.
uint8_t FamilyOf(const RouteRequest& r) {
  NetlinkBytes rest;
  return FixedHeader<rtgenmsg>(r.message.payload, &rest).rtgen_family;
}

template <typename T>
NetlinkBytes Bytes(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

Status GetLink(HostNetwork& host, const RouteRequest& r) {
  if (!r.dump() && r.message.payload.size() < sizeof(ifinfomsg)) return Error(EINVAL);
  NetlinkBytes rest;
  const auto wanted = FixedHeader<ifinfomsg>(r.message.payload, &rest);
  const std::optional<NetlinkBytes> name = NetlinkAttributes(rest).Find(IFLA_IFNAME);
  if (!r.dump() && wanted.ifi_index == 0 && !name) return Error(EINVAL);
  // Without a family: devices of all kinds; with AF_INET6 or AF_BRIDGE, what Linux has of those.
  ifinfomsg ask{};
  ask.ifi_family = r.dump() ? wanted.ifi_family : uint8_t{AF_UNSPEC};
  bool found = r.dump();
  for (const auto& m : TRY(host.Query(RTM_GETLINK, /*dump=*/true, Bytes(ask)))) {
    if (m.type != RTM_NEWLINK) continue;
    if (!r.dump()) {
      NetlinkBytes attributes;
      const auto link = FixedHeader<ifinfomsg>(m.payload, &attributes);
      const std::optional<NetlinkBytes> its = NetlinkAttributes(attributes).Find(IFLA_IFNAME);
      const bool match = wanted.ifi_index != 0 ? link.ifi_index == wanted.ifi_index
                                               : its && Text(*its) == Text(*name);
      if (!match) continue;
      found = true;
    }
    Pass(r, m);
  }
  return found ? base::Ok() : Status(Error(ENODEV));
}

Status GetAddress(HostNetwork& host, const RouteRequest& r) {
  NetlinkBytes rest;
  const auto wanted = FixedHeader<ifaddrmsg>(r.message.payload, &rest);
  if (!r.dump()) return Error(EOPNOTSUPP);
  ifaddrmsg ask{};
  ask.ifa_family = FamilyOf(r);
  // With NETLINK_GET_STRICT_CHK Linux dumps those of one device; readers look at it in any case.
  const uint32_t index = r.message.payload.size() >= sizeof(ifaddrmsg) ? wanted.ifa_index : 0;
  for (const auto& m : TRY(host.Query(RTM_GETADDR, /*dump=*/true, Bytes(ask)))) {
    NetlinkBytes attributes;
    const auto address = FixedHeader<ifaddrmsg>(m.payload, &attributes);
    if (index == 0 || address.ifa_index == index) Pass(r, m);
  }
  return base::Ok();
}

// The route to one address, from its parts that are known.
Status GetOneRoute(HostNetwork& host, const RouteRequest& r) {
  if (r.message.payload.size() < sizeof(rtmsg)) return Error(EINVAL);
  NetlinkBytes rest;
  const auto wanted = FixedHeader<rtmsg>(r.message.payload, &rest);
  if (wanted.rtm_family != AF_INET && wanted.rtm_family != AF_INET6) return Error(EOPNOTSUPP);
  const size_t bytes = wanted.rtm_family == AF_INET ? 4 : 16;
  const NetlinkAttributes attributes(rest);
  rtmsg ask{};
  ask.rtm_family = wanted.rtm_family;
  ask.rtm_flags = wanted.rtm_flags & (RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH);
  NetlinkWriter body;
  body.Raw(Bytes(ask));
  for (uint16_t type : {RTA_DST, RTA_SRC}) {
    const std::optional<NetlinkBytes> address = attributes.Find(type);
    if (!address) continue;
    if (address->size() != bytes) return Error(EINVAL);
    (type == RTA_DST ? ask.rtm_dst_len : ask.rtm_src_len) = static_cast<uint8_t>(bytes * 8);
    body.Attribute(type, *address);
  }
  if (auto device = attributes.Get<uint32_t>(RTA_OIF)) body.Attribute(RTA_OIF, *device);
  std::vector<std::byte> request = body.Take();
  memcpy(request.data(), &ask, sizeof(ask));  // with the lengths
  for (const auto& m : TRY(host.Query(RTM_GETROUTE, /*dump=*/false, request))) Pass(r, m);
  return base::Ok();
}

Status Dump(HostNetwork& host, const RouteRequest& r) {
  switch (r.type()) {
    case RTM_GETROUTE: {
      rtmsg ask{};
      ask.rtm_family = FamilyOf(r);
      for (const auto& m : TRY(host.Query(r.type(), /*dump=*/true, Bytes(ask)))) Pass(r, m);
      return base::Ok();
    }
    case RTM_GETRULE:
    case RTM_GETNEIGH: {
      rtgenmsg ask{};
      ask.rtgen_family = FamilyOf(r);
      for (const auto& m : TRY(host.Query(r.type(), /*dump=*/true, Bytes(ask)))) Pass(r, m);
      return base::Ok();
    }
    case RTM_GETQDISC:
    case RTM_GETNEIGHTBL:
    case RTM_GETADDRLABEL:
      return base::Ok();
    default:
      return Error(EOPNOTSUPP);
  }
}

}  // namespace

Status AnswerFromHost(HostNetwork& host, const RouteRequest& r) {
  if (!r.get()) return Error(EPERM);
  if (r.type() == RTM_GETLINK) return GetLink(host, r);
  if (r.type() == RTM_GETADDR) return GetAddress(host, r);
  if (r.dump()) return Dump(host, r);
  return r.type() == RTM_GETROUTE ? GetOneRoute(host, r) : Status(Error(EOPNOTSUPP));
}

}  // namespace sentry
