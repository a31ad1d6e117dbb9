// runsc boot: the sentry. Internal; started by create and run.
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "runsc/cmd/command.h"
#include "sentry/boot/boot.h"

namespace runsc {

void AddBootCommand(CLI::App& app, Context& context) {
  static std::vector<std::string> args;
  static sentry::BootOptions options;
  CLI::App* command = AddCommand(app, "boot", "run the sentry (internal)", "", "", &args);
  command->group("");
  command->add_option("--files", options.file_count)->check(CLI::Range(3, 256));
  command->add_flag("--log", options.have_log);
  command->callback([&context] {
    context.action = [&context]() -> absl::StatusOr<int> {
      // Threads of the kernel may still run: no destructors, no exit handlers.
      _exit(sentry::RunSentry(options, *context.boot_hooks));
    };
  });
}

}  // namespace runsc
