// What happens to a container after it was made.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runsc/cgroup/cgroup.h"
#include "runsc/container/container.h"
#include "runsc/container/hooks.h"
#include "runsc/log/log.h"
#include "runsc/oci/parse.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr int kKillTimeoutMs = 10'000;
constexpr int kKillAnswerMs = 2'000;  // then the sandbox itself is killed

// Waits for the end of a process that is about to end by itself, or has; not for ever.
void AwaitEnd(const ProcessId& process) {
  if (process.pid <= 0) return;
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0)));
  if (!pidfd.valid() || !process.Alive()) return;
  pollfd p{pidfd.get(), POLLIN, 0};
  poll(&p, 1, kKillAnswerMs);
}

// Kills a process of ours, if it is still the one we mean, and waits for its end.
absl::Status KillAndAwait(const ProcessId& process, const char* role) {
  if (process.pid <= 0) return absl::OkStatus();
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0)));
  // With the descriptor open the pid cannot be reused between the check and the signal.
  if (!pidfd.valid() || !process.Alive()) return absl::OkStatus();
  if (syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    return ErrnoStatus(std::string("kill the ") + role);
  }
  pollfd p{pidfd.get(), POLLIN, 0};
  if (poll(&p, 1, kKillTimeoutMs) != 1) {
    return absl::DeadlineExceededError(std::string("the ") + role + " (pid " +
                                       std::to_string(process.pid) + ") does not end");
  }
  return absl::OkStatus();
}

// Ends a container with all that is in it. One in another's sandbox is ended by the sentry, so that
// nothing of it is left there; if that does not answer, it will follow its gofer.
absl::Status KillContainer(const Store& store, const ContainerState& state) {
  if (state.sandbox_id.empty()) return KillAndAwait(state.sandbox, "sandbox");
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, state.gofer.pid, 0)));
  if (pidfd.valid() && state.gofer.Alive()) {
    auto sandbox = ConnectSandbox(store, state.id);
    if (sandbox.ok() &&
        sandbox->Signal(sentry::Container::kInit, SIGKILL, /*all=*/true, kKillAnswerMs).ok()) {
      pollfd p{pidfd.get(), POLLIN, 0};
      if (poll(&p, 1, kKillTimeoutMs) == 1) return absl::OkStatus();
    }
  }
  return KillAndAwait(state.gofer, "gofer");
}

absl::Status ControlFailure(const std::string& what, base::Error error, const std::string& why) {
  return absl::InternalError(what + (why.empty() ? strerror(error.code()) : why));
}

// A program of the container, before its init: the state goes to its standard input.
absl::Status RunStartContainerHook(sentry::ControlClient* sandbox, const oci::Spec& spec,
                                   const oci::Hook& hook, size_t index,
                                   const std::string& state_json) {
  std::string what =
      "error running startContainer hook #" + std::to_string(index) + " (" + hook.path + "): ";
  oci::Process process = *spec.process;
  process.terminal = false;
  process.args = hook.args;
  if (process.args.empty()) process.args.push_back(hook.path);
  process.args[0] = hook.path;
  process.env = hook.env;
  process.cwd = "/";
  auto input = sentry::SealedFile("runsc-hook-state", state_json);
  if (!input.ok()) return ControlFailure(what, input.error(), "");
  UniqueFd null(open("/dev/null", O_WRONLY | O_CLOEXEC));
  std::string why;
  auto pid = sandbox->Exec(BuildProcessSpec(process), /*owned=*/true,
                           {input->get(), null.get(), null.get()}, &why);
  if (!pid.ok()) return ControlFailure(what, pid.error(), why);
  if (auto s = sandbox->BeginWait(*pid); !s.ok()) return ControlFailure(what, s.error(), "");
  pollfd p{sandbox->socket(), POLLIN, 0};
  int timeout =
      hook.timeout ? static_cast<int>(std::min<int64_t>(*hook.timeout * 1000, INT32_MAX)) : -1;
  if (poll(&p, 1, timeout) != 1) {
    return absl::DeadlineExceededError(what + "hook ran past specified timeout of " +
                                       std::to_string(*hook.timeout) + " seconds");
  }
  auto status = sandbox->FinishWait();
  if (!status.ok()) return ControlFailure(what, status.error(), "");
  if (*status != 0) return absl::InternalError(what + DescribeEnd(*status));
  return absl::OkStatus();
}

absl::Status RunStartContainerHooks(const Store& store, const oci::Spec& spec,
                                    const ContainerState& state) {
  for (size_t i = 0; i < spec.hooks.start_container.size(); ++i) {
    // A connection each: one that is dropped at a timeout takes its hook along.
    auto sandbox = ConnectSandbox(store, state.id);
    if (!sandbox.ok()) return sandbox.status();
    absl::Status s =
        RunStartContainerHook(&*sandbox, spec, spec.hooks.start_container[i], i, state.OciJson());
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<oci::Spec> LoadStoredSpec(const Store& store, const std::string& id) {
  auto text = ReadFile(store.Dir(id) + "/config.json", oci::kMaxConfigBytes);
  if (!text.ok()) return text.status();
  return oci::ParseSpec(*text);
}

absl::StatusOr<sentry::ControlClient> ConnectSandbox(const Store& store, const std::string& id) {
  auto dir = store.OpenDir(id);
  if (!dir.ok()) return absl::NotFoundError("container " + id + " does not exist");
  auto client = sentry::ControlClient::Connect(dir->get(), "control.sock");
  if (!client.ok()) {
    int error = client.error().code();
    if (error == ECONNREFUSED || error == ENOENT) {
      return absl::UnavailableError("container not running");
    }
    errno = error;
    return ErrnoStatus("connect to the sandbox");
  }
  return std::move(*client);
}

absl::Status StartContainer(const Store& store, ContainerState* state) {
  switch (state->CurrentStatus()) {
    case ContainerStatus::kCreated:
      break;
    case ContainerStatus::kCreating:
      return absl::FailedPreconditionError("cannot start a container that is being created");
    case ContainerStatus::kPaused:
    case ContainerStatus::kRunning:
      return absl::FailedPreconditionError("cannot start an already running container");
    case ContainerStatus::kStopped:
      return absl::FailedPreconditionError("cannot start a container that has stopped");
  }
  auto spec = LoadStoredSpec(store, state->id);
  if (!spec.ok()) return spec.status();
  absl::Status s = RunStartContainerHooks(store, *spec, *state);
  if (!s.ok()) {
    (void)KillContainer(store, *state);
    return s;
  }
  auto sandbox = ConnectSandbox(store, state->id);
  if (!sandbox.ok()) return sandbox.status();
  // Stored first: a container that has run is never taken for one that has not.
  state->status = ContainerStatus::kRunning;
  if (s = store.Save(*state); !s.ok()) return s;
  std::string why;
  auto started = sandbox->Start(&why);
  // A short-lived init may end, and the sandbox with it, before the answer is read.
  if (!started.ok() && started.error().code() != EPIPE) {
    return ControlFailure("unable to start container process: ", started.error(), why);
  }
  // As runc: a failing poststart hook ends the container.
  s = RunHooks("poststart", spec->hooks.poststart, state->OciJson());
  if (!s.ok()) (void)KillContainer(store, *state);
  return s;
}

absl::Status SignalContainer(const Store& store, const ContainerState& state, int signo, bool all) {
  ContainerStatus status = state.CurrentStatus();
  if (status == ContainerStatus::kStopped) {
    // As runc: there is nothing left that could be missed.
    return all ? absl::OkStatus() : absl::FailedPreconditionError("container not running");
  }
  if (status == ContainerStatus::kPaused && state.sandbox_id.empty()) {
    // It answers nobody; a kill is for the whole of it.
    if (signo == SIGKILL) return KillContainer(store, state);
    return absl::FailedPreconditionError("container " + state.id + " is paused");
  }
  auto sandbox = ConnectSandbox(store, state.id);
  if (sandbox.ok()) {
    auto sent = signo == SIGKILL
                    ? sandbox->Signal(sentry::Container::kInit, signo, all, kKillAnswerMs)
                    : sandbox->Signal(sentry::Container::kInit, signo, all);
    if (sent.ok()) return absl::OkStatus();
    if (sent.error().code() == EPIPE || sent.error().code() == ESRCH) {
      // Who hears this and looks must not find it running still (podman takes that for a failure).
      AwaitEnd(state.init());
      return absl::FailedPreconditionError("container not running");
    }
    if (signo != SIGKILL) {
      errno = sent.error().code();
      return ErrnoStatus("unable to signal init");
    }
  } else if (signo != SIGKILL) {
    return sandbox.status();
  }
  // A sandbox that does not answer is killed as a whole; of another's it is the gofer.
  return KillAndAwait(state.init(), "sandbox");
}

absl::Status DestroyContainer(const Store& store, const ContainerState& state,
                              ContainerLock* lock) {
  absl::Status result = KillContainer(store, state);
  // The gofer ends with the sandbox; this makes sure.
  absl::Status s = KillAndAwait(state.gofer, "gofer");
  if (result.ok()) result = s;
  if (!result.ok()) return result;
  s = Cgroups::Remove(state.cgroup_dirs);
  if (!s.ok()) return s;
  std::vector<oci::Hook> poststop;
  if (auto spec = LoadStoredSpec(store, state.id); spec.ok()) poststop = spec->hooks.poststop;
  ContainerState stopped = state;
  stopped.status = ContainerStatus::kStopped;
  if (s = store.RemoveDir(state.id); !s.ok()) return s;
  lock->Remove();
  s = RunHooks("poststop", poststop, stopped.OciJson());
  if (!s.ok()) Log(LogLevel::kWarning, std::string(s.message()));
  return absl::OkStatus();
}

absl::Status DestroyBrokenContainer(const Store& store, const std::string& id,
                                    ContainerLock* lock) {
  // Its processes are not known, but what serves its control socket is its sandbox.
  if (auto sandbox = ConnectSandbox(store, id); sandbox.ok()) {
    (void)sandbox->Signal(sentry::Container::kInit, SIGKILL, /*all=*/true, kKillAnswerMs);
    pollfd p{sandbox->socket(), 0, 0};
    if (poll(&p, 1, kKillTimeoutMs) != 1) {
      return absl::DeadlineExceededError("the sandbox of container " + id + " does not end");
    }
  }
  // The same for its cgroup, of which the configuration tells.
  if (auto spec = LoadStoredSpec(store, id); spec.ok()) {
    if (auto cgroups = Cgroups::Plan(spec->linux_, id, /*systemd=*/false); cgroups.ok()) {
      if (auto s = Cgroups::Remove(cgroups->Dirs()); !s.ok()) return s;
    }
  }
  if (auto s = store.RemoveDir(id); !s.ok()) return s;
  lock->Remove();
  return absl::OkStatus();
}

}  // namespace runsc
