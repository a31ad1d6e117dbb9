#include "sentry/fiber/worker.h"

#include <algorithm>

#include "sentry/base/time.h"
#include "sentry/fiber/futex.h"
#include "sentry/fiber/stack.h"

namespace fiber {

namespace {

// Poll at least once in so many fiber runs.
constexpr uint32_t kRunsPerPoll = 8;
// Look at the other queues first once in so many picks (a power of two).
constexpr uint32_t kFairPicks = 16;
// Look at the clock once in so many polls (a power of two).
constexpr uint32_t kPollsPerClock = 32;
// So many fibers behind the next one wake another worker.
constexpr size_t kBacklog = 4;
// Before a run, once in so many (a power of two): is there a monitor?
constexpr uint64_t kRunsPerKick = 128;

// A fiber polls in its own place so many times before it lets the others look, and each time for so
// many polls.
constexpr uint32_t kPlacesPerRun = 64;
constexpr int kPollsInPlace = 8;

constexpr int64_t kMinSpinNs = 2 * base::kNsPerUs;
constexpr int64_t kMaxSpinNs = 50 * base::kNsPerUs;

// The monitor looks first after, and then at most every:
constexpr int64_t kMinTickNs = 100 * base::kNsPerUs;
constexpr int64_t kMaxTickNs = base::kNsPerMs;
// After so many looks that found nobody active, each later than the last, it dozes.
constexpr int kQuietTicks = 3;

thread_local Worker* tls_worker = nullptr;

inline void CpuRelax() { __builtin_ia32_pause(); }

}  // namespace

Worker::Worker(SchedulerImpl* scheduler, int index)
    : scheduler_(scheduler),
      index_(index),
      spin_bound_ns_(kMaxSpinNs / 2),
      watch_period_ns_(kMinTickNs) {}

// Never inlined: a fiber may continue on another thread, so the thread-local's address must be
// taken anew each time.
[[gnu::noinline]] Worker* Worker::Current() {
  asm volatile("" ::: "memory");
  return tls_worker;
}

void Worker::Loop() {
  tls_worker = this;
  sanitizer_fiber_ = CurrentSanitizerFiber();
  while (!scheduler_->ShouldStop()) {
    if (runs_since_poll_ >= kRunsPerPoll && scheduler_->AcquireToken(*this)) {
      runs_since_poll_ = 0;
      scheduler_->poller_->Poll();
      ExpireTimers(base::kNever);
      scheduler_->SoftenToken(*this);
    }
    Fiber* fiber = Next();
    if (fiber == nullptr) {
      if (scheduler_->AcquireToken(*this)) {
        PollOrWait();
        scheduler_->SoftenToken(*this);
        continue;
      }
      fiber = Steal();
      if (fiber == nullptr) {
        Idle();
        continue;
      }
    }
    Run(fiber);
  }
}

Fiber* Worker::Next() {
  RunQueue& global = scheduler_->global_;
  if (++picks_ % kFairPicks == 0) {
    if (Fiber* fiber = global.Pop()) return fiber;
    if (Fiber* fiber = queue_.Pop()) return fiber;
  }
  if (lifo_.load(std::memory_order_relaxed) != nullptr) {
    if (Fiber* fiber = lifo_.exchange(nullptr, std::memory_order_acq_rel)) return fiber;
  }
  if (Fiber* fiber = queue_.Pop()) return fiber;
  return global.Pop();
}

Fiber* Worker::Steal() {
  const int count = scheduler_->worker_count();
  for (int i = 1; i < count; ++i) {
    Worker& victim = *scheduler_->workers_[(index_ + i) % count];
    if (Fiber* fiber = victim.queue_.Pop()) return fiber;
  }
  return nullptr;
}

bool Worker::HasWork() const {
  return lifo_.load(std::memory_order_relaxed) != nullptr || queue_.size() > 0 ||
         scheduler_->global_.size() > 0;
}

void Worker::PushLocal(Fiber* fiber) {
  Fiber* displaced = lifo_.exchange(fiber, std::memory_order_acq_rel);
  if (displaced != nullptr) {
    queue_.Push(displaced);
    if (queue_.size() >= kBacklog) scheduler_->WakeIdle();
  }
  if (displaced != nullptr || current_ != nullptr) scheduler_->KickMonitor();
}

void Worker::Run(Fiber* fiber) {
  const uint64_t runs = run_count_.load(std::memory_order_relaxed) + 1;
  if (after_wait_ || runs % kRunsPerKick == 1) {
    after_wait_ = false;
    scheduler_->KickMonitorIfNeeded();
  }
  if (fiber->in_guest_) {
    fiber->in_guest_ = false;
    in_guest_.store(in_guest_.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  }
  current_ = fiber;
  run_count_.store(runs, std::memory_order_relaxed);
  BeforeSwitch(fiber->sanitizer_, &sanitizer_stack_, fiber->stack_->bottom, fiber->stack_->size);
  const Transfer transfer = SwitchContext(fiber->context_, this);
  AfterSwitch(sanitizer_stack_, nullptr, nullptr);
  fiber->context_ = transfer.fctx;
  current_ = nullptr;
  run_count_.store(runs + 1, std::memory_order_relaxed);
  ++runs_since_poll_;
  polls_in_place_ = 0;
  switch (action_) {
    case Action::kPark:
      AfterPark(fiber);
      break;
    case Action::kYield:
      runs_since_poll_ = kRunsPerPoll;
      queue_.Push(fiber);
      break;
    case Action::kDone:
      Finish(fiber);
      break;
  }
}

// The fiber's context is saved: from kParkedBit on, another thread may run it.
void Worker::AfterPark(Fiber* fiber) {
  const ParkOptions options = *park_options_;
  const int64_t in_guest = in_guest_.load(std::memory_order_relaxed);
  if (options.in_guest) {
    fiber->in_guest_ = true;
    in_guest_.store(in_guest + 1, std::memory_order_relaxed);
  }
  uint32_t state = fiber->state_.load(std::memory_order_relaxed);
  while (true) {
    uint32_t next;
    bool runnable = true;
    if (state & Fiber::kPermitBit) {
      next = Fiber::Woken(state, WakeReason::kWoken) & ~Fiber::kPermitBit;
    } else if (options.interruptible && (state & Fiber::kInterruptedBit)) {
      next = Fiber::Woken(state, WakeReason::kInterrupted);
    } else if (state & Fiber::kTimeoutBit) {
      next = Fiber::Woken(state, WakeReason::kTimeout);
    } else {
      runnable = false;
      next = state | Fiber::kParkedBit | (options.interruptible ? Fiber::kInterruptibleBit : 0);
    }
    if (!fiber->state_.compare_exchange_weak(state, next, std::memory_order_acq_rel,
                                             std::memory_order_relaxed)) {
      continue;
    }
    if (runnable) PushLocal(fiber);
    return;
  }
}

void Worker::Finish(Fiber* fiber) {
  fiber->state_.fetch_or(Fiber::kDoneBit, std::memory_order_acq_rel);
  DestroySanitizerFiber(fiber->sanitizer_);
  ReleaseStack(fiber->stack_);
  fiber->stack_ = nullptr;
  fiber->DecRef();
  scheduler_->FiberEnded();
}

void Worker::SwitchOut(Action action, const ParkOptions* options) {
  Worker* worker = Current();
  worker->action_ = action;
  worker->park_options_ = options;
  void* saved = nullptr;
  BeforeSwitch(worker->sanitizer_fiber_, action == Action::kDone ? nullptr : &saved,
               worker->stack_bottom_, worker->stack_size_);
  const Transfer transfer = SwitchContext(worker->context_, nullptr);
  worker = static_cast<Worker*>(transfer.data);  // who resumed it
  AfterSwitch(saved, &worker->stack_bottom_, &worker->stack_size_);
  worker->context_ = transfer.fctx;
}

bool Worker::PollInPlace() {
  Fiber* fiber = current_;
  if (++polls_in_place_ > kPlacesPerRun || HasWork() || !scheduler_->AcquireToken(*this)) {
    return false;
  }
  // For everybody else the fiber has stopped running.
  const uint64_t runs = run_count_.load(std::memory_order_relaxed);
  run_count_.store(runs + 1, std::memory_order_relaxed);
  current_ = nullptr;
  Poller* poller = scheduler_->poller_;
  for (int i = 0; i < kPollsInPlace && poller->ShouldSpin(); ++i) {
    const size_t found = poller->Poll();
    if (++polls_ % kPollsPerClock == 0) ExpireTimers(base::kNever);
    if (found > 0 || HasWork() || scheduler_->ShouldStop()) break;
  }
  scheduler_->SoftenToken(*this);
  runs_since_poll_ = 0;
  current_ = fiber;
  run_count_.store(runs + 2, std::memory_order_relaxed);
  return (fiber->state_.load(std::memory_order_relaxed) & Fiber::kPermitBit) != 0;
}

void Worker::FiberEntry(Transfer transfer) {
  Worker* worker = static_cast<Worker*>(transfer.data);
  AfterSwitch(nullptr, &worker->stack_bottom_, &worker->stack_size_);
  worker->context_ = transfer.fctx;
  Fiber* fiber = worker->current_;
  fiber->fn_();
  fiber->fn_ = nullptr;  // what it holds is freed on the fiber
  SwitchOut(Action::kDone, nullptr);
  __builtin_unreachable();
}

// kNever: reads the clock, if there are timers at all.
void Worker::ExpireTimers(int64_t now_ns) {
  TimerHeap& timers = scheduler_->timers_;
  if (timers.next_deadline() == base::kNever) return;
  timers.Expire(now_ns == base::kNever ? base::MonotonicNs() : now_ns);
}

void Worker::PollOrWait() {
  runs_since_poll_ = 0;
  scheduler_->poller_->Poll();
  if (++polls_ % kPollsPerClock == 0) ExpireTimers(base::kNever);
  if (HasWork() || Spin()) return;
  if (Fiber* fiber = Steal()) {
    PushLocal(fiber);
    return;
  }
  WaitForEvents();
}

// Returns true if there is something to do.
bool Worker::Spin() {
  Poller* poller = scheduler_->poller_;
  if (!poller->ShouldSpin()) return false;
  int64_t start_ns = 0;
  for (uint32_t i = 1;; ++i) {
    if (poller->Poll() > 0 || HasWork() || scheduler_->ShouldStop()) {
      if (start_ns != 0) spin_bound_ns_ = std::min(kMaxSpinNs, spin_bound_ns_ * 5 / 4);
      return true;
    }
    if (i % kPollsPerClock == 0) {
      const int64_t now_ns = base::MonotonicNs();
      if (start_ns == 0) start_ns = now_ns;
      if (scheduler_->timers_.next_deadline() <= now_ns) {
        ExpireTimers(now_ns);
        return true;
      }
      if (now_ns - start_ns > spin_bound_ns_ || !poller->ShouldSpin()) break;
    }
    if (i > kPollsPerClock) CpuRelax();
  }
  spin_bound_ns_ = std::max(kMinSpinNs, spin_bound_ns_ * 3 / 4);
  return false;
}

void Worker::WaitForEvents() {
  SchedulerImpl* s = scheduler_;
  const int64_t start_ns = base::MonotonicNs();
  // From here on whoever adds work or an earlier timer calls the poller's Wake.
  s->poller_waits_.store(true, std::memory_order_seq_cst);
  // If every other worker is busy there is no monitor, so this one watches them while it waits.
  const bool watch = s->monitor_.load(std::memory_order_seq_cst) == nullptr;
  int64_t deadline_ns = s->timers_.next_deadline();
  if (watch) {
    s->dozing_.fetch_or(s->kPollerDozes, std::memory_order_seq_cst);
    if (OthersRun()) {
      s->dozing_.fetch_and(~s->kPollerDozes, std::memory_order_seq_cst);
      deadline_ns = std::min(deadline_ns, start_ns + watch_period_ns_);
      watch_period_ns_ = std::min(watch_period_ns_ * 2, kMaxTickNs);
    } else {
      watch_period_ns_ = kMinTickNs;
    }
  }
  if (!HasWork() && !s->ShouldStop()) s->poller_->Wait(deadline_ns);
  s->poller_waits_.store(false, std::memory_order_seq_cst);
  after_wait_ = true;
  if (watch) {
    s->dozing_.fetch_and(~s->kPollerDozes, std::memory_order_seq_cst);
    RelieveStuckWorkers();
  }
  const int64_t end_ns = base::MonotonicNs();
  // A wait this short should have been a spin.
  if (const int64_t waited = end_ns - start_ns; waited < kMaxSpinNs / 2) {
    spin_bound_ns_ = std::max(spin_bound_ns_, 2 * waited);
  }
  ExpireTimers(end_ns);
}

void Worker::Notify(uint32_t what) {
  if (what == kWake) {
    wake_word_.store(kWake, std::memory_order_release);
  } else {
    uint32_t expected = kAsleep;
    if (!wake_word_.compare_exchange_strong(expected, what, std::memory_order_release)) return;
  }
  FutexWake(&wake_word_);
}

void Worker::Idle() {
  SchedulerImpl* s = scheduler_;
  wake_word_.store(kAsleep, std::memory_order_relaxed);
  {
    absl::MutexLock lock(&s->idle_mu_);
    s->idle_.push_back(this);
    s->idle_count_.store(static_cast<int>(s->idle_.size()), std::memory_order_seq_cst);
  }
  // Whoever adds work from here on sees an idle worker; what was added before is seen here.
  bool work = s->global_.size() > 0 || s->token_.load(std::memory_order_seq_cst) == s->kTokenFree ||
              s->stop_.load(std::memory_order_seq_cst);
  for (const auto& other : s->workers_) work = work || other->queue_.size() > 0;
  if (!work) {
    Worker* none = nullptr;
    if (s->monitor_.compare_exchange_strong(none, this, std::memory_order_seq_cst)) {
      SleepAsMonitor();
      s->monitor_.store(nullptr, std::memory_order_seq_cst);
      work = true;
    } else {
      while (wake_word_.load(std::memory_order_acquire) == kAsleep) {
        FutexWait(&wake_word_, kAsleep);
      }
    }
  }
  {
    absl::MutexLock lock(&s->idle_mu_);
    s->idle_.erase(std::remove(s->idle_.begin(), s->idle_.end(), this), s->idle_.end());
    s->idle_count_.store(static_cast<int>(s->idle_.size()), std::memory_order_seq_cst);
  }
  // A monitor that leaves has another idle worker take its place.
  if (work && s->monitor_.load(std::memory_order_seq_cst) == nullptr) s->WakeIdle();
}

bool Worker::OthersActive() const {
  return !scheduler_->poller_waits_.load(std::memory_order_seq_cst) || OthersRun();
}

bool Worker::OthersRun() const {
  for (const auto& other : scheduler_->workers_) {
    if (other->run_count_.load(std::memory_order_relaxed) % 2 != 0) return true;
  }
  return false;
}

void Worker::SleepAsMonitor() {
  SchedulerImpl* s = scheduler_;
  int64_t period_ns = kMinTickNs;
  int quiet = 0;
  while (true) {
    const bool doze = quiet >= kQuietTicks;
    if (doze) {
      s->dozing_.fetch_or(s->kMonitorDozes, std::memory_order_seq_cst);
      // Who became active before that did not kick.
      if (OthersActive()) quiet = 0, period_ns = kMinTickNs;
    }
    if (!doze || quiet != 0) {
      FutexWait(&wake_word_, kAsleep, doze ? base::kNever : base::MonotonicNs() + period_ns);
    }
    s->dozing_.fetch_and(~s->kMonitorDozes, std::memory_order_seq_cst);
    uint32_t word = kTick;
    if (!wake_word_.compare_exchange_strong(word, kAsleep, std::memory_order_acquire) &&
        word == kWake) {
      return;
    }
    if (word == kTick || s->ShouldStop()) {
      quiet = 0;
      period_ns = kMinTickNs;
    }
    if (s->ShouldStop() || RelieveStuckWorkers()) return;
    if (doze || word == kTick) continue;
    if (OthersActive()) {
      quiet = 0;
      period_ns = std::min(period_ns * 2, kMaxTickNs);
    } else {
      ++quiet;
      period_ns = kMaxTickNs << (2 * quiet);
    }
  }
}

bool Worker::RelieveStuckWorkers() {
  SchedulerImpl* s = scheduler_;
  bool took = false;
  seen_.resize(s->workers_.size());
  for (size_t i = 0; i < s->workers_.size(); ++i) {
    Worker& other = *s->workers_[i];
    const uint64_t runs = other.run_count_.load(std::memory_order_relaxed);
    const bool stuck = runs % 2 != 0 && runs == seen_[i];
    seen_[i] = runs;
    if (!stuck) continue;
    uint32_t token = s->SoftToken(other);
    took = took ||
           s->token_.compare_exchange_strong(token, s->SoftToken(*this), std::memory_order_acq_rel);
    Fiber* fiber = other.queue_.Pop();
    if (fiber == nullptr) fiber = other.lifo_.exchange(nullptr, std::memory_order_acq_rel);
    if (fiber != nullptr) {
      PushLocal(fiber);
      took = true;
    }
  }
  return took;
}

}  // namespace fiber
