// CreateSandbox: the kernel, its filesystems and the container's init, behind the Sandbox
// interface.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "platform/platform.h"
#include "sentry/base/kernel_memory.h"
#include "sentry/base/log.h"
#include "sentry/boot/container_mounts.h"
#include "sentry/boot/filesystems.h"
#include "sentry/boot/sandbox.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/fs/devpts/console.h"
#include "sentry/fs/gofer/connection.h"
#include "sentry/fs/gofer/gofer_fs.h"
#include "sentry/fs/hostfd/host_file.h"
#include "sentry/kernel/fs_context.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/poller.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/net/host/host_network.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/trace/times/call_times.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

namespace {

// What the sentry may hold for the guest; see base/kernel_memory.h.
constexpr uint64_t kMinKernelMemory = uint64_t{32} << 20;
constexpr uint64_t kMaxKernelMemory = uint64_t{1} << 30;

// Runs `f` on a fiber while this host thread, which is no worker, waits.
template <typename F>
auto OnFiber(const char* name, F f) -> decltype(f()) {
  std::optional<decltype(f())> result;
  absl::Notification done;
  fiber::Spawn(
      name,
      [&] {
        result.emplace(f());
        done.Notify();
      },
      nullptr);
  done.WaitForNotification();
  return std::move(*result);
}

// The value of `name` in an environment, or null.
const char* FindEnv(const std::vector<std::string>& env, std::string_view name) {
  for (const std::string& e : env) {
    if (e.size() > name.size() && e.compare(0, name.size(), name) == 0 && e[name.size()] == '=') {
      return e.c_str() + name.size() + 1;
    }
  }
  return nullptr;
}

class KernelSandbox : public Sandbox {
 public:
  KernelSandbox(const BootSpec& spec, std::unique_ptr<platform::Platform> platform)
      : spec_(spec),
        kernel_(std::move(platform), Kernel::Options{.pids_limit = spec.pids_limit,
                                                     .memory_limit = spec.memory_limit,
                                                     .cpu_limit = spec.cpu_limit}),
        poller_(kernel_.platform()),
        scheduler_(fiber::Scheduler::Options{.workers = 0, .poller = &poller_}) {
    kernel_.set_dispatch(&DispatchSyscall);
    // Linux lets a guest's kernel objects take all memory; they are a part of it here.
    base::KernelMemory::SetLimit(
        std::clamp(kernel_.total_memory() / 4, kMinKernelMemory, kMaxKernelMemory));
  }

  base::Status Init(SandboxFds fds, std::string* why);

  base::Status Start(std::string* why) override;
  base::Result<int32_t> Exec(const ProcessSpec& process, ProcessFds fds, std::string* why) override;
  base::Status Wait(int32_t pid, std::function<void(int)> done) override;
  base::Status Signal(int32_t pid, int signo) override;
  base::Status SignalAll(int signo) override;
  std::vector<ProcessInfo> Processes() override;
  std::string SyscallTimes() override;
  base::Status SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) override;
  void SetLimits(int64_t pids, int64_t memory) override { kernel_.SetLimits(pids, memory); }
  void Destroy() override;

 private:
  // A process that runsc knows: init, or of Exec.
  struct Known {
    base::Ref<ThreadGroup> group;
    base::Ref<Console> console;
    bool ended = false;
    int status = 0;
    std::vector<std::function<void(int)>> waiters;
  };

  base::Result<base::Ref<UserNamespace>> MakeUserNamespace();
  base::Status MakeSeccomp();
  base::Result<base::Ref<Credentials>> MakeCredentials(const ProcessSpec& p);
  base::Result<std::string> FindProgram(const ProcessSpec& p, const WalkContext& ctx,
                                        std::string* why);
  // Imports the files and makes the console, if any.
  base::Result<base::Ref<FdTable>> MakeFiles(const ProcessSpec& p, ProcessFds fds, bool init,
                                             const Credentials& creds, base::Ref<Console>* console,
                                             std::string* why);
  // Makes the process, not yet running; its number in the container.
  base::Result<int32_t> MakeProcess(const ProcessSpec& p, ProcessFds fds, bool init,
                                    std::string* why);
  void OnEnd(int32_t pid, int status);
  base::Ref<ThreadGroup> GroupFor(int32_t pid);
  ProcessInfo Describe(ThreadGroup& group);

  const BootSpec spec_;
  Kernel kernel_;
  PlatformPoller poller_;
  fiber::Scheduler scheduler_;
  base::UniqueFd log_;
  base::Ref<GoferConnection> gofer_;
  base::Ref<UserNamespace> user_ns_;
  base::Ref<SeccompFilter> seccomp_;  // null: none
  ContainerMounts mounts_;
  int32_t init_pid_ = 0;

  absl::Mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<int32_t, Known> known_ ABSL_GUARDED_BY(mutex_);
};

// The container's filter, from the instructions of the specification.
base::Status KernelSandbox::MakeSeccomp() {
  if (spec_.seccomp.empty()) return base::Ok();
  std::vector<sock_filter> code(spec_.seccomp.size());
  static_assert(sizeof(sock_filter) == sizeof(uint64_t));
  memcpy(code.data(), spec_.seccomp.data(), code.size() * sizeof(sock_filter));
  BpfProgram program = TRY(BpfProgram::Check(std::move(code)));
  seccomp_ = TRY(SeccompFilter::New(std::move(program), nullptr, spec_.seccomp_log));
  return base::Ok();
}

base::Result<base::Ref<UserNamespace>> KernelSandbox::MakeUserNamespace() {
  if (!spec_.new_user_namespace) return kernel_.root_user_ns();
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

base::Result<base::Ref<Credentials>> KernelSandbox::MakeCredentials(const ProcessSpec& p) {
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
base::Result<std::string> KernelSandbox::FindProgram(const ProcessSpec& p, const WalkContext& ctx,
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

base::Result<base::Ref<FdTable>> KernelSandbox::MakeFiles(const ProcessSpec& p, ProcessFds fds,
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
    if (init) (*console)->RegisterAsSystemConsole(kernel_.vfs());
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

base::Result<int32_t> KernelSandbox::MakeProcess(const ProcessSpec& p, ProcessFds fds, bool init,
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
  int32_t pid = (*group)->PidIn(*kernel_.root_pid_ns());
  {
    absl::MutexLock l(&mutex_);
    known_[pid] = Known{.group = *group, .console = console, .waiters = {}};
  }
  kernel_.OnExit(**group, [this, pid](int status) { OnEnd(pid, status); });
  return pid;
}

base::Status KernelSandbox::Init(SandboxFds fds, std::string* why) {
  if (fds.log.valid()) {
    log_ = std::move(fds.log);
    base::InitLog(
        {.fd = log_.get(), .level = spec_.debug ? base::LogLevel::kDebug : base::LogLevel::kInfo});
  }
  kernel_.strace.store(spec_.strace, std::memory_order_relaxed);
  if (spec_.network == kHostNetwork) {
    HostNetwork::Install(std::move(fds.network.route), std::move(fds.network.proc));
  }
  RegisterFilesystems(kernel_);
  if (!spec_.hostname.empty()) kernel_.root_uts_ns()->SetHostname(spec_.hostname);
  if (!spec_.domainname.empty()) kernel_.root_uts_ns()->SetDomainname(spec_.domainname);
  auto ns = MakeUserNamespace();
  if (!ns.ok()) {
    *why = std::string("user namespace: ") + strerror(ns.error().code());
    return ns.error();
  }
  user_ns_ = std::move(*ns);
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
    // The container's mounts are made with the rights of its root.
    base::Ref<Credentials> root = Credentials::NewRoot(kernel_.root_user_ns());
    mounts_ = TRY(BuildMounts(kernel_.vfs(), gofer_, spec_, *root, why));
    return MakeProcess(spec_.process, std::move(fds.process), true, why);
  });
  if (!pid.ok()) return pid.error();
  init_pid_ = *pid;
  return base::Ok();
}

base::Status KernelSandbox::Start(std::string* why) {
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

base::Result<int32_t> KernelSandbox::Exec(const ProcessSpec& process, ProcessFds fds,
                                          std::string* why) {
  return OnFiber("exec", [&]() -> base::Result<int32_t> {
    auto pid = MakeProcess(process, std::move(fds), false, why);
    if (!pid.ok()) {
      if (why->empty()) *why = strerror(pid.error().code());
      return pid;
    }
    base::Ref<ThreadGroup> group = GroupFor(*pid);
    if (group) kernel_.StartProcess(*group);
    return pid;
  });
}

void KernelSandbox::OnEnd(int32_t pid, int status) {
  base::Ref<Console> console;
  {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(pid);
    if (it != known_.end()) console = it->second.console;
  }
  // What the process wrote has to reach the terminal before anybody hears of its end.
  auto report = [this, pid, status] {
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

base::Status KernelSandbox::Wait(int32_t pid, std::function<void(int)> done) {
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

base::Ref<ThreadGroup> KernelSandbox::GroupFor(int32_t pid) {
  if (pid == kInit) {
    absl::MutexLock l(&mutex_);
    auto it = known_.find(init_pid_);
    return it == known_.end() ? nullptr : it->second.group;
  }
  return kernel_.FindThreadGroup(*kernel_.root_pid_ns(), pid);
}

base::Status KernelSandbox::Signal(int32_t pid, int signo) {
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

base::Status KernelSandbox::SignalAll(int signo) {
  if (signo < 0 || signo > SIGRTMAX) return base::Error(EINVAL);
  if (signo == 0) return base::Ok();
  base::Ref<ThreadGroup> init = GroupFor(kInit);
  for (auto& group : kernel_.ThreadGroups(*kernel_.root_pid_ns())) {
    if (group.get() != init.get()) group->SendKernelSignal(signo);
  }
  // Knows what to do with one that never ran.
  (void)Signal(kInit, signo);
  return base::Ok();
}

ProcessInfo KernelSandbox::Describe(ThreadGroup& group) {
  ProcessInfo info;
  const PidNamespace& ns = *kernel_.root_pid_ns();
  info.pid = group.PidIn(ns);
  info.ppid = group.ParentPidIn(ns);
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

std::string KernelSandbox::SyscallTimes() {
  return trace::CallTimesJson([](int number) {
    const SyscallInfo* info = FindSyscall(number);
    return info ? info->name : "unknown";
  });
}

std::vector<ProcessInfo> KernelSandbox::Processes() {
  std::vector<ProcessInfo> list;
  for (auto& group : kernel_.ThreadGroups(*kernel_.root_pid_ns())) list.push_back(Describe(*group));
  return list;
}

base::Status KernelSandbox::SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) {
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

void KernelSandbox::Destroy() { (void)SignalAll(SIGKILL); }

}  // namespace

base::Result<std::unique_ptr<Sandbox>> CreateSandbox(const BootSpec& spec, SandboxFds fds,
                                                     std::unique_ptr<platform::Platform> platform,
                                                     std::string* why) {
  auto sandbox = std::make_unique<KernelSandbox>(spec, std::move(platform));
  base::Status status = sandbox->Init(std::move(fds), why);
  if (!status.ok()) {
    // Fibers may still refer to it, and the process is about to end.
    (void)sandbox.release();
    return status.error();
  }
  return std::unique_ptr<Sandbox>(std::move(sandbox));
}

}  // namespace sentry
