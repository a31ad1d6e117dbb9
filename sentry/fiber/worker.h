// Inside of the scheduler. See README.md for how the parts play together.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/context.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/fiber/timer_heap.h"

namespace fiber {

class SchedulerImpl;

// Starts a detached (or, with `out`, a joinable) host thread with asynchronous signals blocked.
// `name`: at most 15 bytes.
void StartThread(const char* name, std::function<void()> fn, std::thread* out = nullptr);

// Runnable fibers, first in, first out. Its lock is a leaf.
class RunQueue {
 public:
  void Push(Fiber* fiber) ABSL_LOCKS_EXCLUDED(mu_);
  Fiber* Pop() ABSL_LOCKS_EXCLUDED(mu_);
  // Lock-free; a Push that happened before in this thread is seen.
  size_t size() const { return size_.load(std::memory_order_seq_cst); }

 private:
  absl::Mutex mu_;
  Fiber* head_ ABSL_GUARDED_BY(mu_) = nullptr;
  Fiber* tail_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::atomic<size_t> size_{0};  // written under mu_
};

// One host thread that runs fibers.
class alignas(64) Worker {
 public:
  // What a fiber wants when it has switched to its worker.
  enum class Action { kPark, kYield, kDone };

  Worker(SchedulerImpl* scheduler, int index);

  static Worker* Current();

  // The worker's thread.
  void Loop();
  // From the worker's thread (fiber or callback): queues a runnable fiber.
  void PushLocal(Fiber* fiber);
  // From a fiber on this worker: leaves it. Returns when the fiber is resumed, maybe on another
  // worker.
  static void SwitchOut(Action action, const ParkOptions* options);
  // From the current fiber, which is about to park for its guest: polls a little in its place.
  // True if it has been unparked meanwhile, so that no switch is needed.
  bool PollInPlace();
  // The entry of every fiber.
  static void FiberEntry(Transfer transfer);

  Fiber* current() const { return current_; }
  int index() const { return index_; }

 private:
  friend class SchedulerImpl;

  // What another thread may write to an idle worker's wake word.
  static constexpr uint32_t kAsleep = 0, kWake = 1, kTick = 2;

  Fiber* Next();
  // A fiber from another worker's queue.
  Fiber* Steal();
  void Run(Fiber* fiber);
  void AfterPark(Fiber* fiber);
  void Finish(Fiber* fiber);
  // With the poll token: polls, spins as long as that is worth it, then waits.
  void PollOrWait();
  bool Spin();
  void WaitForEvents();
  bool HasWork() const;
  // Without the token: sleeps until there may be something to do.
  void Idle();
  void SleepAsMonitor();
  // Looks whether a worker has run one fiber since the last look; takes over the token or a fiber
  // that waits behind it. True if it took something.
  bool RelieveStuckWorkers();
  // Somebody polls or runs a fiber; another worker runs a fiber.
  bool OthersActive() const;
  bool OthersRun() const;
  void Notify(uint32_t what);
  void ExpireTimers(int64_t now_ns);

  SchedulerImpl* const scheduler_;
  const int index_;
  std::thread thread_;

  // Of the worker's thread alone.
  Fiber* current_ = nullptr;
  ContextHandle context_ = nullptr;  // of Loop, while a fiber runs
  Action action_ = Action::kPark;
  const ParkOptions* park_options_ = nullptr;  // on the stack of the fiber that parks
  void* sanitizer_fiber_ = nullptr;
  void* sanitizer_stack_ = nullptr;
  const void* stack_bottom_ = nullptr;
  size_t stack_size_ = 0;
  uint32_t picks_ = 0;  // fibers picked, for fairness between the queues
  uint32_t runs_since_poll_ = 0;
  uint32_t polls_in_place_ = 0;  // since the current fiber was switched to
  uint32_t polls_ = 0;           // for looking at the clock now and then
  bool after_wait_ = false;      // the next run is the first after a Wait
  std::vector<uint64_t> seen_;   // as monitor: run_count_ of the workers at the last look
  int64_t spin_bound_ns_;        // learned
  int64_t watch_period_ns_;      // of looks at the others while this one waits

  // Read by other threads.
  std::atomic<Fiber*> lifo_{nullptr};  // runs next; taken by exchange
  RunQueue queue_;
  std::atomic<uint64_t> run_count_{0};  // odd while a fiber runs; written by the worker
  std::atomic<int64_t> in_guest_{0};    // summed over workers: fibers parked for a guest
  alignas(64) std::atomic<uint32_t> wake_word_{kAsleep};
};

class SchedulerImpl {
 public:
  explicit SchedulerImpl(const Scheduler::Options& options);
  ~SchedulerImpl();

  // The process's scheduler. Get aborts if there is none.
  static SchedulerImpl* Get();
  static SchedulerImpl* Find();

  void Start();
  void Stop();
  void WaitForAll() ABSL_LOCKS_EXCLUDED(live_mu_);

  // Queues a runnable fiber. Any thread; forgets it if the scheduler has been shut down.
  static void Enqueue(Fiber* fiber);
  void ArmTimer(TimerNode* node, int64_t deadline_ns);
  TimerHeap& timers() { return timers_; }
  void FiberStarted() { live_.fetch_add(1, std::memory_order_relaxed); }
  void FiberEnded() ABSL_LOCKS_EXCLUDED(live_mu_);
  int worker_count() const { return static_cast<int>(workers_.size()); }
  size_t live_fibers() const { return live_.load(std::memory_order_relaxed); }

 private:
  friend class Worker;

  // The token of the worker that polls. Hard: it polls or waits now. Soft: it runs a fiber, and
  // another worker may take the token over.
  static constexpr uint32_t kTokenFree = 0;
  static constexpr uint32_t kTokenHard = 1;
  static uint32_t SoftToken(const Worker& w) { return static_cast<uint32_t>(w.index() + 1) << 1; }
  // Takes the token if it is free or this worker's own.
  bool AcquireToken(const Worker& w) {
    uint32_t token = token_.load(std::memory_order_relaxed);
    if (token != SoftToken(w) && token != kTokenFree) return false;
    return token_.compare_exchange_strong(token, SoftToken(w) | kTokenHard,
                                          std::memory_order_acq_rel);
  }
  void SoftenToken(const Worker& w) { token_.store(SoftToken(w), std::memory_order_release); }

  // Wakes an idle worker, or starts one if all are busy. False if there is none.
  bool WakeIdle() ABSL_LOCKS_EXCLUDED(idle_mu_, start_mu_);
  // Starts the thread of the next worker; false if all run.
  bool StartWorker() ABSL_LOCKS_EXCLUDED(start_mu_);
  // Makes sure that a monitor (if a worker is idle) looks after workers that run a fiber for long.
  void KickMonitor() {
    if (dozing_.load(std::memory_order_relaxed) != 0) KickMonitorSlow();
  }
  void KickMonitorSlow();
  // Called before a fiber is run now and then: is somebody waiting whom only a poll can hear?
  void KickMonitorIfNeeded();
  // Tells whoever can take it of new work from a thread that is no worker.
  void NotifyExternal();
  bool ShouldStop() const { return stop_.load(std::memory_order_relaxed); }

  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Poller> own_poller_;
  Poller* poller_;
  TimerHeap timers_;
  RunQueue global_;  // from threads that are no workers
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> token_{kTokenFree};
  alignas(64) std::atomic<bool> poller_waits_{false};
  // The idle worker that watches the others. Without one, the worker that waits in the poller does.
  std::atomic<Worker*> monitor_{nullptr};
  // Who watches, but sleeps without a time limit and wants to be told when a fiber runs.
  static constexpr uint32_t kMonitorDozes = 1, kPollerDozes = 2;
  std::atomic<uint32_t> dozing_{0};
  absl::Mutex idle_mu_;  // leaf
  std::vector<Worker*> idle_ ABSL_GUARDED_BY(idle_mu_);
  std::atomic<int> idle_count_{0};  // written under idle_mu_

  // Threads of workers are started as they are needed: a machine may have many cores, and a
  // container must start quickly.
  absl::Mutex start_mu_;         // leaf
  std::atomic<int> started_{0};  // written under start_mu_

  std::atomic<size_t> live_{0};
  absl::Mutex live_mu_;  // leaf
  absl::CondVar none_live_;
};

}  // namespace fiber
