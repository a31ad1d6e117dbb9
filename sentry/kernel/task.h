// Task: a thread of a guest process (Linux: task_struct). Its system calls run on its fiber.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/user_memory.h"
#include "sentry/kernel/fs_context.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/signal.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/vfs.h"

namespace fiber {
class Fiber;
}  // namespace fiber

namespace sentry {

class Kernel;

// Where a task is, for /proc and for waking it.
enum class TaskState : uint8_t {
  kRunning,        // R
  kSleeping,       // S: parked, interruptible
  kDiskSleep,      // D: parked, not interruptible
  kStopped,        // T
  kZombie,         // Z
  kDead,           // X
};

// Methods without a remark are for the task's own fiber ("current"); those marked [any] may be
// called from any thread.
class Task : public base::RefCounted, public OrderRunner, private platform::TrapListener {
 public:
  // The task whose fiber runs on this thread; null outside of one.
  static Task* Current();

  Kernel& kernel() const { return *kernel_; }                        // [any]
  ThreadGroup& thread_group() const { return *group_; }              // [any]
  base::Ref<ThreadGroup> thread_group_ref() const { return group_; } // [any]

  // --- memory ---
  // Guest memory of the current system call: the mailbox first.
  base::UserMemory& memory() { return *context_; }
  platform::Context& context() { return *context_; }
  platform::Regs& regs() { return context_->regs(); }
  MemoryManager& mm() { return *mm_; }
  base::Ref<MemoryManager> mm_ref() const;  // [any]; null once the task has exited

  // --- identity ---
  const Credentials& creds() const { return *creds_; }
  base::Ref<const Credentials> credentials() const;  // [any]
  void SetCredentials(base::Ref<const Credentials> creds);
  bool HasCap(int cap) const { return creds_->HasCap(cap); }
  const UserNamespace& user_ns() const { return *creds_->user_ns; }
  const base::Ref<Pid>& pid() const { return pid_; }                 // of the thread
  base::Ref<Pid> pid_ref() const;                                    // [any]
  int TidIn(const PidNamespace& ns) const { return pid_ref()->NumberIn(ns); }  // [any]
  int Tid() const;    // in its own PID namespace, as gettid(2)
  int Pid_() const;   // as getpid(2)
  // [any] The namespace that its ids are of (Linux: task_active_pid_ns).
  PidNamespace& pid_namespace() const { return *pid_ns_; }
  // Where children go (differs after unshare or setns of CLONE_NEWPID).
  const base::Ref<PidNamespace>& pid_ns_for_children() const { return child_pid_ns_; }
  void set_pid_ns_for_children(base::Ref<PidNamespace> ns) { child_pid_ns_ = std::move(ns); }
  std::string comm() const;          // [any] at most 15 bytes
  void SetComm(std::string_view comm);  // [any]

  // --- what may be shared with other tasks; the _ref forms are [any] and null after exit ---
  FsContext& fs_context() { return *fs_; }
  base::Ref<FsContext> fs_context_ref() const;
  FdTable& fd_table() { return *fds_; }
  base::Ref<FdTable> fd_table_ref() const;
  MountNamespace& mount_namespace() { return *mount_ns_; }
  base::Ref<MountNamespace> mount_namespace_ref() const;
  UtsNamespace& uts_namespace() { return *uts_ns_; }
  base::Ref<UtsNamespace> uts_namespace_ref() const;
  base::Ref<IpcNamespace> ipc_namespace_ref() const;
  base::Ref<NetNamespace> net_namespace_ref() const;
  base::Ref<CgroupNamespace> cgroup_namespace_ref() const;
  void SetFsContext(base::Ref<FsContext> fs);
  void SetFdTable(base::Ref<FdTable> fds);
  void SetMountNamespace(base::Ref<MountNamespace> ns);
  void SetUtsNamespace(base::Ref<UtsNamespace> ns);
  void SetIpcNamespace(base::Ref<IpcNamespace> ns);
  void SetNetNamespace(base::Ref<NetNamespace> ns);

  // --- files ---
  // EBADF through an error.
  base::Result<base::Ref<FileDescription>> GetFile(int fd) const;
  // Lowest descriptor under RLIMIT_NOFILE.
  base::Result<int> InstallFile(base::Ref<FileDescription> file, bool cloexec, int min = 0);
  // Where an *at call starts: dirfd (AT_FDCWD: cwd) unless `path` is absolute; EBADF, ENOTDIR.
  // An empty `path` accepts any descriptor (AT_EMPTY_PATH is the walk's check). The identity is
  // `creds`, or the task's.
  base::Result<WalkContext> Walk(int dirfd, std::string_view path, const Credentials* creds = nullptr);
  WalkContext WalkFromCwd() { return *Walk(-100 /* AT_FDCWD */, "", nullptr); }
  // A path argument: EFAULT, ENAMETOOLONG.
  base::Result<std::string> CopyInPath(uint64_t addr) { return memory().ReadString(addr, kPathMax); }

  // --- limits; OrderRunner ---
  uint64_t Rlimit(int resource) const override { return group_->rlimits().Soft(resource); }  // [any]
  base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) override;
  void QueueOrders(std::vector<platform::Order> orders,
                   std::function<int64_t(int error)> on_failure) override;
  bool CanQueue() const override;

  // --- signals ---
  // [any] Thread-directed. False if it was dropped (ignored, or pending already).
  bool SendSignal(const siginfo_t& info);
  // [any] As if the instruction at hand raised it: unblocks and un-ignores (Linux: force_sig_info).
  void ForceSignal(const siginfo_t& info);
  // True if a system call that would wait has to return ERESTARTSYS (or what it has).
  bool SignalPending() const { return signal_pending_.load(std::memory_order_acquire); }
  SigSet signal_mask() const { return blocked_.load(std::memory_order_relaxed); }  // [any]
  // Returns the old one; SIGKILL and SIGSTOP are left out.
  SigSet SetSignalMask(SigSet mask);
  // For ppoll, pselect, epoll_pwait, sigsuspend: `mask` holds until the call's signal frame is made
  // (which then restores the old one) or the call ends otherwise.
  void SetTemporaryMask(SigSet mask);
  // Takes one signal of `set`, the task's own first (signalfd, sigtimedwait).
  std::optional<siginfo_t> DequeueSignal(SigSet set);
  SigSet PendingSignalSet() const;  // [any] own and shared
  SigSet OwnPendingSet() const;     // [any]
  SigSet SharedPendingSet() const;  // [any]
  AltStack alt_stack() const { return alt_stack_; }
  void set_alt_stack(const AltStack& stack) { alt_stack_ = stack; }
  // May `this` send `signo` to `target` (Linux: check_kill_permission)? EPERM.
  base::Status CheckKill(Task& target, int signo) const;

  // --- restart_syscall(2) ---
  // Sets what it will do; the call then returns kERESTART_RESTARTBLOCK.
  void SetRestartBlock(std::function<base::Result<uint64_t>(Task&)> block) {
    restart_block_ = std::move(block);
  }
  std::function<base::Result<uint64_t>(Task&)> TakeRestartBlock() {
    return std::exchange(restart_block_, nullptr);
  }

  // --- state for /proc, getrusage and others ---
  TaskState state() const { return state_.load(std::memory_order_relaxed); }  // [any] see StateChar
  char StateChar() const;              // [any] as in /proc/PID/stat
  Usage usage() const;                 // [any]
  int64_t CpuTimeNs() const;           // [any]
  int64_t start_time_ns() const { return start_time_ns_; }  // CLOCK_MONOTONIC
  int current_syscall() const { return syscall_nr_.load(std::memory_order_relaxed); }  // [any] -1: none
  bool exiting() const { return exit_pending_.load(std::memory_order_acquire); }
  bool is_leader() const;              // [any]
  bool is_kernel_visible() const { return true; }

  // Attributes of prctl(2), sched_*(2), ioprio and the like. Each is read by others for /proc.
  std::atomic<bool> no_new_privs{false};
  std::atomic<int> pdeath_signal{0};
  std::atomic<int> nice{0};
  std::atomic<int> sched_policy{0}, sched_priority{0};
  std::atomic<bool> sched_reset_on_fork{false};
  std::atomic<int> io_priority{0};
  std::atomic<uint32_t> personality{0};
  std::atomic<uint64_t> timer_slack_ns{50000};
  std::atomic<int> thp_disable{0};
  std::atomic<int> mce_kill{2};
  // Words of the guest: clear_child_tid and the robust list.
  uint64_t clear_child_tid = 0;
  uint64_t robust_list = 0;

 private:
  friend class Kernel;
  friend class ThreadGroup;
  friend class Tty;
  friend class Waiter;
  friend class SignalCode;
  friend class CloneCode;
  friend class ExecCode;
  friend class ExitCode;

  struct Shared;  // what clone hands over
  Task(Kernel* kernel, base::Ref<ThreadGroup> group, base::Ref<Pid> pid);
  ~Task() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  // platform::TrapListener: unparks the fiber.
  void OnTrap() override;

  // The fiber's main function and its parts (run.cc).
  void Main();
  void RunGuest();
  void HandleTrap();
  void HandleSyscall();
  void HandleFault();
  bool FlushQueuedOrders();
  void HandleFailedOrder(size_t index, int error);
  void ParkForTrap();
  void Kick();  // [any] makes it look at its signals: out of the guest, or out of its wait

  Kernel* const kernel_;
  const base::Ref<ThreadGroup> group_;
  const int64_t start_time_ns_;

  mutable absl::Mutex mutex_;  // guards the references below against readers other than current
  base::Ref<Pid> pid_;
  base::Ref<PidNamespace> pid_ns_, child_pid_ns_;
  base::Ref<const Credentials> creds_;
  base::Ref<MemoryManager> mm_;
  base::Ref<FsContext> fs_;
  base::Ref<FdTable> fds_;
  base::Ref<MountNamespace> mount_ns_;
  base::Ref<UtsNamespace> uts_ns_;
  base::Ref<IpcNamespace> ipc_ns_;
  base::Ref<NetNamespace> net_ns_;
  base::Ref<CgroupNamespace> cgroup_ns_;
  std::string comm_;
  std::unique_ptr<platform::Context> context_;  // changed under mutex_ too

  fiber::Fiber* fiber_ = nullptr;
  std::atomic<TaskState> state_{TaskState::kRunning};
  std::atomic<bool> in_guest_{false};
  std::atomic<bool> trapped_{false};
  std::atomic<int> syscall_nr_{-1};

  // Signals. Guarded by group_->signal_mutex(), except what only current touches.
  std::atomic<bool> signal_pending_{false};
  std::atomic<SigSet> blocked_{0};
  PendingSignals pending_;
  SigSet waited_for_ = 0;             // by sigtimedwait: arrivals wake it though blocked
  bool stop_counted_ = false;         // this task still has to stop
  std::optional<SigSet> saved_mask_;  // of SetTemporaryMask
  AltStack alt_stack_;
  std::function<base::Result<uint64_t>(Task&)> restart_block_;

  // Exit.
  std::atomic<bool> exit_pending_{false};
  int exit_code_ = 0;
  base::Ref<Task> vfork_parent_;
  std::atomic<bool> vfork_done_{false};

  // Orders left for the way back to the guest.
  struct QueuedGroup {
    size_t first, count;
    std::function<int64_t(int)> on_failure;
  };
  std::vector<platform::Order> queued_orders_;
  std::vector<QueuedGroup> queued_groups_;

  int64_t cpu_base_ns_ = 0;  // CPU time of contexts that exec replaced
  std::atomic<int64_t> system_ns_{0};
  std::atomic<int64_t> voluntary_switches_{0}, min_faults_{0}, maj_faults_{0};
};

}  // namespace sentry
