// The memory that the stream lanes of one domain lie in.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/stream_lane.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/ring_memory.h"

namespace sentry {

// Whose stream a lane serves. Told on a task's fiber, without locks held.
class LaneUser {
 public:
  // Others than the sentry have written, or read, and somebody may wait for that.
  virtual void LaneWritten() = 0;
  virtual void LaneRead() = 0;

 protected:
  ~LaneUser() = default;
};

// Wakes the stubs that sleep on a waiter's word of a lane, or of a sleeper; false if none does. The
// sentry does that whenever it has changed what they may wait for.
bool WakeLaneStubs(uint32_t* word);

// The number of an address space, with which its threads lock lanes. What one that is gone has
// locked is free: a call that did not end has done nothing.
class LaneOwner {
 public:
  LaneOwner();
  ~LaneOwner() { Retire(); }
  // No thread of the space runs any more. Idempotent.
  void Retire();
  LaneOwner(const LaneOwner&) = delete;
  LaneOwner& operator=(const LaneOwner&) = delete;
  uint32_t number() const { return number_; }
  static bool Lives(uint32_t number);

 private:
  const uint32_t number_;
};

// Processes that may trace one another share an arena. Thread-safe.
class LaneArena : public base::RefCounted {
 public:
  // With what the sentry itself locks a lane.
  static constexpr uint32_t kSentryOwner = UINT32_MAX;

  // The arena of the domain of this name; made if there is none. ENOMEM, ENOSPC: there are too
  // many.
  static base::Result<base::Ref<LaneArena>> OfDomain(const std::string& name);

  const base::Ref<base::HostFd>& file() const { return memory_->file(); }

  // An empty lane, which nobody uses before its `open` is set. `user` is a part of `holder`, which
  // is alive until Free. ENOSPC.
  base::Result<uint32_t> Allocate(base::RefCounted& holder, LaneUser& user);
  void Free(uint32_t index);
  // There are more free ones than not.
  bool HasPlenty() const { return used_.load(std::memory_order_relaxed) < platform::kLanes / 2; }
  // Precondition for these: index < kLanes.
  platform::StreamLane* lane(uint32_t index) const;
  std::byte* ring(uint32_t index) const;
  uint64_t NameOf(uint32_t index) const;

  // A word of a sleeper of its own; -1: there is none.
  int AllocateSleeper();
  void FreeSleeper(int sleeper);
  // Whether the sentry sleeps there.
  void SetSleeping(int sleeper, bool sleeps);
  // Stubs that sleep there look again.
  bool WakeSleeper(int sleeper) { return WakeLaneStubs(SleeperWord(sleeper)); }

  // The users of the lane of this name, or of all, look after who waits. TellAll stands in for a
  // process that may have died before it had woken whom it should.
  void Tell(uint64_t name, bool wrote);
  void TellAll();

  // Takes `lock` for the sentry; false if another owner, who lives, has it.
  bool TryLock(uint32_t* lock);

 private:
  struct Use {
    base::RefCounted* holder = nullptr;
    LaneUser* user = nullptr;
    uint32_t generation = 0;
  };

  uint32_t* SleeperWord(int sleeper) const {
    return reinterpret_cast<uint32_t*>(memory_->data() + platform::kLaneSleepersAt) + sleeper;
  }

  explicit LaneArena(std::unique_ptr<base::RingMemory> memory) : memory_(std::move(memory)) {}
  ~LaneArena() override = default;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  // The next unused lane from `index` on; kLanes: there is none.
  uint32_t NextUnused(uint32_t index);
  // Its user with the holder counted; null if it is going.
  LaneUser* Hold(uint32_t index, base::Ref<base::RefCounted>* holder)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<base::RingMemory> memory_;
  mutable absl::Mutex mutex_;  // a leaf
  std::array<Use, platform::kLanes> uses_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint32_t> used_{0};                   // of them
  uint32_t free_hint_ ABSL_GUARDED_BY(mutex_) = 0;  // those below are used
  std::bitset<platform::kLaneSleepers> sleepers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
