#include "sentry/boot/host_calls.h"

#include <asm/ioctls.h>
#include <fcntl.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "sentry/base/memory_file.h"

namespace sentry {
namespace {

// Calls that are harmless with any argument: they act on descriptors that the sentry was given, on
// its own memory or on itself.
constexpr int kPlain[] = {
    // Bytes of donated files, pipes, terminals and of the sentry's own memory files, at a position
    // or at the file's own; what is written on standard error at a bad end.
    SCMP_SYS(preadv2), SCMP_SYS(pwritev2), SCMP_SYS(write),
    SCMP_SYS(fstat),      // attributes after a write, identity of what the gofer sent
    SCMP_SYS(lseek),      // sizes, and SEEK_DATA and SEEK_HOLE of guest files
    SCMP_SYS(ftruncate),  // the guest's truncate, and sizes of memory files
    SCMP_SYS(fallocate),  // the guest's fallocate, and holes in memory files
    SCMP_SYS(fsync), SCMP_SYS(fdatasync),  // the guest's
    SCMP_SYS(memfd_create),                // tmpfs, shared anonymous memory, pipes' rings
    SCMP_SYS(close),                       // descriptors' lives; duplicates by fcntl
    // Messages on existing sockets: gofer, control, stubs.
    SCMP_SYS(sendmsg), SCMP_SYS(recvmsg),
    SCMP_SYS(accept4),   // the control socket alone listens
    SCMP_SYS(shutdown),  // ends the gofer's connection
    // Waiting.
    SCMP_SYS(ppoll), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_pwait),
    SCMP_SYS(futex),            // locks, and waiting workers
    SCMP_SYS(clock_nanosleep),  // back-off of spin locks
    SCMP_SYS(restart_syscall),  // after a stop and continue of the sentry by the host
    // The sentry's own heap and stacks; mmap and mprotect are below.
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise),
    // Threads: their start, identity and end.
    SCMP_SYS(set_robust_list), SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(exit),
    SCMP_SYS(exit_group), SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),  // how many processors there are
    // Signals to itself: handlers, masks, their end; abort raises SIGABRT by tgkill (below).
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
    // Clocks, where the vDSO cannot answer, and accounting for /proc.
    SCMP_SYS(clock_gettime), SCMP_SYS(getrusage), SCMP_SYS(sysinfo),
    SCMP_SYS(getrandom),  // the guest's random numbers
};

// fcntl commands: status flags of donated files, duplicates that stay close-on-exec, seals of the
// sentry's memory files, the size of donated pipes, and record locks on donated files.
constexpr int kFcntl[] = {F_GETFL,         F_SETFL,     F_GETFD,     F_SETFD,
                          F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS, F_GETPIPE_SZ,
                          F_SETPIPE_SZ,    F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW};

// ioctls: what is in a donated pipe, and the state and size of a donated terminal. Never TIOCSTI.
constexpr int kIoctl[] = {FIONREAD, FIONBIO, TCGETS,     TCSETS,     TCSETSW, TCSETSF,
                          TCFLSH,   TCSBRK,  TIOCGWINSZ, TIOCSWINSZ, TIOCOUTQ};

// prctl: names of threads, and of memory regions, for whoever looks at the host's /proc.
constexpr int kPrctl[] = {PR_SET_NAME, PR_GET_NAME, 0x53564d41 /* PR_SET_VMA */};

template <size_t N>
int AllowEach(scmp_filter_ctx filter, int call, unsigned argument, const int (&values)[N]) {
  for (int value : values) {
    // Commands are ints: the kernel ignores the upper half, and so must the comparison.
    scmp_arg_cmp cmp = {argument, SCMP_CMP_MASKED_EQ, 0xffffffffU, static_cast<uint32_t>(value)};
    int rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1, cmp);
    if (rc != 0) return rc;
  }
  return 0;
}

}  // namespace

int AllowSentryHostCalls(void* filter) {
  int rc = 0;
  for (int call : kPlain) {
    rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0);
    if (rc != 0) return rc;
  }
  if ((rc = AllowEach(filter, SCMP_SYS(fcntl), 1, kFcntl)) != 0) return rc;
  if ((rc = AllowEach(filter, SCMP_SYS(ioctl), 1, kIoctl)) != 0) return rc;
  if ((rc = AllowEach(filter, SCMP_SYS(prctl), 0, kPrctl)) != 0) return rc;

  // getrlimit of the sentry itself, as libc makes it.
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2, SCMP_A0(SCMP_CMP_EQ, 0),
                        SCMP_A2(SCMP_CMP_EQ, 0));
  if (rc != 0) return rc;

  // Memory is never executable: code of the guest runs in stubs alone.
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
  if (rc != 0) return rc;
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                        SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
  if (rc != 0) return rc;

  // Memory files with two descriptions, in a directory of their own. A path that begins with a
  // slash would count from the empty root, which is read-only.
  const int dir = base::MemoryDirectory();
  if (dir >= 0) {
    for (int flags : {base::MemoryFile::kCreateFlags, base::MemoryFile::kReadOnlyFlags}) {
      rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(openat), 2,
                            SCMP_A0(SCMP_CMP_EQ, static_cast<uint64_t>(dir)),
                            SCMP_A2(SCMP_CMP_EQ, static_cast<uint64_t>(flags)));
      if (rc != 0) return rc;
    }
    rc =
        seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(unlinkat), 2,
                         SCMP_A0(SCMP_CMP_EQ, static_cast<uint64_t>(dir)), SCMP_A2(SCMP_CMP_EQ, 0));
    if (rc != 0) return rc;
  }

  // Threads, exactly as pthread_create makes them. clone3 hides its flags in memory: libc is told
  // that it does not exist and falls back.
  constexpr uint64_t kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                               CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID |
                               CLONE_CHILD_CLEARTID;
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_EQ, kThread));
  if (rc != 0) return rc;
  rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  if (rc != 0) return rc;

  // The break does not move, and malloc maps what it needs instead. The call returns a break, no
  // error: one below the wish.
  rc = seccomp_rule_add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(brk), 0);
  if (rc != 0) return rc;

  // Who asks on the control socket, and errors of non-blocking sockets.
  rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(getsockopt), 1,
                        SCMP_A1(SCMP_CMP_EQ, SOL_SOCKET));
  if (rc != 0) return rc;
  // What the host's membarrier can do, and its barrier for all processes, for the guest's: it only
  // waits.
  for (uint32_t command : {0u, 1u}) {
    rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(membarrier), 2,
                          SCMP_A0(SCMP_CMP_EQ, command), SCMP_A1(SCMP_CMP_EQ, 0));
    if (rc != 0) return rc;
  }
  // abort(): the sentry is process 1 of its PID namespace.
  return seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, 1));
}

}  // namespace sentry
