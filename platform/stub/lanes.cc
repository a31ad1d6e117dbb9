// The express lane: calls answered in the stub, without a hand-off. A handler either finishes the
// call or declines; nothing else knows which calls have one.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEintr = -4, kEagain = -11, kEfault = -14, kEinval = -22, kEnosys = -38;
constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr uint64_t kClockRealtime = 0, kClockThreadCpu = 3, kClockRealtimeCoarse = 5;

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

bool GetPpid(Slot* s) { return s->has_identity && Answer(s, s->ppid); }

bool CopyOut(uint64_t to, const void* from, size_t n) {
  return StubCopy(reinterpret_cast<void*>(to), from, n) == 0;
}

// Clocks that everybody may read through the vDSO, and that of the host's thread, which is the
// guest's.
bool ClockGettime(Slot* s) {
  uint32_t clock = static_cast<uint32_t>(s->rdi);
  constexpr uint32_t kSame = 1u << 0 | 1u << 1 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7;
  if (clock > 7 || !(kSame >> clock & 1)) return false;
  __kernel_timespec t;
  if (Syscall(kSysClockGettime, clock, Addr(&t)) != 0) return false;
  if (clock == kClockThreadCpu && s->cpu_base_ns != 0) {
    const int64_t ns = t.tv_sec * kNsPerSecond + t.tv_nsec - s->cpu_base_ns;
    t = __kernel_timespec{ns / kNsPerSecond, ns % kNsPerSecond};
  }
  return Answer(s, CopyOut(s->rsi, &t, sizeof(t)) ? 0 : kEfault);
}

bool GetTimeOfDay(Slot* s) {
  if (s->rsi != 0) return false;
  __kernel_timespec t;
  if (Syscall(kSysClockGettime, kClockRealtime, Addr(&t)) != 0) return false;
  const int64_t tv[2] = {t.tv_sec, t.tv_nsec / 1000};
  return Answer(s, s->rdi == 0 || CopyOut(s->rdi, tv, sizeof(tv)) ? 0 : kEfault);
}

bool Time(Slot* s) {
  __kernel_timespec t;
  if (Syscall(kSysClockGettime, kClockRealtimeCoarse, Addr(&t)) != 0) return false;
  int64_t seconds = t.tv_sec;
  bool ok = s->rdi == 0 || CopyOut(s->rdi, &seconds, sizeof(seconds));
  return Answer(s, ok ? seconds : kEfault);
}

// As the vDSO does it: the host keeps processor and node in a segment's limit.
bool GetCpu(Slot* s) {
  constexpr uint32_t kCpuNodeSegment = 0x7b, kNodeShift = 12;
  uint32_t v;
  __asm__ volatile("lsl %1, %0" : "=r"(v) : "r"(kCpuNodeSegment) : "cc");
  uint32_t cpu = v & ((1u << kNodeShift) - 1), node = v >> kNodeShift;
  bool ok = (s->rdi == 0 || CopyOut(s->rdi, &cpu, sizeof(cpu))) &&
            (s->rsi == 0 || CopyOut(s->rsi, &node, sizeof(node)));
  return Answer(s, ok ? 0 : kEfault);
}

// The actions are those of the process, whose only thread this is while they are open. Errors in
// Linux's order (kernel/signal.c: rt_sigaction, do_sigaction).
bool RtSigaction(Slot* s) {
  constexpr uint64_t kSetSize = 8;
  constexpr uint32_t kSigKill = 9, kSigStop = 19;
  // UAPI_SA_FLAGS and SA_RESTORER; others read back as zero.
  constexpr uint64_t kKnownFlags = 0xdc000807;
  uint64_t word = Load(&s->actions_word);
  if (!(word & kActionsOpen) || s->r10 != kSetSize) return false;
  SignalEntry action;
  if (s->rsi != 0 &&
      StubCopy(&action, reinterpret_cast<const void*>(s->rsi), sizeof(action)) != 0) {
    return Answer(s, kEfault);
  }
  uint32_t signo = static_cast<uint32_t>(s->rdi), index = signo - 1;
  if (index >= kSignalCount || (s->rsi != 0 && (signo == kSigKill || signo == kSigStop))) {
    return Answer(s, kEinval);
  }
  uint64_t bit = 1ull << index;
  bool second = index + 1 != kSigKill && (word & bit) != 0;
  SignalEntry* now = second ? &s->actions1[index] : &s->actions0[index];
  SignalEntry old = *now;
  if (s->rsi != 0) {
    action.mask &= ~kUnblockableSignals;
    action.flags &= kKnownFlags;
    (second ? s->actions0 : s->actions1)[index] = action;
    s->actions_changed = 1;
    if (!__atomic_compare_exchange_n(&s->actions_word, &word, word ^ bit, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
      return false;
    }
  }
  return Answer(s, s->rdx == 0 || CopyOut(s->rdx, &old, sizeof(old)) ? 0 : kEfault);
}

// The mask is the thread's own. The sentry opens it to changes while no signal is pending, and
// closes it before it sends one. Errors in Linux's order (kernel/signal.c).
bool RtSigprocmask(Slot* s) {
  constexpr uint64_t kSetSize = 8;
  uint64_t word = Load(&s->sigmask);
  if (!(word & kMaskOpen) || s->r10 != kSetSize) return false;
  uint64_t old = word & ~kUnblockableSignals;
  if (s->rsi != 0) {
    uint64_t set, mask;
    if (StubCopy(&set, reinterpret_cast<const void*>(s->rsi), sizeof(set)) != 0) {
      return Answer(s, kEfault);
    }
    switch (static_cast<uint32_t>(s->rdi)) {
      case 0:  // SIG_BLOCK
        mask = old | set;
        break;
      case 1:  // SIG_UNBLOCK
        mask = old & ~set;
        break;
      case 2:  // SIG_SETMASK
        mask = set;
        break;
      default:
        return Answer(s, kEinval);
    }
    uint64_t next = (mask & ~kUnblockableSignals) | kMaskOpen;
    if (next != word) {
      s->mask_changed = 1;
      if (!__atomic_compare_exchange_n(&s->sigmask, &word, next, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST)) {
        return false;
      }
    }
  }
  return Answer(s, s->rdx == 0 || CopyOut(s->rdx, &old, sizeof(old)) ? 0 : kEfault);
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
  const uint32_t expected = static_cast<uint32_t>(s->r9);
  return RequeueByWaking(s->rdi, s->r8, static_cast<int32_t>(s->rdx), static_cast<int32_t>(s->r10),
                         compare ? &expected : nullptr, FUTEX_WAKE);
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

bool Read(Slot* s) { return FileRead(s) || StreamRead(s); }

constexpr uint32_t kLaneCount = 440;

struct LaneTable {
  Lane lane[kLaneCount] = {};
  constexpr LaneTable() {
    lane[0] = Read;
    lane[1] = StreamWrite;
    lane[2] = PathOpen;
    lane[3] = FileClose;
    lane[4] = PathStat;
    lane[5] = PathFstat;
    lane[6] = PathLstat;
    lane[7] = StreamPoll;
    lane[8] = FileLseek;
    lane[13] = RtSigaction;
    lane[14] = RtSigprocmask;
    lane[17] = FilePread;
    lane[15] = SigReturn;
    lane[19] = StreamReadv;
    lane[20] = StreamWritev;
    lane[21] = PathAccess;
    lane[24] = SchedYield;
    lane[39] = GetPid;
    lane[44] = StreamSendto;
    lane[45] = StreamRecvfrom;
    lane[89] = PathReadlink;
    lane[96] = GetTimeOfDay;
    lane[102] = GetUid;
    lane[104] = GetGid;
    lane[107] = GetEuid;
    lane[108] = GetEgid;
    lane[110] = GetPpid;
    lane[158] = ArchPrctl;
    lane[186] = GetTid;
    lane[201] = Time;
    lane[202] = Futex;
    lane[218] = SetTidAddress;
    lane[228] = ClockGettime;
    lane[232] = StreamEpollWait;
    lane[233] = StreamEpollCtl;
    lane[257] = PathOpenat;
    lane[262] = PathNewfstatat;
    lane[267] = PathReadlinkat;
    lane[269] = PathFaccessat;
    lane[271] = StreamPpoll;
    lane[273] = SetRobustList;
    lane[281] = StreamEpollPwait;
    lane[309] = GetCpu;
    lane[332] = PathStatx;
    lane[334] = RegisterRseq;
    lane[439] = PathFaccessat2;
  }
};
constexpr LaneTable kLanes;

constexpr bool OnlyNamedLanes() {
  for (int nr = 0; nr < static_cast<int>(kLaneCount); nr++) {
    bool named = nr == kFutexNr;
    for (int call : kLaneCalls) named |= call == nr;
    for (int call : kThreadCalls) named |= call == nr;
    for (int call : kStreamCalls) named |= call == nr;
    for (int call : kFileCalls) named |= call == nr;
    for (int call : kPathCalls) named |= call == nr;
    for (int call : kFdCalls) named |= call == nr;
    if (named != (kLanes.lane[nr] != nullptr)) return false;
  }
  return true;
}
static_assert(OnlyNamedLanes(), "the lists in mailbox.h tell which calls have a lane");

}  // namespace

bool TryLane(Slot* s) {
  uint64_t nr = s->rax;
  // Futexes have no other home: the sentry cannot wait on the guest's words.
  bool futex = nr == uint64_t{kFutexNr};
  uint32_t off = __atomic_load_n(&s->lanes_off, __ATOMIC_RELAXED);
  if (off > (futex ? 1u : 0u)) return false;
  if (nr >= kLaneCount) return false;
  Lane lane = kLanes.lane[nr];
  return lane != nullptr && lane(s);
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

bool RunLane(Slot* s, int64_t remaining_ns) {
  uint64_t nr = s->rax;
  if (nr >= kFutex2First && nr <= kFutex2Last) return Futex2(s);
  if (nr >= kLaneCount) return false;
  if (nr == uint64_t{kFutexNr} && remaining_ns >= 0) return FutexWaitLane(s, true, remaining_ns);
  Lane lane = kLanes.lane[nr];
  return lane != nullptr && lane(s);
}

}  // namespace platform::stub
