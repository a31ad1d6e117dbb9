#include "sentry/kernel/posix_timers.h"

#include <sys/resource.h>
#include <sys/time.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {
// CPU clocks are looked at this often at most while a timer waits for them.
constexpr int64_t kCpuPollNs = 2 * base::kNsPerMs;
}  // namespace

PosixTimers::PosixTimers(ThreadGroup& group) : group_(group) {
  itimers_[ITIMER_REAL].spec.signo = SIGALRM;
  itimers_[ITIMER_VIRTUAL].spec.signo = SIGVTALRM;
  itimers_[ITIMER_VIRTUAL].source = Source::kProcessCpu;
  itimers_[ITIMER_PROF].spec.signo = SIGPROF;
  itimers_[ITIMER_PROF].source = Source::kProcessCpu;
}

PosixTimers::~PosixTimers() = default;

int64_t PosixTimers::Now(const Timer& timer) const {
  switch (timer.source) {
    case Source::kReal:
      return base::MonotonicNs();
    case Source::kThreadCpu:
      return timer.cpu_thread->CpuTimeNs();
    case Source::kProcessCpu:
      return group_.CpuNs();
  }
  return 0;
}

TimerSetting PosixTimers::Remaining(const Timer& timer, int64_t now) {
  if (timer.expiry_ns == 0) return {0, timer.interval_ns};
  int64_t expiry = timer.expiry_ns;
  if (expiry <= now && timer.interval_ns > 0) {
    expiry += ((now - expiry) / timer.interval_ns + 1) * timer.interval_ns;
  }
  // An armed timer never reads as disarmed.
  return {std::max<int64_t>(expiry - now, 1), timer.interval_ns};
}

void PosixTimers::Arm() {
  if (stopped_) return;
  int64_t deadline = base::kNever;
  bool cpu = watch_cpu_limit_;
  auto add = [&](const Timer& t) {
    if (t.expiry_ns == 0) return;
    if (t.source == Source::kReal) {
      deadline = std::min(deadline, t.expiry_ns);
    } else {
      cpu = true;
    }
  };
  for (const Timer& t : itimers_) add(t);
  for (const auto& [id, t] : timers_) add(t);
  if (cpu) deadline = std::min(deadline, base::MonotonicNs() + kCpuPollNs);
  if (deadline == base::kNever) return;  // a stale expiry finds nothing to do
  if (!timer_) timer_ = std::make_unique<fiber::Timer>();
  timer_->Arm(deadline, [this] { Expire(); });
}

int64_t PosixTimers::Advance(Timer& t, int64_t now) {
  if (t.expiry_ns == 0 || now < t.expiry_ns) return 0;
  if (t.interval_ns <= 0) {
    t.expiry_ns = 0;
    return 1;
  }
  int64_t count = (now - t.expiry_ns) / t.interval_ns + 1;
  t.expiry_ns += count * t.interval_ns;
  return count;
}

void PosixTimers::Fire(int id, Timer& t, int64_t count) {
  if (id < 0) {  // an interval timer
    group_.SendSignal(MakeSiginfo(t.spec.signo, SI_KERNEL));
    return;
  }
  if (t.spec.notify == SIGEV_NONE) return;
  siginfo_t info = MakeSiginfo(t.spec.signo, SI_TIMER);
  info.si_timerid = id;
  info.si_overrun = static_cast<int>(std::min<int64_t>(count - 1, std::numeric_limits<int>::max()));
  info.si_value = t.spec.value;
  group_.SendTimerSignal(info, t.spec.thread.get());
}

void PosixTimers::CheckCpuLimit() {
  if (!watch_cpu_limit_) return;
  Rlimits::Limit limit = group_.rlimits().Get(RLIMIT_CPU);
  if (limit.soft == RLIM64_INFINITY && limit.hard == RLIM64_INFINITY) {
    watch_cpu_limit_ = false;
    return;
  }
  const int64_t used = group_.CpuNs();
  auto reached = [used](uint64_t seconds) {
    return seconds < static_cast<uint64_t>(std::numeric_limits<int64_t>::max() / base::kNsPerSec) &&
           used >= static_cast<int64_t>(seconds) * base::kNsPerSec;
  };
  if (reached(limit.hard)) {
    group_.SendKernelSignal(SIGKILL);
    watch_cpu_limit_ = false;
  } else if (reached(limit.soft) && used >= next_xcpu_ns_) {
    next_xcpu_ns_ = used + base::kNsPerSec;
    group_.SendKernelSignal(SIGXCPU);
  }
}

void PosixTimers::Expire() {
  absl::MutexLock l(&mutex_);
  if (stopped_) return;
  for (Timer& t : itimers_) {
    if (t.expiry_ns != 0 && Advance(t, Now(t)) > 0) Fire(-1, t, 1);
  }
  for (auto& [id, t] : timers_) {
    if (t.expiry_ns == 0) continue;
    if (int64_t count = Advance(t, Now(t))) Fire(id, t, count);
  }
  CheckCpuLimit();
  Arm();
}

TimerSetting PosixTimers::SetItimer(int which, const TimerSetting& s) {
  absl::MutexLock l(&mutex_);
  Timer& t = itimers_[which];
  int64_t now = Now(t);
  TimerSetting old = Remaining(t, now);
  if (t.expiry_ns == 0) old = {};
  t.expiry_ns = s.value_ns == 0 ? 0 : base::SaturatingAdd(now, s.value_ns);
  t.interval_ns = s.interval_ns;
  Arm();
  return old;
}

TimerSetting PosixTimers::GetItimer(int which) const {
  absl::MutexLock l(&mutex_);
  const Timer& t = itimers_[which];
  if (t.expiry_ns == 0) return {0, t.interval_ns};
  return Remaining(t, Now(t));
}

base::Result<int> PosixTimers::Create(Task& t, const TimerSpec& spec) {
  absl::MutexLock l(&mutex_);
  if (timers_.size() >= group_.rlimits().Soft(RLIMIT_SIGPENDING)) return base::Error(EAGAIN);
  int id = next_id_;
  while (timers_.contains(id)) id = id == std::numeric_limits<int>::max() ? 0 : id + 1;
  next_id_ = id == std::numeric_limits<int>::max() ? 0 : id + 1;
  Timer& timer = timers_[id];
  timer.spec = spec;
  if (spec.value_is_id) timer.spec.value.sival_int = id;
  timer.real_clock = spec.clock == CLOCK_REALTIME || spec.clock == CLOCK_TAI;
  if (spec.clock == CLOCK_PROCESS_CPUTIME_ID) {
    timer.source = Source::kProcessCpu;
  } else if (spec.clock == CLOCK_THREAD_CPUTIME_ID) {
    timer.source = Source::kThreadCpu;
    timer.cpu_thread = base::Ref<Task>(&t);
  }
  return id;
}

base::Result<TimerSetting> PosixTimers::SetTime(int id, bool absolute, const TimerSetting& s) {
  absl::MutexLock l(&mutex_);
  auto it = timers_.find(id);
  if (it == timers_.end()) return base::Error(EINVAL);
  Timer& t = it->second;
  int64_t now = Now(t);
  TimerSetting old = Remaining(t, now);
  if (t.expiry_ns == 0) old.value_ns = 0;
  t.interval_ns = s.interval_ns;
  if (s.value_ns == 0) {
    t.expiry_ns = 0;
  } else if (!absolute) {
    t.expiry_ns = base::SaturatingAdd(now, s.value_ns);
  } else {
    int64_t at = s.value_ns;
    if (t.real_clock) at = base::SaturatingAdd(now, at - base::RealtimeNs());
    t.expiry_ns = std::max<int64_t>(at, 1);
  }
  t.last_overrun = 0;
  Arm();
  return old;
}

base::Result<TimerSetting> PosixTimers::GetTime(int id) const {
  absl::MutexLock l(&mutex_);
  auto it = timers_.find(id);
  if (it == timers_.end()) return base::Error(EINVAL);
  const Timer& t = it->second;
  if (t.expiry_ns == 0) return TimerSetting{0, t.interval_ns};
  return Remaining(t, Now(t));
}

base::Result<int> PosixTimers::Overrun(int id) const {
  absl::MutexLock l(&mutex_);
  auto it = timers_.find(id);
  if (it == timers_.end()) return base::Error(EINVAL);
  return it->second.last_overrun;
}

base::Status PosixTimers::Delete(int id) {
  Timer dead;  // its thread is released without the lock
  absl::MutexLock l(&mutex_);
  auto it = timers_.find(id);
  if (it == timers_.end()) return base::Error(EINVAL);
  dead = std::move(it->second);
  timers_.erase(it);
  return base::Ok();
}

void PosixTimers::DeleteAll() {
  std::map<int, Timer> dead;
  absl::MutexLock l(&mutex_);
  dead.swap(timers_);
}

void PosixTimers::Stop() {
  std::map<int, Timer> dead;
  {
    absl::MutexLock l(&mutex_);
    stopped_ = true;
    dead.swap(timers_);
  }
  if (timer_) timer_->Cancel();
}

void PosixTimers::Delivered(int id, int overrun) {
  absl::MutexLock l(&mutex_);
  auto it = timers_.find(id);
  if (it != timers_.end()) it->second.last_overrun = overrun;
}

void PosixTimers::WatchCpuLimit() {
  absl::MutexLock l(&mutex_);
  watch_cpu_limit_ = true;
  Arm();
}

}  // namespace sentry
