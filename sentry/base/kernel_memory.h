// How much memory this process holds for the guest: its heap, and the ring buffers of pipes and
// sockets. What a guest can make is bounded one by one as Linux does (rlimits, fs.mount-max, ...),
// but those bounds multiply; this one holds for their sum. Thread-safe, no locks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace base {

class KernelMemory {
 public:
  // Bytes; 0: no limit (the state at start).
  static void SetLimit(uint64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }
  // Within some MiB: each thread's last few allocations may be missing.
  static uint64_t used() {
    int64_t used = used_.load(std::memory_order_relaxed);
    return used > 0 ? static_cast<uint64_t>(used) : 0;
  }
  // At the limit: what would make the process hold more for the guest fails with ENOMEM.
  static bool Full() { return Above(1); }
  // At half of it: what can be kept elsewhere should be.
  static bool Tight() { return Above(2); }
  // For memory that is not of the heap, which operator new and delete count.
  static void Charge(size_t bytes) { Add(static_cast<int64_t>(bytes)); }
  static void Uncharge(size_t bytes) { Add(-static_cast<int64_t>(bytes)); }

 private:
  friend struct HeapCount;
  static bool Above(uint64_t part) {
    uint64_t limit = limit_.load(std::memory_order_relaxed);
    return limit != 0 && used() >= limit / part;
  }
  static void Add(int64_t bytes);
  static std::atomic<uint64_t> limit_;
  static std::atomic<int64_t> used_;
};

}  // namespace base
