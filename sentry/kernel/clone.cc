// clone(2), clone3(2), fork(2), vfork(2) (Linux: kernel/fork.c, copy_process).
#include <linux/sched.h>
#include <sched.h>
#include <sys/wait.h>

#include <cstring>
#include <iterator>
#include <utility>

#include "platform/parked_thread.h"
#include "sentry/base/log.h"
#include "sentry/kernel/exec.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {

constexpr uint64_t kNewNamespaces =
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP;

platform::order::Write WriteInt(uint64_t addr, int32_t value) {
  std::vector<std::byte> bytes(sizeof(value));
  memcpy(bytes.data(), &value, sizeof(value));
  return {addr, std::move(bytes)};
}

// What copy_process refuses whoever asks.
base::Status CheckFlags(const CloneArgs& a, const Task& t) {
  uint64_t f = a.flags;
  if ((f & (CLONE_NEWNS | CLONE_FS)) == (CLONE_NEWNS | CLONE_FS)) return base::Error(EINVAL);
  if ((f & (CLONE_NEWUSER | CLONE_FS)) == (CLONE_NEWUSER | CLONE_FS)) return base::Error(EINVAL);
  if ((f & CLONE_THREAD) && !(f & CLONE_SIGHAND)) return base::Error(EINVAL);
  if ((f & CLONE_SIGHAND) && !(f & CLONE_VM)) return base::Error(EINVAL);
  if ((f & CLONE_PARENT) && t.thread_group().is_pid_ns_init()) return base::Error(EINVAL);
  if ((f & CLONE_THREAD) && ((f & (CLONE_NEWUSER | CLONE_NEWPID)) ||
                             t.pid_ns_for_children().get() != &t.pid_namespace())) {
    return base::Error(EINVAL);
  }
  if ((f & CLONE_PIDFD) && (f & CLONE_DETACHED)) return base::Error(EINVAL);
  if ((f & CLONE_CLEAR_SIGHAND) && (f & CLONE_SIGHAND)) return base::Error(EINVAL);
  if ((f & CLONE_PIDFD) && (f & CLONE_THREAD)) return base::Error(EINVAL);
  if ((f & CLONE_NEWIPC) && (f & CLONE_SYSVSEM)) return base::Error(EINVAL);
  return base::Ok();
}

}  // namespace

void Task::CopyTo(Task& child, const CloneArgs& a) {
  child.creds_ = creds_;
  child.comm_ = comm();
  child.cgroup_ns_ = cgroup_ns_;
  child.blocked_.store(signal_mask(), std::memory_order_relaxed);
  child.no_new_privs = no_new_privs.load();
  child.nice = nice.load();
  child.sched_policy = sched_policy.load();
  child.sched_priority = sched_priority.load();
  if (sched_reset_on_fork) {
    if (child.sched_policy == SCHED_FIFO || child.sched_policy == SCHED_RR) {
      child.sched_policy = SCHED_OTHER;
      child.sched_priority = 0;
    }
    if (child.nice < 0) child.nice = 0;
  }
  for (size_t i = 0; i < cpu_mask_words.size(); ++i)
    child.cpu_mask_words[i] = cpu_mask_words[i].load();
  child.io_priority = io_priority.load();
  Keys::Get().Inherit(*this, child, (a.flags & CLONE_THREAD) != 0);
  child.personality = personality.load();
  child.timer_slack_ns = child.default_timer_slack_ns = timer_slack_ns.load();
  child.mempolicy = mempolicy.load();
  child.thp_disable = thp_disable.load();
  child.io_flusher = io_flusher.load();
  child.seccomp_filter_ = seccomp_filter();
  child.SetSeccompMode(seccomp_mode());
  if (a.flags & CLONE_SYSVSEM) child.sem_undo = sem_undo;
  if (a.flags & CLONE_VM) {
    child.aio = aio;
  } else {
    child.words_.rseq = words().rseq;
  }
  child.fs_ = (a.flags & CLONE_FS) ? fs_ : fs_->Fork();
  child.fds_ = (a.flags & CLONE_FILES) ? fds_ : fds_->Fork();
  // sas_ss_reset: kept by vfork and by fork, not by threads.
  if (!(a.flags & CLONE_VM) || (a.flags & CLONE_VFORK)) child.alt_stack_ = alt_stack_;
  if (a.flags & CLONE_CHILD_CLEARTID) child.words_.clear_child_tid = a.child_tid;
}

base::Status Task::CloneNamespaces(uint64_t flags, Task& child) {
  child.mount_ns_ = mount_ns_;
  child.uts_ns_ = uts_ns_;
  child.ipc_ns_ = ipc_ns_;
  child.net_ns_ = net_ns_;
  if (flags & CLONE_NEWUSER) {
    base::Ref<Credentials> creds = creds_->Clone();
    TRY(EnterNewUserNamespace(*creds));
    child.creds_ = std::move(creds);
  }
  if (!(flags & kNewNamespaces)) return base::Ok();
  const Credentials& creds = *child.creds_;
  if (!creds.HasCap(CAP_SYS_ADMIN)) return base::Error(EPERM);
  if (flags & CLONE_NEWNS) {
    Path root = child.fs_->root(), cwd = child.fs_->cwd();
    Path* paths[] = {&root, &cwd};
    child.mount_ns_ = mount_ns_->Copy(paths, creds.user_ns);
    child.fs_->SetRoot(std::move(root));
    child.fs_->SetCwd(std::move(cwd));
  }
  if (flags & CLONE_NEWUTS) child.uts_ns_ = uts_ns_->Copy(creds.user_ns);
  if (flags & CLONE_NEWIPC) child.ipc_ns_ = base::MakeRef<IpcNamespace>(creds.user_ns);
  if (flags & CLONE_NEWNET) child.net_ns_ = base::MakeRef<NetNamespace>(creds.user_ns);
  if (flags & CLONE_NEWCGROUP) child.cgroup_ns_ = base::MakeRef<CgroupNamespace>(creds.user_ns);
  return base::Ok();
}

// The child's context, with the registers with which it begins.
base::Status Task::CloneMemory(const CloneArgs& a, Task& child) {
  std::vector<platform::Order> pending;
  if (a.flags & CLONE_VM) {
    child.context_ = TRY(mm_->address_space().PrepareThread());
    // The id must be there before the child runs, and must not be written after it: the child may
    // end at once and clear it. A bad address for it is ignored, as in Linux.
    std::vector<platform::Order> id;
    if (a.flags & CLONE_PARENT_SETTID) {
      id.push_back(WriteInt(a.parent_tid, child.pid_->NumberIn(*pid_ns_)));
    }
    auto* parked = dynamic_cast<platform::ParkedThread*>(child.context_.get());
    const bool waits = (a.flags & CLONE_VFORK) != 0 || traced();
    if (!waits && parked != nullptr && parked->WakenBy(*context_)) {
      // The child begins when this task goes on, which waits for nothing before.
      auto ignore = [this](int) { return static_cast<int64_t>(regs().rax); };
      if (!id.empty()) QueueOrders(std::move(id), ignore);
      QueueOrders({platform::order::CloneThread{context_.get()}}, ignore);
    } else {
      std::vector<platform::Order> orders = {platform::order::CloneThread{child.context_.get()}};
      std::move(id.begin(), id.end(), std::back_inserter(orders));
      base::Result<std::vector<uint64_t>> done = RunOrders(std::move(orders));
      if (!done.ok() && (gone_ || context_->trap().order_index != 1)) return done.error();
    }
    child.mm_ = mm_;
    child.mm_users_ = mm_users_;
    child.cpu_start_ns_ = (a.flags & CLONE_THREAD) ? cpu_start_ns_ : context_->CpuTimeNs();
    mm_users_->tasks.fetch_add(1, std::memory_order_acq_rel);
  } else {
    child.mm_ = TRY(mm_->Fork(*this));
    child.mm_users_ = base::MakeRef<MmUsers>();
    child.context_ = child.mm_->address_space().TakeMainContext();
    if (!child.context_) return base::Error(ENOMEM);
    pending = child.mm_->TakePendingOrders();
  }
  const bool same = IsSameSubject(*child.creds_, *creds_);
  if (!same) child.mm_->address_space().DropFileWindows();
  if (!same || child.mount_ns_ != mount_ns_) child.mm_->DropPaths();
  child.context_->set_listener(&child);
  child.context_->SetPathPlace(0);
  child.paths_ = paths_;
  child.paths_creds_ = paths_creds_;
  child.paths_namespace_ = paths_namespace_;
  child.path_asks_ = path_asks_;
  PassLanes(child);
  platform::Regs& r = child.context_->regs();
  r = regs();
  r.rax = 0;
  r.orig_rax = ~uint64_t{0};
  if (a.stack != 0) r.rsp = a.stack;
  if (a.flags & CLONE_SETTLS) r.fs_base = a.tls;
  // Failures are the child's to see later, as in Linux: a bad address for its id is ignored.
  auto ignore = [](int) { return int64_t{0}; };
  if (!pending.empty()) child.QueueOrders(std::move(pending), ignore);
  if (a.flags & CLONE_CHILD_SETTID) {
    std::vector<platform::Order> orders;
    orders.push_back(WriteInt(a.child_tid, child.Tid()));
    child.QueueOrders(std::move(orders), ignore);
  }
  return base::Ok();
}

// Puts the child into the tree. EINTR if this task has to die, ENOMEM if the namespace's init has.
base::Status Task::LinkChild(const CloneArgs& a, Task& child) {
  absl::MutexLock l(&kernel_->task_mutex());
  if (FatalPending()) return base::Error(EINTR);
  ThreadGroup& group = *child.group_;
  if (a.flags & CLONE_THREAD) {
    absl::MutexLock l2(&group.signal_mutex());
    if (FatalPending() || group.exec_task_) return base::Error(EINTR);
    // A thread of ours may have put filters into force for all meanwhile
    // (SECCOMP_FILTER_FLAG_TSYNC).
    child.seccomp_filter_ = seccomp_filter_;
    child.SetSeccompMode(seccomp_mode());
    child.no_new_privs = no_new_privs.load();
    group.tasks_.emplace_back(&child);
    group.live_threads_.fetch_add(1, std::memory_order_acq_rel);
    ++group.live_left_;
    child.pid_->task = &child;
    if (group.stop_pending_) {
      child.stop_counted_ = true;
      ++group.stop_wait_;
      child.signal_pending_ = true;
    }
  } else {
    bool same_parent = (a.flags & CLONE_PARENT) != 0;
    group.exit_signal_ = same_parent ? group_->exit_signal_ : a.exit_signal;
    TRY(kernel_->LinkGroup(group, child, same_parent ? group_->parent_ : this, group_->pgrp_));
  }
  if (traced()) Ptrace::LinkClone(*this, child, a);
  child.user_count_ = kernel_->CountOfUser(child.creds_->ruid);
  child.user_count_->processes.fetch_add(1, std::memory_order_relaxed);
  return base::Ok();
}

base::Status Kernel::LinkGroup(ThreadGroup& group, Task& leader, Task* parent,
                               const base::Ref<ProcessGroup>& pgrp) {
  task_mutex_.AssertHeld();
  base::Ref<Pid> pid = leader.pid_;
  PidNamespace& ns = *pid->ns();
  if (pid->number() == 1) {
    ns.init = &group;
    group.unkillable_ = true;
  } else if (!ns.init) {
    return base::Error(ENOMEM);
  }
  {
    absl::MutexLock l(&group.pid_mutex_);
    group.pid_ = pid;
  }
  pid->group = &group;
  pid->task = &leader;
  group.parent_ = parent;
  if (parent) parent->group_->children_.push_back(&group);
  if (pgrp) {
    group.pgrp_ = pgrp;
    pgrp->Join(group);
  }
  group.live_threads_ = 1;
  groups_.insert(&group);
  group.IncRef();
  absl::MutexLock l(&group.signal_mutex_);
  group.tasks_.emplace_back(&leader);
  group.live_left_ = 1;
  return base::Ok();
}

base::Status Task::CheckProcessLimits() {
  if (!group_->cgroup()->MayFork()) return base::Error(EAGAIN);
  base::Ref<UserCount> user = kernel_->CountOfUser(creds_->ruid);
  if (static_cast<uint64_t>(user->processes.load(std::memory_order_relaxed)) >=
          Rlimit(RLIMIT_NPROC) &&
      creds_->ruid != 0 && !HasCap(CAP_SYS_RESOURCE) && !HasCap(CAP_SYS_ADMIN)) {
    return base::Error(EAGAIN);
  }
  return base::Ok();
}

// Whether the numbers of a new process may be chosen in `pid_ns` and those above it, `count` in
// all.
base::Status MayChoosePids(const Credentials& creds, const PidNamespace& pid_ns, size_t count) {
  const PidNamespace* ns = &pid_ns;
  for (; count > 0 && ns != nullptr; --count, ns = ns->parent().get()) {
    if (!creds.HasCapIn(CAP_CHECKPOINT_RESTORE, *ns->user_ns()) &&
        !creds.HasCapIn(CAP_SYS_ADMIN, *ns->user_ns())) {
      return base::Error(EPERM);
    }
  }
  return base::Ok();
}

base::Result<uint64_t> Task::Clone(const CloneArgs& a) {
  TRY(CheckFlags(a, *this));
  if (SignalPending()) return base::Error(base::kERESTARTNOINTR);
  TRY(CheckProcessLimits());

  base::Ref<PidNamespace> pid_ns = child_pid_ns_;
  if (a.flags & CLONE_NEWPID) {
    if (!HasCap(CAP_SYS_ADMIN) && !(a.flags & CLONE_NEWUSER)) return base::Error(EPERM);
    if (pid_ns->level() >= 31) return base::Error(ENOSPC);
    pid_ns = base::MakeRef<PidNamespace>(pid_ns, creds_->user_ns);
  }
  TRY(MayChoosePids(*creds_, *pid_ns, a.set_tid.size()));
  base::Ref<Pid> pid = TRY(pid_ns->Allocate(a.set_tid));
  base::Ref<ThreadGroup> group = group_;
  group_->handlers_->Close();  // there may soon be somebody who shares them
  if (!(a.flags & CLONE_THREAD)) {
    base::Ref<SignalHandlers> handlers =
        (a.flags & CLONE_SIGHAND) ? group_->handlers() : group_->handlers()->Fork();
    if (a.flags & CLONE_CLEAR_SIGHAND) handlers->ClearHandlers();
    group = base::MakeRef<ThreadGroup>(kernel_, std::move(handlers), group_->cgroup());
    group->rlimits_.CopyFrom(group_->rlimits_);
    group->oom_score_adj = group_->oom_score_adj.load();
    group->has_child_subreaper = group_->has_child_subreaper || group_->child_subreaper;
  }
  base::Ref<Task> child = base::MakeRef<Task>(kernel_, group, pid);
  CopyTo(*child, a);
  TRY(CloneNamespaces(a.flags, *child));
  int pidfd = -1;
  if (a.flags & CLONE_PIDFD) {
    pidfd = TRY(InstallFile(NewPidFd(*kernel_, pid, 0), true));
    base::Status written = base::UserPtr<int32_t>(a.pidfd).CopyOut(memory(), pidfd);
    if (!written.ok()) {
      (void)fd_table().Close(pidfd).ok();
      return written.error();
    }
  }
  base::Ref<VforkDone> vfork;
  if (a.flags & CLONE_VFORK) child->vfork_ = vfork = base::MakeRef<VforkDone>();

  base::Status linked = CloneMemory(a, *child);
  if (linked.ok()) linked = LinkChild(a, *child);
  if (!linked.ok()) {
    if (pidfd >= 0) (void)fd_table().Close(pidfd).ok();
    child->DropUnstarted();
    return linked.error();
  }
  kernel_->forks.fetch_add(1, std::memory_order_relaxed);
  uint64_t number = pid->NumberIn(*pid_ns_);
  if ((a.flags & CLONE_PARENT_SETTID) && !(a.flags & CLONE_VM)) {
    (void)base::UserPtr<int32_t>(a.parent_tid).CopyOut(memory(), static_cast<int32_t>(number)).ok();
  }
  child->PublishIdentity();
  const int event = Ptrace::CloneEvent(*this, a);
  child->Start();
  if (event != 0) Ptrace::PidEvent(*this, event, *pid);
  if (vfork) {
    fiber::WaitUntil(vfork->queue, EPOLLIN,
                     [&] { return vfork->done.load(std::memory_order_acquire) || FatalPending(); });
    if (traced() && !FatalPending()) Ptrace::PidEvent(*this, PTRACE_EVENT_VFORK_DONE, *pid);
  }
  return number;
}

// A child that never ran.
void Task::DropUnstarted() {
  if (context_) context_->Exit();
  context_.reset();
  if (mm_users_) mm_users_->tasks.fetch_sub(1, std::memory_order_acq_rel);
  mm_.reset();
}

}  // namespace sentry
