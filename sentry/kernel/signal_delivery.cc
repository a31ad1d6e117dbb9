// Taking signals and acting on them (Linux: get_signal, do_signal_stop, arch_do_signal_or_restart).
#include <sys/wait.h>

#include <utility>

#include "sentry/base/log.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {
constexpr uint64_t kNrRestartSyscall = 219;
}

void Task::PrepareRestart(bool handler, uint64_t sa_flags) {
  int code = std::exchange(restart_code_, 0);
  if (code == 0) return;
  bool restart = true;
  if (handler) {
    restart =
        code == base::kERESTARTNOINTR || (code == base::kERESTARTSYS && (sa_flags & SA_RESTART));
  }
  if (!restart) return;  // rax is -EINTR already
  platform::Regs& r = regs();
  r.rax = code == base::kERESTART_RESTARTBLOCK ? kNrRestartSyscall : r.orig_rax;
  r.rip -= 2;  // the length of `syscall`
  r.orig_rax = ~uint64_t{0};
}

SigAction Task::TakeAction(int signo) {
  SigAction action = group_->handlers_->Get(signo);
  if (action.handler > kSigIgn && (action.flags & SA_RESETHAND)) {
    SigAction reset = action;
    reset.handler = kSigDfl;
    group_->handlers_->Set(signo, reset);
  }
  return action;
}

void Task::DeliverSignals() {
  FlushQueuedOrders();
  while (true) {
    if (FatalPending()) {
      exit_pending_ = true;
      exit_status_ = group_->exiting() ? group_->exit_status() : 0;
      return;
    }
    bool notify = false, stop = false, trap = false;
    std::optional<siginfo_t> info;
    SigAction action;
    bool forced = false;
    {
      absl::MutexLock l(&group_->signal_mutex());
      if (group_->notify_continue_) {
        group_->notify_continue_ = false;
        notify = true;
      } else if (Ptrace::TrapPending(*this)) {
        trap = true;
      } else if (stop_counted_) {
        stop = true;
      } else {
        info = pending_.Take(~signal_mask());
        if (!info) info = group_->shared_pending_.Take(~signal_mask());
        if (!info) {
          RecalcPending();
        } else {
          int signo = info->si_signo;
          if (!traced()) action = TakeAction(signo);
          stop_dequeued_ = (SigBit(signo) & kStopSignals) != 0;
          forced = (forced_ & SigBit(signo)) != 0;
          forced_ &= ~SigBit(signo);
        }
      }
    }
    if (info) NoteTaken(*info);
    if (info && traced()) {
      if (info->si_signo != SIGKILL && !Ptrace::SignalStop(*this, &*info)) continue;
      absl::MutexLock l(&group_->signal_mutex());
      action = TakeAction(info->si_signo);
    }
    if (notify) {
      group_->NotifyStop(CLD_CONTINUED);
    } else if (trap) {
      Ptrace::TrapStop(*this);
    } else if (stop) {
      StopSelf();
    } else if (!info) {
      PrepareRestart(false, 0);
      if (!saved_mask_) return;
      {
        absl::MutexLock l(&group_->signal_mutex());
        SetMaskLocked(*std::exchange(saved_mask_, std::nullopt));
      }
      if (!signal_pending_.load(std::memory_order_acquire)) return;
    } else if (action.handler == kSigIgn) {
      continue;
    } else if (action.handler != kSigDfl) {
      PrepareRestart(true, action.flags);
      SetupFrame(*info, action);
    } else if (!group_->unkillable_ || forced || info->si_signo == SIGKILL ||
               info->si_signo == SIGSTOP) {
      HandleDefault(*info);
    }
  }
}

void Task::HandleDefault(const siginfo_t& info) {
  int signo = info.si_signo;
  switch (DefaultAction(signo)) {
    case SigDefault::kIgnore:
    case SigDefault::kContinue:
      return;
    case SigDefault::kStop:
      if (signo != SIGSTOP && kernel_->IsOrphanedGroup(*group_)) return;
      StopGroup(signo);
      return;
    case SigDefault::kTerminate:
    case SigDefault::kCore:
      // Core files are not written, so the core flag of the status is not set.
      if (DefaultAction(signo) == SigDefault::kCore) {
        LOG_INFO("[%d] %s dies of signal %d, code %d, address %p, rip %#llx", Tid(), comm().c_str(),
                 signo, info.si_code, info.si_addr, static_cast<unsigned long long>(regs().rip));
      }
      group_->BeginExit(signo);
      return;
  }
}

void Task::StopGroup(int signo) {
  {
    absl::MutexLock l(&group_->signal_mutex());
    if (!std::exchange(stop_dequeued_, false) || group_->exiting()) return;
    if (!group_->stop_pending_ && !group_->stopped_) {
      group_->stop_pending_ = true;
      group_->stop_signo_ = signo;
      group_->stop_wait_ = 0;
      for (const auto& t : group_->tasks_) {
        if (t->dead_) continue;
        t->stop_counted_ = true;
        ++group_->stop_wait_;
        if (t.get() != this) {
          t->Kick();
          Ptrace::TrapNotify(*t);
        }
      }
    } else if (!stop_counted_) {
      stop_counted_ = true;
      ++group_->stop_wait_;
    }
  }
  StopSelf();
}

bool Task::JoinGroupStop() {
  group_->signal_mutex().AssertHeld();
  stop_counted_ = false;
  if (--group_->stop_wait_ != 0 || !group_->stop_pending_) return false;
  group_->stop_pending_ = false;
  group_->stopped_ = true;
  group_->report_stop_ = true;
  group_->report_continue_ = false;
  return true;
}

void Task::StopSelf() {
  bool complete = false;
  {
    absl::MutexLock l(&group_->signal_mutex());
    // A tracee has a stop of its own, to which it comes next.
    if (!stop_counted_ || traced()) return;
    complete = JoinGroupStop();
  }
  if (complete) group_->NotifyStop(CLD_STOPPED);
  state_.store(TaskState::kStopped, std::memory_order_relaxed);
  fiber::WaitUntil(group_->continue_queue_, EPOLLIN, [this] {
    absl::MutexLock l(&group_->signal_mutex());
    // The group may have gone on, and be about to stop once more, before we have seen it.
    return stop_counted_ || (!group_->stopped_ && !group_->stop_pending_) || FatalPending() ||
           Ptrace::TrapPending(*this);
  });
  state_.store(TaskState::kRunning, std::memory_order_relaxed);
}

void ThreadGroup::NotifyStop(int code) {
  absl::MutexLock l(&kernel_->task_mutex());
  if (!parent_) return;
  ThreadGroup& to = parent_->thread_group();
  int status;
  {
    absl::MutexLock l2(&signal_mutex_);
    status = code == CLD_STOPPED ? stop_signo_ : SIGCONT;
  }
  SigAction action = to.handlers_->Get(SIGCHLD);
  if (action.handler != kSigIgn && !(action.flags & SA_NOCLDSTOP)) {
    to.SendSignal(ChildInfo(code, status, *parent_));
  }
  to.child_queue_.WakeAll(EPOLLIN);
}

}  // namespace sentry
