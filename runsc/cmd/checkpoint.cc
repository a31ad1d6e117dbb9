// runsc checkpoint, runsc restore: not there. They are commands all the same, so that engines which
// try them show why, and not a text about the usage.
#include "runsc/cmd/command.h"

namespace runsc {

void AddCheckpointCommands(Context& context) {
  for (const char* name : {"checkpoint", "restore"}) {
    Command command(context, name, "not supported", kIdUsage, "");
    command.Hide();
    command.AnyOptions();
    command.Runs([name](const Args&) -> absl::StatusOr<int> {
      return absl::UnimplementedError(std::string("runsc does not support ") + name);
    });
  }
}

}  // namespace runsc
