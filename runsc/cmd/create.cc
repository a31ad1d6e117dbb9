// runsc create

#include "runsc/cmd/create_options.h"

namespace runsc {

void AddCreateFlags(Command& command, CreateFlags& flags) {
  command.Text("--bundle,-b", &flags.bundle,
               "path to the root of the bundle directory, defaults to the current directory");
  command.Text("--console-socket", &flags.console_socket,
               "path to an AF_UNIX socket which will receive a file descriptor referencing "
               "the master end of the console's pseudoterminal");
  command.Text("--pid-file", &flags.pid_file, "specify the file to write the process id to");
  command.Flag("--no-pivot", &flags.no_pivot, "accepted, without effect");
  command.Flag("--no-new-keyring", &flags.no_new_keyring, "accepted, without effect");
  command.Number("--preserve-fds", &flags.preserve_fds,
                 "Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N "
                 "in total) (default: 0)");
}

absl::StatusOr<CreateOptions> MakeCreateOptions(const Context& context, const CreateFlags& flags,
                                                const std::string& id) {
  if (auto s = CheckId(id); !s.ok()) return s;
  auto options = LoadBundle(flags.bundle);
  if (!options.ok()) return options.status();
  options->id = id;
  options->console_socket = flags.console_socket;
  options->pid_file = flags.pid_file;
  options->preserve_fds = flags.preserve_fds;
  options->systemd_cgroup = context.globals.systemd_cgroup;
  options->debug_log = context.globals.debug_log;
  options->flags = context.globals.flags;
  return options;
}

void AddCreateCommand(Context& context) {
  static CreateFlags flags;
  Command command(context, "create", "create a container", kIdUsage, kIdText);
  AddCreateFlags(command, flags);
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    auto fail = [](const absl::Status& s) { return Prefixed("runsc create failed", s); };
    auto options = MakeCreateOptions(context, flags, args[0]);
    if (!options.ok()) return fail(options.status());
    auto container = CreateContainer(context.store(), *options);
    if (!container.ok()) return fail(container.status());
    if (auto s = container->launch.Commit(); !s.ok()) return fail(s);
    return 0;
  });
}

}  // namespace runsc
