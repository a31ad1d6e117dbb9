// NETLINK_ROUTE: what the loopback device, its addresses and routes are, and their few changes
// (Linux: net/core/rtnetlink.c, net/ipv4/devinet.c, fib_frontend.c, net/ipv6/addrconf.c, route.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/stack.h"
#include "sentry/net/netlink_message.h"

namespace sentry {

// A message to a multicast group (RTNLGRP_*) about a change.
struct RouteNews {
  uint32_t group;
  std::vector<std::byte> bytes;
};
std::vector<RouteNews> TellNews(InetStack& stack, const NetworkNews& news);

// Answers a datagram of requests to `stack`, or, if it is not null, to `host`: the datagrams that
// go back to `port`. `admin`: the sender may change the network (CAP_NET_ADMIN).
// `cap_ack`: errors do not repeat the request (NETLINK_CAP_ACK). Bounded by the
// length of the request, and by what the host says. May park if there is a host.
std::vector<std::vector<std::byte>> AnswerRoute(InetStack& stack, HostNetwork* host, bool admin,
                                                bool cap_ack, uint32_t port, NetlinkBytes request);

}  // namespace sentry
