// What the commands share: global options, and how a command is declared and ends.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runsc/container/boot_spec_builder.h"
#include "runsc/container/state.h"
#include "sentry/boot/boot.h"

namespace CLI {
class App;
}  // namespace CLI

namespace runsc {

inline constexpr const char kVersion[] = "0.1.0";
inline constexpr const char kSpecVersion[] = "1.0.2-dev";

struct Globals {
  std::string root;
  std::string log;
  std::string log_format = "text";
  bool debug = false;
  bool systemd_cgroup = false;
  std::string rootless = "auto";
  std::string debug_log;
  SandboxFlags flags;
};

// The state of one invocation. A command's parse callback sets `action`, which then runs and
// returns the exit status, or an error that is printed in one line and ends with `error_code`.
struct Context {
  Globals globals;
  const sentry::BootHooks* boot_hooks = nullptr;
  std::function<absl::StatusOr<int>()> action;
  int error_code = 1;
  Store store() const { return Store(globals.root); }
};

// Each declares one command.
void AddBootCommand(CLI::App& app, Context& context);
void AddCreateCommand(CLI::App& app, Context& context);
void AddDeleteCommand(CLI::App& app, Context& context);
void AddDoCommand(CLI::App& app, Context& context);
void AddExecCommand(CLI::App& app, Context& context);
void AddFeaturesCommand(CLI::App& app, Context& context);
void AddGoferCommand(CLI::App& app, Context& context);
void AddKillCommand(CLI::App& app, Context& context);
void AddListCommand(CLI::App& app, Context& context);
void AddPsCommand(CLI::App& app, Context& context);
void AddRunCommand(CLI::App& app, Context& context);
void AddSpecCommand(CLI::App& app, Context& context);
void AddStartCommand(CLI::App& app, Context& context);
void AddStateCommand(CLI::App& app, Context& context);
void AddWaitCommand(CLI::App& app, Context& context);

// The only argument of most commands.
inline constexpr const char kIdUsage[] = "<container-id>";
inline constexpr const char kIdText[] =
    "Where \"<container-id>\" is your name for the instance of the container. The name must be\n"
    "unique on your host.";

// Declares a command that takes positional arguments; `args` receives them. `usage` is what stands
// behind the name in its help, `text` its description.
CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& summary,
                     const std::string& usage, const std::string& text,
                     std::vector<std::string>* args);
// As runc: what is written if a command has another number of arguments than it wants.
absl::Status CheckArgs(const CLI::App& command, const std::vector<std::string>& args, size_t min,
                       size_t max);

// The whole program.
int RunMain(int argc, char** argv, const sentry::BootHooks& boot_hooks);

}  // namespace runsc
