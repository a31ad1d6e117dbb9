// wait4(2) and waitid(2) (Linux: kernel/exit.c, do_wait).
#include <sys/wait.h>

#include <algorithm>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {

// Linux: eligible_child, with __WCLONE and __WALL.
bool IsEligible(int exit_signal, int options) {
  bool is_clone = exit_signal != SIGCHLD;
  return (options & __WALL) || is_clone == ((options & __WCLONE) != 0);
}

}  // namespace

bool ThreadGroup::TryWait(Task& waiter, const WaitOptions& w, WaitResult* result, Deferred* later) {
  result->pid = PidIn(waiter.pid_namespace());
  result->uid = tasks_.front()->credentials()->ruid;
  if (zombie_) {
    if (!(w.options & WEXITED) || !HasEnded()) return false;
    int status = exit_status();
    result->status = status;
    result->code = (status & 0x7f) == 0 ? CLD_EXITED : (status & 0x80) ? CLD_DUMPED : CLD_KILLED;
    result->usage = dead_usage_;
    result->usage.Add(children_usage_);
    if (!(w.options & WNOWAIT)) {
      ThreadGroup& parent = waiter.thread_group();
      parent.children_usage_.Add(result->usage);
      Reap(later);
    }
    return true;
  }
  absl::MutexLock l(&signal_mutex_);
  bool forget = !(w.options & WNOWAIT);
  if ((w.options & WSTOPPED) && stopped_ && report_stop_) {
    if (forget) report_stop_ = false;
    result->status = (stop_signo_ << 8) | 0x7f;
    result->code = CLD_STOPPED;
    return true;
  }
  if ((w.options & WCONTINUED) && report_continue_) {
    if (forget) report_continue_ = false;
    result->status = 0xffff;
    result->code = CLD_CONTINUED;
    return true;
  }
  return false;
}

base::Result<WaitResult> Task::Wait(const WaitOptions& w) {
  WaitResult result;
  bool no_children = false;
  auto look = [&]() {
    Deferred later;
    absl::MutexLock l(&kernel_->task_mutex());
    no_children = true;
    // A copy: reaping changes the list.
    std::vector<ThreadGroup*> children = group_->children_;
    for (ThreadGroup* child : children) {
      if ((w.options & __WNOTHREAD) && child->parent_ != this) continue;
      if (w.which == WaitOptions::Which::kPid && child->pid() != w.pid) continue;
      if (w.which == WaitOptions::Which::kPgrp && (!child->pgrp_ || child->pgrp_->pid() != w.pid)) {
        continue;
      }
      if (!IsEligible(child->exit_signal_, w.options)) continue;
      no_children = false;
      const Task& leader = *child->tasks_.front();
      if (leader.traced()) {
        // Its tracer sees all of it, and nobody else its end.
        if (!Ptrace::IsReparented(leader) || child->zombie_) continue;
      }
      base::Ref<ThreadGroup> keep(child);
      if (child->TryWait(*this, w, &result, &later)) return true;
    }
    bool tracees = false;
    if (Ptrace::TryWait(*this, w, &result, &tracees, &later)) {
      no_children = false;
      return true;
    }
    if (tracees) no_children = false;
    return no_children;
  };
  if (w.options & WNOHANG) {
    bool found = look();
    if (no_children) return base::Error(ECHILD);
    return found ? result : WaitResult{};
  }
  fiber::WakeReason reason =
      fiber::WaitUntil(group_->child_queue_, EPOLLIN, look, {.interruptible = true});
  if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  if (no_children) return base::Error(ECHILD);
  return result;
}

}  // namespace sentry
