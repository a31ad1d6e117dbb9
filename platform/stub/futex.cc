// futex(2): the host's, on the guest's own words.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEintr = -4, kEagain = -11, kEfault = -14, kEinval = -22, kEnosys = -38;
constexpr int64_t kNsPerSecond = 1'000'000'000;

bool Answer(Slot* s, long value) {
  s->rax = static_cast<uint64_t>(value);
  return true;
}

uint32_t* CountOf(uint64_t word) {
  constexpr uint64_t kMultiplier = 0x9e37'79b9'7f4a'7c15;
  static_assert(kFutexCounts == 1u << 8);
  return &Header()->futex_waits.count[(word >> 2) * kMultiplier >> (64 - 8)];
}

// Whoever begins to wait for the private word now finds it as the caller has left it.
bool NobodyWaits(uint64_t word) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return Load(CountOf(word)) == 0 && Load(&Header()->futex_waits.moved) == 0;
}

// FUTEX_REQUEUE and FUTEX_CMP_REQUEUE of a word that processes share. The filter admits none that
// could take the sentry away from the doorbell, so those to be moved are woken: they look at their
// word again, as after any wake-up that they did not expect.
long RequeueShared(Slot* s, bool compare) {
  const uint32_t expected = static_cast<uint32_t>(s->r9);
  return RequeueByWaking(s->rdi, s->r8, static_cast<int32_t>(s->rdx), static_cast<int32_t>(s->r10),
                         compare ? &expected : nullptr, FUTEX_WAKE);
}

}  // namespace

CountedFutexWait::CountedFutexWait(uint64_t word, uint32_t op)
    : count_(op & FUTEX_PRIVATE_FLAG ? CountOf(word) : nullptr) {
  if (count_ != nullptr) __atomic_fetch_add(count_, 1, __ATOMIC_SEQ_CST);
}

CountedFutexWait::~CountedFutexWait() {
  if (count_ != nullptr) __atomic_fetch_sub(count_, 1, __ATOMIC_SEQ_CST);
}

void TellFutexWaitersMove() {
  __atomic_store_n(&Header()->futex_waits.moved, 1u, __ATOMIC_SEQ_CST);
}

long RequeueByWaking(uint64_t word, uint64_t target, int32_t wake, int32_t requeue,
                     const uint32_t* expected, uint32_t wake_op) {
  if (wake < 0 || requeue < 0 || ((word | target) & 3) != 0) return kEinval;
  uint32_t value;
  if (word >= kRegionBase || target >= kRegionBase ||
      StubCopy(&value, reinterpret_cast<const void*>(target), sizeof(value)) != 0 ||
      StubCopy(&value, reinterpret_cast<const void*>(word), sizeof(value)) != 0) {
    return kEfault;
  }
  if (expected != nullptr && value != *expected) return kEagain;
  int64_t count = int64_t{wake} + requeue;
  if (count == 0) return 0;
  return Syscall(kSysFutex, word, wake_op,
                 static_cast<uint64_t>(count > INT32_MAX ? INT32_MAX : count));
}

bool FutexWaitLane(Slot* s, bool relative, int64_t given) {
  int64_t timeout = -1, begin = 0;
  __kernel_timespec left;
  uint64_t timeout_address = s->r10;
  if (relative && given >= 0) {
    timeout = given;
    left = __kernel_timespec{given / kNsPerSecond, given % kNsPerSecond};
    timeout_address = Addr(&left);
    begin = MonotonicNs();
  } else if (relative && timeout_address != 0) {
    if (StubCopy(&left, reinterpret_cast<const void*>(timeout_address), sizeof(left)) != 0) {
      return Answer(s, kEfault);
    }
    // What the host refuses, it is to refuse itself.
    if (left.tv_sec >= 0 && left.tv_nsec >= 0 && left.tv_nsec < kNsPerSecond &&
        left.tv_sec < INT64_MAX / kNsPerSecond - 1) {
      timeout = left.tv_sec * kNsPerSecond + left.tv_nsec;
      timeout_address = Addr(&left);
      begin = MonotonicNs();
    }
  }
  const uint32_t op = static_cast<uint32_t>(s->rsi);
  const CountedFutexWait counted(s->rdi, op);
  for (;;) {
    __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
    long r = StubFutex(s->rdi, op, s->rdx, timeout_address, s->r8, s->r9, s);
    __atomic_store_n(&s->in_futex, 0u, __ATOMIC_RELAXED);
    if (r != kEintr) return Answer(s, r);
    int64_t remaining = -1;
    if (timeout >= 0) {
      remaining = timeout - (MonotonicNs() - begin);
      if (remaining < 0) remaining = 0;
      left.tv_sec = remaining / kNsPerSecond;
      left.tv_nsec = remaining % kNsPerSecond;
    }
    if (!Load(&s->interrupt)) continue;  // a signal whose reason is gone
    s->futex_interrupted = 1;
    s->remaining_ns = remaining;
    return false;
  }
}

bool Futex(Slot* s) {
  // No word of the guest's lies in the region of the stub.
  if (s->rdi >= kRegionBase) return Answer(s, kEfault);
  switch (static_cast<uint32_t>(s->rsi) &
          ~static_cast<uint32_t>(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)) {
    case FUTEX_WAIT:
      return FutexWaitLane(s, true, -1);
    case FUTEX_WAIT_BITSET:
      return FutexWaitLane(s, false, -1);
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
      if (s->rsi & FUTEX_CLOCK_REALTIME) return Answer(s, kEnosys);
      if (!(s->rsi & FUTEX_PRIVATE_FLAG)) {
        return Answer(s, RequeueShared(s, (s->rsi & 0x7f) == FUTEX_CMP_REQUEUE));
      }
      TellFutexWaitersMove();
      break;
    case FUTEX_WAKE:
      if (static_cast<uint32_t>(s->rsi) == (FUTEX_WAKE | FUTEX_PRIVATE_FLAG) && (s->rdi & 3) == 0 &&
          NobodyWaits(s->rdi)) {
        return Answer(s, 0);
      }
      break;
    case FUTEX_WAKE_BITSET:
    case FUTEX_WAKE_OP:
      break;
    default:
      return false;
  }
  // The upper half of the operation is not the guest's to use, and the filter refuses it.
  return Answer(
      s, Syscall(kSysFutex, s->rdi, static_cast<uint32_t>(s->rsi), s->rdx, s->r10, s->r8, s->r9));
}

}  // namespace platform::stub
