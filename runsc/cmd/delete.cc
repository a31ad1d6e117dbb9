// runsc delete

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {

void AddDeleteCommand(Context& context) {
  static bool force = false;
  Command command(
      context, "delete",
      "delete any resources held by the container often used with detached container", kIdUsage,
      "EXAMPLE:\n"
      "If the container id is \"ubuntu01\" and runsc list currently shows the status of\n"
      "\"ubuntu01\" as \"stopped\" the following will delete resources held for \"ubuntu01\":\n\n"
      "       # runsc delete ubuntu01");
  command.Flag("--force,-f", &force,
               "Forcibly deletes the container if it is still running (uses SIGKILL)");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    const std::string& id = args[0];
    if (auto s = CheckId(id); !s.ok()) return s;
    Store store = context.store();
    auto lock = store.Lock(id, /*create=*/false);
    auto state = lock.ok() ? store.Load(id) : absl::StatusOr<ContainerState>(lock.status());
    if (!state.ok()) {
      if (absl::IsNotFound(state.status()) && lock.ok()) lock->Remove();
      if (force && absl::IsNotFound(state.status())) return 0;
      if (!force || !lock.ok()) return state.status();
      if (auto s = DestroyBrokenContainer(store, id, &*lock); !s.ok()) return s;
      return 0;
    }
    ContainerStatus status = state->CurrentStatus();
    if ((status == ContainerStatus::kRunning || status == ContainerStatus::kPaused) && !force) {
      return absl::FailedPreconditionError("cannot delete container " + id +
                                           " that is not stopped: " + StatusName(status));
    }
    if (auto s = DestroyContainer(store, *state, &*lock); !s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
