// Waiting for what a lane brings (platform/stream_lane.h), without the sentry.
#include "platform/stub/stub.h"
#include "platform/stub/sys.h"

namespace platform::stub {
namespace {

constexpr long kEtimedout = -110;
constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr uint64_t kClockMonotonic = 1;

// In ticks, of which a microsecond has two to four thousand: a sleep and its wake-up cost about as
// much. There is no offer of the core to others between the looks: on a busy machine that costs the
// rest of a time slice each time, where a sleeper is given the core back at once.
constexpr uint64_t kMostTicks = 60'000;
constexpr uint32_t kLooksPerTick = 16;
// As for answers of the sentry (trap.cc).
constexpr uint32_t kMaxDebt = 16, kPays = 2, kProbeEvery = 16;

// The lane of this name; null: it is that of a direction which the descriptor does not have.
StreamLane* LaneAt(uint64_t name) {
  if (LaneIndex(name) >= kLanes) return nullptr;
  return reinterpret_cast<StreamLane*>(kLaneBase + LaneIndex(name) * kLaneStride);
}

}  // namespace

uint64_t NameOfFd(uint32_t fd) {
  const LaneFd& lanes = Header()->lane_fds[fd];
  const uint64_t in = Load(&lanes.in), out = Load(&lanes.out);
  return in != 0 && out != 0 ? WatchedLane(in, out) : 0;
}

LaneState LookAtFd(uint32_t fd, uint64_t name) {
  const LaneFd& lanes = Header()->lane_fds[fd];
  const uint64_t in = Load(&lanes.in), out = Load(&lanes.out);
  LaneState state{in != 0 && out != 0 && WatchedLane(in, out) == name, 0, 0};
  if (!state.known) return state;
  LookAtLaneIn(LaneAt(in), LaneGeneration(in), &state);
  LookAtLaneOut(LaneAt(out), LaneGeneration(out), &state);
  return state;
}

void ArmFd(uint32_t fd, bool in, bool out, LaneWish wish) {
  const LaneFd& lanes = Header()->lane_fds[fd];
  StreamLane* reads = LaneAt(Load(&lanes.in));
  StreamLane* writes = LaneAt(Load(&lanes.out));
  if (reads != nullptr && in) AddLaneWish(&reads->want_data, wish);
  if (writes != nullptr && out) AddLaneWish(&writes->want_room, wish);
}

Wake AwaitTouch(Slot* s, uint32_t* word, uint32_t value, int64_t timeout_ns) {
  Spin spin;
  while (SpinAgain(s, &spin)) {
    if (Load(word) == value) continue;
    EndSpin(s, spin, true);
    return Wake::kWoken;
  }
  EndSpin(s, spin, false);
  const uint32_t sleeping = AddLaneWaiter(word, kStubSleeps);
  if (sleeping != (value | kStubSleeps)) return Wake::kWoken;
  return SleepOn(s, word, sleeping, timeout_ns);
}

int64_t MonotonicNs() {
  __kernel_timespec t;
  Syscall(kSysClockGettime, kClockMonotonic, Addr(&t));
  return t.tv_sec * kNsPerSecond + t.tv_nsec;
}

void StubWaker::Wake(const uint32_t* word) const { FutexWake(word, INT32_MAX); }

bool SpinAgain(Slot* s, Spin* spin) {
  if (spin->looks == 0) {
    if (s->wait_debt >= kMaxDebt && ++s->wait_misses % kProbeEvery != 0) return false;
    spin->begin = Ticks();
  }
  if (Load(&s->interrupt)) return false;
  if (++spin->looks % kLooksPerTick == 0 && Ticks() - spin->begin > kMostTicks) return false;
  Pause();
  return true;
}

void EndSpin(Slot* s, const Spin& spin, bool found) {
  if (spin.looks == 0) return;
  if (!found) {
    if (s->wait_debt < kMaxDebt) s->wait_debt++;
  } else {
    s->wait_debt -= s->wait_debt < kPays ? s->wait_debt : kPays;
  }
}

Wake SleepOn(Slot* s, const uint32_t* word, uint32_t value, int64_t timeout_ns) {
  __kernel_timespec timeout{timeout_ns / kNsPerSecond, timeout_ns % kNsPerSecond};
  __atomic_store_n(&s->in_futex, 1u, __ATOMIC_RELAXED);
  const long r =
      StubFutex(Addr(word), FUTEX_WAIT, value, timeout_ns < 0 ? 0 : Addr(&timeout), 0, 0, s);
  __atomic_store_n(&s->in_futex, 0u, __ATOMIC_RELAXED);
  if (Load(&s->interrupt)) return Wake::kInterrupted;
  return r == kEtimedout ? Wake::kTimeout : Wake::kWoken;
}

void BeginLaneWait(Slot* s, uint64_t fd) { Store(&s->lane_wait, static_cast<uint32_t>(fd) + 1); }

bool LeaveLaneWait(Slot* s, int64_t remaining_ns) {
  s->remaining_ns = remaining_ns;
  s->lane_waited = 1;
  return false;
}

}  // namespace platform::stub
