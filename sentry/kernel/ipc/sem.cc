#include "sentry/kernel/ipc/sem.h"

#include <fmt/format.h>

#include <algorithm>

#include "sentry/base/time.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr int kMaxAdjustment = 32767;  // SEMAEM

uint64_t BytesOf(size_t count) { return 256 + count * 24; }
uint64_t UndoBytes(size_t count) { return 128 + count * sizeof(int16_t); }

}  // namespace

// --- a set ---

SemSet::SemSet(IpcPerm perm, int count) : perm(perm), values_(static_cast<size_t>(count)) {}

SemSet::~SemSet() { UnchargeIpcMemory(BytesOf(values_.size())); }

base::Ref<SemSet> SemSet::New(IpcPerm perm, int count) {
  if (!ChargeIpcMemory(BytesOf(static_cast<size_t>(count)))) return nullptr;
  return base::MakeRef<SemSet>(perm, count);
}

int64_t SemSet::otime() const {
  absl::MutexLock l(&mutex_);
  return otime_;
}

// Linux: perform_atomic_semop.
int SemSet::TryAll(Pending& pending) {
  int outcome = 0;
  size_t done = 0;
  for (; done < pending.ops.size(); ++done) {
    const sembuf& op = pending.ops[done];
    int& value = values_[op.sem_num].value;
    int next = value + op.sem_op;
    if ((op.sem_op == 0 && value != 0) || next < 0) {
      pending.blocking = &op;
      outcome = (op.sem_flg & IPC_NOWAIT) ? EAGAIN : kWaits;
      break;
    }
    if (next > kMaxSemValue) {
      outcome = ERANGE;
      break;
    }
    if (op.sem_flg & SEM_UNDO) {
      int adjustment = pending.undo->values[op.sem_num] - op.sem_op;
      if (adjustment < -kMaxAdjustment - 1 || adjustment > kMaxAdjustment) {
        outcome = ERANGE;
        break;
      }
      pending.undo->values[op.sem_num] = static_cast<int16_t>(adjustment);
    }
    value = next;
  }
  if (outcome == 0) {
    for (const sembuf& op : pending.ops) values_[op.sem_num].pid = pending.pid;
    return 0;
  }
  while (done-- > 0) {
    const sembuf& op = pending.ops[done];
    values_[op.sem_num].value -= op.sem_op;
    if (op.sem_flg & SEM_UNDO) {
      int16_t& adjustment = pending.undo->values[op.sem_num];
      adjustment = static_cast<int16_t>(adjustment + op.sem_op);
    }
  }
  return outcome;
}

// In the order in which they came; what one does may let an earlier one go on.
void SemSet::WakeThoseWhoCan() {
  bool again = true;
  while (again) {
    again = false;
    for (auto it = pending_.begin(); it != pending_.end();) {
      Pending& p = **it;
      int outcome = TryAll(p);
      if (outcome == kWaits) {
        ++it;
        continue;
      }
      it = pending_.erase(it);
      p.outcome = outcome;
      if (outcome == 0) {
        otime_ = IpcNow();
        again = std::any_of(p.ops.begin(), p.ops.end(),
                            [](const sembuf& op) { return op.sem_op != 0; });
      }
      p.queue.WakeAll(EPOLLIN);
      if (again) break;
    }
  }
}

Result<uint64_t> SemSet::Operate(std::span<const sembuf> ops, SemAdjustments* undo,
                                 const base::Ref<Pid>& pid, int64_t deadline_ns) {
  Pending pending{ops, undo, pid};
  {
    absl::MutexLock l(&mutex_);
    if (removed_) return Error(EIDRM);
    int outcome = TryAll(pending);
    if (outcome == 0) {
      otime_ = IpcNow();
      WakeThoseWhoCan();
      return uint64_t{0};
    }
    if (outcome != kWaits) return Error(outcome);
    pending_.push_back(&pending);
  }
  auto reason = fiber::WaitUntil(pending.queue, EPOLLIN,
                                 [&] {
                                   absl::MutexLock l(&mutex_);
                                   return pending.outcome != kWaits;
                                 },
                                 {.interruptible = true, .deadline_ns = deadline_ns});
  absl::MutexLock l(&mutex_);
  if (pending.outcome == kWaits) {
    pending_.remove(&pending);
    // Never restarted (Linux: semop is not, whatever SA_RESTART says).
    return Error(reason == fiber::WakeReason::kTimeout ? EAGAIN : EINTR);
  }
  if (pending.outcome != 0) return Error(pending.outcome);
  return uint64_t{0};
}

int SemSet::Value(int index) const {
  absl::MutexLock l(&mutex_);
  return values_[static_cast<size_t>(index)].value;
}

base::Ref<Pid> SemSet::LastPid(int index) const {
  absl::MutexLock l(&mutex_);
  return values_[static_cast<size_t>(index)].pid;
}

int SemSet::Waiting(int index, bool for_zero) const {
  absl::MutexLock l(&mutex_);
  return static_cast<int>(std::count_if(pending_.begin(), pending_.end(), [&](const Pending* p) {
    return p->blocking->sem_num == index && (p->blocking->sem_op == 0) == for_zero;
  }));
}

std::vector<uint16_t> SemSet::Values() const {
  absl::MutexLock l(&mutex_);
  std::vector<uint16_t> values;
  for (const Sem& sem : values_) values.push_back(static_cast<uint16_t>(sem.value));
  return values;
}

Status SemSet::SetValue(int index, int value, const base::Ref<Pid>& pid) {
  const auto at = static_cast<size_t>(index);
  absl::MutexLock l(&mutex_);
  if (removed_) return Error(EIDRM);
  for (auto& undo : undos_) undo->values[at] = 0;
  values_[at] = {value, pid};
  WakeThoseWhoCan();
  return base::Ok();
}

Status SemSet::SetValues(std::span<const uint16_t> values, const base::Ref<Pid>& pid) {
  absl::MutexLock l(&mutex_);
  if (removed_) return Error(EIDRM);
  for (size_t i = 0; i < values_.size(); ++i) values_[i] = {values[i], pid};
  for (auto& undo : undos_) std::fill(undo->values.begin(), undo->values.end(), 0);
  WakeThoseWhoCan();
  return base::Ok();
}

void SemSet::Remove() {
  absl::MutexLock l(&mutex_);
  removed_ = true;
  for (Pending* p : std::exchange(pending_, {})) {
    p->outcome = EIDRM;
    p->queue.WakeAll(EPOLLIN);
  }
  undos_.clear();
}

void SemSet::AddUndo(base::Ref<SemAdjustments> undo) {
  absl::MutexLock l(&mutex_);
  if (!removed_) undos_.push_back(std::move(undo));
}

void SemSet::Undo(SemAdjustments& undo, const base::Ref<Pid>& pid) {
  absl::MutexLock l(&mutex_);
  std::erase_if(undos_, [&](const auto& u) { return u.get() == &undo; });
  if (removed_) return;
  for (size_t i = 0; i < values_.size(); ++i) {
    if (undo.values[i] == 0) continue;
    values_[i].value = std::clamp(values_[i].value + undo.values[i], 0, kMaxSemValue);
    values_[i].pid = pid;
  }
  WakeThoseWhoCan();
}

// --- a process's list ---

base::Ref<SemAdjustments> SemUndoList::For(const base::Ref<SemSet>& set) {
  absl::MutexLock l(&mutex_);
  for (Entry& e : entries_) {
    if (e.set == set) return e.undo;
  }
  const auto count = static_cast<size_t>(set->count());
  if (!ChargeIpcMemory(UndoBytes(count))) return nullptr;
  auto undo = base::MakeRef<SemAdjustments>(count);
  set->AddUndo(undo);
  entries_.push_back({set, undo});
  return undo;
}

// Runs as the last task that shares the list exits, or leaves it.
SemUndoList::~SemUndoList() {
  Task* current = Task::Current();
  base::Ref<Pid> pid = current != nullptr ? current->thread_group().pid() : nullptr;
  absl::MutexLock l(&mutex_);
  for (Entry& e : entries_) {
    e.set->Undo(*e.undo, pid);
    UnchargeIpcMemory(UndoBytes(e.undo->values.size()));
  }
}

// --- the calls ---

Result<uint64_t> GetSem(const IpcCaller& caller, key_t key, int count, int flags) {
  IpcState& state = *caller.state;
  if (count < 0 || count > state.limits.sem_per_set) return Error(EINVAL);
  absl::MutexLock l(&state.mutex);
  return GetIpcObject(
      caller, state.sem, key, flags,
      [count](const SemSet& found) -> Status {
        return count > found.count() ? Status(Error(EINVAL)) : base::Ok();
      },
      [&]() -> Result<uint64_t> {
        state.mutex.AssertHeld();
        if (count == 0) return Error(EINVAL);
        if (state.sem_count + count > state.limits.sem_total) return Error(ENOSPC);
        base::Ref<SemSet> set = SemSet::New(caller.NewPerm(key, flags), count);
        if (!set) return Error(ENOMEM);
        set->ctime = IpcNow();
        TRY(state.sem.Add(set, state.limits.sem_sets));
        state.sem_count += count;
        return static_cast<uint64_t>(set->perm.id);
      });
}

Result<base::Ref<SemSet>> FindSem(const IpcCaller& caller, int id, uint32_t mode) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<SemSet> set = TRY(caller.state->sem.Find(id));
  if (mode != 0) TRY(caller.MayAccess(set->perm, mode));
  return set;
}

namespace {
semid_ds Show(const SemSet& set, const UserNamespace& ns) {
  semid_ds ds{};
  UserIpcPerm perm = ShowIpcPerm(set.perm, ns);
  static_assert(sizeof(perm) == sizeof(ds.sem_perm));
  memcpy(&ds.sem_perm, &perm, sizeof(perm));
  ds.sem_otime = set.otime();
  ds.sem_ctime = set.ctime;
  ds.sem_nsems = static_cast<uint64_t>(set.count());
  return ds;
}
}  // namespace

Result<IpcStatResult<semid_ds>> StatSem(const IpcCaller& caller, int id, IpcStat how) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<SemSet> found = TRY(FindForStat(caller, caller.state->sem, id, how));
  return IpcStatResult<semid_ds>{how == IpcStat::kById ? 0 : static_cast<uint64_t>(found->perm.id),
                                 Show(*found, *caller.creds.user_ns)};
}

Status SetSemPerm(const IpcCaller& caller, int id, const UserIpcPerm& perm) {
  absl::MutexLock l(&caller.state->mutex);
  base::Ref<SemSet> set = TRY(caller.state->sem.Find(id));
  TRY(caller.MayChange(set->perm));
  TRY(SetIpcPerm(perm, *caller.creds.user_ns, &set->perm));
  set->ctime = IpcNow();
  return base::Ok();
}

Status RemoveSem(const IpcCaller& caller, int id) {
  base::Ref<SemSet> set;
  absl::MutexLock l(&caller.state->mutex);
  set = TRY(caller.state->sem.Find(id));
  TRY(caller.MayChange(set->perm));
  caller.state->sem.Remove(*set);
  caller.state->sem_count -= set->count();
  set->Remove();
  return base::Ok();
}

int SemInfo(const IpcCaller& caller, bool usage, seminfo* info) {
  const IpcLimits& limits = caller.state->limits;
  *info = {};
  info->semmni = limits.sem_sets;
  info->semmns = limits.sem_total;
  info->semmsl = limits.sem_per_set;
  info->semopm = limits.sem_ops;
  info->semvmx = kMaxSemValue;
  info->semmnu = limits.sem_total;
  info->semmap = limits.sem_total;
  info->semume = limits.sem_ops;
  info->semusz = 20;  // sizeof(struct sem_undo) of old
  info->semaem = kMaxAdjustment;
  absl::MutexLock l(&caller.state->mutex);
  if (usage) {
    info->semusz = caller.state->sem.count();
    info->semaem = static_cast<int>(caller.state->sem_count);
  }
  return caller.state->sem.max_index();
}

std::string SemListing(IpcNamespace& ns) {
  std::string s =
      "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n";
  base::Ref<IpcState> state = IpcState::Of(ns);
  Task* reader = Task::Current();
  if (reader == nullptr) return s;
  absl::MutexLock l(&state->mutex);
  for (const auto& [index, set] : state->sem.objects()) {
    UserIpcPerm perm = ShowIpcPerm(set->perm, reader->user_ns());
    s += fmt::format("{:10} {:10}  {:4o} {:10} {:5} {:5} {:5} {:5} {:10} {:10}\n", perm.key,
                     set->perm.id, perm.mode, set->count(), perm.uid, perm.gid, perm.cuid,
                     perm.cgid, set->otime(), set->ctime);
  }
  return s;
}

}  // namespace sentry
