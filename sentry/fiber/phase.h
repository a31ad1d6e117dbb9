// Where a fiber's time goes, while somebody measures it (sentry/trace/call_times.h). Costs one test
// of a flag where nobody does.
#pragma once

#include <x86intrin.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace fiber {

enum class Phase : uint8_t {
  kRun,       // the sentry's own code
  kWait,      // parked, for whatever the caller asked to wait for
  kHostCall,  // host calls, on the worker or on a helper thread
  kGofer,     // exchanges with the gofer
};
inline constexpr size_t kPhases = 4;

// Ticks of the time stamp counter by phase, between Start and Stop. Used by its fiber alone.
class PhaseClock {
 public:
  bool on() const { return on_; }
  Phase phase() const { return phase_; }
  void Start(uint64_t now) {
    ticks_ = {};
    phase_ = Phase::kRun;
    since_ = now;
    on_ = true;
  }
  void Enter(Phase phase) {
    const uint64_t now = __rdtsc();
    ticks_[static_cast<size_t>(phase_)] += now - since_;
    phase_ = phase;
    since_ = now;
  }
  // What was spent in each phase since Start.
  const std::array<uint64_t, kPhases>& Stop(uint64_t now) {
    ticks_[static_cast<size_t>(phase_)] += now - since_;
    on_ = false;
    return ticks_;
  }

 private:
  bool on_ = false;
  Phase phase_ = Phase::kRun;
  uint64_t since_ = 0;
  std::array<uint64_t, kPhases> ticks_{};
};

// The current fiber's clock; null outside fibers.
PhaseClock* CurrentPhaseClock();

// The current fiber is in `phase` in this scope, unless it is in another than kRun already (a wait
// inside an exchange with the gofer counts as the gofer's).
class ScopedPhase {
 public:
  explicit ScopedPhase(Phase phase) : ScopedPhase(CurrentPhaseClock(), phase) {}
  ScopedPhase(PhaseClock* clock, Phase phase)
      : clock_(clock && clock->on() && clock->phase() == Phase::kRun ? clock : nullptr) {
    if (clock_) clock_->Enter(phase);
  }
  ~ScopedPhase() {
    if (clock_) clock_->Enter(Phase::kRun);
  }
  ScopedPhase(const ScopedPhase&) = delete;
  ScopedPhase& operator=(const ScopedPhase&) = delete;

 private:
  PhaseClock* const clock_;
};

}  // namespace fiber
