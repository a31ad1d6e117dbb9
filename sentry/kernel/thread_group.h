// ThreadGroup: a process (Linux: signal_struct and the thread group's leader).
#pragma once

#include <sys/resource.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/shared_part.h"
#include "sentry/kernel/signal.h"

namespace sentry {

class Kernel;
class PosixTimers;
class Task;

// Resource limits of a process; shared by its threads. Thread-safe.
class Rlimits {
 public:
  struct Limit {
    uint64_t soft, hard;
  };
  Rlimits();  // Linux's defaults for init
  Limit Get(int resource) const;
  uint64_t Soft(int resource) const { return Get(resource).soft; }
  void Set(int resource, Limit limit);
  void CopyFrom(const Rlimits& other);

 private:
  mutable absl::Mutex mutex_;
  std::array<Limit, RLIM_NLIMITS> limits_ ABSL_GUARDED_BY(mutex_);
};

// CPU time and counts, as getrusage(2) has them. Nanoseconds.
struct Usage {
  int64_t user_ns = 0, system_ns = 0;
  int64_t max_rss_kb = 0;
  int64_t min_faults = 0, maj_faults = 0;
  int64_t in_blocks = 0, out_blocks = 0;
  int64_t voluntary_switches = 0, involuntary_switches = 0;
  void Add(const Usage& o);
};
struct rusage ToRusage(const Usage& usage);

// What wait4(2) and waitid(2) ask for.
struct WaitOptions {
  enum class Which { kAny, kPid, kPgrp } which = Which::kAny;
  base::Ref<Pid> pid;  // of kPid (thread group) and kPgrp
  int options =
      0;  // WNOHANG, WEXITED, WSTOPPED, WCONTINUED, WNOWAIT, __WALL, __WCLONE, __WNOTHREAD
};
struct WaitResult {
  int pid = 0;     // 0: nothing with WNOHANG
  uid_t uid = 0;   // kernel id
  int status = 0;  // as wait4 encodes it
  int code = 0;    // CLD_*
  Usage usage;
};

// What is dropped or called once the locks are given up: declared before the lock is taken.
struct Deferred {
  std::vector<base::Ref<Tty>> ttys;
  std::vector<base::Ref<Task>> tasks;
  std::vector<base::Ref<ThreadGroup>> groups;
  std::vector<std::function<void()>> calls;
  Deferred();
  ~Deferred();  // makes the calls
};

class ThreadGroup : public base::RefCounted {
 public:
  ThreadGroup(Kernel* kernel, base::Ref<SignalHandlers> handlers);

  Kernel& kernel() const { return *kernel_; }
  Rlimits& rlimits() { return rlimits_; }
  const Rlimits& rlimits() const { return rlimits_; }
  // The id: that of the leader, kept through exec by another thread.
  base::Ref<Pid> pid() const;
  // In `ns`; 0 if not visible.
  int PidIn(const PidNamespace& ns) const { return pid()->NumberIn(ns); }
  // Referenced copies of what others may change.
  base::Ref<ProcessGroup> process_group() const;
  base::Ref<Session> session() const;
  base::Ref<Tty> tty() const;  // the session's, or null
  base::Ref<Task> leader() const;
  std::vector<base::Ref<Task>> Threads() const;  // live ones
  // True once all threads are gone. Under Kernel::task_mutex().
  bool is_zombie() const { return zombie_; }
  bool is_pid_ns_init() const { return unkillable_; }
  int thread_count() const { return live_threads_.load(std::memory_order_acquire); }
  // Parent's id in `ns`: 0 if it is outside of it or there is none.
  int ParentPidIn(const PidNamespace& ns) const;
  int ParentPidLocked(const PidNamespace& ns) const;        // under task_mutex
  int64_t start_time_ns() const { return start_time_ns_; }  // CLOCK_MONOTONIC (boot time)

  // Group-directed signal; false if it was ignored. Takes the signal mutex.
  bool SendSignal(const siginfo_t& info, bool* queue_full = nullptr);
  // sigaction(2) made `signo` ignored: drops what is pending of it.
  void FlushIgnored(int signo);
  // Of a POSIX timer, to `thread` (null: the group): if its last one has not been taken yet, that
  // one's overrun count grows instead.
  void SendTimerSignal(const siginfo_t& info, Task* thread);
  // From the kernel (SI_KERNEL).
  bool SendKernelSignal(int signo) { return SendSignal(MakeSiginfo(signo, SI_KERNEL)); }
  const base::Ref<SignalHandlers>& handlers() const { return handlers_; }  // of this group's tasks
  // Guards pending signals, masks and stop state of the group and all its tasks (Linux: siglock).
  // Order: after Kernel::task_mutex(), before SignalHandlers and WaitQueues.
  absl::Mutex& signal_mutex() const ABSL_LOCK_RETURNED(signal_mutex_) { return signal_mutex_; }
  PendingSignals& shared_pending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_) {
    return shared_pending_;
  }
  // Woken at every arrival of a signal for the group or one of its tasks (signalfd, sigtimedwait).
  fiber::WaitQueue& signal_queue() { return signal_queue_; }

  // Ends the process: all threads exit. `status` as wait4 encodes it. The first call counts.
  void BeginExit(int status);
  bool exiting() const { return exiting_.load(std::memory_order_acquire); }
  int exit_status() const { return exit_status_.load(std::memory_order_acquire); }

  // CPU time of all threads, dead ones included; and of waited-for children.
  Usage SelfUsage() const;
  Usage ChildrenUsage() const;
  // The CPU time of SelfUsage alone. Unlike that it waits for nobody, so timers may ask.
  int64_t CpuNs() const;
  // Reads and writes of all threads, dead ones included.
  void AddIo(IoCounts* sum) const;

  PosixTimers& timers() { return *timers_; }

  // prctl(PR_SET_CHILD_SUBREAPER), oom_score_adj, personality's friends.
  std::atomic<bool> child_subreaper{false};
  std::atomic<bool> has_child_subreaper{false};
  std::atomic<int> oom_score_adj{0};
  std::atomic<bool> did_exec{false};
  std::atomic<uint64_t> loginuid{0xffffffff};

 private:
  friend class Kernel;
  friend class Ptrace;
  friend class StubWatch;
  friend class Task;
  friend class Tty;
  ~ThreadGroup() override;

  // Require signal_mutex_ (signal_send.cc).
  bool SendLocked(const siginfo_t& info, Task* target, bool* queue_full)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_);
  bool Prepare(int signo, const Task& probe, bool force)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_);
  bool IsIgnoredBy(const Task& task, int signo, bool force) const;
  void Complete(int signo, Task* target) ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_);
  void BeginExitLocked(int status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_);
  void Retarget(const Task* from, SigSet signals) ABSL_EXCLUSIVE_LOCKS_REQUIRED(signal_mutex_);
  // Tells the parent of a stop or continuation (takes Kernel::task_mutex()).
  void NotifyStop(int code);
  // Require Kernel::task_mutex() (exit.cc, wait.cc).
  void NotifyExit(Deferred* later);
  // All of it has ended, and no thread is left for a tracer to wait for (Linux: a zombie leader
  // without delay_group_leader).
  bool HasEnded() const { return zombie_ && traced_zombies_ == 0; }
  void PublishParentLocked();
  void Reap(Deferred* later);
  siginfo_t ChildInfo(int code, int status, const Task& receiver) const;
  bool HasLiveThread() const;
  bool TryWait(Task& waiter, const WaitOptions& options, WaitResult* result, Deferred* later);

  Kernel* const kernel_;
  const int64_t start_time_ns_;
  mutable absl::Mutex pid_mutex_;  // a leaf
  base::Ref<Pid> pid_ ABSL_GUARDED_BY(pid_mutex_);
  Rlimits rlimits_;
  std::unique_ptr<PosixTimers> timers_;
  fiber::WaitQueue signal_queue_;
  fiber::WaitQueue child_queue_;   // a child changed state (Linux: wait_chldexit)
  fiber::WaitQueue thread_queue_;  // a thread of this group exited (for exec)
  std::atomic<int> live_threads_{0};
  std::atomic<int64_t> cpu_base_ns_{0};  // CPU time in memory that exec or exit has left behind
  std::atomic<bool> exiting_{false};
  std::atomic<int> exit_status_{0};

  // Changed under both Kernel::task_mutex() and signal_mutex_, read under either. References are
  // held. The leader stays, as a zombie, until the group is reaped.
  std::vector<base::Ref<Task>> tasks_;
  // Guarded by Kernel::task_mutex().
  base::Ref<ProcessGroup> pgrp_;
  Task* parent_ = nullptr;              // the thread that made this (or adopted it); null: none
  std::vector<ThreadGroup*> children_;  // of any thread of this
  int exit_signal_ = 0;                 // to the parent; 0 none, -1 is not used
  bool zombie_ = false;                 // all threads are gone; waits to be reaped
  bool reaped_ = false;
  int traced_zombies_ = 0;  // threads that have ended and their tracers have not waited for
  Usage dead_usage_, children_usage_;
  IoCounts dead_io_;
  bool unkillable_ = false;  // init of a PID namespace

  mutable absl::Mutex signal_mutex_;
  base::Ref<SignalHandlers> handlers_;  // changed by exec alone, when single-threaded
  PendingSignals shared_pending_ ABSL_GUARDED_BY(signal_mutex_);
  // Group stop: every task parks until SIGCONT.
  bool stop_pending_ ABSL_GUARDED_BY(signal_mutex_) = false;  // tasks are on their way
  bool stopped_ ABSL_GUARDED_BY(signal_mutex_) = false;
  int stop_signo_ ABSL_GUARDED_BY(signal_mutex_) = 0;
  int stop_wait_ ABSL_GUARDED_BY(signal_mutex_) = 0;         // tasks that have not stopped yet
  bool report_stop_ ABSL_GUARDED_BY(signal_mutex_) = false;  // not yet waited for
  bool report_continue_ ABSL_GUARDED_BY(signal_mutex_) = false;
  Task* exec_task_ ABSL_GUARDED_BY(signal_mutex_) = nullptr;  // it is making the others exit
  int live_left_ ABSL_GUARDED_BY(signal_mutex_) = 0;          // threads that have not begun to exit
  bool notify_continue_ ABSL_GUARDED_BY(signal_mutex_) =
      false;  // the next task to run tells the parent
  fiber::WaitQueue continue_queue_;
};

}  // namespace sentry
