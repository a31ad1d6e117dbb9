// A request to NETLINK_ROUTE on its way to who answers it.
#pragma once

#include <linux/rtnetlink.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sentry/net/inet/stack.h"
#include "sentry/net/netlink_message.h"

namespace sentry {

// One request and where its answers go.
struct RouteRequest {
  InetStack& stack;
  bool admin, cap_ack;
  uint32_t port;
  NetlinkMessage message;
  NetlinkWriter& out;
  std::vector<std::vector<std::byte>>& answers;  // datagrams that are full

  NetworkAsker asker() const { return {port, message.header.nlmsg_seq}; }
  uint16_t type() const { return message.header.nlmsg_type; }
  uint16_t flags() const { return message.header.nlmsg_flags; }
  bool get() const { return ((type() - RTM_BASE) & 3) == 2; }
  // Its two bits mean something else where it is no GET.
  bool dump() const { return get() && (flags() & NLM_F_DUMP) == NLM_F_DUMP; }
  nlmsghdr Header(uint16_t type) const {
    nlmsghdr h{};
    h.nlmsg_type = type;
    h.nlmsg_flags = static_cast<uint16_t>(dump() ? NLM_F_MULTI : 0);
    h.nlmsg_seq = message.header.nlmsg_seq;
    h.nlmsg_pid = port;
    return h;
  }
};

}  // namespace sentry
