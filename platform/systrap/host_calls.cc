#include "platform/host_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include <cstdint>
#include <vector>

#include "platform/mailbox.h"

namespace platform {
namespace {

struct Rule {
  int call;
  std::vector<scmp_arg_cmp> args;
};

std::vector<Rule> Rules() {
  const uint64_t futex_flags = FUTEX_CLOCK_REALTIME;
  return {
      // Guest memory that the mailbox does not hold. The host allows it for our own children alone.
      {SCMP_SYS(process_vm_readv), {SCMP_A5(SCMP_CMP_EQ, 0)}},
      {SCMP_SYS(process_vm_writev), {SCMP_A5(SCMP_CMP_EQ, 0)}},
      // Doorbell and answers: words that stubs share (no FUTEX_PRIVATE_FLAG).
      {SCMP_SYS(futex), {SCMP_A1(SCMP_CMP_EQ, FUTEX_WAKE)}},
      {SCMP_SYS(futex), {SCMP_A1(SCMP_CMP_MASKED_EQ, ~futex_flags, FUTEX_WAIT_BITSET)}},
      // The interrupt of a guest thread.
      {SCMP_SYS(tgkill), {SCMP_A2(SCMP_CMP_EQ, kInterruptSignal)}},
      // Whether a thread belongs to a stub.
      {SCMP_SYS(tgkill), {SCMP_A2(SCMP_CMP_EQ, 0)}},
      // Stubs: known and killed by descriptor, reaped when they end.
      {SCMP_SYS(pidfd_open), {SCMP_A1(SCMP_CMP_EQ, 0)}},
      {SCMP_SYS(pidfd_send_signal), {SCMP_A1(SCMP_CMP_EQ, SIGKILL), SCMP_A3(SCMP_CMP_EQ, 0)}},
      {SCMP_SYS(waitid), {SCMP_A0(SCMP_CMP_EQ, P_PIDFD)}},
      // Stubs' process groups, by which unreported clones are known, killed and reaped. Reaches own
      // children, and with kill nothing outside of the own PID namespace.
      {SCMP_SYS(getpgid), {}},
      {SCMP_SYS(setpgid), {}},
      {SCMP_SYS(kill), {SCMP_A1(SCMP_CMP_EQ, SIGKILL)}},
      {SCMP_SYS(kill), {SCMP_A1(SCMP_CMP_EQ, 0)}},
      {SCMP_SYS(waitid), {SCMP_A0(SCMP_CMP_EQ, P_PGID)}},
      // Where guest threads wake up: not on the poller's core if another one is free.
      {SCMP_SYS(sched_setaffinity), {SCMP_A1(SCMP_CMP_EQ, sizeof(cpu_set_t))}},
      // The call gate: what a stub asks, the descriptor that goes with it, and the answer.
      {SCMP_SYS(ioctl), {SCMP_A1(SCMP_CMP_EQ, SECCOMP_IOCTL_NOTIF_RECV)}},
      {SCMP_SYS(ioctl), {SCMP_A1(SCMP_CMP_EQ, SECCOMP_IOCTL_NOTIF_ADDFD)}},
      {SCMP_SYS(ioctl), {SCMP_A1(SCMP_CMP_EQ, SECCOMP_IOCTL_NOTIF_SEND)}},
      {SCMP_SYS(ppoll), {SCMP_A1(SCMP_CMP_EQ, 2)}},
      {SCMP_SYS(epoll_ctl), {}},
      {SCMP_SYS(epoll_pwait), {SCMP_A4(SCMP_CMP_EQ, 0)}},
      // The keeper's eventfd.
      {SCMP_SYS(preadv2), {SCMP_A2(SCMP_CMP_EQ, 1)}},
      {SCMP_SYS(write), {SCMP_A2(SCMP_CMP_EQ, sizeof(uint64_t))}},
      // A new address space: its mailbox, its socket, and the request to the zygote.
      {SCMP_SYS(memfd_create), {SCMP_A1(SCMP_CMP_EQ, MFD_CLOEXEC | MFD_ALLOW_SEALING)}},
      {SCMP_SYS(ftruncate), {SCMP_A1(SCMP_CMP_EQ, kMailboxSize)}},
      {SCMP_SYS(fcntl),
       {SCMP_A1(SCMP_CMP_EQ, F_ADD_SEALS),
        SCMP_A2(SCMP_CMP_EQ, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)}},
      {SCMP_SYS(mmap),
       {SCMP_A1(SCMP_CMP_EQ, kMailboxSize), SCMP_A2(SCMP_CMP_EQ, PROT_READ | PROT_WRITE),
        SCMP_A3(SCMP_CMP_EQ, MAP_SHARED)}},
      {SCMP_SYS(munmap), {}},
      {SCMP_SYS(close), {}},
      {SCMP_SYS(socketpair),
       {SCMP_A0(SCMP_CMP_EQ, AF_UNIX), SCMP_A1(SCMP_CMP_EQ, SOCK_SEQPACKET | SOCK_CLOEXEC),
        SCMP_A2(SCMP_CMP_EQ, 0)}},
      {SCMP_SYS(getrandom), {SCMP_A2(SCMP_CMP_EQ, 0)}},
      // Those of a stub that has ended, for the next one: how much is in the one, and what is left
      // in the other.
      {SCMP_SYS(fstat), {}},
      {SCMP_SYS(recvmsg), {SCMP_A2(SCMP_CMP_EQ, MSG_DONTWAIT)}},
      // Descriptors to the zygote and to stubs, which alone are at the other ends; the zygote's
      // answers.
      {SCMP_SYS(sendmsg), {SCMP_A2(SCMP_CMP_EQ, MSG_NOSIGNAL | MSG_DONTWAIT)}},
      {SCMP_SYS(recvmsg), {SCMP_A2(SCMP_CMP_EQ, 0)}},
      // Whether the poller was preempted, so that its spinning is in somebody's way.
      {SCMP_SYS(getrusage), {SCMP_A0(SCMP_CMP_EQ, RUSAGE_THREAD)}},
      // Time for deadlines, and the CPU time of stubs.
      {SCMP_SYS(clock_gettime), {}},
  };
}

// The ptrace platform's tracer. ptrace(2) reaches those that the calling thread traces alone, and
// with these requests nobody begins to be.
std::vector<Rule> TracerRules() {
  std::vector<Rule> rules;
  for (int request : {
           PTRACE_SYSEMU, PTRACE_SYSCALL, PTRACE_LISTEN,  // lets a stopped stub go on
           PTRACE_DETACH,                                 // at its end
           PTRACE_GET_SYSCALL_INFO, PTRACE_GETREGS,       // its call
           PTRACE_SETREGS, PTRACE_POKEUSER,               // which is not made, or begins anew
           PTRACE_SETSIGINFO,                             // what its handler is told of the call
       }) {
    rules.push_back({SCMP_SYS(ptrace), {SCMP_A0(SCMP_CMP_EQ, static_cast<uint64_t>(request))}});
  }
  // What has stopped or ended of those that it traces; its threads, which have no other parent.
  const uint64_t ours = static_cast<uint32_t>(__WALL | __WNOTHREAD);
  for (uint64_t options : {WSTOPPED | WEXITED | WNOWAIT, WSTOPPED | WNOHANG}) {
    rules.push_back(
        {SCMP_SYS(waitid),
         {SCMP_A0(SCMP_CMP_EQ, P_ALL), SCMP_A3(SCMP_CMP_MASKED_EQ, 0xffff'ffff, options | ours)}});
  }
  rules.push_back({SCMP_SYS(waitid),
                   {SCMP_A0(SCMP_CMP_EQ, P_PID),
                    SCMP_A3(SCMP_CMP_MASKED_EQ, 0xffff'ffff, WEXITED | WNOHANG | ours)}});
  return rules;
}

}  // namespace

int AllowHostCalls(void* filter, bool traced) {
  std::vector<Rule> rules = Rules();
  if (traced) {
    std::vector<Rule> more = TracerRules();
    rules.insert(rules.end(), more.begin(), more.end());
  }
  for (const Rule& rule : rules) {
    int r = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, rule.call,
                                   static_cast<unsigned>(rule.args.size()), rule.args.data());
    if (r != 0 && r != -EEXIST) return r;
  }
  return 0;
}

}  // namespace platform
