#include "sentry/boot/network_fds.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace sentry {
namespace {

// Devices, addresses, routes and counters of the namespace. What lists sockets is not among them:
// those of others in the namespace are not the guest's.
constexpr const char* kProcNet[] = {"arp",   "dev",  "if_inet6", "ipv6_route", "netstat",
                                    "route", "snmp", "sockstat", "sockstat6"};

}  // namespace

bool OpenHostNetwork(NetworkFds* fds, std::string* why) {
  // Of a process without rights in the namespace: good for questions alone.
  fds->route.reset(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  if (!fds->route.valid()) {
    *why = std::string("host network: netlink socket: ") + strerror(errno);
    return false;
  }
  for (const char* name : kProcNet) {
    base::UniqueFd fd(open((std::string("/proc/self/net/") + name).c_str(), O_RDONLY | O_CLOEXEC));
    // Hosts without IPv6 lack some.
    if (fd.valid()) fds->proc.emplace_back(name, std::move(fd));
  }
  return true;
}

}  // namespace sentry
