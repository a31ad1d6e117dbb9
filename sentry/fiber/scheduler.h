// The workers that run fibers, and the polling of guests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace fiber {

class SchedulerImpl;

// Where traps come from. platform::Platform has exactly these (an adapter in the kernel).
// One worker at a time calls Poll and Wait.
class Poller {
 public:
  virtual ~Poller() = default;
  // Reports what has happened since (by Fiber::Unpark and the like); returns how many.
  // Nanoseconds when nothing has.
  virtual size_t Poll() = 0;
  // True if going on polling is worth more than Wait.
  virtual bool ShouldSpin() = 0;
  // Blocks until something happens, Wake, or CLOCK_MONOTONIC reaches deadline_ns.
  virtual void Wait(int64_t deadline_ns) = 0;
  // Ends a Wait that is under way or about to begin. Any thread.
  virtual void Wake() = 0;
};

// The process's scheduler: at most one at a time. Make it before the first Spawn, Timer or
// BlockingCall, and before host signals are unblocked: its threads block all of them.
class Scheduler {
 public:
  struct Options {
    int workers = 0;           // at most; 0: as many as the host lets us use cores, at least 2
    Poller* poller = nullptr;  // null: nothing to poll, workers sleep on a futex. Outlives it
  };
  Scheduler();
  explicit Scheduler(const Options& options);
  // Shutdown.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Blocks the calling host thread (no fiber) until no fiber is left.
  void WaitForAll();
  // Stops the workers. Fibers that have not ended are abandoned with their stacks: call WaitForAll
  // first, or exit the process. (Helper threads end when idle; the epoll thread stays.)
  void Shutdown();

  int workers() const;
  // Fibers that have not ended.
  size_t live_fibers() const;

 private:
  std::unique_ptr<SchedulerImpl> impl_;
};

}  // namespace fiber
