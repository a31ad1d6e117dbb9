// What the commands share: global options, and how a command is declared and ends.
#pragma once

#include <cstdint>
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

using Args = std::vector<std::string>;

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

// The state of one invocation.
struct Context {
  CLI::App* app = nullptr;
  Globals globals;
  const sentry::BootHooks* boot_hooks = nullptr;
  // What the parsed command does: returns the exit status, or an error that is printed in one line
  // and ends with `error_code`.
  std::function<absl::StatusOr<int>()> action;
  int error_code = 1;
  Store store() const { return Store(globals.root); }
};

// One command while it is declared and when it runs. A thin cover of the library that parses the
// command line, so that one file alone pays for compiling it. Values and callbacks live as long as
// the program.
class Command {
 public:
  // `usage` stands behind the name in the help, `text` is its description.
  Command(Context& context, const char* name, const char* summary, const char* usage,
          const char* text);
  // Options: "--long,-s".
  void Flag(const char* names, bool* value, const char* text);
  void Text(const char* names, std::string* value, const char* text);
  void Number(const char* names, int* value, const char* text);
  // May be given several times.
  void Texts(const char* names, std::vector<std::string>* values, const char* text);
  void Numbers(const char* names, std::vector<uint32_t>* values, const char* text);
  // Leaves it out of the list of commands.
  void Hide();
  // Options that are not declared are no mistake.
  void AnyOptions();
  // Options end at the first argument; the rest is taken as it is.
  void StopAtArgument();
  // `run` is the context's action if this is the command.
  void Runs(std::function<absl::StatusOr<int>(const Args& args)> run);
  // As runc: what is written if a command has another number of arguments than it wants.
  absl::Status CheckArgs(const Args& args, size_t min, size_t max) const;

 private:
  Context* context_;
  CLI::App* app_;
  Args* args_;  // the positional ones, unless the command stops at the first
};

// Each declares one command.
void AddBootCommand(Context& context);
void AddCheckpointCommands(Context& context);
void AddCreateCommand(Context& context);
void AddDeleteCommand(Context& context);
void AddDoCommand(Context& context);
void AddEventsCommand(Context& context);
void AddExecCommand(Context& context);
void AddFeaturesCommand(Context& context);
void AddGoferCommand(Context& context);
void AddKillCommand(Context& context);
void AddListCommand(Context& context);
void AddPauseCommand(Context& context);
void AddPsCommand(Context& context);
void AddResumeCommand(Context& context);
void AddRunCommand(Context& context);
void AddSpecCommand(Context& context);
void AddStartCommand(Context& context);
void AddStateCommand(Context& context);
void AddSyscallsCommand(Context& context);
void AddUpdateCommand(Context& context);
void AddWaitCommand(Context& context);

// The only argument of most commands.
inline constexpr const char kIdUsage[] = "<container-id>";
inline constexpr const char kIdText[] =
    "Where \"<container-id>\" is your name for the instance of the container. The name must be\n"
    "unique on your host.";

// `status` with "<what>: " before its message.
absl::Status Prefixed(const char* what, const absl::Status& status);

// The whole program.
int RunMain(int argc, char** argv, const sentry::BootHooks& boot_hooks);

}  // namespace runsc
