// Sending signals (Linux: kernel/signal.c, send_signal and below).
#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {
// Only the kernel handles these.
constexpr bool KernelOnly(int signo) { return signo == SIGKILL || signo == SIGSTOP; }

// From the kernel, or by a sender that the receiver's namespace does not show.
bool IsForced(const siginfo_t& info) {
  return info.si_code > 0 || (info.si_code == SI_USER && info.si_pid == 0);
}
}  // namespace

bool ThreadGroup::IsIgnoredBy(const Task& task, int signo, bool force) const {
  // A blocked signal is kept: its action may change before it is unblocked.
  SigSet blocked = task.signal_mask() | task.saved_mask_.value_or(0);
  if (blocked & SigBit(signo)) return false;
  // A tracer may want to know of what would be ignored.
  if (task.traced() && signo != SIGKILL) return false;
  if (unkillable_ && handlers_->Get(signo).handler == kSigDfl && !(force && KernelOnly(signo))) {
    return true;
  }
  return handlers_->IsIgnored(signo);
}

bool ThreadGroup::Prepare(int signo, const Task& probe, bool force) {
  if (exiting()) return false;
  if (SigBit(signo) & kStopSignals) {
    shared_pending_.Flush(SigBit(SIGCONT));
    for (const auto& t : tasks_) t->pending_.Flush(SigBit(SIGCONT));
  } else if (signo == SIGCONT) {
    shared_pending_.Flush(kStopSignals);
    for (const auto& t : tasks_) {
      t->pending_.Flush(kStopSignals);
      t->stop_dequeued_ = false;
      t->stop_counted_ = false;
      if (t->traced()) Ptrace::TrapNotify(*t);
    }
    if (stopped_) {
      report_stop_ = false;
      report_continue_ = notify_continue_ = true;
      for (const auto& t : tasks_) t->Kick();
    }
    stopped_ = stop_pending_ = false;
    stop_wait_ = 0;
    continue_queue_.WakeAll(EPOLLIN);
  }
  return !IsIgnoredBy(probe, signo, force);
}

bool ThreadGroup::SendLocked(const siginfo_t& info, Task* target, bool* queue_full) {
  int signo = info.si_signo;
  Task* probe = target ? target : (tasks_.empty() ? nullptr : tasks_.front().get());
  for (const auto& t : tasks_) {
    if (!target || t.get() == target) t->CloseMaskLocked();
  }
  handlers_->Close();
  if (!probe || !Prepare(signo, *probe, IsForced(info))) return false;
  if (signo == SIGKILL) {
    BeginExitLocked(SIGKILL);
    return true;
  }
  PendingSignals& pending = target ? target->pending_ : shared_pending_;
  if (signo < kFirstRealTime && (pending.set() & SigBit(signo))) return false;
  base::Ref<UserCount> user;
  {
    absl::MutexLock l(&probe->mutex_);
    user = probe->user_count_;
  }
  bool override_limit = signo < kFirstRealTime && info.si_code >= 0;
  uint64_t limit = rlimits_.Soft(RLIMIT_SIGPENDING);
  if (!override_limit && user &&
      static_cast<uint64_t>(user->pending_signals.load(std::memory_order_relaxed)) >= limit) {
    if (signo >= kFirstRealTime && info.si_code != SI_USER) {
      if (queue_full) *queue_full = true;
      return false;
    }
    pending.AddBare(signo);
  } else {
    pending.Add(info, std::move(user));
  }
  Complete(signo, target);
  signal_queue_.WakeAll(EPOLLIN);
  return true;
}

// Linux: complete_signal.
void ThreadGroup::Complete(int signo, Task* target) {
  if (!target) {
    for (const auto& t : tasks_) {
      if (t->Wants(signo)) {
        target = t.get();
        break;
      }
    }
  }
  if (!target || !target->Wants(signo)) return;
  // What ends the process without a core file needs none of its threads to take it.
  if (!target->traced() && handlers_->Get(signo).handler == kSigDfl &&
      DefaultAction(signo) == SigDefault::kTerminate) {
    BeginExitLocked(signo);
  } else {
    target->Kick();
  }
}

void ThreadGroup::Retarget(const Task* from, SigSet signals) {
  SigSet left = shared_pending_.set() & signals;
  for (const auto& t : tasks_) {
    if (left == 0) return;
    if (t.get() == from || t->dead_) continue;
    SigSet taken = left & ~t->signal_mask();
    if (taken == 0) continue;
    left &= ~taken;
    t->Kick();
  }
}

bool ThreadGroup::SendSignal(const siginfo_t& info, bool* queue_full) {
  absl::MutexLock l(&signal_mutex_);
  return SendLocked(info, nullptr, queue_full);
}

void ThreadGroup::SendTimerSignal(const siginfo_t& info, Task* thread) {
  absl::MutexLock l(&signal_mutex_);
  if (thread && thread->dead_) return;
  PendingSignals& pending = thread ? thread->pending_ : shared_pending_;
  if (pending.AddOverrun(info.si_timerid, info.si_overrun + 1)) return;
  SendLocked(info, thread, nullptr);
}

void ThreadGroup::FlushIgnored(int signo) {
  absl::MutexLock l(&signal_mutex_);
  shared_pending_.Flush(SigBit(signo));
  for (const auto& t : tasks_) t->pending_.Flush(SigBit(signo));
}

void ThreadGroup::BeginExit(int status) {
  absl::MutexLock l(&signal_mutex_);
  BeginExitLocked(status);
}

void ThreadGroup::BeginExitLocked(int status) {
  if (exiting()) return;
  exit_status_.store(status, std::memory_order_release);
  exiting_.store(true, std::memory_order_release);
  stop_pending_ = stopped_ = false;
  stop_wait_ = 0;
  for (const auto& t : tasks_) {
    t->stop_counted_ = false;
    t->KickFatal();
  }
  continue_queue_.WakeAll(EPOLLIN);
}

bool Task::SendSignal(const siginfo_t& info, bool* queue_full) {
  absl::MutexLock l(&group_->signal_mutex());
  if (dead_) return false;
  return group_->SendLocked(info, this, queue_full);
}

void Task::ForceSignal(const siginfo_t& info) {
  absl::MutexLock l(&group_->signal_mutex());
  CloseMaskLocked();
  group_->handlers_->Close();
  int signo = info.si_signo;
  SigAction action = group_->handlers_->Get(signo);
  bool blocked = (signal_mask() & SigBit(signo)) != 0;
  if (blocked || action.handler == kSigIgn) {
    action.handler = kSigDfl;
    group_->handlers_->Set(signo, action);
    if (blocked) blocked_.store(signal_mask() & ~SigBit(signo), std::memory_order_relaxed);
  }
  // A fault kills even the init of a namespace.
  if (action.handler == kSigDfl) forced_ |= SigBit(signo);
  pending_.Add(info, nullptr);
  Kick();
}

bool Task::Wants(int signo) const { return !dead_ && !(signal_mask() & SigBit(signo)); }

void Task::Kick() {
  signal_pending_.store(true, std::memory_order_seq_cst);
  if (fiber_) fiber_->Interrupt();
  if (in_guest_.load(std::memory_order_seq_cst)) context_->Interrupt();
}

void Task::KickFatal() {
  Kick();
  // Ends killable waits, whose predicates look at FatalPending.
  if (fiber_) fiber_->Unpark();
  if (in_guest_.load(std::memory_order_seq_cst)) kernel_->stub_watch_.Begin();
}

void Task::RecalcPending() {
  group_->signal_mutex().AssertHeld();
  SigSet ready = (pending_.set() | group_->shared_pending_.set()) & ~signal_mask();
  bool pending = ready != 0 || stop_counted_ || group_->notify_continue_ || FatalPending() ||
                 Ptrace::TrapPending(*this);
  signal_pending_.store(pending, std::memory_order_seq_cst);
  if (!fiber_) return;
  if (pending) {
    fiber_->Interrupt();
  } else {
    fiber_->ClearInterrupt();
  }
}

void Task::OpenSignalActions() {
  absl::MutexLock l(&group_->signal_mutex());
  bool alone = group_->live_threads_.load(std::memory_order_acquire) == 1 &&
               group_->tasks_.size() == 1 && group_->handlers_->ref_count() == 1;
  if (!alone || dead_) return group_->handlers_->StayClosed();
  if ((pending_.set() | group_->shared_pending_.set()) != 0) return;  // later
  group_->handlers_->Open(*context_);
}

// While the mask is open, the platform knows the stack.
void Task::SetAltStack(const AltStack& stack) {
  absl::MutexLock l(&group_->signal_mutex());
  CloseMaskLocked();
  alt_stack_ = stack;
}

void Task::OpenMaskLocked() {
  group_->signal_mutex().AssertHeld();
  if ((pending_.set() | group_->shared_pending_.set()) != 0 || dead_) return;
  context_->OpenSignalMask(signal_mask(), {alt_stack_.sp, alt_stack_.size, alt_stack_.flags});
  mask_open_.store(true, std::memory_order_relaxed);
}

// Comes before a signal is made pending and before another thread looks at the mask.
void Task::CloseMaskLocked() {
  group_->signal_mutex().AssertHeld();
  if (!mask_open_.load(std::memory_order_relaxed)) return;
  mask_open_.store(false, std::memory_order_relaxed);
  blocked_.store(context_->CloseSignalMask() & ~kUnblockable, std::memory_order_relaxed);
}

// After a trap.
void Task::TakeMask() {
  if (!mask_open_.load(std::memory_order_relaxed) || !context_->SignalMaskChanged()) return;
  absl::MutexLock l(&group_->signal_mutex());
  CloseMaskLocked();
}

SigSet Task::CurrentSignalMask() const {
  absl::MutexLock l(&group_->signal_mutex());
  return mask_open_.load(std::memory_order_relaxed) ? context_->SignalMask() : signal_mask();
}

void Task::SetMaskLocked(SigSet mask) {
  group_->signal_mutex().AssertHeld();
  CloseMaskLocked();
  mask &= ~kUnblockable;
  SigSet newly_blocked = mask & ~signal_mask();
  blocked_.store(mask, std::memory_order_relaxed);
  if (newly_blocked != 0) group_->Retarget(this, newly_blocked);
  RecalcPending();
}

SigSet Task::SetSignalMask(SigSet mask) {
  SigSet old = signal_mask();
  absl::MutexLock l(&group_->signal_mutex());
  SetMaskLocked(mask);
  return old;
}

void Task::SetTracedMask(SigSet mask) {
  absl::MutexLock l(&group_->signal_mutex());
  if (saved_mask_) {
    saved_mask_ = mask & ~kUnblockable;
  } else {
    SetMaskLocked(mask);
  }
}

std::vector<siginfo_t> Task::PeekSignals(bool shared, uint64_t offset, size_t count) const {
  absl::MutexLock l(&group_->signal_mutex());
  return (shared ? group_->shared_pending_ : pending_).Peek(offset, count);
}

void Task::SetTemporaryMask(SigSet mask) {
  absl::MutexLock l(&group_->signal_mutex());
  if (!saved_mask_) saved_mask_ = signal_mask();
  SetMaskLocked(mask);
}

std::optional<siginfo_t> Task::DequeueSignal(SigSet set) {
  std::optional<siginfo_t> info;
  {
    absl::MutexLock l(&group_->signal_mutex());
    info = pending_.Take(set & ~kUnblockable);
    if (!info) info = group_->shared_pending_.Take(set & ~kUnblockable);
    if (info) RecalcPending();
  }
  if (info) NoteTaken(*info);
  return info;
}

void Task::NoteTaken(const siginfo_t& info) {
  if (info.si_code == SI_TIMER) group_->timers_->Delivered(info.si_timerid, info.si_overrun);
}

SigSet Task::PendingSignalSet() const {
  absl::MutexLock l(&group_->signal_mutex());
  return pending_.set() | group_->shared_pending_.set();
}
SigSet Task::OwnPendingSet() const {
  absl::MutexLock l(&group_->signal_mutex());
  return pending_.set();
}
SigSet Task::SharedPendingSet() const {
  absl::MutexLock l(&group_->signal_mutex());
  return group_->shared_pending_.set();
}

base::Status Task::CheckKill(Task& target, int signo) const {
  if (!SigValid(signo) && signo != 0) return base::Error(EINVAL);
  if (&target.thread_group() == group_.get()) return base::Ok();
  base::Ref<const Credentials> theirs = target.credentials();
  if (creds_->euid == theirs->suid || creds_->euid == theirs->ruid ||
      creds_->ruid == theirs->suid || creds_->ruid == theirs->ruid ||
      creds_->HasCapIn(CAP_KILL, *theirs->user_ns)) {
    return base::Ok();
  }
  if (signo == SIGCONT && group_->session() == target.thread_group().session()) return base::Ok();
  return base::Error(EPERM);
}

}  // namespace sentry
