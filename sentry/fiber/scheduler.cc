#include "sentry/fiber/scheduler.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/fiber/futex.h"
#include "sentry/fiber/worker.h"

namespace fiber {

namespace {

std::atomic<SchedulerImpl*> g_scheduler{nullptr};
// Threads that are no workers and are in Enqueue.
std::atomic<int> g_entered{0};

// Nothing to poll: Wait is a sleep.
class NullPoller : public Poller {
 public:
  size_t Poll() override { return 0; }
  bool ShouldSpin() override { return false; }
  void Wait(int64_t deadline_ns) override {
    if (word_.load(std::memory_order_acquire) == 0) FutexWait(&word_, 0, deadline_ns);
    word_.store(0, std::memory_order_seq_cst);
  }
  void Wake() override {
    word_.store(1, std::memory_order_seq_cst);
    FutexWake(&word_);
  }

 private:
  std::atomic<uint32_t> word_{0};
};

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

void StartThread(const char* name, std::function<void()> fn, std::thread* out) {
  // Signals that the thread itself causes stay open: a crash must be reported as one.
  sigset_t block, old;
  sigfillset(&block);
  for (int sig : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT}) {
    sigdelset(&block, sig);
  }
  pthread_sigmask(SIG_SETMASK, &block, &old);
  try {
    std::thread thread([name, fn = std::move(fn)] {
      pthread_setname_np(pthread_self(), name);
      fn();
    });
    if (out != nullptr) {
      *out = std::move(thread);
    } else {
      thread.detach();
    }
  } catch (const std::system_error& e) {
    LOG_ERROR("cannot start thread %s: %s", name, strerror(e.code().value()));
    abort();
  }
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

void RunQueue::Push(Fiber* fiber) {
  absl::MutexLock lock(&mu_);
  fiber->next_ = nullptr;
  (tail_ != nullptr ? tail_->next_ : head_) = fiber;
  tail_ = fiber;
  size_.store(size_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
}

Fiber* RunQueue::Pop() {
  if (size_.load(std::memory_order_seq_cst) == 0) return nullptr;
  absl::MutexLock lock(&mu_);
  Fiber* fiber = head_;
  if (fiber == nullptr) return nullptr;
  head_ = fiber->next_;
  if (head_ == nullptr) tail_ = nullptr;
  size_.store(size_.load(std::memory_order_relaxed) - 1, std::memory_order_seq_cst);
  return fiber;
}

SchedulerImpl::SchedulerImpl(const Scheduler::Options& options) : poller_(options.poller) {
  if (poller_ == nullptr) {
    own_poller_ = std::make_unique<NullPoller>();
    poller_ = own_poller_.get();
  }
  const int count = options.workers > 0 ? options.workers : std::max(2, UsableCores());
  for (int i = 0; i < count; ++i) workers_.push_back(std::make_unique<Worker>(this, i));
}

SchedulerImpl::~SchedulerImpl() = default;

SchedulerImpl* SchedulerImpl::Find() { return g_scheduler.load(std::memory_order_acquire); }

SchedulerImpl* SchedulerImpl::Get() {
  SchedulerImpl* scheduler = Find();
  if (scheduler == nullptr) {
    LOG_ERROR("fibers are used without a scheduler");
    abort();
  }
  return scheduler;
}

void SchedulerImpl::Start() {
  if (g_scheduler.exchange(this, std::memory_order_acq_rel) != nullptr) {
    LOG_ERROR("there is a scheduler already");
    abort();
  }
  // Two: one to poll, one to look after it.
  StartWorker();
  StartWorker();
}

bool SchedulerImpl::StartWorker() {
  if (started_.load(std::memory_order_relaxed) == worker_count()) return false;
  absl::MutexLock lock(&start_mu_);
  const int index = started_.load(std::memory_order_relaxed);
  if (index == worker_count() || stop_.load(std::memory_order_relaxed)) return false;
  Worker* worker = workers_[index].get();
  StartThread(
      "runsc-worker", [worker] { worker->Loop(); }, &worker->thread_);
  started_.store(index + 1, std::memory_order_relaxed);
  return true;
}

void SchedulerImpl::Stop() {
  {
    absl::MutexLock lock(&start_mu_);
    stop_.store(true, std::memory_order_seq_cst);
  }
  poller_->Wake();
  for (const auto& worker : workers_) worker->Notify(Worker::kWake);
  for (const auto& worker : workers_) {
    if (worker->thread_.joinable()) worker->thread_.join();
  }
  g_scheduler.store(nullptr, std::memory_order_seq_cst);
  while (g_entered.load(std::memory_order_acquire) != 0) sched_yield();
}

void SchedulerImpl::WaitForAll() {
  absl::MutexLock lock(&live_mu_);
  while (live_fibers() > 0) none_live_.Wait(&live_mu_);
}

void SchedulerImpl::FiberEnded() {
  if (live_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    absl::MutexLock lock(&live_mu_);
    none_live_.SignalAll();
  }
}

void SchedulerImpl::Enqueue(Fiber* fiber) {
  if (Worker* worker = Worker::Current()) {
    worker->PushLocal(fiber);
    return;
  }
  g_entered.fetch_add(1, std::memory_order_seq_cst);
  if (SchedulerImpl* scheduler = g_scheduler.load(std::memory_order_seq_cst)) {
    scheduler->global_.Push(fiber);
    scheduler->NotifyExternal();
  }
  g_entered.fetch_sub(1, std::memory_order_release);
}

void SchedulerImpl::NotifyExternal() {
  if (poller_waits_.load(std::memory_order_seq_cst)) {
    poller_->Wake();
  } else if ((token_.load(std::memory_order_seq_cst) & kTokenHard) == 0) {
    // The token's holder runs a fiber; a spinning one would see the queue by itself.
    WakeIdle();
  }
}

void SchedulerImpl::ArmTimer(TimerNode* node, int64_t deadline_ns) {
  const bool earliest = timers_.Arm(node, deadline_ns);
  if (earliest && poller_waits_.load(std::memory_order_seq_cst)) poller_->Wake();
}

bool SchedulerImpl::WakeIdle() {
  if (idle_count_.load(std::memory_order_seq_cst) == 0) return StartWorker();
  Worker* worker;
  {
    absl::MutexLock lock(&idle_mu_);
    if (idle_.empty()) return false;
    worker = idle_.back();
    idle_.pop_back();
    idle_count_.store(static_cast<int>(idle_.size()), std::memory_order_seq_cst);
  }
  worker->Notify(Worker::kWake);
  return true;
}

void SchedulerImpl::KickMonitorSlow() {
  const uint32_t dozing = dozing_.exchange(0, std::memory_order_seq_cst);
  Worker* monitor = monitor_.load(std::memory_order_seq_cst);
  if ((dozing & kMonitorDozes) != 0 && monitor != nullptr) monitor->Notify(Worker::kTick);
  if ((dozing & kPollerDozes) != 0) poller_->Wake();
}

void SchedulerImpl::KickMonitorIfNeeded() {
  if (dozing_.load(std::memory_order_relaxed) == 0) return;
  int64_t in_guest = 0;
  for (const auto& worker : workers_) in_guest += worker->in_guest_.load(std::memory_order_relaxed);
  // The fiber that is about to run may be one of them.
  if (in_guest > 1 || timers_.next_deadline() != base::kNever) KickMonitorSlow();
}

Scheduler::Scheduler() : Scheduler(Options{}) {}

Scheduler::Scheduler(const Options& options) : impl_(std::make_unique<SchedulerImpl>(options)) {
  impl_->Start();
}

Scheduler::~Scheduler() { Shutdown(); }

void Scheduler::WaitForAll() { impl_->WaitForAll(); }

void Scheduler::Shutdown() {
  if (impl_ == nullptr) return;
  impl_->Stop();
  impl_.reset();
}

int Scheduler::workers() const { return impl_->worker_count(); }

size_t Scheduler::live_fibers() const { return impl_->live_fibers(); }

}  // namespace fiber
