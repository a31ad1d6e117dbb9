// Times in nanoseconds. Deadlines are CLOCK_MONOTONIC; kNever is "none".
#pragma once

#include <time.h>

#include <cstdint>
#include <limits>
#include <optional>

#include "sentry/base/checked.h"

namespace base {

inline constexpr int64_t kNsPerUs = 1'000;
inline constexpr int64_t kNsPerMs = 1'000'000;
inline constexpr int64_t kNsPerSec = 1'000'000'000;
inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

inline int64_t ClockNs(clockid_t clock) {
  timespec ts;
  clock_gettime(clock, &ts);
  return ts.tv_sec * kNsPerSec + ts.tv_nsec;
}
inline int64_t MonotonicNs() { return ClockNs(CLOCK_MONOTONIC); }
inline int64_t RealtimeNs() { return ClockNs(CLOCK_REALTIME); }
inline int64_t BoottimeNs() { return ClockNs(CLOCK_BOOTTIME); }

// As Linux's timespec64_valid: seconds not negative, nanoseconds below one second.
constexpr bool TimespecValid(int64_t sec, int64_t nsec) {
  return sec >= 0 && nsec >= 0 && nsec < kNsPerSec;
}
// Nothing if it is not valid; kNever if it does not fit (Linux: KTIME_MAX).
constexpr std::optional<int64_t> NsFromTimespec(int64_t sec, int64_t nsec) {
  if (!TimespecValid(sec, nsec)) return std::nullopt;
  return SaturatingAdd(SaturatingMul(sec, kNsPerSec), nsec);
}
inline std::optional<int64_t> NsFromTimespec(const timespec& ts) {
  return NsFromTimespec(ts.tv_sec, ts.tv_nsec);
}
// Rounds towards minus infinity, so that tv_nsec is valid.
constexpr timespec TimespecFromNs(int64_t ns) {
  int64_t sec = ns / kNsPerSec, nsec = ns % kNsPerSec;
  if (nsec < 0) --sec, nsec += kNsPerSec;
  timespec ts{};
  ts.tv_sec = sec;
  ts.tv_nsec = nsec;
  return ts;
}
// The CLOCK_MONOTONIC deadline that is `ns` from now; kNever stays kNever.
inline int64_t DeadlineAfter(int64_t ns) {
  return ns == kNever ? kNever : SaturatingAdd(MonotonicNs(), ns);
}

}  // namespace base
