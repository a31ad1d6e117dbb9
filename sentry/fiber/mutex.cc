#include "sentry/fiber/mutex.h"

#include <cassert>

#include "sentry/fiber/futex.h"

namespace fiber {

LockWaiter::LockWaiter() : fiber(Current()) {}

void LockWaiter::Wait() {
  while (granted.load(std::memory_order_acquire) == 0) {
    if (fiber != nullptr) {
      Park();
    } else {
      FutexWait(&granted, 0);
    }
  }
}

void LockWaiter::Grant() {
  if (fiber != nullptr) {
    // The fiber may see `granted` and end before Unpark.
    base::Ref<Fiber> keep(fiber);
    granted.store(1, std::memory_order_release);
    keep->Unpark();
  } else {
    granted.store(1, std::memory_order_release);
    // If the waiter has returned already this wakes nobody, or somebody spuriously.
    FutexWake(&granted);
  }
}

void LockWaiterList::PushBack(LockWaiter* w) {
  w->next = nullptr;
  if (tail_ != nullptr) {
    tail_->next = w;
  } else {
    head_ = w;
  }
  tail_ = w;
}

LockWaiter* LockWaiterList::PopFront() {
  LockWaiter* w = head_;
  if (w != nullptr) {
    head_ = w->next;
    if (head_ == nullptr) tail_ = nullptr;
  }
  return w;
}

bool LockWaiterList::Remove(LockWaiter* w) {
  LockWaiter* prev = nullptr;
  for (LockWaiter* i = head_; i != nullptr; prev = i, i = i->next) {
    if (i != w) continue;
    (prev != nullptr ? prev->next : head_) = w->next;
    if (tail_ == w) tail_ = prev;
    return true;
  }
  return false;
}

Mutex::~Mutex() { assert(state_.load(std::memory_order_relaxed) == kFree); }

void Mutex::Lock() {
  uint32_t expected = kFree;
  if (!state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire)) LockSlow();
}

bool Mutex::TryLock() {
  uint32_t expected = kFree;
  return state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire);
}

void Mutex::Unlock() {
  uint32_t expected = kHeld;
  if (!state_.compare_exchange_strong(expected, kFree, std::memory_order_release)) UnlockSlow();
}

// state_ is kWaiters exactly while waiters_ is not empty; both changes are made under mu_.
void Mutex::LockSlow() {
  LockWaiter waiter;
  {
    absl::MutexLock lock(&mu_);
    uint32_t state = state_.load(std::memory_order_relaxed);
    while (state != kWaiters) {
      const uint32_t next = state == kFree ? kHeld : kWaiters;
      if (state_.compare_exchange_weak(state, next, std::memory_order_acquire)) {
        if (state == kFree) return;
        break;
      }
    }
    waiters_.PushBack(&waiter);
  }
  waiter.Wait();
}

void Mutex::UnlockSlow() {
  LockWaiter* next;
  {
    absl::MutexLock lock(&mu_);
    next = waiters_.PopFront();
    assert(next != nullptr);
    if (waiters_.empty()) state_.store(kHeld, std::memory_order_relaxed);
  }
  // The lock passes to `next`, which may destroy this mutex from here on.
  next->Grant();
}

SharedMutex::~SharedMutex() {
  absl::MutexLock lock(&mu_);
  assert(!writer_ && readers_ == 0 && waiters_.empty());
}

void SharedMutex::Lock() {
  LockWaiter waiter;
  {
    absl::MutexLock lock(&mu_);
    if (!writer_ && readers_ == 0) {
      writer_ = true;
      return;
    }
    waiters_.PushBack(&waiter);
  }
  waiter.Wait();
}

void SharedMutex::LockShared() {
  LockWaiter waiter;
  waiter.shared = true;
  {
    absl::MutexLock lock(&mu_);
    if (!writer_ && waiters_.empty()) {
      ++readers_;
      return;
    }
    waiters_.PushBack(&waiter);
  }
  waiter.Wait();
}

void SharedMutex::Unlock() {
  absl::MutexLock lock(&mu_);
  writer_ = false;
  GrantNext();
}

void SharedMutex::UnlockShared() {
  absl::MutexLock lock(&mu_);
  if (--readers_ == 0) GrantNext();
}

void SharedMutex::GrantNext() {
  while (LockWaiter* w = waiters_.front()) {
    if (writer_ || (!w->shared && readers_ > 0)) return;
    waiters_.PopFront();
    if (w->shared) {
      ++readers_;
    } else {
      writer_ = true;
    }
    w->Grant();
  }
}

WakeReason CondVar::Wait(Mutex* mu, const ParkOptions& options) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  LockWaiter waiter;
  assert(waiter.fiber != nullptr);
  {
    absl::MutexLock lock(&mu_);
    waiters_.PushBack(&waiter);
  }
  mu->Unlock();
  WakeReason reason = WakeReason::kWoken;
  while (waiter.granted.load(std::memory_order_acquire) == 0 && reason == WakeReason::kWoken) {
    reason = Park(options);
  }
  {
    // Grant is called under mu_: a waiter that is out of the list has been granted.
    absl::MutexLock lock(&mu_);
    if (!waiters_.Remove(&waiter)) reason = WakeReason::kWoken;
  }
  mu->Lock();
  return reason;
}

void CondVar::Signal() {
  absl::MutexLock lock(&mu_);
  if (LockWaiter* w = waiters_.PopFront()) w->Grant();
}

void CondVar::SignalAll() {
  absl::MutexLock lock(&mu_);
  while (LockWaiter* w = waiters_.PopFront()) w->Grant();
}

}  // namespace fiber
