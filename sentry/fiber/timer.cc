#include "sentry/fiber/timer.h"

#include <utility>

#include "sentry/base/time.h"
#include "sentry/fiber/worker.h"

namespace fiber {

Timer::Timer() {
  node_.expire = &Timer::Expire;
  node_.owner = this;
}

Timer::~Timer() { Cancel(); }

void Timer::Expire(TimerNode* node) {
  Timer* timer = static_cast<Timer*>(node->owner);
  std::function<void()> callback;
  {
    absl::MutexLock lock(&timer->mu_);
    // An Arm since this expiry began replaces it.
    if (timer->callback_ == nullptr || base::MonotonicNs() < timer->deadline_ns_) return;
    callback = std::exchange(timer->callback_, nullptr);
  }
  callback();  // may destroy the timer
}

void Timer::Arm(int64_t deadline_ns, std::function<void()> callback) {
  absl::MutexLock lock(&mu_);
  callback_ = std::move(callback);
  deadline_ns_ = deadline_ns;
  SchedulerImpl::Get()->ArmTimer(&node_, deadline_ns);
}

bool Timer::Disarm() {
  absl::MutexLock lock(&mu_);
  return std::exchange(callback_, nullptr) != nullptr;
}

bool Timer::Cancel() {
  const bool armed = Disarm();
  if (SchedulerImpl* scheduler = SchedulerImpl::Find()) scheduler->timers().Cancel(&node_);
  return Disarm() || armed;  // a callback that ran meanwhile may have armed it again
}

}  // namespace fiber
