// Pausing: the sentry and its stubs are stopped by the host, from outside, as the cgroup freezer
// would do it, and without needing a cgroup. In a sandbox of several containers it is the sentry
// that stops the processes of one, since the others need it.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "runsc/container/container.h"
#include "runsc/container/host_processes.h"
#include "runsc/container/pod.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr int kRounds = 1000;
constexpr long kPauseNs = 2'000'000;
// After its stubs go on, the sentry stays stopped for a moment: they answer what they were asked
// before the pause, so that it does not take them for dead.
constexpr long kHeadStartNs = 20'000'000;

void Sleep(long ns) {
  timespec pause{0, ns};
  nanosleep(&pause, nullptr);
}

// Sends a signal to a process if it still is the child that was seen.
void SignalStub(const HostProcess& stub, int signo) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, stub.pid, 0)));
  HostProcess now;
  if (!pidfd.valid() || !ReadHostProcess(stub.pid, &now) || now.parent != stub.parent) return;
  syscall(SYS_pidfd_send_signal, pidfd.get(), signo, nullptr, 0);
}

absl::Status SignalSandbox(const ContainerState& state, int signo) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, state.sandbox.pid, 0)));
  if (!pidfd.valid() || !state.sandbox.Alive()) {
    return absl::FailedPreconditionError("container not running");
  }
  if (syscall(SYS_pidfd_send_signal, pidfd.get(), signo, nullptr, 0) != 0) {
    return ErrnoStatus("signal the sandbox");
  }
  return absl::OkStatus();
}

// Stops the sentry, which then makes no new stubs, and the stubs until all stand.
absl::Status StopAll(const ContainerState& state) {
  if (auto s = SignalSandbox(state, SIGSTOP); !s.ok()) return s;
  for (int round = 0; round < kRounds; ++round) {
    HostProcess sentry;
    bool standing = ReadHostProcess(state.sandbox.pid, &sentry) && sentry.state == 'T';
    for (const HostProcess& stub : Descendants(state.sandbox.pid)) {
      if (stub.state == 'T') continue;
      standing = false;
      SignalStub(stub, SIGSTOP);
    }
    if (standing) return absl::OkStatus();
    Sleep(kPauseNs);
  }
  return absl::DeadlineExceededError("the sandbox does not come to a stand");
}

absl::Status ContinueAll(const ContainerState& state) {
  for (const HostProcess& stub : Descendants(state.sandbox.pid)) SignalStub(stub, SIGCONT);
  Sleep(kHeadStartNs);
  return SignalSandbox(state, SIGCONT);
}

// True if there are several containers in its sandbox.
bool IsInPod(const Store& store, const ContainerState& state) {
  return !state.sandbox_id.empty() || !PodMembers(store, state.id).empty();
}

// By the sentry.
absl::Status FreezeInside(const Store& store, const ContainerState& state, bool frozen) {
  auto sandbox = ConnectSandbox(store, state.id);
  if (!sandbox.ok()) return sandbox.status();
  if (!sandbox->SetFrozen(frozen).ok()) {
    return absl::UnavailableError("the sandbox does not answer");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PauseContainer(const Store& store, ContainerState* state) {
  ContainerStatus status = state->CurrentStatus();
  if (status == ContainerStatus::kStopped) {
    return absl::FailedPreconditionError("container not running");
  }
  if (status != ContainerStatus::kRunning) {
    return absl::FailedPreconditionError(std::string("container not running: ") +
                                         StatusName(status));
  }
  // Stored first: what is half stopped can be resumed.
  state->status = ContainerStatus::kPaused;
  if (auto s = store.Save(*state); !s.ok()) return s;
  const bool in_pod = IsInPod(store, *state);
  absl::Status s = in_pod ? FreezeInside(store, *state, true) : StopAll(*state);
  if (s.ok()) return s;
  if (!in_pod) (void)ContinueAll(*state);
  state->status = ContainerStatus::kRunning;
  (void)store.Save(*state);
  return s;
}

absl::Status ResumeContainer(const Store& store, ContainerState* state) {
  ContainerStatus status = state->CurrentStatus();
  if (status == ContainerStatus::kStopped) {
    return absl::FailedPreconditionError("container not running");
  }
  if (status != ContainerStatus::kPaused) {
    return absl::FailedPreconditionError("container not paused");
  }
  // The first of a pod may have been alone when it was paused, or others have gone since.
  absl::Status s = state->sandbox_id.empty() ? ContinueAll(*state) : absl::OkStatus();
  if (s.ok()) s = FreezeInside(store, *state, false);
  if (!s.ok()) return s;
  state->status = ContainerStatus::kRunning;
  return store.Save(*state);
}

}  // namespace runsc
