// Small things that tasks and processes hold.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"

namespace sentry {

// A place that several tasks share and that some other code keeps its state in. The state goes with
// the last task that shares the place. Thread-safe.
class SharedPart : public base::RefCounted {
 public:
  base::Ref<base::RefCounted> Get() const {
    absl::MutexLock l(&mutex_);
    return part_;
  }
  base::Ref<base::RefCounted> GetOrMake(base::Ref<base::RefCounted> (*make)()) {
    absl::MutexLock l(&mutex_);
    if (!part_) part_ = make();
    return part_;
  }

 private:
  mutable absl::Mutex mutex_;  // before nothing but allocation
  base::Ref<base::RefCounted> part_ ABSL_GUARDED_BY(mutex_);
};

// As /proc/PID/io shows them.
struct IoCounts {
  std::atomic<uint64_t> read_bytes{0}, write_bytes{0}, read_calls{0}, write_calls{0};

  void Read(uint64_t bytes) {
    read_bytes.fetch_add(bytes, std::memory_order_relaxed);
    read_calls.fetch_add(1, std::memory_order_relaxed);
  }
  void Write(uint64_t bytes) {
    write_bytes.fetch_add(bytes, std::memory_order_relaxed);
    write_calls.fetch_add(1, std::memory_order_relaxed);
  }
  void Add(const IoCounts& o) {
    read_bytes += o.read_bytes.load();
    write_bytes += o.write_bytes.load();
    read_calls += o.read_calls.load();
    write_calls += o.write_calls.load();
  }
};

}  // namespace sentry
