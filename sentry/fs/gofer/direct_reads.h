// Reading where the host cannot be asked not to wait. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <cstdint>

namespace sentry {

// Some file systems of the host (overlayfs, on which most images stand) refuse RWF_NOWAIT, so that
// nothing tells whether a read finds its bytes in the page cache. Handing each to another thread
// costs two switches, ten times as much as the read. So a worker reads itself while reads have been
// quick, one at a time: should that one wait for a disk after all, the others go on, and what it
// held up is taken over by them (sentry/fiber/README.md). Then it takes some quick ones elsewhere
// before it is tried again. Thread-safe.
class DirectReads {
 public:
  // True if the caller is to read where it is; End follows.
  bool TryBegin() {
    return quick_.load(std::memory_order_relaxed) >= kTrusted &&
           !busy_.exchange(true, std::memory_order_acquire);
  }
  void End(int64_t ns) {
    busy_.store(false, std::memory_order_release);
    Took(ns);
  }
  // A read took so long, here or elsewhere.
  void Took(int64_t ns) {
    if (ns > kSlowNs) {
      quick_.store(0, std::memory_order_relaxed);
    } else if (const int n = quick_.load(std::memory_order_relaxed); n < kTrusted) {
      quick_.store(n + 1, std::memory_order_relaxed);
    }
  }

 private:
  static constexpr int kTrusted = 4;
  // A copy of a large buffer takes less, a disk or a thread's turn at a busy processor more.
  static constexpr int64_t kSlowNs = 100'000;

  std::atomic<int> quick_{0};  // of the last reads
  std::atomic<bool> busy_{false};
};

}  // namespace sentry
