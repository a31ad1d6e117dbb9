#include "sentry/boot/kernel_container.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/time/time.h"
#include "platform/platform.h"
#include "sentry/base/log.h"
#include "sentry/boot/on_fiber.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fs/gofer/gofer_fs.h"
#include "sentry/fs/hostfd/host_file.h"
#include "sentry/kernel/fs_context.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/task.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/net/inet/stack.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {

constexpr int64_t kKillRoundNs = 100'000'000;
constexpr int kKillRounds = 100;
constexpr absl::Duration kExecsEnd = absl::Seconds(10);

// The value of `name` in an environment, or null.
const char* FindEnv(const std::vector<std::string>& env, std::string_view name) {
  for (const std::string& e : env) {
    if (e.size() > name.size() && e.compare(0, name.size(), name) == 0 && e[name.size()] == '=') {
      return e.c_str() + name.size() + 1;
    }
  }
  return nullptr;
}

}  // namespace

// The container's filter, from the instructions of the specification.
base::Status KernelContainer::MakeSeccomp() {
  if (spec_.seccomp.empty()) return base::Ok();
  std::vector<sock_filter> code(spec_.seccomp.size());
  static_assert(sizeof(sock_filter) == sizeof(uint64_t));
  memcpy(code.data(), spec_.seccomp.data(), code.size() * sizeof(sock_filter));
  BpfProgram program = TRY(BpfProgram::Check(std::move(code)));
  seccomp_ = TRY(SeccompFilter::New(std::move(program), nullptr, spec_.seccomp_log));
  return base::Ok();
}

base::Result<base::Ref<UserNamespace>> KernelContainer::MakeUserNamespace() {
  auto ns = base::MakeRef<UserNamespace>(kernel_.root_user_ns(), uid_t{0}, gid_t{0});
  auto convert = [](const std::vector<IdMapping>& mappings) {
    std::vector<IdMapEntry> map;
    for (const IdMapping& m : mappings) map.push_back({m.container_id, m.host_id, m.size});
    return map;
  };
  TRY(ns->SetUidMap(convert(spec_.uid_mappings)));
  TRY(ns->SetGidMap(convert(spec_.gid_mappings)));
  return ns;
}

base::Result<base::Ref<Credentials>> KernelContainer::MakeCredentials(const ProcessSpec& p) {
  base::Ref<Credentials> creds = Credentials::NewRoot(user_ns_);
  uid_t uid = TRY(user_ns_->MapUidIn(p.uid));
  gid_t gid = TRY(user_ns_->MapGidIn(p.gid));
  creds->ruid = creds->euid = creds->suid = creds->fsuid = uid;
  creds->rgid = creds->egid = creds->sgid = creds->fsgid = gid;
  creds->groups.clear();
  for (uint32_t group : p.additional_gids) creds->groups.push_back(TRY(user_ns_->MapGidIn(group)));
  std::sort(creds->groups.begin(), creds->groups.end());
  creds->bounding = p.caps.bounding & kAllCaps;
  creds->permitted = p.caps.permitted & kAllCaps;
  creds->effective = p.caps.effective & creds->permitted;
  creds->inheritable = p.caps.inheritable & kAllCaps;
  creds->ambient = p.caps.ambient & creds->permitted & creds->inheritable;
  return creds;
}

// As Go's exec.LookPath, whose words runc's users know.
base::Result<std::string> KernelContainer::FindProgram(const ProcessSpec& p, const WalkContext& ctx,
                                                       std::string* why) {
  const std::string& name = p.args[0];
  Vfs& vfs = kernel_.vfs();
  auto check = [&](const std::string& path) -> base::Status {
    Path found = TRY(vfs.Walk(ctx, path, {}));
    // As execve(2) has it; engines tell "permission denied" from other failures.
    if (found.dentry->inode()->IsDir()) return base::Error(EACCES);
    InodeAttr attr = TRY(vfs.GetAttr(found));
    // Root may execute what anybody may.
    if ((attr.mode & 0111) == 0) return base::Error(EACCES);
    return vfs.Access(ctx.creds, found, kMayExec);
  };
  auto fail = [&](int code) {
    const char* text = code == ENOENT ? "no such file or directory" : nullptr;
    std::string detail = text             ? "stat " + name + ": " + text
                         : code == EACCES ? "permission denied"
                                          : strerror(code);
    *why = "exec: \"" + name + "\": " + detail;
    return base::Error(code);
  };
  if (name.find('/') != std::string::npos) {
    base::Status status = check(name);
    if (!status.ok()) return fail(status.error().code());
    return name;
  }
  const char* path = FindEnv(p.env, "PATH");
  std::string_view rest = path ? path : "";
  int code = ENOENT;
  while (!rest.empty()) {
    size_t colon = rest.find(':');
    std::string dir(rest.substr(0, colon));
    rest = colon == std::string_view::npos ? "" : rest.substr(colon + 1);
    std::string candidate = (dir.empty() ? "." : dir) + "/" + name;
    base::Status status = check(candidate);
    if (status.ok()) return candidate;
    if (status.error().code() == EACCES) code = EACCES;
  }
  if (code == EACCES) return fail(code);
  *why = "exec: \"" + name + "\": executable file not found in $PATH";
  return base::Error(ENOENT);
}

base::Result<base::Ref<FdTable>> KernelContainer::MakeFiles(const ProcessSpec& p, ProcessFds fds,
                                                            bool init, const Credentials& creds,
                                                            base::Ref<Console>* console,
                                                            std::string* why) {
  auto table = base::MakeRef<FdTable>();
  int next = 0;
  auto install = [&](base::Ref<FileDescription> file) {
    return table->InstallAt(next++, std::move(file), false, UINT64_MAX);
  };
  size_t first = 0;
  if (p.terminal) {
    auto made =
        Console::New(kernel_, kernel_.vfs(), mounts_.devpts, std::move(fds.files[0]), creds);
    if (!made.ok()) {
      *why = std::string("console: ") + strerror(made.error().code());
      return made.error();
    }
    *console = std::move(*made);
    if (init) (*console)->RegisterAsSystemConsole(*cgroup_);
    (void)(*console)->SetWindowSize(p.console_rows, p.console_cols);
    base::Ref<FileDescription> slave = TRY((*console)->OpenSlave(creds));
    for (int i = 0; i < 3; ++i) TRY(install(slave));
    first = 3;
  }
  for (size_t i = first; i < fds.files.size(); ++i) {
    auto file = ImportHostFile(kernel_.vfs(), std::move(fds.files[i]));
    if (!file.ok()) {
      *why = "file descriptor " + std::to_string(i) + ": " + strerror(file.error().code());
      return file.error();
    }
    TRY(install(std::move(*file)));
  }
  return table;
}

base::Result<int32_t> KernelContainer::MakeProcess(const ProcessSpec& p, ProcessFds fds, bool init,
                                                   std::string* why) {
  base::Ref<Credentials> root = Credentials::NewRoot(user_ns_);
  base::Ref<Credentials> creds = TRY(MakeCredentials(p));
  Vfs& vfs = kernel_.vfs();
  WalkContext from_root{.creds = *root,
                        .ns = *mounts_.ns,
                        .root = mounts_.root,
                        .start = mounts_.root,
                        .umask = 0,
                        .resolve = 0};
  if (init) {
    auto found = vfs.Walk(from_root, p.cwd, {});
    if (!found.ok() && found.error().code() == ENOENT) {
      (void)MakeDirectories(vfs, mounts_, *root, p.cwd, 0755);
    }
  }
  auto cwd = vfs.Walk(from_root, p.cwd, WalkFlags{.need_dir = true});
  if (!cwd.ok()) {
    *why = "chdir to cwd (\"" + p.cwd +
           "\") set in config.json failed: " + strerror(cwd.error().code());
    return cwd.error();
  }
  WalkContext ctx{.creds = *creds,
                  .ns = *mounts_.ns,
                  .root = mounts_.root,
                  .start = *cwd,
                  .umask = 0,
                  .resolve = 0};
  Kernel::NewProcess process;
  process.path = TRY(FindProgram(p, ctx, why));
  base::Ref<Console> console;
  process.fds = TRY(MakeFiles(p, std::move(fds), init, *creds, &console, why));
  if (console) process.tty = console->terminal();
  mode_t umask = p.umask >= 0 ? static_cast<mode_t>(p.umask) : 022;
  process.creds = std::move(creds);
  process.fs = base::MakeRef<FsContext>(mounts_.root, *cwd, umask);
  process.mount_ns = mounts_.ns;
  process.ns = ns_;
  process.cgroup = cgroup_;
  process.argv = p.args;
  process.envp = p.env;
  for (const RlimitSpec& limit : p.rlimits) {
    process.rlimits.emplace_back(limit.resource, Rlimits::Limit{limit.soft, limit.hard});
  }
  process.no_new_privs = p.no_new_privileges;
  process.oom_score_adj = p.oom_score_adj;
  std::string path = process.path;
  auto group = kernel_.CreateProcess(std::move(process));
  if (!group.ok()) {
    int code = group.error().code();
    *why = "exec " + path + ": " + (code == ENOEXEC ? "exec format error" : strerror(code));
    return group.error();
  }
  if (seccomp_) (void)(*group)->leader()->InstallSeccomp(seccomp_, /*sync=*/false).ok();
  int32_t pid = (*group)->PidIn(*ns_.pid);
  {
    absl::MutexLock l(&mutex_);
    known_[pid] = Known{.group = *group, .console = console, .waiters = {}};
  }
  kernel_.OnExit(**group,
                 [self = shared_from_this(), pid](int status) { self->OnEnd(pid, status); });
  return pid;
}

base::Status KernelContainer::MakeNamespaces(Place place, std::string* why) {
  user_ns_ = std::move(place.user);
  if (!user_ns_ && spec_.new_user_namespace) {
    auto made = MakeUserNamespace();
    if (!made.ok()) {
      *why = std::string("user namespace: ") + strerror(made.error().code());
      return made.error();
    }
    user_ns_ = std::move(*made);
  }
  if (!user_ns_) user_ns_ = kernel_.root_user_ns();
  cgroup_ = std::move(place.cgroup);
  ns_ = std::move(place.ns);
  if (!ns_.pid) ns_.pid = base::MakeRef<PidNamespace>(kernel_.root_pid_ns(), user_ns_);
  if (!ns_.uts) ns_.uts = kernel_.root_uts_ns()->Copy(user_ns_);
  if (!ns_.ipc) ns_.ipc = base::MakeRef<IpcNamespace>(user_ns_);
  if (!ns_.net) {
    ns_.net = base::MakeRef<NetNamespace>(user_ns_);
    // As runc does, and as the first container's is.
    InetStack::Of(*ns_.net)->SetUp(true);
  }
  if (!ns_.cgroup) ns_.cgroup = base::MakeRef<CgroupNamespace>(user_ns_);
  if (spec_.share.uts.empty()) {
    if (!spec_.hostname.empty()) ns_.uts->SetHostname(spec_.hostname);
    if (!spec_.domainname.empty()) ns_.uts->SetDomainname(spec_.domainname);
  }
  return base::Ok();
}

base::Status KernelContainer::Init(Place place, ContainerFds fds, std::string* why) {
  TRY(MakeNamespaces(std::move(place), why));
  base::Status filter = MakeSeccomp();
  if (!filter.ok()) {
    *why = std::string("seccomp: ") + strerror(filter.error().code());
    return filter;
  }
  auto gofer = ConnectGofer(std::move(fds.gofer), [] {});
  if (!gofer.ok()) {
    *why = std::string("connecting to the gofer: ") + strerror(gofer.error().code());
    return gofer.error();
  }
  gofer_ = std::move(*gofer);
  auto pid = OnFiber("boot", [&]() -> base::Result<int32_t> {
    Kernel::ActsIn inside(&kernel_, &ns_, cgroup_);
    // The container's mounts are made with the rights of its root.
    base::Ref<Credentials> root = Credentials::NewRoot(kernel_.root_user_ns());
    mounts_ = TRY(BuildMounts(kernel_.vfs(), gofer_, spec_, *root, user_ns_, why));
    return MakeProcess(spec_.process, std::move(fds.process), true, why);
  });
  if (!pid.ok()) return pid.error();
  init_pid_ = *pid;
  return base::Ok();
}

base::Status KernelContainer::Start(std::string* why) {
  base::Ref<ThreadGroup> init;
  {
    absl::MutexLock l(&mutex_);
    if (started_) {
      *why = "container is running already";
      return base::Error(EINVAL);
    }
    started_ = true;
    init = known_[init_pid_].group;
  }
  kernel_.StartProcess(*init);
  return base::Ok();
}

base::Result<int32_t> KernelContainer::Exec(const ProcessSpec& process, ProcessFds fds,
                                            std::string* why) {
  {
    absl::MutexLock l(&mutex_);
    if (ended_) {
      *why = "the container has ended";
      return base::Error(ESRCH);
    }
    ++execs_;
  }
  auto made = OnFiber("exec", [&]() -> base::Result<int32_t> {
    Kernel::ActsIn inside(&kernel_, &ns_, cgroup_);
    auto pid = MakeProcess(process, std::move(fds), false, why);
    if (!pid.ok()) {
      if (why->empty()) *why = strerror(pid.error().code());
      return pid;
    }
    base::Ref<ThreadGroup> group = GroupFor(*pid);
    if (group) kernel_.StartProcess(*group);
    return pid;
  });
  absl::MutexLock l(&mutex_);
  --execs_;
  return made;
}

void KernelContainer::OnEnd(int32_t pid, int status) {
  base::Ref<Console> console;
  {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(pid);
    if (it != known_.end()) console = it->second.console;
  }
  // What the process wrote has to reach the terminal before anybody hears of its end.
  auto report = [self = shared_from_this(), this, pid, status] {
    std::vector<std::function<void(int)>> waiters;
    base::Ref<ThreadGroup> group;
    {
      absl::MutexLock l(&mutex_);
      auto it = known_.find(pid);
      if (it == known_.end()) return;
      it->second.ended = true;
      it->second.status = status;
      group = std::move(it->second.group);
      waiters.swap(it->second.waiters);
      if (!waiters.empty() && pid != init_pid_) known_.erase(it);
    }
    for (auto& waiter : waiters) waiter(status);
  };
  if (!console) return report();
  fiber::Spawn(
      "console-flush",
      [console, report] {
        console->Flush();
        report();
      },
      nullptr);
}

base::Status KernelContainer::Wait(int32_t pid, std::function<void(int)> done) {
  int status = 0;
  {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(pid == kInit ? init_pid_ : pid);
    if (it == known_.end()) return base::Error(ESRCH);
    if (!it->second.ended) {
      it->second.waiters.push_back(std::move(done));
      return base::Ok();
    }
    status = it->second.status;
    if (pid != kInit && pid != init_pid_) known_.erase(it);
  }
  done(status);
  return base::Ok();
}

base::Ref<ThreadGroup> KernelContainer::GroupFor(int32_t pid) {
  if (pid == kInit) {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(init_pid_);
    return it == known_.end() ? nullptr : it->second.group;
  }
  base::Ref<ThreadGroup> group = kernel_.FindThreadGroup(*ns_.pid, pid);
  // The namespace may be shared with other containers.
  return group && group->cgroup() == cgroup_ ? group : nullptr;
}

base::Status KernelContainer::Signal(int32_t pid, int signo) {
  if (signo < 0 || signo > SIGRTMAX) return base::Error(EINVAL);
  base::Ref<ThreadGroup> group = GroupFor(pid);
  if (!group) return base::Error(ESRCH);
  if (signo == 0) return base::Ok();
  {
    // A created container whose init never ran has nobody to handle the signal: it ends.
    absl::MutexLock l(&mutex_);
    if (!started_ && (pid == kInit || pid == init_pid_)) {
      if (signo != SIGKILL && signo != SIGTERM) return base::Ok();
      signo = SIGKILL;
      started_ = true;
    } else {
      group->SendKernelSignal(signo);
      return base::Ok();
    }
  }
  group->SendKernelSignal(signo);
  kernel_.StartProcess(*group);
  return base::Ok();
}

base::Status KernelContainer::SignalAll(int signo) {
  if (signo < 0 || signo > SIGRTMAX) return base::Error(EINVAL);
  if (signo == 0) return base::Ok();
  base::Ref<ThreadGroup> init = GroupFor(kInit);
  for (auto& group : kernel_.ThreadGroups(*cgroup_)) {
    if (group.get() != init.get()) group->SendKernelSignal(signo);
  }
  // Knows what to do with one that never ran.
  (void)Signal(kInit, signo);
  return base::Ok();
}

ProcessInfo KernelContainer::Describe(ThreadGroup& group) {
  ProcessInfo info;
  const PidNamespace& ns = *ns_.pid;
  info.pid = group.PidIn(ns);
  info.ppid = group.ParentPidIn(ns);
  info.init = info.pid == init_pid_;
  info.start_time =
      (kernel_.boot_realtime_ns() + group.start_time_ns() - kernel_.boot_monotonic_ns()) /
      1'000'000'000;
  Usage usage = group.SelfUsage();
  info.cpu_ns = usage.user_ns + usage.system_ns;
  info.threads = group.thread_count();
  base::Ref<Tty> tty = group.tty();
  info.tty = tty ? tty->name() : "?";
  base::Ref<Task> leader = group.leader();
  if (!leader) return info;
  info.uid = leader->credentials()->euid;
  info.state = leader->StateChar();
  info.command = "[" + leader->comm() + "]";
  base::Ref<MemoryManager> mm = leader->mm_ref();
  if (!mm) return info;
  info.host_pid = mm->address_space().host_pid();
  MmLayout layout = mm->layout();
  std::string args(std::min<uint64_t>(layout.arg_end - layout.arg_start, 4096), '\0');
  auto n =
      mm->address_space().ReadPartial(layout.arg_start, std::as_writable_bytes(std::span(args)));
  if (!n.ok() || *n == 0) return info;
  args.resize(*n);
  while (!args.empty() && args.back() == '\0') args.pop_back();
  std::replace(args.begin(), args.end(), '\0', ' ');
  if (!args.empty()) info.command = args;
  return info;
}

std::vector<ProcessInfo> KernelContainer::Processes() {
  std::vector<ProcessInfo> list;
  for (auto& group : kernel_.ThreadGroups(*ns_.pid)) {
    if (group->cgroup() == cgroup_) list.push_back(Describe(*group));
  }
  return list;
}

base::Status KernelContainer::SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) {
  base::Ref<Console> console;
  {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(pid == kInit ? init_pid_ : pid);
    if (it == known_.end()) return base::Error(ESRCH);
    console = it->second.console;
  }
  if (!console) return base::Error(ENOTTY);
  return console->SetWindowSize(rows, cols);
}

bool KernelContainer::KillAll() {
  (void)SignalAll(SIGKILL);
  return kernel_.AwaitEmpty(*cgroup_, kKillRoundNs);
}

void KernelContainer::End(int exit_code) {
  {
    // The mounts are Exec's too.
    absl::MutexLock l(&mutex_);
    ended_ = true;
    auto none_left = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return execs_ == 0; };
    mutex_.AwaitWithTimeout(absl::Condition(&none_left), kExecsEnd);
    if (execs_ > 0) LOG_WARNING("container %s: an exec does not end", id().c_str());
  }
  OnFiber("end", [&] {
    // What was being made while others were killed is killed in the next round.
    int round = 0;
    while (!KillAll() && ++round < kKillRounds) {
    }
    if (round == kKillRounds) LOG_WARNING("container %s: processes do not end", id().c_str());
    std::map<int32_t, Known> known;
    ContainerMounts mounts;
    {
      absl::MutexLock l(&mutex_);
      if (execs_ == 0) mounts = std::exchange(mounts_, {});
      known.swap(known_);
    }
    cgroup_->set_console(nullptr);
    if (mounts.ns) {
      for (const auto& mount : mounts.ns->Mounts()) {
        kernel_.platform().ForgetFiles(mount->fs().dev());
      }
    }
    return true;
  });
  gofer_->End(exit_code);
}

}  // namespace sentry
