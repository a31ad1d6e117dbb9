// The sentry's side of an epoll instance that a process changes and looks at by itself
// (platform/lane_epoll.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "platform/lane_epoll.h"
#include "sentry/base/ref.h"
#include "sentry/lanes/binding.h"

namespace sentry {

// Thread-safe but where said. What stands in the process's memory is read once and checked.
class LaneWatches {
 public:
  // For the instance at descriptor `fd` of the space of `binding`; null: there is no place. It is
  // not seen by the process before Open.
  static std::unique_ptr<LaneWatches> New(int fd, base::Ref<LaneBinding> binding,
                                          base::RefCounted& holder, LaneWatcher& watcher);
  ~LaneWatches() {
    if (place_ >= 0) binding_->RemoveWatcher(place_);
    WakeStubs();
    if (sleeper_ >= 0) binding_->arena().FreeSleeper(sleeper_);
  }
  LaneWatches(const LaneWatches&) = delete;
  LaneWatches& operator=(const LaneWatches&) = delete;

  LaneBinding& binding() const { return *binding_; }
  void Open();

  // Descriptors whose watch the process has changed: to this, or to none. May park.
  struct Change {
    int fd;
    bool watched;
    uint32_t events;
    uint64_t data;
    uint64_t lane;  // which it is for (platform::WatchedLane)
  };
  std::vector<Change> Take();
  // What the process is to know of descriptor `fd`, if it is one that there is a place for; `came`
  // is what has come until now, which is told already, or will be by the sentry. May park.
  void Set(int fd, platform::LaneWatchState state, uint32_t events = 0, uint64_t data = 0,
           uint64_t came = 0);
  // What is wanted of descriptor `fd`, which the process may have changed without our having heard
  // of it. Nothing if the process does not look at it.
  std::optional<uint32_t> EventsOf(int fd);
  // Of an edge-triggered watch: something is to be told that the process has not found yet, all of
  // which has come when `came` had. With Take it counts as told, which may park.
  bool HasEdge(int fd, uint64_t came);
  bool TakeEdge(int fd, uint64_t came);

  // Who waits in the process looks again; false if nobody does. Whatever is changed here does so
  // too.
  bool WakeStubs() { return sleeper_ >= 0 && binding_->arena().WakeSleeper(sleeper_); }
  // Only the sentry serves, or no longer; something is ready that only it knows of.
  void SetBusy(bool busy);
  void SetSentryReady(bool ready);
  // Somebody waits for what comes by lanes that have wish(): the next that does is told.
  void SetSleeping(bool sleeps) { binding_->arena().SetSleeping(sleeper_, sleeps); }
  platform::LaneWish wish() const {
    return platform::kFirstSleeper + static_cast<platform::LaneWish>(sleeper_);
  }

 private:
  LaneWatches(int fd, base::Ref<LaneBinding> binding) : fd_(fd), binding_(std::move(binding)) {}
  // Calls f(LaneEpoll&) with the process kept out; not if its space is gone.
  template <typename F>
  void WithLock(F f);

  const int fd_;
  const base::Ref<LaneBinding> binding_;
  int place_ = -1;
  int sleeper_ = -1;
};

}  // namespace sentry
