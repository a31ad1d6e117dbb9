// The tracer's side of a stop: waiting for it, holding it, ending it.
#include <sys/wait.h>

#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"

namespace sentry {

// Linux: wait_consider_task with ptrace set.
bool Ptrace::WaitForOne(Task& waiter, Task& t, const WaitOptions& w, WaitResult* result,
                        Deferred* later) {
  ThreadGroup& group = *t.group_;
  const bool forget = !(w.options & WNOWAIT);
  Tracee& tracee = *t.tracee_;
  if (tracee.exited) {
    if (!(w.options & WEXITED)) return false;
    result->pid = t.TidIn(waiter.pid_namespace());
    result->uid = t.credentials()->ruid;
    result->status = tracee.exited_status;
    result->code = (result->status & 0x7f) == 0 ? CLD_EXITED : CLD_KILLED;
    result->usage = t.usage();
    if (forget) Unlink(t, -1, later);
    return true;
  }
  const bool leader = group.tasks_.front().get() == &t;
  if (leader && group.zombie_) {
    if (!IsReparented(t)) return group.TryWait(waiter, w, result, later);
    // The parent gets it next.
    WaitOptions look = w;
    look.options |= WNOWAIT;
    if (!group.TryWait(waiter, look, result, later)) return false;
    if (forget) Detach(t, -1, later);
    return true;
  }
  {
    absl::MutexLock l(&group.signal_mutex());
    if (tracee.stopped && !tracee.resumed && !tracee.listening && tracee.wait_code != 0) {
      result->pid = t.TidIn(waiter.pid_namespace());
      result->uid = t.credentials()->ruid;
      result->status = (tracee.wait_code << 8) | 0x7f;
      result->code = CLD_TRAPPED;
      if (forget) tracee.wait_code = 0;
      return true;
    }
  }
  // That it was continued is told of the process as a whole.
  if (!leader || !(w.options & WCONTINUED)) return false;
  WaitOptions look = w;
  look.options &= ~(WSTOPPED | WEXITED);
  return group.TryWait(waiter, look, result, later);
}

bool Ptrace::TryWait(Task& waiter, const WaitOptions& w, WaitResult* result, bool* any,
                     Deferred* later) {
  for (const base::Ref<Task>& thread : waiter.group_->tasks_) {
    if ((w.options & __WNOTHREAD) && thread.get() != &waiter) continue;
    // A copy: waiting changes the list.
    const std::vector<base::Ref<Task>> tracees = thread->tracees_;
    for (const base::Ref<Task>& t : tracees) {
      if (w.which == WaitOptions::Which::kPid && t->pid_ref() != w.pid) continue;
      const base::Ref<ProcessGroup>& pgrp = t->group_->pgrp_;
      if (w.which == WaitOptions::Which::kPgrp && (!pgrp || pgrp->pid() != w.pid)) continue;
      *any = true;
      if (WaitForOne(waiter, *t, w, result, later)) {
        later->tasks.push_back(t);
        return true;
      }
    }
    for (const base::Ref<Task>& t : tracees) later->tasks.push_back(t);
  }
  return false;
}

// --- StoppedTracee ---

base::Result<StoppedTracee> StoppedTracee::Freeze(Task& tracer, base::Ref<Task> t) {
  absl::MutexLock l(&tracer.kernel().task_mutex());
  absl::MutexLock l2(&t->thread_group().signal_mutex());
  if (!t->traced() || t->tracee_->tracer != &tracer) return base::Error(ESRCH);
  Tracee& tracee = *t->tracee_;
  if (!tracee.stopped || tracee.resumed || tracee.listening) return base::Error(ESRCH);
  // One that is killed is on its way, if that is not what it stops for.
  const bool ends = tracee.info && tracee.info->si_code == (SIGTRAP | PTRACE_EVENT_EXIT << 8);
  if (ends ? tracee.killed : t->FatalPending()) return base::Error(ESRCH);
  tracee.frozen = true;
  return StoppedTracee(std::move(t));
}

StoppedTracee::~StoppedTracee() {
  if (!task_) return;
  {
    absl::MutexLock l(&task_->thread_group().signal_mutex());
    state().frozen = false;
  }
  state().queue.WakeAll(EPOLLIN);
}

Tracee& StoppedTracee::state() const { return *task_->tracee_; }

void StoppedTracee::Run(const std::function<void()>& job) const {
  Tracee& tracee = state();
  {
    absl::MutexLock l(&task_->thread_group().signal_mutex());
    tracee.job = &job;
  }
  tracee.queue.WakeAll(EPOLLIN);
  // It cannot leave without having done it, so this ends whatever happens.
  fiber::WaitUntil(tracee.queue, EPOLLIN, [&] {
    absl::MutexLock l(&task_->thread_group().signal_mutex());
    return tracee.job != &job;
  });
}

// Linux: ptrace_resume.
void StoppedTracee::Resume(uint32_t work, int signal) {
  absl::MutexLock l(&task_->thread_group().signal_mutex());
  task_->syscall_work_.fetch_and(~kWorkOfTracer, std::memory_order_relaxed);
  task_->syscall_work_.fetch_or(work, std::memory_order_acq_rel);
  Tracee& tracee = state();
  tracee.wait_code = 0;
  tracee.resume_signal = signal;
  tracee.resumed = true;
}

void StoppedTracee::SetOptions(uint32_t options) {
  absl::MutexLock l(&task_->kernel().task_mutex());
  absl::MutexLock l2(&task_->thread_group().signal_mutex());
  if (!task_->traced()) return;
  const uint32_t kept = task_->trace_flags() & (kTraced | kTraceSeized);
  task_->trace_flags_.store(kept | TraceOption(options), std::memory_order_release);
}

void StoppedTracee::Listen() {
  absl::MutexLock l(&task_->thread_group().signal_mutex());
  state().listening = true;
}

}  // namespace sentry
