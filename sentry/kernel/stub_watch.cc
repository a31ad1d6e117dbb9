#include "sentry/kernel/stub_watch.h"

#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {
constexpr int64_t kLookNs = base::kNsPerSec / 10;
// Looks without progress. An interrupt takes microseconds; an order a page fault of a slow file or
// the tables of a large process at most, unless it fills memory.
constexpr int kFatalLooks = 10;
constexpr int kOrderLooks = 50;
constexpr int kFillLooks = 1000;
// A process that has to die and uses so much time of the processor instead is not merely waiting
// for it.
constexpr int64_t kFatalCpuNs = base::kNsPerSec / 10;
}  // namespace

void StubWatch::Arm() {
  if (on_.exchange(true, std::memory_order_seq_cst)) return;
  timer_.Arm(base::MonotonicNs() + kLookNs, [this] { Look(); });
}

void StubWatch::Look() {
  // Whoever begins to wait after this finds the watch off and turns it on.
  on_.store(false, std::memory_order_seq_cst);
  bool waiting = false;
  {
    absl::MutexLock l(&kernel_->task_mutex());
    for (ThreadGroup* group : kernel_->groups_) {
      absl::MutexLock l2(&group->signal_mutex());
      for (const auto& t : group->tasks_) waiting |= t->CheckStub();
    }
  }
  if (waiting) Arm();
}

// Under the signal mutex.
bool Task::CheckStub() {
  uint64_t rounds = rounds_.load(std::memory_order_seq_cst);
  Waits waits = static_cast<Waits>(rounds & kWaitsMask);
  bool fatal = (waits != Waits::kNo || in_guest_.load(std::memory_order_relaxed)) && FatalPending();
  if (!context_ || (!fatal && (waits == Waits::kNo || waits == Waits::kGuest))) return false;
  int64_t cpu = fatal ? context_->CpuTimeNs() : 0;
  if (watched_rounds_ != rounds) {
    watched_rounds_ = rounds;
    watched_looks_ = 0;
    watched_cpu_ns_ = cpu;
    return true;
  }
  // Once nobody else needs the memory, not even orders are waited for.
  bool alone = fatal && group_->exiting() && mm_users_ &&
               mm_users_->tasks.load(std::memory_order_relaxed) <= group_->thread_count();
  int limit = alone || waits == Waits::kGuest ? kFatalLooks
              : waits == Waits::kOrders       ? kOrderLooks
                                              : kFillLooks;
  bool busy = fatal && group_->exiting() && cpu - watched_cpu_ns_ >= kFatalCpuNs;
  if (waits == Waits::kNo || (++watched_looks_ < limit && !busy)) return true;
  LOG_WARNING("[%d] %s: its stub does not answer and is ended", pid_ref()->number(),
              comm().c_str());
  context_->address_space().Kill();
  watched_looks_ = 0;
  return true;
}

}  // namespace sentry
