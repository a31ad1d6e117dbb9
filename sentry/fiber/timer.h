// One-shot timers of CLOCK_MONOTONIC.
#pragma once

#include <cstdint>
#include <functional>

#include "sentry/fiber/timer_heap.h"

namespace fiber {

// A one-shot timer. Thread-safe, but the owner serialises Arm and Cancel. The destructor cancels.
class Timer {
 public:
  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Calls `callback` once, at or soon after CLOCK_MONOTONIC reaches deadline_ns. It runs on a
  // worker, outside any fiber: it must be short and not park; it may Arm this timer again, Unpark
  // fibers and Wake queues. Arming an armed timer replaces deadline and callback.
  void Arm(int64_t deadline_ns, std::function<void()> callback);
  // After it returns the callback neither runs nor will run (called from within the callback: it
  // only prevents later ones). Must not be called with a lock held that the callback takes.
  // Returns true if the timer was armed and had not expired.
  bool Cancel();
  // The deadline of the last Arm.
  int64_t deadline_ns() const { return node_.base.deadline_ns; }

 private:
  struct Node {
    TimerNode base;  // first: a TimerNode* is a Node*
    Timer* timer;
  };
  static void Expire(TimerNode* node);

  Node node_;
  std::function<void()> callback_;
};

}  // namespace fiber
