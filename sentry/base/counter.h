// Named counters, declared beside the code that they count and exported together:
//
//   base::Counter g_lookups("vfs.lookups", "path components looked up");
//   ...
//   g_lookups.Add();
#pragma once

#include <atomic>
#include <cstdint>

namespace base {

// Objects of static storage only; names are literals and unique.
class Counter {
 public:
  Counter(const char* name, const char* help);
  Counter(const Counter&) = delete;
  Counter& operator=(const Counter&) = delete;

  // Relaxed; any thread.
  void Add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }
  const char* name() const { return name_; }
  const char* help() const { return help_; }
  // The registry as a list, in no particular order: First, then next until null.
  static const Counter* First();
  const Counter* next() const { return next_; }

 private:
  std::atomic<uint64_t> value_{0};
  const char* const name_;
  const char* const help_;
  const Counter* next_;
};

}  // namespace base
