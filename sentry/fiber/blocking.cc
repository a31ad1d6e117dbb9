#include "sentry/fiber/blocking.h"

#include <signal.h>

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "sentry/base/time.h"
#include "sentry/fiber/worker.h"

namespace fiber::internal {

namespace {

constexpr int64_t kIdleNs = 5 * base::kNsPerSec;

// Helper threads. Never destroyed: its threads are detached.
class HelperPool {
 public:
  static HelperPool& Get() {
    static HelperPool* pool = new HelperPool;
    return *pool;
  }

  void Submit(BlockingJob* job) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    job->next = nullptr;
    (tail_ != nullptr ? tail_->next : head_) = job;
    tail_ = job;
    ++queued_;
    if (queued_ <= idle_) {
      work_.Signal();
    } else if (threads_ < kMaxHelpers) {
      ++threads_;
      StartThread("runsc-helper", [this] { Loop(); });
    }
  }

 private:
  BlockingJob* Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    BlockingJob* job = head_;
    if (job != nullptr) {
      head_ = job->next;
      if (head_ == nullptr) tail_ = nullptr;
      --queued_;
    }
    return job;
  }

  void Loop() ABSL_LOCKS_EXCLUDED(mu_) {
    while (true) {
      mu_.Lock();
      BlockingJob* job = Take();
      if (job == nullptr) {
        ++idle_;
        const bool timeout = work_.WaitWithTimeout(&mu_, absl::Nanoseconds(kIdleNs));
        --idle_;
        job = Take();
        if (job == nullptr && timeout) {
          --threads_;
          mu_.Unlock();
          return;
        }
      }
      mu_.Unlock();
      if (job == nullptr) continue;
      base::Ref<Fiber> fiber(job->fiber);
      job->run(job);
      job->done.store(true, std::memory_order_release);  // the job is gone from here on
      fiber->Unpark();
    }
  }

  absl::Mutex mu_;
  absl::CondVar work_;
  BlockingJob* head_ ABSL_GUARDED_BY(mu_) = nullptr;
  BlockingJob* tail_ ABSL_GUARDED_BY(mu_) = nullptr;
  int queued_ ABSL_GUARDED_BY(mu_) = 0;
  int idle_ ABSL_GUARDED_BY(mu_) = 0;
  int threads_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

void RunBlocking(BlockingJob* job) {
  job->fiber = Current();
  if (job->fiber == nullptr) return job->run(job);
  const ScopedPhase phase(Phase::kHostCall);
  HelperPool::Get().Submit(job);
  while (!job->done.load(std::memory_order_acquire)) Park();
}

}  // namespace fiber::internal
