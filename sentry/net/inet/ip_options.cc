// Options of IPPROTO_IP and IPPROTO_IPV6 (Linux: net/ipv4/ip_sockglue.c, net/ipv6/ipv6_sockglue.c).
#include <linux/in6.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/task.h"
#include "sentry/net/inet/endpoint.h"

#ifndef IP_LOCAL_PORT_RANGE
#define IP_LOCAL_PORT_RANGE 51
#endif
#ifndef IP_RECVERR_RFC4884
#define IP_RECVERR_RFC4884 26
#endif
#ifndef IPV6_RECVERR_RFC4884
#define IPV6_RECVERR_RFC4884 31
#endif
#ifndef IPV6_ROUTER_ALERT_ISOLATE
#define IPV6_ROUTER_ALERT_ISOLATE 30
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

struct OptionName {
  int level, name;
  bool set_at_first = false;
  bool strict = false;  // 0 and 1 alone
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
    {IPPROTO_IP, IP_RECVERR_RFC4884, false, true},
    {IPPROTO_IP, IP_FREEBIND},
    {IPPROTO_IP, IP_TRANSPARENT},
    {IPPROTO_IP, IP_RECVORIGDSTADDR},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT},
    {IPPROTO_IP, IP_RECVFRAGSIZE},
    {IPPROTO_IP, IP_CHECKSUM},
    {IPPROTO_IP, IP_PASSSEC},
    {IPPROTO_IP, IP_MULTICAST_ALL, true, true},
    {IPPROTO_IP, IP_MULTICAST_LOOP, true},
    {IPPROTO_IP, IP_NODEFRAG},
    {IPPROTO_IPV6, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT},
    {IPPROTO_IPV6, IPV6_RECVTCLASS},
    {IPPROTO_IPV6, IPV6_RECVRTHDR},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS},
    {IPPROTO_IPV6, IPV6_2292PKTINFO},
    {IPPROTO_IPV6, IPV6_2292HOPLIMIT},
    {IPPROTO_IPV6, IPV6_2292HOPOPTS},
    {IPPROTO_IPV6, IPV6_2292DSTOPTS},
    {IPPROTO_IPV6, IPV6_2292RTHDR},
    {IPPROTO_IPV6, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_RECVERR_RFC4884, false, true},
    {IPPROTO_IPV6, IPV6_FLOWINFO},
    {IPPROTO_IPV6, IPV6_FLOWINFO_SEND},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, true},
    {IPPROTO_IPV6, IPV6_DONTFRAG},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR},
    {IPPROTO_IPV6, IPV6_FREEBIND},
    {IPPROTO_IPV6, IPV6_TRANSPARENT},
    {IPPROTO_IPV6, IPV6_ROUTER_ALERT_ISOLATE},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, true, true},
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

// Numbers with limits; -1 stands for `if_minus_one` where that is within them.
struct NumberOption {
  int level, name;
  std::atomic<int> IpOptions::*value;
  int low, high;
  int if_minus_one = -1;
};
constexpr NumberOption kNumbers[] = {
    {IPPROTO_IP, IP_MTU_DISCOVER, &IpOptions::mtu_discover, IP_PMTUDISC_DONT, IP_PMTUDISC_OMIT},
    {IPPROTO_IP, IP_MULTICAST_TTL, &IpOptions::multicast_ttl, 0, 255, 1},
    {IPPROTO_IP, IP_MINTTL, &IpOptions::min_ttl, 0, 255},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, &IpOptions::hops, -1, 255},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &IpOptions::multicast_hops, 0, 255, 1},
    {IPPROTO_IPV6, IPV6_TCLASS, &IpOptions::traffic_class, 0, 255, 0},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT, &IpOptions::min_hops, 0, 255},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, &IpOptions::mtu_discover6, IPV6_PMTUDISC_DONT,
     IPV6_PMTUDISC_OMIT},
};

const NumberOption* FindNumber(int level, int name) {
  for (const NumberOption& option : kNumbers) {
    if (option.level == level && option.name == name) return &option;
  }
  return nullptr;
}

constexpr int kInetEcnMask = 3;
constexpr int kMinMtu6 = 1280;  // IPV6_MIN_MTU

}  // namespace

Result<int> OptionInt(std::span<const std::byte> value, bool allow_byte) {
  int number = 0;
  if (value.size() >= sizeof(number)) {
    memcpy(&number, value.data(), sizeof(number));
    return number;
  }
  if (allow_byte) return value.empty() ? 0 : static_cast<int>(value[0]);
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
  hops = other.hops.load();
  multicast_device = other.multicast_device.load();
  multicast_device6 = other.multicast_device6.load();
  multicast_address = other.multicast_address.load();
  unicast_device = other.unicast_device.load();
  unicast_device6 = other.unicast_device6.load();
  port_range = other.port_range.load();
  address_preferences = other.address_preferences.load();
  for (const NumberOption& option : kNumbers) {
    (this->*option.value).store((other.*option.value).load());
  }
}

Result<std::vector<std::byte>> IpOptions::Get(int level, int name) const {
  if (FlagIndex(level, name) >= 0) return OptionBytes<int>(flag(level, name) ? 1 : 0);
  auto or_default = [](int value) { return value < 0 ? 64 : value; };
  if (const NumberOption* option = FindNumber(level, name)) {
    return OptionBytes(or_default((this->*option->value).load()));
  }
  if (level == IPPROTO_IP) {
    switch (name) {
      case IP_TTL:
        return OptionBytes(or_default(ttl.load()));
      case IP_TOS:
        return OptionBytes(tos.load());
      case IP_ROUTER_ALERT:
        return OptionBytes(0);
      case IP_MULTICAST_IF: {
        in_addr a{multicast_address.load()};
        return OptionBytes(a);
      }
      case IP_UNICAST_IF:
        return OptionBytes(unicast_device.load());
      case IP_LOCAL_PORT_RANGE:
        return OptionBytes(port_range.load());
      case IP_OPTIONS:
        return std::vector<std::byte>();
      default:
        return Error(ENOPROTOOPT);
    }
  }
  switch (name) {
    case IPV6_MULTICAST_IF:
      return OptionBytes(multicast_device6.load());
    case IPV6_UNICAST_IF:
      return OptionBytes(unicast_device6.load());
    case IPV6_ADDR_PREFERENCES: {
      // What is not chosen reads back as chosen by the system.
      const int set = address_preferences.load();
      int out = set & ~(IPV6_PREFER_SRC_PUBTMP_DEFAULT);
      if ((set & (IPV6_PREFER_SRC_TMP | IPV6_PREFER_SRC_PUBLIC)) == 0) {
        out |= IPV6_PREFER_SRC_PUBTMP_DEFAULT;
      }
      return OptionBytes((set & IPV6_PREFER_SRC_COA) != 0 ? out : out | IPV6_PREFER_SRC_HOME);
    }
    default:
      return Error(ENOPROTOOPT);
  }
}

Status IpOptions::SetDevice(std::atomic<int>* to, std::span<const std::byte> value) {
  int index = 0;
  if (value.size() != sizeof(index)) return Error(EINVAL);
  memcpy(&index, value.data(), sizeof(index));
  if (index != 0 && ntohl(static_cast<uint32_t>(index)) != InetStack::kLoopbackIndex) {
    return Error(EADDRNOTAVAIL);
  }
  *to = index;
  return base::Ok();
}

Status IpOptions::Set(Task& t, InetStack& stack, int level, int name,
                      std::span<const std::byte> value, int type) {
  const bool v4 = level == IPPROTO_IP;
  if (name == (v4 ? IP_UNICAST_IF : IPV6_UNICAST_IF)) {
    return SetDevice(v4 ? &unicast_device : &unicast_device6, value);
  }
  int number = TRY(OptionInt(value, v4));
  if (int i = FlagIndex(level, name); i >= 0) {
    if (NeedsAdmin(level, name) && number != 0 && !stack.HasCap(t, CAP_NET_ADMIN) &&
        !stack.HasCap(t, CAP_NET_RAW)) {
      return Error(EPERM);
    }
    if (v4 && name == IP_NODEFRAG && type != SOCK_RAW) return Error(ENOPROTOOPT);
    // These take no less than a byte.
    const bool some = name == IP_MULTICAST_LOOP || name == IP_MULTICAST_ALL ||
                      name == IP_FREEBIND || name == IP_TRANSPARENT;
    if (v4 && some && value.empty()) return Error(EINVAL);
    if (v4 && name == IP_RECVFRAGSIZE && type == SOCK_STREAM) return Error(EINVAL);
    if (kFlags[i].strict && number != 0 && number != 1) return Error(EINVAL);
    SetFlag(level, name, number != 0);
    return base::Ok();
  }
  if (const NumberOption* option = FindNumber(level, name)) {
    if (v4 && name != IP_MTU_DISCOVER && value.empty()) return Error(EINVAL);
    if (type == SOCK_STREAM && (name == IP_MULTICAST_TTL && v4)) return Error(EINVAL);
    if (type == SOCK_STREAM && (name == IPV6_MULTICAST_HOPS && !v4)) return Error(ENOPROTOOPT);
    if (number == -1) number = option->if_minus_one;
    if (number < option->low || number > option->high) return Error(EINVAL);
    (this->*option->value).store(number);
    return base::Ok();
  }
  if (v4) return SetOther4(name, number, value, type);
  switch (name) {
    case IPV6_MTU:
      return number == 0 || number >= kMinMtu6 ? base::Ok() : Status(Error(EINVAL));
    case IPV6_ADDR_PREFERENCES:
      return SetPreferences(number);
    default:
      return Error(ENOPROTOOPT);
  }
}

Status IpOptions::SetOther4(int name, int number, std::span<const std::byte> value, int type) {
  switch (name) {
    case IP_TTL:
      if (value.empty() || (number != -1 && (number < 1 || number > 255))) return Error(EINVAL);
      ttl = number;
      return base::Ok();
    case IP_TOS:
      // The congestion bits of a stream are its own.
      tos = type == SOCK_STREAM ? (number & 0xff & ~kInetEcnMask) | (tos.load() & kInetEcnMask)
                                : number & 0xff;
      return base::Ok();
    case IP_LOCAL_PORT_RANGE: {
      const auto range = static_cast<uint32_t>(number);
      if (value.size() != sizeof(range)) return Error(EINVAL);
      const uint32_t low = range & 0xffff, high = range >> 16;
      if (low != 0 && high != 0 && low > high) return Error(EINVAL);
      port_range = number;
      return base::Ok();
    }
    case IP_MULTICAST_IF:
      return Error(type == SOCK_STREAM ? EINVAL : ENOPROTOOPT);
    case IP_ADD_MEMBERSHIP:
    case IP_DROP_MEMBERSHIP:
      return Error(type == SOCK_STREAM ? EPROTO : ENOPROTOOPT);
    default:
      return Error(ENOPROTOOPT);
  }
}

// ipv6_sock_set_addr_preferences(): at most one choice of each kind.
Status IpOptions::SetPreferences(int number) {
  constexpr int kTemporary =
      IPV6_PREFER_SRC_PUBLIC | IPV6_PREFER_SRC_TMP | IPV6_PREFER_SRC_PUBTMP_DEFAULT;
  constexpr int kHome = IPV6_PREFER_SRC_HOME | IPV6_PREFER_SRC_COA;
  constexpr int kGenerated = IPV6_PREFER_SRC_CGA | IPV6_PREFER_SRC_NONCGA;
  int kept = address_preferences.load();
  for (int kind : {kTemporary, kHome, kGenerated}) {
    const int chosen = number & kind;
    if (chosen == 0) continue;
    if ((chosen & (chosen - 1)) != 0) return Error(EINVAL);
    if (kind != kGenerated) kept = (kept & ~kind) | chosen;
  }
  address_preferences = kept & ~IPV6_PREFER_SRC_HOME;
  return base::Ok();
}

}  // namespace sentry
