#include "sentry/kernel/task.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <utility>

#include "sentry/kernel/exec.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/keys/keys.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/seccomp/filter.h"

namespace sentry {

Task::Task(Kernel* kernel, base::Ref<ThreadGroup> group, base::Ref<Pid> pid)
    : kernel_(kernel),
      group_(std::move(group)),
      start_time_ns_(kernel->MonotonicNs()),
      pid_(std::move(pid)) {
  pid_ns_ = child_pid_ns_ = pid_->ns();
  kernel_->task_count_.fetch_add(1, std::memory_order_relaxed);
  group_->cgroup()->AddTask();
}

Task::~Task() {
  Keys::Get().Forget(*this);
  group_->cgroup()->RemoveTask();
  kernel_->task_count_.fetch_sub(1, std::memory_order_relaxed);
}

// --- references that others may read ---

base::Ref<MemoryManager> Task::mm_ref() const {
  absl::MutexLock l(&mutex_);
  return mm_;
}
base::Ref<const Credentials> Task::credentials() const {
  absl::MutexLock l(&mutex_);
  return creds_;
}
void Task::SetCredentials(base::Ref<const Credentials> creds) {
  base::Ref<UserCount> count = kernel_->CountOfUser(creds->ruid);
  count->processes.fetch_add(1, std::memory_order_relaxed);
  {
    absl::MutexLock l(&mutex_);
    std::swap(creds_, creds);
    std::swap(user_count_, count);
  }
  if (count) count->processes.fetch_sub(1, std::memory_order_relaxed);
  if (mm_ && !IsSameSubject(*creds_, *creds)) {
    mm_->DropLanes();
    mm_->address_space().DropFileWindows();
    LeavePaths();
  } else if (mm_ && creds_->securebits != creds->securebits) {
    LeavePaths();  // access(2) finds something else
  }
  PublishIdentity();
}
base::Ref<Pid> Task::pid_ref() const {
  absl::MutexLock l(&mutex_);
  return pid_;
}
base::Ref<FsContext> Task::fs_context_ref() const {
  absl::MutexLock l(&mutex_);
  return fs_;
}
base::Ref<FdTable> Task::fd_table_ref() const {
  absl::MutexLock l(&mutex_);
  return fds_;
}
base::Ref<MountNamespace> Task::mount_namespace_ref() const {
  absl::MutexLock l(&mutex_);
  return mount_ns_;
}
base::Ref<UtsNamespace> Task::uts_namespace_ref() const {
  absl::MutexLock l(&mutex_);
  return uts_ns_;
}
base::Ref<IpcNamespace> Task::ipc_namespace_ref() const {
  absl::MutexLock l(&mutex_);
  return ipc_ns_;
}
base::Ref<NetNamespace> Task::net_namespace_ref() const {
  absl::MutexLock l(&mutex_);
  return net_ns_;
}
base::Ref<CgroupNamespace> Task::cgroup_namespace_ref() const {
  absl::MutexLock l(&mutex_);
  return cgroup_ns_;
}
void Task::SetFsContext(base::Ref<FsContext> fs) {
  if (context_) context_->SetPathPlace(0);
  absl::MutexLock l(&mutex_);
  std::swap(fs_, fs);
}
void Task::SetFdTable(base::Ref<FdTable> fds) {
  if (context_) {
    context_->SetLaneOwner(0);
    context_->SetFdPlaces(0);
  }
  has_fd_places_ = told_fd_places_ = false;
  absl::MutexLock l(&mutex_);
  std::swap(fds_, fds);
}
void Task::SetMountNamespace(base::Ref<MountNamespace> ns) {
  if (mm_) mm_->DropLanes();  // of the domain of the old one
  LeavePaths();
  absl::MutexLock l(&mutex_);
  std::swap(mount_ns_, ns);
}
void Task::SetUtsNamespace(base::Ref<UtsNamespace> ns) {
  absl::MutexLock l(&mutex_);
  std::swap(uts_ns_, ns);
}
void Task::SetIpcNamespace(base::Ref<IpcNamespace> ns) {
  absl::MutexLock l(&mutex_);
  std::swap(ipc_ns_, ns);
}
void Task::SetNetNamespace(base::Ref<NetNamespace> ns) {
  absl::MutexLock l(&mutex_);
  std::swap(net_ns_, ns);
}
std::string Task::comm() const {
  absl::MutexLock l(&mutex_);
  return comm_;
}
void Task::SetComm(std::string_view comm) {
  absl::MutexLock l(&mutex_);
  comm_ = comm.substr(0, 15);
}

// --- identity ---

int Task::Tid() const { return pid_->NumberIn(*pid_ns_); }
int Task::Pid_() const { return group_->PidIn(*pid_ns_); }

void Task::PublishIdentity() {
  if (!context_) return;
  // A trace shows every call, so none may be answered below the table.
  UpdateLanes();
  const UserNamespace& ns = *creds_->user_ns;
  const int pid = Pid_(), tid = Tid();
  // Held so that a change of parent (Reparent) is published before or after this as a whole.
  absl::MutexLock l(&kernel_->task_mutex());
  context_->Publish({.pid = pid,
                     .tid = tid,
                     .ppid = group_->ParentPidLocked(*pid_ns_),
                     .uid = ns.MapUidOut(creds_->ruid),
                     .euid = ns.MapUidOut(creds_->euid),
                     .gid = ns.MapGidOut(creds_->rgid),
                     .egid = ns.MapGidOut(creds_->egid)});
}

namespace {
void TakeWords(const platform::Context::ThreadWords& from, Task::Words* to) {
  if (from.clear_child_tid_changed) to->clear_child_tid = from.clear_child_tid;
  if (from.robust_list_changed) to->robust_list = from.robust_list;
  if (from.rseq_changed) to->rseq = {from.rseq_addr, from.rseq_length, from.rseq_signature};
}
}  // namespace

Task::Words& Task::words() {
  if (context_) {
    TakeWords(context_->PeekThreadWords(), &words_);
    context_->ForgetThreadWords();
  }
  return words_;
}

Task::Words Task::WordsNow() const {
  absl::MutexLock l(&mutex_);
  Words words = words_;
  if (context_) TakeWords(context_->PeekThreadWords(), &words);
  return words;
}

bool Task::is_leader() const { return pid_ref() == group_->pid(); }

std::vector<base::Ref<Task>> Task::Tracees() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return tracees_;
}

char Task::StateChar() const {
  switch (state()) {
    case TaskState::kStopped:
      return 'T';
    case TaskState::kTraced:
      return 't';
    case TaskState::kZombie:
      return 'Z';
    case TaskState::kDead:
      return 'X';
    default:
      break;
  }
  absl::MutexLock l(&group_->signal_mutex());
  if (in_guest_.load(std::memory_order_relaxed)) {
    return context_ && context_->WaitsInFutex() ? 'S' : 'R';
  }
  return fiber_ && fiber_->parked() ? 'S' : 'R';
}

// Linux: task_current_syscall().
Task::Blocked Task::BlockedIn() const {
  absl::MutexLock l(&group_->signal_mutex());
  if (!context_) return {.running = false};
  const bool self = this == Current();
  const bool in_guest = !self && in_guest_.load(std::memory_order_relaxed);
  const bool waits = in_guest ? context_->WaitsInFutex() : self || (fiber_ && fiber_->parked());
  if (!waits) return {};
  Blocked blocked{.running = false, .call = context_->PeekCall()};
  if (in_guest) {
    blocked.nr = static_cast<int>(blocked.call.call.nr);  // as the guest has it
  } else if (current_syscall() >= 0) {
    blocked.nr = current_syscall();
  }
  return blocked;
}

int64_t Task::ContextCpuNs() const {
  absl::MutexLock l(&mutex_);
  return context_ ? context_->CpuTimeNs() - cpu_start_ns_ : 0;
}

// The host tells the CPU time of a stub as a whole, so threads of one process share it evenly.
int64_t Task::CpuTimeNs() const {
  int64_t total = group_->cpu_base_ns_.load(std::memory_order_relaxed) + ContextCpuNs();
  return total / std::max(group_->thread_count(), 1);
}

namespace {
// Where the host does not tell, what was mapped at most bounds what was resident.
int64_t PeakKb(const MemoryManager& mm) {
  int64_t resident = mm.ResidentBytes();
  return (resident >= 0 ? resident : static_cast<int64_t>(mm.stats().peak_vm)) / 1024;
}
}  // namespace

void Task::NoteResident() {
  if (mm_) max_rss_kb_.store(std::max(max_rss_kb_.load(), PeakKb(*mm_)));
}

Usage Task::usage() const {
  Usage u;
  u.user_ns = CpuTimeNs();
  u.system_ns = system_ns_.load(std::memory_order_relaxed);
  u.min_faults = min_faults_.load(std::memory_order_relaxed);
  u.maj_faults = maj_faults_.load(std::memory_order_relaxed);
  {
    absl::MutexLock l(&group_->signal_mutex());
    if (fiber_) u.voluntary_switches = fiber_->waits();
  }
  u.max_rss_kb = max_rss_kb_.load(std::memory_order_relaxed);
  if (base::Ref<MemoryManager> mm = mm_ref()) u.max_rss_kb = std::max(u.max_rss_kb, PeakKb(*mm));
  return u;
}

// --- files ---

base::Result<base::Ref<FileDescription>> Task::GetFile(int fd) const {
  base::Ref<FileDescription> file = fds_->Get(fd);
  if (!file) return base::Error(EBADF);
  return file;
}

base::Result<int> Task::InstallFile(base::Ref<FileDescription> file, bool cloexec, int min) {
  return fds_->Install(std::move(file), cloexec, min, Rlimit(RLIMIT_NOFILE));
}

base::Result<WalkContext> Task::Walk(int dirfd, std::string_view path, const Credentials* creds) {
  FsContext::View fs = fs_->view();
  WalkContext ctx{.creds = creds ? *creds : *creds_,
                  .ns = *mount_ns_,
                  .root = std::move(fs.root),
                  .start = std::move(fs.cwd),
                  .umask = fs.umask,
                  .resolve = 0};
  if (path.starts_with('/') || dirfd == AT_FDCWD) return ctx;
  base::Ref<FileDescription> dir = fds_->Get(dirfd);
  if (!dir) return base::Error(EBADF);
  Inode* inode = dir->inode();
  if (!path.empty() && (!inode || !inode->IsDir())) return base::Error(ENOTDIR);
  ctx.start = dir->path();
  return ctx;
}

}  // namespace sentry
