// Signal frames on the guest's stack (Linux: arch/x86/kernel/signal.c and signal_64.c).
#include <cstddef>
#include <cstring>
#include <utility>

#include "sentry/base/log.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"

namespace sentry {

namespace {

// struct sigcontext of amd64.
struct SigContext {
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip,
      eflags;
  uint16_t cs, gs, fs, ss;
  uint64_t err, trapno, oldmask, cr2;
  uint64_t fpstate;
  uint64_t reserved[8];
};
static_assert(sizeof(SigContext) == 256);

struct UContext {
  uint64_t flags;
  uint64_t link;
  AltStack stack;
  SigContext mcontext;
  SigSet sigmask;
};
static_assert(sizeof(UContext) == 304);

struct RtSigFrame {
  uint64_t restorer;
  UContext uc;
  siginfo_t info;
};
static_assert(sizeof(RtSigFrame) == 440);

constexpr uint64_t kUcFpXstate = 1, kUcSigcontextSs = 2, kUcStrictRestoreSs = 4;
constexpr uint16_t kUserCs = 0x33, kUserSs = 0x2b;
constexpr uint64_t kRedZone = 128;
constexpr uint32_t kSsAutodisarm = 1u << 31;
// Flags that rt_sigreturn may change (FIX_EFLAGS): AC OF DF TF SF ZF AF PF CF RF.
constexpr uint64_t kFixEflags =
    0x40000 | 0x800 | 0x400 | 0x100 | 0x80 | 0x40 | 0x10 | 0x4 | 0x1 | 0x10000;
constexpr uint64_t kDf = 0x400, kTf = 0x100, kRf = 0x10000;

// Linux: copy_siginfo_to_user sends the whole structure with unused parts zero, as ours is.
SigContext SaveContext(const platform::Regs& r, uint64_t err, uint64_t trapno, uint64_t cr2,
                       SigSet mask, uint64_t fpstate) {
  SigContext c{};
  c.r8 = r.r8, c.r9 = r.r9, c.r10 = r.r10, c.r11 = r.r11, c.r12 = r.r12, c.r13 = r.r13;
  c.r14 = r.r14, c.r15 = r.r15, c.rdi = r.rdi, c.rsi = r.rsi, c.rbp = r.rbp, c.rbx = r.rbx;
  c.rdx = r.rdx, c.rax = r.rax, c.rcx = r.rcx, c.rsp = r.rsp, c.rip = r.rip, c.eflags = r.eflags;
  c.cs = kUserCs, c.ss = kUserSs;
  c.err = err, c.trapno = trapno, c.oldmask = mask, c.cr2 = cr2;
  c.fpstate = fpstate;
  return c;
}

}  // namespace

bool Task::OnAltStack(uint64_t sp) const {
  if (alt_stack_.flags & kSsAutodisarm) return false;
  return sp > alt_stack_.sp && sp - alt_stack_.sp <= alt_stack_.size;
}

void Task::SetupFrame(const siginfo_t& info, const SigAction& action, bool now) {
  // That of the signal before has been made, and what the call at hand has written is there, before
  // the registers are looked at, which tell of failures.
  FlushQueuedOrders();
  if (base::Status written = context_->FlushWrites(); !written.ok()) {
    regs().rax = static_cast<uint64_t>(-static_cast<int64_t>(written.error().code()));
  }
  context_->SettleRegs();
  const bool stepping = tracee_ && Ptrace::Disarm(*this);
  const platform::Regs saved_regs = regs();
  const SigSet saved_blocked = signal_mask();
  SigSet frame_mask = saved_mask_.value_or(saved_blocked);

  // Where the frame goes.
  uint64_t sp = saved_regs.rsp - kRedZone;
  bool entering_alt = false;
  bool nested_alt = OnAltStack(saved_regs.rsp);
  if ((action.flags & SA_ONSTACK) && alt_stack_.size != 0 && !nested_alt) {
    sp = alt_stack_.sp + alt_stack_.size;
    entering_alt = true;
  }
  size_t fpu_size = context_->fpu_frame_size();
  sp = (sp - fpu_size) & ~uint64_t{63};
  uint64_t fpu = sp;
  sp -= sizeof(RtSigFrame);
  sp = (sp & ~uint64_t{15}) - 8;
  bool bad = (nested_alt || entering_alt) && !OnAltStack(sp) && !(alt_stack_.flags & kSsAutodisarm);
  if (entering_alt && (alt_stack_.flags & kSsAutodisarm)) bad = sp < alt_stack_.sp;
  if (bad || !(action.flags & kSaRestorer) ||
      !CheckUserRange(sp, saved_regs.rsp > sp ? 1 : fpu + fpu_size - sp).ok()) {
    FrameFailed(info.si_signo);
    return;
  }

  RtSigFrame frame{};
  frame.restorer = action.restorer;
  frame.uc.flags = kUcFpXstate | kUcSigcontextSs | kUcStrictRestoreSs;
  frame.uc.stack = alt_stack_;
  if (frame.uc.stack.size == 0) frame.uc.stack.flags = SS_DISABLE;
  if (nested_alt) frame.uc.stack.flags |= SS_ONSTACK;
  frame.uc.mcontext =
      SaveContext(saved_regs, fault_error_, fault_trapno_, fault_addr_, frame_mask, fpu);
  frame.uc.sigmask = frame_mask;
  frame.info = info;

  std::vector<std::byte> bytes(sizeof(frame));
  memcpy(bytes.data(), &frame, sizeof(frame));
  std::vector<platform::Order> orders;
  orders.push_back(platform::order::SaveFpu{fpu});
  orders.push_back(platform::order::Write{sp, std::move(bytes)});
  int signo = info.si_signo;
  if (now || tracee_) {
    if (!WriteFrame(std::move(orders), {sp, fpu, fpu + fpu_size - 1})) return FrameFailed(signo);
  } else {
    // On the way to the handler. If that fails, as if nothing had been done so far.
    auto again = [this, info, action, saved_regs, saved_blocked, frame_saved = saved_mask_,
                  alt = alt_stack_](int) {
      regs() = saved_regs;
      alt_stack_ = alt;
      {
        absl::MutexLock l(&group_->signal_mutex());
        saved_mask_ = frame_saved;
        SetMaskLocked(saved_blocked);
      }
      SetupFrame(info, action, true);
      return static_cast<int64_t>(regs().rax);
    };
    QueueOrders(std::move(orders), std::move(again));
  }

  platform::Regs& r = regs();
  r.rdi = signo;
  r.rsi = sp + offsetof(RtSigFrame, info);
  r.rdx = sp + offsetof(RtSigFrame, uc);
  r.rax = 0;
  r.rip = action.handler;
  r.rsp = sp;
  r.eflags &= ~(kDf | kRf | kTf);
  r.orig_rax = ~uint64_t{0};
  if (entering_alt && (alt_stack_.flags & kSsAutodisarm)) alt_stack_ = AltStack{};

  {
    absl::MutexLock l(&group_->signal_mutex());
    saved_mask_.reset();
    SigSet mask = saved_blocked | action.mask;
    if (!(action.flags & SA_NODEFER)) mask |= SigBit(signo);
    SetMaskLocked(mask);
  }
  if (stepping) Ptrace::FrameMade(*this);
}

// The stack may have to grow for it, by the pages of `touched`.
bool Task::WriteFrame(std::vector<platform::Order> orders,
                      std::initializer_list<uint64_t> touched) {
  if (RunOrders(orders).ok()) return true;
  if (gone_) return false;
  for (uint64_t addr : touched) {
    platform::Trap fault;
    fault.kind = platform::TrapKind::kFault;
    fault.signo = SIGSEGV;
    fault.si_code = SEGV_MAPERR;
    fault.fault_addr = addr;
    fault.trapno = 14;
    fault.error_code = 6;  // a write from user mode
    if (!mm_->HandleFault(*this, fault).retry) break;
  }
  return RunOrders(std::move(orders)).ok();
}

void Task::FrameFailed(int signo) {
  // Linux: force_sigsegv. A SIGSEGV that cannot be delivered kills.
  if (signo == SIGSEGV) {
    SigAction action = group_->handlers_->Get(SIGSEGV);
    action.handler = kSigDfl;
    group_->handlers_->Set(SIGSEGV, action);
  }
  ForceSignal(MakeSiginfo(SIGSEGV, SI_KERNEL));
}

base::Result<uint64_t> Task::SigReturn() {
  platform::Regs& r = regs();
  UContext uc;
  // The handler's return took the restorer's address off the stack.
  uint64_t frame = r.rsp - 8;
  bool ok = CheckUserRange(frame, sizeof(RtSigFrame)).ok() &&
            memory()
                .Read(frame + offsetof(RtSigFrame, uc),
                      std::as_writable_bytes(std::span<UContext>(&uc, 1)))
                .ok();
  if (!ok) {
    ForceSignal(MakeSiginfo(SIGSEGV, SI_KERNEL));
    return r.rax;
  }
  SetSignalMask(uc.sigmask);
  const SigContext& c = uc.mcontext;
  r.r8 = c.r8, r.r9 = c.r9, r.r10 = c.r10, r.r11 = c.r11, r.r12 = c.r12, r.r13 = c.r13;
  r.r14 = c.r14, r.r15 = c.r15, r.rdi = c.rdi, r.rsi = c.rsi, r.rbp = c.rbp, r.rbx = c.rbx;
  r.rdx = c.rdx, r.rcx = c.rcx, r.rsp = c.rsp, r.rip = c.rip;
  r.eflags = (r.eflags & ~kFixEflags) | (c.eflags & kFixEflags);
  r.orig_rax = ~uint64_t{0};
  if (r.rip >= kUserAddressEnd) {
    ForceSignal(MakeSiginfo(SIGSEGV, SI_KERNEL));
    return c.rax;
  }
  // Linux: restore_altstack; errors are ignored.
  AltStack stack = uc.stack;
  uint32_t mode = stack.flags & ~kSsAutodisarm;
  if (!OnAltStack(r.rsp) && (mode == SS_DISABLE || mode == 0 || mode == SS_ONSTACK)) {
    if (mode == SS_DISABLE) {
      alt_stack_ = AltStack{};
    } else if (stack.size >= 2048) {
      alt_stack_ = AltStack{stack.sp, stack.flags & kSsAutodisarm, 0, stack.size};
    }
  }
  // On the way back, whoever else shares the memory: it is about this thread alone.
  std::vector<platform::Order> orders;
  orders.push_back(platform::order::RestoreFpu{c.fpstate});
  QueueOrders(std::move(orders), [this](int) {
    ForceSignal(MakeSiginfo(SIGSEGV, SI_KERNEL));
    return static_cast<int64_t>(regs().rax);
  });
  return c.rax;
}

}  // namespace sentry
