// timerfd_create(2): timers as files. Follows fs/timerfd.c.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fiber/timer.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/anon/anon.h"

namespace sentry {

// struct itimerspec in nanoseconds.
struct TimerSpec {
  int64_t interval_ns = 0;
  int64_t value_ns = 0;  // 0: disarmed
};

class TimerFile : public AnonFile {
 public:
  // clock: CLOCK_REALTIME, MONOTONIC, BOOTTIME or the ALARM forms. flags: TFD_NONBLOCK.
  TimerFile(Vfs& vfs, int clock, uint32_t flags);
  static TimerFile* From(FileDescription& file) { return dynamic_cast<TimerFile*>(&file); }

  // timerfd_settime: flags TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET (accepted: the clock of the
  // host is never set by the sandbox). Returns the old setting, as Get.
  TimerSpec Set(int flags, const TimerSpec& spec);
  // Time until the next expiration, and the interval.
  TimerSpec Get();

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override { return &queue_; }
  std::string FdInfo() const override;

 private:
  ~TimerFile() override;
  // Counts the expirations until now and arms for the next. All times are CLOCK_MONOTONIC.
  void Advance(int64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Arm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnTimer();
  TimerSpec GetLocked(int64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TryTake(uint64_t* ticks);

  const int clock_;
  mutable absl::Mutex mutex_;
  int64_t next_ns_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: not armed
  int64_t interval_ns_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t ticks_ ABSL_GUARDED_BY(mutex_) = 0;
  int settime_flags_ ABSL_GUARDED_BY(mutex_) = 0;
  fiber::WaitQueue queue_;
  fiber::Timer timer_;
};

}  // namespace sentry
