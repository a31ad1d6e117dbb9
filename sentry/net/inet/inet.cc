#include "sentry/net/inet/inet.h"

#include <netinet/in.h>

#include "sentry/net/inet/tcp_socket.h"

namespace sentry {

using base::Error;
using base::Result;

// inet_create().
Result<base::Ref<FileDescription>> NewInetSocket(Task& t, Vfs& vfs, int domain, int type,
                                                 int protocol, uint32_t flags) {
  if (protocol < 0 || protocol >= IPPROTO_MAX) return Error(EINVAL);
  base::Ref<InetStack> stack = InetStack::Current(t);
  switch (type) {
    case SOCK_STREAM:
      if (protocol != IPPROTO_IP && protocol != IPPROTO_TCP) return Error(EPROTONOSUPPORT);
      return base::Ref<FileDescription>(base::MakeRef<TcpSocket>(
          vfs, base::MakeRef<TcpEndpoint>(std::move(stack), domain), flags));
    default:
      return Error(ESOCKTNOSUPPORT);
  }
}

}  // namespace sentry
