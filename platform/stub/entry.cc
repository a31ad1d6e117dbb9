// Ways into and out of the stub's C++ code. Offsets come from the structs, so that nothing here can
// disagree with mailbox.h.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {

#define NAKED __attribute__((naked, noinline, used))
#define OFF(field) [field] "i"(offsetof(Slot, field))

// UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS: a frame's stack segment is to be taken.
constexpr int kFrameHasStackSegment = 6;

extern "C" {

// The kernel calls this on the slot's stack: rsp points to the return address of the frame, the
// ucontext follows. GS is the guest's or ours; ours is found from the stack.
//
// From kSigreturnBegin to the end of the syscall instruction runs the restartable section: if the
// interrupt signal arrives inside it, its handler moves rip back to kSigreturnBegin, where the flag
// is looked at again. rbx holds the slot, rsp the ucontext.
NAKED void StubSignalEntry(int, SigInfo*, UContext*) {
  __asm__ volatile(
      "mov %%rsp, %%rcx\n\t"
      "and %[mask], %%rcx\n\t"
      "mov %%rcx, %%rbx\n\t"
      "mov %%rsp, %%rbp\n\t"
      "and $-16, %%rsp\n\t"
      "call StubHandleSignal\n\t"
      "lea 8(%%rbp), %%rsp\n\t"
      "test %%al, %%al\n\t"
      "jz 3f\n\t"
      ".globl kSigreturnBegin\n\t"
      "kSigreturnBegin:\n\t"
      "cmpl $0, %c[interrupt](%%rbx)\n\t"
      "jne 2f\n\t"
      "cmpl $0, %c[gs_owned](%%rbx)\n\t"
      "jne 4f\n\t"
      "1: mov $15, %%eax\n\t"
      "syscall\n\t"
      // A guest that owns GS: load it. (Without FSGSBASE the C++ code has done so.)
      "4: mov %[shared], %%rax\n\t"
      "cmpl $0, %c[has_fsgsbase](%%rax)\n\t"
      "je 5f\n\t"
      "mov %c[gs_base](%%rbx), %%rax\n\t"
      "wrgsbase %%rax\n\t"
      "jmp 1b\n\t"
      "5: mov $158, %%eax\n\t"
      "mov $0x1001, %%edi\n\t"
      "mov %c[gs_base](%%rbx), %%rsi\n\t"
      "syscall\n\t"
      "jmp 1b\n\t"
      ".globl kSigreturnEnd\n\t"
      "kSigreturnEnd:\n\t"
      "2: mov %%rsp, %%rdi\n\t"
      "mov %%rbx, %%rsi\n\t"
      "mov %%rsp, %%rbp\n\t"
      "and $-16, %%rsp\n\t"
      "call StubInterruptedFrame\n\t"
      "mov %%rbp, %%rsp\n\t"
      "jmp kSigreturnBegin\n\t"
      // Back into the stub's own code.
      "3: mov $15, %%eax\n\t"
      "syscall\n\t"
      :
      : [mask] "i"(-static_cast<int>(kSlotSize)), OFF(interrupt), OFF(gs_owned), OFF(gs_base),
        [shared] "i"(kSharedBase), [has_fsgsbase] "i"(offsetof(Shared, has_fsgsbase)));
}

// Direct mode: all registers from the slot, the flags and rip by iretq. The restartable section is
// [kEnterBegin, kEnterEnd); it needs only the slot, which the interrupt's handler gives it again in
// rdi.
NAKED void StubEnterGuest(Slot*) {
  __asm__ volatile(
      ".globl kEnterBegin\n\t"
      "kEnterBegin:\n\t"
      "cmpl $0, %c[interrupt](%%rdi)\n\t"
      "jne 1f\n\t"
      "lea %c[stack_end](%%rdi), %%rsp\n\t"
      "mov %%ss, %%eax\n\t"
      "push %%rax\n\t"
      "pushq %c[rsp](%%rdi)\n\t"
      "pushq %c[eflags](%%rdi)\n\t"
      "mov %%cs, %%eax\n\t"
      "push %%rax\n\t"
      "pushq %c[rip](%%rdi)\n\t"
      "cmpl $0, %c[gs_owned](%%rdi)\n\t"
      "jne 3f\n\t"
      "2: mov %c[rax](%%rdi), %%rax\n\t"
      "mov %c[rbx](%%rdi), %%rbx\n\t"
      "mov %c[rcx](%%rdi), %%rcx\n\t"
      "mov %c[rdx](%%rdi), %%rdx\n\t"
      "mov %c[rsi](%%rdi), %%rsi\n\t"
      "mov %c[rbp](%%rdi), %%rbp\n\t"
      "mov %c[r8](%%rdi), %%r8\n\t"
      "mov %c[r9](%%rdi), %%r9\n\t"
      "mov %c[r10](%%rdi), %%r10\n\t"
      "mov %c[r11](%%rdi), %%r11\n\t"
      "mov %c[r12](%%rdi), %%r12\n\t"
      "mov %c[r13](%%rdi), %%r13\n\t"
      "mov %c[r14](%%rdi), %%r14\n\t"
      "mov %c[r15](%%rdi), %%r15\n\t"
      "mov %c[rdi](%%rdi), %%rdi\n\t"
      "iretq\n\t"
      "3: mov %[shared], %%rax\n\t"
      "cmpl $0, %c[has_fsgsbase](%%rax)\n\t"
      "je 4f\n\t"
      "mov %c[gs_base](%%rdi), %%rax\n\t"
      "wrgsbase %%rax\n\t"
      "jmp 2b\n\t"
      "4: mov %%rdi, %%rbx\n\t"
      "mov $158, %%eax\n\t"
      "mov $0x1001, %%edi\n\t"
      "mov %c[gs_base](%%rbx), %%rsi\n\t"
      "syscall\n\t"
      "mov %%rbx, %%rdi\n\t"
      "jmp 2b\n\t"
      ".globl kEnterEnd\n\t"
      "kEnterEnd:\n\t"
      "1: lea %c[stack_end](%%rdi), %%rsp\n\t"
      "mov %%rdi, %%rbx\n\t"
      "call StubInterruptedDirect\n\t"
      "mov %%rbx, %%rdi\n\t"
      "jmp kEnterBegin\n\t"
      :
      : OFF(interrupt), OFF(gs_owned), OFF(gs_base), OFF(rip), OFF(rsp), OFF(eflags), OFF(rax),
        OFF(rbx), OFF(rcx), OFF(rdx), OFF(rsi), OFF(rdi), OFF(rbp), OFF(r8), OFF(r9), OFF(r10),
        OFF(r11), OFF(r12), OFF(r13), OFF(r14), OFF(r15), [stack_end] "i"(kSlotStackEnd),
        [shared] "i"(kSharedBase), [has_fsgsbase] "i"(offsetof(Shared, has_fsgsbase)));
}

// A frame as the host's rt_sigreturn(2) reads it (arch/x86/kernel/signal_64.c), which leads to our
// caller.
NAKED void StubSetSignalStack(Slot*) {
  __asm__ volatile(
      "mov %%rdi, %%rsi\n\t"
      "pop %%r8\n\t"
      "mov %%rsp, %%rdx\n\t"
      "sub $%c[size], %%rsp\n\t"
      "mov %%rsp, %%rdi\n\t"
      "mov $%c[size], %%ecx\n\t"
      "xor %%eax, %%eax\n\t"
      "cld\n\t"
      "rep stosb\n\t"
      "movq $%c[frame_flags], %c[uc_flags](%%rsp)\n\t"
      "add $%c[stack], %%rsi\n\t"
      "mov %%rsi, %c[uc_stack](%%rsp)\n\t"
      "movq $%c[stack_size], %c[uc_stack_size](%%rsp)\n\t"
      "mov %%rbx, %c[uc_rbx](%%rsp)\n\t"
      "mov %%rbp, %c[uc_rbp](%%rsp)\n\t"
      "mov %%r12, %c[uc_r12](%%rsp)\n\t"
      "mov %%r13, %c[uc_r13](%%rsp)\n\t"
      "mov %%r14, %c[uc_r14](%%rsp)\n\t"
      "mov %%r15, %c[uc_r15](%%rsp)\n\t"
      "mov %%rdx, %c[uc_rsp](%%rsp)\n\t"
      "mov %%r8, %c[uc_rip](%%rsp)\n\t"
      "mov %%cs, %%eax\n\t"
      "mov %%ax, %c[uc_cs](%%rsp)\n\t"
      "mov %%ss, %%eax\n\t"
      "mov %%ax, %c[uc_ss](%%rsp)\n\t"
      "mov $15, %%eax\n\t"
      "syscall\n\t"
      "ud2\n\t"
      :
      : [size] "i"(sizeof(UContext)), [frame_flags] "i"(kFrameHasStackSegment),
        [stack] "i"(offsetof(Slot, stack)), [stack_size] "i"(sizeof(Slot::stack)),
        [uc_flags] "i"(offsetof(UContext, flags)), [uc_stack] "i"(offsetof(UContext, stack_sp)),
        [uc_stack_size] "i"(offsetof(UContext, stack_size)),
        [uc_rbx] "i"(offsetof(UContext, mc.rbx)), [uc_rbp] "i"(offsetof(UContext, mc.rbp)),
        [uc_r12] "i"(offsetof(UContext, mc.r12)), [uc_r13] "i"(offsetof(UContext, mc.r13)),
        [uc_r14] "i"(offsetof(UContext, mc.r14)), [uc_r15] "i"(offsetof(UContext, mc.r15)),
        [uc_rsp] "i"(offsetof(UContext, mc.rsp)), [uc_rip] "i"(offsetof(UContext, mc.rip)),
        [uc_cs] "i"(offsetof(UContext, mc.cs)), [uc_ss] "i"(offsetof(UContext, mc.ss)));
}

NAKED long StubCloneThread(Slot*) {
  __asm__ volatile(
      "push %%rbx\n\t"
      "mov %%rdi, %%rbx\n\t"
      "lea %c[stack_end](%%rbx), %%rsi\n\t"
      "lea %c[host_tid](%%rbx), %%r10\n\t"
      "mov $%c[flags], %%edi\n\t"
      "xor %%edx, %%edx\n\t"
      "xor %%r8d, %%r8d\n\t"
      "mov $56, %%eax\n\t"
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jz 1f\n\t"
      "pop %%rbx\n\t"
      "ret\n\t"
      "1: xor %%ebp, %%ebp\n\t"
      "mov %%rbx, %%rdi\n\t"
      "call StubThreadMain\n\t"
      "ud2\n\t"
      :
      : [stack_end] "i"(kSlotStackEnd), OFF(host_tid), [flags] "i"(kThreadCloneFlags));
}

// The child shares the parent's mailbox, and with it the stack under its feet, until it has mapped
// its own: till then it uses registers alone.
NAKED long StubFork(Slot*, int, int, int) {
  __asm__ volatile(
      "push %%rbx\n\t"
      "push %%r12\n\t"
      "push %%r13\n\t"
      "push %%r14\n\t"
      "mov %%rdi, %%rbx\n\t"
      "mov %%esi, %%r12d\n\t"
      "mov %%edx, %%r13d\n\t"
      "mov %%ecx, %%r14d\n\t"
      "mov $%c[flags], %%edi\n\t"
      "xor %%esi, %%esi\n\t"
      "xor %%edx, %%edx\n\t"
      "lea %c[host_tid](%%rbx), %%r10\n\t"
      "xor %%r8d, %%r8d\n\t"
      "mov $56, %%eax\n\t"
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jz 1f\n\t"
      "pop %%r14\n\t"
      "pop %%r13\n\t"
      "pop %%r12\n\t"
      "pop %%rbx\n\t"
      "ret\n\t"
      "1: mov %[base], %%rdi\n\t"
      "mov $%c[size], %%esi\n\t"
      "mov $3, %%edx\n\t"
      "mov $0x11, %%r10d\n\t"  // MAP_SHARED | MAP_FIXED
      "mov %%r12d, %%r8d\n\t"
      "xor %%r9d, %%r9d\n\t"
      "mov $9, %%eax\n\t"
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "js 2f\n\t"
      // What is in the file of the header and the slot comes with the first read; a write would
      // bring one page.
      "mov (%%rdi), %%eax\n\t"
      "mov (%%rbx), %%eax\n\t"
      "lea %c[stack_end](%%rbx), %%rsp\n\t"
      "xor %%ebp, %%ebp\n\t"
      "mov %%rbx, %%rdi\n\t"
      "mov %%r12d, %%esi\n\t"
      "mov %%r13d, %%edx\n\t"
      "mov %%r14d, %%ecx\n\t"
      "call StubForkChild\n\t"
      "2: mov $1, %%edi\n\t"
      "mov $60, %%eax\n\t"
      "syscall\n\t"
      "ud2\n\t"
      :
      : [stack_end] "i"(kSlotStackEnd), OFF(host_tid), [flags] "i"(kForkCloneFlags),
        [base] "i"(kMailboxBase), [size] "i"(kMailboxSize));
}

// A fault at kStubCopyFault leaves the number of bytes that remain in rcx.
NAKED size_t StubCopy(void*, const void*, size_t) {
  __asm__ volatile(
      "mov %%rdx, %%rcx\n\t"
      "cld\n\t"
      ".globl kStubCopyFault\n\t"
      "kStubCopyFault: rep movsb\n\t"
      ".globl kStubCopyFixup\n\t"
      "kStubCopyFixup: mov %%rcx, %%rax\n\t"
      "ret\n\t" ::);
}

NAKED bool StubXsave(void*, uint64_t) {
  __asm__ volatile(
      "mov %%esi, %%eax\n\t"
      "mov %%rsi, %%rdx\n\t"
      "shr $32, %%rdx\n\t"
      ".globl kStubXsaveFault\n\t"
      "kStubXsaveFault: xsave64 (%%rdi)\n\t"
      "mov $1, %%eax\n\t"
      "ret\n\t" ::);
}

NAKED bool StubXrstor(const void*, uint64_t) {
  __asm__ volatile(
      "mov %%esi, %%eax\n\t"
      "mov %%rsi, %%rdx\n\t"
      "shr $32, %%rdx\n\t"
      ".globl kStubXrstorFault\n\t"
      "kStubXrstorFault: xrstor64 (%%rdi)\n\t"
      "mov $1, %%eax\n\t"
      "ret\n\t"
      ".globl kStubXFixup\n\t"
      "kStubXFixup: xor %%eax, %%eax\n\t"
      "ret\n\t" ::);
}

// Copies byte by byte up to a NUL. rdi: destination, rsi: source, rdx: most.
NAKED size_t StubCopyString(void*, const void*, size_t) {
  __asm__ volatile(
      "xor %%eax, %%eax\n\t"
      "test %%rdx, %%rdx\n\t"
      "jz 2f\n\t"
      "1:\n\t"
      ".globl kStubStringFault\n\t"
      "kStubStringFault: movzbl (%%rsi,%%rax), %%ecx\n\t"
      "mov %%cl, (%%rdi,%%rax)\n\t"
      "inc %%rax\n\t"
      "test %%cl, %%cl\n\t"
      "jz 2f\n\t"
      "cmp %%rdx, %%rax\n\t"
      "jb 1b\n\t"
      ".globl kStubStringFixup\n\t"
      "kStubStringFixup:\n\t"
      "2: ret\n\t" ::);
}

NAKED long StubCompareExchange(uint64_t, uint32_t, uint32_t) {
  __asm__ volatile(
      "mov %%esi, %%eax\n\t"
      ".globl kStubExchangeFault\n\t"
      "kStubExchangeFault: lock cmpxchg %%edx, (%%rdi)\n\t"
      "mov %%eax, %%eax\n\t"
      "ret\n\t"
      ".globl kStubExchangeFixup\n\t"
      "kStubExchangeFixup: mov $-1, %%rax\n\t"
      "ret\n\t" ::);
}

// [kFutexBegin, kFutexEnd) is a restartable section: the interrupt's handler moves rip back to its
// begin, so that no interrupt is lost between the look at the flag and the host's wait. rbx holds
// the slot.
NAKED long StubFutex(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, Slot*) {
  __asm__ volatile(
      "push %%rbx\n\t"
      "mov 16(%%rsp), %%rbx\n\t"
      "mov %%rcx, %%r10\n\t"
      ".globl kFutexBegin\n\t"
      "kFutexBegin:\n\t"
      "cmpl $0, %c[interrupt](%%rbx)\n\t"
      "jne 1f\n\t"
      "mov $202, %%eax\n\t"
      "syscall\n\t"
      ".globl kFutexEnd\n\t"
      "kFutexEnd:\n\t"
      "pop %%rbx\n\t"
      "ret\n\t"
      "1: mov $-4, %%rax\n\t"
      "pop %%rbx\n\t"
      "ret\n\t"
      :
      : OFF(interrupt));
}

// By number, the place in the slot of what a call that only tells who the caller is returns: one
// plus its distance from Slot::pid in words; 0: another call.
struct QuickCalls {
  uint8_t field[187] = {};
  constexpr QuickCalls() {
    constexpr auto index = [](size_t offset) {
      return static_cast<uint8_t>(1 + (offset - offsetof(Slot, pid)) / sizeof(uint32_t));
    };
    field[39] = index(offsetof(Slot, pid));
    field[102] = index(offsetof(Slot, uid));
    field[104] = index(offsetof(Slot, gid));
    field[107] = index(offsetof(Slot, euid));
    field[108] = index(offsetof(Slot, egid));
    field[110] = index(offsetof(Slot, ppid));
    field[186] = index(offsetof(Slot, tid));
  }
};
extern constexpr __attribute__((used)) QuickCalls kQuickCalls{};

// Looks whether the call with number rax is one of kQuickCalls and may be answered as such, and
// goes to 8 if not; flags are free. Then r11 has its place, and %gs:kQuickField(,%r11,4) its
// answer. Such a call stores nothing, and leaves r11 as the ABI allows: destroyed.
#define FIND_QUICK_CALL                \
  "cmp %[quick_calls], %%rax\n\t"      \
  "jae 8f\n\t"                         \
  "lea kQuickCalls(%%rip), %%r11\n\t"  \
  "movzbl (%%r11,%%rax), %%r11d\n\t"   \
  "test %%r11d, %%r11d\n\t"            \
  "jz 8f\n\t"                          \
  "cmpl $0, %%gs:%c[has_identity]\n\t" \
  "je 8f\n\t"                          \
  "cmpl $0, %%gs:%c[lanes_off]\n\t"    \
  "jne 8f\n\t"                         \
  "cmpl $0, %%gs:%c[step]\n\t"         \
  "jne 8f\n\t"
#define QUICK_CALL_OPERANDS                                                           \
  [quick_calls] "i"(sizeof(kQuickCalls)), [quick_field] "i"(offsetof(Slot, pid) - 4), \
      OFF(has_identity), OFF(lanes_off), OFF(step), OFF(interrupt)

// A patched call: rcx holds the site's number; rcx, r11 and rax are free, all else is the guest's.
// The guest's flags go to ax at once, since looking whose GS it is destroys them.
// [kQuickMovBegin, kQuickMovEnd) and [kQuickCompareBegin, kQuickCompareEnd) are restartable
// sections like those above; rcx and r11 stay as they are in them, and GS is ours.
NAKED void StubPatchedCall() {
  __asm__ volatile(
      "lahf\n\t"
      "seto %%al\n\t"
      "rdgsbase %%r11\n\t"
      "shr %[shift], %%r11\n\t"
      "cmp %[ours], %%r11d\n\t"
      "jne 9f\n\t"
      "mov %%eax, %%gs:%c[saved_flags]\n\t"
      "shl $4, %%ecx\n\t"
      "mov %[sites], %%r11\n\t"
      "add %%rcx, %%r11\n\t"
      "mov (%%r11), %%rcx\n\t"
      "mov 8(%%r11), %%eax\n\t"
      "mov %%rax, %%gs:%c[rax]\n\t" FIND_QUICK_CALL
      ".globl kQuickMovBegin\n\t"
      "kQuickMovBegin:\n\t"
      "cmpl $0, %%gs:%c[interrupt]\n\t"
      "jne 8f\n\t"
      "mov %%gs:%c[saved_flags], %%eax\n\t"
      "add $127, %%al\n\t"
      "sahf\n\t"
      "mov %%gs:%c[quick_field](,%%r11,4), %%eax\n\t"
      "jmp *%%rcx\n\t"
      ".globl kQuickMovEnd\n\t"
      "kQuickMovEnd:\n\t"
      "8: movl $0, %%gs:%c[site_form]\n\t"
      "jmp StubPatchedCommon\n\t"
      ".globl kForeignGs\n\t"
      "9:\n\t"
      "kForeignGs: ud2\n\t"
      :
      : [shift] "i"(kMailboxShift), [ours] "i"(kMailboxBase >> kMailboxShift),
        [sites] "i"(kSitesAddress), OFF(saved_flags), OFF(site_form), OFF(rax),
        QUICK_CALL_OPERANDS);
}

// The form with the comparison behind it: rax is the call's number, the flags are free.
NAKED void StubPatchedCompare() {
  __asm__ volatile(
      "rdgsbase %%r11\n\t"
      "shr %[shift], %%r11\n\t"
      "cmp %[ours], %%r11d\n\t"
      "jne kForeignGs\n\t"
      "mov %%rax, %%gs:%c[rax]\n\t"
      "shl $4, %%ecx\n\t"
      "mov %[sites], %%r11\n\t"
      "add %%rcx, %%r11\n\t"
      "mov (%%r11), %%rcx\n\t"
      "mov 12(%%r11), %%r11d\n\t"
      "mov %%r11d, %%gs:%c[site_form]\n\t" FIND_QUICK_CALL
      "add $6, %%rcx\n\t"  // past the comparison, which is done here
      ".globl kQuickCompareBegin\n\t"
      "kQuickCompareBegin:\n\t"
      "cmpl $0, %%gs:%c[interrupt]\n\t"
      "jne 7f\n\t"
      "mov %%gs:%c[quick_field](,%%r11,4), %%eax\n\t"
      "cmpl $1, %%gs:%c[site_form]\n\t"
      "jne 6f\n\t"
      "cmp $-4095, %%rax\n\t"
      "jmp *%%rcx\n\t"
      "6: cmp $-4096, %%rax\n\t"
      "jmp *%%rcx\n\t"
      ".globl kQuickCompareEnd\n\t"
      "kQuickCompareEnd:\n\t"
      "7: sub $6, %%rcx\n\t"
      "8: lahf\n\t"
      "mov $0, %%al\n\t"
      "mov %%eax, %%gs:%c[saved_flags]\n\t"
      "jmp StubPatchedCommon\n\t"
      :
      : [shift] "i"(kMailboxShift), [ours] "i"(kMailboxBase >> kMailboxShift),
        [sites] "i"(kSitesAddress), OFF(saved_flags), OFF(site_form), OFF(rax),
        QUICK_CALL_OPERANDS);
}

// A call of the guest at which the tracer has stopped its thread: rax is the call's number, rcx and
// r11 are as the instruction leaves them, all else is the guest's, and GS is ours.
NAKED void StubTracedCall() {
  __asm__ volatile(
      "mov %%rax, %%gs:%c[rax]\n\t"
      "lahf\n\t"
      "seto %%al\n\t"
      "mov %%eax, %%gs:%c[saved_flags]\n\t"
      "movl $0, %%gs:%c[site_form]\n\t"
      "movl $1, %%gs:%c[traced_call]\n\t"
      "jmp StubPatchedCommon\n\t"
      :
      : OFF(saved_flags), OFF(site_form), OFF(traced_call), OFF(rax));
}

// rcx: where the call returns to. What of the registers the slot does not have yet goes there.
// [kFastBegin, kFastEnd) is a restartable section like those above; GS is ours in it.
NAKED void StubPatchedCommon() {
  __asm__ volatile(
      "mov %%rcx, %%gs:%c[rip]\n\t"
      "mov %%rsp, %%gs:%c[rsp]\n\t"
      "mov %%rdi, %%gs:%c[rdi]\n\t"
      "mov %%rsi, %%gs:%c[rsi]\n\t"
      "mov %%rdx, %%gs:%c[rdx]\n\t"
      "mov %%r10, %%gs:%c[r10]\n\t"
      "mov %%r8, %%gs:%c[r8]\n\t"
      "mov %%r9, %%gs:%c[r9]\n\t"
      "mov %%rbx, %%gs:%c[rbx]\n\t"
      "mov %%rbp, %%gs:%c[rbp]\n\t"
      "mov %%r12, %%gs:%c[r12]\n\t"
      "mov %%r13, %%gs:%c[r13]\n\t"
      "mov %%r14, %%gs:%c[r14]\n\t"
      "mov %%r15, %%gs:%c[r15]\n\t"
      "mov %%gs:%c[self], %%rdi\n\t"
      "lea %c[stack_end](%%rdi), %%rsp\n\t"
      "pushfq\n\t"
      "pop %%rsi\n\t"
      "cld\n\t"
      "mov %%gs:%c[saved_flags], %%edx\n\t"
      "call StubDirectCall\n\t"
      "test %%al, %%al\n\t"
      "jnz 2f\n\t"
      ".globl kFastBegin\n\t"
      "kFastBegin:\n\t"
      "cmpl $0, %%gs:%c[interrupt]\n\t"
      "jne 1f\n\t"
      "mov %%gs:%c[rdi], %%rdi\n\t"
      "mov %%gs:%c[rsi], %%rsi\n\t"
      "mov %%gs:%c[rdx], %%rdx\n\t"
      "mov %%gs:%c[r10], %%r10\n\t"
      "mov %%gs:%c[r8], %%r8\n\t"
      "mov %%gs:%c[r9], %%r9\n\t"
      "mov %%gs:%c[rip], %%rcx\n\t"
      "mov %%gs:%c[call_flags], %%r11\n\t"
      "cmpl $0, %%gs:%c[site_form]\n\t"
      "jne 3f\n\t"
      "mov %%gs:%c[saved_flags], %%eax\n\t"
      "add $127, %%al\n\t"
      "sahf\n\t"
      "mov %%gs:%c[rax], %%rax\n\t"
      "mov %%gs:%c[rsp], %%rsp\n\t"
      "jmp *%%rcx\n\t"
      "3: add $6, %%rcx\n\t"  // past the comparison, which is done here
      "cmpl $1, %%gs:%c[site_form]\n\t"
      "mov %%gs:%c[rax], %%rax\n\t"
      "mov %%gs:%c[rsp], %%rsp\n\t"
      "jne 4f\n\t"
      "cmp $-4095, %%rax\n\t"
      "jmp *%%rcx\n\t"
      "4: cmp $-4096, %%rax\n\t"
      "jmp *%%rcx\n\t"
      ".globl kFastEnd\n\t"
      "kFastEnd:\n\t"
      "1: mov %%gs:%c[self], %%rdi\n\t"
      "lea %c[stack_end](%%rdi), %%rsp\n\t"
      "call StubInterruptedCall\n\t"
      "2: mov %%gs:%c[self], %%rdi\n\t"
      "jmp kEnterBegin\n\t"
      :
      : OFF(interrupt), OFF(self), OFF(saved_flags), OFF(site_form), OFF(rip), OFF(rsp), OFF(rax),
        OFF(rbx), OFF(rdx), OFF(rsi), OFF(rdi), OFF(rbp), OFF(r8), OFF(r9), OFF(r10),
        OFF(call_flags), OFF(r12), OFF(r13), OFF(r14), OFF(r15), [stack_end] "i"(kSlotStackEnd));
}

// An island per site; the numbers of each form lead to its entry.
NAKED void StubIslands() {
  __asm__ volatile(
      ".balign 16\n\t"
      ".globl kIslands\n\t"
      "kIslands:\n\t"
      ".set site_number, 0\n\t"
      ".rept %c[first_compare]\n\t"
      ".balign 16\n\t"
      "mov $site_number, %%ecx\n\t"
      "jmp StubPatchedCall\n\t"
      ".set site_number, site_number + 1\n\t"
      ".endr\n\t"
      ".rept %c[compares]\n\t"
      ".balign 16\n\t"
      "mov $site_number, %%ecx\n\t"
      "jmp StubPatchedCompare\n\t"
      ".set site_number, site_number + 1\n\t"
      ".endr\n\t"
      :
      : [first_compare] "i"(kFirstCompareSite), [compares] "i"(kMaxSites - kFirstCompareSite));
}

}  // extern "C"

}  // namespace platform::stub
