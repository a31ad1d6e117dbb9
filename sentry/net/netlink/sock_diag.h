// NETLINK_SOCK_DIAG: what sockets of TCP, UDP and AF_UNIX there are (Linux: net/core/sock_diag.c,
// net/ipv4/inet_diag.c, net/unix/diag.c).
#pragma once

#include <linux/inet_diag.h>
#include <linux/sock_diag.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/net/host/host_network.h"
#include "sentry/net/inet/stack.h"
#include "sentry/net/netlink_message.h"
#include "sentry/net/unix/unix_sockets.h"

namespace sentry {

class UserNamespace;

// Whose sockets, and who asks.
struct DiagScope {
  InetStack& stack;
  HostNetwork* host;  // null: the network is the sentry's own
  UnixSockets& unix_sockets;
  const UserNamespace& user_ns;  // ids are told as it sees them
  bool admin;                    // CAP_NET_ADMIN
  uint32_t port;
};

// One request and where its answers go.
struct DiagRequest {
  const DiagScope& scope;
  const NetlinkMessage& message;
  NetlinkWriter& out;
  std::vector<std::vector<std::byte>>& answers;  // datagrams that are full

  bool dump() const { return (message.header.nlmsg_flags & NLM_F_DUMP) != 0; }
  nlmsghdr Header(uint16_t type) const;
  // Ends a message, and the datagram once it is long enough.
  void EndMessage() const;
};

// SOCK_DIAG_BY_FAMILY of AF_INET, AF_INET6 and of AF_UNIX. May park where the network is the
// host's. EINVAL, ENOENT, ESTALE.
base::Status DiagInet(const DiagRequest& r);
base::Status DiagUnix(const DiagRequest& r);

// Does a cookie in a request name the socket with this one, or any?
bool CookieMatches(const uint32_t (&cookie)[2], uint64_t number);
// The same in an answer.
void SetCookie(uint32_t (&cookie)[2], uint64_t number);

// What a filter of a request (INET_DIAG_REQ_BYTECODE) looks at. Ports in host order.
struct DiagEntry {
  uint32_t source[4], destination[4];  // in network order; of IPv4 the first word
  uint16_t source_port, destination_port;
  int family;
  uint32_t device, mark;
  bool port_chosen;  // by bind(2)
};
// Is it a program that ends, and reads nothing outside of itself? (inet_diag_bc_audit)
bool DiagFilterIsValid(NetlinkBytes program, bool admin);
// Precondition: it is valid.
bool DiagFilterMatches(NetlinkBytes program, const DiagEntry& entry);

// Answers a datagram of requests: the datagrams that go back.
std::vector<std::vector<std::byte>> AnswerDiag(const DiagScope& scope, bool cap_ack,
                                               NetlinkBytes request);

}  // namespace sentry
