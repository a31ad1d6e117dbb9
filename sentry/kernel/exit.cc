// The end of tasks and processes (Linux: kernel/exit.c).
#include <linux/futex.h>
#include <sys/wait.h>

#include <algorithm>
#include <utility>

#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/exec.h"
#include "sentry/kernel/futex/futex_pi.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {

namespace {
constexpr int kRobustListLimit = 2048;  // ROBUST_LIST_LIMIT
constexpr int64_t kClockTick = base::kNsPerSec / 100;

// What others that share the memory of an ending thread may wait for (Linux: mm_release).
std::vector<platform::Order> LastOrders(const Task::Words& words) {
  const Task::Rseq& rseq = words.rseq;
  const uint64_t clear_child_tid = words.clear_child_tid;
  std::vector<platform::Order> orders;
  // The host writes to the place as long as the thread runs; others may use it for something else
  // once they know of the end.
  if (rseq.addr != 0) {
    orders.push_back(
        platform::order::Rseq{rseq.addr, rseq.length, kRseqUnregister, rseq.signature});
  }
  if (clear_child_tid != 0) {
    orders.push_back(platform::order::Write{clear_child_tid, std::vector<std::byte>(4)});
    orders.push_back(platform::order::FutexWake{clear_child_tid, 1, false});
  }
  return orders;
}

}  // namespace

void Task::Exit(int status) {
  exit_pending_ = true;
  exit_status_ = status;
}

// --- memory ---

// struct robust_list_head: the list, the offset of the futex word, the one being locked.
void Task::WalkRobustList() {
  const uint64_t robust_list = words().robust_list;
  if (robust_list == 0) return;
  struct Head {
    uint64_t next;
    int64_t futex_offset;
    uint64_t pending;
  };
  base::UserMemory& m = mm_->address_space();
  base::Result<Head> head = base::UserPtr<Head>(robust_list).CopyIn(m);
  if (!head.ok()) return;
  uint32_t tid = static_cast<uint32_t>(Tid());
  std::vector<platform::Order> orders;
  auto release = [&](uint64_t entry) {
    // Bit 0 of an entry says that the futex is a PI one.
    uint64_t word_addr = (entry & ~uint64_t{1}) + head->futex_offset;
    if (word_addr & 3) return false;
    base::Result<uint32_t> word = base::UserPtr<uint32_t>(word_addr).CopyIn(m);
    if (!word.ok()) return false;
    if ((*word & FUTEX_TID_MASK) != tid) return true;
    uint32_t value = (*word & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
    if (!base::UserPtr<uint32_t>(word_addr).CopyOut(m, value).ok()) return false;
    // A waiter that set its bit after the read above is woken all the same.
    for (bool is_private : {false, true}) {
      orders.push_back(platform::order::FutexWake{word_addr, 1, is_private});
    }
    return true;
  };
  uint64_t entry = head->next;
  for (int i = 0; i < kRobustListLimit && (entry & ~uint64_t{1}) != robust_list; ++i) {
    // Read the next entry first: a woken owner may free this one.
    base::Result<uint64_t> next = base::UserPtr<uint64_t>(entry & ~uint64_t{1}).CopyIn(m);
    if (entry != head->pending && !release(entry)) break;
    if (!next.ok()) break;
    entry = *next;
  }
  if (head->pending != 0) release(head->pending);
  if (!orders.empty()) (void)RunOrders(std::move(orders)).ok();
}

void Task::ReleaseMemory(bool last) {
  if (!mm_) return;
  if (last) NoteResident();
  bool alone = mm_users_->tasks.load(std::memory_order_acquire) == 1;
  if (!gone_) {
    FlushQueuedOrders();
    WalkRobustList();
    words().robust_list = 0;
    if (!alone && !gone_) {
      std::vector<platform::Order> orders = LastOrders(words());
      if (!vfork_ && !last) {
        // The thread carries them out on its way out.
        for (platform::Order& order : orders) context_->QueueOrder(std::move(order));
      } else if (!orders.empty()) {
        (void)RunOrders(std::move(orders)).ok();  // before its parent goes on, or hears of the end
      }
    }
  }
  words() = {};
  aio.reset();
  CompleteVfork();
  std::unique_ptr<platform::Context> context;
  base::Ref<MemoryManager> mm;
  base::Ref<MmUsers> users;
  {
    absl::MutexLock l(&group_->signal_mutex());
    absl::MutexLock l2(&mutex_);
    if (context_ && last) {
      group_->cpu_base_ns_.fetch_add(context_->CpuTimeNs() - cpu_start_ns_);
    }
    cpu_start_ns_ = 0;
    CloseMaskLocked();
    group_->handlers_->Close();
    context = std::move(context_);
    mm = std::move(mm_);
    users = std::move(mm_users_);
  }
  PiFutexes::Get().OwnerExits(*this);
  if (context) context->Exit();
  context.reset();
  users->tasks.fetch_sub(1, std::memory_order_acq_rel);
}

void Task::CompleteVfork() {
  base::Ref<VforkDone> vfork;
  {
    absl::MutexLock l(&mutex_);
    vfork = std::move(vfork_);
  }
  if (!vfork) return;
  vfork->done.store(true, std::memory_order_release);
  vfork->queue.WakeAll(EPOLLIN);
}

void Task::ReleaseResources() {
  base::Ref<FdTable> fds;
  base::Ref<FsContext> fs;
  base::Ref<MountNamespace> mount_ns;
  base::Ref<UtsNamespace> uts;
  base::Ref<IpcNamespace> ipc;
  base::Ref<NetNamespace> net;
  base::Ref<CgroupNamespace> cgroup;
  sem_undo.reset();  // undoes, while the namespace still is this one's
  Keys::Get().Forget(*this);
  {
    absl::MutexLock l(&mutex_);
    fds = std::move(fds_);
    fs = std::move(fs_);
    mount_ns = std::move(mount_ns_);
    uts = std::move(uts_ns_);
    ipc = std::move(ipc_ns_);
    net = std::move(net_ns_);
    cgroup = std::move(cgroup_ns_);
  }
  fds.reset();  // the table's last reference closes its files, before the parent is told
}

// --- the tree ---

siginfo_t ThreadGroup::ChildInfo(int code, int status, const Task& receiver) const {
  siginfo_t info = MakeSiginfo(SIGCHLD, code);
  info.si_pid = PidIn(receiver.pid_namespace());
  info.si_uid = receiver.credentials()->user_ns->MapUidOut(tasks_.front()->credentials()->ruid);
  info.si_status = status;
  info.si_utime = dead_usage_.user_ns / kClockTick;
  info.si_stime = dead_usage_.system_ns / kClockTick;
  return info;
}

// Linux: do_notify_parent and exit_notify's autoreap. Under task_mutex.
void ThreadGroup::NotifyExit(Deferred* later) {
  int status = exit_status();
  if (tasks_.front()->traced()) {
    // The parent's turn comes when the tracer has waited for it, or gone.
    kernel_->RunExitWatches(*this, status, later);
    Ptrace::NotifyTracerOfExit(*this);
    return;
  }
  if (!parent_) {
    kernel_->RunExitWatches(*this, status, later);
    Reap(later);
    return;
  }
  ThreadGroup& to = parent_->thread_group();
  bool reap = false, send = exit_signal_ != 0;
  if (exit_signal_ == SIGCHLD) {
    SigAction action = to.handlers_->Get(SIGCHLD);
    if (action.handler == kSigIgn || (action.flags & SA_NOCLDWAIT)) {
      reap = true;
      if (action.handler == kSigIgn) send = false;
    }
  }
  kernel_->RunExitWatches(*this, status, later);
  if (send) {
    int code = (status & 0x7f) == 0 ? CLD_EXITED : CLD_KILLED;
    siginfo_t info =
        ChildInfo(code, code == CLD_EXITED ? (status >> 8) & 0xff : status & 0x7f, *parent_);
    info.si_signo = exit_signal_;
    to.SendSignal(info);
  }
  if (reap) Reap(later);
  to.child_queue_.WakeAll(EPOLLIN);
}

// Under task_mutex. Drops the group from the tree; the caller holds a reference.
void ThreadGroup::Reap(Deferred* later) {
  kernel_->task_mutex().AssertHeld();
  if (reaped_) return;
  reaped_ = true;
  Ptrace::Unlink(*tasks_.front(), -1, later);
  if (parent_) std::erase(parent_->thread_group().children_, this);
  parent_ = nullptr;
  if (pgrp_) {
    if (base::Ref<Tty> tty = pgrp_->Leave(*this)) later->ttys.push_back(std::move(tty));
    pgrp_ = nullptr;
  }
  base::Ref<Pid> pid = this->pid();
  pid->group = nullptr;
  pid->task = nullptr;
  {
    absl::MutexLock l(&signal_mutex_);
    for (auto& t : tasks_) {
      t->state_.store(TaskState::kDead, std::memory_order_relaxed);
      later->tasks.push_back(std::move(t));
    }
    tasks_.clear();
  }
  later->groups.push_back(base::Ref<ThreadGroup>(this));
  kernel_->groups_.erase(this);
  DecRef();
}

bool ThreadGroup::HasLiveThread() const {
  absl::MutexLock l(&signal_mutex_);
  return std::any_of(tasks_.begin(), tasks_.end(), [](const auto& t) { return !t->dead_; });
}

// Linux: find_new_reaper: a live thread of the same group, the nearest subreaper, or the init of
// the PID namespace. Null: nobody, the child reaps itself.
Task* Kernel::FindReaper(Task& dying) {
  ThreadGroup& group = dying.thread_group();
  auto live_thread = [](ThreadGroup& g) -> Task* {
    absl::MutexLock l(&g.signal_mutex_);
    for (const auto& t : g.tasks_) {
      if (!t->dead_) return t.get();
    }
    return nullptr;
  };
  if (Task* other = live_thread(group)) return other;
  ThreadGroup* init = dying.pid_namespace().init;
  if (group.has_child_subreaper.load(std::memory_order_relaxed)) {
    for (Task* p = group.parent_; p; p = p->thread_group().parent_) {
      ThreadGroup& g = p->thread_group();
      if (&g == init) break;
      if (!g.child_subreaper.load(std::memory_order_relaxed)) continue;
      if (Task* t = live_thread(g)) return t;
    }
  }
  return init && init != &group ? live_thread(*init) : nullptr;
}

// Tells the threads, which may ask for it without a call, who the parent is now. Under task_mutex.
void ThreadGroup::PublishParentLocked() {
  absl::MutexLock l(&signal_mutex_);
  for (const auto& t : tasks_) {
    if (t->context_) t->context_->PublishParent(ParentPidLocked(t->pid_namespace()));
  }
}

// Linux: forget_original_parent. Under task_mutex.
void Kernel::Reparent(Task& dying, Deferred* later) {
  ThreadGroup& group = dying.thread_group();
  std::vector<ThreadGroup*> children = group.children_;
  Task* reaper = nullptr;
  bool searched = false;
  for (ThreadGroup* child : children) {
    if (child->parent_ != &dying) continue;
    if (!searched) {
      reaper = FindReaper(dying);
      searched = true;
    }
    base::Ref<ThreadGroup> keep(child);
    {
      absl::MutexLock l(&child->signal_mutex_);
      for (const auto& t : child->tasks_) {
        int signo = t->pdeath_signal.load(std::memory_order_relaxed);
        if (signo != 0 && !t->dead_)
          child->SendLocked(MakeSiginfo(signo, SI_USER), t.get(), nullptr);
      }
    }
    child->parent_ = reaper;
    child->PublishParentLocked();
    if (reaper && &reaper->thread_group() == &group) continue;
    std::erase(group.children_, child);
    if (reaper) {
      reaper->thread_group().children_.push_back(child);
      child->exit_signal_ = SIGCHLD;
    }
    if (child->zombie_) {
      if (child->HasEnded()) child->NotifyExit(later);
    } else if (child->pgrp_) {
      HangUpIfOrphaned(*child->pgrp_, child, &group);
    }
  }
}

// Linux: kill_orphaned_pgrp. `leaver` is on its way out; `child` was its child, or null: the
// leaver's own group may have lost its last tie to the rest of the session.
void Kernel::HangUpIfOrphaned(ProcessGroup& pgrp, ThreadGroup* child, ThreadGroup* leaver) {
  ProcessGroup* parent_pgrp = nullptr;
  if (child) {
    parent_pgrp = leaver->pgrp_.get();
  } else if (leaver->parent_) {
    parent_pgrp = leaver->parent_->thread_group().pgrp_.get();
  }
  if (!parent_pgrp || parent_pgrp == &pgrp || parent_pgrp->session() != pgrp.session()) return;
  if (!IsOrphanedLocked(pgrp, child ? nullptr : leaver)) return;
  bool stopped = false;
  for (ThreadGroup* member : pgrp.members) {
    absl::MutexLock l(&member->signal_mutex_);
    stopped |= member->stopped_;
  }
  if (!stopped) return;
  SignalGroupLocked(pgrp, MakeSiginfo(SIGHUP, SI_KERNEL));
  SignalGroupLocked(pgrp, MakeSiginfo(SIGCONT, SI_KERNEL));
}

bool Kernel::IsOrphanedLocked(ProcessGroup& pgrp, ThreadGroup* ignored) {
  for (ThreadGroup* member : pgrp.members) {
    if (member == ignored || member->zombie_ || !member->parent_) continue;
    ThreadGroup& parent = member->parent_->thread_group();
    if (parent.pgrp_ && parent.pgrp_.get() != &pgrp && parent.pgrp_->session() == pgrp.session()) {
      return false;
    }
  }
  return true;
}

bool Kernel::IsOrphanedGroup(ThreadGroup& process) {
  absl::MutexLock l(&task_mutex_);
  return IsOrphanedLocked(*process.pgrp_, nullptr);
}

// Linux: zap_pid_ns_processes. The init of a namespace takes all of it along.
void Kernel::ZapNamespace(Task& init) {
  PidNamespace& ns = init.pid_namespace();
  ns.Close();
  {
    absl::MutexLock l(&task_mutex_);
    ns.init = nullptr;
    for (ThreadGroup* group : groups_) {
      if (group == &init.thread_group() || !ns.IsAncestorOf(*group->pid()->ns())) continue;
      group->BeginExit(SIGKILL);
      absl::MutexLock l2(&group->signal_mutex_);
      for (const auto& t : group->tasks_) Ptrace::EndExitStop(*t);
    }
  }
  fiber::WaitUntil(groups_queue_, EPOLLIN, [&] {
    Deferred later;
    absl::MutexLock l(&task_mutex_);
    // Zombies that nobody will wait for any more.
    std::vector<ThreadGroup*> groups(groups_.begin(), groups_.end());
    bool left = false;
    for (ThreadGroup* group : groups) {
      if (group == &init.thread_group() || !ns.IsAncestorOf(*group->pid()->ns())) continue;
      base::Ref<ThreadGroup> keep(group);
      if (group->zombie_) {
        group->Reap(&later);
      } else {
        left = true;
      }
    }
    return !left;
  });
}

void Task::FinishExit() {
  DropKeptFile();
  if (traced()) Ptrace::ExitEvent(*this);
  bool last, stops;
  {
    absl::MutexLock l(&group_->signal_mutex());
    dead_ = true;
    stop_dequeued_ = false;
    stops = stop_counted_ && JoinGroupStop();  // it was the last that the others' stop waited for
    // What it would have taken goes to another thread.
    group_->Retarget(this, ~signal_mask());
    pending_.Flush(~SigSet{0});
    last = --group_->live_left_ == 0;
    // Without exit_group the status is that of the leader.
    if (last && !group_->exiting()) group_->BeginExitLocked(group_->tasks_.front()->exit_status_);
  }
  if (stops && !last) group_->NotifyStop(CLD_STOPPED);
  signal_pending_.store(false, std::memory_order_relaxed);
  fiber_->ClearInterrupt();
  if (!is_leader()) {
    // Nobody finds the thread any more once its exit is told by clear_child_tid.
    absl::MutexLock l(&kernel_->task_mutex());
    pid_->task = nullptr;
  }
  if (last) group_->timers_->Stop();
  ReleaseMemory(last);
  ReleaseResources();
  if (last && group_->unkillable_ && pid_ns_->init == group_.get()) kernel_->ZapNamespace(*this);
  kernel_->ExitNotify(*this, last);
}

void Kernel::ExitNotify(Task& t, bool last) {
  ThreadGroup& group = t.thread_group();
  Deferred later;
  base::Ref<Task> keep(&t);
  base::Ref<ThreadGroup> keep_group(&group);
  base::Ref<Pid> pid = t.pid_ref();
  Usage usage = t.usage();
  usage.user_ns = last ? group.cpu_base_ns_.load() : 0;
  if (base::Ref<UserCount> user = t.user_count_) {
    user->processes.fetch_sub(1, std::memory_order_relaxed);
  }
  {
    absl::MutexLock l(&task_mutex_);
    group.dead_usage_.Add(usage);
    group.dead_io_.Add(t.io);
    Ptrace::ReleaseTracees(t, &later);
    Reparent(t, &later);
    t.state_.store(TaskState::kZombie, std::memory_order_relaxed);
    group.live_threads_.fetch_sub(1, std::memory_order_acq_rel);
    bool leader = pid == group.pid();
    if (!leader) {
      pid->task = nullptr;
      Ptrace::NoteThreadExit(t);
      t.state_.store(TaskState::kDead, std::memory_order_relaxed);
      absl::MutexLock l2(&group.signal_mutex_);
      std::erase_if(group.tasks_, [&](const auto& o) { return o.get() == &t; });
    }
    if (last) {
      Session& session = *group.pgrp_->session();
      if (session.leader == &group) {
        session.leader = nullptr;
        if (base::Ref<Tty> tty = session.tty) {
          if (tty->foreground_) {
            SignalGroupLocked(*tty->foreground_, MakeSiginfo(SIGHUP, SI_KERNEL));
            SignalGroupLocked(*tty->foreground_, MakeSiginfo(SIGCONT, SI_KERNEL));
          }
          tty->DropSession();
          later.ttys.push_back(std::move(tty));
        }
      }
      HangUpIfOrphaned(*group.pgrp_, nullptr, &group);
      group.zombie_ = true;
      if (group.HasEnded()) group.NotifyExit(&later);
      keep_group->pid()->exit_queue.WakeAll(EPOLLIN | EPOLLRDNORM);
      groups_queue_.WakeAll(EPOLLIN);
    }
  }
  group.thread_queue_.WakeAll(EPOLLIN);
}

}  // namespace sentry
