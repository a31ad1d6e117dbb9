// File locks: POSIX record locks, open-file-description locks and flock (Linux: fs/locks.c).
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"

namespace sentry {

class FileDescription;
class Inode;

// Who holds a record lock: the descriptor table for POSIX locks, the description for OFD locks.
// Only compared.
struct LockOwner {
  const void* id = nullptr;
  bool ofd = false;
  int pid = 0;  // of POSIX locks, for F_GETLK and /proc/locks: the holder's in the root namespace
  friend bool operator==(const LockOwner& a, const LockOwner& b) { return a.id == b.id; }
};

// A record lock on the bytes [start, end], end inclusive; end = kLockEof: to the end of the file.
struct RecordLock {
  LockOwner owner;
  bool write = false;
  uint64_t start = 0;
  uint64_t end = 0;
};
inline constexpr uint64_t kLockEof = std::numeric_limits<int64_t>::max();

// The locks of one inode. Thread-safe.
class FileLocks {
 public:
  FileLocks() = default;
  ~FileLocks();

  // Takes (or changes the type of) a record lock. EAGAIN if another owner's conflicts and `wait` is
  // false; else parks: EDEADLK if POSIX owners would wait for one another in a circle, ERESTARTSYS
  // if interrupted. ENOLCK beyond the bound on locks of a file.
  base::Status SetRecord(const RecordLock& lock, bool wait);
  void UnlockRecord(const LockOwner& owner, uint64_t start, uint64_t end);
  // The first lock that stands in the way of `lock`. False if it could be taken.
  bool FindConflict(const RecordLock& lock, RecordLock* conflict) const;
  // All record locks of an owner (close(2), exit).
  void ReleaseRecords(const void* owner_id);

  // flock(2) by the open description `holder`; EWOULDBLOCK, ERESTARTSYS.
  base::Status Flock(const void* holder, bool exclusive, bool wait);
  void Unflock(const void* holder);

  // False if there is none at all: nothing to release. Needs no lock.
  bool any() const { return any_.load(std::memory_order_acquire); }

  struct FlockEntry {
    const void* holder;
    bool exclusive;
  };
  std::vector<RecordLock> records() const;
  std::vector<FlockEntry> flocks() const;

 private:
  const RecordLock* ConflictLocked(const RecordLock& lock) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  base::Status TrySetRecord(const RecordLock& lock, LockOwner* blocker);
  base::Status InsertLocked(const RecordLock& lock) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CutLocked(const LockOwner& owner, uint64_t start, uint64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TryFlock(const void* holder, bool exclusive);

  mutable absl::Mutex mutex_;                                // leaf
  std::vector<RecordLock> records_ ABSL_GUARDED_BY(mutex_);  // by owner, then start
  std::vector<FlockEntry> flocks_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> any_{false};
  fiber::WaitQueue queue_;  // EPOLLOUT: something was released
};

}  // namespace sentry
