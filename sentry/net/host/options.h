// The socket options and control messages that may reach sockets of the host: one list for the
// sentry, which refuses the rest, and for its system call filter, which refuses them again.
#pragma once

#include <linux/in6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>

namespace sentry {

// What a guest may do with an option of a host socket.
enum HostOptionUse : uint8_t { kHostGet = 1, kHostSet = 2, kHostGetSet = 3 };

struct HostOption {
  int level;
  int name;
  HostOptionUse use;
};

// From kernel headers that cannot be included beside libc's.
inline constexpr int kIpLocalPortRange = 51, kIpv6MulticastAll = 29, kIpv6UnicastIf = 76;

// Bytes of the longest value: struct group_source_req, and struct tcp_info with room to grow.
inline constexpr size_t kMaxHostOption = 512;

// Not here, on purpose: what loads code into the host (SO_ATTACH_FILTER and its kin, TCP_ULP), what
// takes keys or repairs connections (TCP_MD5SIG, TCP_AO_*, TCP_REPAIR), what reads or writes packet
// filters (IPT_SO_*), IPsec policies, what maps or pins memory (SO_ZEROCOPY, TCP_ZEROCOPY_RECEIVE),
// IPv6 extension headers. Options with a time limit, those about credentials and those that name
// the socket's kind are the sentry's own.
inline constexpr HostOption kHostOptions[] = {
    // Addresses and ports.
    {SOL_SOCKET, SO_REUSEADDR, kHostGetSet},
    {SOL_SOCKET, SO_REUSEPORT, kHostGetSet},
    {SOL_SOCKET, SO_BINDTODEVICE, kHostGetSet},
    {SOL_SOCKET, SO_BINDTOIFINDEX, kHostGetSet},
    {SOL_SOCKET, SO_DONTROUTE, kHostGetSet},
    {SOL_SOCKET, SO_BROADCAST, kHostGetSet},
    // How data flows.
    {SOL_SOCKET, SO_KEEPALIVE, kHostGetSet},
    {SOL_SOCKET, SO_OOBINLINE, kHostGetSet},
    {SOL_SOCKET, SO_NO_CHECK, kHostGetSet},
    {SOL_SOCKET, SO_LINGER, kHostSet},  // read back from what the sentry keeps
    {SOL_SOCKET, SO_SNDBUF, kHostGetSet},
    {SOL_SOCKET, SO_RCVBUF, kHostGetSet},
    {SOL_SOCKET, SO_RCVLOWAT, kHostGetSet},
    {SOL_SOCKET, SO_PRIORITY, kHostGetSet},
    {SOL_SOCKET, SO_TIMESTAMP, kHostGetSet},
    {SOL_SOCKET, SO_TIMESTAMPNS, kHostGetSet},
    {SOL_SOCKET, SO_RXQ_OVFL, kHostGetSet},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE, kHostGetSet},
    {SOL_SOCKET, SO_INCOMING_CPU, kHostGetSet},
    {SOL_SOCKET, SO_MAX_PACING_RATE, kHostGetSet},
    {SOL_SOCKET, SO_MEMINFO, kHostGet},
    {SOL_SOCKET, SO_ACCEPTCONN, kHostGet},
    {SOL_SOCKET, SO_ERROR, kHostGet},
    // IPv4.
    {IPPROTO_IP, IP_TOS, kHostGetSet},
    {IPPROTO_IP, IP_TTL, kHostGetSet},
    {IPPROTO_IP, IP_MINTTL, kHostGetSet},
    {IPPROTO_IP, IP_OPTIONS, kHostGet},
    {IPPROTO_IP, IP_RECVOPTS, kHostGetSet},
    {IPPROTO_IP, IP_RETOPTS, kHostGetSet},
    {IPPROTO_IP, IP_PKTINFO, kHostGetSet},
    {IPPROTO_IP, IP_RECVTTL, kHostGetSet},
    {IPPROTO_IP, IP_RECVTOS, kHostGetSet},
    {IPPROTO_IP, IP_RECVERR, kHostGetSet},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, kHostGetSet},
    {IPPROTO_IP, IP_MTU_DISCOVER, kHostGetSet},
    {IPPROTO_IP, IP_MTU, kHostGet},
    {IPPROTO_IP, IP_FREEBIND, kHostGetSet},
    {IPPROTO_IP, IP_TRANSPARENT, kHostGetSet},  // to set it needs a capability that we do not have
    {IPPROTO_IP, IP_NODEFRAG, kHostGetSet},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, kHostGetSet},
    {IPPROTO_IP, kIpLocalPortRange, kHostGetSet},
    {IPPROTO_IP, IP_UNICAST_IF, kHostGetSet},
    {IPPROTO_IP, IP_MULTICAST_IF, kHostGetSet},
    {IPPROTO_IP, IP_MULTICAST_TTL, kHostGetSet},
    {IPPROTO_IP, IP_MULTICAST_LOOP, kHostGetSet},
    {IPPROTO_IP, IP_MULTICAST_ALL, kHostGetSet},
    {IPPROTO_IP, IP_ADD_MEMBERSHIP, kHostSet},
    {IPPROTO_IP, IP_DROP_MEMBERSHIP, kHostSet},
    {IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, kHostSet},
    {IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, kHostSet},
    {IPPROTO_IP, IP_BLOCK_SOURCE, kHostSet},
    {IPPROTO_IP, IP_UNBLOCK_SOURCE, kHostSet},
    {IPPROTO_IP, MCAST_JOIN_GROUP, kHostSet},
    {IPPROTO_IP, MCAST_LEAVE_GROUP, kHostSet},
    {IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, kHostSet},
    {IPPROTO_IP, MCAST_LEAVE_SOURCE_GROUP, kHostSet},
    {IPPROTO_IP, MCAST_BLOCK_SOURCE, kHostSet},
    {IPPROTO_IP, MCAST_UNBLOCK_SOURCE, kHostSet},
    // IPv6.
    {IPPROTO_IPV6, IPV6_V6ONLY, kHostGetSet},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_TCLASS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, kHostGetSet},
    {IPPROTO_IPV6, IPV6_MTU, kHostGetSet},
    {IPPROTO_IPV6, IPV6_DONTFRAG, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVERR, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVRTHDR, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU, kHostGetSet},
    {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, kHostGetSet},
    {IPPROTO_IPV6, IPV6_FLOWINFO, kHostGetSet},
    {IPPROTO_IPV6, IPV6_FLOWINFO_SEND, kHostGetSet},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, kHostGetSet},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, kHostGetSet},
    {IPPROTO_IPV6, IPV6_FREEBIND, kHostGetSet},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, kHostGetSet},  // as IP_TRANSPARENT
    {IPPROTO_IPV6, kIpv6UnicastIf, kHostGetSet},
    {IPPROTO_IPV6, IPV6_MULTICAST_IF, kHostGetSet},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, kHostGetSet},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, kHostGetSet},
    {IPPROTO_IPV6, kIpv6MulticastAll, kHostGetSet},
    {IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, kHostSet},
    {IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, kHostSet},
    {IPPROTO_IPV6, MCAST_JOIN_GROUP, kHostSet},
    {IPPROTO_IPV6, MCAST_LEAVE_GROUP, kHostSet},
    {IPPROTO_IPV6, MCAST_JOIN_SOURCE_GROUP, kHostSet},
    {IPPROTO_IPV6, MCAST_LEAVE_SOURCE_GROUP, kHostSet},
    {IPPROTO_IPV6, MCAST_BLOCK_SOURCE, kHostSet},
    {IPPROTO_IPV6, MCAST_UNBLOCK_SOURCE, kHostSet},
    // TCP.
    {IPPROTO_TCP, TCP_NODELAY, kHostGetSet},
    {IPPROTO_TCP, TCP_MAXSEG, kHostGetSet},
    {IPPROTO_TCP, TCP_CORK, kHostGetSet},
    {IPPROTO_TCP, TCP_KEEPIDLE, kHostGetSet},
    {IPPROTO_TCP, TCP_KEEPINTVL, kHostGetSet},
    {IPPROTO_TCP, TCP_KEEPCNT, kHostGetSet},
    {IPPROTO_TCP, TCP_SYNCNT, kHostGetSet},
    {IPPROTO_TCP, TCP_LINGER2, kHostGetSet},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, kHostGetSet},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, kHostGetSet},
    {IPPROTO_TCP, TCP_QUICKACK, kHostGetSet},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, kHostGetSet},
    {IPPROTO_TCP, TCP_FASTOPEN, kHostGetSet},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, kHostGetSet},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, kHostGetSet},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, kHostGetSet},
    {IPPROTO_TCP, TCP_INQ, kHostGetSet},
    {IPPROTO_TCP, TCP_TIMESTAMP, kHostGet},
    // Other algorithms than those that anybody may choose need a capability that we do not have.
    {IPPROTO_TCP, TCP_CONGESTION, kHostGetSet},
    {IPPROTO_TCP, TCP_INFO, kHostGet},
    {IPPROTO_TCP, TCP_CC_INFO, kHostGet},
    // UDP, with its segmentation, as QUIC uses it.
    {IPPROTO_UDP, UDP_CORK, kHostGetSet},
    {IPPROTO_UDP, UDP_SEGMENT, kHostGetSet},
    {IPPROTO_UDP, UDP_GRO, kHostGetSet},
};

constexpr bool HostOptionAllowed(int level, int name, HostOptionUse use) {
  for (const HostOption& o : kHostOptions) {
    if (o.level == level && o.name == name) return (o.use & use) == use;
  }
  return false;
}

// Control messages that a guest may send to the host (never SCM_RIGHTS, which says nothing on these
// sockets anyway), and that it may get.
struct HostControl {
  int level;
  int type;
};
inline constexpr HostControl kHostSendControl[] = {
    {IPPROTO_IP, IP_PKTINFO},      {IPPROTO_IP, IP_TTL},          {IPPROTO_IP, IP_TOS},
    {IPPROTO_IPV6, IPV6_PKTINFO},  {IPPROTO_IPV6, IPV6_TCLASS},   {IPPROTO_IPV6, IPV6_HOPLIMIT},
    {IPPROTO_IPV6, IPV6_DONTFRAG}, {IPPROTO_IPV6, IPV6_FLOWINFO}, {IPPROTO_UDP, UDP_SEGMENT},
};
inline constexpr HostControl kHostReceiveControl[] = {
    {SOL_SOCKET, SCM_TIMESTAMP},      {SOL_SOCKET, SCM_TIMESTAMPNS}, {SOL_SOCKET, SO_RXQ_OVFL},
    {IPPROTO_IP, IP_PKTINFO},         {IPPROTO_IP, IP_TTL},          {IPPROTO_IP, IP_TOS},
    {IPPROTO_IP, IP_RECVOPTS},        {IPPROTO_IP, IP_RETOPTS},      {IPPROTO_IP, IP_RECVERR},
    {IPPROTO_IP, IP_ORIGDSTADDR},     {IPPROTO_IPV6, IPV6_PKTINFO},  {IPPROTO_IPV6, IPV6_HOPLIMIT},
    {IPPROTO_IPV6, IPV6_TCLASS},      {IPPROTO_IPV6, IPV6_RECVERR},  {IPPROTO_IPV6, IPV6_RTHDR},
    {IPPROTO_IPV6, IPV6_HOPOPTS},     {IPPROTO_IPV6, IPV6_DSTOPTS},  {IPPROTO_IPV6, IPV6_PATHMTU},
    {IPPROTO_IPV6, IPV6_ORIGDSTADDR}, {IPPROTO_IPV6, IPV6_FLOWINFO}, {IPPROTO_TCP, TCP_CM_INQ},
    {IPPROTO_UDP, UDP_GRO},
};

template <size_t N>
constexpr bool HostControlAllowed(const HostControl (&list)[N], int level, int type) {
  for (const HostControl& c : list) {
    if (c.level == level && c.type == type) return true;
  }
  return false;
}

// The kinds of sockets that are made: those that need no capability.
struct HostSocketKind {
  int family, type, protocol;
};
inline constexpr HostSocketKind kHostSocketKinds[] = {
    {AF_INET, SOCK_STREAM, IPPROTO_TCP}, {AF_INET6, SOCK_STREAM, IPPROTO_TCP},
    {AF_INET, SOCK_DGRAM, IPPROTO_UDP},  {AF_INET6, SOCK_DGRAM, IPPROTO_UDP},
    {AF_INET, SOCK_DGRAM, IPPROTO_ICMP}, {AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6},
};
// Host sockets never block a thread.
inline constexpr int kHostSocketFlags = SOCK_NONBLOCK | SOCK_CLOEXEC;

}  // namespace sentry
