// Who traces whom.
#include <sched.h>

#include <algorithm>
#include <utility>

#include "sentry/kernel/inspect.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"

namespace sentry {

// Linux: ptrace_link. Under task_mutex and the signal mutex of `t`.
void Ptrace::Link(Task& t, Task& tracer, uint32_t flags, base::Ref<const Credentials> creds) {
  if (!t.tracee_) t.tracee_ = std::make_unique<Tracee>();
  t.tracee_->tracer = &tracer;
  t.tracee_->tracer_creds = std::move(creds);
  tracer.tracees_.emplace_back(&t);
  t.trace_flags_.store(flags, std::memory_order_release);
  t.UpdateLanes();
}

base::Status Ptrace::Attach(Task& tracer, Task& t, bool seize, uint32_t options) {
  if (&t.thread_group() == &tracer.thread_group()) return base::Error(EPERM);
  TRY(MayInspect(tracer, t));
  {
    absl::MutexLock l(&t.kernel_->task_mutex());
    absl::MutexLock l2(&t.group_->signal_mutex());
    const TaskState state = t.state();
    if (state == TaskState::kZombie || state == TaskState::kDead || t.traced()) {
      return base::Error(EPERM);
    }
    Link(t, tracer, kTraced | (seize ? kTraceSeized : 0) | TraceOption(options),
         tracer.credentials());
    if (state == TaskState::kStopped) {
      t.tracee_->trap_stop = true;
      t.Kick();
      t.group_->continue_queue_.WakeAll(EPOLLIN);
    }
  }
  if (!seize) t.SendSignal(MakeSiginfo(SIGSTOP, SI_KERNEL));
  // What is stopped already is found in the tracer's kind of stop as soon as this returns.
  fiber::WaitUntil(t.tracee_->queue, EPOLLIN, [&] {
    absl::MutexLock l(&t.group_->signal_mutex());
    return t.state() != TaskState::kStopped || !t.traced() || t.FatalPending() ||
           tracer.FatalPending();
  });
  return base::Ok();
}

base::Status Ptrace::TraceMe(Task& t) {
  absl::MutexLock l(&t.kernel_->task_mutex());
  Task* parent = t.group_->parent_;
  if (t.traced() || !parent) return base::Error(EPERM);
  // Linux: cap_ptrace_traceme.
  base::Ref<const Credentials> theirs = parent->credentials();
  const Credentials& mine = t.creds();
  const bool covers = theirs->user_ns == mine.user_ns && (mine.permitted & ~theirs->permitted) == 0;
  if (!covers && !theirs->HasCapIn(CAP_SYS_PTRACE, *mine.user_ns)) return base::Error(EPERM);
  absl::MutexLock l2(&t.group_->signal_mutex());
  Link(t, *parent, kTraced, std::move(theirs));
  return base::Ok();
}

base::Status Ptrace::CheckTracer(const Task& tracer, const Task& t) {
  absl::MutexLock l(&t.kernel_->task_mutex());
  const bool mine = t.traced() && t.tracee_->tracer == &tracer;
  return mine ? base::Ok() : base::Status(base::Error(ESRCH));
}

base::Status Ptrace::Interrupt(Task& t) {
  absl::MutexLock l(&t.group_->signal_mutex());
  if (!(t.trace_flags() & kTraceSeized)) return base::Error(EIO);
  if (t.dead_) return base::Ok();
  t.tracee_->trap_stop = true;
  t.Kick();
  t.tracee_->queue.WakeAll(EPOLLIN);
  return base::Ok();
}

int Ptrace::CloneEvent(const Task& parent, const CloneArgs& args) {
  if (!parent.traced() || (args.flags & CLONE_UNTRACED)) return 0;
  int event = (args.flags & CLONE_VFORK)    ? PTRACE_EVENT_VFORK
              : args.exit_signal != SIGCHLD ? PTRACE_EVENT_CLONE
                                            : PTRACE_EVENT_FORK;
  return EventEnabled(parent, event) ? event : 0;
}

// Linux: ptrace_init_task.
void Ptrace::LinkClone(Task& parent, Task& child, const CloneArgs& args) {
  if (CloneEvent(parent, args) == 0 && !(args.flags & CLONE_PTRACE)) return;
  Tracee* role = parent.tracee_.get();
  if (!parent.traced() || !role->tracer) return;
  const uint32_t flags = parent.trace_flags();
  absl::MutexLock l(&child.group_->signal_mutex());
  Link(child, *role->tracer, flags, role->tracer_creds);
  if (flags & kTraceSeized) {
    child.tracee_->trap_stop = true;
  } else {
    child.pending_.AddBare(SIGSTOP);
  }
  child.signal_pending_.store(true, std::memory_order_seq_cst);
}

void Ptrace::Unlink(Task& t, int signal, Deferred* later) {
  t.kernel_->task_mutex().AssertHeld();
  if (!t.traced()) return;
  Tracee& tracee = *t.tracee_;
  auto& list = tracee.tracer->tracees_;
  auto at = std::find_if(list.begin(), list.end(), [&](const auto& o) { return o.get() == &t; });
  if (at != list.end()) {
    later->tasks.push_back(std::move(*at));
    list.erase(at);
  }
  {
    ThreadGroup& group = *t.group_;
    absl::MutexLock l(&group.signal_mutex());
    tracee.tracer = nullptr;
    tracee.tracer_creds = nullptr;
    t.trace_flags_.store(0, std::memory_order_release);
    t.syscall_work_.fetch_and(~kWorkOfTracer, std::memory_order_acq_rel);
    tracee.trap_stop = tracee.trap_notify = tracee.listening = false;
    if (tracee.stopped && !tracee.resumed) {
      const bool signal_stop = tracee.wait_code != 0 && tracee.wait_code < kNumSignals;
      tracee.resume_signal = signal >= 0 ? signal : signal_stop ? tracee.wait_code : 0;
      tracee.resumed = true;
    }
    // The group's stop, from which the tracer may have sent it on, holds again.
    if (!t.dead_ && !t.stop_counted_ && (group.stopped_ || group.stop_pending_)) {
      t.stop_counted_ = true;
      ++group.stop_wait_;
    }
    if (!t.dead_) {
      t.UpdateLanes();
      t.Kick();
    }
  }
  tracee.queue.WakeAll(EPOLLIN);
  ThreadGroup& group = *t.group_;
  if (tracee.exited && --group.traced_zombies_ == 0 && group.zombie_ && !group.reaped_) {
    group.NotifyExit(later);
  }
}

// Linux: __ptrace_detach.
void Ptrace::Detach(Task& t, int signal, Deferred* later) {
  ThreadGroup& group = *t.group_;
  Task* tracer = t.tracee_->tracer;
  const bool reparented = IsReparented(t);
  Unlink(t, signal, later);
  if (t.tracee_->exited || !group.HasEnded()) return;
  if (reparented || tracer == nullptr) {
    group.NotifyExit(later);
    return;
  }
  ThreadGroup& parent = tracer->thread_group();
  SigAction action = parent.handlers_->Get(SIGCHLD);
  if (action.handler == kSigIgn || (action.flags & SA_NOCLDWAIT)) group.Reap(later);
  parent.child_queue_.WakeAll(EPOLLIN);
}

// Linux: exit_ptrace.
void Ptrace::ReleaseTracees(Task& dying, Deferred* later) {
  const std::vector<base::Ref<Task>> tracees = dying.tracees_;
  for (const base::Ref<Task>& t : tracees) {
    if (t->trace_flags() & TraceOption(PTRACE_O_EXITKILL)) {
      t->group_->SendSignal(MakeSiginfo(SIGKILL, SI_KERNEL));
    }
    Detach(*t, -1, later);
  }
  for (const base::Ref<Task>& t : tracees) later->tasks.push_back(t);
}

void Ptrace::NoteThreadExit(Task& t) {
  if (!t.traced()) return;
  Tracee& tracee = *t.tracee_;
  tracee.exited = true;
  ++t.group_->traced_zombies_;
  tracee.exited_status = t.exit_status_;
  const int status = t.exit_status_;
  const bool exit = (status & 0x7f) == 0;
  TellTracer(t, exit ? CLD_EXITED : CLD_KILLED, exit ? status >> 8 : status);
}

void Ptrace::NotifyTracerOfExit(ThreadGroup& group) {
  Task& leader = *group.tasks_.front();
  Task& tracer = *leader.tracee_->tracer;
  const int status = group.exit_status();
  const bool exit = (status & 0x7f) == 0;
  const int signo = IsReparented(leader) ? SIGCHLD : group.exit_signal_;
  if (signo != 0) {
    siginfo_t info = group.ChildInfo(exit ? CLD_EXITED : CLD_KILLED,
                                     exit ? (status >> 8) & 0xff : status & 0x7f, tracer);
    info.si_signo = signo;
    tracer.thread_group().SendSignal(info);
  }
  tracer.thread_group().child_queue_.WakeAll(EPOLLIN);
}

bool Ptrace::IsReparented(const Task& t) {
  const Task* parent = t.group_->parent_;
  const Task* tracer = t.tracee_->tracer;
  return !parent || !tracer || &parent->thread_group() != &tracer->thread_group();
}

int Ptrace::TracerIn(const Task& t, const PidNamespace& ns) {
  if (!t.traced()) return 0;
  absl::MutexLock l(&t.kernel_->task_mutex());
  const Task* tracer = t.tracee_->tracer;
  return tracer ? tracer->TidIn(ns) : 0;
}

bool Ptrace::TracerIsWeak(const Task& t, const UserNamespace& ns) {
  if (!t.traced()) return false;
  absl::MutexLock l(&t.kernel_->task_mutex());
  const base::Ref<const Credentials>& creds = t.tracee_->tracer_creds;
  return creds && !creds->HasCapIn(CAP_SYS_PTRACE, ns);
}

void Ptrace::TrapNotify(Task& t) {
  if (!(t.trace_flags() & kTraceSeized)) return;
  t.tracee_->trap_notify = true;
  t.Kick();
  t.tracee_->queue.WakeAll(EPOLLIN);
}

void Ptrace::EndExitStop(Task& t) {
  if (!t.traced()) return;
  t.tracee_->killed = true;
  t.tracee_->queue.WakeAll(EPOLLIN);
}

}  // namespace sentry
