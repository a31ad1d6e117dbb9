#include "sentry/net/inet/inet.h"

#include <netinet/in.h>

#include "sentry/kernel/task.h"
#include "sentry/net/inet/raw_socket.h"
#include "sentry/net/inet/tcp_socket.h"
#include "sentry/net/inet/udp.h"

namespace sentry {

using base::Error;
using base::Result;

namespace {

template <typename T>
base::Ref<FileDescription> Datagrams(Vfs& vfs, base::Ref<T> endpoint, int protocol,
                                     uint32_t flags) {
  return base::MakeRef<DatagramSocket>(vfs, std::move(endpoint), SOCK_DGRAM, protocol, flags);
}

}  // namespace

// inet_create().
Result<base::Ref<FileDescription>> NewInetSocket(Task& t, Vfs& vfs, int domain, int type,
                                                 int protocol, uint32_t flags) {
  if (protocol < 0 || protocol >= IPPROTO_MAX) return Error(EINVAL);
  base::Ref<InetStack> stack = InetStack::Current(t);
  int icmp = domain == AF_INET ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6};
  switch (type) {
    case SOCK_STREAM:
      if (protocol != IPPROTO_IP && protocol != IPPROTO_TCP) return Error(EPROTONOSUPPORT);
      return base::Ref<FileDescription>(base::MakeRef<TcpSocket>(
          vfs, base::MakeRef<TcpEndpoint>(std::move(stack), domain), flags));
    case SOCK_DGRAM:
      if (protocol == icmp) {
        if (!PingEndpoint::Allowed(t, *stack)) return Error(EACCES);
        return Datagrams(vfs, base::MakeRef<PingEndpoint>(std::move(stack), domain), icmp, flags);
      }
      if (protocol != IPPROTO_IP && protocol != IPPROTO_UDP) return Error(EPROTONOSUPPORT);
      return Datagrams(vfs, base::MakeRef<UdpEndpoint>(std::move(stack), domain), IPPROTO_UDP,
                       flags);
    case SOCK_RAW:
      if (protocol == IPPROTO_IP) return Error(EPROTONOSUPPORT);
      if (!stack->HasCap(t, CAP_NET_RAW)) return Error(EPERM);
      return base::Ref<FileDescription>(base::MakeRef<RawSocket>(
          vfs, base::MakeRef<RawEndpoint>(std::move(stack), domain, protocol), flags));
    default:
      return Error(ESOCKTNOSUPPORT);
  }
}

}  // namespace sentry
