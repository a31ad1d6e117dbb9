// eventfd(2): a counter that can be waited for. Follows fs/eventfd.c.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/stream_lane.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/anon/anon.h"
#include "sentry/lanes/arena.h"
#include "sentry/vfs/lanes/lane_ends.h"

namespace sentry {

// The counter without the file: a word of the sentry's own, or of a lane (sentry/lanes).
// Thread-safe.
class EventCounter : public base::RefCounted, public LaneUser {
 public:
  EventCounter(uint64_t count, bool semaphore);
  // Takes the whole count, or 1 of a semaphore; false if it is 0.
  bool TryTake(uint64_t* value);
  // Adds unless the sum would reach the maximum (2^64 - 1).
  bool TryAdd(uint64_t value);
  // The same, waiting until it can be; false: interrupted.
  bool Take(uint64_t* value);
  bool Add(uint64_t value);
  // `wish` as in FileDescription::ReadinessFor.
  uint32_t Readiness(platform::LaneWish wish = platform::kWish);
  uint64_t count() const { return platform::LaneLoad(&lane()->count); }
  bool semaphore() const { return semaphore_; }
  fiber::WaitQueue& queue() { return queue_; }

  // --- lanes ---
  // Its name in `arena`, or 0.
  uint64_t EnterLane(LaneArena& arena);
  void LeaveLanes();
  void SetPatience(platform::LanePatience patience);
  bool lane_open() const { return in_lane() && platform::LaneLoad(&lane()->open) != 0; }
  void WatchEdges(platform::LaneWish wish);
  // How often it was added to.
  uint64_t came() const { return platform::LaneLoad(&lane()->written); }
  void LaneWritten() override;
  void LaneRead() override;

 private:
  ~EventCounter() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  platform::StreamLane* lane() const { return lane_.load(std::memory_order_acquire); }
  bool in_lane() const { return lane() != &own_; }
  // Others than the sentry that wait for the word's change look again.
  void WakeStubs(uint32_t platform::StreamLane::*word) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Others than the sentry are to tell when they have added, or taken.
  void WishFor(platform::LaneWish platform::StreamLane::*word, platform::LaneWish wish);

  const bool semaphore_;
  mutable platform::StreamLane own_{};
  std::atomic<platform::StreamLane*> lane_{&own_};
  absl::Mutex mutex_;  // held by the sentry while it changes the count; before the arena's
  base::Ref<LaneArena> arena_ ABSL_GUARDED_BY(mutex_);
  uint32_t index_ ABSL_GUARDED_BY(mutex_) = 0;
  bool without_lanes_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<uint32_t> takers_{0}, adders_{0};  // that wait
  fiber::WaitQueue queue_;
};

class EventFile : public AnonFile, public LaneEnds {
 public:
  // flags: EFD_NONBLOCK, EFD_SEMAPHORE.
  EventFile(Vfs& vfs, uint64_t count, uint32_t flags);
  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  uint32_t Readiness() override { return counter_->Readiness(); }
  uint32_t ReadinessFor(uint32_t wish) override { return counter_->Readiness(wish); }
  void WatchEdges(uint32_t wish = platform::kWish) override { counter_->WatchEdges(wish); }
  LaneNames EnterLanes(LaneArena& arena) override;
  bool HasOpenLanes() override { return counter_->lane_open(); }
  uint64_t LaneCame() override { return counter_->came(); }
  fiber::WaitQueue* wait_queue() override { return &counter_->queue(); }
  std::string FdInfo() const override;

 protected:
  Patience LanePatience() const override { return PatienceBy(nonblock()); }
  void SetLanePatience(const Patience& p) override { counter_->SetPatience(p.reader); }
  void OnAsyncOn() override { counter_->LeaveLanes(); }

 private:
  ~EventFile() override = default;
  const base::Ref<EventCounter> counter_;
  const int id_;
};

}  // namespace sentry
