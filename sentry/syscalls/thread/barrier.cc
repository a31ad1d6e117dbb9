// membarrier(2) and rseq(2): what only the processors' scheduler can do, and so the host.
#include <linux/membarrier.h>
#include <linux/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sentry/fiber/blocking.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr int kPrivate =
    MEMBARRIER_CMD_PRIVATE_EXPEDITED | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED |
    MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE |
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE | MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ |
    MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ;
constexpr int kGlobal = MEMBARRIER_CMD_GLOBAL | MEMBARRIER_CMD_GLOBAL_EXPEDITED |
                        MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;

// What this host can do; -ENOSYS without membarrier.
int Supported() {
  static const int supported = [] {
    long host = syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
    if (host < 0) return -ENOSYS;
    int mask = static_cast<int>(host) & kPrivate;
    if (host & MEMBARRIER_CMD_GLOBAL) mask |= kGlobal;
    return mask;
  }();
  return supported;
}

}  // namespace

Result<uint64_t> SysMembarrier(Task& t, const SyscallArgs& a) {
  const int command = a.Int(0);
  const uint32_t flags = a.Uint(1);
  int supported = Supported();
  if (supported < 0) return Error(-supported);
  if (command == MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ) {
    if (flags & ~uint32_t{MEMBARRIER_CMD_FLAG_CPU}) return Error(EINVAL);
  } else if (flags != 0) {
    return Error(EINVAL);
  }
  if (command == MEMBARRIER_CMD_QUERY) return static_cast<uint64_t>(supported);
  if ((command & (command - 1)) != 0 || !(supported & command)) return Error(EINVAL);
  if (kPrivate & command) {
    // A stub is what the guest's process is to the host: registrations follow fork and exec by
    // themselves.
    std::vector<platform::Order> orders;
    orders.push_back(platform::order::Membarrier{command, flags, a.Int(2)});
    TRY(t.RunOrders(std::move(orders)));
    return 0;
  }
  if (command == MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED) return 0;
  // The host's barrier for everybody, which takes milliseconds. It is more than GLOBAL_EXPEDITED
  // asks: that is for those who have registered alone.
  long done = fiber::BlockingCall(
      [] { return syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) < 0 ? errno : 0; });
  if (done != 0) return Error(static_cast<int>(done));
  return 0;
}

// The registration is the host's, made by the guest's own thread: the host updates the guest's
// struct rseq and moves the thread out of a critical section when it preempts, migrates or signals
// it. What concerns the stub's code, which is in no critical section, changes nothing.
Result<uint64_t> SysRseq(Task& t, const SyscallArgs& a) {
  constexpr uint32_t kUnregister = RSEQ_FLAG_UNREGISTER;
  const Task::Rseq wanted{a[0], a.Uint(1), a.Uint(3)};
  const uint32_t flags = a.Uint(2);
  Task::Rseq& now = t.words().rseq;
  if (flags & kUnregister) {
    if (flags & ~kUnregister) return Error(EINVAL);
    if (now.addr != wanted.addr || now.addr == 0 || now.length != wanted.length) {
      return Error(EINVAL);
    }
    if (now.signature != wanted.signature) return Error(EPERM);
  } else {
    if (flags != 0) return Error(EINVAL);
    if (now.addr != 0) {
      if (now.addr != wanted.addr || now.length != wanted.length) return Error(EINVAL);
      if (now.signature != wanted.signature) return Error(EPERM);
      return Error(EBUSY);
    }
    if (wanted.addr >= t.mm().address_space().limits().max_address) return Error(EFAULT);
  }
  std::vector<platform::Order> orders;
  orders.push_back(platform::order::Rseq{wanted.addr, wanted.length, flags, wanted.signature});
  // On the way back to the guest: it is the thread's own affair, and nothing but the result depends
  // on it.
  t.QueueOrders(std::move(orders), [&now, before = now](int error) {
    now = before;
    return -int64_t{error};
  });
  now = (flags & kUnregister) ? Task::Rseq{} : wanted;
  return 0;
}

}  // namespace sentry
