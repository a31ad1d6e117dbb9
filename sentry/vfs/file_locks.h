// File locks: POSIX record locks, open-file-description locks, flock, and leases (Linux:
// fs/locks.c).
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstdint>
#include <functional>
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

// /proc/sys/fs: leases-enable, and lease-break-time in seconds; 0: for ever.
extern std::atomic<int> g_leases_enable, g_lease_break_time;

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

  // --- leases (leases.cc) ---
  // fcntl(F_SETLEASE) with F_RDLCK or F_WRLCK: `holder` is told, as the owner of its descriptor
  // `fd`, before others get the file. `alone`: nobody has it open in a way that stands against
  // that; asked before and after. EAGAIN, EINVAL.
  base::Status SetLease(FileDescription& holder, int fd, int type,
                        const std::function<bool()>& alone);
  // EAGAIN: it has none.
  base::Status DropLease(const FileDescription& holder);
  // What it will be once it is broken, if it is being; F_UNLCK: there is none.
  int LeaseOf(const FileDescription& holder);
  // Somebody opens the file or changes its size. Who has a lease against that is told, and has time
  // to give it up; it ends then. Waits; EWOULDBLOCK if `nonblock`, ERESTARTSYS.
  base::Status BreakLeases(bool write, bool nonblock);
  bool has_leases() const { return has_leases_.load(std::memory_order_acquire); }

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
  void NoteAny() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  struct Lease {
    FileDescription* holder;  // takes it back before it goes
    int fd, type;
    // It is to go, or to become one for reading, at the latest then (0: whenever).
    bool unlock = false, downgrade = false;
    int64_t unlock_ns = 0, downgrade_ns = 0;
  };
  Lease* FindLease(const FileDescription& holder) ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void ModifyLease(const FileDescription& holder, int type) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends what was to end by now. False if leases are left that stand against the access;
  // *next_ns: when the first of them ends.
  bool LeasesAllow(bool write, int64_t* next_ns);

  mutable absl::Mutex mutex_;                                // leaf
  std::vector<RecordLock> records_ ABSL_GUARDED_BY(mutex_);  // by owner, then start
  std::vector<FlockEntry> flocks_ ABSL_GUARDED_BY(mutex_);
  std::vector<Lease> leases_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> any_{false}, has_leases_{false};
  fiber::WaitQueue queue_;  // EPOLLOUT: something was released
};

// Of an inode that is about to be opened, with O_* `flags`, or truncated.
base::Status BreakLease(Inode& inode, uint32_t flags);

}  // namespace sentry
