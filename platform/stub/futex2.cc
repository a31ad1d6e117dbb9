// futex_wake(2), futex_wait(2) and futex_requeue(2) by the calls of futex(2) that the filter admits
// (Linux: kernel/futex/syscalls.c).
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEintr = -4, kEfault = -14, kEinval = -22;
constexpr uint32_t kSize32 = 2;  // FUTEX2_SIZE_U32: the only size that Linux has
constexpr uint32_t kClockRealtime = 0, kClockMonotonic = 1;
static_assert(FUTEX_PRIVATE_FLAG == 128, "FUTEX2_PRIVATE is the same");

// struct futex_waitv
struct Waiter {
  uint64_t value, word;
  uint32_t flags, reserved;
};

bool FlagsFit(uint32_t flags) {
  return (flags & ~static_cast<uint32_t>(FUTEX_PRIVATE_FLAG)) == kSize32;
}
bool ValueFits(uint64_t value) { return value >> 32 == 0; }
uint32_t PrivateOf(uint32_t flags) { return flags & FUTEX_PRIVATE_FLAG; }

long FutexWake(const Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10);
  const int32_t count = static_cast<int32_t>(s->rdx);
  if (!FlagsFit(flags) || !ValueFits(s->rsi) || s->rsi == 0 || (s->rdi & 3) != 0) return kEinval;
  if (s->rdi >= kRegionBase) return kEfault;
  if (count == 0) return 0;  // FLAGS_STRICT; futex(2) would wake one
  return Syscall(kSysFutex, s->rdi, FUTEX_WAKE_BITSET | PrivateOf(flags),
                 static_cast<uint64_t>(int64_t{count}), 0, 0, s->rsi);
}

// The timeout is absolute, so that a call that begins anew has the same.
long FutexWait(Slot* s) {
  const uint32_t flags = static_cast<uint32_t>(s->r10), clock = static_cast<uint32_t>(s->r9);
  if (!FlagsFit(flags) || !ValueFits(s->rsi) || !ValueFits(s->rdx)) return kEinval;
  if (s->r8 != 0 && clock != kClockRealtime && clock != kClockMonotonic) return kEinval;
  if (s->rdi >= kRegionBase) return kEfault;
  uint32_t op = FUTEX_WAIT_BITSET | PrivateOf(flags);
  if (s->r8 != 0 && clock == kClockRealtime) op |= FUTEX_CLOCK_REALTIME;
  const CountedFutexWait counted(s->rdi, op);
  for (;;) {
    __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
    const long r = StubFutex(s->rdi, op, s->rsi, s->r8, 0, s->rdx, s);
    __atomic_store_n(&s->in_futex, 0u, __ATOMIC_RELAXED);
    // A signal whose reason is gone ends nothing.
    if (r != kEintr || Load(&s->interrupt)) return r;
  }
}

long FutexRequeue(const Slot* s) {
  if (static_cast<uint32_t>(s->rsi) != 0 || s->rdi == 0) return kEinval;
  Waiter w[2];
  for (uint64_t i = 0; i < 2; i++) {
    const void* from = reinterpret_cast<const void*>(s->rdi + i * sizeof(Waiter));
    if (StubCopy(&w[i], from, sizeof(Waiter)) != 0) return kEfault;
    if (!FlagsFit(w[i].flags) || w[i].reserved != 0 || !ValueFits(w[i].value)) return kEinval;
  }
  const int32_t wake = static_cast<int32_t>(s->rdx), requeue = static_cast<int32_t>(s->r10);
  if ((w[0].flags & w[1].flags & FUTEX_PRIVATE_FLAG) == 0) {
    const uint32_t expected = static_cast<uint32_t>(w[0].value);
    return RequeueByWaking(w[0].word, w[1].word, wake, requeue, &expected,
                           FUTEX_WAKE | PrivateOf(w[0].flags));
  }
  if (w[0].word >= kRegionBase || w[1].word >= kRegionBase) return kEfault;
  TellFutexWaitersMove();
  return Syscall(kSysFutex, w[0].word, FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG,
                 static_cast<uint64_t>(int64_t{wake}), static_cast<uint64_t>(int64_t{requeue}),
                 w[1].word, w[0].value);
}

}  // namespace

bool Futex2(Slot* s) {
  long r;
  switch (s->rax - kFutex2First) {
    case 0:
      r = FutexWake(s);
      break;
    case 1:
      r = FutexWait(s);
      if (r == kEintr) {
        s->futex_interrupted = 1;
        s->remaining_ns = -1;
        return false;
      }
      break;
    default:
      r = FutexRequeue(s);
      break;
  }
  s->rax = static_cast<uint64_t>(r);
  return true;
}

}  // namespace platform::stub
