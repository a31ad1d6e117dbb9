// Cgroup: what the processes of one container have in common.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/fiber/wait_queue.h"

namespace sentry {

// Thread-safe.
class Cgroup : public base::RefCounted {
 public:
  struct Limits {
    int64_t pids = 0;     // 0: none
    uint64_t memory = 0;  // bytes, 0: the host's memory
    double cpu = 0;       // processors, 0: the host's
  };
  explicit Cgroup(const Limits& limits);

  // The limits as they are now; SetLimits changes them, a value below 0 leaves one as it is.
  int64_t pids_limit() const { return pids_limit_.load(std::memory_order_relaxed); }
  uint64_t memory_limit() const { return memory_limit_.load(std::memory_order_relaxed); }
  double cpu_limit() const { return cpu_limit_; }
  void SetLimits(int64_t pids, int64_t memory);
  // What the limits leave of the host's.
  int cpu_count() const { return cpu_count_; }
  uint64_t total_memory() const { return total_memory_.load(std::memory_order_relaxed); }

  // Threads that exist, zombies included.
  int task_count() const { return task_count_.load(std::memory_order_relaxed); }
  bool MayFork() const {
    const int64_t limit = pids_limit();
    return limit <= 0 || task_count() < limit;
  }
  void AddTask() { task_count_.fetch_add(1, std::memory_order_relaxed); }
  void RemoveTask() { task_count_.fetch_sub(1, std::memory_order_relaxed); }

  // While it is frozen no task of it returns to the guest (Kernel::SetFrozen).
  bool frozen() const { return frozen_.load(std::memory_order_acquire); }
  void set_frozen(bool frozen) { frozen_.store(frozen, std::memory_order_release); }
  fiber::WaitQueue& thaw_queue() { return thaw_queue_; }

  // What /dev/console is, a Terminal of sentry/fs/devpts. Null: nothing.
  base::Ref<base::RefCounted> console() const;
  void set_console(base::Ref<base::RefCounted> console);

 private:
  const double cpu_limit_;
  const int cpu_count_;
  std::atomic<int64_t> pids_limit_{0};
  std::atomic<uint64_t> memory_limit_{0}, total_memory_{0};
  std::atomic<int> task_count_{0};
  std::atomic<bool> frozen_{false};
  fiber::WaitQueue thaw_queue_;
  mutable absl::Mutex mutex_;
  base::Ref<base::RefCounted> console_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
