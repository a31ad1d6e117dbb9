// NETLINK_ROUTE: what the loopback device, its addresses and routes are, and their few changes
// (Linux: net/core/rtnetlink.c, net/ipv4/devinet.c, fib_frontend.c, net/ipv6/addrconf.c, route.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/stack.h"
#include "sentry/net/netlink_message.h"

namespace sentry {

// Answers a datagram of requests to `stack`, or, if it is not null, to `host`: the datagrams that
// go back to `port`. `admin`: the sender may change the network (CAP_NET_ADMIN). Bounded by the
// length of the request, and by what the host says. May park if there is a host.
std::vector<std::vector<std::byte>> AnswerRoute(InetStack& stack, HostNetwork* host, bool admin,
                                                uint32_t port, NetlinkBytes request);

}  // namespace sentry
