#include "sentry/vfs/file_locks.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"

namespace sentry {
namespace {

constexpr size_t kMaxLocksPerFile = 65536;
// Linux: MAX_DEADLK_ITERATIONS.
constexpr int kMaxDeadlockSteps = 10;

// Which POSIX owner waits for which, over all files.
class WaitGraph {
 public:
  // Enters waiter -> blocker, unless that closes a circle: false (Linux: posix_locks_deadlock).
  bool Enter(const void* waiter, const void* blocker) {
    absl::MutexLock l(&mutex_);
    const void* at = blocker;
    for (int i = 0; i < kMaxDeadlockSteps; i++) {
      if (at == waiter) return false;
      auto it = edges_.find(at);
      if (it == edges_.end()) break;
      at = it->second;
    }
    edges_[waiter] = blocker;
    return true;
  }
  void Leave(const void* waiter) {
    absl::MutexLock l(&mutex_);
    edges_.erase(waiter);
  }

 private:
  absl::Mutex mutex_;
  // Threads of one table can wait for several; the last one entered is followed.
  absl::flat_hash_map<const void*, const void*> edges_ ABSL_GUARDED_BY(mutex_);
};

WaitGraph& Graph() {
  static WaitGraph* const graph = new WaitGraph;
  return *graph;
}

bool Overlaps(const RecordLock& a, uint64_t start, uint64_t end) {
  return a.start <= end && start <= a.end;
}

}  // namespace

FileLocks::~FileLocks() = default;

void FileLocks::NoteAny() {
  has_leases_.store(!leases_.empty(), std::memory_order_release);
  any_.store(!records_.empty() || !flocks_.empty() || !leases_.empty(), std::memory_order_release);
}

const RecordLock* FileLocks::ConflictLocked(const RecordLock& lock) const {
  const RecordLock* first = nullptr;
  for (const RecordLock& r : records_) {
    if (r.owner == lock.owner || !(r.write || lock.write)) continue;
    if (!Overlaps(r, lock.start, lock.end)) continue;
    if (first == nullptr || r.start < first->start) first = &r;
  }
  return first;
}

void FileLocks::CutLocked(const LockOwner& owner, uint64_t start, uint64_t end) {
  std::vector<RecordLock> pieces;
  std::erase_if(records_, [&](const RecordLock& r) {
    if (!(r.owner == owner) || !Overlaps(r, start, end)) return false;
    if (r.start < start) {
      pieces.push_back(r);
      pieces.back().end = start - 1;
    }
    if (r.end > end) {
      pieces.push_back(r);
      pieces.back().start = end + 1;
    }
    return true;
  });
  records_.insert(records_.end(), pieces.begin(), pieces.end());
}

base::Status FileLocks::InsertLocked(const RecordLock& lock) {
  if (records_.size() + 2 > kMaxLocksPerFile) return base::Error(ENOLCK);
  CutLocked(lock.owner, lock.start, lock.end);
  RecordLock merged = lock;
  // Joins neighbours of the same type.
  std::erase_if(records_, [&](const RecordLock& r) {
    if (!(r.owner == lock.owner) || r.write != lock.write) return false;
    const bool before = r.end != kLockEof && r.end + 1 == merged.start;
    const bool after = merged.end != kLockEof && merged.end + 1 == r.start;
    if (!before && !after) return false;
    merged.start = std::min(merged.start, r.start);
    merged.end = std::max(merged.end, r.end);
    return true;
  });
  records_.push_back(merged);
  any_.store(true, std::memory_order_release);
  return base::Ok();
}

base::Status FileLocks::TrySetRecord(const RecordLock& lock, LockOwner* blocker) {
  absl::MutexLock l(&mutex_);
  if (const RecordLock* conflict = ConflictLocked(lock)) {
    *blocker = conflict->owner;
    return base::Error(EAGAIN);
  }
  return InsertLocked(lock);
}

base::Status FileLocks::SetRecord(const RecordLock& lock, bool wait) {
  LockOwner blocker;
  base::Status result = TrySetRecord(lock, &blocker);
  if (result.ok()) {
    queue_.WakeAll(EPOLLOUT);  // a write lock turned into a read lock lets others in
    return result;
  }
  if (!wait || result.error().code() != EAGAIN) return result;
  const bool detect = !lock.owner.ofd;
  auto reason =
      fiber::WaitUntil(queue_, EPOLLOUT,
                       [&] {
                         if (detect) Graph().Leave(lock.owner.id);
                         result = TrySetRecord(lock, &blocker);
                         if (result.ok() || result.error().code() != EAGAIN) return true;
                         if (detect && !blocker.ofd && !Graph().Enter(lock.owner.id, blocker.id)) {
                           result = base::Error(EDEADLK);
                           return true;
                         }
                         return false;
                       },
                       {.interruptible = true});
  if (detect) Graph().Leave(lock.owner.id);
  if (reason == fiber::WakeReason::kInterrupted) return base::Error(base::kERESTARTSYS);
  if (result.ok()) queue_.WakeAll(EPOLLOUT);
  return result;
}

void FileLocks::UnlockRecord(const LockOwner& owner, uint64_t start, uint64_t end) {
  {
    absl::MutexLock l(&mutex_);
    CutLocked(owner, start, end);
    NoteAny();
  }
  queue_.WakeAll(EPOLLOUT);
}

bool FileLocks::FindConflict(const RecordLock& lock, RecordLock* conflict) const {
  absl::ReaderMutexLock l(&mutex_);
  const RecordLock* c = ConflictLocked(lock);
  if (c == nullptr) return false;
  *conflict = *c;
  return true;
}

void FileLocks::ReleaseRecords(const void* owner_id) {
  if (!any()) return;
  UnlockRecord(LockOwner{.id = owner_id}, 0, kLockEof);
}

bool FileLocks::TryFlock(const void* holder, bool exclusive) {
  absl::MutexLock l(&mutex_);
  FlockEntry* mine = nullptr;
  bool conflict = false;
  for (FlockEntry& e : flocks_) {
    if (e.holder == holder) {
      mine = &e;
    } else if (e.exclusive || exclusive) {
      conflict = true;
    }
  }
  if (mine != nullptr && mine->exclusive == exclusive) return true;
  if (conflict) {
    // A conversion is no atomic step: the old lock goes first (flock(2)).
    if (mine != nullptr) flocks_.erase(flocks_.begin() + (mine - flocks_.data()));
    return false;
  }
  if (mine != nullptr) {
    mine->exclusive = exclusive;
  } else {
    flocks_.push_back({holder, exclusive});
  }
  any_.store(true, std::memory_order_release);
  return true;
}

base::Status FileLocks::Flock(const void* holder, bool exclusive, bool wait) {
  if (TryFlock(holder, exclusive)) {
    queue_.WakeAll(EPOLLOUT);
    return base::Ok();
  }
  queue_.WakeAll(EPOLLOUT);  // the old lock of a conversion may have gone
  if (!wait) return base::Error(EWOULDBLOCK);
  auto reason = fiber::WaitUntil(queue_, EPOLLOUT, [&] { return TryFlock(holder, exclusive); },
                                 {.interruptible = true});
  if (reason == fiber::WakeReason::kInterrupted) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

void FileLocks::Unflock(const void* holder) {
  {
    absl::MutexLock l(&mutex_);
    if (std::erase_if(flocks_, [&](const FlockEntry& e) { return e.holder == holder; }) == 0)
      return;
    NoteAny();
  }
  queue_.WakeAll(EPOLLOUT);
}

std::vector<RecordLock> FileLocks::records() const {
  absl::ReaderMutexLock l(&mutex_);
  return records_;
}

std::vector<FileLocks::FlockEntry> FileLocks::flocks() const {
  absl::ReaderMutexLock l(&mutex_);
  return flocks_;
}

}  // namespace sentry
