// NETLINK_GENERIC: which families there are (Linux: net/netlink/genetlink.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/net/netlink_message.h"

namespace sentry {

// Answers a datagram of requests of the socket with this port: the datagrams that go back. There is
// one family, the controller, which tells of itself and that there are no others.
std::vector<std::vector<std::byte>> AnswerGeneric(uint32_t port, bool cap_ack,
                                                  NetlinkBytes request);

}  // namespace sentry
