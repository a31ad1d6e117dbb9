// Wait queues as Linux's (include/linux/wait.h), keyed by poll events.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/fiber.h"

namespace fiber {

class WaitQueue;

// Somebody who wants to be told of events. Registered with one queue at most.
class Waiter {
 public:
  Waiter() = default;
  virtual ~Waiter() = default;
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  // Events of its mask have happened (EPOLLERR and EPOLLHUP are always in the mask). Called by the
  // waker with the queue's lock held: short, no park, no Register or Unregister on that queue; a
  // Wake of another queue is allowed, in a fixed order (an epoll's queue after the file's).
  virtual void OnEvent(uint32_t events) = 0;
  // For exclusive waiters: false if this waiter has no use for the wake, which then goes to the
  // next one.
  virtual bool TryEvent(uint32_t events) {
    OnEvent(events);
    return true;
  }

 private:
  friend class WaitQueue;
  Waiter* prev_ = nullptr;
  Waiter* next_ = nullptr;
  WaitQueue* queue_ = nullptr;
  uint32_t mask_ = 0;
  bool exclusive_ = false;
};

// Thread-safe. Its lock is a leaf but for what OnEvent takes.
class WaitQueue {
 public:
  WaitQueue() = default;
  // Precondition: empty.
  ~WaitQueue();
  WaitQueue(const WaitQueue&) = delete;
  WaitQueue& operator=(const WaitQueue&) = delete;

  // After Register the waiter sees every Wake that begins later; so register, then look at the
  // condition. An exclusive waiter (EPOLLEXCLUSIVE, read of a pipe, accept) is added at the tail,
  // and a Wake stops after one of them.
  void Register(Waiter* waiter, uint32_t mask, bool exclusive = false);
  // After it returns no callback runs or will run. A waiter that is not registered is left alone.
  void Unregister(Waiter* waiter);
  // Tells the waiters whose mask meets `events` (EPOLLIN, ...): all that are not exclusive, and up
  // to `exclusive` exclusive ones. Change the condition first. Costs a fence if nobody waits.
  void Wake(uint32_t events, int exclusive = 1);
  void WakeAll(uint32_t events) { Wake(events, INT32_MAX); }
  // True if somebody waits (stale at once).
  bool HasWaiters() const { return head_.load(std::memory_order_relaxed) != nullptr; }

 private:
  absl::Mutex mu_;
  std::atomic<Waiter*> head_{nullptr};  // written under mu_
  Waiter* tail_ ABSL_GUARDED_BY(mu_) = nullptr;
};

// A waiter that unparks a fiber.
class FiberWaiter : public Waiter {
 public:
  explicit FiberWaiter(Fiber* fiber = Current()) : fiber_(fiber) {}
  void OnEvent(uint32_t events) override { TryEvent(events); }
  bool TryEvent(uint32_t events) override;
  // Forgets what has been signalled; call it before looking at the condition.
  void Reset() { signaled_.exchange(false, std::memory_order_seq_cst); }
  bool signaled() const { return signaled_.load(std::memory_order_seq_cst); }

 private:
  Fiber* const fiber_;
  std::atomic<bool> signaled_{false};
};

// Parks the current fiber until predicate() holds (kWoken), looking again whenever the queue is
// woken with events of `mask`; or until interrupted or timed out with predicate() still false.
// The predicate is called without locks held by this function.
template <typename Predicate>
WakeReason WaitUntil(WaitQueue& queue, uint32_t mask, Predicate&& predicate,
                     const ParkOptions& options = {}, bool exclusive = false) {
  if (predicate()) return WakeReason::kWoken;
  FiberWaiter waiter;
  queue.Register(&waiter, mask, exclusive);
  WakeReason reason = WakeReason::kWoken;
  while (true) {
    waiter.Reset();
    if (predicate()) {
      reason = WakeReason::kWoken;
      break;
    }
    if (reason != WakeReason::kWoken) break;
    reason = Park(options);
  }
  queue.Unregister(&waiter);
  // A wake that came after the last look may have been meant for the next exclusive waiter.
  if (exclusive && waiter.signaled()) queue.Wake(mask);
  return reason;
}

}  // namespace fiber
