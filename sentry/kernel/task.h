// Task: a thread of a guest process (Linux: task_struct). Its system calls run on its fiber.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <initializer_list>
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
#include "sentry/fiber/fiber.h"
#include "sentry/kernel/fs_context.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/shared_part.h"
#include "sentry/kernel/signal.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/trace/times/call_times.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

class Ptrace;
class SeccompFilter;
class StoppedTracee;
struct Tracee;

namespace loader {

struct ExecImage;
}  // namespace loader
class Kernel;
struct LoadedProgram;

// What clone3(2) is asked for.
struct CloneArgs {
  uint64_t flags = 0;  // CLONE_*, without the signal
  int exit_signal = 0;
  uint64_t stack = 0;  // top of the child's stack; 0: as the parent's
  uint64_t tls = 0;
  uint64_t parent_tid = 0, child_tid = 0, pidfd = 0;  // guest addresses
  std::vector<int> set_tid;
};

// Where a task is, for /proc and for waking it.
enum class TaskState : uint8_t {
  kRunning,    // R
  kSleeping,   // S: parked, interruptible
  kDiskSleep,  // D: parked, not interruptible
  kStopped,    // T
  kTraced,     // t: in a stop of ptrace(2)
  kZombie,     // Z
  kDead,       // X
};

// Methods without a remark are for the task's own fiber ("current"); those marked [any] may be
// called from any thread.
class Task : public base::RefCounted, public OrderRunner, private platform::TrapListener {
 public:
  // The task whose fiber runs on this thread; null outside of one.
  static Task* Current();

  Kernel& kernel() const { return *kernel_; }                         // [any]
  ThreadGroup& thread_group() const { return *group_; }               // [any]
  base::Ref<ThreadGroup> thread_group_ref() const { return group_; }  // [any]

  // --- memory ---
  // Guest memory of the current system call: the mailbox first.
  base::UserMemory& memory() { return *context_; }
  platform::Context& context() { return *context_; }
  platform::Regs& regs() { return context_->regs(); }
  // For the dispatch, on the fiber.
  trace::CallTimes& call_times() { return call_times_; }
  MemoryManager& mm() { return *mm_; }
  base::Ref<MemoryManager> mm_ref() const;  // [any]; null once the task has exited

  // --- identity ---
  const Credentials& creds() const { return *creds_; }
  base::Ref<const Credentials> credentials() const;  // [any]
  void SetCredentials(base::Ref<const Credentials> creds);
  bool HasCap(int cap) const { return creds_->HasCap(cap); }
  const UserNamespace& user_ns() const { return *creds_->user_ns; }
  const base::Ref<Pid>& pid() const { return pid_; }                           // of the thread
  base::Ref<Pid> pid_ref() const;                                              // [any]
  int TidIn(const PidNamespace& ns) const { return pid_ref()->NumberIn(ns); }  // [any]
  int Tid() const;   // in its own PID namespace, as gettid(2)
  int Pid_() const;  // as getpid(2)
  // [any] The namespace that its ids are of (Linux: task_active_pid_ns).
  PidNamespace& pid_namespace() const { return *pid_ns_; }
  // Where children go (differs after unshare or setns of CLONE_NEWPID).
  const base::Ref<PidNamespace>& pid_ns_for_children() const { return child_pid_ns_; }
  void set_pid_ns_for_children(base::Ref<PidNamespace> ns) { child_pid_ns_ = std::move(ns); }
  std::string comm() const;             // [any] at most 15 bytes
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
  base::Result<WalkContext> Walk(int dirfd, std::string_view path,
                                 const Credentials* creds = nullptr);
  WalkContext WalkFromCwd() { return *Walk(-100 /* AT_FDCWD */, "", nullptr); }
  // A path argument: EFAULT, ENAMETOOLONG.
  base::Result<std::string> CopyInPath(uint64_t addr) {
    return memory().ReadString(addr, kPathMax);
  }

  // --- limits; OrderRunner ---
  uint64_t Rlimit(int resource) const override {
    return group_->rlimits().Soft(resource);
  }  // [any]
  base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) override;
  void QueueOrders(std::vector<platform::Order> orders,
                   std::function<int64_t(int error)> on_failure) override;
  bool CanQueue() const override;
  bool MayLockMemory() const override { return creds_->HasCap(CAP_IPC_LOCK); }

  // --- signals ---
  // [any] Thread-directed. False if it was dropped (ignored, or pending already).
  // `*queue_full`: a real-time signal met RLIMIT_SIGPENDING (EAGAIN).
  bool SendSignal(const siginfo_t& info, bool* queue_full = nullptr);
  // [any] As if the instruction at hand raised it: unblocks and un-ignores (Linux: force_sig_info).
  void ForceSignal(const siginfo_t& info);
  // rt_sigreturn(2): the registers, mask and FPU state of the frame below the stack pointer.
  base::Result<uint64_t> SigReturn();
  // True if a system call that would wait has to return ERESTARTSYS (or what it has).
  bool SignalPending() const { return signal_pending_.load(std::memory_order_acquire); }
  // [any] What another task shows here may have been changed since by its thread; see
  // CurrentSignalMask.
  SigSet signal_mask() const { return blocked_.load(std::memory_order_relaxed); }
  // Lets the thread change its process's actions without a call, if nobody else may.
  void OpenSignalActions();
  SigSet CurrentSignalMask() const;  // [any] as the thread has it at this moment
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
  void SetAltStack(const AltStack& stack);
  // May `this` send `signo` to `target` (Linux: check_kill_permission)? EPERM.
  base::Status CheckKill(Task& target, int signo) const;

  // --- life (clone.cc, exec.cc, exit.cc, wait.cc) ---
  // The child's thread id as the caller sees it.
  base::Result<uint64_t> Clone(const CloneArgs& args);
  // On success the registers are those of the new program.
  // `flags`: AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW. `argv`, `envp`: the guest's arrays.
  base::Result<uint64_t> Exec(int dirfd, const std::string& path, int flags, uint64_t argv,
                              uint64_t envp);
  // exit(2): this thread ends when the call returns. `status` as wait4 encodes it.
  void Exit(int status);
  base::Result<WaitResult> Wait(const WaitOptions& options);
  // True once it has to die whatever it does: killable waits end.
  bool FatalPending() const {
    return must_die_.load(std::memory_order_acquire) || group_->exiting();
  }
  // (A killable wait is one that is not interruptible with the predicate `done || FatalPending()`.)

  // --- restart_syscall(2) ---
  // Sets what it will do; the call then returns kERESTART_RESTARTBLOCK.
  void SetRestartBlock(std::function<base::Result<uint64_t>(Task&)> block) {
    restart_block_ = std::move(block);
  }
  std::function<base::Result<uint64_t>(Task&)> TakeRestartBlock() {
    return std::exchange(restart_block_, nullptr);
  }

  // --- seccomp(2) (task_seccomp.cc) ---
  // SECCOMP_MODE_DISABLED, _STRICT, _FILTER.
  int seccomp_mode() const { return seccomp_mode_.load(std::memory_order_acquire); }  // [any]
  base::Ref<const SeccompFilter> seccomp_filter() const;  // [any] the newest; null: none
  // EINVAL if filters are set.
  base::Status SetStrictSeccomp();
  // Puts `filter`, made on top of seccomp_filter(), into force; with `sync` for all threads of the
  // process. The id of a thread whose filters are others, for which it then is not in force for
  // anybody, or 0. EINVAL in strict mode; ENOMEM if they are too long together.
  base::Result<int> InstallSeccomp(base::Ref<SeccompFilter> filter, bool sync);

  // --- ptrace(2) (ptrace/) ---
  bool traced() const { return trace_flags() != 0; }  // [any]
  // Of ptrace/ptrace.h. The acquire makes what stands in the tracee's role visible.
  uint32_t trace_flags() const { return trace_flags_.load(std::memory_order_acquire); }  // [any]
  // [any, in a stop] The mask as a tracer sees and sets it: the one that comes back when a call
  // that has changed it for its duration ends; and what is pending, from `offset` on.
  SigSet TracedMask() const { return saved_mask_.value_or(signal_mask()); }
  void SetTracedMask(SigSet mask);
  std::vector<siginfo_t> PeekSignals(bool shared, uint64_t offset, size_t count) const;
  std::vector<base::Ref<Task>> Tracees() const;  // [any] those of this thread
  // What is to be done at a system call besides making it: kWork* of ptrace/ptrace.h.
  uint32_t syscall_work() const { return syscall_work_.load(std::memory_order_relaxed); }  // [any]

  // --- calls that the platform answers without the kernel ---
  // To be returned by the handler of such a call, with its arguments in regs(): the guest's thread
  // carries it out on its way back. See platform::Context::AnswerInLane.
  base::Result<uint64_t> AnswerInLane(int nr, int64_t remaining_ns = -1);
  // Has the platform answer the next reads and writes of descriptor `fd`, which is `file`, by
  // lanes, if both may have some (lanes.cc).
  void ConsiderLanes(int fd, FileDescription& file);
  bool HasLanes() const { return lane_creds_ == creds_; }
  // Has the platform answer the next reads of descriptor `fd`, which is `file`, by what it is told
  // of it, if both may be. May park.
  void LendFile(int fd, FileDescription& file);
  // The same for a file that was opened just now, with its first bytes, if that has mostly been of
  // use. May park.
  void LendBegin(int fd, FileDescription& file);
  // What the call at hand means by `fd`, null if nothing: one that has waited for a lane of a
  // description goes on with that, although the descriptor may have been closed meanwhile.
  base::Ref<FileDescription> FileOf(int fd);
  // FdTable::LaneKeeper, of the current task's table: its threads that wait for lanes of `file` go
  // on in the sentry.
  static void KeepForLaneWaits(int fd, const base::Ref<FileDescription>& file);
  // A path has been looked up, the last link followed or not: has the platform answer such
  // look-ups, and enters the outcome if it is asked for again (lanes.cc). May park.
  void ConsiderPath(int dirfd, std::string_view path, bool follows);
  // The same for the attributes of `file` by its descriptor, which have been asked for. May park.
  void ConsiderFile(int fd, FileDescription& file);
  // `file` was opened as descriptor `fd`: has the platform close it, if it may. Perhaps it will be
  // read, and its attributes asked for. May park.
  void ConsiderOpened(int fd, FileDescription& file);
  // The task's look-ups are the sentry's from now on, until it asks for others: what they give has
  // changed.
  void LeavePaths();
  // They are until it makes one more. [any]
  void HandOffLookUps();

  // --- state for /proc, getrusage and others ---
  TaskState state() const { return state_.load(std::memory_order_relaxed); }  // [any] see StateChar
  char StateChar() const;                                   // [any] as in /proc/PID/stat
  Usage usage() const;                                      // [any]
  int64_t CpuTimeNs() const;                                // [any]
  int64_t start_time_ns() const { return start_time_ns_; }  // CLOCK_MONOTONIC
  int current_syscall() const {
    return syscall_nr_.load(std::memory_order_relaxed);
  }                        // [any] -1: none
  bool is_leader() const;  // [any]
  // What a task waits in, for /proc/PID/syscall. [any]
  struct Blocked {
    bool running = true;  // not blocked; the rest says nothing
    int nr = -1;          // -1: not in a call
    platform::Context::LastCall call;
  };
  Blocked BlockedIn() const;

  // Attributes of prctl(2), sched_*(2), ioprio and the like. Each is read by others for /proc.
  std::atomic<bool> no_new_privs{false};
  std::atomic<int> pdeath_signal{0};
  std::atomic<int> nice{0};
  std::atomic<int> sched_policy{0}, sched_priority{0};
  std::atomic<bool> sched_reset_on_fork{false};
  std::atomic<int> io_priority{0};
  std::atomic<uint32_t> personality{0};
  std::atomic<uint64_t> timer_slack_ns{50000};
  std::atomic<uint64_t> default_timer_slack_ns{50000};  // what the thread was made with
  std::atomic<int> mempolicy{0};  // MPOL_* and its flags; there is one NUMA node
  // sched_setaffinity(2): bit n for processor n.
  std::array<std::atomic<uint64_t>, 2> cpu_mask_words{~uint64_t{0}, ~uint64_t{0}};
  std::atomic<int> thp_disable{0};
  std::atomic<int> mce_kill{2};
  std::atomic<bool> io_flusher{false};  // prctl(PR_SET_IO_FLUSHER)
  // What rseq(2) has registered with the host for this thread; addr 0: nothing.
  struct Rseq {
    uint64_t addr = 0;
    uint32_t length = 0, signature = 0;
  };
  // What the thread has told of places in its memory.
  struct Words {
    uint64_t clear_child_tid = 0;
    uint64_t robust_list = 0;
    Rseq rseq;
  };
  // With what the thread has set without the kernel.
  Words& words();
  Words WordsNow() const;  // [any]
  // Bytes and calls of read(2) and write(2) and their like, for /proc/PID/io.
  IoCounts io;
  // The semaphores to be undone at the end, shared with CLONE_SYSVSEM; and the AIO contexts of the
  // memory, shared with CLONE_VM. Their code keeps there what it needs; null once the task has
  // exited.
  base::Ref<SharedPart> sem_undo = base::MakeRef<SharedPart>();
  base::Ref<SharedPart> aio = base::MakeRef<SharedPart>();

 private:
  friend class Kernel;
  friend class Ptrace;
  friend class StoppedTracee;
  friend class StubWatch;
  friend class ThreadGroup;
  friend class Tty;

  Task(Kernel* kernel, base::Ref<ThreadGroup> group, base::Ref<Pid> pid);
  ~Task() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  // platform::TrapListener: unparks the fiber; begins the exit.
  void OnTrap() override;
  void OnGone(int signo) override;

  // The fiber's main function and its parts (run.cc).
  void Start();
  void Main();
  void RunGuest();
  void WaitForThaw();
  void ResumeAndPark(platform::ResumeMode mode);
  void RunOnlyOrders(std::vector<platform::Order> orders);
  void HandleTrap();
  void HandleSyscall();
  std::string LaneDomain() const;
  std::string PathDomain(int root_mount) const;
  PathTable* PathsNow();
  // The table that the task's look-ups are, or soon will be, answered from; null: there is none.
  PathTable* JoinPaths(FsContext::Place* place);
  // Has the platform know where the directory or file of descriptor `fd` stands in such tables.
  void SetFdPlace(int fd, FileDescription& file);
  void TellFdPlaces();
  // Has the platform close descriptor `fd`, which leads to `file`, if it may.
  void LendClose(int fd, const FileDescription& file);
  void FinishLaneCall();
  bool EnterWithWork(int* nr, base::Result<uint64_t>* result);
  void FinishSyscall(const base::Result<uint64_t>& result);
  void HandleFault();
  void HandleInterrupt();
  void FlushQueuedOrders();
  void HandleFailedOrder(size_t index, int error);

  void PublishIdentity();
  void UpdateLanes();
  bool MayAnswerThreadCalls() const;

  // task_seccomp.cc. True if the call at hand is to be made; else `*result` is its outcome, if the
  // task is not about to exit. A tracer may make it another call.
  bool AskSeccomp(int* nr, base::Result<uint64_t>* result, bool traced_already = false);
  void SetSeccompMode(int mode);
  void DieOfSeccomp(int signo, bool whole_process);

  // signal_delivery.cc, signal_frame.cc, stop.cc
  void DeliverSignals();
  // The action for a signal that was taken. Requires group_->signal_mutex().
  SigAction TakeAction(int signo);
  void NoteTaken(const siginfo_t& info);
  void HandleDefault(const siginfo_t& info);
  // `now`: the frame is written before this returns; else on the way to the handler, and again with
  // `now` if that fails.
  void SetupFrame(const siginfo_t& info, const SigAction& action, bool now = false);
  bool WriteFrame(std::vector<platform::Order> orders, std::initializer_list<uint64_t> touched);
  void FrameFailed(int signo);
  bool OnAltStack(uint64_t sp) const;
  void PrepareRestart(bool handler, uint64_t sa_flags);
  void StopGroup(int signo);
  void StopSelf();
  // This task stops for its group: true if it was the last. Requires group_->signal_mutex().
  bool JoinGroupStop();
  // Require group_->signal_mutex().
  void RecalcPending();
  void Kick();
  void KickFatal();
  // True if the task has to be looked at again; ends its stub if it was looked at long enough.
  bool CheckStub();
  bool Wants(int signo) const;
  void SetMaskLocked(SigSet mask);
  // The mask may be changed by the thread without a call while no signal is pending for it. These
  // require group_->signal_mutex(), the first and last that the thread is stopped.
  void OpenMaskLocked();
  void CloseMaskLocked();
  void TakeMask();

  // exit.cc
  void FinishExit();
  // `last`: no other thread of the process goes on using the memory.
  void ReleaseMemory(bool last);
  int64_t ContextCpuNs() const;
  // Keeps the size of memory that is about to be left, for getrusage.
  void NoteResident();
  void WalkRobustList();
  void ReleaseResources();
  void CompleteVfork();

  // clone.cc
  void CopyTo(Task& child, const CloneArgs& args);
  base::Status CloneNamespaces(uint64_t flags, Task& child);
  base::Status CloneMemory(const CloneArgs& args, Task& child);
  base::Status LinkChild(const CloneArgs& args, Task& child);
  void DropUnstarted();
  base::Status CheckProcessLimits();

  // exec.cc
  base::Status KillOtherThreads();
  void BecomeLeader();
  void Adopt(LoadedProgram program);

  // Of a vfork: the child no longer uses its parent's memory.
  struct VforkDone : base::RefCounted {
    std::atomic<bool> done{false};
    fiber::WaitQueue queue;
  };
  // How many tasks use one MemoryManager (Linux: mm_users).
  struct MmUsers : base::RefCounted {
    std::atomic<int> tasks{1};
  };

  Kernel* const kernel_;
  const base::Ref<ThreadGroup> group_;
  const int64_t start_time_ns_;

  mutable absl::Mutex mutex_;  // guards the references below against readers other than current
  base::Ref<Pid> pid_;
  base::Ref<PidNamespace> pid_ns_, child_pid_ns_;
  base::Ref<const Credentials> creds_;
  base::Ref<UserCount> user_count_;  // of creds_->ruid
  base::Ref<MemoryManager> mm_;
  base::Ref<MmUsers> mm_users_;
  base::Ref<FsContext> fs_;
  base::Ref<FdTable> fds_;
  base::Ref<MountNamespace> mount_ns_;
  base::Ref<UtsNamespace> uts_ns_;
  base::Ref<IpcNamespace> ipc_ns_;
  base::Ref<NetNamespace> net_ns_;
  base::Ref<CgroupNamespace> cgroup_ns_;
  std::string comm_;
  std::unique_ptr<platform::Context> context_;  // changed under mutex_ and the signal mutex

  base::Ref<fiber::Fiber> fiber_;  // set under the signal mutex
  std::atomic<fiber::Fiber*> trap_fiber_{nullptr};
  std::atomic<bool> trapped_{false};
  std::atomic<TaskState> state_{TaskState::kRunning};
  std::atomic<bool> in_guest_{false};
  // For StubWatch (stub_watch.cc): how often the stub was resumed, and what the task waits for.
  enum class Waits : uint64_t { kNo, kGuest, kOrders, kFill };
  static constexpr uint64_t kWaitsMask = 3;
  std::atomic<uint64_t> rounds_{0};
  uint64_t watched_rounds_ = 0;  // at the last look; under the signal mutex
  int watched_looks_ = 0;
  int64_t watched_cpu_ns_ = 0;
  trace::CallTimes call_times_;  // the fiber's
  std::atomic<int> syscall_nr_{-1};
  bool gone_ = false;  // the host thread is dead

  // Signals. Guarded by group_->signal_mutex(), except what only current touches.
  std::atomic<bool> signal_pending_{false};
  std::atomic<SigSet> blocked_{0};
  std::atomic<bool> mask_open_{false};  // written under the mutex
  PendingSignals pending_;
  SigSet forced_ = 0;                 // of pending_: raised by ForceSignal
  bool stop_counted_ = false;         // this task still has to stop
  bool stop_dequeued_ = false;        // it took a stop signal and no SIGCONT came since
  bool dead_ = false;                 // on its way out: gets no signals
  std::optional<SigSet> saved_mask_;  // of SetTemporaryMask
  AltStack alt_stack_;
  Words words_;
  std::function<base::Result<uint64_t>(Task&)> restart_block_;
  bool copy_out_failed_ = false;  // the current call wrote to a bad address
  int restart_code_ = 0;          // the current call's result, if it asks for a restart
  bool rax_kept_ = false;         // the call leaves rax as it is
  // The table of paths that its look-ups are answered from, of whom it is, and how many have
  // reached the sentry, up to a bound. The fiber's.
  base::Ref<PathTable> paths_;
  base::Ref<const Credentials> paths_creds_;
  uint64_t paths_namespace_ = 0;
  uint32_t path_asks_ = 0;
  // Those of its address space, if it is to have some: FindLanes makes them. Null: it is not.
  base::Ref<LaneBinding> FindLanes();
  // A thread begins with the lanes of who makes it.
  void PassLanes(Task& child);
  base::Ref<const Credentials> lane_creds_;  // with which FindLanes has found its domain
  // Its context has the places of fds_ in mm_. The fiber's.
  bool has_fd_places_ = false;
  bool told_fd_places_ = false;  // its context knows of them, and may close what is lent so
  bool attrs_at_open_ = false;   // fstat(2) is expected of what is opened to be read
  uint16_t attr_opens_ = 0;      // of which so many were readied for that
  std::optional<std::pair<int, int64_t>> lane_call_;  // of AnswerInLane, until the guest resumes
  uint64_t fault_trapno_ = 0, fault_error_ = 0, fault_addr_ = 0;  // of the last fault, for frames

  std::atomic<uint32_t> syscall_work_{0};
  std::atomic<uint32_t> trace_flags_{0};  // written under task_mutex and the signal mutex
  std::unique_ptr<Tracee> tracee_;        // made under both, when it is first traced
  std::vector<base::Ref<Task>> tracees_;  // under task_mutex

  std::atomic<int> seccomp_mode_{0};
  base::Ref<const SeccompFilter> seccomp_filter_;  // changed under the signal mutex and mutex_

  // Exit.
  std::atomic<bool> must_die_{false};  // exec by another thread
  bool exit_pending_ = false;
  int exit_status_ = 0;
  base::Ref<VforkDone> vfork_;  // of the parent that waits; guarded by mutex_

  // Orders left for the way back to the guest.
  struct QueuedGroup {
    size_t first, count;
    std::function<int64_t(int)> on_failure;
  };
  std::vector<platform::Order> queued_orders_;
  std::vector<QueuedGroup> queued_groups_;

  int64_t cpu_start_ns_ = 0;  // the stub's CPU time when the process began to use it; under mutex_
  std::atomic<int64_t> system_ns_{0}, max_rss_kb_{0};
  std::atomic<int64_t> min_faults_{0}, maj_faults_{0};

  // Of FileOf. Dropped at the end of the call, or when the guest goes on.
  void DropKeptFile();
  std::atomic<bool> has_kept_file_{false};
  int kept_fd_ ABSL_GUARDED_BY(mutex_) = -1;
  base::Ref<FileDescription> kept_file_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
