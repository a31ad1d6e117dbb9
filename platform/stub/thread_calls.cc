// Calls that concern the calling thread alone: what it registers with the kernel is told the sentry
// when it looks, and the return from a signal's handler finds all that it needs in the frame.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEfault = -14, kEinval = -22;
constexpr uint64_t kTrapFlag = 0x100;
// What rt_sigreturn(2) takes of the flags (arch/x86/kernel/signal_64.c, FIX_EFLAGS): AC, OF, DF,
// TF, SF, ZF, AF, PF, CF, RF.
constexpr uint64_t kFrameFlags = 0x50dd5;
constexpr uint32_t kOnStack = 1, kDisable = 2;  // SS_ONSTACK, SS_DISABLE

bool Answer(Slot* s, long value) {
  s->rax = static_cast<uint64_t>(value);
  return true;
}

void Changed(Slot* s, ThreadWord word) { Store(&s->words_changed, s->words_changed | word); }

// Whether the signal stack that the frame says is the one that there is.
bool SameStack(const Slot* s, const UContext& uc) {
  const uint32_t flags = static_cast<uint32_t>(uc.stack_flags);
  if (s->alt_stack_size == 0) return flags == kDisable;
  return uc.stack_sp == s->alt_stack_sp && uc.stack_size == s->alt_stack_size &&
         (flags & ~kOnStack) == s->alt_stack_flags;
}

// Whether the code at `rip` belongs to a call site that has been patched since the frame was made:
// the jump now covers the comparison behind the system call, and the sentry knows how to go on.
bool InPatchedSite(uint64_t rip) {
  constexpr uint32_t kJump = 0x2524ff, kJumpMask = 0xffffff;  // jmp *disp32, see mailbox.h
  uint32_t code;
  return StubCopy(&code, reinterpret_cast<const void*>(rip - 2), sizeof(code)) == 0 &&
         (code & kJumpMask) == kJump;
}

// The mask is open while no signal is pending, so that none becomes deliverable by a change.
bool SetMask(Slot* s, uint64_t word, uint64_t mask) {
  const uint64_t next = (mask & ~kUnblockableSignals) | kMaskOpen;
  if (next == word) return true;
  s->mask_changed = 1;
  return __atomic_compare_exchange_n(&s->sigmask, &word, next, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

}  // namespace

// A frame that cannot be read, leads to the stub's region or into a patched site, steps, or changes
// the signal stack is the sentry's. So is one at which the mask closes: it begins anew, with the
// same frame.
bool SigReturn(Slot* s) {
  const uint64_t word = Load(&s->sigmask);
  if (!s->thread_calls || !(word & kMaskOpen) || s->rsp >= kRegionBase - kPageSize) return false;
  UContext uc;  // the restorer's address is off the stack
  if (StubCopy(&uc, reinterpret_cast<const void*>(s->rsp), sizeof(uc)) != 0) return false;
  const bool direct = s->mode == kModeDirect;
  const uint64_t flags = direct ? s->call_flags : s->eflags;
  if (((flags | uc.mc.eflags) & kTrapFlag) != 0 || uc.mc.rip >= kRegionBase - kPageSize ||
      !SameStack(s, uc) || InPatchedSite(uc.mc.rip) || RestoreFpu(s, uc.mc.fpstate) != 0 ||
      !SetMask(s, word, uc.mask)) {
    return false;
  }
  s->r8 = uc.mc.r8;
  s->r9 = uc.mc.r9;
  s->r10 = uc.mc.r10;
  s->r11 = uc.mc.r11;
  s->r12 = uc.mc.r12;
  s->r13 = uc.mc.r13;
  s->r14 = uc.mc.r14;
  s->r15 = uc.mc.r15;
  s->rdi = uc.mc.rdi;
  s->rsi = uc.mc.rsi;
  s->rbp = uc.mc.rbp;
  s->rbx = uc.mc.rbx;
  s->rdx = uc.mc.rdx;
  s->rax = uc.mc.rax;
  s->rcx = uc.mc.rcx;
  s->rsp = uc.mc.rsp;
  s->rip = uc.mc.rip;
  s->eflags = (flags & ~kFrameFlags) | (uc.mc.eflags & kFrameFlags);
  if (direct) {
    s->fs_base = ReadFsBase();
    s->gs_base = 0;
  }
  s->restore_all = 1;
  return true;
}

// FS is the guest's in the processor too, whatever way it goes on.
bool ArchPrctl(Slot* s) {
  if (!s->thread_calls) return false;
  if (static_cast<uint32_t>(s->rdi) == kArchSetFs) {
    if (s->rsi >= kRegionBase) return false;
    WriteFsBase(s->rsi);
    s->fs_base = s->rsi;
    return Answer(s, 0);
  }
  if (static_cast<uint32_t>(s->rdi) == kArchGetFs) {
    const uint64_t base = ReadFsBase();
    return Answer(
        s, StubCopy(reinterpret_cast<void*>(s->rsi), &base, sizeof(base)) == 0 ? 0 : kEfault);
  }
  return false;
}

bool SetTidAddress(Slot* s) {
  if (!s->thread_calls || !s->has_identity) return false;
  s->clear_child_tid = s->rdi;
  Changed(s, kWordClearChildTid);
  return Answer(s, s->tid);
}

bool SetRobustList(Slot* s) {
  if (!s->thread_calls) return false;
  if (s->rsi != 3 * sizeof(uint64_t)) return Answer(s, kEinval);  // struct robust_list_head
  s->robust_list = s->rdi;
  Changed(s, kWordRobustList);
  return Answer(s, 0);
}

// The registration is the host's, which knows what there is already and refuses what is wrong.
bool RegisterRseq(Slot* s) {
  if (!s->thread_calls || s->rdi >= kRegionBase - kPageSize) return false;
  const uint32_t length = static_cast<uint32_t>(s->rsi), flags = static_cast<uint32_t>(s->rdx);
  const uint32_t signature = static_cast<uint32_t>(s->r10);
  const long r = HostRseq(s, s->rdi, length, flags, signature);
  if (r == 0) {
    const bool gone = (flags & kRseqUnregister) != 0;
    s->rseq_addr = gone ? 0 : s->rdi;
    s->rseq_length = gone ? 0 : length;
    s->rseq_signature = gone ? 0 : signature;
    Changed(s, kWordRseq);
  }
  return Answer(s, r);
}

}  // namespace platform::stub
