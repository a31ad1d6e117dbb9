#include "sentry/vfs/byte_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "sentry/base/kernel_memory.h"
#include "sentry/base/time.h"
#include "sentry/fiber/fiber.h"
#include "sentry/lanes/domain.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;
using platform::StreamLane;

// A call of a stub's that has the lock takes microseconds, unless its core is taken away.
constexpr int kLooks = 200;
constexpr int64_t kWaitNs = 50'000;
// After so long its owner is not what we know: from then on the lock counts for nothing.
constexpr int64_t kGiveUpNs = 2'000'000'000;
// What is moved into a lane at most.
constexpr size_t kMostMoved = 64 * 1024;

constexpr int64_t kPauseNs = 1'000'000;  // of a call that makes no progress

}  // namespace

bool VainRounds::Pause() {
  return fiber::SleepUntil(base::MonotonicNs() + kPauseNs) != fiber::WakeReason::kInterrupted;
}

ByteStream::~ByteStream() {
  if (arena_ == nullptr) return;
  // A lane that is locked would serve nobody again.
  if (kept_) {
    OpenLane(false);
    Unlock(&StreamLane::write_lock);
  }
  arena_->Free(index_);
}

size_t ByteStream::limit() const {
  return std::min<uint64_t>(platform::LaneLoad(&lane()->limit), kSize);
}

void ByteStream::set_limit(size_t bytes) {
  __atomic_store_n(&lane()->limit, uint64_t{bytes}, __ATOMIC_SEQ_CST);
  WakeWriters();
}

void ByteStream::WakeWriters() {
  if (!in_lane() || !Writable()) return;
  WakeLaneStubs(&lane()->room_waiters);
  WakeCommonSleepers(*arena_);
}

void ByteStream::OpenLane(bool open) {
  __atomic_store_n(&lane()->open, open ? 1u : 0u, __ATOMIC_SEQ_CST);
  if (open || !in_lane()) return;
  WakeLaneStubs(&lane()->data_waiters);
  WakeLaneStubs(&lane()->room_waiters);
  WakeCommonSleepers(*arena_);
}

void ByteStream::Lock(uint32_t StreamLane::*lock) {
  if (!in_lane() || lawless_.load(std::memory_order_relaxed)) return;
  uint32_t* word = &(lane()->*lock);
  for (int i = 0; i < kLooks; ++i) {
    if (arena_->TryLock(word)) return;
    __builtin_ia32_pause();
  }
  const int64_t give_up = base::MonotonicNs() + kGiveUpNs;
  while (!arena_->TryLock(word)) {
    const int64_t now = base::MonotonicNs();
    if (now >= give_up) {
      OpenLane(false);
      lawless_ = true;
      return;
    }
    fiber::SleepUntil(now + kWaitNs, /*interruptible=*/false);
  }
}

Status ByteStream::Ensure() {
  if (data_ != nullptr) {
    // What is left of the sentry's memory is not for queues to grow.
    if (base::KernelMemory::Full() && Used() > 0) return Error(ENOBUFS);
    return base::Ok();
  }
  // Few are ever filled: it counts as far as it is (Produced).
  auto memory = base::RingMemory::New(kSize, 0);
  if (!memory.ok()) return Error(ENOBUFS);
  memory_ = *std::move(memory);
  data_ = memory_->data();
  return base::Ok();
}

Result<size_t> ByteStream::Fill(IoSource& src, size_t n) {
  const platform::LanePieces p =
      platform::CutLane(written() + held(), platform::LaneLoad(&lane()->base), std::min(n, kSize));
  size_t total = TRY(src.Get(std::span(data_ + p.first, p.first_length)));
  if (total < p.first_length || p.second_length == 0) return total;
  Result<size_t> more = src.Get(std::span(data_, p.second_length));
  return more.ok() ? total + *more : total;
}

void ByteStream::Produced(size_t n, size_t held) {
  const uint64_t end = written() + n;
  if (memory_ != nullptr) {
    memory_->Touch(std::min<uint64_t>(end + held - platform::LaneLoad(&lane()->base), kSize));
  }
  held_.store(held, std::memory_order_relaxed);
  if (n == 0) return;
  __atomic_store_n(&lane()->written, end, __ATOMIC_SEQ_CST);
  if (!in_lane()) return;
  WakeLaneStubs(&lane()->data_waiters);
  WakeCommonSleepers(*arena_);
}

void ByteStream::Drop() {
  ConsumedTo(written());
  if (in_lane()) return;
  Rewind();
  memory_.reset();
  data_ = nullptr;
}

Result<size_t> ByteStream::Copy(uint64_t position, size_t n, IoDest& dst) const {
  if (n == 0) return size_t{0};
  const platform::LanePieces p =
      platform::CutLane(position, platform::LaneLoad(&lane()->base), std::min(n, kSize));
  size_t total = TRY(dst.Put(std::span(data_ + p.first, p.first_length)));
  if (total < p.first_length || p.second_length == 0) return total;
  Result<size_t> more = dst.Put(std::span(data_, p.second_length));
  return more.ok() ? total + *more : total;
}

void ByteStream::ConsumedTo(uint64_t position) {
  __atomic_store_n(&lane()->read, position, __ATOMIC_SEQ_CST);
  WakeWriters();
}

void ByteStream::Rewind() {
  if (in_lane()) return platform::RewindLane(lane(), LaneArena::kSentryOwner);
  const uint64_t at = read();
  if (written() == at && held() == 0) __atomic_store_n(&lane()->base, at, __ATOMIC_SEQ_CST);
}

bool ByteStream::EnterLane(LaneArena& arena, base::RefCounted& holder, LaneUser& user) {
  if (in_lane()) return arena_.get() == &arena;
  const size_t used = Used() + held();
  if (used > kMostMoved) return false;
  auto index = arena.Allocate(holder, user);
  if (!index.ok()) return false;
  StreamLane* to = arena.lane(*index);
  to->base = to->read = read();
  to->written = written();
  to->limit = limit();
  to->kind = own_.kind;
  if (kept_) to->write_lock = LaneArena::kSentryOwner;
  std::byte* ring = arena.ring(*index);
  if (used > 0) {
    const platform::LanePieces p =
        platform::CutLane(read(), platform::LaneLoad(&lane()->base), used);
    memcpy(ring, data_ + p.first, p.first_length);
    memcpy(ring + p.first_length, data_, p.second_length);
  }
  arena_ = base::Ref<LaneArena>(&arena);
  index_ = *index;
  data_ = ring;
  memory_.reset();
  // Who waits has said so in the old place: a lane begins with both wishes.
  lane_.store(to, std::memory_order_seq_cst);
  return true;
}

uint64_t ByteStream::LaneName() const { return lane_open() ? arena_->NameOf(index_) : 0; }

}  // namespace sentry
