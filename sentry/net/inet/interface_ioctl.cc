#include "sentry/net/inet/interface_ioctl.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

constexpr char kLo[] = "lo";

std::vector<InetStack::Address> V4Addresses(const InetStack& stack) {
  std::vector<InetStack::Address> all = stack.addresses();
  std::erase_if(all, [](const auto& a) { return !a.ip.v4(); });
  return all;
}

void SetAddress(ifreq* r, uint32_t bits) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(bits);
  memcpy(&r->ifr_addr, &a, sizeof(a));
}

// SIOCGIFCONF: the devices that have an IPv4 address. Without a buffer only their size is asked
// for, and the length, which may be anything, is not looked at (net/core/dev_ioctl.c:dev_ifconf()).
Result<uint64_t> Configuration(InetStack& stack, const IoctlArgs& args) {
  auto conf = TRY(UserPtr<ifconf>(args.arg).CopyIn(args.memory));
  auto room = static_cast<size_t>(std::max(conf.ifc_len, 0));
  auto to = reinterpret_cast<uint64_t>(conf.ifc_buf);
  size_t used = 0;
  for (const auto& a : V4Addresses(stack)) {
    ifreq r{};
    memcpy(r.ifr_name, kLo, sizeof(kLo));
    SetAddress(&r, a.ip.v4_bits());
    if (to != 0) {
      if (room - used < sizeof(r)) break;
      TRY(UserPtr<ifreq>(to + used).CopyOut(args.memory, r));
    }
    used += sizeof(r);
  }
  conf.ifc_len = static_cast<int>(used);
  TRY(UserPtr<ifconf>(args.arg).CopyOut(args.memory, conf));
  return uint64_t{0};
}

// Fills in what is asked about lo.
Status Get(InetStack& stack, uint32_t cmd, ifreq* r) {
  std::vector<InetStack::Address> v4 = V4Addresses(stack);
  switch (cmd) {
    case SIOCGIFINDEX:
      r->ifr_ifindex = InetStack::kLoopbackIndex;
      return base::Ok();
    case SIOCGIFFLAGS:
      r->ifr_flags = static_cast<int16_t>(IFF_LOOPBACK | (stack.up() ? IFF_UP | IFF_RUNNING : 0));
      return base::Ok();
    case SIOCGIFMTU:
      r->ifr_mtu = static_cast<int>(InetStack::kMtu);
      return base::Ok();
    case SIOCGIFMETRIC:
      r->ifr_metric = 0;
      return base::Ok();
    case SIOCGIFTXQLEN:
      r->ifr_qlen = 1000;
      return base::Ok();
    case SIOCGIFHWADDR:
      memset(&r->ifr_hwaddr, 0, sizeof(r->ifr_hwaddr));
      r->ifr_hwaddr.sa_family = ARPHRD_LOOPBACK;
      return base::Ok();
    case SIOCGIFMAP:
      memset(&r->ifr_map, 0, sizeof(r->ifr_map));
      return base::Ok();
    default:
      break;
  }
  if (v4.empty()) return Error(EADDRNOTAVAIL);
  const InetStack::Address& first = v4.front();
  uint32_t mask = first.prefix == 0 ? 0 : 0xffffffffu << (32 - first.prefix);
  switch (cmd) {
    case SIOCGIFADDR:
    case SIOCGIFDSTADDR:
      SetAddress(r, first.ip.v4_bits());
      return base::Ok();
    case SIOCGIFNETMASK:
      SetAddress(r, mask);
      return base::Ok();
    case SIOCGIFBRDADDR:
      SetAddress(r, 0);
      return base::Ok();
    default:
      return Error(ENOTTY);
  }
}

// dev_ethtool(): lo has a link, and nothing else to tell.
Result<uint64_t> Ethtool(InetStack& stack, const IoctlArgs& args) {
  struct Value {
    uint32_t command, data;
  };
  auto r = TRY(UserPtr<ifreq>(args.arg).CopyIn(args.memory));
  const auto at = reinterpret_cast<uint64_t>(r.ifr_data);
  Value value{.command = TRY(UserPtr<uint32_t>(at).CopyIn(args.memory)), .data = 0};
  r.ifr_name[IFNAMSIZ - 1] = '\0';
  if (r.ifr_name != std::string_view(kLo)) return Error(ENODEV);
  if (value.command != ETHTOOL_GLINK) return Error(EOPNOTSUPP);
  value.data = stack.up() ? 1 : 0;
  TRY(UserPtr<Value>(at).CopyOut(args.memory, value));
  return uint64_t{0};
}

bool IsGet(uint32_t cmd) {
  constexpr uint32_t kGets[] = {SIOCGIFINDEX,   SIOCGIFFLAGS,   SIOCGIFMTU,    SIOCGIFMETRIC,
                                SIOCGIFTXQLEN,  SIOCGIFHWADDR,  SIOCGIFMAP,    SIOCGIFADDR,
                                SIOCGIFDSTADDR, SIOCGIFNETMASK, SIOCGIFBRDADDR};
  return std::find(std::begin(kGets), std::end(kGets), cmd) != std::end(kGets);
}

}  // namespace

Result<uint64_t> InterfaceIoctl(Task& t, InetStack& stack, const IoctlArgs& args) {
  if (args.cmd == SIOCGIFCONF) return Configuration(stack, args);
  if (args.cmd == SIOCETHTOOL) return Ethtool(stack, args);
  bool get = IsGet(args.cmd) || args.cmd == SIOCGIFNAME;
  bool set = args.cmd == SIOCSIFFLAGS || args.cmd == SIOCSIFADDR || args.cmd == SIOCSIFMTU;
  if (!get && !set) return Error(ENOTTY);
  auto r = TRY(UserPtr<ifreq>(args.arg).CopyIn(args.memory));
  if (args.cmd == SIOCGIFNAME) {
    if (r.ifr_ifindex != InetStack::kLoopbackIndex) return Error(ENODEV);
    memset(r.ifr_name, 0, sizeof(r.ifr_name));
    memcpy(r.ifr_name, kLo, sizeof(kLo));
  } else {
    r.ifr_name[IFNAMSIZ - 1] = '\0';
    std::string_view name = r.ifr_name;
    name = name.substr(0, name.find(':'));  // aliases
    if (set && !stack.HasCap(t, CAP_NET_ADMIN)) return Error(EPERM);
    if (name != kLo) return Error(ENODEV);
    if (set) {
      if (args.cmd != SIOCSIFFLAGS) return Error(EOPNOTSUPP);
      stack.SetUp((r.ifr_flags & IFF_UP) != 0);
      return uint64_t{0};
    }
    TRY(Get(stack, args.cmd, &r));
  }
  TRY(UserPtr<ifreq>(args.arg).CopyOut(args.memory, r));
  return uint64_t{0};
}

}  // namespace sentry
