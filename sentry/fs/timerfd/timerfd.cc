#include "sentry/fs/timerfd/timerfd.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>

#include <cstdio>
#include <limits>

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

namespace sentry {
namespace {

int64_t Now(int clock) {
  timespec ts;
  clock_gettime(clock, &ts);
  return ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
}

int HostClock(int clock) {
  if (clock == CLOCK_REALTIME_ALARM) return CLOCK_REALTIME;
  if (clock == CLOCK_BOOTTIME_ALARM) return CLOCK_BOOTTIME;
  return clock;
}

int64_t SaturatingAdd(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? std::numeric_limits<int64_t>::max() : sum;
}

}  // namespace

TimerFile::TimerFile(Vfs& vfs, int clock, uint32_t flags)
    : AnonFile(vfs, "[timerfd]", O_RDWR | (flags & TFD_NONBLOCK)), clock_(clock) {}

TimerFile::~TimerFile() { timer_.Cancel(); }

void TimerFile::Arm() {
  timer_.Arm(next_ns_, [this] { OnTimer(); });
}

void TimerFile::Advance(int64_t now) {
  if (next_ns_ == 0 || now < next_ns_) return;
  if (interval_ns_ == 0) {
    ++ticks_;
    next_ns_ = 0;
    return;
  }
  int64_t passed = (now - next_ns_) / interval_ns_ + 1;
  ticks_ += static_cast<uint64_t>(passed);
  next_ns_ = SaturatingAdd(next_ns_, passed * interval_ns_);
}

// An interval timer is not armed again before it is read, as in Linux: Read and Get catch up, so
// that a file that nobody looks at costs nothing.
void TimerFile::OnTimer() {
  {
    absl::MutexLock lock(&mutex_);
    if (next_ns_ == 0) return;
    Advance(Now(CLOCK_MONOTONIC));
    if (ticks_ == 0) {
      Arm();  // came early, or was set anew meanwhile
      return;
    }
  }
  queue_.Wake(EPOLLIN);
}

TimerSpec TimerFile::GetLocked(int64_t now) {
  Advance(now);
  TimerSpec spec{interval_ns_, 0};
  if (next_ns_ != 0) spec.value_ns = next_ns_ - now;
  return spec;
}

TimerSpec TimerFile::Get() {
  absl::MutexLock lock(&mutex_);
  return GetLocked(Now(CLOCK_MONOTONIC));
}

TimerSpec TimerFile::Set(int flags, const TimerSpec& spec) {
  absl::MutexLock lock(&mutex_);
  int64_t now = Now(CLOCK_MONOTONIC);
  TimerSpec old = GetLocked(now);
  settime_flags_ = flags;
  ticks_ = 0;
  interval_ns_ = spec.interval_ns;
  if (spec.value_ns == 0) {
    next_ns_ = 0;
    return old;
  }
  int64_t delay = spec.value_ns;
  if (flags & TFD_TIMER_ABSTIME) delay -= Now(HostClock(clock_));
  next_ns_ = delay > 0 ? SaturatingAdd(now, delay) : now + delay;
  if (next_ns_ <= 0) next_ns_ = 1;
  Arm();
  return old;
}

bool TimerFile::TryTake(uint64_t* ticks) {
  absl::MutexLock lock(&mutex_);
  Advance(Now(CLOCK_MONOTONIC));
  if (ticks_ == 0) return false;
  *ticks = ticks_;
  ticks_ = 0;
  if (next_ns_ != 0) Arm();
  return true;
}

base::Result<size_t> TimerFile::Read(IoDest& dst, bool nonblock) {
  uint64_t ticks = 0;
  if (dst.remaining() < sizeof(ticks)) return base::Error(EINVAL);
  if (!TryTake(&ticks)) {
    if (nonblock) return base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        queue_, EPOLLIN, [&] { return TryTake(&ticks); }, {.interruptible = true},
        /*exclusive=*/true);
    if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  }
  size_t n = TRY(dst.Put(std::as_bytes(std::span(&ticks, 1))));
  if (n != sizeof(ticks)) return base::Error(EFAULT);
  return sizeof(ticks);
}

base::Result<uint64_t> TimerFile::Ioctl(const IoctlArgs& args) {
  if (args.cmd != TFD_IOC_SET_TICKS) return base::Error(ENOTTY);
  uint64_t ticks = TRY(base::UserPtr<uint64_t>(args.arg).CopyIn(args.memory));
  if (ticks == 0) return base::Error(EINVAL);
  {
    absl::MutexLock lock(&mutex_);
    ticks_ = ticks;
  }
  queue_.Wake(EPOLLIN);
  return uint64_t{0};
}

uint32_t TimerFile::Readiness() {
  absl::MutexLock lock(&mutex_);
  Advance(Now(CLOCK_MONOTONIC));
  return ticks_ > 0 ? uint32_t{EPOLLIN} : 0;
}

std::string TimerFile::FdInfo() const {
  absl::MutexLock lock(&mutex_);
  int64_t value = next_ns_ != 0 ? next_ns_ - Now(CLOCK_MONOTONIC) : 0;
  if (value < 0) value = 0;
  constexpr int64_t kSec = 1'000'000'000;
  char text[256];
  snprintf(text, sizeof(text),
           "clockid: %d\nticks: %llu\nsettime flags: %02o\nit_value: (%lld, %lld)\n"
           "it_interval: (%lld, %lld)\n",
           clock_, static_cast<unsigned long long>(ticks_), static_cast<unsigned>(settime_flags_),
           static_cast<long long>(value / kSec), static_cast<long long>(value % kSec),
           static_cast<long long>(interval_ns_ / kSec),
           static_cast<long long>(interval_ns_ % kSec));
  return text;
}

}  // namespace sentry
