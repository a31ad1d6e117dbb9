#include "sentry/trace/symbols.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <span>

#include "sentry/base/result.h"
#include "sentry/trace/strace.h"

namespace sentry::trace {

namespace {

struct Name {
  uint64_t value;
  const char* name;
};
#define N(x) \
  Name { static_cast<uint64_t>(x), #x }

constexpr Name kOpen[] = {N(O_WRONLY),  N(O_RDWR),   N(O_CREAT),    N(O_EXCL),      N(O_NOCTTY),
                          N(O_TRUNC),   N(O_APPEND), N(O_NONBLOCK), N(O_DIRECTORY), N(O_NOFOLLOW),
                          N(O_CLOEXEC), N(O_PATH),   N(O_NOATIME),  N(O_DIRECT),    N(O_DSYNC)};
constexpr Name kProt[] = {N(PROT_READ), N(PROT_WRITE), N(PROT_EXEC)};
constexpr Name kMap[] = {
    N(MAP_SHARED), N(MAP_PRIVATE),   N(MAP_FIXED),     N(MAP_ANONYMOUS), N(MAP_NORESERVE),
    N(MAP_STACK),  N(MAP_GROWSDOWN), N(MAP_DENYWRITE), N(MAP_POPULATE),  N(MAP_FIXED_NOREPLACE)};
constexpr Name kClone[] = {N(CLONE_VM),           N(CLONE_FS),
                           N(CLONE_FILES),        N(CLONE_SIGHAND),
                           N(CLONE_PIDFD),        N(CLONE_VFORK),
                           N(CLONE_PARENT),       N(CLONE_THREAD),
                           N(CLONE_NEWNS),        N(CLONE_SYSVSEM),
                           N(CLONE_SETTLS),       N(CLONE_PARENT_SETTID),
                           N(CLONE_NEWUTS),       N(CLONE_CHILD_CLEARTID),
                           N(CLONE_CHILD_SETTID), N(CLONE_NEWIPC),
                           N(CLONE_NEWUSER),      N(CLONE_NEWPID),
                           N(CLONE_NEWNET)};
constexpr Name kAt[] = {N(AT_SYMLINK_NOFOLLOW), N(AT_REMOVEDIR), N(AT_SYMLINK_FOLLOW),
                        N(AT_EMPTY_PATH), N(AT_NO_AUTOMOUNT)};
constexpr Name kHow[] = {N(SIG_BLOCK), N(SIG_UNBLOCK), N(SIG_SETMASK)};
constexpr Name kWait[] = {N(WNOHANG), N(WUNTRACED), N(WCONTINUED)};
constexpr Name kClock[] = {N(CLOCK_REALTIME), N(CLOCK_MONOTONIC), N(CLOCK_PROCESS_CPUTIME_ID),
                           N(CLOCK_THREAD_CPUTIME_ID)};
constexpr Name kFcntl[] = {N(F_DUPFD), N(F_GETFD),  N(F_SETFD), N(F_GETFL),        N(F_SETFL),
                           N(F_SETLK), N(F_SETLKW), N(F_GETLK), N(F_DUPFD_CLOEXEC)};
constexpr Name kWhence[] = {N(SEEK_SET), N(SEEK_CUR), N(SEEK_END), N(SEEK_DATA), N(SEEK_HOLE)};
constexpr Name kFutex[] = {N(FUTEX_WAIT),
                           N(FUTEX_WAKE),
                           N(FUTEX_WAIT_PRIVATE),
                           N(FUTEX_WAKE_PRIVATE),
                           N(FUTEX_WAIT_BITSET_PRIVATE),
                           N(FUTEX_WAKE_BITSET_PRIVATE)};
#undef N

std::string Join(std::span<const Name> names, uint64_t value, const char* zero) {
  if (value == 0) return zero;
  std::string out;
  for (const Name& n : names) {
    if ((value & n.value) != n.value) continue;
    if (!out.empty()) out += '|';
    out += n.name;
    value &= ~n.value;
  }
  if (value != 0) out += fmt::format("{}{:#x}", out.empty() ? "" : "|", value);
  return out;
}

std::string Pick(std::span<const Name> names, uint64_t value) {
  for (const Name& n : names) {
    if (n.value == value) return n.name;
  }
  return fmt::format("{}", static_cast<int64_t>(value));
}

}  // namespace

std::string FlagNames(int nr, size_t arg, uint64_t v) {
  switch (nr) {
    case SYS_open:
    case SYS_openat:
      if ((v & O_ACCMODE) == O_RDONLY) {
        return v == 0 ? "O_RDONLY" : "O_RDONLY|" + Join(kOpen, v, "0");
      }
      return Join(kOpen, v, "0");
    case SYS_pipe2:
    case SYS_dup3:
      return Join(kOpen, v, "0");
    case SYS_mmap:
      return arg == 2 ? Join(kProt, v, "PROT_NONE") : Join(kMap, v, "0");
    case SYS_mprotect:
      return Join(kProt, v, "PROT_NONE");
    case SYS_clone:
      return Join(kClone, v & ~uint64_t{0xff}, "0") +
             (SignalName(static_cast<int>(v & 0xff))
                  ? std::string("|") + SignalName(static_cast<int>(v & 0xff))
                  : "");
    case SYS_unshare:
      return Join(kClone, v, "0");
    case SYS_wait4:
    case SYS_waitid:
      return Join(kWait, v, "0");
    case SYS_newfstatat:
    case SYS_unlinkat:
    case SYS_linkat:
    case SYS_statx:
    case SYS_execveat:
    case SYS_fchownat:
      return Join(kAt, v, "0");
    default:
      return fmt::format("{:#x}", v);
  }
}

std::string ValueName(int nr, size_t arg, uint64_t v) {
  switch (nr) {
    case SYS_rt_sigprocmask:
      return Pick(kHow, v);
    case SYS_clock_gettime:
    case SYS_clock_nanosleep:
    case SYS_clock_getres:
      if (arg == 0) return Pick(kClock, v);
      break;
    case SYS_fcntl:
      if (arg == 1) return Pick(kFcntl, v);
      break;
    case SYS_lseek:
      return Pick(kWhence, v);
    case SYS_futex:
      if (arg == 1) return Pick(kFutex, v);
      break;
    case SYS_wait4:
    case SYS_waitid:
      if (arg == 2) return Join(kWait, v, "0");
      break;
    default:
      break;
  }
  return v > 0xffffff && static_cast<int64_t>(v) > 0 ? fmt::format("{:#x}", v)
                                                     : fmt::format("{}", static_cast<int64_t>(v));
}

const char* ErrnoName(int code) {
  switch (code) {
    case base::kERESTARTSYS:
      return "ERESTARTSYS";
    case base::kERESTARTNOINTR:
      return "ERESTARTNOINTR";
    case base::kERESTARTNOHAND:
      return "ERESTARTNOHAND";
    case base::kERESTART_RESTARTBLOCK:
      return "ERESTART_RESTARTBLOCK";
    default:
      return strerrorname_np(code);
  }
}

const char* SignalName(int signo) {
  static constexpr const char* kNames[] = {
      nullptr,     "SIGHUP",  "SIGINT",    "SIGQUIT", "SIGILL",   "SIGTRAP", "SIGABRT", "SIGBUS",
      "SIGFPE",    "SIGKILL", "SIGUSR1",   "SIGSEGV", "SIGUSR2",  "SIGPIPE", "SIGALRM", "SIGTERM",
      "SIGSTKFLT", "SIGCHLD", "SIGCONT",   "SIGSTOP", "SIGTSTP",  "SIGTTIN", "SIGTTOU", "SIGURG",
      "SIGXCPU",   "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO",   "SIGPWR",  "SIGSYS"};
  return signo > 0 && signo < 32 ? kNames[signo] : nullptr;
}

}  // namespace sentry::trace
