// futex(2) as far as it reaches the sentry: waits that the host's futex ran and a signal ended,
// priority inheritance, and what a filter had to be asked about first.
#include <linux/futex.h>

#include <limits>

#include "sentry/base/time.h"
#include "sentry/kernel/futex/futex_pi.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

namespace sentry {

using base::Error;
using base::Result;

namespace {

constexpr int kNrFutex = 202, kNrFutexWake = 454, kNrFutexWait = 455, kNrFutexRequeue = 456;

// An absolute timeout as a deadline of CLOCK_MONOTONIC; none if `addr` is 0.
Result<int64_t> Deadline(Task& t, uint64_t addr, bool realtime) {
  if (addr == 0) return fiber::kNoDeadline;
  timespec ts = TRY(base::UserPtr<timespec>(addr).CopyIn(t.memory()));
  std::optional<int64_t> at = base::NsFromTimespec(ts);
  if (!at) return Error(EINVAL);
  if (!realtime || *at == base::kNever) return *at;
  return base::SaturatingAdd(base::MonotonicNs(), *at - base::RealtimeNs());
}

// A wait that a signal ended. With a timeout it goes on only if no handler ran (Linux: a restart
// block): a deadline stays what it is, and of a relative timeout what is left.
Result<uint64_t> Interrupted(Task& t, bool has_timeout, int64_t remaining_ns) {
  if (!has_timeout) return Error(base::kERESTARTSYS);
  if (remaining_ns < 0) return Error(base::kERESTARTNOHAND);
  int64_t deadline = base::DeadlineAfter(remaining_ns);
  t.SetRestartBlock([deadline](Task& task) {
    return task.AnswerInLane(kNrFutex, std::max<int64_t>(deadline - base::MonotonicNs(), 0));
  });
  return Error(base::kERESTART_RESTARTBLOCK);
}

}  // namespace

// Waits, wakes and requeues run in the guest's thread on the host's futex and come here only when
// interrupted, or to be sent back there.
Result<uint64_t> SysFutex(Task& t, const SyscallArgs& a) {
  const platform::Trap& trap = t.context().trap();
  if (trap.futex_interrupted) return Interrupted(t, a[3] != 0, trap.remaining_ns);
  const uint32_t op = a.Uint(1);
  const uint32_t command = op & ~uint32_t{FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME};
  const bool realtime = (op & FUTEX_CLOCK_REALTIME) != 0;
  if (realtime && command != FUTEX_WAIT_BITSET && command != FUTEX_WAIT_REQUEUE_PI &&
      command != FUTEX_LOCK_PI2) {
    return Error(ENOSYS);
  }
  const bool is_private = (op & FUTEX_PRIVATE_FLAG) != 0;
  const PiFutexes::Word word{a[0], is_private}, second{a[4], is_private};
  PiFutexes& futexes = PiFutexes::Get();
  switch (command) {
    case FUTEX_WAIT:
    case FUTEX_WAKE:
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
    case FUTEX_WAKE_OP:
    case FUTEX_WAIT_BITSET:
    case FUTEX_WAKE_BITSET:
      return t.AnswerInLane(kNrFutex);
    case FUTEX_LOCK_PI:
    case FUTEX_LOCK_PI2: {
      int64_t deadline = TRY(Deadline(t, a[3], command == FUTEX_LOCK_PI || realtime));
      return futexes.Lock(t, word, deadline, false);
    }
    case FUTEX_TRYLOCK_PI:
      return futexes.Lock(t, word, fiber::kNoDeadline, true);
    case FUTEX_UNLOCK_PI:
      return futexes.Unlock(t, word);
    case FUTEX_WAIT_REQUEUE_PI: {
      int64_t deadline = TRY(Deadline(t, a[3], realtime));
      return futexes.WaitRequeue(t, word, a.Uint(2), second, deadline);
    }
    case FUTEX_CMP_REQUEUE_PI: {
      const int32_t wake = a.Int(2), count = a.Int(3);
      if (wake != 1 || count < 0) return Error(EINVAL);
      return futexes.Requeue(t, word, a.Uint(5), second, count);
    }
    default:  // FUTEX_FD is long gone
      return Error(ENOSYS);
  }
}

// futex2: the guest's thread makes them, as it does those above (platform/stub/futex2.cc).
Result<uint64_t> SysFutexWake(Task& t, const SyscallArgs&) { return t.AnswerInLane(kNrFutexWake); }

Result<uint64_t> SysFutexWait(Task& t, const SyscallArgs&) {
  if (t.context().trap().futex_interrupted) return Error(base::kERESTARTSYS);
  return t.AnswerInLane(kNrFutexWait);
}

Result<uint64_t> SysFutexRequeue(Task& t, const SyscallArgs&) {
  return t.AnswerInLane(kNrFutexRequeue);
}

}  // namespace sentry
