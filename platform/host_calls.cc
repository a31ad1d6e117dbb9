#include "platform/host_calls.h"

#include <seccomp.h>
#include <sys/socket.h>
#include <csignal>

namespace platform {

int AllowHostCalls(void* filter) {
  // Processes are named by their numbers in the sandbox's PID namespace, where there are only the
  // sentry and its stubs.
  constexpr int kPlain[] = {
      SCMP_SYS(process_vm_readv),  // memory of the guest
      SCMP_SYS(process_vm_writev),
      SCMP_SYS(tgkill),      // interrupts a stub's thread
      SCMP_SYS(pidfd_open),  // one for each stub, to learn of its end
      SCMP_SYS(waitid),      // reaps stubs
      SCMP_SYS(wait4),
  };
  for (int call : kPlain) {
    int rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
    if (rc != 0) return rc;
  }
  // The end of a stub, and of the zygote.
  int rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(pidfd_send_signal), 1,
                            SCMP_A1(SCMP_CMP_EQ, SIGKILL));
  if (rc != 0) return rc;
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, SCMP_A1(SCMP_CMP_EQ, SIGKILL));
  if (rc != 0) return rc;
  // The socket of a new stub.
  return seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socketpair), 1,
                          SCMP_A0(SCMP_CMP_EQ, AF_UNIX));
}

}  // namespace platform
