#include "sentry/fiber/wait_queue.h"

#include <cassert>

namespace fiber {

WaitQueue::~WaitQueue() { assert(head_.load(std::memory_order_relaxed) == nullptr); }

void WaitQueue::Register(Waiter* waiter, uint32_t mask, bool exclusive) {
  {
    absl::MutexLock lock(&mu_);
    assert(waiter->queue_ == nullptr);
    waiter->queue_ = this;
    waiter->mask_ = mask | EPOLLERR | EPOLLHUP;
    waiter->exclusive_ = exclusive;
    Waiter* head = head_.load(std::memory_order_relaxed);
    if (exclusive) {
      waiter->prev_ = tail_;
      waiter->next_ = nullptr;
      if (tail_ != nullptr) {
        tail_->next_ = waiter;
      } else {
        head_.store(waiter, std::memory_order_relaxed);
      }
      tail_ = waiter;
    } else {
      waiter->prev_ = nullptr;
      waiter->next_ = head;
      if (head != nullptr) {
        head->prev_ = waiter;
      } else {
        tail_ = waiter;
      }
      head_.store(waiter, std::memory_order_relaxed);
    }
  }
  // Pairs with the fence in Wake: either Wake sees the waiter, or the waiter, which looks at its
  // condition after this, sees what was changed before Wake.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void WaitQueue::Unregister(Waiter* waiter) {
  absl::MutexLock lock(&mu_);
  if (waiter->queue_ != this) return;
  waiter->queue_ = nullptr;
  if (waiter->prev_ != nullptr) {
    waiter->prev_->next_ = waiter->next_;
  } else {
    head_.store(waiter->next_, std::memory_order_relaxed);
  }
  if (waiter->next_ != nullptr) {
    waiter->next_->prev_ = waiter->prev_;
  } else {
    tail_ = waiter->prev_;
  }
}

void WaitQueue::Wake(uint32_t events, int exclusive) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (head_.load(std::memory_order_relaxed) == nullptr) return;
  absl::MutexLock lock(&mu_);
  Waiter* next;
  for (Waiter* w = head_.load(std::memory_order_relaxed); w != nullptr; w = next) {
    next = w->next_;
    if ((w->mask_ & events) == 0) continue;
    if (!w->exclusive_) {
      w->OnEvent(events);
    } else if (w->TryEvent(events) && --exclusive == 0) {
      return;
    }
  }
}

bool FiberWaiter::TryEvent(uint32_t) {
  if (signaled_.exchange(true, std::memory_order_seq_cst)) return false;
  fiber_->Unpark();
  return true;
}

}  // namespace fiber
