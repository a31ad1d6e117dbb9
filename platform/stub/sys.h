// Raw host calls and small helpers of the stub, which has no libc.
#pragma once

#include <linux/futex.h>
#include <linux/time_types.h>

#include <cstddef>
#include <cstdint>

#include "platform/mailbox.h"

namespace platform::stub {

#define STUB_INLINE inline __attribute__((always_inline))

// Numbers of the host's calls (asm/unistd_64.h), under names that do not clash with its macros.
enum : long {
  kSysMmap = 9,
  kSysMprotect = 10,
  kSysMunmap = 11,
  kSysRtSigaction = 13,
  kSysRtSigreturn = 15,
  kSysSchedYield = 24,
  kSysMremap = 25,
  kSysMincore = 27,
  kSysMadvise = 28,
  kSysSendmsg = 46,
  kSysRecvmsg = 47,
  kSysClone = 56,
  kSysExit = 60,
  kSysClose = 3,
  kSysPrctl = 157,
  kSysArchPrctl = 158,
  kSysFutex = 202,
  kSysClockGettime = 228,
  kSysSeccomp = 317,
  kSysMembarrier = 324,
  kSysRseq = 334,
};
inline constexpr uint64_t kRseqUnregister = 1;  // RSEQ_FLAG_UNREGISTER

STUB_INLINE long Syscall(long nr, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0,
                         uint64_t e = 0, uint64_t f = 0) {
  long ret;
  register uint64_t r10 __asm__("r10") = d;
  register uint64_t r8 __asm__("r8") = e;
  register uint64_t r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(ret)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return ret;
}

STUB_INLINE uint64_t Addr(const volatile void* p) { return reinterpret_cast<uint64_t>(p); }

template <typename T>
STUB_INLINE T Load(const T* p) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
template <typename T>
STUB_INLINE void Store(T* p, T v) {
  __atomic_store_n(p, v, __ATOMIC_SEQ_CST);
}

STUB_INLINE long FutexWait(const uint32_t* word, uint32_t value) {
  return Syscall(kSysFutex, Addr(word), FUTEX_WAIT, value, 0);
}
STUB_INLINE long FutexWake(const uint32_t* word, uint32_t count) {
  return Syscall(kSysFutex, Addr(word), FUTEX_WAKE, count);
}

STUB_INLINE uint64_t Ticks() {
  uint32_t lo, hi;
  __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}
// The processor that this thread runs on: in the limit of a segment that Linux keeps for each
// (__CPUNODE_SEG in arch/x86/include/asm/segment.h, which its vDSO reads the same way).
STUB_INLINE uint32_t CurrentCpu() {
  constexpr uint32_t kCpuNodeSegment = 15 * 8 + 3;
  constexpr uint32_t kCpuMask = 0xfff;
  uint32_t limit = 0;
  __asm__("lsl %1, %0" : "+r"(limit) : "r"(kCpuNodeSegment) : "cc");
  return limit & kCpuMask;
}
STUB_INLINE void Pause() { __builtin_ia32_pause(); }

STUB_INLINE const Shared* SharedPage() { return reinterpret_cast<const Shared*>(kSharedBase); }
STUB_INLINE MailboxHeader* Header() { return reinterpret_cast<MailboxHeader*>(kMailboxBase); }
STUB_INLINE Slot* SlotAt(uint32_t index) { return reinterpret_cast<Slot*>(SlotAddress(index)); }
STUB_INLINE uint32_t SlotIndex(const Slot* s) {
  return static_cast<uint32_t>((Addr(s) - kMailboxBase) / kSlotSize - kHeaderSlots);
}

// ---- Segment bases ----

enum : int { kArchSetGs = 0x1001, kArchSetFs = 0x1002, kArchGetFs = 0x1003, kArchGetGs = 0x1004 };

STUB_INLINE uint64_t ReadFsBase() {
  uint64_t v = 0;
  if (SharedPage()->has_fsgsbase) {
    __asm__ volatile("rdfsbase %0" : "=r"(v));
  } else {
    Syscall(kSysArchPrctl, kArchGetFs, Addr(&v));
  }
  return v;
}
STUB_INLINE void WriteFsBase(uint64_t v) {
  if (SharedPage()->has_fsgsbase) {
    __asm__ volatile("wrfsbase %0" : : "r"(v));
  } else {
    Syscall(kSysArchPrctl, kArchSetFs, v);
  }
}
STUB_INLINE uint64_t ReadGsBase() {
  uint64_t v = 0;
  if (SharedPage()->has_fsgsbase) {
    __asm__ volatile("rdgsbase %0" : "=r"(v));
  } else {
    Syscall(kSysArchPrctl, kArchGetGs, Addr(&v));
  }
  return v;
}
STUB_INLINE void WriteGsBase(uint64_t v) {
  if (SharedPage()->has_fsgsbase) {
    __asm__ volatile("wrgsbase %0" : : "r"(v));
  } else {
    Syscall(kSysArchPrctl, kArchSetGs, v);
  }
}

}  // namespace platform::stub
