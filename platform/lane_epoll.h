// What a process knows of an epoll instance whose watched files have lanes (stream_lane.h): so much
// that it adds, changes and removes them, finds those that are ready, and waits for them, without
// the sentry. A call about anything else is the sentry's. In the mailbox: written by the process
// and the sentry, who takes over what has changed before it looks at the instance. Compiled into
// both; freestanding.
//
// Who waits here sleeps on the word of the instance's sleeper (a waiter's word, stream_lane.h),
// which the wishes in its lanes name. Whatever else ends a wait (a file without a lane is ready, a
// watch is changed, somebody waits in the sentry) is noted in this struct first, and then the word
// is touched. Watches that the sentry has not heard of are not waited for here, since it cannot
// tell of them; of one that has been changed it looks here for what is wanted.
#pragma once

#include <cstdint>

#include "platform/stream_lane.h"

namespace platform {

inline constexpr uint32_t kLaneEpolls = 4;
inline constexpr uint32_t kLaneEpollFds = 1024;

enum LaneWatchState : uint32_t {
  kWatchNone = 0,
  kWatchLane = 1,    // served here
  kWatchSentry = 2,  // watched, and the sentry's business
};

struct LaneWatch {
  uint32_t events;
  uint8_t state;     // LaneWatchState
  uint8_t heard;     // the sentry has a watch for the lane, or had one until a moment ago
  uint16_t changed;  // stands in LaneEpoll::changes
  uint64_t data;
  uint64_t seen;  // EPOLLET: how much had come when that was told last
  uint64_t name;  // of the lane that it is for (WatchedLane); another one is another file's
};

struct LaneEpoll {
  uint32_t lock;          // as of a lane
  uint32_t fd_plus_one;   // the instance's descriptor; 0: there is none
  uint32_t busy;          // only the sentry serves: somebody waits, or watches the instance
  uint32_t sentry_ready;  // something is ready that only the sentry knows of
  uint32_t unheard;       // some of the changes are watches that have been added
  uint32_t next;          // where the last look for what is ready has stopped
  uint32_t change_count;
  uint32_t sleeper_plus_one;            // of the arena; 0: none
  uint64_t served[kLaneEpollFds / 64];  // a bit for each watch that is kWatchLane
  uint16_t changes[kLaneEpollFds];
  LaneWatch watches[kLaneEpollFds];
};

// What tells the file with these lanes from all that have the same descriptor later; 0: it has
// none.
inline uint64_t WatchedLane(uint64_t in, uint64_t out) { return LaneIndex(in) < kLanes ? in : out; }

// With the lock. Precondition: fd < kLaneEpollFds.
inline void SetWatchState(LaneEpoll* e, uint32_t fd, LaneWatchState state) {
  const uint64_t bit = uint64_t{1} << (fd % 64);
  uint64_t* word = &e->served[fd / 64];
  __atomic_store_n(&e->watches[fd].state, static_cast<uint8_t>(state), __ATOMIC_SEQ_CST);
  __atomic_store_n(word, state == kWatchLane ? *word | bit : *word & ~bit, __ATOMIC_RELAXED);
}
// The first descriptor from `fd` on, below `end`, whose watch is served here; else `end`, which is
// kLaneEpollFds at most.
inline uint32_t NextServedWatch(const LaneEpoll* e, uint32_t fd, uint32_t end) {
  while (fd < end) {
    const uint64_t bits = __atomic_load_n(&e->served[fd / 64], __ATOMIC_RELAXED) >> (fd % 64);
    if (bits != 0) {
      fd += static_cast<uint32_t>(__builtin_ctzll(bits));
      return fd < end ? fd : end;
    }
    fd = (fd / 64 + 1) * 64;
  }
  return end;
}

// EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP and their forms: what a watch here may ask for.
inline constexpr uint32_t kLaneEpollEvents =
    0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000;
inline constexpr uint32_t kLaneEdge = 1u << 31, kLaneOneShot = 1u << 30;
inline constexpr uint32_t kLaneWatchBits = kLaneEpollEvents | kLaneEdge | kLaneOneShot;
inline constexpr uint32_t kLaneIn = 0x1 | 0x40, kLaneOut = 0x4 | 0x100;
inline constexpr uint32_t kEpollWriteBand = 0x200;

// What is true of a descriptor with lanes.
struct LaneState {
  bool known;      // false: only the sentry can tell
  uint32_t ready;  // EPOLLIN, EPOLLOUT and their forms
  uint64_t came;   // grows with all that comes
};

// Of one direction; `lane` is null if there is none.
inline void LookAtLaneIn(const StreamLane* lane, uint32_t generation, LaneState* state) {
  if (lane == nullptr) return;
  const uint32_t kind = LaneLoad(&lane->kind);
  state->came = LaneLoad(&lane->written);
  const bool counts = kind == kLaneCounter || kind == kLaneSemaphore;
  const uint64_t unread = counts ? LaneLoad(&lane->count) : LaneUsed(lane);
  if (!LaneServes(lane, generation) || (!counts && unread > kLaneRing)) state->known = false;
  // A counter that is full is an error.
  if (counts && unread == kCounterMax) state->known = false;
  if (unread != 0) state->ready |= counts ? uint32_t{0x1} : kLaneIn;
}
inline void LookAtLaneOut(const StreamLane* lane, uint32_t generation, LaneState* state) {
  if (lane == nullptr) return;
  const uint32_t kind = LaneLoad(&lane->kind);
  if (!LaneServes(lane, generation)) state->known = false;
  if (kind == kLaneCounter || kind == kLaneSemaphore) {
    if (LaneLoad(&lane->count) < kCounterMax - 1) state->ready |= 0x4;
    return;
  }
  if (LaneUsed(lane) > kLaneRing || LaneLoad(&lane->limit) > kLaneRing) state->known = false;
  if (!LaneWritable(lane)) return;
  state->ready |= kind == kLaneUnix ? kLaneOut | kEpollWriteBand : kLaneOut;
}

}  // namespace platform
