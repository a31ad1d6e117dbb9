// Making a container.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "runsc/cgroup/cgroup.h"
#include "runsc/container/container.h"
#include "runsc/container/hooks.h"
#include "runsc/container/pod.h"
#include "runsc/log/log.h"
#include "runsc/oci/parse.h"
#include "sentry/boot/boot_spec_json.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr int kMaxPreservedFds = 100;

// Undoes a half-made container, unless told that it is whole.
class CreationGuard {
 public:
  CreationGuard(const Store& store, CreatedContainer* container)
      : store_(store), container_(container) {}
  ~CreationGuard() {
    if (done_) return;
    container_->launch.Kill();
    absl::Status s = DestroyContainer(store_, container_->state, &container_->lock);
    if (!s.ok()) Log(LogLevel::kWarning, std::string(s.message()));
  }
  void Done() { done_ = true; }

 private:
  const Store& store_;
  CreatedContainer* const container_;
  bool done_ = false;
};

absl::StatusOr<UniqueFd> ListenControl(const Store& store, const std::string& id) {
  auto dir = store.OpenDir(id);
  if (!dir.ok()) return dir.status();
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return ErrnoStatus("socket");
  // By the directory's descriptor: the path may be longer than sun_path.
  std::string path = "/proc/self/fd/" + std::to_string(dir->get()) + "/control.sock";
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  mode_t mask = umask(0177);
  int rc = bind(socket.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr));
  umask(mask);
  if (rc != 0) return ErrnoStatus("control socket: bind");
  if (listen(socket.get(), 64) != 0) return ErrnoStatus("control socket: listen");
  return socket;
}

absl::Status CheckConsole(const CreateOptions& options) {
  bool terminal = options.spec.process->terminal;
  if (terminal && options.console_socket.empty() && !options.foreground) {
    return absl::InvalidArgumentError(
        "cannot allocate tty if runc will detach without setting console socket");
  }
  if (!options.console_socket.empty() && (!terminal || options.foreground)) {
    return absl::InvalidArgumentError(
        "cannot use console socket if runc will not detach or allocate tty");
  }
  return absl::OkStatus();
}

ContainerState NewState(const CreateOptions& options, const std::string& rootfs) {
  ContainerState state;
  state.id = options.id;
  state.oci_version = kSpecVersion;
  state.bundle = options.bundle;
  state.rootfs = rootfs;
  state.created = Timestamp(true);
  state.owner_uid = geteuid();
  state.annotations = options.spec.annotations;
  state.creator = ProcessId::Of(getpid());
  state.terminal = options.spec.process->terminal;
  return state;
}

// Makes the cgroups and clones the processes into them; they wait.
absl::Status Prepare(const Store& store, const CreateOptions& options, SandboxSetup* setup,
                     CreatedContainer* c) {
  absl::Status s = store.Save(c->state);
  if (s.ok()) {
    s = WriteFileAtomically(store.Dir(options.id) + "/config.json", options.config_text, 0600);
  }
  if (!s.ok()) return s;
  auto cgroups = Cgroups::Plan(options.spec.linux_, options.id, options.systemd_cgroup);
  if (!cgroups.ok()) return cgroups.status();
  c->state.cgroup_dirs = cgroups->Missing();
  if (!c->state.cgroup_dirs.empty()) s = store.Save(c->state);
  if (s.ok()) s = cgroups->Make();
  if (!s.ok()) return s;

  LaunchOptions launch;
  launch.id = options.id;
  launch.hostname = setup->boot.container.hostname;
  if (options.spec.process->terminal) {
    auto console =
        NewConsole(options.spec.process->console_rows, options.spec.process->console_cols);
    if (!console.ok()) return console.status();
    c->console = std::move(*console);
  }
  auto files = ProcessFiles(c->console.slave.get(), options.preserve_fds,
                            &setup->boot.container.process.env);
  if (!files.ok()) return files.status();
  launch.files = *files;
  if (c->state.sandbox_id.empty()) {
    if (s = AddNetwork(options.spec, setup); !s.ok()) return s;
    launch.boot_spec = sentry::EncodeBootSpec(setup->boot);
  } else {
    auto pod = ConnectSandbox(store, c->state.sandbox_id);
    if (!pod.ok()) return pod.status();
    launch.pod = std::make_unique<sentry::ControlClient>(std::move(*pod));
    launch.container = setup->boot.container;
  }
  launch.mounts = setup->gofer_mounts;
  auto listener = ListenControl(store, options.id);
  if (!listener.ok()) return listener.status();
  launch.control_listener = listener->get();
  UniqueFd exit_file(open((store.Dir(options.id) + "/exit").c_str(),
                          O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!exit_file.valid()) return ErrnoStatus("open " + store.Dir(options.id) + "/exit");
  launch.exit_file = exit_file.get();
  // One that joins a sandbox is in that one's log.
  auto sentry_log = OpenDebugLog(launch.pod ? "" : options.debug_log, options.id, "boot");
  if (!sentry_log.ok()) return sentry_log.status();
  auto gofer_log = OpenDebugLog(options.debug_log, options.id, "gofer");
  if (!gofer_log.ok()) return gofer_log.status();
  launch.sentry_log = sentry_log->get();
  launch.gofer_log = gofer_log->get();
  launch.die_with_parent = options.foreground;
  launch.allow_no_seccomp = options.flags.allow_no_seccomp;
  launch.oom_score_adj = options.spec.process->oom_score_adj;
  launch.network_namespace = setup->network_namespace.get();

  auto launched = Launch::Begin(std::move(launch));
  if (!launched.ok()) return launched.status();
  c->launch = std::move(*launched);
  if (c->launch.sentry_pid() > 0) c->state.sandbox = ProcessId::Of(c->launch.sentry_pid());
  c->state.gofer = ProcessId::Of(c->launch.gofer_pid());
  if (s = store.Save(c->state); !s.ok()) return s;
  for (pid_t pid : {c->launch.sentry_pid(), c->launch.gofer_pid()}) {
    if (pid <= 0) continue;
    if (s = cgroups->Add(pid); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status RunCreationHooks(const oci::Hooks& hooks, const ContainerState& state,
                              const Launch& launch) {
  std::string json = state.OciJson();
  absl::Status s = RunHooks("prestart", hooks.prestart, json);
  if (s.ok()) s = RunHooks("createRuntime", hooks.create_runtime, json);
  if (s.ok()) {
    s = RunHooksInside({.gofer = launch.gofer_pid(), .sentry = state.sandbox.pid},
                       "createContainer", hooks.create_container, json);
  }
  return s;
}

// If the container is to run in another's sandbox: finds that, and whose namespaces it shares.
absl::Status FindPod(const Store& store, const CreateOptions& options, SandboxSetup* setup,
                     ContainerState* state) {
  auto id = PodSandboxId(options.spec.annotations);
  if (!id.ok()) return id.status();
  if (!*id) return absl::OkStatus();
  if (**id == options.id) {
    return absl::InvalidArgumentError("the container is said to be in its own sandbox");
  }
  auto sandbox = FindPodSandbox(store, **id);
  if (!sandbox.ok()) return sandbox.status();
  auto share = ShareNamespaces(store, *sandbox, options.spec);
  if (!share.ok()) return share.status();
  setup->boot.container.share = std::move(*share);
  state->sandbox_id = sandbox->id;
  state->sandbox = sandbox->sandbox;
  return absl::OkStatus();
}

absl::Status WritePidFile(const std::string& path, pid_t pid) {
  if (path.empty()) return absl::OkStatus();
  return WriteFileAtomically(path, std::to_string(pid), 0644);
}

}  // namespace

absl::StatusOr<CreateOptions> LoadBundle(const std::string& bundle) {
  CreateOptions options;
  std::string dir = bundle.empty() ? "." : bundle;
  auto absolute = ResolvePath(dir);
  if (!absolute.ok()) {
    return absl::NotFoundError("bundle " + std::string(absolute.status().message()));
  }
  options.bundle = *absolute;
  std::string path = options.bundle + "/config.json";
  if (access(path.c_str(), F_OK) != 0 && errno == ENOENT) {
    return absl::NotFoundError("JSON specification file " + path + " not found");
  }
  auto text = ReadFile(path, oci::kMaxConfigBytes);
  if (!text.ok()) return text.status();
  options.config_text = std::move(*text);
  auto spec = oci::ParseSpec(options.config_text);
  if (!spec.ok()) {
    return absl::InvalidArgumentError("config.json: " + std::string(spec.status().message()));
  }
  options.spec = std::move(*spec);
  return options;
}

absl::StatusOr<CreatedContainer> CreateContainer(const Store& store, const CreateOptions& options) {
  if (auto s = CheckId(options.id); !s.ok()) return s;
  if (auto s = CheckConsole(options); !s.ok()) return s;
  auto setup = BuildSandboxSetup(options.spec, options.id, options.bundle, options.flags);
  if (!setup.ok()) return setup.status();
  CreatedContainer c;
  auto lock = store.Lock(options.id, /*create=*/true);
  if (!lock.ok()) return lock.status();
  c.lock = std::move(*lock);
  if (auto s = store.MakeDir(options.id); !s.ok()) return s;
  c.state = NewState(options, setup->rootfs);
  CreationGuard guard(store, &c);

  absl::Status s = FindPod(store, options, &*setup, &c.state);
  if (s.ok()) s = Prepare(store, options, &*setup, &c);
  if (s.ok()) s = RunCreationHooks(options.spec.hooks, c.state, c.launch);
  if (s.ok()) s = c.launch.AwaitReady();
  if (s.ok() && !options.console_socket.empty()) {
    s = SendConsole(options.console_socket, c.console);
    c.console.master.reset();
  }
  if (!s.ok()) return s;
  c.console.slave.reset();
  if (!options.spec.not_enforced.empty()) {
    std::string list;
    for (const std::string& field : options.spec.not_enforced) {
      list += (list.empty() ? "" : ", ") + field;
    }
    Log(LogLevel::kWarning, "accepted and not enforced: " + list);
  }
  c.state.status = ContainerStatus::kCreated;
  s = store.Save(c.state);
  if (s.ok()) s = WritePidFile(options.pid_file, c.state.init().pid);
  if (!s.ok()) return s;
  guard.Done();
  return c;
}

absl::StatusOr<std::vector<int>> ProcessFiles(int console_slave, int preserve_fds,
                                              std::vector<std::string>* env) {
  std::vector<int> files = {0, 1, 2};
  if (console_slave >= 0) files = {console_slave, console_slave, console_slave};
  int listen = 0;
  if (const char* text = getenv("LISTEN_FDS")) {
    char* end;
    long n = strtol(text, &end, 10);
    if (*end == '\0' && n > 0 && n <= kMaxPreservedFds) listen = static_cast<int>(n);
  }
  if (preserve_fds < 0 || preserve_fds > kMaxPreservedFds) {
    return absl::InvalidArgumentError("preserve-fds must be from 0 to " +
                                      std::to_string(kMaxPreservedFds));
  }
  if (listen > 0) {
    env->push_back("LISTEN_FDS=" + std::to_string(listen));
    env->push_back("LISTEN_PID=1");
  }
  for (int fd = 3; fd < 3 + listen + preserve_fds; ++fd) {
    // What we opened ourselves is closed on exec; what the caller left open is not.
    const int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || (flags & FD_CLOEXEC) != 0) {
      return absl::InvalidArgumentError("file descriptor " + std::to_string(fd) +
                                        " is to be preserved, but is not open");
    }
    files.push_back(fd);
  }
  for (int fd : files) {
    if (fcntl(fd, F_GETFD) < 0) {
      return absl::InvalidArgumentError("file descriptor " + std::to_string(fd) + " is not open");
    }
  }
  return files;
}

absl::StatusOr<UniqueFd> OpenDebugLog(const std::string& pattern, const std::string& id,
                                      const std::string& command) {
  if (pattern.empty()) return UniqueFd();
  std::string path = pattern;
  if (path.back() == '/') path += "runsc.log.%TIMESTAMP%.%COMMAND%.txt";
  const std::pair<const char*, std::string> replacements[] = {{"%ID%", id},
                                                              {"%COMMAND%", command},
                                                              {"%TIMESTAMP%", Timestamp(false)},
                                                              {"%PID%", std::to_string(getpid())}};
  for (const auto& [name, value] : replacements) {
    for (size_t at = path.find(name); at != std::string::npos;
         at = path.find(name, at + value.size())) {
      path.replace(at, strlen(name), value);
    }
  }
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus("debug log " + path);
  return fd;
}

}  // namespace runsc
