// Addresses of IPv4 and IPv6 in one form.
#pragma once

#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <string>

#include "sentry/base/result.h"
#include "sentry/net/socket.h"

namespace sentry {

// An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d; bytes in network order.
struct IpAddress {
  std::array<uint8_t, 16> bytes{};

  static IpAddress V4(uint32_t bits);  // in host order
  static IpAddress FromV4(const in_addr& a) { return V4(ntohl(a.s_addr)); }
  static IpAddress FromV6(const in6_addr& a);
  static IpAddress Any(bool v4) { return v4 ? V4(INADDR_ANY) : IpAddress(); }
  static IpAddress Loopback(bool v4);

  bool v4() const;           // IPv4
  uint32_t v4_bits() const;  // in host order; precondition: v4()
  in_addr ToV4() const;      // precondition: v4()
  in6_addr ToV6() const;
  bool IsAny() const;        // 0.0.0.0 or ::
  bool IsLoopback() const;   // 127.0.0.0/8 or ::1
  bool IsMulticast() const;  // 224.0.0.0/4 or ff00::/8
  bool IsLinkLocal() const;  // fe80::/10 and its multicast form
  // The first `prefix` bits are the same; of IPv4, after the mapping's 96.
  bool Matches(const IpAddress& other, int prefix) const;
  std::string ToString() const;
  friend bool operator==(const IpAddress&, const IpAddress&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const IpAddress& a) {
    return H::combine(std::move(h), a.bytes);
  }
};

// With a port: what a socket is bound or connected to.
struct InetAddress {
  IpAddress ip;
  uint16_t port = 0;   // in host order
  uint32_t scope = 0;  // an interface's index, of link-local addresses

  // As an AF_INET or AF_INET6 address; `flowinfo` in network order.
  SockAddr ToSockAddr(int family, uint32_t flowinfo = 0) const;
  friend bool operator==(const InetAddress& a, const InetAddress& b) {
    return a.port == b.port && a.ip == b.ip;
  }
  template <typename H>
  friend H AbslHashValue(H h, const InetAddress& a) {
    return H::combine(std::move(h), a.ip, a.port);
  }
};

// What a guest gave as an address of `family`. EINVAL if it is too short, EAFNOSUPPORT for another
// family.
base::Result<InetAddress> ParseInetAddress(const SockAddr& address, int family);

// As bind(2) takes it: of AF_INET, AF_UNSPEC with 0.0.0.0 too.
base::Result<InetAddress> ParseBindAddress(const SockAddr& address, int family);

}  // namespace sentry
