// Futexes with priority inheritance, as far as they can be had: ownership, hand-over, detection of
// deadlocks and owners that die are Linux's (kernel/futex/pi.c, requeue.c); priorities are not
// lent, since the host schedules. The words are the guest's; they are changed by orders to its
// threads.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/task.h"

namespace sentry {

// Which futex a word is: the same for all that map it.
struct FutexKey {
  const void* object = nullptr;  // a MemoryManager, an Inode, or a memory file
  uint64_t offset = 0;
  friend bool operator==(const FutexKey&, const FutexKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const FutexKey& key) {
    return H::combine(std::move(h), key.object, key.offset);
  }
};

// All such futexes. Thread-safe. The operations are for the current task's fiber, and park.
class PiFutexes {
 public:
  static PiFutexes& Get();

  // A futex word as a call names it.
  struct Word {
    uint64_t addr;
    bool is_private;
  };
  // FUTEX_LOCK_PI: until `deadline_ns` of CLOCK_MONOTONIC. EDEADLK, ESRCH, EINVAL, ETIMEDOUT,
  // EFAULT, and EAGAIN if `only_try`.
  base::Result<uint64_t> Lock(Task& t, Word word, int64_t deadline_ns, bool only_try);
  // FUTEX_UNLOCK_PI: EPERM, EINVAL, EFAULT.
  base::Result<uint64_t> Unlock(Task& t, Word word);
  // FUTEX_WAIT_REQUEUE_PI: waits on `word`, and then for the lock `target` that CMP_REQUEUE_PI
  // moves it to.
  base::Result<uint64_t> WaitRequeue(Task& t, Word word, uint32_t value, Word target,
                                     int64_t deadline_ns);
  // FUTEX_CMP_REQUEUE_PI: hands the lock `target` to the first waiter if it is free and moves up to
  // `count` others to it. How many it woke or moved.
  base::Result<uint64_t> Requeue(Task& t, Word word, uint32_t value, Word target, int32_t count);
  // `t` has given up its memory (exit, exec): what it owns goes to those who wait.
  void OwnerExits(Task& t);

 private:
  struct Futex;
  struct Waiter;
  // Both futexes of a requeue, locked in the order of their addresses.
  class LockBoth;

  base::Result<base::Ref<Futex>> Find(Task& t, Word word);
  void Enqueue(Futex& futex, Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GrantFirst(Futex& futex, bool owner_died) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool WouldDeadlock(const Task& waiter, const Task* owner) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status Attach(Task& t, Futex& futex, uint32_t word, Waiter& waiter);
  base::Status CheckState(Futex& futex, uint32_t word, bool* waited);
  base::Result<bool> TryTake(Task& t, uint64_t addr, Futex& futex, Waiter& waiter);
  base::Result<uint64_t> Await(Task& t, uint64_t addr, Futex& futex, Waiter& waiter,
                               int64_t deadline_ns, int interrupted);

  absl::Mutex mutex_;
  absl::flat_hash_map<FutexKey, Futex*> futexes_ ABSL_GUARDED_BY(mutex_);
  // What a task waits for.
  absl::flat_hash_map<const Task*, Futex*> blocked_ ABSL_GUARDED_BY(mutex_);
  // Futexes with waiters, by owner.
  absl::flat_hash_map<const Task*, std::list<Futex*>> owned_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
