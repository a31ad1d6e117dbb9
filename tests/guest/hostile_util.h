// What the hostile guest programs share: faults that are survived, and jumps to any instruction.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <vector>

#include "platform/mailbox.h"

namespace hostile {

inline sigjmp_buf g_jump;
inline char g_alt_stack[65536];

inline void OnFault(int) { siglongjmp(g_jump, 1); }

// Faults and alarms come back to where sigsetjmp(g_jump, 1) was called last.
inline void CatchFaults() {
  stack_t ss{};
  ss.ss_sp = g_alt_stack;
  ss.ss_size = sizeof g_alt_stack;
  sigaltstack(&ss, nullptr);
  struct sigaction sa {};
  sa.sa_handler = OnFault;
  sa.sa_flags = SA_ONSTACK | SA_NODEFER;
  for (int s : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGALRM})
    sigaction(s, &sa, nullptr);
}

inline int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

inline void Nap(int64_t ns) {
  timespec t{ns / 1000000000, ns % 1000000000};
  nanosleep(&t, nullptr);
}

// Loads the registers of a system call and jumps to `site`; comes back if what follows returns.
// `pops`: words that are popped before it does.
extern "C" uint64_t JumpAt(uint64_t site, uint64_t nr, const uint64_t* args, uint64_t pops);
asm(R"(
.globl JumpAt
JumpAt:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, %rbp
  mov %rdi, %r11
  mov %rsi, %rax
  mov %rdx, %rbx
  lea 1f(%rip), %rdx
  push %rdx
  test %rcx, %rcx
  jz 2f
  push %rbx
2:
  mov 0(%rbx), %rdi
  mov 8(%rbx), %rsi
  mov 16(%rbx), %rdx
  mov 24(%rbx), %r10
  mov 32(%rbx), %r8
  mov 40(%rbx), %r9
  mov 8(%rbx), %rcx
  jmp *%r11
1:
  mov %rbp, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
)");

// Calls found for `syscall`, `sysenter` and `int $0x80`.
inline bool IsEntry(const unsigned char* p) {
  return (p[0] == 0x0f && (p[1] == 0x05 || p[1] == 0x34)) || (p[0] == 0xcd && p[1] == 0x80);
}

// Whether a page can be read; `f` is called with it then.
template <typename F>
[[gnu::noinline]] bool WithPage(uint64_t page, F f) {
  if (sigsetjmp(g_jump, 1)) return false;
  const volatile unsigned char* p = reinterpret_cast<const volatile unsigned char*>(page);
  static_cast<void>(*p);
  f(reinterpret_cast<const unsigned char*>(page));
  return true;
}

// The runtime's own futex call, which returns to its caller: `mov $202,%eax; syscall; pop; ret`.
// Through it any call can be made as the runtime makes it. 0: not found.
inline uint64_t FindGadget() {
  const unsigned char code[] = {0xb8, 202, 0, 0, 0, 0x0f, 0x05, 0x5b, 0xc3};
  uint64_t found = 0;
  for (uint64_t page = platform::kStubBase; page < platform::kStubBase + platform::kStubTextMax;
       page += 4096) {
    WithPage(page, [&](const unsigned char* p) {
      const void* at = memmem(p, 4096, code, sizeof code);
      if (at) found = reinterpret_cast<uint64_t>(at) + 5;
    });
  }
  return found;
}

// A host call from the runtime's text. What it does not allow ends this process.
inline int64_t StubCall(uint64_t gadget, uint64_t nr, uint64_t a = 0, uint64_t b = 0,
                        uint64_t c = 0, uint64_t d = 0, uint64_t e = 0, uint64_t f = 0) {
  const uint64_t args[] = {a, b, c, d, e, f};
  return static_cast<int64_t>(JumpAt(gadget, nr, args, 1));
}

}  // namespace hostile
