// A lane: one direction of a byte stream (a ring) or an event counter, in memory that the sentry
// and the stubs of processes that may trace one another map. Whoever holds an end moves bytes
// without asking anybody. Compiled into both; freestanding.
//
// Who waits does so in the sentry, which is told when that is due (a wish), or in its stub, on a
// word of the lane by the host's futex (a waiter's word). Both may be so at once, and both are
// told: who has changed something looks at the wish and at the word. No wake-up is lost:
//   - Who waits sets its bit in the word, then looks once more for what it waits for (and at
//   `open`,
//     and whose descriptor it is), then sleeps on the value that the word had with the bit. Who
//     changes something does that first and looks at the word then. All of these are sequentially
//     consistent, so one of the two sees the other.
//   - Who sees a bit takes all of them and counts the word on in one step, and wakes all that
//   sleep.
//     A sleeper that has not gone to sleep yet finds another value and does not.
//   - All are woken and look again, so none depends on what another does who was woken too, or
//   dies.
//     Who dies between its change and the wake-up is stood in for by the sentry
//     (LaneArena::TellAll).
//   - The sentry never waits on a word.
//
// Positions count the bytes of the stream's life. Everything here may be changed by a hostile
// process at any time: what is read is checked before it is used, and no value leads out of the
// ring.
#pragma once

#include <cstddef>
#include <cstdint>

namespace platform {

inline constexpr uint64_t kLaneRing = 512 * 1024;  // a power of two
inline constexpr uint64_t kLaneHeaderSize = 4096;
inline constexpr uint64_t kLaneStride = kLaneHeaderSize + kLaneRing;
inline constexpr uint32_t kLanes = 512;
// Behind the lanes: words of sleepers, each of whom watches many lanes.
inline constexpr uint32_t kLaneSleepers = 1024;
inline constexpr uint64_t kLaneSleepersAt = kLanes * kLaneStride;
inline constexpr uint64_t kLaneArenaSize = kLaneSleepersAt + kLaneSleepers * sizeof(uint32_t);
// The most that one call moves: while it does, others are kept out.
inline constexpr uint64_t kLaneMostBytes = 64 * 1024;

// Who is to be told of the next bytes that come, or go: nobody; the sentry, at once; or the sentry,
// if the word of sleeper `wish - kFirstSleeper` is not 0. Who tells takes the wish, or the word,
// back.
using LaneWish = uint32_t;
inline constexpr LaneWish kNoWish = 0, kWish = 1, kFirstSleeper = 2;

// The bits of a waiter's word. What is above them counts how often they were taken.
enum LaneWaiter : uint32_t {
  kSentrySleeps = 1,  // of a sleeper's word: the sentry is to be told
  kStubLooks = 2,     // a stub looks at the word, without sleeping
  kStubSleeps = 4,    // in FUTEX_WAIT on the word
  kLaneWaiters = 7,
};

// What who finds nothing at an end of a lane is to do; told by the sentry, which knows the flags
// of the descriptions.
enum LanePatience : uint32_t {
  kAsks = 0,    // ask the sentry
  kWaits = 1,   // wait
  kLeaves = 2,  // fail with EAGAIN
};

// What a lane carries; written by the sentry before it opens it.
enum LaneKind : uint32_t {
  kLaneTcp = 0,
  kLaneUnix = 1,
  kLanePipe = 2,  // its capacity counts in pages, of which a read frees whole ones
  kLaneCounter = 3,
  kLaneSemaphore = 4,
};
inline constexpr uint64_t kLanePage = 4096;

// Followed, kLaneHeaderSize bytes after its beginning, by the ring.
struct StreamLane {
  // The writer's line. A lock holds the number of its owner, or 0.
  alignas(64) uint32_t write_lock;
  uint64_t written;
  uint64_t base;          // the position whose byte is the ring's first; changed with both locks
  uint32_t room_waiters;  // the word of those who wait for room
  // The reader's.
  alignas(64) uint32_t read_lock;
  uint64_t read;
  uint32_t data_waiters;  // of those who wait for data
  // The sentry's, rarely changed.
  alignas(64) uint32_t
      generation;  // which stream this lane serves: no two have had the same number
  uint32_t open;   // 0: only the sentry moves bytes
  LaneWish want_data, want_room;
  uint64_t limit;  // bytes that may be on their way, at most kLaneRing
  uint32_t kind;   // LaneKind
  uint64_t count;  // of a counter, which has no ring; `written` is how often it was added to
  uint32_t reader, writer;  // LanePatience
};
static_assert(sizeof(StreamLane) == 192);

// Which lane a descriptor leads to: 0 is none.
inline constexpr uint64_t LaneName(uint32_t index, uint32_t generation) {
  return uint64_t{generation} << 32 | (index + 1);
}
inline constexpr uint32_t LaneIndex(uint64_t name) { return static_cast<uint32_t>(name) - 1; }
inline constexpr uint32_t LaneGeneration(uint64_t name) {
  return static_cast<uint32_t>(name >> 32);
}

// Up to two pieces of a ring.
struct LanePieces {
  uint64_t first, first_length, second_length;  // the second begins at 0
};
inline LanePieces CutLane(uint64_t position, uint64_t base, uint64_t n) {
  const uint64_t at = (position - base) & (kLaneRing - 1);
  const uint64_t first = n < kLaneRing - at ? n : kLaneRing - at;
  return {at, first, n - first};
}

template <typename T>
inline T LaneLoad(const T* word) {
  return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

// --- waiters' words ---
// A process may change one without end: then the count is not kept, to its own harm.
inline constexpr int kLaneWordTries = 64;
// Returns what the word is with the bit, on which to sleep.
inline uint32_t AddLaneWaiter(uint32_t* word, LaneWaiter bit) {
  return __atomic_or_fetch(word, static_cast<uint32_t>(bit), __ATOMIC_SEQ_CST);
}
// Takes the bits; 0: there were none.
inline uint32_t TakeLaneWaiters(uint32_t* word) {
  uint32_t now = LaneLoad(word);
  for (int i = 0; i < kLaneWordTries; i++) {
    if ((now & kLaneWaiters) == 0) return 0;
    if (__atomic_compare_exchange_n(word, &now, (now | kLaneWaiters) + 1, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
      return now & kLaneWaiters;
    }
  }
  return __atomic_exchange_n(word, 0u, __ATOMIC_SEQ_CST) & kLaneWaiters;
}
// Joins a wish to the one that stands in `word` of a lane. There is room for one: that of a single
// sleeper, or one for all.
inline void AddLaneWish(LaneWish* word, LaneWish wish) {
  LaneWish now = LaneLoad(word);
  for (int i = 0; i < kLaneWordTries; i++) {
    const LaneWish next = now == kNoWish || now == wish ? wish : kWish;
    if (now == next) return;
    if (__atomic_compare_exchange_n(word, &now, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      return;
    }
  }
  __atomic_store_n(word, kWish, __ATOMIC_SEQ_CST);
}
// How a lane's user wakes those that sleep: `sleepers` are the words of the arena, and Wake(word)
// the host's FUTEX_WAKE of all. It may be called with any word of the lane or of `sleepers`.
template <typename Waker>
inline void WakeLaneWaiters(const Waker& waker, uint32_t* word) {
  if ((TakeLaneWaiters(word) & kStubSleeps) != 0) waker.Wake(word);
}

// --- locks ---
inline bool TryLockLane(uint32_t* lock, uint32_t owner) {
  uint32_t free = 0;
  return __atomic_compare_exchange_n(lock, &free, owner, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
// For those that several use at once: who has it gives it back soon, mostly.
inline constexpr int kLaneLockTries = 64;
inline bool LockLane(uint32_t* lock, uint32_t owner) {
  for (int i = 0; i < kLaneLockTries; i++) {
    if (TryLockLane(lock, owner)) return true;
    __builtin_ia32_pause();
  }
  return false;
}
// A full barrier: what is looked at afterwards is looked at after the change is visible.
inline void UnlockLane(uint32_t* lock) { __atomic_exchange_n(lock, 0u, __ATOMIC_SEQ_CST); }

// Bytes in the ring; more than kLaneRing if the positions make no sense.
inline uint64_t LaneUsed(const StreamLane* lane) {
  const uint64_t read = __atomic_load_n(&lane->read, __ATOMIC_ACQUIRE);
  return __atomic_load_n(&lane->written, __ATOMIC_ACQUIRE) - read;
}

// What a lane holds as it counts against `limit`: of a pipe's first page, what was read too.
inline uint64_t LaneOccupied(const StreamLane* lane, uint64_t used) {
  if (used == 0 || LaneLoad(&lane->kind) != kLanePipe) return used;
  return used + ((LaneLoad(&lane->read) - LaneLoad(&lane->base)) & (kLanePage - 1));
}
// Bytes that may be added; 0 if the positions make no sense.
inline uint64_t LaneRoom(const StreamLane* lane) {
  const uint64_t used = LaneUsed(lane), limit = LaneLoad(&lane->limit);
  if (used > kLaneRing || limit > kLaneRing) return 0;
  const uint64_t occupied = LaneOccupied(lane, used);
  return occupied < limit ? limit - occupied : 0;
}
// Whether who waits for room is content: sk_stream_is_writeable(), unix_writable(), pipe_full().
inline bool LaneWritable(const StreamLane* lane) {
  const uint64_t used = LaneUsed(lane), room = LaneRoom(lane);
  switch (LaneLoad(&lane->kind)) {
    case kLaneUnix:
      return room != 0 && used * 4 <= LaneLoad(&lane->limit);
    case kLanePipe:
      return room >= kLanePage;
    default:
      return room != 0 && room * 2 >= used;
  }
}

enum class LaneOutcome {
  kDeclined,  // nothing was done
  kWait,      // the same: it will be possible when somebody has written, or read
  kDone,
  kTell,  // done, and the sentry is to be told
};

inline bool LaneServes(const StreamLane* lane, uint32_t generation) {
  return LaneLoad(&lane->generation) == generation && LaneLoad(&lane->open) != 0;
}

// Something has come, or gone, which `wish` asks to be told of.
template <typename Waker>
inline LaneOutcome TellIfWanted(const StreamLane* lane, LaneWish* wish, const Waker& waker) {
  if (LaneLoad(&lane->open) == 0) return LaneOutcome::kTell;
  const LaneWish w = LaneLoad(wish);
  bool tell = false;
  if (w < kFirstSleeper) {
    tell = w != kNoWish && __atomic_exchange_n(wish, kNoWish, __ATOMIC_SEQ_CST) != kNoWish;
  } else if (w - kFirstSleeper < kLaneSleepers) {
    uint32_t* word = &waker.sleepers[w - kFirstSleeper];
    const uint32_t waiters = TakeLaneWaiters(word);
    if ((waiters & kStubSleeps) != 0) waker.Wake(word);
    tell = (waiters & kSentrySleeps) != 0;
  } else {
    tell = true;
  }
  return tell ? LaneOutcome::kTell : LaneOutcome::kDone;
}
template <typename Waker>
inline LaneOutcome TellOfData(StreamLane* lane, const Waker& waker) {
  WakeLaneWaiters(waker, &lane->data_waiters);
  return TellIfWanted(lane, &lane->want_data, waker);
}
template <typename Waker>
inline LaneOutcome TellOfRoom(StreamLane* lane, const Waker& waker) {
  const uint32_t kind = LaneLoad(&lane->kind);
  const bool counts = kind == kLaneCounter || kind == kLaneSemaphore;
  if (LaneLoad(&lane->room_waiters) != 0 && (counts || LaneWritable(lane))) {
    WakeLaneWaiters(waker, &lane->room_waiters);
  }
  return TellIfWanted(lane, &lane->want_room, waker);
}

// Writes `n` bytes, all or none. `copy(at, n)` stores the next n bytes at place `at` of the ring,
// or returns false.
template <typename Waker, typename Copy>
inline LaneOutcome WriteLane(StreamLane* lane, const Waker& waker, uint32_t generation,
                             uint32_t owner, uint64_t n, Copy copy) {
  if (n == 0 || n > kLaneMostBytes || !LockLane(&lane->write_lock, owner)) {
    return LaneOutcome::kDeclined;
  }
  bool done = false;
  const bool serves = LaneServes(lane, generation), fits = n <= LaneRoom(lane);
  if (serves && fits) {
    const uint64_t written = __atomic_load_n(&lane->written, __ATOMIC_RELAXED);
    const LanePieces p = CutLane(written, LaneLoad(&lane->base), n);
    done = copy(p.first, p.first_length) && (p.second_length == 0 || copy(0, p.second_length)) &&
           LaneServes(lane, generation);
    if (done) __atomic_store_n(&lane->written, written + n, __ATOMIC_RELEASE);
  }
  UnlockLane(&lane->write_lock);
  if (serves && !fits) return LaneOutcome::kWait;
  return done ? TellOfData(lane, waker) : LaneOutcome::kDeclined;
}

// Back to the ring's beginning while it is empty: few pages are touched, and they stay cached. With
// the read lock held.
inline void RewindLane(StreamLane* lane, uint32_t owner) {
  const uint64_t read = __atomic_load_n(&lane->read, __ATOMIC_RELAXED);
  if (LaneLoad(&lane->written) != read || !TryLockLane(&lane->write_lock, owner)) return;
  if (LaneLoad(&lane->written) == read) __atomic_store_n(&lane->base, read, __ATOMIC_SEQ_CST);
  UnlockLane(&lane->write_lock);
}

// Reads what there is, at most `*n` bytes, which becomes what was read. `copy(at, n)` takes the
// next n bytes from place `at` of the ring, or returns false.
template <typename Waker, typename Copy>
inline LaneOutcome ReadLane(StreamLane* lane, const Waker& waker, uint32_t generation,
                            uint32_t owner, uint64_t* n, Copy copy) {
  if (*n == 0 || !LockLane(&lane->read_lock, owner)) return LaneOutcome::kDeclined;
  bool done = false, roomier = true;
  const uint64_t used = LaneUsed(lane);
  const bool serves = LaneServes(lane, generation);
  if (serves && used != 0 && used <= kLaneRing) {
    uint64_t most = used < kLaneMostBytes ? used : kLaneMostBytes;
    if (*n > most) *n = most;
    const uint64_t read = __atomic_load_n(&lane->read, __ATOMIC_RELAXED);
    const uint64_t base = LaneLoad(&lane->base);
    const LanePieces p = CutLane(read, base, *n);
    done = copy(p.first, p.first_length) && (p.second_length == 0 || copy(0, p.second_length)) &&
           LaneServes(lane, generation);
    if (done) {
      roomier = LaneLoad(&lane->kind) != kLanePipe || *n == used ||
                ((read - base) & (kLanePage - 1)) + *n >= kLanePage;
      __atomic_store_n(&lane->read, read + *n, __ATOMIC_SEQ_CST);
      if (*n == used) RewindLane(lane, owner);
    }
  }
  UnlockLane(&lane->read_lock);
  if (serves && used == 0) return LaneOutcome::kWait;
  if (!done) return LaneOutcome::kDeclined;
  if (!roomier && LaneLoad(&lane->open) != 0) return LaneOutcome::kDone;
  return TellOfRoom(lane, waker);
}

// --- counters: eventfd(2) ---
inline constexpr uint64_t kCounterMax = ~uint64_t{0};

// Adds, unless the sum would reach the maximum.
inline bool AddToCounter(StreamLane* lane, uint64_t value) {
  uint64_t n = LaneLoad(&lane->count);
  do {
    if (kCounterMax - n <= value) return false;
  } while (!__atomic_compare_exchange_n(&lane->count, &n, n + value, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST));
  __atomic_fetch_add(&lane->written, uint64_t{1}, __ATOMIC_SEQ_CST);
  return true;
}
// Takes all, or 1 of a semaphore; false if there is nothing.
inline bool TakeFromCounter(StreamLane* lane, bool semaphore, uint64_t* value) {
  uint64_t n = LaneLoad(&lane->count);
  do {
    if (n == 0) return false;
    *value = semaphore ? 1 : n;
  } while (!__atomic_compare_exchange_n(&lane->count, &n, n - *value, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST));
  return true;
}

// write(2) and read(2) of a counter in a lane.
template <typename Waker>
inline LaneOutcome WriteCounter(StreamLane* lane, const Waker& waker, uint32_t generation,
                                uint32_t owner, uint64_t value) {
  if (value == kCounterMax || !LockLane(&lane->write_lock, owner)) {
    return LaneOutcome::kDeclined;
  }
  const bool done = LaneServes(lane, generation) && AddToCounter(lane, value);
  UnlockLane(&lane->write_lock);
  return done ? TellOfData(lane, waker) : LaneOutcome::kDeclined;
}
template <typename Waker>
inline LaneOutcome ReadCounter(StreamLane* lane, const Waker& waker, uint32_t generation,
                               uint32_t owner, uint64_t* value) {
  if (!LockLane(&lane->read_lock, owner)) return LaneOutcome::kDeclined;
  const bool serves = LaneServes(lane, generation);
  const bool done = serves && TakeFromCounter(lane, LaneLoad(&lane->kind) == kLaneSemaphore, value);
  UnlockLane(&lane->read_lock);
  if (!done) return serves ? LaneOutcome::kWait : LaneOutcome::kDeclined;
  return TellOfRoom(lane, waker);
}

// --- waiting ---
// Whether who waits to read finds something, or nothing will come here.
inline bool LaneHasNews(const StreamLane* lane, uint32_t generation) {
  if (!LaneServes(lane, generation)) return true;
  const uint32_t kind = LaneLoad(&lane->kind);
  if (kind == kLaneCounter || kind == kLaneSemaphore) return LaneLoad(&lane->count) != 0;
  return LaneUsed(lane) != 0;
}
// The same of who waits to write, not to a counter.
inline bool LaneHasRoom(const StreamLane* lane, uint32_t generation) {
  return !LaneServes(lane, generation) || LaneWritable(lane);
}

}  // namespace platform
