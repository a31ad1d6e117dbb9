// Fibers: user-space threads on which the sentry's code runs. A fiber that has to wait parks, and
// its worker (a host thread of the Scheduler) runs another. Switching costs nanoseconds.
//
// Rules:
//  - A fiber may continue on another host thread after any park. Never keep the address of a
//    thread_local (errno included: read it right after the host call) across a park.
//  - Nothing that can block the host thread runs on a fiber: use fiber::BlockingCall.
//  - Never park with an absl::Mutex held; fiber::Mutex is for that.
//  - Stacks are kStackSize bytes with a guard page: no large arrays on them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include "sentry/base/ref.h"
#include "sentry/fiber/phase.h"
#include "sentry/fiber/timer_heap.h"

namespace fiber {

class SchedulerImpl;
class Worker;
struct Stack;

inline constexpr int64_t kNoDeadline = std::numeric_limits<int64_t>::max();

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr size_t kStackSize = 256 * 1024;
#else
inline constexpr size_t kStackSize = 64 * 1024;
#endif

// Why a park ended.
enum class WakeReason {
  kWoken,        // Unpark; possibly spurious: the caller checks its condition again
  kInterrupted,  // Interrupt, and the park was interruptible
  kTimeout,      // the deadline passed
};

struct ParkOptions {
  bool interruptible = false;
  // CLOCK_MONOTONIC nanoseconds; kNoDeadline: none. A deadline in the past: kTimeout at once,
  // unless an Unpark is pending.
  int64_t deadline_ns = kNoDeadline;
  // The fiber waits for its guest thread to trap. Tells the scheduler that there are guests that
  // may hand off while another fiber runs, so that somebody must go on polling.
  bool in_guest = false;
};

// One fiber. Thread-safe. The scheduler holds a reference until its function has returned.
class Fiber : public base::RefCounted {
 public:
  const std::string& name() const { return name_; }
  // What Spawn was given; the kernel keeps its Task here.
  void* user_data() const { return user_data_.load(std::memory_order_relaxed); }
  void set_user_data(void* data) { user_data_.store(data, std::memory_order_relaxed); }

  // Makes the fiber's park, or its next one if it is not parked, return kWoken. Any thread; never
  // blocks. One permit is kept at most.
  void Unpark();
  // Sets the sticky flag that makes interruptible parks return kInterrupted, now and later, until
  // ClearInterrupt (which the fiber itself calls). Any thread; never blocks.
  void Interrupt();
  void ClearInterrupt() { state_.fetch_and(~kInterruptedBit, std::memory_order_acq_rel); }
  bool interrupted() const { return state_.load(std::memory_order_acquire) & kInterruptedBit; }
  // True once the function has returned.
  bool done() const { return state_.load(std::memory_order_acquire) & kDoneBit; }
  // Only on the fiber itself.
  PhaseClock& phase_clock() { return phase_clock_; }
  // How often it has waited for something other than its guest. Any thread.
  int64_t waits() const { return waits_.load(std::memory_order_relaxed); }
  // True while parked (for /proc and debugging; stale at once).
  bool parked() const { return state_.load(std::memory_order_relaxed) & kParkedBit; }

 private:
  friend class SchedulerImpl;
  friend class RunQueue;
  friend class Worker;
  friend WakeReason Park(const ParkOptions& options);
  friend base::Ref<Fiber> Spawn(std::string name, std::function<void()> fn, void* user_data);

  // state_ is a set of these. A fiber whose kParkedBit is set is in no queue; whoever clears the
  // bit, with the reason, queues it.
  static constexpr uint32_t kPermitBit = 1;
  static constexpr uint32_t kInterruptedBit = 2;
  static constexpr uint32_t kParkedBit = 4;         // the context is saved
  static constexpr uint32_t kInterruptibleBit = 8;  // of the current park
  static constexpr uint32_t kTimeoutBit = 16;       // the deadline passed before kParkedBit was set
  static constexpr uint32_t kDoneBit = 32;
  static constexpr uint32_t kReasonShift = 6;  // two bits: the WakeReason of the last park
  static constexpr uint32_t kReasonMask = 3 << kReasonShift;

  Fiber(std::string name, std::function<void()> fn, void* user_data);
  ~Fiber() override;
  static void OnTimer(TimerNode* node);
  // The state of a fiber that is woken from `state` for `reason`.
  static constexpr uint32_t Woken(uint32_t state, WakeReason reason) {
    return (state & ~(kParkedBit | kInterruptibleBit | kReasonMask)) | static_cast<uint32_t>(reason)
                                                                           << kReasonShift;
  }

  std::atomic<uint32_t> state_{0};
  bool in_guest_ = false;          // of the current park
  std::atomic<int64_t> waits_{0};  // written by the fiber alone
  void* context_ = nullptr;        // saved registers, while it does not run
  Fiber* next_ = nullptr;          // in a run queue, under its lock
  std::atomic<void*> user_data_;
  Stack* stack_ = nullptr;
  std::function<void()> fn_;
  const std::string name_;
  TimerNode timer_;  // of the current park
  PhaseClock phase_clock_;
  void* sanitizer_ = nullptr;  // TSAN's fiber, or ASAN's fake stack
};

// Starts a fiber on the process's Scheduler. Any thread.
base::Ref<Fiber> Spawn(std::string name, std::function<void()> fn, void* user_data = nullptr);

// The fiber that runs on this thread; null on a thread that is not a worker, and in callbacks
// (TrapListener, Timer, Waiter, FdWatch) that a worker runs outside any fiber.
Fiber* Current();

// Parks the current fiber until Unpark, Interrupt (if interruptible) or the deadline. Only on a
// fiber. Wakes may be spurious. When several hold: kWoken before kInterrupted before kTimeout.
WakeReason Park(const ParkOptions& options = {});

// Lets other runnable fibers run first.
void Yield();

// Parks until CLOCK_MONOTONIC reaches deadline_ns: kTimeout, or kInterrupted if interruptible. A
// thread that runs no fiber sleeps.
WakeReason SleepUntil(int64_t deadline_ns, bool interruptible = true);

}  // namespace fiber
