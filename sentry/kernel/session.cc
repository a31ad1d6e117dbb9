#include "sentry/kernel/session.h"

#include <algorithm>
#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

ProcessGroup::ProcessGroup(base::Ref<Pid> pid, base::Ref<Session> session)
    : pid_(std::move(pid)), session_(std::move(session)) {
  pid_->pgrp = this;
  session_->groups.push_back(this);
}

void ProcessGroup::Join(ThreadGroup& member) { members.push_back(&member); }

base::Ref<Tty> ProcessGroup::Leave(ThreadGroup& member) {
  std::erase(members, &member);
  if (!members.empty()) return nullptr;
  pid_->pgrp = nullptr;
  std::erase(session_->groups, this);
  if (session_->tty) session_->tty->ForgetGroup(this);
  if (!session_->groups.empty()) return nullptr;
  session_->pid()->session = nullptr;
  base::Ref<Tty> tty = session_->tty;
  if (tty) tty->DropSession();
  return tty;
}

base::Result<int> Kernel::NewSession(Task& t) {
  base::Ref<Tty> dropped;
  absl::MutexLock l(&task_mutex_);
  ThreadGroup& group = t.thread_group();
  base::Ref<Pid> pid = group.pid();
  if (pid->pgrp) return base::Error(EPERM);
  auto session = base::MakeRef<Session>(pid);
  session->leader = &group;
  auto pgrp = base::MakeRef<ProcessGroup>(pid, session);
  dropped = group.pgrp_->Leave(group);
  group.pgrp_ = pgrp;
  pgrp->Join(group);
  return pid->NumberIn(t.pid_namespace());
}

base::Status Kernel::SetProcessGroup(Task& t, int pid_number, int pgid) {
  PidNamespace& ns = t.pid_namespace();
  if (pid_number == 0) pid_number = t.Pid_();
  if (pgid == 0) pgid = pid_number;
  if (pgid < 0) return base::Error(EINVAL);
  base::Ref<Pid> pid = ns.Find(pid_number), pgrp_pid = ns.Find(pgid);
  base::Ref<Tty> dropped;
  absl::MutexLock l(&task_mutex_);
  if (!pid || !pid->task) return base::Error(ESRCH);
  ThreadGroup* group = pid->group;
  if (!group) return base::Error(EINVAL);  // a thread that is no leader
  ThreadGroup& self = t.thread_group();
  if (group->parent_ && &group->parent_->thread_group() == &self) {
    if (group->pgrp_->session() != self.pgrp_->session()) return base::Error(EPERM);
    if (group->did_exec) return base::Error(EACCES);
  } else if (group != &self) {
    return base::Error(ESRCH);
  }
  const base::Ref<Session>& session = group->pgrp_->session();
  if (session->leader == group) return base::Error(EPERM);
  base::Ref<ProcessGroup> pgrp;
  if (pgid == pid_number) {
    pgrp =
        pid->pgrp ? base::Ref<ProcessGroup>(pid->pgrp) : base::MakeRef<ProcessGroup>(pid, session);
  } else {
    if (!pgrp_pid || !pgrp_pid->pgrp) return base::Error(EPERM);
    pgrp = base::Ref<ProcessGroup>(pgrp_pid->pgrp);
    if (pgrp->session() != self.pgrp_->session()) return base::Error(EPERM);
  }
  if (pgrp == group->pgrp_) return base::Ok();
  pgrp->Join(*group);
  dropped = group->pgrp_->Leave(*group);
  group->pgrp_ = pgrp;
  return base::Ok();
}

Tty::~Tty() = default;

base::Ref<Session> Tty::session() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return base::Ref<Session>(session_);
}

base::Ref<ProcessGroup> Tty::foreground() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return base::Ref<ProcessGroup>(foreground_);
}

void Tty::DropSession() {
  // Precondition: task_mutex.
  if (session_) session_->tty.reset();
  session_ = nullptr;
  foreground_ = nullptr;
}

base::Status Tty::SetControlling(Task& t, bool steal, bool readable) {
  base::Ref<Tty> dropped;  // its reference must not go under the lock
  absl::MutexLock l(&kernel_->task_mutex());
  ThreadGroup& group = t.thread_group();
  Session& session = *group.pgrp_->session();
  if (session.leader == &group && session_ == &session) return base::Ok();
  if (session.leader != &group || session.tty) return base::Error(EPERM);
  if (session_) {
    if (!steal || !t.HasCap(CAP_SYS_ADMIN)) return base::Error(EPERM);
    dropped = std::move(session_->tty);
    DropSession();
  }
  if (!readable && !t.HasCap(CAP_SYS_ADMIN)) return base::Error(EPERM);
  session_ = &session;
  session.tty = base::Ref<Tty>(this);
  foreground_ = group.pgrp_.get();
  return base::Ok();
}

void Tty::AdoptSession(ThreadGroup& leader) {
  absl::MutexLock l(&kernel_->task_mutex());
  Session& session = *leader.pgrp_->session();
  session_ = &session;
  session.tty = base::Ref<Tty>(this);
  foreground_ = leader.pgrp_.get();
}

base::Status Tty::ReleaseControlling(Task& t) {
  base::Ref<Tty> dropped;
  absl::MutexLock l(&kernel_->task_mutex());
  ThreadGroup& group = t.thread_group();
  Session& session = *group.pgrp_->session();
  if (session.tty.get() != this) return base::Error(ENOTTY);
  // Linux lets a process that is no leader forget the terminal for itself alone; here the terminal
  // is the session's, so that only the leader's call changes anything.
  if (session.leader != &group) return base::Ok();
  if (foreground_) {
    kernel_->SignalGroupLocked(*foreground_, MakeSiginfo(SIGHUP, SI_KERNEL));
    kernel_->SignalGroupLocked(*foreground_, MakeSiginfo(SIGCONT, SI_KERNEL));
  }
  dropped = session.tty;
  DropSession();
  return base::Ok();
}

base::Result<int> Tty::ForegroundGroup(Task& t) {
  absl::MutexLock l(&kernel_->task_mutex());
  if (t.thread_group().pgrp_->session()->tty.get() != this) return base::Error(ENOTTY);
  return foreground_ ? foreground_->pid()->NumberIn(t.pid_namespace()) : 0;
}

base::Status Tty::SetForegroundGroup(Task& t, int pgid) {
  base::Status job = CheckJob(t, SIGTTOU);
  if (!job.ok()) return job.error().code() == EIO ? base::Error(ENOTTY) : job.error();
  if (pgid < 0) return base::Error(EINVAL);
  base::Ref<Pid> pid = t.pid_namespace().Find(pgid);
  absl::MutexLock l(&kernel_->task_mutex());
  Session* session = t.thread_group().pgrp_->session().get();
  if (session->tty.get() != this) return base::Error(ENOTTY);
  if (!pid || !pid->pgrp) return base::Error(ESRCH);
  if (pid->pgrp->session().get() != session) return base::Error(EPERM);
  foreground_ = pid->pgrp;
  return base::Ok();
}

base::Result<int> Tty::SessionId(Task& t) {
  absl::MutexLock l(&kernel_->task_mutex());
  if (t.thread_group().pgrp_->session()->tty.get() != this) return base::Error(ENOTTY);
  return session_->pid()->NumberIn(t.pid_namespace());
}

base::Status Tty::CheckJob(Task& t, int signo) {
  absl::MutexLock l(&kernel_->task_mutex());
  ThreadGroup& group = t.thread_group();
  if (group.pgrp_->session()->tty.get() != this) return base::Ok();
  if (!foreground_ || foreground_ == group.pgrp_.get()) return base::Ok();
  bool ignored =
      (t.signal_mask() & SigBit(signo)) != 0 || group.handlers()->Get(signo).handler == kSigIgn;
  if (ignored) {
    if (signo == SIGTTIN) return base::Error(EIO);
    return base::Ok();
  }
  if (kernel_->IsOrphanedLocked(*group.pgrp_, nullptr)) return base::Error(EIO);
  kernel_->SignalGroupLocked(*group.pgrp_, MakeSiginfo(signo, SI_KERNEL));
  return base::Error(base::kERESTARTSYS);
}

void Tty::SignalForeground(int signo) {
  absl::MutexLock l(&kernel_->task_mutex());
  if (foreground_) kernel_->SignalGroupLocked(*foreground_, MakeSiginfo(signo, SI_KERNEL));
}

void Tty::Hangup() {
  base::Ref<Tty> dropped;
  absl::MutexLock l(&kernel_->task_mutex());
  if (!session_) return;
  if (ThreadGroup* leader = session_->leader) {
    leader->SendSignal(MakeSiginfo(SIGHUP, SI_KERNEL));
    leader->SendSignal(MakeSiginfo(SIGCONT, SI_KERNEL));
  }
  if (foreground_) kernel_->SignalGroupLocked(*foreground_, MakeSiginfo(SIGHUP, SI_KERNEL));
  dropped = session_->tty;
  DropSession();
}

void Tty::ForgetGroup(ProcessGroup* group) {
  if (foreground_ == group) foreground_ = nullptr;
}

}  // namespace sentry
