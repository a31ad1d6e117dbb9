// Locks that park the fiber. For what must be held across a park; short critical sections use
// absl::Mutex. A host thread that is no fiber may use them too, and blocks.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/fiber.h"

namespace fiber {

// A waiting fiber or thread, on its own stack.
struct LockWaiter {
  Fiber* fiber = nullptr;  // null: a host thread
  LockWaiter* next = nullptr;
  bool shared = false;
  std::atomic<uint32_t> granted{0};

  LockWaiter();
  // Parks until Grant. Not interruptible.
  void Wait();
  // Ends Wait; the waiter may be gone when this returns.
  void Grant();
};

// First in, first out.
class LockWaiterList {
 public:
  bool empty() const { return head_ == nullptr; }
  LockWaiter* front() const { return head_; }
  void PushBack(LockWaiter* w);
  LockWaiter* PopFront();
  bool Remove(LockWaiter* w);

 private:
  LockWaiter* head_ = nullptr;
  LockWaiter* tail_ = nullptr;
};

// Not recursive. Waiters get it in the order in which they came. Uncontended: one atomic
// instruction each way.
class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;
  ~Mutex();

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION();
  void Unlock() ABSL_UNLOCK_FUNCTION();
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true);
  // Aborts in debug builds if nobody holds it.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  static constexpr uint32_t kFree = 0, kHeld = 1, kWaiters = 2;
  void LockSlow();
  void UnlockSlow();

  std::atomic<uint32_t> state_{kFree};
  absl::Mutex mu_;  // leaf
  LockWaiterList waiters_ ABSL_GUARDED_BY(mu_);
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mu_;
};

// Readers and writers; first come, first served, so neither starves.
class ABSL_LOCKABLE SharedMutex {
 public:
  SharedMutex() = default;
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;
  ~SharedMutex();

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION();
  void Unlock() ABSL_UNLOCK_FUNCTION();
  void LockShared() ABSL_SHARED_LOCK_FUNCTION();
  void UnlockShared() ABSL_UNLOCK_FUNCTION();

 private:
  void GrantNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;  // leaf
  bool writer_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t readers_ ABSL_GUARDED_BY(mu_) = 0;
  LockWaiterList waiters_ ABSL_GUARDED_BY(mu_);
};

class ABSL_SCOPED_LOCKABLE WriterLock {
 public:
  explicit WriterLock(SharedMutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~WriterLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex* const mu_;
};

class ABSL_SCOPED_LOCKABLE ReaderLock {
 public:
  explicit ReaderLock(SharedMutex* mu) ABSL_SHARED_LOCK_FUNCTION(mu) : mu_(mu) {
    mu_->LockShared();
  }
  ~ReaderLock() ABSL_UNLOCK_FUNCTION() { mu_->UnlockShared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex* const mu_;
};

// A condition variable of fiber::Mutex. Only fibers wait; anybody signals.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  // Gives up `mu` while parked, holds it again on return. May wake spuriously.
  WakeReason Wait(Mutex* mu, const ParkOptions& options = {}) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Signal();
  void SignalAll();

 private:
  absl::Mutex mu_;  // leaf
  LockWaiterList waiters_ ABSL_GUARDED_BY(mu_);
};

}  // namespace fiber
