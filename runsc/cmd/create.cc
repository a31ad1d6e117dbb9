// runsc create
#include <CLI/CLI.hpp>

#include "runsc/cmd/create_options.h"

namespace runsc {

void AddCreateFlags(CLI::App& command, CreateFlags& flags) {
  command.add_option("--bundle,-b", flags.bundle,
                     "path to the root of the bundle directory, defaults to the current directory");
  command.add_option("--console-socket", flags.console_socket,
                     "path to an AF_UNIX socket which will receive a file descriptor referencing "
                     "the master end of the console's pseudoterminal");
  command.add_option("--pid-file", flags.pid_file, "specify the file to write the process id to");
  command.add_flag("--no-pivot", flags.no_pivot, "accepted, without effect");
  command.add_flag("--no-new-keyring", flags.no_new_keyring, "accepted, without effect");
  command.add_option("--preserve-fds", flags.preserve_fds,
                     "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N "
                     "in total) (default: 0)");
}

absl::StatusOr<CreateOptions> MakeCreateOptions(const Context& context, const CreateFlags& flags) {
  if (auto s = CheckId(flags.args[0]); !s.ok()) return s;
  auto options = LoadBundle(flags.bundle);
  if (!options.ok()) return options.status();
  options->id = flags.args[0];
  options->console_socket = flags.console_socket;
  options->pid_file = flags.pid_file;
  options->preserve_fds = flags.preserve_fds;
  options->systemd_cgroup = context.globals.systemd_cgroup;
  options->debug_log = context.globals.debug_log;
  options->flags = context.globals.flags;
  return options;
}

void AddCreateCommand(CLI::App& app, Context& context) {
  static CreateFlags flags;
  CLI::App* command =
      AddCommand(app, "create", "create a container", kIdUsage, kIdText, &flags.args);
  AddCreateFlags(*command, flags);
  command->callback([command, &context] {
    context.action = [command, &context]() -> absl::StatusOr<int> {
      if (auto s = CheckArgs(*command, flags.args, 1, 1); !s.ok()) return s;
      auto fail = [](const absl::Status& s) {
        return absl::Status(s.code(), "runsc create failed: " + std::string(s.message()));
      };
      auto options = MakeCreateOptions(context, flags);
      if (!options.ok()) return fail(options.status());
      auto container = CreateContainer(context.store(), *options);
      if (!container.ok()) return fail(container.status());
      if (auto s = container->launch.Commit(); !s.ok()) return fail(s);
      return 0;
    };
  });
}

}  // namespace runsc
