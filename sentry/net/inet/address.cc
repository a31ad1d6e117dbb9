#include "sentry/net/inet/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace sentry {

using base::Error;
using base::Result;

namespace {
constexpr std::array<uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
// SIN6_LEN_RFC2133: addresses without a scope id are taken.
constexpr uint32_t kShortV6 = offsetof(sockaddr_in6, sin6_scope_id);
}  // namespace

IpAddress IpAddress::V4(uint32_t bits) {
  IpAddress a;
  std::copy(kMapped.begin(), kMapped.end(), a.bytes.begin());
  uint32_t net = htonl(bits);
  memcpy(a.bytes.data() + kMapped.size(), &net, sizeof(net));
  return a;
}

IpAddress IpAddress::FromV6(const in6_addr& v6) {
  IpAddress a;
  memcpy(a.bytes.data(), &v6, sizeof(v6));
  return a;
}

IpAddress IpAddress::Loopback(bool v4) {
  if (v4) return V4(INADDR_LOOPBACK);
  IpAddress a;
  a.bytes[15] = 1;
  return a;
}

bool IpAddress::v4() const { return std::equal(kMapped.begin(), kMapped.end(), bytes.begin()); }
uint32_t IpAddress::v4_bits() const { return ntohl(ToV4().s_addr); }

in_addr IpAddress::ToV4() const {
  in_addr a;
  memcpy(&a, bytes.data() + kMapped.size(), sizeof(a));
  return a;
}

in6_addr IpAddress::ToV6() const {
  in6_addr a;
  memcpy(&a, bytes.data(), sizeof(a));
  return a;
}

bool IpAddress::IsAny() const { return *this == Any(v4()); }
bool IpAddress::IsLoopback() const {
  return v4() ? v4_bits() >> 24 == IN_LOOPBACKNET : *this == Loopback(false);
}
bool IpAddress::IsMulticast() const { return v4() ? IN_MULTICAST(v4_bits()) : bytes[0] == 0xff; }
bool IpAddress::IsLinkLocal() const {
  if (v4()) return false;
  return (bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80) ||
         (bytes[0] == 0xff && (bytes[1] & 0x0f) <= 2);
}

bool IpAddress::Matches(const IpAddress& other, int prefix) const {
  if (v4() != other.v4()) return false;
  if (v4()) prefix += 96;
  prefix = std::clamp(prefix, 0, 128);
  auto whole = static_cast<size_t>(prefix / 8);
  if (!std::equal(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(whole),
                  other.bytes.begin())) {
    return false;
  }
  int rest = prefix % 8;
  return rest == 0 || (bytes[whole] ^ other.bytes[whole]) >> (8 - rest) == 0;
}

std::string IpAddress::ToString() const {
  char text[INET6_ADDRSTRLEN];
  if (v4()) {
    in_addr a = ToV4();
    return inet_ntop(AF_INET, &a, text, sizeof(text));
  }
  in6_addr a = ToV6();
  return inet_ntop(AF_INET6, &a, text, sizeof(text));
}

SockAddr InetAddress::ToSockAddr(int family, uint32_t flowinfo) const {
  SockAddr out;
  if (family == AF_INET) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr = ip.ToV4();
    if (!ip.v4()) a.sin_addr.s_addr = INADDR_ANY;
    memcpy(out.bytes.data(), &a, sizeof(a));
    out.length = sizeof(a);
    return out;
  }
  sockaddr_in6 a{};
  a.sin6_family = AF_INET6;
  a.sin6_port = htons(port);
  a.sin6_flowinfo = flowinfo;
  a.sin6_addr = ip.ToV6();
  a.sin6_scope_id = ip.IsLinkLocal() ? scope : 0;
  memcpy(out.bytes.data(), &a, sizeof(a));
  out.length = sizeof(a);
  return out;
}

Result<InetAddress> ParseInetAddress(const SockAddr& address, int family) {
  InetAddress out;
  if (family == AF_INET) {
    sockaddr_in a;
    if (address.length < sizeof(a)) return Error(EINVAL);
    memcpy(&a, address.bytes.data(), sizeof(a));
    if (a.sin_family != AF_INET) return Error(EAFNOSUPPORT);
    out.ip = IpAddress::FromV4(a.sin_addr);
    out.port = ntohs(a.sin_port);
    return out;
  }
  sockaddr_in6 a{};
  if (address.length < kShortV6) return Error(EINVAL);
  memcpy(&a, address.bytes.data(), std::min<size_t>(address.length, sizeof(a)));
  if (a.sin6_family != AF_INET6) return Error(EAFNOSUPPORT);
  out.ip = IpAddress::FromV6(a.sin6_addr);
  out.port = ntohs(a.sin6_port);
  out.scope = a.sin6_scope_id;
  return out;
}

Result<InetAddress> ParseBindAddress(const SockAddr& address, int family) {
  sockaddr_in in;
  if (family != AF_INET || address.length < sizeof(in) || address.family() != AF_UNSPEC) {
    return ParseInetAddress(address, family);
  }
  memcpy(&in, address.bytes.data(), sizeof(in));
  if (in.sin_addr.s_addr != INADDR_ANY) return Error(EAFNOSUPPORT);
  return InetAddress{.ip = IpAddress::Any(true), .port = ntohs(in.sin_port)};
}

}  // namespace sentry
