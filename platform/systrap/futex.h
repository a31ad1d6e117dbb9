// Waking who waits on words that the sentry and the stubs share.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace platform {

// FUTEX_WAKE on a word that other processes share.
inline void FutexWakeShared(uint32_t* word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE, count, nullptr, nullptr, 0);
}

}  // namespace platform
