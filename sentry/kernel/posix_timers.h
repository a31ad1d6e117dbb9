// Timers of a process: setitimer(2), timer_create(2), RLIMIT_CPU (Linux:
// kernel/time/posix-timers.c, posix-cpu-timers.c, itimer.c).
#pragma once

#include <signal.h>
#include <time.h>

#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/timer.h"

namespace sentry {

class Task;
class ThreadGroup;

// A value and a period in nanoseconds, as itimerspec and itimerval have them. 0: disarmed.
struct TimerSetting {
  int64_t value_ns = 0, interval_ns = 0;
};

// What a timer_create(2) asks for.
struct TimerSpec {
  clockid_t clock = CLOCK_REALTIME;
  int notify = SIGEV_SIGNAL;
  int signo = SIGALRM;
  sigval value{};
  bool value_is_id = false;  // no sigevent was given
  base::Ref<Task> thread;    // of SIGEV_THREAD_ID
};

// Thread-safe. Its mutex comes before Kernel::task_mutex() in the order.
class PosixTimers {
 public:
  explicit PosixTimers(ThreadGroup& group);
  ~PosixTimers();

  // ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF. Returns the old setting.
  TimerSetting SetItimer(int which, const TimerSetting& setting);
  TimerSetting GetItimer(int which) const;

  // EAGAIN beyond RLIMIT_SIGPENDING. `t` is the caller; thread CPU clocks are its.
  base::Result<int> Create(Task& t, const TimerSpec& spec);
  // `absolute`: TIMER_ABSTIME. EINVAL: no such timer.
  base::Result<TimerSetting> SetTime(int id, bool absolute, const TimerSetting& setting);
  base::Result<TimerSetting> GetTime(int id) const;
  base::Result<int> Overrun(int id) const;
  base::Status Delete(int id);
  // exec: timer_create's timers go, interval timers stay.
  void DeleteAll();
  // The process ends: nothing expires any more. Called without locks.
  void Stop();
  // A signal of timer `id` with this overrun count was taken.
  void Delivered(int id, int overrun);
  // RLIMIT_CPU was set: look at it from now on.
  void WatchCpuLimit();

 private:
  enum class Source { kReal, kProcessCpu, kThreadCpu };
  struct Timer {
    Source source = Source::kReal;
    bool real_clock = false;     // CLOCK_REALTIME: absolute times are converted when set
    base::Ref<Task> cpu_thread;  // of kThreadCpu
    TimerSpec spec;
    int64_t expiry_ns = 0;  // on the source's clock; 0: disarmed
    int64_t interval_ns = 0;
    int last_overrun = 0;
  };
  static constexpr int kNumItimers = 3;

  int64_t Now(const Timer& timer) const;
  static TimerSetting Remaining(const Timer& timer, int64_t now);
  void Arm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Expire();
  // Fires what is due; returns how often it expired.
  int64_t Advance(Timer& timer, int64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Fire(int id, Timer& timer, int64_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CheckCpuLimit() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ThreadGroup& group_;
  mutable absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  Timer itimers_[kNumItimers] ABSL_GUARDED_BY(mutex_);
  std::map<int, Timer> timers_ ABSL_GUARDED_BY(mutex_);
  int next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool watch_cpu_limit_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_xcpu_ns_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<fiber::Timer> timer_;  // made when first armed
};

}  // namespace sentry
