#include "sentry/net/host/interface_ioctl.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

void SetAddress(sockaddr* to, uint32_t bits) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(bits);
  memcpy(to, &a, sizeof(a));
}

void SetName(char (&to)[IFNAMSIZ], std::string_view name) {
  memset(to, 0, sizeof(to));
  memcpy(to, name.data(), std::min(name.size(), sizeof(to) - 1));
}

// SIOCGIFCONF: the IPv4 addresses with their devices. Without a buffer only their size is asked
// for, whatever the length says (net/core/dev_ioctl.c:dev_ifconf()).
Result<uint64_t> Configuration(const std::vector<HostInterface>& all, const IoctlArgs& args) {
  auto conf = TRY(UserPtr<ifconf>(args.arg).CopyIn(args.memory));
  auto room = static_cast<size_t>(std::max(conf.ifc_len, 0));
  auto to = reinterpret_cast<uint64_t>(conf.ifc_buf);
  size_t used = 0;
  for (const HostInterface& i : all) {
    for (const HostInterface::Address& a : i.addresses) {
      ifreq r{};
      SetName(r.ifr_name, a.label.empty() ? i.name : a.label);
      SetAddress(&r.ifr_addr, a.ip);
      if (to != 0) {
        if (room - used < sizeof(r)) break;
        TRY(UserPtr<ifreq>(to + used).CopyOut(args.memory, r));
      }
      used += sizeof(r);
    }
  }
  conf.ifc_len = static_cast<int>(used);
  TRY(UserPtr<ifconf>(args.arg).CopyOut(args.memory, conf));
  return uint64_t{0};
}

void SetHardware(sockaddr* to, uint16_t type, const std::vector<uint8_t>& bytes) {
  memset(to, 0, sizeof(*to));
  to->sa_family = type;
  if (!bytes.empty()) {
    memcpy(to->sa_data, bytes.data(), std::min(bytes.size(), sizeof(to->sa_data)));
  }
}

Status GetOfDevice(const HostInterface& i, uint32_t cmd, ifreq* r) {
  switch (cmd) {
    case SIOCGIFINDEX:
      r->ifr_ifindex = i.index;
      return base::Ok();
    case SIOCGIFFLAGS:
      r->ifr_flags = static_cast<int16_t>(i.flags);
      return base::Ok();
    case SIOCGIFMTU:
      r->ifr_mtu = static_cast<int>(i.mtu);
      return base::Ok();
    case SIOCGIFMETRIC:
      r->ifr_metric = 0;
      return base::Ok();
    case SIOCGIFTXQLEN:
      r->ifr_qlen = static_cast<int>(i.queue_length);
      return base::Ok();
    case SIOCGIFHWADDR:
      SetHardware(&r->ifr_hwaddr, i.type, i.hardware);
      return base::Ok();
    case SIOCGIFMAP:
      memset(&r->ifr_map, 0, sizeof(r->ifr_map));
      return base::Ok();
    default:
      return Error(ENOTTY);
  }
}

Status GetOfAddress(const HostInterface& i, std::string_view label, uint32_t cmd, ifreq* r) {
  auto it = std::find_if(i.addresses.begin(), i.addresses.end(),
                         [&](const auto& a) { return a.label == label; });
  if (it == i.addresses.end()) return Error(EADDRNOTAVAIL);
  const uint32_t mask = it->prefix == 0 ? 0 : 0xffffffffu << (32 - it->prefix);
  switch (cmd) {
    case SIOCGIFADDR:
    case SIOCGIFDSTADDR:
      SetAddress(&r->ifr_addr, it->ip);
      return base::Ok();
    case SIOCGIFNETMASK:
      SetAddress(&r->ifr_netmask, mask);
      return base::Ok();
    default:
      SetAddress(&r->ifr_broadaddr, it->broadcast);
      return base::Ok();
  }
}

bool IsOfDevice(uint32_t cmd) {
  constexpr uint32_t kGets[] = {SIOCGIFINDEX,  SIOCGIFFLAGS,  SIOCGIFMTU, SIOCGIFMETRIC,
                                SIOCGIFTXQLEN, SIOCGIFHWADDR, SIOCGIFMAP};
  return std::find(std::begin(kGets), std::end(kGets), cmd) != std::end(kGets);
}

bool IsOfAddress(uint32_t cmd) {
  return cmd == SIOCGIFADDR || cmd == SIOCGIFDSTADDR || cmd == SIOCGIFNETMASK ||
         cmd == SIOCGIFBRDADDR;
}

// What Linux lets CAP_NET_ADMIN do; the sentry may not.
bool IsChange(uint32_t cmd) {
  constexpr uint32_t kSets[] = {SIOCSIFFLAGS,   SIOCSIFADDR,   SIOCSIFDSTADDR, SIOCSIFNETMASK,
                                SIOCSIFBRDADDR, SIOCSIFMTU,    SIOCSIFHWADDR,  SIOCSIFNAME,
                                SIOCSIFTXQLEN,  SIOCSIFMETRIC, SIOCADDRT,      SIOCDELRT};
  return std::find(std::begin(kSets), std::end(kSets), cmd) != std::end(kSets);
}

}  // namespace

Result<uint64_t> HostInterfaceIoctl(HostNetwork& network, const IoctlArgs& args) {
  if (IsChange(args.cmd)) return Error(EPERM);
  const bool named = IsOfDevice(args.cmd) || IsOfAddress(args.cmd);
  if (!named && args.cmd != SIOCGIFNAME && args.cmd != SIOCGIFCONF) return Error(ENOTTY);
  if (args.cmd == SIOCGIFCONF) return Configuration(TRY(network.Interfaces()), args);
  auto r = TRY(UserPtr<ifreq>(args.arg).CopyIn(args.memory));
  const std::vector<HostInterface> all = TRY(network.Interfaces());
  r.ifr_name[IFNAMSIZ - 1] = '\0';
  const std::string_view label = r.ifr_name;
  const std::string_view name = label.substr(0, label.find(':'));  // without an alias
  auto it = std::find_if(all.begin(), all.end(), [&](const HostInterface& i) {
    return args.cmd == SIOCGIFNAME ? i.index == r.ifr_ifindex : i.name == name;
  });
  if (it == all.end()) return Error(ENODEV);
  if (args.cmd == SIOCGIFNAME) {
    SetName(r.ifr_name, it->name);
  } else if (IsOfDevice(args.cmd)) {
    TRY(GetOfDevice(*it, args.cmd, &r));
  } else {
    TRY(GetOfAddress(*it, label, args.cmd, &r));
  }
  TRY(UserPtr<ifreq>(args.arg).CopyOut(args.memory, r));
  return uint64_t{0};
}

}  // namespace sentry
