// runsc exec
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"
#include "runsc/oci/parse.h"
#include "runsc/sandbox/console.h"

namespace runsc {

using base::UniqueFd;

namespace {

struct ExecFlags {
  std::string console_socket, cwd, user, process, pid_file, process_label, apparmor, cgroup;
  std::vector<std::string> env, caps;
  std::vector<uint32_t> additional_gids;
  bool tty = false, detach = false, no_new_privs = false, ignore_paused = false;
  int preserve_fds = 0;
};

absl::Status ParseUser(const std::string& text, oci::Process* process) {
  char* end;
  const char* at = text.c_str();
  unsigned long uid = strtoul(at, &end, 10);
  bool good = end != at && uid <= UINT32_MAX && isdigit(static_cast<unsigned char>(*at));
  unsigned long gid = process->gid;
  if (good && *end == ':') {
    at = end + 1;
    gid = strtoul(at, &end, 10);
    good = end != at && gid <= UINT32_MAX && isdigit(static_cast<unsigned char>(*at));
  }
  if (!good || *end != '\0') {
    return absl::InvalidArgumentError("parsing " + text + " as uid[:gid]: invalid syntax");
  }
  process->uid = static_cast<uint32_t>(uid);
  process->gid = static_cast<uint32_t>(gid);
  return absl::OkStatus();
}

// The process to run: the container's own, changed by the flags, or the one in --process.
absl::StatusOr<oci::Process> BuildProcess(const ExecFlags& flags, const oci::Spec& spec,
                                          std::vector<std::string> args) {
  if (!flags.process.empty()) {
    auto text = ReadFile(flags.process, oci::kMaxConfigBytes);
    if (!text.ok()) return text.status();
    auto process = oci::ParseProcess(*text);
    if (!process.ok()) {
      return absl::InvalidArgumentError(flags.process + ": " +
                                        std::string(process.status().message()));
    }
    return process;
  }
  oci::Process process = *spec.process;
  process.args = std::move(args);
  process.terminal = flags.tty;
  process.console_rows = process.console_cols = 0;
  if (!flags.cwd.empty()) {
    if (flags.cwd[0] != '/') return absl::InvalidArgumentError("Cwd must be an absolute path");
    process.cwd = flags.cwd;
  }
  for (const std::string& e : flags.env) process.env.push_back(e);
  for (const std::string& name : flags.caps) {
    int cap = oci::CapabilityNumber(name);
    if (cap < 0) return absl::InvalidArgumentError("unknown capability \"" + name + "\"");
    uint64_t bit = uint64_t{1} << cap;
    oci::Capabilities& c = process.capabilities;
    for (uint64_t* set : {&c.bounding, &c.effective, &c.permitted, &c.ambient}) *set |= bit;
  }
  for (uint32_t gid : flags.additional_gids) process.additional_gids.push_back(gid);
  if (flags.no_new_privs) process.no_new_privileges = true;
  if (!flags.user.empty()) {
    if (auto s = ParseUser(flags.user, &process); !s.ok()) return s;
  }
  return process;
}

// Waits for the process in the foreground: signals and the terminal go through this one.
absl::StatusOr<int> Attend(const Store& store, const std::string& id, int32_t pid, int master,
                           sentry::ControlClient* sandbox) {
  if (auto s = sandbox->BeginWait(pid); !s.ok()) {
    return absl::UnavailableError("container not running");
  }
  ForegroundOptions foreground;
  foreground.master = master;
  foreground.ended = sandbox->socket();
  // On connections of their own: the first one waits for the answer.
  foreground.on_signal = [&](int signo) {
    if (auto other = ConnectSandbox(store, id); other.ok()) {
      (void)other->Signal(pid, signo, /*all=*/false);
    }
  };
  if (master >= 0) {
    foreground.on_resize = [&] {
      if (auto other = ConnectSandbox(store, id); other.ok()) (void)other->SetWindowSize(pid, 0, 0);
    };
  }
  if (auto s = RunForeground(foreground); !s.ok()) return s;
  auto status = sandbox->FinishWait();
  // The sandbox went down with the process in it.
  if (!status.ok()) return 128 + SIGKILL;
  return ExitCode(*status);
}

// A process of the host that stands for the detached one: it lives as long and exits as it does;
// signals sent to it reach it; killing it kills it. `slave`: its terminal, whose size it watches.
[[noreturn]] void StandIn(const Store& store, const std::string& id, int32_t pid, int slave,
                          sentry::ControlClient* sandbox) {
  setsid();
  if (slave >= 0) ioctl(slave, TIOCSCTTY, 0);  // so that it is told of a new size
  int null = open("/dev/null", O_RDWR);
  for (int fd : {0, 1, 2}) dup2(null, fd);
  int keep = fcntl(sandbox->socket(), F_DUPFD_CLOEXEC, 10);
  for (int fd = 3; fd < keep; ++fd) {
    if (fd != slave) close(fd);
  }
  syscall(SYS_close_range, keep + 1, ~0U, 0);
  sentry::ControlClient client{UniqueFd(keep)};
  if (!client.BeginWait(pid).ok()) _exit(128 + SIGKILL);
  ForegroundOptions foreground;
  foreground.ended = keep;
  foreground.on_signal = [&](int signo) {
    if (signo == SIGHUP && slave >= 0) return;  // the terminal itself tells the process
    if (auto other = ConnectSandbox(store, id); other.ok()) {
      (void)other->Signal(pid, signo, /*all=*/false);
    }
  };
  foreground.on_resize = [&] {
    if (auto other = ConnectSandbox(store, id); other.ok()) (void)other->SetWindowSize(pid, 0, 0);
  };
  (void)RunForeground(foreground);
  auto status = client.FinishWait();
  _exit(status.ok() ? ExitCode(*status) : 128 + SIGKILL);
}

absl::StatusOr<int> Exec(const Store& store, const ExecFlags& flags, const std::string& id,
                         std::vector<std::string> args) {
  auto state = store.Load(id);
  if (!state.ok()) return state.status();
  ContainerStatus status = state->CurrentStatus();
  if (status == ContainerStatus::kStopped) {
    return absl::FailedPreconditionError("cannot exec in a stopped container");
  }
  if (status == ContainerStatus::kPaused) {
    return absl::FailedPreconditionError("cannot exec in a paused container");
  }
  auto spec = LoadStoredSpec(store, id);
  if (!spec.ok()) return spec.status();
  auto process = BuildProcess(flags, *spec, std::move(args));
  if (!process.ok()) return process.status();
  bool socket = !flags.console_socket.empty();
  if (process->terminal && flags.detach && !socket) {
    return absl::InvalidArgumentError(
        "cannot allocate tty if runc will detach without setting console socket");
  }
  if (socket && (!process->terminal || !flags.detach)) {
    return absl::InvalidArgumentError(
        "cannot use console socket if runc will not detach or allocate tty");
  }
  Console console;
  if (process->terminal) {
    auto made = NewConsole(process->console_rows, process->console_cols);
    if (!made.ok()) return made.status();
    console = std::move(*made);
    winsize size;
    if (!socket && ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
      ioctl(console.master.get(), TIOCSWINSZ, &size);
    }
  }
  auto files = ProcessFiles(console.slave.get(), flags.preserve_fds, &process->env);
  if (!files.ok()) return files.status();
  BlockForwardedSignals();
  auto sandbox = ConnectSandbox(store, id);
  if (!sandbox.ok()) return sandbox.status();
  std::string why;
  auto pid = sandbox->Exec(BuildProcessSpec(*process), /*owned=*/true, *files, &why);
  if (!pid.ok() && pid.error().code() == EPIPE) {
    return absl::UnavailableError("the sandbox has ended");
  }
  if (!pid.ok()) {
    return absl::InternalError("unable to start container process: " +
                               (why.empty() ? strerror(pid.error().code()) : why));
  }
  if (socket) {
    if (auto s = SendConsole(flags.console_socket, console); !s.ok()) return s;
    console.master.reset();
  }
  if (!flags.detach) {
    if (!flags.pid_file.empty()) {
      auto s = WriteFileAtomically(flags.pid_file, std::to_string(getpid()), 0644);
      if (!s.ok()) return s;
    }
    console.slave.reset();
    return Attend(store, id, *pid, console.master.get(), &*sandbox);
  }
  pid_t child = fork();
  if (child < 0) return ErrnoStatus("fork");
  if (child == 0) StandIn(store, id, *pid, console.slave.get(), &*sandbox);
  if (!flags.pid_file.empty()) {
    auto s = WriteFileAtomically(flags.pid_file, std::to_string(child), 0644);
    if (!s.ok()) {
      kill(child, SIGKILL);
      return s;
    }
  }
  return 0;
}

void AddFlags(Command& command, ExecFlags& f) {
  command.Text("--console-socket", &f.console_socket,
               "path to an AF_UNIX socket which will receive a file descriptor referencing "
               "the master end of the console's pseudoterminal");
  command.Text("--cwd", &f.cwd, "current working directory in the container");
  command.Texts("--env,-e", &f.env, "set environment variables");
  command.Flag("--tty,-t", &f.tty, "allocate a pseudo-TTY");
  command.Text("--user,-u", &f.user, "UID (format: <uid>[:<gid>])");
  command.Numbers("--additional-gids,-g", &f.additional_gids, "additional gids");
  command.Text("--process,-p", &f.process, "path to the process.json");
  command.Flag("--detach,-d", &f.detach, "detach from the container's process");
  command.Text("--pid-file", &f.pid_file, "specify the file to write the process id to");
  command.Text("--process-label", &f.process_label, "accepted, without effect");
  command.Text("--apparmor", &f.apparmor, "accepted, without effect");
  command.Flag("--no-new-privs", &f.no_new_privs,
               "set the no new privileges value for the process");
  command.Texts("--cap,-c", &f.caps, "add a capability to the bounding set for the process");
  command.Number("--preserve-fds", &f.preserve_fds,
                 "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N "
                 "in total) (default: 0)");
  command.Text("--cgroup", &f.cgroup, "accepted, without effect");
  command.Flag("--ignore-paused", &f.ignore_paused, "accepted, without effect");
}

}  // namespace

void AddExecCommand(Context& context) {
  static ExecFlags flags;
  Command command(context, "exec", "execute new process inside the container",
                  "<container-id> <command> [command options]  || -p process.json <container-id>",
                  "Where \"<container-id>\" is the name for the instance of the container and\n"
                  "\"<command>\" is the command to be executed in the container.\n"
                  "\"<command>\" can't be empty unless a \"-p\" flag provided.\n\n"
                  "EXAMPLE:\n"
                  "       # runsc exec <container-id> ps");
  AddFlags(command, flags);
  // What follows the container's name is the command, whatever it looks like.
  command.StopAtArgument();
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    context.error_code = 255;
    if (!args.empty() && args[0].size() > 1 && args[0][0] == '-') {
      return absl::InvalidArgumentError("flag provided but not defined: " + args[0]);
    }
    if (args.empty()) {
      context.error_code = 1;
      return command.CheckArgs(args, 1, SIZE_MAX);
    }
    auto fail = [](const absl::Status& s) { return Prefixed("exec failed", s); };
    const std::string& id = args[0];
    if (auto s = CheckId(id); !s.ok()) return fail(s);
    if (args.size() == 1 && flags.process.empty()) {
      return fail(absl::InvalidArgumentError("process args cannot be empty"));
    }
    auto code = Exec(context.store(), flags, id, Args(args.begin() + 1, args.end()));
    if (!code.ok()) return fail(code.status());
    return code;
  });
}

}  // namespace runsc
