// The one place that every system call of the guest passes.
#include <sys/syscall.h>

#include <array>
#include <atomic>

#include "sentry/base/kernel_memory.h"
#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/trace/strace.h"
#include "sentry/vfs/dentry.h"

#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

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
// sockets and tmpfs look for themselves when something is written or made.
constexpr int kGrowing[] = {
    SYS_pipe,           SYS_pipe2,         SYS_socket,
    SYS_socketpair,     SYS_accept,        SYS_accept4,
    SYS_connect,        SYS_bind,          SYS_sendmsg,
    SYS_sendmmsg,       SYS_mkdir,         SYS_mkdirat,
    SYS_mknod,          SYS_mknodat,       SYS_symlink,
    SYS_symlinkat,      SYS_link,          SYS_linkat,
    SYS_setxattr,       SYS_lsetxattr,     SYS_fsetxattr,
    SYS_epoll_create,   SYS_epoll_create1, SYS_epoll_ctl,
    SYS_inotify_init,   SYS_inotify_init1, SYS_inotify_add_watch,
    SYS_eventfd,        SYS_eventfd2,      SYS_signalfd,
    SYS_signalfd4,      SYS_timer_create,  SYS_timerfd_create,
    SYS_memfd_create,   SYS_mount,         SYS_open_tree,
    SYS_fsopen,         SYS_fsmount,       SYS_unshare,
    SYS_pidfd_open,     SYS_flock,         SYS_semget,
    SYS_shmget,         SYS_msgget,        SYS_msgsnd,
    SYS_mq_open,        SYS_mq_timedsend,  SYS_add_key,
    SYS_fsconfig,       SYS_fspick,        SYS_move_mount,
    SYS_open_tree_attr,
};
// Those without which nothing runs, not even what would free memory: they have a reserve.
constexpr int kBasic[] = {
    SYS_open,  SYS_creat,  SYS_openat, SYS_openat2, SYS_fork,  SYS_vfork,
    SYS_clone, SYS_clone3, SYS_mmap,   SYS_mremap,  SYS_fcntl,
};

enum Need : uint8_t { kNothing, kReserve, kRoom };

const std::array<Need, kMaxSyscall>& Needs() {
  static const std::array<Need, kMaxSyscall>* const needs = [] {
    auto* a = new std::array<Need, kMaxSyscall>{};
    for (int nr : kGrowing) (*a)[static_cast<size_t>(nr)] = kRoom;
    for (int nr : kBasic) (*a)[static_cast<size_t>(nr)] = kReserve;
    return a;
  }();
  return *needs;
}

// With the sentry's memory full such a call fails, as it may in Linux; what is held for speed alone
// goes first.
bool RefusedForMemory(int nr) {
  const Need need = nr >= 0 && nr < kMaxSyscall ? Needs()[static_cast<size_t>(nr)] : kNothing;
  if (need == kNothing) return false;
  constexpr int64_t kPauseNs = 100'000'000;  // the cache is long
  static std::atomic<int64_t> last{0};
  int64_t before = last.load(std::memory_order_relaxed);
  const int64_t now = base::MonotonicNs();
  if (now - before > kPauseNs && last.compare_exchange_strong(before, now)) {
    LOG_INFO("the memory for the kernel's objects is used up (%llu MiB)",
             static_cast<unsigned long long>(base::KernelMemory::used() >> 20));
    DentryCache::Get().DropUnused();
  }
  return need == kRoom ? base::KernelMemory::Full() : base::KernelMemory::Exhausted();
}

base::Result<uint64_t> Answer(Task& t, int nr, const SyscallInfo* info, const SyscallArgs& args) {
  if (base::KernelMemory::Full() && RefusedForMemory(nr)) return base::Error(ENOMEM);
  if (info && info->handler) return info->handler(t, args);
  NoteUnknown(t.kernel(), nr, info);
  return base::Error(ENOSYS);
}

[[gnu::noinline]] base::Result<uint64_t> AnswerTraced(Task& t, int nr, const SyscallInfo* info,
                                                      const SyscallArgs& args) {
  trace::Call traced(t, nr, info, args);
  base::Result<uint64_t> result = Answer(t, nr, info, args);
  traced.Finish(result);
  return result;
}

}  // namespace

base::Result<uint64_t> DispatchSyscall(Task& t, int nr) {
  const SyscallArgs args{t.context().call().args};
  const SyscallInfo* info = FindSyscall(nr);
  t.call_times().Begin(t.context(), nr);
  base::Result<uint64_t> result = t.kernel().strace.load(std::memory_order_relaxed)
                                      ? AnswerTraced(t, nr, info, args)
                                      : Answer(t, nr, info, args);
  t.call_times().End(t.context());
  return result;
}

}  // namespace sentry
