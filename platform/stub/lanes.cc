// The express lane: calls answered in the stub, without a hand-off. A handler either finishes the
// call or declines; nothing else knows which calls have one.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEintr = -4, kEfault = -14;
constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr uint64_t kClockMonotonic = 1, kClockThreadCpu = 3;

constexpr int kFutexNr = 202;

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
bool FutexWaitLane(Slot* s, bool relative, int64_t given = -1) {
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
  for (;;) {
    __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
    long r = StubFutex(s->rdi, s->rsi, s->rdx, timeout_address, s->r8, s->r9, s, kSysFutex);
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

// Waits on several words; the timeout is absolute.
bool FutexWaitv(Slot* s) {
  for (;;) {
    __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
    long r = StubFutex(s->rdi, s->rsi, s->rdx, s->r10, s->r8, 0, s, kSysFutexWaitv);
    __atomic_store_n(&s->in_futex, 0u, __ATOMIC_RELAXED);
    if (r != kEintr) return Answer(s, r);
    if (!Load(&s->interrupt)) continue;
    s->futex_interrupted = 1;
    s->remaining_ns = -1;
    return false;
  }
}

bool Futex(Slot* s) {
  switch (static_cast<uint32_t>(s->rsi) &
          ~static_cast<uint32_t>(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME)) {
    case FUTEX_WAIT:
      return FutexWaitLane(s, true);
    case FUTEX_WAIT_BITSET:
      return FutexWaitLane(s, false);
    case FUTEX_WAKE:
    case FUTEX_WAKE_BITSET:
    case FUTEX_REQUEUE:
    case FUTEX_CMP_REQUEUE:
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

constexpr bool OnlyNamedLanes() {
  for (int nr = 0; nr < static_cast<int>(kLaneCount); nr++) {
    bool named = nr == kFutexNr;
    for (int call : kLaneCalls) named |= call == nr;
    if (named != (kLanes.lane[nr] != nullptr)) return false;
  }
  return true;
}
static_assert(OnlyNamedLanes(), "kLaneCalls in mailbox.h tells which calls have a lane");

}  // namespace

bool TryLane(Slot* s) {
  uint64_t nr = s->rax;
  // Futexes have no other home: the sentry cannot wait on the guest's words.
  bool futex = nr == uint64_t{kFutexNr} || nr == uint64_t{kSysFutexWaitv};
  uint32_t off = __atomic_load_n(&s->lanes_off, __ATOMIC_RELAXED);
  if (off > (futex ? 1u : 0u)) return false;
  if (nr == uint64_t{kSysFutexWaitv}) return FutexWaitv(s);
  if (nr >= kLaneCount) return false;
  Lane lane = kLanes.lane[nr];
  return lane != nullptr && lane(s);
}

bool RunLane(Slot* s, int64_t remaining_ns) {
  uint64_t nr = s->rax;
  if (nr == uint64_t{kSysFutexWaitv}) return FutexWaitv(s);
  if (nr >= kLaneCount) return false;
  if (nr == uint64_t{kFutexNr} && remaining_ns >= 0) return FutexWaitLane(s, true, remaining_ns);
  Lane lane = kLanes.lane[nr];
  return lane != nullptr && lane(s);
}

}  // namespace platform::stub
