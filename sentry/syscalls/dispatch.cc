// The one place that every system call of the guest passes.
#include <sys/syscall.h>

#include <atomic>
#include <bitset>

#include "sentry/base/kernel_memory.h"
#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/trace/strace.h"
#include "sentry/vfs/dentry.h"

namespace sentry {

namespace {

// Counts a call that nobody implements, and names it in the log the first time.
void NoteUnknown(Kernel& kernel, int nr, const SyscallInfo* info) {
  uint64_t seen = nr >= 0 && nr < kMaxSyscall
                      ? kernel.unimplemented[nr].fetch_add(1, std::memory_order_relaxed)
                      : 1;
  if (seen == 0 && !(info && info->support == Support::kConfiguredOut)) {
    LOG_INFO("system call %d (%s) is not implemented", nr, info ? info->name : "unknown");
  }
}

// The calls that make the sentry hold more for the guest until the guest gives it up. Pipes,
// sockets and tmpfs look for themselves when something is written.
constexpr int kGrowing[] = {
    SYS_open,         SYS_creat,          SYS_openat,        SYS_openat2,
    SYS_pipe,         SYS_pipe2,          SYS_socket,        SYS_socketpair,
    SYS_accept,       SYS_accept4,        SYS_connect,       SYS_bind,
    SYS_sendmsg,      SYS_sendmmsg,       SYS_sendto,        SYS_fork,
    SYS_vfork,        SYS_clone,          SYS_clone3,        SYS_mkdir,
    SYS_mkdirat,      SYS_mknod,          SYS_mknodat,       SYS_symlink,
    SYS_symlinkat,    SYS_link,           SYS_linkat,        SYS_setxattr,
    SYS_lsetxattr,    SYS_fsetxattr,      SYS_epoll_create,  SYS_epoll_create1,
    SYS_epoll_ctl,    SYS_inotify_init,   SYS_inotify_init1, SYS_inotify_add_watch,
    SYS_eventfd,      SYS_eventfd2,       SYS_signalfd,      SYS_signalfd4,
    SYS_timer_create, SYS_timerfd_create, SYS_memfd_create,  SYS_mount,
    SYS_open_tree,    SYS_fsopen,         SYS_fsmount,       SYS_unshare,
    SYS_pidfd_open,   SYS_mmap,           SYS_mremap,        SYS_flock,
    SYS_fcntl,        SYS_semget,         SYS_shmget,        SYS_msgget,
    SYS_msgsnd,       SYS_mq_open,        SYS_mq_timedsend,  SYS_add_key,
};

const std::bitset<kMaxSyscall>& Growing() {
  static const std::bitset<kMaxSyscall>* const set = [] {
    auto* s = new std::bitset<kMaxSyscall>;
    for (int nr : kGrowing) s->set(static_cast<size_t>(nr));
    return s;
  }();
  return *set;
}

// With the sentry's memory full such a call fails, as it may in Linux; what is held for speed alone
// goes first.
bool RefusedForMemory(int nr) {
  if (nr < 0 || nr >= kMaxSyscall || !Growing().test(static_cast<size_t>(nr))) return false;
  constexpr int64_t kPauseNs = 100'000'000;  // the cache is long
  static std::atomic<int64_t> last{0};
  int64_t before = last.load(std::memory_order_relaxed);
  const int64_t now = base::MonotonicNs();
  if (now - before > kPauseNs && last.compare_exchange_strong(before, now)) {
    LOG_INFO("the memory for the kernel's objects is used up (%llu MiB)",
             static_cast<unsigned long long>(base::KernelMemory::used() >> 20));
    DentryCache::Get().DropUnused();
  }
  return base::KernelMemory::Full();
}

}  // namespace

base::Result<uint64_t> DispatchSyscall(Task& t, int nr) {
  Kernel& kernel = t.kernel();
  const platform::Regs& r = t.regs();
  SyscallArgs args{{r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9}};
  const SyscallInfo* info = FindSyscall(nr);
  if (info) kernel.syscall_counts[nr].fetch_add(1, std::memory_order_relaxed);
  if (base::KernelMemory::Full() && RefusedForMemory(nr)) return base::Error(ENOMEM);
  bool traced = kernel.strace.load(std::memory_order_relaxed);
  if (!traced) {
    if (info && info->handler) return info->handler(t, args);
    NoteUnknown(kernel, nr, info);
    return base::Error(ENOSYS);
  }
  trace::Call call(t, nr, info, args);
  base::Result<uint64_t> result = base::Error(ENOSYS);
  if (info && info->handler) {
    result = info->handler(t, args);
  } else {
    NoteUnknown(kernel, nr, info);
  }
  call.Finish(result);
  return result;
}

}  // namespace sentry
