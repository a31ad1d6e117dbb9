// System V semaphores (Linux: ipc/sem.c).
#pragma once

#include <sys/sem.h>

#include <list>
#include <span>
#include <vector>

#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/ipc/ipc.h"
#include "sentry/kernel/shared_part.h"

namespace sentry {

inline constexpr int kMaxSemValue = 32767;  // SEMVMX

// What one process (or those that share it by CLONE_SYSVSEM) will give back of one set.
struct SemAdjustments : base::RefCounted {
  explicit SemAdjustments(size_t count) : values(count) {}
  std::vector<int16_t> values;  // guarded by the set's mutex
};

// A set of semaphores. Thread-safe.
class SemSet : public base::RefCounted {
 public:
  // Null if the sandbox's budget for IPC is used up.
  static base::Ref<SemSet> New(IpcPerm perm, int count);

  IpcPerm perm;  // guarded by IpcState::mutex
  int64_t ctime = 0;
  int count() const { return static_cast<int>(values_.size()); }
  int64_t otime() const;

  // semtimedop(2), when permissions have been checked. Waits until all operations can be done at
  // once, and does them. `undo`: with SEM_UNDO in one of them. EAGAIN, EIDRM, EINTR, ERANGE.
  base::Result<uint64_t> Operate(std::span<const sembuf> ops, SemAdjustments* undo,
                                 const base::Ref<Pid>& pid, int64_t deadline_ns);
  // All or none of GETVAL, GETPID, GETNCNT, GETZCNT.
  int Value(int index) const;
  base::Ref<Pid> LastPid(int index) const;
  // Who waits for the value to grow, or to become zero.
  int Waiting(int index, bool for_zero) const;
  std::vector<uint16_t> Values() const;
  // SETVAL, SETALL: what would be given back of these is forgotten. EIDRM.
  base::Status SetValue(int index, int value, const base::Ref<Pid>& pid);
  base::Status SetValues(std::span<const uint16_t> values, const base::Ref<Pid>& pid);
  // IPC_RMID: who waits gets EIDRM.
  void Remove();
  void AddUndo(base::Ref<SemAdjustments> undo);
  // The process that made these adjustments has ended.
  void Undo(SemAdjustments& undo, const base::Ref<Pid>& pid);

 private:
  struct Sem {
    int value = 0;
    base::Ref<Pid> pid;
  };
  struct Pending {
    std::span<const sembuf> ops;
    SemAdjustments* undo;
    base::Ref<Pid> pid;
    const sembuf* blocking = nullptr;  // the first that could not be done
    int outcome = kWaits;              // 0, an errno, or that it still waits
    fiber::WaitQueue queue;
  };
  static constexpr int kWaits = -1;

  SemSet(IpcPerm perm, int count);
  ~SemSet() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  // Does them all, or none: 0, an errno, or kWaits with the operation that stands in the way.
  int TryAll(Pending& pending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WakeThoseWhoCan() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  std::vector<Sem> values_;  // the size is constant
  std::list<Pending*> pending_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<SemAdjustments>> undos_ ABSL_GUARDED_BY(mutex_);
  bool removed_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t otime_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Of one process: gives back at its end.
class SemUndoList : public base::RefCounted {
 public:
  // The adjustments of `set`, made at first use; null if the budget is used up.
  base::Ref<SemAdjustments> For(const base::Ref<SemSet>& set);

 private:
  ~SemUndoList() override;
  struct Entry {
    base::Ref<SemSet> set;
    base::Ref<SemAdjustments> undo;
  };
  absl::Mutex mutex_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

// semget(2).
base::Result<uint64_t> GetSem(const IpcCaller& caller, key_t key, int count, int flags);
// The set, if the caller may do `mode` (S_IRUGO, S_IWUGO; 0: not asked). EINVAL, EACCES.
base::Result<base::Ref<SemSet>> FindSem(const IpcCaller& caller, int id, uint32_t mode);
base::Result<IpcStatResult<semid_ds>> StatSem(const IpcCaller& caller, int id, IpcStat how);
base::Status SetSemPerm(const IpcCaller& caller, int id, const UserIpcPerm& perm);
base::Status RemoveSem(const IpcCaller& caller, int id);
// IPC_INFO, and with `usage` SEM_INFO: the highest place in use.
int SemInfo(const IpcCaller& caller, bool usage, seminfo* info);

}  // namespace sentry
