// The express lane: calls answered in the stub, without a hand-off. A handler either finishes the
// call or declines; nothing else knows which calls have one.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEintr = -4, kEagain = -11, kEfault = -14, kEinval = -22, kEnosys = -38;
constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr uint64_t kClockMonotonic = 1, kClockThreadCpu = 3;

using Lane = bool (*)(Slot* s);

bool Answer(Slot* s, long value) {
  s->rax = static_cast<uint64_t>(value);
  return true;
}

bool SchedYield(Slot* s) { return Answer(s, Syscall(kSysSchedYield)); }
bool GetPid(Slot* s) { return s->has_identity && Answer(s, s->pid); }
bool GetTid(Slot* s) { return s->has_identity && Answer(s, s->tid); }
bool GetUid(Slot* s) { return s->has_identity && Answer(s, static_cast<long>(s->uid)); }
bool GetEuid(Slot* s) { return s->has_identity && Answer(s, static_cast<long>(s->euid)); }
bool GetGid(Slot* s) { return s->has_identity && Answer(s, static_cast<long>(s->gid)); }
bool GetEgid(Slot* s) { return s->has_identity && Answer(s, static_cast<long>(s->egid)); }

// The host's thread is the guest's thread.
bool ClockGettime(Slot* s) {
  if (s->rdi != kClockThreadCpu) return false;
  return Answer(s, Syscall(kSysClockGettime, s->rdi, s->rsi));
}

int64_t MonotonicNs() {
  __kernel_timespec t;
  Syscall(kSysClockGettime, kClockMonotonic, Addr(&t));
  return t.tv_sec * kNsPerSecond + t.tv_nsec;
}

// Waits with the guest's own arguments. An interrupt is reported to the sentry, which ends or
// restarts the call as Linux would.
bool FutexWaitLane(Slot* s, bool relative) {
  int64_t timeout = -1, begin = 0;
  __kernel_timespec left;
  uint64_t timeout_address = s->r10;
  if (relative && timeout_address != 0) {
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
  for (;;) {
    __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
    long r =
        StubFutex(s->rdi, static_cast<uint32_t>(s->rsi), s->rdx, timeout_address, s->r8, s->r9, s);
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

// FUTEX_REQUEUE and FUTEX_CMP_REQUEUE of a word that processes share. The filter admits none that
// could take the sentry away from the doorbell, so those to be moved are woken: they look at their
// word again, as after any wake-up that they did not expect.
long RequeueShared(Slot* s, bool compare) {
  int32_t wake = static_cast<int32_t>(s->rdx), requeue = static_cast<int32_t>(s->r10);
  if (wake < 0 || requeue < 0 || ((s->rdi | s->r8) & 3) != 0) return kEinval;
  uint32_t value;
  if (s->r8 >= kRegionBase ||
      StubCopy(&value, reinterpret_cast<const void*>(s->r8), sizeof(value)) != 0 ||
      StubCopy(&value, reinterpret_cast<const void*>(s->rdi), sizeof(value)) != 0) {
    return kEfault;
  }
  if (compare && value != static_cast<uint32_t>(s->r9)) return kEagain;
  int64_t count = int64_t{wake} + requeue;
  return Syscall(kSysFutex, s->rdi, FUTEX_WAKE,
                 static_cast<uint64_t>(count > INT32_MAX ? INT32_MAX : count));
}

bool Futex(Slot* s) {
  // No word of the guest's lies in the region of the stub.
  if (s->rdi >= kRegionBase) return Answer(s, kEfault);
  switch (static_cast<uint32_t>(s->rsi) &
          ~static_cast<uint32_t>(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)) {
    case FUTEX_WAIT:
      return FutexWaitLane(s, true);
    case FUTEX_WAIT_BITSET:
      return FutexWaitLane(s, false);
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
      if (s->rsi & FUTEX_CLOCK_REALTIME) return Answer(s, kEnosys);
      if (!(s->rsi & FUTEX_PRIVATE_FLAG)) {
        return Answer(s, RequeueShared(s, (s->rsi & 0x7f) == FUTEX_CMP_REQUEUE));
      }
      [[fallthrough]];
    case FUTEX_WAKE:
    case FUTEX_WAKE_BITSET:
    case FUTEX_WAKE_OP:
      // The upper half of the operation is not the guest's to use, and the filter refuses it.
      return Answer(s, Syscall(kSysFutex, s->rdi, static_cast<uint32_t>(s->rsi), s->rdx, s->r10,
                               s->r8, s->r9));
  }
  return false;
}

constexpr uint32_t kLaneCount = 256;

struct LaneTable {
  Lane lane[kLaneCount] = {};
  constexpr LaneTable() {
    lane[24] = SchedYield;
    lane[39] = GetPid;
    lane[102] = GetUid;
    lane[104] = GetGid;
    lane[107] = GetEuid;
    lane[108] = GetEgid;
    lane[186] = GetTid;
    lane[202] = Futex;
    lane[228] = ClockGettime;
  }
};
constexpr LaneTable kLanes;

}  // namespace

bool TryLane(Slot* s) {
  // Futexes have no other home: the sentry cannot wait on the guest's words.
  if (s->rax >= kLaneCount || (s->lanes_off && s->rax != 202)) return false;
  Lane lane = kLanes.lane[s->rax];
  return lane != nullptr && lane(s);
}

}  // namespace platform::stub
