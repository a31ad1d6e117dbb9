#include "sentry/kernel/kernel.h"

#include <sys/epoll.h>

#include <algorithm>
#include <utility>

#include "platform/platform.h"
#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/async/sigio.h"
#include "sentry/kernel/exec.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/loader/loader.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {
Kernel* g_kernel = nullptr;
}  // namespace

Kernel& Kernel::Get() { return *g_kernel; }

Kernel::Kernel(std::unique_ptr<platform::Platform> platform, const Cgroup::Limits& limits)
    : platform_(std::move(platform)),
      vfs_(std::make_unique<Vfs>()),
      root_user_ns_(UserNamespace::NewRoot()),
      root_pid_ns_(base::MakeRef<PidNamespace>(nullptr, root_user_ns_)),
      root_uts_ns_(base::MakeRef<UtsNamespace>(root_user_ns_, "runsc", "(none)")),
      root_ipc_ns_(base::MakeRef<IpcNamespace>(root_user_ns_)),
      root_net_ns_(base::MakeRef<NetNamespace>(root_user_ns_)),
      root_cgroup_ns_(base::MakeRef<CgroupNamespace>(root_user_ns_)),
      root_cgroup_(base::MakeRef<Cgroup>(limits)),
      boot_monotonic_ns_(base::MonotonicNs()),
      boot_realtime_ns_(base::RealtimeNs()) {
  g_kernel = this;
  FileDescription::SetAsyncSender(&SendSigio);
  FdTable::SetLaneKeeper(&Task::KeepForLaneWaits);
}

Kernel::~Kernel() { g_kernel = nullptr; }

int64_t Kernel::MonotonicNs() const { return base::MonotonicNs(); }
int64_t Kernel::RealtimeNs() const { return base::RealtimeNs(); }

Path Kernel::AnonPath(std::string name) {
  return vfs_->AnonymousPath(base::MakeRef<AnonInode>(vfs_->anonymous_filesystem().get(),
                                                      mode_t{0600}, uid_t{0}, gid_t{0}),
                             std::move(name));
}

// --- who asks ---

NamespaceSet Kernel::CurrentNamespaces() {
  if (Task* t = Task::Current()) {
    return {.pid = base::Ref<PidNamespace>(&t->pid_namespace()),
            .uts = t->uts_namespace_ref(),
            .ipc = t->ipc_namespace_ref(),
            .net = t->net_namespace_ref(),
            .cgroup = t->cgroup_namespace_ref()};
  }
  if (const fiber::Fiber* f = fiber::Current()) {
    absl::MutexLock l(&places_mutex_);
    auto it = places_.find(f);
    if (it != places_.end()) return *it->second.ns;
  }
  return {root_pid_ns_, root_uts_ns_, root_ipc_ns_, root_net_ns_, root_cgroup_ns_};
}

base::Ref<Cgroup> Kernel::CurrentCgroup() {
  if (Task* t = Task::Current()) return t->thread_group().cgroup();
  if (const fiber::Fiber* f = fiber::Current()) {
    absl::MutexLock l(&places_mutex_);
    auto it = places_.find(f);
    if (it != places_.end()) return it->second.cgroup;
  }
  return root_cgroup_;
}

Kernel::ActsIn::ActsIn(Kernel* kernel, const NamespaceSet* ns, const base::Ref<Cgroup>& cgroup)
    : kernel_(kernel) {
  absl::MutexLock l(&kernel_->places_mutex_);
  kernel_->places_[fiber::Current()] = {ns, cgroup};
}

Kernel::ActsIn::~ActsIn() {
  absl::MutexLock l(&kernel_->places_mutex_);
  kernel_->places_.erase(fiber::Current());
}

// --- finding ---

base::Ref<Task> Kernel::FindTask(const PidNamespace& ns, int tid) {
  base::Ref<Pid> pid = ns.Find(tid);
  if (!pid) return nullptr;
  absl::MutexLock l(&task_mutex_);
  return base::Ref<Task>(pid->task);
}

base::Ref<ThreadGroup> Kernel::FindThreadGroup(const PidNamespace& ns, int number) {
  base::Ref<Pid> pid = ns.Find(number);
  if (!pid) return nullptr;
  absl::MutexLock l(&task_mutex_);
  return base::Ref<ThreadGroup>(pid->group);
}

base::Ref<ProcessGroup> Kernel::FindProcessGroup(const PidNamespace& ns, int pgid) {
  base::Ref<Pid> pid = ns.Find(pgid);
  if (!pid) return nullptr;
  absl::MutexLock l(&task_mutex_);
  return base::Ref<ProcessGroup>(pid->pgrp);
}

std::vector<base::Ref<ThreadGroup>> Kernel::ThreadGroups(const PidNamespace& ns) {
  std::vector<std::pair<int, base::Ref<ThreadGroup>>> found;
  {
    absl::MutexLock l(&task_mutex_);
    for (ThreadGroup* group : groups_) {
      if (int number = group->PidIn(ns)) found.emplace_back(number, base::Ref<ThreadGroup>(group));
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<base::Ref<ThreadGroup>> result;
  for (auto& [number, group] : found) result.push_back(std::move(group));
  return result;
}

std::vector<base::Ref<Task>> Kernel::Tasks(const PidNamespace& ns) {
  std::vector<std::pair<int, base::Ref<Task>>> found;
  {
    absl::MutexLock l(&task_mutex_);
    for (ThreadGroup* group : groups_) {
      for (const auto& t : group->tasks_) {
        if (int number = t->TidIn(ns)) found.emplace_back(number, t);
      }
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<base::Ref<Task>> result;
  for (auto& [number, task] : found) result.push_back(std::move(task));
  return result;
}

std::vector<base::Ref<ThreadGroup>> Kernel::ThreadGroups(const Cgroup& cgroup) {
  std::vector<base::Ref<ThreadGroup>> found;
  absl::MutexLock l(&task_mutex_);
  for (ThreadGroup* group : groups_) {
    if (group->cgroup().get() == &cgroup) found.emplace_back(group);
  }
  return found;
}

std::vector<base::Ref<Task>> Kernel::Tasks(const Cgroup& cgroup) {
  std::vector<base::Ref<Task>> found;
  absl::MutexLock l(&task_mutex_);
  for (ThreadGroup* group : groups_) {
    if (group->cgroup().get() != &cgroup) continue;
    found.insert(found.end(), group->tasks_.begin(), group->tasks_.end());
  }
  return found;
}

base::Ref<ThreadGroup> Kernel::GroupOf(const Pid& pid) {
  absl::MutexLock l(&task_mutex_);
  return base::Ref<ThreadGroup>(pid.group);
}

std::vector<base::Ref<ThreadGroup>> Kernel::Members(ProcessGroup& pgrp) {
  absl::MutexLock l(&task_mutex_);
  std::vector<base::Ref<ThreadGroup>> members;
  for (ThreadGroup* member : pgrp.members) members.emplace_back(member);
  return members;
}

bool Kernel::SignalGroupLocked(ProcessGroup& pgrp, const siginfo_t& info) {
  for (ThreadGroup* member : pgrp.members) member->SendSignal(info);
  return !pgrp.members.empty();
}

bool Kernel::SignalProcessGroup(ProcessGroup& pgrp, const siginfo_t& info) {
  absl::MutexLock l(&task_mutex_);
  return SignalGroupLocked(pgrp, info);
}

base::Ref<UserCount> Kernel::CountOfUser(uid_t kuid) {
  absl::MutexLock l(&users_mutex_);
  base::Ref<UserCount>& count = users_[kuid];
  if (!count) count = base::MakeRef<UserCount>();
  return count;
}

// --- processes from outside ---

base::Result<base::Ref<ThreadGroup>> Kernel::CreateProcess(NewProcess p) {
  auto or_root = [](auto& given, const auto& root) { return given ? std::move(given) : root; };
  base::Ref<PidNamespace> pid_ns = or_root(p.ns.pid, root_pid_ns_);
  base::Ref<Pid> pid = TRY(pid_ns->Allocate());
  auto group = base::MakeRef<ThreadGroup>(this, base::MakeRef<SignalHandlers>(),
                                          or_root(p.cgroup, root_cgroup_));
  for (const auto& [resource, limit] : p.rlimits) group->rlimits_.Set(resource, limit);
  group->oom_score_adj = p.oom_score_adj;
  auto task = base::MakeRef<Task>(this, group, pid);
  task->creds_ = p.creds;
  task->fs_ = p.fs;
  task->fds_ = p.fds;
  task->mount_ns_ = p.mount_ns;
  task->uts_ns_ = or_root(p.ns.uts, root_uts_ns_);
  task->ipc_ns_ = or_root(p.ns.ipc, root_ipc_ns_);
  task->net_ns_ = or_root(p.ns.net, root_net_ns_);
  task->cgroup_ns_ = or_root(p.ns.cgroup, root_cgroup_ns_);
  task->no_new_privs = p.no_new_privs;
  task->personality = p.personality;

  WalkContext walk = task->WalkFromCwd();
  loader::Executable file = TRY(loader::OpenExecutable(*vfs_, walk, p.path));
  loader::ExecArgs args(task->Rlimit(RLIMIT_STACK));
  TRY(args.Set(std::move(p.argv), std::move(p.envp)));
  loader::ExecImage image =
      TRY(loader::PrepareExec(*vfs_, walk, std::move(file), p.path, std::move(args)));
  bool begun = false;  // there is no old program
  LoadedProgram program = TRY(LoadProgram(*this, image, *p.creds, {.no_new_privs = p.no_new_privs},
                                          p.personality, *task,
                                          /*later=*/false, &begun));
  program.context->set_listener(task.get());
  task->context_ = std::move(program.context);
  task->mm_ = std::move(program.mm);
  task->mm_users_ = base::MakeRef<Task::MmUsers>();
  task->comm_ = program.comm;
  task->creds_ = std::move(program.creds);
  task->user_count_ = CountOfUser(task->creds_->ruid);
  group->did_exec = true;

  base::Status linked;
  {
    absl::MutexLock l(&task_mutex_);
    auto session = base::MakeRef<Session>(pid);
    session->leader = group.get();
    auto pgrp = base::MakeRef<ProcessGroup>(pid, session);
    linked = LinkGroup(*group, *task, nullptr, pgrp);
    if (linked.ok()) task->user_count_->processes.fetch_add(1, std::memory_order_relaxed);
  }
  if (!linked.ok()) {
    task->DropUnstarted();
    return linked.error();
  }
  if (p.tty) p.tty->AdoptSession(*group);
  task->PublishIdentity();
  return group;
}

void Kernel::StartProcess(ThreadGroup& process) {
  base::Ref<Task> leader = process.leader();
  if (leader) leader->Start();
}

void Kernel::SetFrozen(Cgroup& cgroup, bool frozen) {
  cgroup.set_frozen(frozen);
  if (!frozen) {
    cgroup.thaw_queue().WakeAll(EPOLLIN);
    return;
  }
  for (const base::Ref<Task>& task : Tasks(cgroup)) {
    absl::MutexLock l(&task->group_->signal_mutex());
    if (!task->dead_) task->Kick();
  }
}

bool Kernel::AwaitEmpty(Cgroup& cgroup, int64_t timeout_ns) {
  fiber::ParkOptions options;
  options.deadline_ns = MonotonicNs() + timeout_ns;
  return fiber::WaitUntil(
             groups_queue_, EPOLLIN,
             [&] {
               absl::MutexLock l(&task_mutex_);
               return std::none_of(groups_.begin(), groups_.end(), [&](ThreadGroup* group) {
                 return group->cgroup().get() == &cgroup && !group->zombie_;
               });
             },
             options) == fiber::WakeReason::kWoken;
}

void Kernel::OnExit(ThreadGroup& process, std::function<void(int)> done) {
  {
    absl::MutexLock l(&task_mutex_);
    if (!process.zombie_) {
      exit_watches_.push_back({&process, std::move(done)});
      return;
    }
  }
  done(process.exit_status());
}

void Kernel::RunExitWatches(ThreadGroup& group, int status, Deferred* later) {
  task_mutex_.AssertHeld();
  for (auto it = exit_watches_.begin(); it != exit_watches_.end();) {
    if (it->group != &group) {
      ++it;
      continue;
    }
    later->calls.push_back([done = std::move(it->done), status] { done(status); });
    it = exit_watches_.erase(it);
  }
}

}  // namespace sentry
