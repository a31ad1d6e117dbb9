// The command line: global options, help in runc's form, and what an error looks like.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "runsc/cmd/command.h"
#include "runsc/log/log.h"

namespace runsc {
namespace {

constexpr char kAppText[] =
    "runsc runs containers that do not talk to the host's kernel: system calls are answered by a\n"
    "kernel in user space, in a sandbox of its own. It is used as runc is, with bundles that "
    "follow\n"
    "the Open Container Initiative (OCI) format.\n"
    "\n"
    "To start a new instance of a container:\n"
    "\n"
    "    # runsc run [ -b bundle ] <container-id>\n"
    "\n"
    "The bundle is a directory with a file named \"config.json\" and a root file system; the "
    "default\n"
    "is the current directory.";

// Help as runc's users know it.
class RuncFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const override {
    bool top = app->get_parent() == nullptr;
    std::string out = "NAME:\n   runsc ";
    if (!top) out += app->get_name() + " ";
    out += "- " + (top ? "Open Container Initiative runtime" : Summary(app)) + "\n\n";
    if (top) out += std::string(kAppText) + "\n\n";
    out += "USAGE:\n   runsc ";
    if (top) {
      out += "[global options] command [command options] [arguments...]\n\nVERSION:\n   ";
      out += std::string(kVersion) + "\nspec: " + kSpecVersion + "\n\nCOMMANDS:\n";
      for (const CLI::App* sub : app->get_subcommands({})) {
        if (!sub->get_group().empty()) out += Row(sub->get_name(), Summary(sub), 12);
      }
      out += Row("help, h", "Shows a list of commands or help for one command", 12);
    } else {
      out += app->get_name() + " [command options] " + app->get_footer() + "\n";
      std::string text = Text(app);
      if (!text.empty()) out += "\nDESCRIPTION:\n   " + text + "\n";
    }
    out += top ? "\nGLOBAL OPTIONS:\n" : "\nOPTIONS:\n";
    size_t width = 0;
    std::vector<const CLI::Option*> options = app->get_options(
        [](const CLI::Option* o) { return o->nonpositional() && !o->get_group().empty(); });
    for (const CLI::Option* o : options) width = std::max(width, Names(o).size() + 2);
    for (const CLI::Option* o : options) out += Row(Names(o), o->get_description(), width);
    return out;
  }

  // A command's description holds its summary, a line feed, and its text.
  static std::string Summary(const CLI::App* app) {
    std::string all = app->get_description();
    return all.substr(0, all.find('\n'));
  }
  static std::string Text(const CLI::App* app) {
    std::string all = app->get_description();
    size_t at = all.find('\n');
    return at == std::string::npos ? "" : all.substr(at + 1);
  }

 private:
  static std::string Row(const std::string& left, const std::string& right, size_t width) {
    std::string out = "   " + left;
    out.append(std::max(width, left.size() + 1) - left.size(), ' ');
    return out + right + "\n";
  }
  static std::string Names(const CLI::Option* o) {
    const char* value = o->get_items_expected_max() > 0 ? " value" : "";
    std::string out;
    for (const std::string& name : o->get_lnames()) {
      out += (out.empty() ? "--" : ", --") + name + value;
    }
    for (const std::string& name : o->get_snames()) {
      out += (out.empty() ? "-" : ", -") + name + value;
    }
    return out;
  }
};

std::string DefaultRoot() {
  const char* runtime_dir = getenv("XDG_RUNTIME_DIR");
  if (geteuid() != 0 && runtime_dir != nullptr) return std::string(runtime_dir) + "/runsc";
  return "/run/runsc";
}

void AddGlobals(CLI::App& app, Globals& g) {
  app.add_flag("--debug", g.debug, "enable debug logging");
  app.add_option("--log", g.log,
                 "set the log file to write runsc logs to (default is '/dev/stderr')");
  app.add_option("--log-format", g.log_format,
                 "set the log format ('text' (default), or 'json') (default: \"text\")");
  app.add_option("--root", g.root,
                 "root directory for storage of container state (this should be located in tmpfs) "
                 "(default: \"" +
                     g.root + "\")");
  static std::string criu;  // accepted because runc's callers may pass it
  app.add_option("--criu", criu, "ignored")->group("");
  app.add_flag("--systemd-cgroup", g.systemd_cgroup,
               "enable systemd cgroup support, expects cgroupsPath to be of form "
               "\"slice:prefix:name\" for e.g. \"system.slice:runsc:434234\"");
  app.add_option("--rootless", g.rootless,
                 "ignore cgroup permission errors ('true', 'false', or 'auto') (default: \"auto\")")
      ->check(CLI::IsMember({"true", "false", "auto"}));
  app.add_option("--platform", g.flags.platform,
                 "how system calls are trapped: 'systrap' (by seccomp), 'ptrace' (by a tracer; "
                 "slower), or 'auto', the first of them that this host can do (default: \"auto\")")
      ->check([](const std::string& name) {
        if (name == "kvm") return "the platform " + name + " is not implemented";
        return CLI::IsMember({"auto", "systrap", "ptrace"})(name);
      });
  app.add_option("--network", g.flags.network,
                 "the container's network: 'none' (the sandbox's own loopback device alone), or "
                 "'host' (sockets of the host in the container's network namespace, through a "
                 "narrow filter) (default: \"none\")")
      ->check([](const std::string& name) {
        // The sentry's own TCP/IP on the namespace's devices.
        if (name == "sandbox") return std::string("the network sandbox is not implemented yet");
        return CLI::IsMember({sentry::kNoNetwork, sentry::kHostNetwork})(name);
      });
  app.add_option("--file-access", g.flags.file_access,
                 "who changes the root file system: 'exclusive' (the container alone), or 'shared' "
                 "(the host too, as `docker cp` does; slower) (default: \"exclusive\")")
      ->check(CLI::IsMember({"exclusive", "shared"}));
  app.add_flag("--overlay", g.flags.overlay,
               "keep writes to the root file system in memory instead of the bundle");
  app.add_flag("--strace", g.flags.strace, "log each system call to the debug log");
  app.add_flag(
      "--allow-no-seccomp", g.flags.allow_no_seccomp,
      "start even where the host refuses seccomp filters: the container's processes are "
      "confined by the ptrace platform, but nothing but its namespaces confines the sandbox "
      "itself");
  app.add_flag("--strict", g.flags.strict,
               "have the sentry confirm each memory call and clone that the host is to do for the "
               "application's processes; slower, and refused where the host cannot");
  app.add_option("--lanes", g.flags.lanes,
                 "let processes that may trace one another move the bytes of their streams "
                 "themselves: 'on' or 'off' (default: \"on\")")
      ->transform(CLI::Transformer(std::map<std::string, std::string>{{"on", "1"}, {"off", "0"}}));
  app.add_option("--debug-log", g.debug_log,
                 "log of each process; %ID%, %COMMAND%, %TIMESTAMP% and %PID% are replaced, a "
                 "path that ends with '/' is a directory");
  app.add_option(
         "--spin", g.flags.spin_ns,
         "how long to spin for a system call before sleeping: 'auto' (learned), 'off', or a "
         "number of nanoseconds (default: \"auto\")")
      ->check(CLI::Range(int64_t{-1}, int64_t{1'000'000'000}))
      ->transform(
          CLI::Transformer(std::map<std::string, std::string>{{"auto", "-1"}, {"off", "0"}}));
}

int UsageError(const CLI::App& app, const std::string& what) {
  const CLI::App* at = &app;
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  printf("Incorrect Usage: %s\n\n%s\n", what.c_str(), at->help().c_str());
  fflush(stdout);
  LogFatal(what);
  return 1;
}

int Help(const CLI::App& app, const std::vector<std::string>& args) {
  if (args.empty()) {
    printf("%s", app.help().c_str());
    return 0;
  }
  for (const CLI::App* sub : app.get_subcommands({})) {
    if (sub->get_name() == args[0]) {
      printf("%s", sub->help().c_str());
      return 0;
    }
  }
  LogFatal("No help topic for '" + args[0] + "'");
  return 3;
}

}  // namespace

absl::Status Prefixed(const char* what, const absl::Status& status) {
  return absl::Status(status.code(), std::string(what) + ": " + std::string(status.message()));
}

Command::Command(Context& context, const char* name, const char* summary, const char* usage,
                 const char* text)
    : context_(&context),
      app_(context.app->add_subcommand(name, std::string(summary) + "\n" + text)),
      args_(new Args) {
  app_->footer(usage);
  app_->add_option("args", *args_)->group("");
}

void Command::Flag(const char* names, bool* value, const char* text) {
  app_->add_flag(names, *value, text);
}

void Command::Text(const char* names, std::string* value, const char* text) {
  app_->add_option(names, *value, text);
}

void Command::Number(const char* names, int* value, const char* text) {
  app_->add_option(names, *value, text);
}

void Command::Texts(const char* names, std::vector<std::string>* values, const char* text) {
  app_->add_option(names, *values, text)->allow_extra_args(false);
}

void Command::Numbers(const char* names, std::vector<uint32_t>* values, const char* text) {
  app_->add_option(names, *values, text)->allow_extra_args(false);
}

void Command::Hide() { app_->group(""); }

void Command::AnyOptions() { app_->allow_extras(); }

void Command::StopAtArgument() {
  app_->remove_option(app_->get_option("args"));
  app_->prefix_command();
}

void Command::Runs(std::function<absl::StatusOr<int>(const Args&)> run) {
  app_->callback([context = context_, app = app_, args = args_, run = std::move(run)] {
    context->action = [app, args, run] {
      return run(app->get_prefix_command() ? app->remaining() : *args);
    };
  });
}

absl::Status Command::CheckArgs(const Args& args, size_t min, size_t max) const {
  if (args.size() >= min && args.size() <= max) return absl::OkStatus();
  printf("Incorrect Usage.\n\n%s\n", app_->help().c_str());
  fflush(stdout);
  std::string wanted = min == max          ? "exactly " + std::to_string(min)
                       : args.size() < min ? "a minimum of " + std::to_string(min)
                                           : "a maximum of " + std::to_string(max);
  return absl::InvalidArgumentError("runsc: \"" + app_->get_name() + "\" requires " + wanted +
                                    " argument(s)");
}

int RunMain(int argc, char** argv, const sentry::BootHooks& boot_hooks) {
  // The callbacks outlive the parse.
  static Context context;
  static CLI::App app;
  context.app = &app;
  context.boot_hooks = &boot_hooks;
  context.globals.root = DefaultRoot();
  app.name("runsc");
  app.formatter(std::make_shared<RuncFormatter>());
  app.set_help_flag("--help,-h", "show help");
  AddGlobals(app, context.globals);
  bool version = false;
  app.add_flag("--version,-v", version, "print the version");
  app.require_subcommand(0, 1);
  for (auto add :
       {AddCreateCommand,     AddDeleteCommand, AddDoCommand,   AddEventsCommand,   AddExecCommand,
        AddFeaturesCommand,   AddKillCommand,   AddListCommand, AddPauseCommand,    AddPsCommand,
        AddResumeCommand,     AddRunCommand,    AddSpecCommand, AddSyscallsCommand, AddStartCommand,
        AddStateCommand,      AddUpdateCommand, AddWaitCommand, AddBootCommand,     AddGoferCommand,
        AddCheckpointCommands}) {
    add(context);
  }
  static std::vector<std::string> help_args;
  CLI::App* help = app.add_subcommand("help")->alias("h")->group("");
  help->add_option("args", help_args)->group("");
  help->callback([] { context.action = [] { return Help(app, help_args); }; });

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App* at = &app;
    while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
    printf("%s", at->help().c_str());
    return 0;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() != static_cast<int>(CLI::ExitCodes::ExtrasError)) {
      return UsageError(app, e.what());
    }
    const CLI::App* at = &app;
    while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
    for (const std::string& extra : at->remaining()) {
      if (extra[0] == '-') {
        return UsageError(app, "flag provided but not defined: " + extra.substr(extra[1] == '-'));
      }
      // A name that is no command stands where an argument of the program would.
      if (at == &app) {
        LogFatal("No help topic for '" + extra + "'");
        return 3;
      }
    }
    return UsageError(app, e.what());
  }
  if (version) {
    printf("runsc version %s\nspec: %s\n", kVersion, kSpecVersion);
    return 0;
  }
  if (!context.action) return Help(app, {});
  const Globals& g = context.globals;
  absl::Status status = InitLog(g.log, g.log_format, g.debug);
  if (status.ok()) {
    context.globals.flags.debug = g.debug;
    absl::StatusOr<int> code = context.action();
    if (code.ok()) return *code;
    status = code.status();
  }
  LogFatal(std::string(status.message()));
  return context.error_code;
}

}  // namespace runsc
