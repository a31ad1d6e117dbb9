// The host's futex, for the few places where a host thread sleeps.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

#include "sentry/base/time.h"

namespace fiber {

// Sleeps while *word is `value`, until woken or CLOCK_MONOTONIC reaches deadline_ns. May return
// early. False if the deadline has passed.
inline bool FutexWait(std::atomic<uint32_t>* word, uint32_t value,
                      int64_t deadline_ns = base::kNever) {
  timespec ts = base::TimespecFromNs(deadline_ns);
  const long r =
      syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, value,
              deadline_ns == base::kNever ? nullptr : &ts, nullptr, FUTEX_BITSET_MATCH_ANY);
  return r == 0 || errno != ETIMEDOUT;
}

inline void FutexWake(std::atomic<uint32_t>* word, int count = 1) {
  syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, nullptr, nullptr, 0);
}

}  // namespace fiber
