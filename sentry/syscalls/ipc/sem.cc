// semget, semop, semtimedop, semctl.
#include "sentry/kernel/ipc/sem.h"

#include <algorithm>

#include "sentry/base/time.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/ipc/control.h"

#ifndef SEM_STAT_ANY
#define SEM_STAT_ANY 20
#endif

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

constexpr uint32_t kRead = 0444, kWrite = 0222;

Result<uint64_t> Operate(Task& t, int id, uint64_t addr, uint64_t count, uint64_t timeout) {
  std::optional<int64_t> wait;
  bool timed = timeout != 0;
  if (timed) {
    timespec ts = TRY(UserPtr<timespec>(timeout).CopyIn(t.memory()));
    wait = base::NsFromTimespec(ts);
  }
  const IpcCaller caller = CallerOf(t);
  if (count > static_cast<uint64_t>(caller.state->limits.sem_ops.load())) return Error(E2BIG);
  if (count < 1) return Error(EINVAL);
  std::vector<sembuf> ops(count);
  TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(ops))));
  if (id < 0 || (timed && !wait)) return Error(EINVAL);
  bool alters = false, undoes = false;
  int highest = 0;
  for (const sembuf& op : ops) {
    highest = std::max<int>(highest, op.sem_num);
    alters |= op.sem_op != 0;
    undoes |= (op.sem_flg & SEM_UNDO) != 0;
  }
  base::Ref<SemSet> set = TRY(FindSem(caller, id, 0));
  if (highest >= set->count()) return Error(EFBIG);
  TRY(FindSem(caller, id, alters ? kWrite : kRead));
  base::Ref<SemAdjustments> undo;
  if (undoes) {
    base::Ref<base::RefCounted> list = t.sem_undo->GetOrMake(
        []() -> base::Ref<base::RefCounted> { return base::MakeRef<SemUndoList>(); });
    undo = static_cast<SemUndoList*>(list.get())->For(set);
    if (!undo) return Error(ENOMEM);
  }
  return set->Operate(ops, undo.get(), caller.pid,
                      timed ? base::DeadlineAfter(*wait) : fiber::kNoDeadline);
}

// What concerns one semaphore or all of a set.
Result<uint64_t> Control(Task& t, const IpcCaller& caller, int id, int index, int command,
                         uint64_t arg) {
  const bool sets = command == SETVAL || command == SETALL;
  if (command == SETVAL && static_cast<uint32_t>(arg) > uint32_t{kMaxSemValue}) {
    return Error(ERANGE);
  }
  base::Ref<SemSet> set = TRY(FindSem(caller, id, command == SETVAL ? 0 : sets ? kWrite : kRead));
  if (command == GETALL) {
    std::vector<uint16_t> values = set->Values();
    TRY(t.memory().Write(arg, std::as_bytes(std::span(values))));
    return 0;
  }
  if (command == SETALL) {
    std::vector<uint16_t> values(static_cast<size_t>(set->count()));
    TRY(t.memory().Read(arg, std::as_writable_bytes(std::span(values))));
    for (uint16_t value : values) {
      if (value > kMaxSemValue) return Error(ERANGE);
    }
    TRY(set->SetValues(values, caller.pid));
    return 0;
  }
  if (index < 0 || index >= set->count()) return Error(EINVAL);
  switch (command) {
    case SETVAL:
      TRY(FindSem(caller, id, kWrite));
      TRY(set->SetValue(index, static_cast<int>(arg), caller.pid));
      return 0;
    case GETVAL:
      return static_cast<uint64_t>(set->Value(index));
    case GETPID:
      return static_cast<uint64_t>(ShownPid(set->LastPid(index)));
    case GETNCNT:
      return static_cast<uint64_t>(set->Waiting(index, false));
    default:  // GETZCNT
      return static_cast<uint64_t>(set->Waiting(index, true));
  }
}

}  // namespace

Result<uint64_t> SysSemget(Task& t, const SyscallArgs& a) {
  return GetSem(CallerOf(t), a.Int(0), a.Int(1), a.Int(2));
}

Result<uint64_t> SysSemop(Task& t, const SyscallArgs& a) {
  return Operate(t, a.Int(0), a[1], a.Uint(2), 0);
}

Result<uint64_t> SysSemtimedop(Task& t, const SyscallArgs& a) {
  return Operate(t, a.Int(0), a[1], a.Uint(2), a[3]);
}

Result<uint64_t> SysSemctl(Task& t, const SyscallArgs& a) {
  const int id = a.Int(0), index = a.Int(1), command = a.Int(2);
  if (id < 0) return Error(EINVAL);
  const IpcCaller caller = CallerOf(t);
  switch (command) {
    case IPC_INFO:
    case SEM_INFO:
      return TellInfo<seminfo>(
          t, a[3], [&](seminfo* info) { return SemInfo(caller, command == SEM_INFO, info); });
    case SEM_STAT:
    case SEM_STAT_ANY:
    case IPC_STAT:
      return TellStat<semid_ds>(t, command, SEM_STAT, a[3],
                                [&](IpcStat how) { return StatSem(caller, id, how); });
    case IPC_SET: {
      UserIpcPerm perm = TRY(UserPtr<UserIpcPerm>(a[3]).CopyIn(t.memory()));
      TRY(SetSemPerm(caller, id, perm));
      return 0;
    }
    case IPC_RMID:
      TRY(RemoveSem(caller, id));
      return 0;
    case GETALL:
    case GETVAL:
    case GETPID:
    case GETNCNT:
    case GETZCNT:
    case SETALL:
    case SETVAL:
      return Control(t, caller, id, index, command, a[3]);
    default:
      return Error(EINVAL);
  }
}

}  // namespace sentry
