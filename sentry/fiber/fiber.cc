#include "sentry/fiber/fiber.h"

#include <atomic>
#include <cstdlib>
#include <utility>

#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/fiber/context.h"
#include "sentry/fiber/futex.h"
#include "sentry/fiber/stack.h"
#include "sentry/fiber/worker.h"

namespace fiber {

Fiber::Fiber(std::string name, std::function<void()> fn, void* user_data)
    : user_data_(user_data), fn_(std::move(fn)), name_(std::move(name)) {
  timer_.expire = &Fiber::OnTimer;
  timer_.owner = this;
  stack_ = AcquireStack();
  context_ = MakeContext(stack_->bottom, stack_->size, &Worker::FiberEntry);
  sanitizer_ = CreateSanitizerFiber();
}

Fiber::~Fiber() = default;

base::Ref<Fiber> Spawn(std::string name, std::function<void()> fn, void* user_data) {
  SchedulerImpl* scheduler = SchedulerImpl::Get();
  auto fiber = base::Ref<Fiber>::Adopt(new Fiber(std::move(name), std::move(fn), user_data));
  fiber->IncRef();  // the scheduler's, dropped by Worker::Finish
  scheduler->FiberStarted();
  SchedulerImpl::Enqueue(fiber.get());
  return fiber;
}

Fiber* Current() {
  Worker* worker = Worker::Current();
  return worker != nullptr ? worker->current() : nullptr;
}

PhaseClock* CurrentPhaseClock() {
  Fiber* self = Current();
  return self != nullptr ? &self->phase_clock() : nullptr;
}

// The compare-exchange is made even if the permit is set already: the fiber that takes the permit
// must see what happened before this call.
void Fiber::Unpark() {
  uint32_t state = state_.load(std::memory_order_relaxed);
  while (true) {
    const bool parked = state & kParkedBit;
    const uint32_t next = parked ? Woken(state, WakeReason::kWoken) : state | kPermitBit;
    if (!state_.compare_exchange_weak(state, next, std::memory_order_acq_rel,
                                      std::memory_order_relaxed)) {
      continue;
    }
    if (parked) SchedulerImpl::Enqueue(this);
    return;
  }
}

void Fiber::Interrupt() {
  uint32_t state = state_.load(std::memory_order_relaxed);
  while (true) {
    const bool wake = (state & kParkedBit) && (state & kInterruptibleBit);
    const uint32_t next = (wake ? Woken(state, WakeReason::kInterrupted) : state) | kInterruptedBit;
    if (!state_.compare_exchange_weak(state, next, std::memory_order_acq_rel,
                                      std::memory_order_relaxed)) {
      continue;
    }
    if (wake) SchedulerImpl::Enqueue(this);
    return;
  }
}

// The deadline of the current park has passed. Park cancels the timer, and waits for this, before
// it returns.
void Fiber::OnTimer(TimerNode* node) {
  Fiber* fiber = static_cast<Fiber*>(node->owner);
  uint32_t state = fiber->state_.load(std::memory_order_relaxed);
  while (true) {
    const bool parked = state & kParkedBit;
    const uint32_t next = parked ? Woken(state, WakeReason::kTimeout) : state | kTimeoutBit;
    if (!fiber->state_.compare_exchange_weak(state, next, std::memory_order_acq_rel,
                                             std::memory_order_relaxed)) {
      continue;
    }
    if (parked) SchedulerImpl::Enqueue(fiber);
    return;
  }
}

WakeReason Park(const ParkOptions& options) {
  Fiber* self = Current();
  if (self == nullptr) {
    LOG_ERROR("Park outside a fiber");
    abort();
  }
  if (self->state_.load(std::memory_order_relaxed) & Fiber::kPermitBit) {
    self->state_.fetch_and(~Fiber::kPermitBit, std::memory_order_acq_rel);
    return WakeReason::kWoken;
  }
  if (options.interruptible && self->interrupted()) return WakeReason::kInterrupted;
  const bool timed = options.deadline_ns != kNoDeadline;
  if (timed) {
    if (options.deadline_ns <= base::MonotonicNs()) return WakeReason::kTimeout;
    SchedulerImpl::Get()->ArmTimer(&self->timer_, options.deadline_ns);
  }
  {
    const ScopedPhase phase(&self->phase_clock_, Phase::kWait);
    if (!options.in_guest) {
      self->waits_.store(self->waits_.load(std::memory_order_relaxed) + 1,
                         std::memory_order_relaxed);
    }
    if (options.in_guest && Worker::Current()->PollInPlace()) {
      self->state_.fetch_and(~Fiber::kPermitBit, std::memory_order_acq_rel);
      return WakeReason::kWoken;
    }
    Worker::SwitchOut(Worker::Action::kPark, &options);
  }
  if (timed) {
    SchedulerImpl::Get()->timers().Cancel(&self->timer_);
    self->state_.fetch_and(~Fiber::kTimeoutBit, std::memory_order_relaxed);
  }
  const uint32_t state = self->state_.load(std::memory_order_acquire);
  return static_cast<WakeReason>((state & Fiber::kReasonMask) >> Fiber::kReasonShift);
}

void Yield() { Worker::SwitchOut(Worker::Action::kYield, nullptr); }

WakeReason SleepUntil(int64_t deadline_ns, bool interruptible) {
  if (Current() == nullptr) {  // another thread of the sentry's
    std::atomic<uint32_t> never{0};
    while (FutexWait(&never, 0, deadline_ns)) {
    }
    return WakeReason::kTimeout;
  }
  const ParkOptions options{.interruptible = interruptible, .deadline_ns = deadline_ns};
  WakeReason reason;
  do {
    reason = Park(options);
  } while (reason == WakeReason::kWoken);
  return reason;
}

}  // namespace fiber
