// The scheduler's timers: a binary heap of intrusive nodes ordered by deadline.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace fiber {

// One timer, embedded in its owner. Fields belong to the heap.
struct TimerNode {
  int64_t deadline_ns = 0;
  size_t index = kNotQueued;
  // Called without locks by the thread that runs expired timers.
  void (*expire)(TimerNode*) = nullptr;
  void* owner = nullptr;

  static constexpr size_t kNotQueued = static_cast<size_t>(-1);
};

// Thread-safe.
class TimerHeap {
 public:
  // Queues or moves `node`. Returns true if it is now the earliest, so that a sleeping poller must
  // be told.
  bool Arm(TimerNode* node, int64_t deadline_ns) ABSL_LOCKS_EXCLUDED(mu_);
  // Takes `node` out and waits until its callback, if it is being called by another thread, has
  // returned. Returns true if it was queued.
  bool Cancel(TimerNode* node) ABSL_LOCKS_EXCLUDED(mu_);
  // Calls what has expired at now_ns; returns how many.
  size_t Expire(int64_t now_ns) ABSL_LOCKS_EXCLUDED(mu_);
  // The earliest deadline; INT64_MAX if there is none. Lock-free.
  int64_t next_deadline() const { return next_.load(std::memory_order_seq_cst); }

 private:
  // Of the node that a thread is calling right now. Threads that expire timers stack them.
  struct Running {
    TimerNode* node;
    const void* thread;
    Running* next;
  };

  void Place(size_t i, TimerNode* node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SiftUp(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SiftDown(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Remove(TimerNode* node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool RunsElsewhere(TimerNode* node) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  absl::CondVar callback_done_;
  std::vector<TimerNode*> heap_ ABSL_GUARDED_BY(mu_);
  Running* running_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::atomic<int64_t> next_{std::numeric_limits<int64_t>::max()};
};

}  // namespace fiber
