// How often each system call was made and where its time went: what `runsc syscalls` prints.
//
// Every call that reaches the sentry is counted. Times are taken of a task's first calls and then
// of one in kEvery, by the time stamp counter, so that the measuring costs a call less than a
// hundredth of a hand-off. Each thread counts in memory of its own; readers add up.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace platform {
class Context;
}  // namespace platform

namespace fiber {
class PhaseClock;
}  // namespace fiber

namespace sentry::trace {

// What a call's time is made of. kWhole is from the guest's trap until the guest runs again; the
// others are its parts.
enum class CallPart : uint8_t { kWhole, kHandOff, kSentry, kWait, kHostCalls, kGofer };
inline constexpr size_t kCallParts = 6;
// One past the highest number that is counted.
inline constexpr int kMaxCounted = 512;

// The measurement of one task, used by its fiber alone. A sample spans two dispatches: when the
// guest went on is learned at the next trap.
class CallTimes {
 public:
  // Before the call runs: counts it, and starts the clock if it is to be measured.
  void Begin(platform::Context& context, int nr);
  // After it: stops the clock.
  void End(platform::Context& context);

 private:
  static constexpr uint32_t kFirst = 32;   // calls of a task that are all measured
  static constexpr uint32_t kEvery = 127;  // then one in so many

  void Finish(platform::Context& context);
  void Arm(platform::Context& context, bool on);

  uint32_t made_ = 0;
  uint32_t until_next_ = 0;  // calls until one is measured
  bool stamped_ = false;     // the next trap tells when it happened,
  uint64_t armed_ = 0;       // asked for at these ticks
  bool running_ = false;     // the current call is measured
  int unfinished_ = -1;      // the measured call whose return is not known yet
  uint64_t trapped_ = 0;     // its ticks: the guest's trap,
  uint64_t begin_ = 0;       // the start of the dispatch
  uint64_t end_ = 0;         // and its end
  std::array<uint64_t, 4> phases_{};
  fiber::PhaseClock* clock_ = nullptr;
};

// The counts and times of all calls since the start, as a JSON object:
//   {"calls": [{"name", "number", "count", "measured", "parts": {NAME: {"meanNs", "p50Ns",
//    "p99Ns", "histogram": [[upper bound in ns, count], ...]}}}]}
// `name` gives the name of a number. Calls that the stub answers itself do not appear. Thread-safe.
std::string CallTimesJson(const char* (*name)(int number));

}  // namespace sentry::trace
