// runsc spec
#include <unistd.h>

#include "runsc/cmd/command.h"
#include "runsc/oci/default_spec.h"

namespace runsc {

void AddSpecCommand(Context& context) {
  static std::string bundle;
  static bool rootless = false;
  Command command(context, "spec", "create a new specification file", "",
                  "The spec command creates the new specification file named \"config.json\" for\n"
                  "the bundle. It is a starter file: the command it runs is \"sh\".");
  command.Text("--bundle,-b", &bundle, "path to the root of the bundle directory");
  command.Flag("--rootless", &rootless, "generate a configuration for a rootless container");
  command.Runs([command](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 0, 0); !s.ok()) return s;
    if (!bundle.empty() && chdir(bundle.c_str()) != 0) return ErrnoStatus("chdir " + bundle);
    if (access("config.json", F_OK) == 0) {
      return absl::AlreadyExistsError("File config.json exists. Remove it first");
    }
    std::string text = oci::DefaultSpec(rootless, geteuid(), getegid());
    if (auto s = WriteFileAtomically("config.json", text, 0666); !s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
