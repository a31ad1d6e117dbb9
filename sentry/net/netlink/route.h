// NETLINK_ROUTE: what the loopback device, its addresses and routes are, and their few changes
// (Linux: net/core/rtnetlink.c, net/ipv4/devinet.c, fib_frontend.c, net/ipv6/addrconf.c, route.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/net/inet/stack.h"
#include "sentry/net/netlink/message.h"

namespace sentry {

// Answers a datagram of requests to `stack`: the datagrams that go back to `port`. `admin`: the
// sender may change the network (CAP_NET_ADMIN). Bounded by the length of the request.
std::vector<std::vector<std::byte>> AnswerRoute(InetStack& stack, bool admin, uint32_t port,
                                                NetlinkBytes request);

}  // namespace sentry
