// One direction of a stream of bytes: a ring in memory of the sentry's own, or in a lane that
// processes move bytes in without the sentry (sentry/lanes).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "platform/stream_lane.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/ring_memory.h"
#include "sentry/fiber/mutex.h"
#include "sentry/lanes/arena.h"
#include "sentry/vfs/types.h"

namespace sentry {

// Rounds of one call in which nothing moved although something should have. Who writes nonsense
// into a lane can make many; after a few the call sleeps in between, so that it takes little time
// and can be interrupted.
class VainRounds {
 public:
  // False: the call was interrupted.
  bool Note() {
    if (++count_ < kMany) return true;
    return Pause();
  }

 private:
  static bool Pause();
  static constexpr int kMany = 64;
  int count_ = 0;
};

// Positions count the bytes of its life. What others may have written into a lane is checked: a
// ring that makes no sense is empty and has no room.
class ByteStream {
 public:
  static constexpr size_t kSize = platform::kLaneRing;

  // A turn at one end, in which the bytes are filled in or taken out: only one at a time, of the
  // sentry's or of others. Under the owner's own lock of that end.
  class WriterTurn {
   public:
    explicit WriterTurn(ByteStream& stream) : stream_(stream) {
      if (!stream_.kept_) stream_.Lock(&platform::StreamLane::write_lock);
    }
    ~WriterTurn() {
      if (!stream_.kept_) stream_.Unlock(&platform::StreamLane::write_lock);
    }

   private:
    ByteStream& stream_;
  };
  class ReaderTurn {
   public:
    explicit ReaderTurn(ByteStream& stream) : stream_(stream) {
      stream_.Lock(&platform::StreamLane::read_lock);
    }
    ~ReaderTurn() { stream_.Unlock(&platform::StreamLane::read_lock); }

   private:
    ByteStream& stream_;
  };

  explicit ByteStream(platform::LaneKind kind = platform::kLaneTcp) {
    own_.limit = kSize;
    own_.kind = kind;
  }
  ~ByteStream();
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  // --- at any time ---
  uint64_t written() const { return __atomic_load_n(&lane()->written, __ATOMIC_ACQUIRE); }
  uint64_t read() const { return __atomic_load_n(&lane()->read, __ATOMIC_ACQUIRE); }
  // Bytes in it, and from `position` on.
  size_t Used() const { return Sane(platform::LaneUsed(lane())); }
  size_t UsedFrom(uint64_t position) const { return Sane(written() - position); }
  // Bytes that may be added.
  size_t Room() const {
    const size_t room = platform::LaneRoom(lane()), held = held_.load(std::memory_order_relaxed);
    return room > held ? room - held : 0;
  }
  // Bytes that were filled in, and which no reader sees yet.
  size_t held() const { return held_.load(std::memory_order_relaxed); }
  // There is so much that who waits for room is content.
  bool Writable() const { return platform::LaneWritable(lane()); }
  size_t limit() const;
  void set_limit(size_t bytes);
  // Whoever waits is to be told of the next bytes that come, or go. Look again after it.
  void WantData(platform::LaneWish wish = platform::kWish) {
    platform::AddLaneWish(&lane()->want_data, wish);
  }
  void WantRoom(platform::LaneWish wish = platform::kWish) {
    platform::AddLaneWish(&lane()->want_room, wish);
  }
  bool wants_room() const { return platform::LaneLoad(&lane()->want_room) != 0; }
  // True once for each WantRoom.
  bool TakeWantRoom() { return __atomic_exchange_n(&lane()->want_room, 0u, __ATOMIC_SEQ_CST) != 0; }

  // --- in a writer's turn ---
  // Makes the ring if there is none. ENOBUFS.
  base::Status Ensure();
  // Copies up to `n` bytes of `src` behind what it holds; they become a part of it by Produced.
  // Precondition: n <= Room(). Fewer at a fault, EFAULT if none.
  base::Result<size_t> Fill(IoSource& src, size_t n);
  // `held`: so many behind them are not the reader's yet. To be more than 0 only with a kept turn.
  void Produced(size_t n, size_t held = 0);
  // The turn does not end with its WriterTurn, but with the first one that gives it up: nobody but
  // the sentry writes meanwhile, as it moves into a lane too. It is the owner's lock that counts.
  void KeepTurn(bool keep) { kept_ = keep; }
  // Forgets its bytes, and gives memory of the sentry's own back. With both of the owner's locks.
  void Drop();

  // --- in a reader's turn ---
  // Copies `n` bytes from `position` on, which are there.
  base::Result<size_t> Copy(uint64_t position, size_t n, IoDest& dst) const;
  void ConsumedTo(uint64_t position);
  // Back to the ring's beginning, if it is empty. With the owner's lock of the writer's end too.
  void Rewind();

  // --- lanes ---
  // With the owner's locks of both ends, and no turn: moves into a lane of `arena`, closed at
  // first. `user` is a part of `holder`, and owns this. False if it cannot, or is in one of another
  // arena.
  bool EnterLane(LaneArena& arena, base::RefCounted& holder, LaneUser& user);
  bool InLaneOf(const LaneArena& arena) const { return in_lane() && arena_.get() == &arena; }
  // The lane's name; 0: it is in none, or only the sentry moves its bytes.
  uint64_t LaneName() const;
  // From now on others move bytes, or no longer do (one who is doing it finishes; who waits asks
  // the sentry).
  void OpenLane(bool open);
  // What those others do at an end who find nothing there.
  void SetPatience(bool reader, platform::LanePatience patience) {
    __atomic_store_n(reader ? &lane()->reader : &lane()->writer, uint32_t{patience},
                     __ATOMIC_SEQ_CST);
  }
  bool in_lane() const { return lane() != &own_; }
  bool lane_open() const { return in_lane() && platform::LaneLoad(&lane()->open) != 0; }

 private:
  platform::StreamLane* lane() const { return lane_.load(std::memory_order_acquire); }
  static size_t Sane(uint64_t bytes) { return bytes <= kSize ? bytes : 0; }
  void Lock(uint32_t platform::StreamLane::*lock);
  // Others than the sentry that wait for room look again.
  void WakeWriters();
  void Unlock(uint32_t platform::StreamLane::*lock) {
    if (in_lane()) platform::UnlockLane(&(lane()->*lock));
  }

  mutable platform::StreamLane own_{};
  std::atomic<platform::StreamLane*> lane_{&own_};
  std::unique_ptr<base::RingMemory> memory_;  // without a lane
  std::byte* data_ = nullptr;                 // the ring; changed with both ends locked
  base::Ref<LaneArena> arena_;
  uint32_t index_ = 0;                // in the arena
  std::atomic<size_t> held_{0};       // changed in a writer's turn
  bool kept_ = false;                 // with the owner's lock of the writer's end
  std::atomic<bool> lawless_{false};  // somebody has kept a lock of the lane
};

}  // namespace sentry
