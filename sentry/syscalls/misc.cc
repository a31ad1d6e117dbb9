// Names of the system, random bytes, and calls that a Linux without the feature refuses.
#include <linux/kcmp.h>
#include <linux/reboot.h>
#include <sys/random.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "sentry/base/random.h"
#include "sentry/base/time.h"
#include "sentry/fs/epoll/epoll.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/kernel/inspect.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;
using base::UserPtr;

namespace {

constexpr size_t kUtsLength = 64;  // __NEW_UTS_LEN
constexpr size_t kCopyChunk = 4096;

template <size_t N>
void Put(char (&field)[N], std::string_view value) {
  memcpy(field, value.data(), std::min(value.size(), N - 1));
}

}  // namespace

Result<uint64_t> SysUname(Task& t, const SyscallArgs& a) {
  utsname u{};
  Put(u.sysname, "Linux");
  Put(u.nodename, t.uts_namespace().hostname());
  Put(u.release, kLinuxRelease);
  Put(u.version, kLinuxVersion);
  Put(u.machine, "x86_64");
  Put(u.domainname, t.uts_namespace().domainname());
  // personality(UNAME26): programs that cannot cope with version numbers from 3 on.
  if (t.personality & 0x0020000) {
    memset(u.release, 0, sizeof(u.release));
    Put(u.release, "2.6.60");
  }
  TRY(UserPtr<utsname>(a[0]).CopyOut(t.memory(), u));
  return 0;
}

namespace {
Result<std::string> CopyInName(Task& t, const SyscallArgs& a) {
  if (!t.creds().HasCapIn(CAP_SYS_ADMIN, *t.uts_namespace().user_ns())) return Error(EPERM);
  if (a.Int(1) < 0 || a[1] > kUtsLength) return Error(EINVAL);
  std::string name(a[1], '\0');
  TRY(t.memory().Read(a[0], std::as_writable_bytes(std::span(name))));
  return name.substr(0, std::min(name.find('\0'), name.size()));
}
}  // namespace

Result<uint64_t> SysSethostname(Task& t, const SyscallArgs& a) {
  t.uts_namespace().SetHostname(TRY(CopyInName(t, a)));
  return 0;
}

Result<uint64_t> SysSetdomainname(Task& t, const SyscallArgs& a) {
  t.uts_namespace().SetDomainname(TRY(CopyInName(t, a)));
  return 0;
}

Result<uint64_t> SysSysinfo(Task& t, const SyscallArgs& a) {
  Kernel& kernel = t.kernel();
  // The uptime and the load are the host's, as in /proc/uptime and /proc/loadavg.
  struct sysinfo host {};
  if (sysinfo(&host) != 0) return base::LastError();
  struct sysinfo info {};
  info.uptime = host.uptime;
  std::copy(std::begin(host.loads), std::end(host.loads), std::begin(info.loads));
  const SystemMemory memory = SystemMemoryOf(kernel);
  info.totalram = memory.total;
  info.freeram = memory.free;
  info.sharedram = memory.shared;
  info.bufferram = memory.buffers;
  info.procs = static_cast<uint16_t>(std::min(t.thread_group().cgroup()->task_count(), 65535));
  info.mem_unit = 1;
  TRY(UserPtr<struct sysinfo>(a[0]).CopyOut(t.memory(), info));
  return 0;
}

// What the thread's next calls may be answered by, where that has a place.
void OfferRandom(platform::Context& context) {
  if (!context.WantsRandom()) return;
  std::array<std::byte, platform::Context::kOfferedRandom> bytes;
  base::FillRandom(bytes);
  context.OfferRandom(bytes);
  explicit_bzero(bytes.data(), bytes.size());
}

Result<uint64_t> SysGetrandom(Task& t, const SyscallArgs& a) {
  uint32_t flags = a.Uint(2);
  if (flags & ~uint32_t{GRND_NONBLOCK | GRND_RANDOM | 4u /* GRND_INSECURE */}) return Error(EINVAL);
  if ((flags & GRND_RANDOM) && (flags & 4u)) return Error(EINVAL);
  UserIovec range = TRY(ImportRange(a[0], a[1]));
  OfferRandom(t.context());
  uint64_t left = range.total, done = 0;
  std::byte chunk[kCopyChunk];
  while (left > 0) {
    size_t n = std::min<uint64_t>(left, sizeof(chunk));
    base::FillRandom(std::span(chunk).first(n));
    Result<size_t> written = t.memory().WritePartial(a[0] + done, std::span(chunk).first(n));
    if (!written.ok()) return done > 0 ? Result<uint64_t>(done) : written.error();
    done += *written;
    left -= *written;
    if (*written < n || (done >= (1 << 20) && t.SignalPending())) break;
  }
  return done;
}

// kcmp_epoll_target(): the second one is what an epoll instance watches.
Result<const FileDescription*> EpollTarget(Task& t, Task& task, uint64_t addr) {
  struct Slot {
    uint32_t instance, fd, number;
  };
  const Slot slot = TRY(base::UserPtr<Slot>(addr).CopyIn(t.memory()));
  Ref<FdTable> table = task.fd_table_ref();
  Ref<FileDescription> file = table ? table->Get(static_cast<int>(slot.instance)) : nullptr;
  if (!file) return Error(EBADF);
  EventPoll* poll = EventPoll::From(*file);
  if (poll == nullptr) return Error(EINVAL);
  const FileDescription* target = poll->Target(static_cast<int>(slot.fd), slot.number);
  if (target == nullptr) return Error(ENOENT);
  return target;
}

// Which of two processes' resources come first, and whether they are one (Linux: kernel/kcmp.c).
// Pointers are told apart by a secret order.
Result<uint64_t> SysKcmp(Task& t, const SyscallArgs& a) {
  Ref<Task> first = t.kernel().FindTask(t.pid_namespace(), a.Int(0));
  Ref<Task> second = t.kernel().FindTask(t.pid_namespace(), a.Int(1));
  if (!first || !second) return Error(ESRCH);
  TRY(MayInspect(t, *first));
  TRY(MayInspect(t, *second));
  static const uint64_t secret = base::Random64(), factor = base::Random64() | 1;
  auto compare = [](const void* x, const void* y) -> uint64_t {
    uint64_t p = (reinterpret_cast<uint64_t>(x) ^ secret) * factor;
    uint64_t q = (reinterpret_cast<uint64_t>(y) ^ secret) * factor;
    return p == q ? 0 : p < q ? 1 : 2;
  };
  switch (a.Int(2)) {
    case KCMP_FILE: {
      Ref<FdTable> f1 = first->fd_table_ref(), f2 = second->fd_table_ref();
      Ref<FileDescription> d1 = f1 ? f1->Get(a.Int(3)) : nullptr;
      Ref<FileDescription> d2 = f2 ? f2->Get(a.Int(4)) : nullptr;
      if (!d1 || !d2) return Error(EBADF);
      return compare(d1.get(), d2.get());
    }
    case KCMP_EPOLL_TFD: {
      Ref<FdTable> table = first->fd_table_ref();
      Ref<FileDescription> file = table ? table->Get(a.Int(3)) : nullptr;
      if (!file) return Error(EBADF);
      return compare(file.get(), TRY(EpollTarget(t, *second, a[4])));
    }
    case KCMP_VM:
      return compare(first->mm_ref().get(), second->mm_ref().get());
    case KCMP_FILES:
      return compare(first->fd_table_ref().get(), second->fd_table_ref().get());
    case KCMP_FS:
      return compare(first->fs_context_ref().get(), second->fs_context_ref().get());
    case KCMP_SIGHAND:
      return compare(first->thread_group().handlers().get(),
                     second->thread_group().handlers().get());
    case KCMP_IO:
      // Who has a priority has a context, which none share.
      return compare(first->io_priority != 0 ? first.get() : nullptr,
                     second->io_priority != 0 ? second.get() : nullptr);
    case KCMP_SYSVSEM:
      return compare(first->sem_undo.get(), second->sem_undo.get());
    default:
      return Error(EINVAL);
  }
}

// reboot(2) from inside of a PID namespace ends its init (kernel/reboot.c).
Result<uint64_t> SysReboot(Task& t, const SyscallArgs& a) {
  if (!t.HasCap(CAP_SYS_BOOT)) return Error(EPERM);
  uint32_t magic1 = a.Uint(0), magic2 = a.Uint(1);
  if (magic1 != LINUX_REBOOT_MAGIC1 ||
      (magic2 != LINUX_REBOOT_MAGIC2 && magic2 != LINUX_REBOOT_MAGIC2A &&
       magic2 != LINUX_REBOOT_MAGIC2B && magic2 != LINUX_REBOOT_MAGIC2C)) {
    return Error(EINVAL);
  }
  int signo;
  switch (a.Uint(2)) {
    case LINUX_REBOOT_CMD_RESTART:
    case LINUX_REBOOT_CMD_RESTART2:
      signo = SIGHUP;
      break;
    case LINUX_REBOOT_CMD_HALT:
    case LINUX_REBOOT_CMD_POWER_OFF:
      signo = SIGINT;
      break;
    case LINUX_REBOOT_CMD_CAD_ON:
    case LINUX_REBOOT_CMD_CAD_OFF:
      return 0;
    default:
      return Error(EINVAL);
  }
  Ref<ThreadGroup> init = t.kernel().FindThreadGroup(t.pid_namespace(), 1);
  if (init) init->BeginExit(signo);
  return 0;
}

Result<uint64_t> SysVhangup(Task& t, const SyscallArgs&) {
  if (!t.HasCap(CAP_SYS_TTY_CONFIG)) return Error(EPERM);
  if (Ref<Tty> tty = t.thread_group().tty()) tty->Hangup();
  return 0;
}

Result<uint64_t> SysSyslog(Task& t, const SyscallArgs& a) {
  // The kernel's log is empty. Actions as kernel/printk/printk.c numbers them.
  int type = a.Int(0);
  if (type < 0 || type > 10) return Error(EINVAL);
  bool harmless = type == 3 || type == 10;
  if (!harmless && !t.HasCap(CAP_SYSLOG)) return Error(EPERM);
  if (type >= 2 && type <= 4 && (a[1] == 0 || a.Int(2) < 0)) return Error(EINVAL);
  if (type == 8 && (a.Int(2) < 1 || a.Int(2) > 8)) return Error(EINVAL);
  if (type == 2) {
    while (!t.SignalPending()) fiber::Park({.interruptible = true});
    return Error(base::kERESTARTSYS);
  }
  return type == 10 ? 1 << 17 : 0;
}

// What only the host's administrator may do; a container is answered as one without the right.
Result<uint64_t> SysEperm(Task&, const SyscallArgs&) { return Error(EPERM); }

}  // namespace sentry
