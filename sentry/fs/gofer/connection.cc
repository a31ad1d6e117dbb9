#include "sentry/fs/gofer/connection.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>

#include <algorithm>
#include <atomic>

#include "sentry/base/counter.h"
#include "sentry/base/host_io.h"
#include "sentry/base/time.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fiber/phase.h"

namespace sentry {
namespace {

base::Counter g_requests("gofer.requests", "requests sent to the gofer");

// Handles are given back in batches of this many.
constexpr size_t kForgetBatch = 64;

// Spinning for the answer saves waking two threads, and costs nothing where a core is idle: besides
// this worker's there is to be one for the gofer and one for the guest, which may spin too. Where
// all are busy, answers come late, and it stops being tried.
constexpr int kSpinProcessors = 3;
constexpr int kSpinCreditMax = 8;
constexpr int kSpinMiss = 2;
constexpr int kSpinProbe = 16;  // one try after so many calls without
constexpr int64_t kSpinMinNs = 10'000;
constexpr int64_t kSpinMaxNs = 60'000;

// Who parks is woken by way of the epoll thread and a worker: three switches, which take as long as
// a rename. So a worker sleeps for the answer itself while answers come soon. What it holds up by
// that, the scheduler's monitor gives to others (sentry/fiber/README.md).
constexpr int kQuickToLead = 4;
constexpr int64_t kLeadNs = 100'000;

// By the one call that a confined sentry has for it.
int Processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

// One request in flight, on the stack of who waits.
struct Call {
  base::Ref<fiber::Fiber> fiber;  // null: a thread, which polls
  gofer::Reply reply;
  std::atomic<bool> done{false};
};

}  // namespace

GoferConnection::GoferConnection(base::UniqueFd socket, std::function<void()> on_broken)
    : client_(std::move(socket),
              [on_broken = std::move(on_broken)] {
                if (on_broken) on_broken();
              }),
      may_spin_(Processors() >= kSpinProcessors),
      spin_credit_(kSpinCreditMax),
      spin_ns_(kSpinMaxNs) {}

GoferConnection::~GoferConnection() { watch_.Stop(); }

base::Result<base::Ref<GoferConnection>> GoferConnection::Connect(base::UniqueFd socket,
                                                                  std::function<void()> on_broken) {
  auto connection = base::MakeRef<GoferConnection>(std::move(socket), std::move(on_broken));
  GoferConnection* self = connection.get();
  TRY(connection->watch_.Start(self->client_.fd(), EPOLLIN, fiber::FdWatch::Mode::kOneShot,
                               [self](uint32_t) {
                                 if (!self->client_.Receive()) return;
                                 if (self->parked_.load(std::memory_order_seq_cst) > 0) {
                                   (void)self->watch_.Rearm(EPOLLIN).ok();
                                 }
                               }));
  connection->hello_ = TRY(gofer::ParseHello(connection->Call(gofer::MakeHello())));
  return connection;
}

template <typename Done>
bool GoferConnection::Spin(const Done& done) {
  if (done()) return true;
  if (!may_spin_) return false;
  if (spin_credit_.load(std::memory_order_relaxed) <= 0) {
    if (spin_skipped_.fetch_add(1, std::memory_order_relaxed) < kSpinProbe) return false;
    spin_skipped_.store(0, std::memory_order_relaxed);
  }
  const int64_t start = base::MonotonicNs();
  const int64_t bound = spin_ns_.load(std::memory_order_relaxed);
  int64_t spent = 0;
  do {
    client_.Receive();
    if (done()) {
      if (spin_credit_.load(std::memory_order_relaxed) < kSpinCreditMax) {
        spin_credit_.fetch_add(1, std::memory_order_relaxed);
      }
      // An answer may take twice what they took lately.
      const int64_t wanted = std::clamp(2 * (base::MonotonicNs() - start), kSpinMinNs, kSpinMaxNs);
      spin_ns_.store((7 * bound + wanted) / 8, std::memory_order_relaxed);
      return true;
    }
    for (int i = 0; i < 20; ++i) __builtin_ia32_pause();
    spent = base::MonotonicNs() - start;
  } while (spent < bound);
  spin_credit_.store(std::max(0, spin_credit_.load(std::memory_order_relaxed) - kSpinMiss),
                     std::memory_order_relaxed);
  spin_ns_.store((7 * bound + kSpinMaxNs) / 8, std::memory_order_relaxed);
  return false;
}

void GoferConnection::Took(int64_t ns) {
  const int n = quick_.load(std::memory_order_relaxed);
  if (ns > kLeadNs) {
    quick_.store(0, std::memory_order_relaxed);
  } else if (n < kQuickToLead) {
    quick_.store(n + 1, std::memory_order_relaxed);
  }
}

template <typename Done>
bool GoferConnection::Lead(const Done& done) {
  if (done()) return true;
  if (quick_.load(std::memory_order_relaxed) < kQuickToLead ||
      leading_.exchange(true, std::memory_order_seq_cst)) {
    return false;
  }
  bool found = false;
  // The watch of one who has parked before would take the answer away.
  if (parked_.load(std::memory_order_seq_cst) == 0) {
    const int64_t begin = base::MonotonicNs();
    for (int64_t left = kLeadNs; left > 0 && !found;) {
      pollfd p = {client_.fd(), POLLIN, 0};
      const timespec timeout = {0, left};
      ppoll(&p, 1, &timeout, nullptr);
      found = !client_.Receive() || done();
      left = begin + kLeadNs - base::MonotonicNs();
    }
    Took(found ? 0 : kLeadNs + 1);
  }
  EndLead();
  return done();
}

void GoferConnection::EndLead() {
  leading_.store(false, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) > 0) (void)watch_.Rearm(EPOLLIN).ok();
}

void GoferConnection::BeginPark() {
  parked_.fetch_add(1, std::memory_order_seq_cst);
  if (!leading_.load(std::memory_order_seq_cst)) (void)watch_.Rearm(EPOLLIN).ok();
}

gofer::Reply GoferConnection::Call(gofer::Request request) {
  g_requests.Add();
  const fiber::ScopedPhase phase(fiber::Phase::kGofer);
  struct Call call;
  call.fiber = base::Ref<fiber::Fiber>(fiber::Current());
  client_.Submit(std::move(request), [&call](gofer::Reply reply) {
    // Once `done` is seen, `call` may be gone.
    const base::Ref<fiber::Fiber> fiber = call.fiber;
    call.reply = std::move(reply);
    call.done.store(true, std::memory_order_release);
    if (fiber) fiber->Unpark();
  });
  if (!call.fiber) {
    while (!call.done.load(std::memory_order_acquire)) {
      // A parked fiber's watch may take the reply first, hence the limit.
      pollfd p = {client_.fd(), POLLIN, 0};
      base::HostPoll(&p, 1, 1);
      client_.Receive();
    }
    return std::move(call.reply);
  }
  const auto done = [&call] { return call.done.load(std::memory_order_acquire); };
  if (Spin(done) || Lead(done)) return std::move(call.reply);
  const int64_t begin = base::MonotonicNs();
  BeginPark();
  while (!done()) fiber::Park();
  EndPark();
  Took(base::MonotonicNs() - begin);
  return std::move(call.reply);
}

GoferLastUse::~GoferLastUse() { connection_->Forget(handle_, now_); }

void GoferLateCall::Hold(base::Ref<GoferLastUse> use) {
  absl::MutexLock l(&mutex_);
  if (!done()) use_ = std::move(use);
}

void GoferLateCall::Finish(gofer::Reply reply) {
  base::Ref<GoferLastUse> use;  // goes after the lock
  absl::MutexLock l(&mutex_);
  std::swap(use, use_);
  reply_ = std::move(reply);
  done_.store(true, std::memory_order_release);
}

void GoferConnection::CallLate(const base::Ref<GoferLateCall>& late, gofer::Request request) {
  g_requests.Add();
  late_calls_.fetch_add(1, std::memory_order_acq_rel);
  client_.Submit(std::move(request), [this, late](gofer::Reply reply) {
    late->Finish(std::move(reply));
    late_calls_.fetch_sub(1, std::memory_order_acq_rel);
    late_queue_.Wake(EPOLLIN);
  });
}

void GoferConnection::Await(const GoferLateCall& late) {
  AwaitLate([&] { return late.done(); });
}

void GoferConnection::AwaitLateCalls() {
  AwaitLate([&] { return late_calls() == 0; });
}

template <typename Done>
void GoferConnection::AwaitLate(const Done& done) {
  if (!done()) client_.Receive();
  if (done()) return;
  if (fiber::Current() == nullptr) {
    while (!done()) {
      pollfd p = {client_.fd(), POLLIN, 0};
      base::HostPoll(&p, 1, 1);
      client_.Receive();
    }
    return;
  }
  const fiber::ScopedPhase phase(fiber::Phase::kGofer);
  if (Spin(done) || Lead(done)) return;
  BeginPark();
  fiber::WaitUntil(late_queue_, EPOLLIN, done);
  EndPark();
}

void GoferConnection::Forget(gofer::Handle handle, bool now) {
  std::vector<gofer::Handle> batch;
  {
    absl::MutexLock l(&mutex_);
    forgotten_.push_back(handle);
    if (forgotten_.size() < kForgetBatch && !now) return;
    batch.swap(forgotten_);
  }
  client_.Submit(gofer::MakeForget(batch), [](gofer::Reply) {});
}

void GoferConnection::End(int exit_code) {
  client_.Submit(gofer::MakeEnd(static_cast<uint32_t>(exit_code)), [](gofer::Reply) {});
}

void GoferConnection::FlushForgotten() {
  std::vector<gofer::Handle> batch;
  {
    absl::MutexLock l(&mutex_);
    batch.swap(forgotten_);
  }
  (void)Call(gofer::MakeForget(batch));
}

}  // namespace sentry
