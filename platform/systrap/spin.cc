// When polling pays: learned from how soon events come, and given up when the cores are needed.
#include <sys/resource.h>
#include <x86intrin.h>

#include <algorithm>
#include <utility>

#include "platform/systrap/context.h"
#include "platform/systrap/platform.h"

namespace platform {
namespace {

constexpr uint64_t kMaxSpinUs = 50;  // longer than this a sleep and its wake-up cost less
constexpr uint64_t kAfterEventUs = 5;
constexpr uint64_t kStubSpinUs = 30;
constexpr uint64_t kComputesUs = 50;      // without a call: the thread needs its core
constexpr uint64_t kWakeUpUs = 25;        // who has not begun to run by then finds no free core
constexpr uint64_t kRunsElsewhereUs = 4;  // who is woken and finds an idle core has begun to run
constexpr uint64_t kPreemptedUs = 200;    // a gap in our own spinning: somebody else ran here
constexpr uint64_t kFirstBackoffUs = 1'000;
constexpr uint64_t kMaxBackoffUs = 20'000;
constexpr uint32_t kPollsPerLook = 8;
constexpr uint32_t kProbeEvery = 16;  // sleeps between tries to spin though it did not pay

}  // namespace

SystrapPlatform::Load SystrapPlatform::CountRunning(uint64_t now, size_t* delivered) {
  Load load;
  const uint64_t late = kWakeUpUs * machine_.ticks_per_us;
  const uint64_t soon = kRunsElsewhereUs * machine_.ticks_per_us;
  absl::MutexLock lock(&poll_mu_);
  *delivered = delivered_;
  for (auto& hot : hot_) {
    ThreadContext* context = hot.load(std::memory_order_acquire);
    if (!context || !context->expected() || context->WaitsInFutex()) continue;
    const uint64_t since = context->RunsSince(now);
    if (since > kComputesUs * machine_.ticks_per_us) {
      load.computing++;
    } else {
      load.calling++;
      if (context->woken_here() || (context->asleep() && since > late)) load.awaiting++;
      if (context->woken_here() && context->asleep() && since > soon) load.queued++;
    }
  }
  if (overflow_.load(std::memory_order_relaxed)) load.computing += kHot;
  return load;
}

void SystrapPlatform::AllowStubSpin(bool allowed) {
  uint32_t ticks = allowed ? static_cast<uint32_t>(kStubSpinUs * machine_.ticks_per_us) : 0;
  if (__atomic_load_n(&shared_->spin_ticks, __ATOMIC_RELAXED) != ticks) {
    __atomic_store_n(&shared_->spin_ticks, ticks, __ATOMIC_RELAXED);
  }
}

bool SystrapPlatform::ShouldSpin() {
  if (options_.spin_ns == 0) return false;
  // While it pays, looking at the clock and at who runs is for every few polls.
  if (spinning_ && ++spin_calls_ % kPollsPerLook != 0 &&
      !look_now_.load(std::memory_order_relaxed)) {
    return true;
  }
  look_now_.store(false, std::memory_order_relaxed);
  spinning_ = Decide();
  return spinning_;
}

// Whether somebody else has had our core since the last time that this was asked. If not, the
// hypervisor has taken it away, which would not be different if we slept.
bool SystrapPlatform::WasPreempted() {
  rusage usage{};
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return true;
  return std::exchange(switches_, usage.ru_nivcsw) != usage.ru_nivcsw;
}

bool SystrapPlatform::Decide() {
  uint64_t now = __rdtsc();
  uint64_t us = machine_.ticks_per_us;
  uint64_t max =
      options_.spin_ns > 0 ? static_cast<uint64_t>(options_.spin_ns) * us / 1000 : kMaxSpinUs * us;
  size_t delivered = 0;
  Load load = CountRunning(now, &delivered);
  uint64_t gap = now - std::exchange(last_look_, now);
  bool event = delivered != std::exchange(seen_, delivered);
  if (event) {
    if (now - idle_since_ < max) {
      credit_ = std::min(credit_ + 1, kMaxCredit);
    } else if (credit_ != 0) {
      credit_--;
    }
    idle_since_ = now;
  }
  // Who calls next can wake us more cheaply than these wait for us.
  leaves_core_ = load.queued != 0 || (load.awaiting != 0 && load.awaiting == load.calling);
  if (!event && !leaves_core_ && now - idle_since_ > kAfterEventUs * us && chores_.DoOne()) {
    last_look_ = __rdtsc();
    return true;
  }
  bool was_idle = std::exchange(idle_look_, !event);
  // The poller takes one core. Threads that call all the time can share another one: where they
  // sleep for their answers, that costs less than to wake a poller that sleeps too.
  const uint32_t running = load.computing + load.calling;
  const uint32_t cores = static_cast<uint32_t>(machine_.cores);
  bool cores_free = load.computing + std::min(load.calling, 1u) < cores;
  const bool pays = credit_ != 0 || options_.spin_ns > 0;
  const bool core_free = running < cores && now >= no_spin_until_;
  AllowStubSpin(core_free);
  // Two that will sleep for one another do so more cheaply on one core.
  if (const bool apart = core_free && pays; free_core_.load(std::memory_order_relaxed) != apart) {
    free_core_.store(apart, std::memory_order_relaxed);
  }
  // Nobody runs in the guest, but what came a moment ago may be answered by another worker now.
  bool just_now = now - idle_since_ < kAfterEventUs * us;
  if ((running == 0 && !just_now) || !cores_free || now < no_spin_until_ || leaves_core_) {
    idle_look_ = false;
    return false;
  }
  // Two looks in a row without an event between: we did nothing but poll.
  if (was_idle && !event && gap > kPreemptedUs * us && WasPreempted()) {
    backoff_ = std::clamp(backoff_ * 2, kFirstBackoffUs * us, kMaxBackoffUs * us);
    no_spin_until_ = now + backoff_;
    idle_look_ = false;
    return false;
  }
  bool spin = now - idle_since_ < max && (pays || probes_ % kProbeEvery == 0);
  if (!spin) {
    probes_++;
    idle_look_ = false;
  } else if (backoff_ > 0 && now - no_spin_until_ > kMaxBackoffUs * us) {
    backoff_ = 0;
  }
  return spin;
}

}  // namespace platform
