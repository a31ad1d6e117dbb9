// One-shot timers of CLOCK_MONOTONIC.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/timer_heap.h"

namespace fiber {

// A one-shot timer. Thread-safe. The destructor cancels.
class Timer {
 public:
  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Calls `callback` once, at or soon after CLOCK_MONOTONIC reaches deadline_ns. It runs on a
  // worker, outside any fiber: it must be short and not park; it may Arm this timer again, Unpark
  // fibers and Wake queues. Arming an armed timer replaces deadline and callback; a callback that
  // runs already is not waited for. Allowed with locks held that the callback takes.
  void Arm(int64_t deadline_ns, std::function<void()> callback) ABSL_LOCKS_EXCLUDED(mu_);
  // Like Cancel, but does not wait: the callback may still be running. Allowed with locks held that
  // the callback takes.
  bool Disarm() ABSL_LOCKS_EXCLUDED(mu_);
  // After it returns the callback neither runs nor will run (called from within the callback: it
  // only prevents later ones). Must not be called with a lock held that the callback takes.
  // Returns true if the timer was armed and its callback will not run.
  bool Cancel() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static void Expire(TimerNode* node);

  TimerNode node_;
  absl::Mutex mu_;                                       // before the heap's
  std::function<void()> callback_ ABSL_GUARDED_BY(mu_);  // empty: not armed
  int64_t deadline_ns_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace fiber
