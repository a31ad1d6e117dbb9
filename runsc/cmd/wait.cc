// runsc wait
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {
namespace {

absl::StatusOr<int> WaitForInit(const Store& store, const std::string& id) {
  auto state = store.Load(id);
  if (!state.ok()) return state.status();
  if (state->CurrentStatus() != ContainerStatus::kStopped) {
    if (auto sandbox = ConnectSandbox(store, id); sandbox.ok()) {
      if (sandbox->BeginWait(sentry::Container::kInit).ok()) {
        if (auto status = sandbox->FinishWait(); status.ok()) return *status;
      }
    }
    // It is ending, or was killed: its end tells.
    base::UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, state->init().pid, 0)));
    pollfd p{pidfd.get(), POLLIN, 0};
    if (pidfd.valid() && state->init().Alive()) poll(&p, 1, -1);
  }
  if (auto status = store.ExitStatus(id)) return *status;
  return SIGKILL;  // it left no status: the sandbox itself was killed
}

}  // namespace

void AddWaitCommand(Context& context) {
  Command command(
      context, "wait", "wait for a container to exit", kIdUsage,
      "Prints the exit status of the container's init process as JSON once it has ended: the\n"
      "status, or 128 and the number of the signal that killed it.");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    auto status = WaitForInit(context.store(), args[0]);
    if (!status.ok()) return status.status();
    nlohmann::ordered_json json = {{"id", args[0]}, {"exitStatus", ExitCode(*status)}};
    printf("%s\n", json.dump().c_str());
    return 0;
  });
}

}  // namespace runsc
