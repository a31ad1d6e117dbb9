// Kernel: everything of one sandbox.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/kernel/cgroup/cgroup.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/stub_watch.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace platform {
class Platform;
}  // namespace platform

namespace sentry {

class Vfs;

inline constexpr int kMaxSyscall = 512;
// What uname(2) and /proc/version tell: the Linux whose behaviour is followed.
inline constexpr char kLinuxRelease[] = "6.12.0-runsc";
inline constexpr char kLinuxVersion[] = "#1 SMP PREEMPT_DYNAMIC 2026-11-24";

// Lives as long as the sentry. Thread-safe.
class Kernel {
 public:
  // Answers one system call; installed by sentry/syscalls.
  using Dispatch = base::Result<uint64_t> (*)(Task& t, int nr);

  // `limits`: of the root group.
  Kernel(std::unique_ptr<platform::Platform> platform, const Cgroup::Limits& limits);
  ~Kernel();
  // The one kernel of this process; set by the constructor.
  static Kernel& Get();

  platform::Platform& platform() { return *platform_; }
  Vfs& vfs() { return *vfs_; }
  // A place for a description that has no file (anon_inode).
  Path AnonPath(std::string name);
  void set_dispatch(Dispatch dispatch) { dispatch_ = dispatch; }
  Dispatch dispatch() const { return dispatch_; }

  // --- root namespaces ---
  // The PID namespace above all others: those of the containers are its children, so that every
  // process has a number in it.
  const base::Ref<UserNamespace>& root_user_ns() const { return root_user_ns_; }
  const base::Ref<PidNamespace>& root_pid_ns() const { return root_pid_ns_; }
  const base::Ref<UtsNamespace>& root_uts_ns() const { return root_uts_ns_; }
  const base::Ref<IpcNamespace>& root_ipc_ns() const { return root_ipc_ns_; }
  const base::Ref<NetNamespace>& root_net_ns() const { return root_net_ns_; }
  const base::Ref<CgroupNamespace>& root_cgroup_ns() const { return root_cgroup_ns_; }
  // The group of the first container, and of what is in no container.
  const base::Ref<Cgroup>& root_cgroup() const { return root_cgroup_; }

  // --- who asks ---
  // The namespaces and the group of the task whose fiber this is, of the container that is being
  // built on it, or the root ones. A task on its way out has none left: its members are null then.
  NamespaceSet CurrentNamespaces();
  base::Ref<Cgroup> CurrentCgroup();
  // While it lives, the current fiber, which is no task's, acts inside of a container. `ns` is
  // complete and outlives it.
  class ActsIn {
   public:
    ActsIn(Kernel* kernel, const NamespaceSet* ns, const base::Ref<Cgroup>& cgroup);
    ~ActsIn();
    ActsIn(const ActsIn&) = delete;
    ActsIn& operator=(const ActsIn&) = delete;

   private:
    Kernel* const kernel_;
  };

  // --- tasks ---
  // The tree of processes, groups and sessions, and what Pids point to (Linux: tasklist_lock).
  // First in the order; never held across a park.
  absl::Mutex& task_mutex() ABSL_LOCK_RETURNED(task_mutex_) { return task_mutex_; }
  // By number in `ns`; null if there is none. A zombie leader is found too.
  base::Ref<Task> FindTask(const PidNamespace& ns, int tid);
  base::Ref<ThreadGroup> FindThreadGroup(const PidNamespace& ns, int pid);
  base::Ref<ProcessGroup> FindProcessGroup(const PidNamespace& ns, int pgid);
  // The process that `pid` is the id of; null if it has been reaped.
  base::Ref<ThreadGroup> GroupOf(const Pid& pid);
  std::vector<base::Ref<ThreadGroup>> Members(ProcessGroup& pgrp);
  // All that are visible in `ns`, by number; zombies that are not yet reaped included.
  std::vector<base::Ref<ThreadGroup>> ThreadGroups(const PidNamespace& ns);
  std::vector<base::Ref<Task>> Tasks(const PidNamespace& ns);
  // The processes and threads of a group, in no order.
  std::vector<base::Ref<ThreadGroup>> ThreadGroups(const Cgroup& cgroup);
  std::vector<base::Ref<Task>> Tasks(const Cgroup& cgroup);
  int task_count() const { return task_count_.load(std::memory_order_relaxed); }
  // Sends to each member; false if there was none. The sender's permission is the caller's matter.
  bool SignalProcessGroup(ProcessGroup& pgrp, const siginfo_t& info);

  // setsid(2): the new session's id in t's namespace; EPERM if t's process leads a group.
  base::Result<int> NewSession(Task& t);
  // setpgid(2), with its checks (kernel/sys.c).
  base::Status SetProcessGroup(Task& t, int pid, int pgid);

  // A process that is a child of nobody in the sandbox: the container's init, or of `runsc exec`.
  struct NewProcess {
    base::Ref<Credentials> creds;
    base::Ref<FsContext> fs;
    base::Ref<FdTable> fds;
    base::Ref<MountNamespace> mount_ns;
    NamespaceSet ns;           // a member that is null: the root's
    base::Ref<Cgroup> cgroup;  // null: the root's
    std::string path;          // of the executable, looked up already
    std::vector<std::string> argv, envp;
    std::vector<std::pair<int, Rlimits::Limit>> rlimits;
    bool no_new_privs = false;
    int oom_score_adj = 0;
    base::Ref<Tty> tty;  // controlling terminal, or null
    uint32_t personality = 0;
  };
  // Makes it, loaded and stopped before its first instruction. Must run on a fiber (the loader
  // parks). The first one made in a PID namespace is its init.
  base::Result<base::Ref<ThreadGroup>> CreateProcess(NewProcess process);
  // Lets it run.
  void StartProcess(ThreadGroup& process);
  // Calls `done(status)` once when the group has ended: now, or from a fiber later.
  void OnExit(ThreadGroup& process, std::function<void(int status)> done);

  // Stops all tasks of a group on their way back to the guest, or lets them go on (Linux: the
  // freezer of a cgroup).
  void SetFrozen(Cgroup& cgroup, bool frozen);
  // Parks until no process of the group is left but zombies, or `timeout_ns` is over: false. On a
  // fiber.
  bool AwaitEmpty(Cgroup& cgroup, int64_t timeout_ns);

  // Takes task_mutex: no member has a parent in another group of the same session (POSIX: its stop
  // signals from the terminal are ignored).
  bool IsOrphanedGroup(ThreadGroup& process);
  // Under task_mutex.
  bool IsOrphanedLocked(ProcessGroup& pgrp, ThreadGroup* ignored);
  bool SignalGroupLocked(ProcessGroup& pgrp, const siginfo_t& info);
  // Counts of a user, shared by all that have this real uid.
  base::Ref<UserCount> CountOfUser(uid_t kuid);

  // --- clocks (nanoseconds) ---
  int64_t MonotonicNs() const;
  int64_t RealtimeNs() const;
  int64_t boot_monotonic_ns() const { return boot_monotonic_ns_; }  // when the sandbox started
  int64_t boot_realtime_ns() const { return boot_realtime_ns_; }

  // --- counters ---
  std::array<std::atomic<uint64_t>, kMaxSyscall> unimplemented{};  // answered with ENOSYS
  std::atomic<uint64_t> forks{0};  // processes and threads made, for /proc/stat
  std::atomic<uint64_t> context_switches{0};
  std::atomic<uint64_t> faults{0};

  // --strace: where lines go; null if off (sentry/trace).
  std::atomic<bool> strace{false};

 private:
  friend class StubWatch;
  friend class Task;
  friend class ThreadGroup;
  struct ExitWatch {
    ThreadGroup* group;
    std::function<void(int)> done;
  };

  // clone.cc. Under task_mutex. ENOMEM if the PID namespace has lost its init.
  base::Status LinkGroup(ThreadGroup& group, Task& leader, Task* parent,
                         const base::Ref<ProcessGroup>& pgrp);
  // exit.cc
  Task* FindReaper(Task& dying);
  void Reparent(Task& dying, Deferred* later);
  void HangUpIfOrphaned(ProcessGroup& pgrp, ThreadGroup* child, ThreadGroup* leaver);
  void ZapNamespace(Task& init);
  void ExitNotify(Task& t, bool last);
  void RunExitWatches(ThreadGroup& group, int status, Deferred* later);

  const std::unique_ptr<platform::Platform> platform_;
  std::unique_ptr<Vfs> vfs_;
  Dispatch dispatch_ = nullptr;
  const base::Ref<UserNamespace> root_user_ns_;
  const base::Ref<PidNamespace> root_pid_ns_;
  const base::Ref<UtsNamespace> root_uts_ns_;
  const base::Ref<IpcNamespace> root_ipc_ns_;
  const base::Ref<NetNamespace> root_net_ns_;
  const base::Ref<CgroupNamespace> root_cgroup_ns_;
  const base::Ref<Cgroup> root_cgroup_;
  struct Place {
    const NamespaceSet* ns;
    base::Ref<Cgroup> cgroup;
  };
  absl::Mutex places_mutex_;  // a leaf
  absl::flat_hash_map<const fiber::Fiber*, Place> places_ ABSL_GUARDED_BY(places_mutex_);
  absl::Mutex users_mutex_;
  absl::flat_hash_map<uid_t, base::Ref<UserCount>> users_ ABSL_GUARDED_BY(users_mutex_);
  absl::Mutex task_mutex_;
  // All that are not reaped; each holds a reference.
  absl::flat_hash_set<ThreadGroup*> groups_ ABSL_GUARDED_BY(task_mutex_);
  fiber::WaitQueue groups_queue_;  // woken when a group has ended
  std::vector<ExitWatch> exit_watches_ ABSL_GUARDED_BY(task_mutex_);
  std::atomic<int> task_count_{0};
  int64_t boot_monotonic_ns_ = 0, boot_realtime_ns_ = 0;
  StubWatch stub_watch_{this};
};

}  // namespace sentry
