// The filter's part for --network=host: sockets of IPv4 and IPv6 that need no capability, in the
// one network namespace that the process is in. (It cannot make an AF_UNIX socket, so names of the
// abstract namespace there stay out of reach; nor AF_NETLINK, AF_PACKET or raw ones.)
#include <linux/sockios.h>
#include <seccomp.h>
#include <sys/socket.h>

#include <cstdint>

#include "sentry/boot/host_calls.h"
#include "sentry/net/host/options.h"

namespace sentry {
namespace {

// Calls that act on a socket that there is, and whose addresses the host reads from memory, where a
// filter cannot look. Sockets of AF_UNIX that the sentry has are connected or listen already.
constexpr int kPlain[] = {
    SCMP_SYS(bind), SCMP_SYS(connect), SCMP_SYS(listen),  // the guest's; accept4 and shutdown are
                                                          // everybody's
    SCMP_SYS(getsockname), SCMP_SYS(getpeername),         // the guest's, and /proc/net/tcp
};

// In addition to FIONREAD and TIOCOUTQ (SIOCOUTQ): where urgent data is, and what was not sent.
constexpr uint32_t kIoctl[] = {SIOCATMARK, SIOCOUTQNSD};

// An argument that the kernel takes as an int.
scmp_arg_cmp Int(unsigned argument, int value) {
  return {argument, SCMP_CMP_MASKED_EQ, 0xffffffffU, static_cast<uint32_t>(value)};
}

}  // namespace

int AllowHostNetworkCalls(void* filter) {
  int rc = 0;
  for (int call : kPlain) {
    if ((rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0)) != 0) return rc;
  }
  for (const HostSocketKind& kind : kHostSocketKinds) {
    rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 3, Int(0, kind.family),
                          Int(1, kind.type | kHostSocketFlags), Int(2, kind.protocol));
    if (rc != 0) return rc;
  }
  for (const HostOption& o : kHostOptions) {
    // getsockopt of SOL_SOCKET is everybody's.
    if ((o.use & kHostGet) != 0 && o.level != SOL_SOCKET) {
      rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(getsockopt), 2, Int(1, o.level),
                            Int(2, o.name));
    }
    if (rc == 0 && (o.use & kHostSet) != 0) {
      rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 2, Int(1, o.level),
                            Int(2, o.name));
    }
    if (rc != 0) return rc;
  }
  for (uint32_t command : kIoctl) {
    rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                          Int(1, static_cast<int>(command)));
    if (rc != 0) return rc;
  }
  return 0;
}

}  // namespace sentry
