// The express lane: calls answered in the stub, without a hand-off. A handler either finishes the
// call or declines; nothing else knows which calls have one.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEfault = -14, kEinval = -22;
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

bool Read(Slot* s) { return FileRead(s) || StreamRead(s); }

// From what the sentry has put into the slot for it.
bool GetRandom(Slot* s) {
  constexpr uint32_t kNonblock = 1;
  const uint64_t count = s->rsi;
  const uint32_t left = s->random_left;
  if ((static_cast<uint32_t>(s->rdx) & ~kNonblock) != 0 || count == 0) return false;
  if (left > kRandomSize || count > left || s->rdi > kRegionBase - count) return false;
  unsigned char* bytes = s->random + (left - count);
  s->random_left = left - static_cast<uint32_t>(count);
  const bool ok = CopyOut(s->rdi, bytes, count);
  __builtin_memset(bytes, 0, count);
  __asm__ volatile("" : : "r"(bytes) : "memory");
  return ok && Answer(s, static_cast<long>(count));
}

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
    lane[318] = GetRandom;
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

bool RunLane(Slot* s, int64_t remaining_ns) {
  uint64_t nr = s->rax;
  if (nr >= kFutex2First && nr <= kFutex2Last) return Futex2(s);
  if (nr >= kLaneCount) return false;
  if (nr == uint64_t{kFutexNr} && remaining_ns >= 0) return FutexWaitLane(s, true, remaining_ns);
  Lane lane = kLanes.lane[nr];
  return lane != nullptr && lane(s);
}

}  // namespace platform::stub
