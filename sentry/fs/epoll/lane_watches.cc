#include "sentry/fs/epoll/lane_watches.h"

#include <algorithm>
#include <cstring>

#include "sentry/base/time.h"
#include "sentry/fiber/fiber.h"

namespace sentry {
namespace {

using platform::kLaneEpollFds;
using platform::LaneEpoll;
using platform::LaneWatch;

// A thread of the process holds the lock for less than a microsecond, unless its core is taken
// away.
constexpr int kLooks = 200;
constexpr int64_t kWaitNs = 50'000;
constexpr int64_t kGiveUpNs = 2'000'000'000;

bool HasPlace(int fd) { return fd >= 0 && static_cast<uint32_t>(fd) < kLaneEpollFds; }

void Store(uint32_t* word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

}  // namespace

std::unique_ptr<LaneWatches> LaneWatches::New(int fd, base::Ref<LaneBinding> binding,
                                              base::RefCounted& holder, LaneWatcher& watcher) {
  std::unique_ptr<LaneWatches> watches(new LaneWatches(fd, std::move(binding)));
  watches->sleeper_ = watches->binding_->arena().AllocateSleeper();
  if (watches->sleeper_ < 0) return nullptr;
  const int place = watches->binding_->AddWatcher(holder, watcher);
  if (place < 0) return nullptr;
  watches->place_ = place;
  watches->binding_->WithEpoll(place, [&](LaneEpoll& e) {
    memset(&e, 0, sizeof(e));
    e.sleeper_plus_one = static_cast<uint32_t>(watches->sleeper_) + 1;
  });
  return watches;
}

void LaneWatches::Open() {
  binding_->WithEpoll(place_,
                      [&](LaneEpoll& e) { Store(&e.fd_plus_one, static_cast<uint32_t>(fd_) + 1); });
}

template <typename F>
void LaneWatches::WithLock(F f) {
  const int64_t give_up = base::MonotonicNs() + kGiveUpNs;
  for (int i = 0;; ++i) {
    bool done = false;
    const bool forced = i > kLooks && base::MonotonicNs() >= give_up;
    const bool there = binding_->WithEpoll(place_, [&](LaneEpoll& e) {
      if (!binding_->arena().TryLock(&e.lock) && !forced) return;
      f(e);
      // Who has kept the lock so long is not what we know.
      if (forced) Store(&e.fd_plus_one, 0);
      platform::UnlockLane(&e.lock);
      done = true;
    });
    if (done || !there) return;
    if (i > kLooks) fiber::SleepUntil(base::MonotonicNs() + kWaitNs, /*interruptible=*/false);
  }
}

std::vector<LaneWatches::Change> LaneWatches::Take() {
  std::vector<Change> changes;
  bool any = false;
  binding_->WithEpoll(place_, [&](LaneEpoll& e) {
    // Who has the lock may be about to note one.
    any = platform::LaneLoad(&e.lock) != 0 || platform::LaneLoad(&e.change_count) != 0;
  });
  if (!any) return changes;
  WithLock([&](LaneEpoll& e) {
    const uint32_t count = std::min(platform::LaneLoad(&e.change_count), kLaneEpollFds);
    for (uint32_t i = 0; i < count; ++i) {
      const uint16_t fd = __atomic_load_n(&e.changes[i], __ATOMIC_RELAXED);
      if (fd >= kLaneEpollFds) continue;
      LaneWatch watch;
      memcpy(&watch, &e.watches[fd], sizeof(watch));
      const bool watched = watch.state == platform::kWatchLane;
      e.watches[fd].changed = 0;
      e.watches[fd].heard = watched ? 1 : 0;
      changes.push_back(
          {fd, watched, watch.events & platform::kLaneWatchBits, watch.data, watch.name});
    }
    Store(&e.change_count, 0);
    Store(&e.unheard, 0);
  });
  return changes;
}

void LaneWatches::Set(int fd, platform::LaneWatchState state, uint32_t events, uint64_t data,
                      uint64_t came) {
  if (!HasPlace(fd)) return;
  const uint64_t name = state == platform::kWatchLane ? binding_->NameOf(fd) : 0;
  WithLock([&](LaneEpoll& e) {
    LaneWatch& watch = e.watches[fd];
    const bool lane = state == platform::kWatchLane;
    // What the process has changed meanwhile is newer.
    if (watch.changed) {
      watch.heard = lane && watch.name == name ? 1 : 0;
      if (watch.heard == 0) Store(&e.unheard, 1);
      return;
    }
    watch.heard = lane ? 1 : 0;
    Store(&watch.events, events);
    watch.data = data;
    watch.seen = came;
    watch.name = name;
    platform::SetWatchState(&e, static_cast<uint32_t>(fd), state);
  });
  WakeStubs();
}

std::optional<uint32_t> LaneWatches::EventsOf(int fd) {
  std::optional<uint32_t> events;
  if (!HasPlace(fd)) return events;
  binding_->WithEpoll(place_, [&](LaneEpoll& e) {
    const LaneWatch& watch = e.watches[fd];
    if (platform::LaneLoad(&watch.state) != platform::kWatchLane) return;
    events = platform::LaneLoad(&watch.events);
  });
  return events;
}

bool LaneWatches::HasEdge(int fd, uint64_t came) {
  bool news = true;
  if (!HasPlace(fd)) return news;
  binding_->WithEpoll(place_, [&](LaneEpoll& e) {
    const LaneWatch& watch = e.watches[fd];
    news = platform::LaneLoad(&watch.seen) != came;
  });
  return news;
}

bool LaneWatches::TakeEdge(int fd, uint64_t came) {
  bool news = true;
  if (!HasPlace(fd)) return news;
  WithLock([&](LaneEpoll& e) {
    LaneWatch& watch = e.watches[fd];
    news = watch.seen != came;
    watch.seen = came;
  });
  return news;
}

void LaneWatches::SetBusy(bool busy) {
  binding_->WithEpoll(place_, [&](LaneEpoll& e) { Store(&e.busy, busy ? 1 : 0); });
  if (busy) WakeStubs();
}

void LaneWatches::SetSentryReady(bool ready) {
  binding_->WithEpoll(place_, [&](LaneEpoll& e) { Store(&e.sentry_ready, ready ? 1 : 0); });
  if (ready) WakeStubs();
}

}  // namespace sentry
