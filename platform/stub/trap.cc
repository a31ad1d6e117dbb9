// The stub's side of a round: how a trap is reported, and what is done with the answer.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

enum : int { kSigIll = 4, kSigTrap = 5, kSigBus = 7, kSigFpe = 8, kSigSegv = 11, kSigSys = 31 };
constexpr int32_t kTrapTrace = 2;    // TRAP_TRACE
constexpr int32_t kSiKernel = 0x80;  // SI_KERNEL
constexpr uint32_t kAuditArchX8664 = 0xc000003e;
constexpr uint64_t kTrapFlag = 0x100;
// Flags under which the stub's own code would go wrong: TF, DF, NT, AC.
constexpr uint64_t kOddFlags = 0x100 | 0x400 | 0x4000 | 0x40000;
constexpr uint64_t kLahfFlags = 0xd5;  // SF, ZF, AF, PF, CF
constexpr uint64_t kOverflowFlag = 0x800;
constexpr unsigned char kInt3 = 0xcc;
constexpr uint64_t kTrapDebug = 1;
constexpr uint64_t kTrapGeneralProtection = 13;
constexpr uint64_t kInt80ErrorCode = 0x80 * 8 + 2;  // the IDT entry that a 64-bit kernel may lack

bool InStubText(uint64_t rip) { return rip >= kStubBase && rip < kStubBase + kStubTextMax; }
bool InRange(uint64_t rip, const char* begin, const char* end) {
  return rip >= Addr(begin) && rip < Addr(end);
}

// Guest registers: host frame -> slot.
void LoadFrame(Slot* s, UContext* uc) {
  const SigContext& m = uc->mc;
  s->rax = m.rax;
  s->rdi = m.rdi;
  s->rsi = m.rsi;
  s->rdx = m.rdx;
  s->r10 = m.r10;
  s->r8 = m.r8;
  s->r9 = m.r9;
  s->rip = m.rip;
  s->rsp = m.rsp;
  s->eflags = m.eflags;
  s->rbx = m.rbx;
  s->rbp = m.rbp;
  s->r12 = m.r12;
  s->r13 = m.r13;
  s->r14 = m.r14;
  s->r15 = m.r15;
  s->rcx = m.rcx;
  s->r11 = m.r11;
  s->fs_base = ReadFsBase();
  uint64_t gs = ReadGsBase();
  s->gs_owned = gs != Addr(s);
  s->gs_base = s->gs_owned ? gs : 0;
  s->mode = kModeFrame;
  s->frame = Addr(uc);
}

// Slot -> host frame.
void StoreFrame(UContext* uc, const Slot* s) {
  SigContext& m = uc->mc;
  m.rax = s->rax;
  m.rdi = s->rdi;
  m.rsi = s->rsi;
  m.rdx = s->rdx;
  m.r10 = s->r10;
  m.r8 = s->r8;
  m.r9 = s->r9;
  m.rip = s->rip;
  m.rsp = s->rsp;
  m.eflags = s->eflags;
  m.rbx = s->rbx;
  m.rbp = s->rbp;
  m.r12 = s->r12;
  m.r13 = s->r13;
  m.r14 = s->r14;
  m.r15 = s->r15;
  m.rcx = s->rcx;
  m.r11 = s->r11;
}

// Wakes the sentry's poller if it sleeps. The doorbell is read-only here, so a wake that comes
// between the poller's last look and its FUTEX_WAIT finds nobody; then it is tried again. More
// often it finds nobody because the poller has been woken and has no core yet, which tries would
// only keep it from.
enum class Rung {
  kNobody,  // the poller is awake
  kWoken,
  kUnsure,  // it may be on its way to sleep
};
constexpr int kRings = 4;

Rung Ring(const Slot* s, uint32_t seq) {
  const uint32_t* bell = &SharedPage()->sleeping;
  for (int i = 0; i < kRings; i++) {
    if (Load(bell) == 0 || Load(&s->answer_seq) != seq)
      return i == 0 ? Rung::kNobody : Rung::kWoken;
    if (FutexWake(bell, 1) > 0) return Rung::kWoken;
    Pause();
  }
  return Rung::kUnsure;
}

uint32_t PollerCpu() { return __atomic_load_n(&SharedPage()->poller_cpu, __ATOMIC_RELAXED); }

// A poller that has slept on our processor mostly wakes there, when we leave it; but on another if
// that is idle and the host takes the time to look.
constexpr uint32_t kWokeElsewhere = 16;

bool InPollersWay(Slot* s) {
  if (CurrentCpu() != PollerCpu()) return false;
  if (s->woke_elsewhere == 0) return true;
  s->woke_elsewhere--;
  return false;
}

constexpr uint64_t kRingAgainNs = 200'000;
constexpr int kLooksPerTick = 16;  // looks for an answer between those at the clock
// Spinning in vain makes a debt, spinning that finds an answer pays it back. With all the debt that
// there may be, spinning is tried once in so many waits: one success is enough to begin again.
constexpr uint32_t kMaxSpinDebt = 16, kSpinPays = 2;
constexpr uint32_t kProbeEvery = 16;
constexpr uint32_t kLittlePart = 8;

// What is waited for here comes late or never, and often another process needs this core for it.
Patience PatienceOf(const Slot* s, RequestKind kind) {
  enum : uint64_t {
    kClone = 56,
    kVfork = 58,
    kWait4 = 61,
    kExitGroup = 231,
    kWaitid = 247,
    kClone3 = 435
  };
  constexpr uint64_t kNoHang = 1, kCloneVfork = 0x4000;
  const uint64_t* args = s->call_args;
  if (kind == RequestKind::kOrdersDone) {
    // The child is made, and has the address space until it executes a program.
    if (s->call_nr == kClone3) return Patience::kLittle;
    const bool vfork = s->call_nr == kVfork || (s->call_nr == kClone && (args[0] & kCloneVfork));
    return vfork ? Patience::kNone : Patience::kAll;
  }
  if (kind != RequestKind::kSyscall) return Patience::kAll;
  switch (s->call_nr) {
    case kExitGroup:
      return Patience::kNone;
    case kWait4:
      return args[2] & kNoHang ? Patience::kAll : Patience::kLittle;
    case kWaitid:
      return args[3] & kNoHang ? Patience::kAll : Patience::kLittle;
    default:
      return Patience::kAll;
  }
}

bool Answered(Slot* s, uint32_t seq) {
  if (__atomic_load_n(&s->answer_seq, __ATOMIC_ACQUIRE) == seq) return false;
  if (s->spin_debt != 0) s->spin_debt -= s->spin_debt < kSpinPays ? s->spin_debt : kSpinPays;
  return true;
}

[[noreturn]] void Park(Slot* s);

// Returns what is to be reported next, or 0 if the guest is to be entered.
uint32_t HandleAnswer(Slot* s) {
  uint32_t flags = s->answer_flags;
  if (flags & kAnswerExit) {
    RunLastOrders(s, s->order_count);
    // The host would go on writing to an area for rseq(2).
    if ((flags & kAnswerPark) && !s->rseq_held) Park(s);
    for (;;) Syscall(kSysExit, 0);
  }
  if (flags & kAnswerRegs) {
    s->restore_all = 1;
    if (s->fs_base != ReadFsBase()) WriteFsBase(s->fs_base);
    s->gs_owned = s->gs_base != 0;
    if (!s->gs_owned && ReadGsBase() != Addr(s)) WriteGsBase(Addr(s));
  } else if (!(flags & kAnswerOrdersOnly)) {
    s->rax = s->answer_rax;
  }
  uint32_t copies = s->copy_out_count;
  if (copies != 0) {
    if (int error = RunCopyOut(s, copies)) {
      s->order_index = kCopyOutIndex;
      s->order_error = error;
      return static_cast<uint32_t>(RequestKind::kOrderFailed);
    }
  }
  uint32_t orders = s->order_count;
  if (orders != 0 && !RunOrders(s, orders, s->fd_count)) {
    return static_cast<uint32_t>(RequestKind::kOrderFailed);
  }
  if (flags & kAnswerOrdersOnly) return static_cast<uint32_t>(RequestKind::kOrdersDone);
  if (flags & kAnswerLane) {
    int64_t remaining = (flags & kAnswerRemaining) ? s->remaining_ns : -1;
    s->copied_in = 0;
    s->futex_interrupted = 0;
    if (!RunLane(s, remaining)) return static_cast<uint32_t>(RequestKind::kSyscall);
    if (flags & kAnswerLaneTraps) return static_cast<uint32_t>(RequestKind::kInterrupt);
  }
  if (Load(&s->interrupt)) return static_cast<uint32_t>(RequestKind::kInterrupt);
  return 0;
}

// All of the request's line at once, since the sentry polls it.
void WriteRequest(Slot* s, uint32_t seq, RequestKind kind) {
  unsigned flags = 0;
  if (s->mode == kModeDirect && !s->traced_call) flags |= kRequestDirect;
  if (s->futex_interrupted) flags |= kRequestFutexInterrupted;
  if (s->mask_changed) flags |= kRequestMaskChanged;
  if (s->lane_done) flags |= kRequestLaneDone;
  if (s->lane_waited && kind == RequestKind::kSyscall) flags |= kRequestLaneWaited;
  s->lane_done = 0;
  s->lane_waited = 0;
  RequestHead head{seq, kind, static_cast<uint8_t>(flags), static_cast<uint16_t>(s->copied_in)};
  if (kind == RequestKind::kSyscall) {
    s->call_nr = s->rax;
    s->call_args[0] = s->rdi;
    s->call_args[1] = s->rsi;
    s->call_args[2] = s->rdx;
    s->call_args[3] = s->r10;
    s->call_args[4] = s->r8;
    s->call_args[5] = s->r9;
  }
  __atomic_store(&s->request, &head, __ATOMIC_RELEASE);
}

// Of a thread that has asked for nothing so far, so that nobody need be woken for it.
void FirstAnswer(Slot* s, Patience patience) {
  AwaitAnswer(s, 0, patience, Bell::kLeave);
  if (uint32_t kind = HandleAnswer(s)) HandOff(s, static_cast<RequestKind>(kind));
}

// A fault inside the stub. Returns true if it was foreseen and the frame is mended.
bool RecoverFault(Slot* s, const SigInfo* info, UContext* uc) {
  uint64_t rip = uc->mc.rip;
  if (rip == Addr(kStubCopyFault)) {
    s->copy_fault = info->addr;
    uc->mc.rip = Addr(kStubCopyFixup);
    return true;
  }
  if (rip == Addr(kStubStringFault)) {
    uc->mc.rip = Addr(kStubStringFixup);
    return true;
  }
  if (rip == Addr(kStubExchangeFault)) {
    uc->mc.rip = Addr(kStubExchangeFixup);
    return true;
  }
  if (rip == Addr(kStubXsaveFault) || rip == Addr(kStubXrstorFault)) {
    uc->mc.rip = Addr(kStubXFixup);
    return true;
  }
  return false;
}

void HandOffCall(Slot* s) {
  HandOff(s, RequestKind::kSyscall);
  if (s->futex_interrupted) s->futex_interrupted = 0;
  if (s->lane_wait) Store(&s->lane_wait, 0u);
}

// A call with its registers in the slot. False if it was answered here.
bool HandleCall(Slot* s) {
  if (TryLane(s)) return false;
  CopyIn(s);
  HandOffCall(s);
  return true;
}

// The registers of a patched call that its entry has not stored.
void StoreDirect(Slot* s) {
  s->eflags = s->call_flags;
  s->rcx = s->rip;
  s->r11 = s->call_flags;
  s->fs_base = ReadFsBase();
  s->gs_base = 0;
  s->mode = kModeDirect;
}

// Does the comparison that a patched site has swallowed, where the way back to the guest does not.
void FinishCompare(Slot* s) {
  if (s->site_form == kSiteMov) return;
  constexpr uint64_t kCompareFlags = kLahfFlags | kOverflowFlag;
  constexpr uint64_t kCompareBytes = 6;
  int64_t bound = s->site_form == kSiteCompare4095 ? -4095 : -4096;
  uint64_t flags;
  __asm__("cmp %2, %1\n\tpushfq\n\tpop %0"
          : "=r"(flags)
          : "r"(static_cast<int64_t>(s->rax)), "r"(bound)
          : "cc");
  s->eflags = (s->eflags & ~kCompareFlags) | (flags & kCompareFlags);
  s->rip += kCompareBytes;
}

constexpr uint64_t kTicksPerDraw = 64, kTellsEvery = 16;

bool WorthPatching(Slot* s) {
  LaneHits& hits = s->lane_hits[(s->rip >> 2) % kLaneHits];
  if (hits.rip != s->rip) hits = LaneHits{s->rip, 0};
  // Again, each time later: what could not be patched at first may be known to be right since.
  hits.count++;
  // Many short processes may make the call once each: some tell of it, so that a text which
  // processes share gets it patched.
  if (hits.count == 1) return Ticks() / kTicksPerDraw % kTellsEvery == 0;
  return hits.count >= kHitsBeforePatch && (hits.count & (hits.count - 1)) == 0;
}

// A patched call of a thread whose GS is the guest's: as if its syscall instruction had trapped.
void ForeignCall(Slot* s, UContext* uc) {
  const Site& site = Header()->sites[uc->mc.rcx % kMaxSites];
  uc->mc.rip = site.return_address;
  if (site.form == kSiteMov) uc->mc.rax = site.nr;
  LoadFrame(s, uc);
  s->site_form = site.form;
  s->restore_all = 0;
  if (!HandleCall(s) && !s->restore_all) FinishCompare(s);
  StoreFrame(uc, s);
}

// An int3 that a site under change held for a moment (see Patch in orders.cc).
bool PatchedMeanwhile(uint64_t addr) {
  if (Load(&Header()->patching) == addr) return true;
  unsigned char now;
  return StubCopy(&now, reinterpret_cast<const void*>(addr), 1) == 0 && now != kInt3;
}

void FillFault(Slot* s, int signo, const SigInfo* info, const UContext* uc) {
  s->signo = static_cast<uint32_t>(signo);
  s->si_code = info->code;
  s->fault_addr = info->addr;
  s->trapno = uc->mc.trapno;
  s->error_code = uc->mc.err;
}

}  // namespace

void AwaitAnswer(Slot* s, uint32_t seq, Patience patience, Bell bell) {
  uint32_t budget = __atomic_load_n(&SharedPage()->spin_ticks, __ATOMIC_RELAXED);
  Rung rung = Rung::kNobody;
  if (!SharedPage()->traced) {
    if (bell == Bell::kRing) rung = Ring(s, seq);
  } else if (Load(&SharedPage()->sleeping) != 0) {
    budget = 0;  // a call more would cost much: the tracer rings when it sees us wait
  }
  bool in_its_way = rung != Rung::kNobody && InPollersWay(s);
  if (s->forked) {
    // The host has put the child on our core, unless another one was free.
    s->forked = 0;
    budget = 0;
  }
  if (patience == Patience::kNone) budget = 0;
  if (patience == Patience::kLittle) budget /= kLittlePart;
  if (budget != 0 && !in_its_way &&
      (s->spin_debt < kMaxSpinDebt || ++s->spin_misses % kProbeEvery == 0)) {
    // The quickest answers come before it is worth to look at the clock.
    uint64_t start = 0, now = 0;
    do {
      for (int i = 0; i < kLooksPerTick; i++) {
        if (Answered(s, seq)) return;
        Pause();
      }
      now = Ticks();
      if (start == 0) start = now;
    } while (now - start < budget);
    if (patience == Patience::kAll && s->spin_debt < kMaxSpinDebt) s->spin_debt++;
  }
  const uint32_t cpu = CurrentCpu();
  s->cpu = cpu;
  Store(&s->sleeping, 1u);
  while (Load(&s->answer_seq) == seq) {
    if (rung != Rung::kUnsure) {
      FutexWait(&s->answer_seq, seq);
    } else {
      __kernel_timespec timeout{0, kRingAgainNs};
      Syscall(kSysFutex, Addr(&s->answer_seq), FUTEX_WAIT, seq, Addr(&timeout));
      rung = Ring(s, seq);
    }
  }
  Store(&s->sleeping, 0u);
  if (in_its_way && PollerCpu() != cpu) s->woke_elsewhere = kWokeElsewhere;
}

void HandOff(Slot* s, RequestKind kind) {
  for (;;) {
    uint32_t seq = s->answer_seq;
    uint32_t index = SlotIndex(s);
    const bool stamp = __atomic_load_n(&s->stamp, __ATOMIC_RELAXED) != 0;
    if (stamp) s->trapped_at = Ticks();
    WriteRequest(s, seq, kind);
    __atomic_fetch_or(&Header()->ready[index / 64], 1ull << (index % 64), __ATOMIC_SEQ_CST);
    AwaitAnswer(s, seq, PatienceOf(s, kind), Bell::kRing);
    if (stamp) s->resumed_at = Ticks();
    uint32_t next = HandleAnswer(s);
    if (next == 0) return;
    kind = static_cast<RequestKind>(next);
  }
}

extern "C" bool StubHandleSignal(int signo, SigInfo* info, UContext* uc, Slot* s) {
  uint64_t rip = uc->mc.rip;
  if (signo == kInterruptSignal) {
    if (InStubText(rip)) {
      if (InRange(rip, kSigreturnBegin, kSigreturnEnd)) {
        uc->mc.rip = Addr(kSigreturnBegin);
      } else if (InRange(rip, kEnterBegin, kEnterEnd)) {
        uc->mc.rip = Addr(kEnterBegin);
        uc->mc.rdi = Addr(s);
      } else if (InRange(rip, kFastBegin, kFastEnd)) {
        uc->mc.rip = Addr(kFastBegin);
      } else if (InRange(rip, kQuickMovBegin, kQuickMovEnd)) {
        uc->mc.rip = Addr(kQuickMovBegin);
      } else if (InRange(rip, kQuickCompareBegin, kQuickCompareEnd)) {
        uc->mc.rip = Addr(kQuickCompareBegin);
      } else if (InRange(rip, kFutexBegin, kFutexEnd)) {
        uc->mc.rip = Addr(kFutexBegin);
      }
      return false;
    }
    if (!Load(&s->interrupt)) return false;  // a trap has answered it since
    LoadFrame(s, uc);
    HandOff(s, RequestKind::kInterrupt);
    StoreFrame(uc, s);
    return true;
  }
  if (signo == kSigSys) {
    LoadFrame(s, uc);
    if (info->arch == kAuditArchX8664) {
      s->restore_all = 0;
      if (s->rax == kSysRtSigreturn && WorthPatching(s)) {
        // Answered here, it would leave nothing of where it came from to tell of.
        s->copied_in = 0;
        HandOffCall(s);
      } else if (!HandleCall(s) && !s->restore_all && WorthPatching(s)) {
        HandOff(s, RequestKind::kPatchHint);
      }
    } else {
      // int $0x80: as on a kernel without 32-bit entry points, a general protection fault.
      s->rip -= 2;
      s->signo = kSigSegv;
      s->si_code = kSiKernel;
      s->fault_addr = 0;
      s->trapno = kTrapGeneralProtection;
      s->error_code = kInt80ErrorCode;
      HandOff(s, RequestKind::kFault);
    }
    StoreFrame(uc, s);
    return true;
  }
  if (InStubText(rip)) {
    if (signo == kSigTrap && info->code == kTrapTrace) {
      // The guest steps into us: it owes the trap after its next instruction.
      uc->mc.eflags &= ~kTrapFlag;
      s->step = 1;
      return false;
    }
    if (RecoverFault(s, info, uc)) return false;
    if (signo == kSigIll && rip == Addr(kForeignGs)) {
      ForeignCall(s, uc);
      return true;
    }
    // The way into the guest faulted (an address that is not canonical): the guest's registers are
    // in the slot.
    if (InRange(rip, kEnterBegin, kEnterEnd)) StoreFrame(uc, s);
  }
  if (signo == kSigTrap && info->code == kSiKernel && PatchedMeanwhile(rip - 1)) {
    uc->mc.rip--;
    return false;
  }
  LoadFrame(s, uc);
  FillFault(s, signo, info, uc);
  HandOff(s, RequestKind::kFault);
  StoreFrame(uc, s);
  return true;
}

extern "C" void StubInterruptedFrame(UContext* uc, Slot* s) {
  HandOff(s, RequestKind::kInterrupt);
  StoreFrame(uc, s);
}

extern "C" bool StubDirectCall(Slot* s, uint64_t flags, uint32_t saved) {
  uint64_t odd = flags & kOddFlags;
  if (odd) __asm__ volatile("pushq $0x202\n\tpopfq" : : : "cc", "memory");
  flags &= ~(kLahfFlags | kOverflowFlag);
  flags |= (saved >> 8) & kLahfFlags;
  if (saved & 1) flags |= kOverflowFlag;
  bool step = s->step != 0;
  if (step) {
    flags |= kTrapFlag;
    odd |= kTrapFlag;
    s->step = 0;
  }
  s->call_flags = flags;
  s->mode = kModeDirect;
  s->gs_owned = 0;
  s->restore_all = 0;
  bool answered = TryLane(s);
  const bool all = answered && s->restore_all != 0;
  const bool hint = answered && !all && s->traced_call && WorthPatching(s);
  if (all || (answered && !odd && !hint)) {
    s->traced_call = 0;
    return all;
  }
  if (!answered) CopyIn(s);
  StoreDirect(s);
  if (!answered) {
    HandOffCall(s);
  } else if (hint) {
    HandOff(s, RequestKind::kPatchHint);
  }
  s->traced_call = 0;
  // If the sentry has set the registers, they are complete.
  if (odd && !s->restore_all) FinishCompare(s);
  // Where each call is to reach the kernel, it has reported the step over this one, or does
  // without.
  const bool told = !answered && __atomic_load_n(&s->lanes_off, __ATOMIC_RELAXED) == 2;
  if (step && !s->restore_all && !told) {
    s->signo = kSigTrap;
    s->si_code = kTrapTrace;
    s->fault_addr = s->rip;
    s->trapno = kTrapDebug;
    s->error_code = 0;
    HandOff(s, RequestKind::kFault);
  }
  return odd != 0 || s->restore_all != 0;
}

extern "C" void StubInterruptedDirect(Slot* s) { HandOff(s, RequestKind::kInterrupt); }

// After a patched call that returned the quick way: what of its registers is not in the slot yet.
extern "C" void StubInterruptedCall(Slot* s) {
  StoreDirect(s);
  HandOff(s, RequestKind::kInterrupt);
}

namespace {

void Prepare(Slot* s) {
  s->self = Addr(s);
  s->mode = kModeDirect;
  s->gs_owned = 0;
  WriteGsBase(Addr(s));
}

// Waits until another thread of the guest is to run here, which begins like a new one. The frame of
// the host's signal that has brought us here, if one has, is left as it is: it blocked no signals.
void Park(Slot* s) {
  constexpr uint64_t kThreadCpuClock = 3;
  Store(&s->parked, uint32_t{kParked});
  while (Load(&s->parked) == kParked) FutexWait(&s->parked, kParked);
  TakeFpu(s);
  Store(&s->parked, uint32_t{kNotParked});
  __kernel_timespec t{};
  Syscall(kSysClockGettime, kThreadCpuClock, Addr(&t));
  s->cpu_base_ns = t.tv_sec * 1'000'000'000 + t.tv_nsec;
  Prepare(s);
  FirstAnswer(s, Patience::kAll);
  StubEnterGuest(s);
}

[[noreturn]] void BeginThread(Slot* s, Patience patience) {
  Prepare(s);
  FirstAnswer(s, patience);
  StubEnterGuest(s);
}

}  // namespace

extern "C" void StubThreadMain(Slot* s) {
  // The FPU state is inherited, and lost on the way to the signal stack.
  s->mode = kModeDirect;
  GiveFpu(s, s);
  StubSetSignalStack(s);
  TakeFpu(s);
  BeginThread(s, Patience::kAll);
}

// A stub in the pool waits for a program that may come late or never.
extern "C" void StubFirstThreadMain(Slot* s) {
  StubSetSignalStack(s);
  BeginThread(s, Patience::kNone);
}

extern "C" void StubForkChild(Slot* s, int mailbox_fd, int socket_fd, int old_socket_fd) {
  Syscall(kSysClose, static_cast<uint64_t>(mailbox_fd));
  Syscall(kSysClose, static_cast<uint64_t>(old_socket_fd));
  Header()->socket = socket_fd;
  Prepare(s);
  HandOff(s, RequestKind::kReady);
  StubEnterGuest(s);
}

}  // namespace platform::stub
