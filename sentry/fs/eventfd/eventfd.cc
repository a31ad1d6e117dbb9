#include "sentry/fs/eventfd/eventfd.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <cstdio>
#include <limits>

#include "sentry/lanes/domain.h"

namespace sentry {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

int NextId() {
  static std::atomic<int> next{0};
  return next.fetch_add(1);
}

}  // namespace

EventCounter::EventCounter(uint64_t count, bool semaphore) : semaphore_(semaphore) {
  own_.count = count;
}

EventCounter::~EventCounter() {
  if (arena_ != nullptr) arena_->Free(index_);
}

bool EventCounter::TryTake(uint64_t* value) {
  {
    absl::MutexLock lock(&mutex_);
    if (!platform::TakeFromCounter(lane(), semaphore_, value)) return false;
    WakeStubs(&platform::StreamLane::room_waiters);
  }
  queue_.Wake(EPOLLOUT);
  return true;
}

bool EventCounter::TryAdd(uint64_t value) {
  {
    absl::MutexLock lock(&mutex_);
    bool added = platform::AddToCounter(lane(), value);
    if (!added && in_lane()) {
      // Whoever finds it full is told when it is not, also by an edge.
      WishFor(&platform::StreamLane::want_room, platform::kWish);
      added = platform::AddToCounter(lane(), value);
    }
    if (!added) return false;
    WakeStubs(&platform::StreamLane::data_waiters);
  }
  queue_.Wake(EPOLLIN);
  return true;
}

bool EventCounter::Take(uint64_t* value) {
  takers_.fetch_add(1);
  auto take = [&] {
    if (TryTake(value)) return true;
    WatchEdges(platform::kWish);
    return TryTake(value);
  };
  auto reason = fiber::WaitUntil(queue_, EPOLLIN, take, {.interruptible = true},
                                 /*exclusive=*/true);
  takers_.fetch_sub(1);
  return reason == fiber::WakeReason::kWoken;
}

bool EventCounter::Add(uint64_t value) {
  adders_.fetch_add(1);
  auto reason = fiber::WaitUntil(
      queue_, EPOLLOUT, [&] { return TryAdd(value); }, {.interruptible = true},
      /*exclusive=*/true);
  adders_.fetch_sub(1);
  return reason == fiber::WakeReason::kWoken;
}

uint32_t EventCounter::Readiness(platform::LaneWish wish) {
  uint64_t n = count();
  if (n == 0) WatchEdges(wish);
  if (n >= kMax - 1) WishFor(&platform::StreamLane::want_room, wish);
  n = count();
  uint32_t mask = 0;
  if (n > 0) mask |= EPOLLIN;
  if (n == kMax) mask |= EPOLLERR;
  if (n < kMax - 1) mask |= EPOLLOUT;
  return mask;
}

void EventCounter::WishFor(platform::LaneWish platform::StreamLane::*word,
                           platform::LaneWish wish) {
  if (in_lane()) platform::AddLaneWish(&(lane()->*word), wish);
}

void EventCounter::WakeStubs(uint32_t platform::StreamLane::*word) {
  if (!in_lane()) return;
  WakeLaneStubs(&(lane()->*word));
  WakeCommonSleepers(*arena_);
}

void EventCounter::SetPatience(platform::LanePatience patience) {
  absl::MutexLock lock(&mutex_);
  for (uint32_t* end : {&lane()->reader, &lane()->writer}) {
    __atomic_store_n(end, uint32_t{patience}, __ATOMIC_SEQ_CST);
  }
}

void EventCounter::WatchEdges(platform::LaneWish wish) {
  WishFor(&platform::StreamLane::want_data, wish);
}

// One waiter is woken, and the wish was that of all: another one's is left for the next time.
void EventCounter::LaneWritten() {
  queue_.Wake(EPOLLIN);
  if (takers_.load() <= 1) return;
  WatchEdges(platform::kWish);
  if (count() > 0) queue_.Wake(EPOLLIN | kWakeQuietly);
}

void EventCounter::LaneRead() {
  queue_.Wake(EPOLLOUT);
  if (adders_.load() <= 1) return;
  WishFor(&platform::StreamLane::want_room, platform::kWish);
  if (count() < kMax - 1) queue_.Wake(EPOLLOUT | kWakeQuietly);
}

uint64_t EventCounter::EnterLane(LaneArena& arena) {
  absl::MutexLock lock(&mutex_);
  if (without_lanes_) return 0;
  if (arena_ != nullptr) return arena_.get() == &arena ? arena.NameOf(index_) : 0;
  auto index = arena.Allocate(*this, *this);
  if (!index.ok()) return 0;
  platform::StreamLane* to = arena.lane(*index);
  to->kind = semaphore_ ? platform::kLaneSemaphore : platform::kLaneCounter;
  arena_ = base::Ref<LaneArena>(&arena);
  index_ = *index;
  to->count = own_.count;
  lane_.store(to, std::memory_order_seq_cst);
  __atomic_store_n(&to->open, 1u, __ATOMIC_SEQ_CST);
  return arena.NameOf(*index);
}

void EventCounter::LeaveLanes() {
  absl::MutexLock lock(&mutex_);
  without_lanes_ = true;
  if (!in_lane()) return;
  __atomic_store_n(&lane()->open, 0u, __ATOMIC_SEQ_CST);
  WakeStubs(&platform::StreamLane::data_waiters);
  WakeStubs(&platform::StreamLane::room_waiters);
}

EventFile::EventFile(Vfs& vfs, uint64_t count, uint32_t flags)
    : AnonFile(vfs, "[eventfd]", O_RDWR | (flags & EFD_NONBLOCK)),
      counter_(base::MakeRef<EventCounter>(count, (flags & EFD_SEMAPHORE) != 0)),
      id_(NextId()) {
  MayHaveLanes(/*early=*/false);
}

base::Result<size_t> EventFile::Read(IoDest& dst, bool nonblock) {
  uint64_t value = 0;
  if (dst.remaining() < sizeof(value)) return base::Error(EINVAL);
  if (!counter_->TryTake(&value)) {
    if (nonblock) return base::Error(EAGAIN);
    if (!counter_->Take(&value)) return base::Error(base::kERESTARTSYS);
    // A semaphore that is still positive has something for the next reader.
    if (counter_->count() > 0) counter_->queue().Wake(EPOLLIN);
  }
  size_t n = TRY(dst.Put(std::as_bytes(std::span(&value, 1))));
  if (n != sizeof(value)) return base::Error(EFAULT);
  return sizeof(value);
}

base::Result<size_t> EventFile::Write(IoSource& src, bool nonblock) {
  uint64_t value = 0;
  if (src.remaining() != sizeof(value)) return base::Error(EINVAL);
  size_t n = TRY(src.Get(std::as_writable_bytes(std::span(&value, 1))));
  if (n != sizeof(value)) return base::Error(EFAULT);
  if (value == kMax) return base::Error(EINVAL);
  if (!counter_->TryAdd(value)) {
    if (nonblock) return base::Error(EAGAIN);
    if (!counter_->Add(value)) return base::Error(base::kERESTARTSYS);
  }
  return sizeof(value);
}

FileDescription::LaneNames EventFile::EnterLanes(LaneArena& arena) {
  const uint64_t name = counter_->EnterLane(arena);
  return {.in = name, .out = name};
}

std::string EventFile::FdInfo() const {
  char line[128];
  snprintf(line, sizeof(line), "eventfd-count: %16llx\neventfd-id: %d\neventfd-semaphore: %d\n",
           static_cast<unsigned long long>(counter_->count()), id_, counter_->semaphore() ? 1 : 0);
  return line;
}

}  // namespace sentry
