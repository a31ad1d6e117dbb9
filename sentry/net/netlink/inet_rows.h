// The sockets of the Internet families in a network namespace, as NETLINK_SOCK_DIAG (TCP and UDP
// alone) and /proc/net list them.
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/net/host/host_socket.h"
#include "sentry/net/inet/endpoint.h"

namespace sentry {

// What is told of a socket.
struct InetRow {
  InetAddress local, remote;
  int state = 0;
  uint64_t unread = 0, sent = 0, drops = 0;
  uid_t uid = 0;
  uint64_t ino = 0;
  int64_t time_wait_ns = -1;  // left of it; -1: it is none
  int shutdown = 0;
  bool chosen = false;            // its port, by bind(2)
  base::Ref<InetEndpoint> end{};  // null: of the host, or gone
};

// One family's. Sockets that are bound alone are no TCP ones yet.
std::vector<InetRow> TcpRows(InetStack& stack, bool v6);
std::vector<InetRow> UdpRows(InetStack& stack, bool v6);
// ICMP echo sockets, whose port is their identifier, and raw ones, whose port is their protocol.
std::vector<InetRow> PingRows(InetStack& stack, bool v6);
std::vector<InetRow> RawRows(InetStack& stack, bool v6);
// Those of the sandbox's own that are the host's; others that the namespace has are not its affair.
std::vector<InetRow> HostInetRows(HostNetwork& host, int protocol, bool v6);

}  // namespace sentry
