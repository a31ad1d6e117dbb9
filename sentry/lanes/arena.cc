#include "sentry/lanes/arena.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <memory>
#include <new>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "sentry/base/kernel_memory.h"
#include "sentry/lanes/domain.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using platform::kLanes;
using platform::StreamLane;

constexpr size_t kMaxDomains = 16;
// What a lane counts for in the sentry's memory. Its ring has more pages only while a reader is far
// behind, which the container's own limit counts.
constexpr size_t kCharge = 64 * 1024;

// Unique in the sandbox, so that a name that is read half old, half new matches nothing.
std::atomic<uint32_t> g_generation{1}, g_owner{1};

uint32_t Next(std::atomic<uint32_t>& counter) {
  uint32_t n;
  do {
    n = counter.fetch_add(1, std::memory_order_relaxed);
  } while (n == 0 || n == LaneArena::kSentryOwner);
  return n;
}

long WakeAll(uint32_t* word) {
  return syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

struct Domains {
  absl::Mutex mutex;
  absl::flat_hash_map<std::string, base::Ref<LaneArena>> arenas ABSL_GUARDED_BY(mutex);
};

Domains& TheDomains() {
  static Domains* domains = new Domains;
  return *domains;
}

struct Owners {
  absl::Mutex mutex;
  absl::flat_hash_set<uint32_t> numbers ABSL_GUARDED_BY(mutex);
};

Owners& TheOwners() {
  static Owners* owners = new Owners;
  return *owners;
}

}  // namespace

// As TakeLaneWaiters, but the sentry, which may sleep there itself, is still to be told by others.
bool WakeLaneStubs(uint32_t* word) {
  constexpr uint32_t kStubs = platform::kStubLooks | platform::kStubSleeps;
  uint32_t now = platform::LaneLoad(word);
  for (int i = 0; i < platform::kLaneWordTries; ++i) {
    if ((now & kStubs) == 0) return false;
    const uint32_t next = ((now | platform::kLaneWaiters) + 1) | (now & platform::kSentrySleeps);
    if (__atomic_compare_exchange_n(word, &now, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      return (now & platform::kStubSleeps) != 0 && WakeAll(word) > 0;
    }
  }
  return WakeAll(word) > 0;
}

LaneOwner::LaneOwner() : number_(Next(g_owner)) {
  absl::MutexLock lock(&TheOwners().mutex);
  TheOwners().numbers.insert(number_);
}

void LaneOwner::Retire() {
  absl::MutexLock lock(&TheOwners().mutex);
  TheOwners().numbers.erase(number_);
}

bool LaneOwner::Lives(uint32_t number) {
  absl::MutexLock lock(&TheOwners().mutex);
  return TheOwners().numbers.contains(number);
}

Result<base::Ref<LaneArena>> LaneArena::OfDomain(const std::string& name) {
  Domains& domains = TheDomains();
  absl::MutexLock lock(&domains.mutex);
  auto it = domains.arenas.find(name);
  if (it != domains.arenas.end()) return it->second;
  // Those of containers that have ended, or of users that have left.
  absl::erase_if(domains.arenas, [](const auto& entry) { return entry.second->ref_count() == 1; });
  if (domains.arenas.size() >= kMaxDomains) return Error(ENOSPC);
  auto memory = TRY(base::RingMemory::New(platform::kLaneArenaSize, 0));
  auto arena = base::MakeRef<LaneArena>(std::move(memory));
  domains.arenas[name] = arena;
  return arena;
}

std::vector<std::pair<std::string, base::Ref<LaneArena>>> LaneArenas() {
  Domains& domains = TheDomains();
  absl::MutexLock lock(&domains.mutex);
  return {domains.arenas.begin(), domains.arenas.end()};
}

std::string DomainOf(const LaneArena& arena) {
  Domains& domains = TheDomains();
  absl::MutexLock lock(&domains.mutex);
  for (const auto& [name, there] : domains.arenas) {
    if (there.get() == &arena) return name;
  }
  return "";
}

StreamLane* LaneArena::lane(uint32_t index) const {
  return reinterpret_cast<StreamLane*>(memory_->data() + index * platform::kLaneStride);
}

std::byte* LaneArena::ring(uint32_t index) const {
  return memory_->data() + index * platform::kLaneStride + platform::kLaneHeaderSize;
}

uint64_t LaneArena::NameOf(uint32_t index) const {
  absl::MutexLock lock(&mutex_);
  return platform::LaneName(index, uses_[index].generation);
}

uint32_t LaneArena::NextUnused(uint32_t index) {
  absl::MutexLock lock(&mutex_);
  const bool all = index <= free_hint_;
  for (index = std::max(index, free_hint_); index < kLanes; ++index) {
    if (uses_[index].user == nullptr) break;
  }
  if (all) free_hint_ = index;
  return index;
}

Result<uint32_t> LaneArena::Allocate(base::RefCounted& holder, LaneUser& user) {
  if (base::KernelMemory::Full() || used_.load(std::memory_order_relaxed) == kLanes) {
    return Error(ENOSPC);
  }
  for (uint32_t i = NextUnused(0); i < kLanes; i = NextUnused(i + 1)) {
    // Who was at work when it was last given up may still be.
    StreamLane* l = lane(i);
    if (!TryLock(&l->write_lock)) continue;
    if (TryLock(&l->read_lock)) {
      absl::MutexLock lock(&mutex_);
      if (uses_[i].user == nullptr) {
        uses_[i] = {&holder, &user, Next(g_generation)};
        used_.fetch_add(1, std::memory_order_relaxed);
        // Who has slept here goes on to count from where the words are.
        const uint32_t data = platform::LaneLoad(&l->data_waiters);
        const uint32_t room = platform::LaneLoad(&l->room_waiters);
        *l = StreamLane{};
        l->data_waiters = data;
        l->room_waiters = room;
        l->write_lock = l->read_lock = kSentryOwner;
        l->want_data = l->want_room = 1;
        __atomic_store_n(&l->generation, uses_[i].generation, __ATOMIC_SEQ_CST);
        platform::UnlockLane(&l->read_lock);
        platform::UnlockLane(&l->write_lock);
        base::KernelMemory::Charge(kCharge);
        return i;
      }
      platform::UnlockLane(&l->read_lock);
    }
    platform::UnlockLane(&l->write_lock);
  }
  return Error(ENOSPC);
}

void LaneArena::Free(uint32_t index) {
  StreamLane* l = lane(index);
  __atomic_store_n(&l->open, 0u, __ATOMIC_SEQ_CST);
  __atomic_store_n(&l->generation, 0u, __ATOMIC_SEQ_CST);
  WakeLaneStubs(&l->data_waiters);
  WakeLaneStubs(&l->room_waiters);
  absl::MutexLock lock(&mutex_);
  uses_[index] = Use{};
  used_.fetch_sub(1, std::memory_order_relaxed);
  free_hint_ = std::min(free_hint_, index);
  base::KernelMemory::Uncharge(kCharge);
}

int LaneArena::AllocateSleeper() {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < sleepers_.size() - platform::kCommonLaneSleepers; ++i) {
    if (sleepers_[i]) continue;
    sleepers_[i] = true;
    return static_cast<int>(i);
  }
  return -1;
}

void LaneArena::FreeSleeper(int sleeper) {
  SetSleeping(sleeper, false);
  WakeSleeper(sleeper);
  absl::MutexLock lock(&mutex_);
  sleepers_[static_cast<size_t>(sleeper)] = false;
}

void LaneArena::SetSleeping(int sleeper, bool sleeps) {
  uint32_t* word = SleeperWord(sleeper);
  if (sleeps) {
    platform::AddLaneWaiter(word, platform::kSentrySleeps);
  } else {
    __atomic_and_fetch(word, ~uint32_t{platform::kSentrySleeps}, __ATOMIC_SEQ_CST);
  }
}

LaneUser* LaneArena::Hold(uint32_t index, base::Ref<base::RefCounted>* holder) {
  const Use& use = uses_[index];
  if (use.user == nullptr || !use.holder->TryIncRef()) return nullptr;
  *holder = base::Ref<base::RefCounted>::Adopt(use.holder);
  return use.user;
}

void LaneArena::Tell(uint64_t name, bool wrote) {
  const uint32_t index = platform::LaneIndex(name);
  if (index >= kLanes) return;
  WakeCommonSleepers(*this);
  base::Ref<base::RefCounted> holder;
  LaneUser* user;
  {
    absl::MutexLock lock(&mutex_);
    if (uses_[index].generation != platform::LaneGeneration(name)) return;
    user = Hold(index, &holder);
  }
  if (user == nullptr) return;
  wrote ? user->LaneWritten() : user->LaneRead();
}

void LaneArena::TellAll() {
  for (uint32_t i = 0; i < kLanes; ++i) {
    base::Ref<base::RefCounted> holder;
    LaneUser* user;
    {
      absl::MutexLock lock(&mutex_);
      user = Hold(i, &holder);
    }
    if (user == nullptr) continue;
    // The bits may have been taken already.
    WakeAll(&lane(i)->data_waiters);
    WakeAll(&lane(i)->room_waiters);
    user->LaneWritten();
    user->LaneRead();
  }
  for (size_t i = 0; i < platform::kLaneSleepers; ++i) {
    {
      absl::MutexLock lock(&mutex_);
      if (!sleepers_[i]) continue;
    }
    WakeAll(SleeperWord(static_cast<int>(i)));
  }
  WakeCommonSleepers(*this);
}

bool LaneArena::TryLock(uint32_t* lock) {
  if (platform::TryLockLane(lock, kSentryOwner)) return true;
  uint32_t owner = platform::LaneLoad(lock);
  if (owner == 0 || owner == kSentryOwner || LaneOwner::Lives(owner)) return false;
  return __atomic_compare_exchange_n(lock, &owner, kSentryOwner, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

}  // namespace sentry
