// runsc state
#include <cstdio>
#include <nlohmann/json.hpp>

#include "runsc/cmd/command.h"

namespace runsc {

void AddStateCommand(Context& context) {
  Command command(context, "state", "output the state of a container", kIdUsage,
                  "The state command outputs current state information for the\n"
                  "instance of a container.");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    auto state = context.store().Load(args[0]);
    if (!state.ok()) return state.status();
    ContainerStatus status = state->CurrentStatus();
    nlohmann::ordered_json json = {
        {"ociVersion", state->oci_version},
        {"id", state->id},
        {"pid", status == ContainerStatus::kStopped ? 0 : state->init().pid},
        {"status", StatusName(status)},
        {"bundle", state->bundle},
        {"rootfs", state->rootfs},
        {"created", state->created}};
    if (!state->annotations.empty()) json["annotations"] = state->annotations;
    json["owner"] = "";
    printf("%s", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return 0;
  });
}

}  // namespace runsc
