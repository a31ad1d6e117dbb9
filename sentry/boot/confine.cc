#include "sentry/boot/confine.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "sentry/base/host_fd.h"
#include "sentry/base/memory_file.h"
#include "sentry/boot/host_calls.h"

extern const char __ehdr_start __attribute__((visibility("hidden")));  // of the linker

namespace sentry {
namespace {

constexpr rlim_t kMaxHostTasks = 32768;
// Descriptors of which the host has room in its table from the start.
constexpr rlim_t kRoomForDescriptors = 16 * 1024;
constexpr int kMaxFrames = 24;
constexpr uintptr_t kMaxFrameBytes = 64 << 10;
constexpr uintptr_t kMaxProgramBytes = 1 << 30;

bool Fail(std::string* why, const char* step) {
  *why = std::string(step) + ": " + strerror(errno);
  return false;
}

// Writes `text` and then `n` in the given base; async-signal-safe.
void Put(const char* text, unsigned long n, unsigned base) {
  char buffer[24];
  char* at = buffer + sizeof(buffer);
  do {
    *--at = "0123456789abcdef"[n % base];
    n /= base;
  } while (n > 0);
  [[maybe_unused]] ssize_t w = write(STDERR_FILENO, text, strlen(text));
  w = write(STDERR_FILENO, at, buffer + sizeof(buffer) - at);
}

// Names the call and its callers, as addresses that addr2line takes. The frames are followed as far
// as they look like frames: libc's own code keeps none.
void OnRefusedCall(int, siginfo_t* info, void* context) {
  const auto base = reinterpret_cast<uintptr_t>(&__ehdr_start);
  Put("sentry: refused host call ", static_cast<unsigned long>(info->si_syscall), 10);
  Put(" at 0x", reinterpret_cast<uintptr_t>(info->si_call_addr) - base, 16);
  const greg_t* regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  auto low = static_cast<uintptr_t>(regs[REG_RSP]);
  auto frame = static_cast<uintptr_t>(regs[REG_RBP]);
  for (int i = 0; i < kMaxFrames; ++i) {
    if (frame % 8 != 0 || frame < low || frame - low > kMaxFrameBytes) break;
    const auto* words = reinterpret_cast<const uintptr_t*>(frame);
    if (words[1] - base > kMaxProgramBytes) break;
    Put(" 0x", words[1] - base, 16);
    low = frame + 16;
    frame = words[0];
  }
  [[maybe_unused]] ssize_t w = write(STDERR_FILENO, "\n", 1);
  _exit(128 + SIGSYS);
}

}  // namespace

bool PrepareMounts(std::string* why) {
  if (getpid() != 1) {
    *why = "PID namespace: the sentry is not its first process";
    return false;
  }
  if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return Fail(why, "mount namespace: make the mounts private");
  }
  // Refused where the host hides parts of its own /proc; what needs it finds out.
  (void)mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr);
  return true;
}

bool OpenMemoryDirectory(std::string* why) {
  // Its files are memory of guests, who may execute it. Cgroups bound its size.
  if (mount("runsc-memory", "/proc", "tmpfs", MS_NOSUID | MS_NODEV,
            "size=0,nr_inodes=0,mode=700") != 0) {
    return Fail(why, "memory files: mount a tmpfs");
  }
  base::UniqueFd dir(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!dir.valid()) return Fail(why, "memory files: open the tmpfs");
  if (umount2("/proc", MNT_DETACH) != 0) return Fail(why, "memory files: detach the tmpfs");
  base::SetMemoryDirectory(std::move(dir));
  return true;
}

bool EnterEmptyRoot(std::string* why) {
  constexpr unsigned long kFlags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  if (mount("runsc-root", "/proc", "tmpfs", kFlags, "size=4k,nr_inodes=2,mode=555") != 0) {
    return Fail(why, "empty root: mount a tmpfs");
  }
  if (chdir("/proc") != 0) return Fail(why, "empty root: chdir");
  if (syscall(SYS_pivot_root, ".", ".") != 0) return Fail(why, "empty root: pivot_root");
  if (umount2(".", MNT_DETACH) != 0) return Fail(why, "empty root: unmount the old root");
  if (chdir("/") != 0) return Fail(why, "empty root: chdir to /");
  if (mount(nullptr, "/", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY | kFlags, nullptr) != 0) {
    return Fail(why, "empty root: make it read-only");
  }
  return true;
}

bool LimitResources(std::string* why) {
  rlimit limit{0, 0};
  if (setrlimit(RLIMIT_CORE, &limit) != 0) return Fail(why, "resource limits: RLIMIT_CORE");
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return Fail(why, "resource limits: RLIMIT_NOFILE");
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return Fail(why, "resource limits: RLIMIT_NOFILE");
  // Room in the host's table of descriptors, before there are threads, as in gofer/run.cc: for
  // those that the sentry keeps for the next open.
  const auto highest = static_cast<int>(std::min(limit.rlim_cur, kRoomForDescriptors)) - 1;
  base::UniqueFd(fcntl(2, F_DUPFD_CLOEXEC, highest)).reset();
  if (getrlimit(RLIMIT_NPROC, &limit) != 0) return Fail(why, "resource limits: RLIMIT_NPROC");
  limit.rlim_max = std::min(limit.rlim_max, kMaxHostTasks);
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NPROC, &limit) != 0) return Fail(why, "resource limits: RLIMIT_NPROC");
  return true;
}

bool CloseFrom(int first, std::string* why) {
  if (syscall(SYS_close_range, first, ~0U, 0) != 0) return Fail(why, "descriptors: close_range");
  return true;
}

bool DropCapabilities(std::string* why) {
  // With these bits, locked, user id 0 means nothing to exec or to changes of id.
  constexpr unsigned long kBits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
                                  SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                                  SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
  if (prctl(PR_SET_SECUREBITS, kBits, 0, 0, 0) != 0) return Fail(why, "capabilities: securebits");
  for (unsigned long cap = 0; cap < 64; ++cap) {
    if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0 && errno != EINVAL) {
      return Fail(why, "capabilities: bounding set");
    }
  }
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) {
    return Fail(why, "capabilities: ambient set");
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (syscall(SYS_capset, &header, data) != 0) return Fail(why, "capabilities: capset");
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return Fail(why, "no_new_privs");
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return Fail(why, "dumpable");
  return true;
}

bool InstallFilter(const FilterContribution& contribution, bool diagnose, std::string* why) {
  if (diagnose) {
    struct sigaction action {};
    action.sa_sigaction = OnRefusedCall;
    action.sa_flags = SA_SIGINFO;
    if (sigaction(SIGSYS, &action, nullptr) != 0) return Fail(why, "system call filter: sigaction");
  }
  auto fail = [&](const char* step, int rc) {
    errno = -rc;
    return Fail(why, step);
  };
  scmp_filter_ctx filter = seccomp_init(diagnose ? SCMP_ACT_TRAP : SCMP_ACT_KILL_PROCESS);
  if (filter == nullptr) return fail("system call filter: seccomp_init", -ENOMEM);
  int rc = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
  // A tree of the numbers instead of a list: the common calls pay a few comparisons, not a hundred.
  if (rc == 0) rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
  if (rc == 0) rc = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
  if (rc == 0) rc = AllowSentryHostCalls(filter);
  if (rc == 0 && contribution) rc = contribution(filter);
  if (rc == 0) rc = seccomp_load(filter);
  seccomp_release(filter);
  if (rc != 0) return fail("system call filter", rc);
  return true;
}

}  // namespace sentry
