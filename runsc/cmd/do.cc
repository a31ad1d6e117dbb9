// runsc do
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "runsc/cmd/create_options.h"
#include "runsc/oci/parse.h"

extern char** environ;

namespace runsc {
namespace {

using Json = nlohmann::ordered_json;

// A configuration for one command in the root of the host.
std::string DoConfig(const std::vector<std::string>& args, const std::string& root,
                     const std::string& cwd) {
  Json caps = Json::array();
  for (int i = 0; i < oci::kCapabilityCount; ++i) caps.push_back(oci::CapabilityName(i));
  Json env = Json::array();
  for (char** e = environ; *e != nullptr; ++e) env.push_back(*e);
  Json process;
  process["terminal"] = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
  process["user"] = {{"uid", getuid()}, {"gid", getgid()}};
  process["args"] = args;
  process["env"] = env;
  process["cwd"] = cwd;
  if (getuid() == 0) {
    process["capabilities"] = {
        {"bounding", caps}, {"effective", caps}, {"permitted", caps}, {"inheritable", caps}};
  }
  char hostname[65] = {};
  gethostname(hostname, sizeof(hostname) - 1);
  auto mount = [](const char* where, const char* type, Json options) {
    return Json({{"destination", where}, {"type", type}, {"source", type}, {"options", options}});
  };
  Json spec;
  spec["ociVersion"] = kSpecVersion;
  spec["process"] = process;
  spec["root"] = {{"path", root}};
  spec["hostname"] = hostname;
  spec["mounts"] = {mount("/proc", "proc", Json::array()),
                    mount("/sys", "sysfs", {"nosuid", "noexec", "nodev", "ro"}),
                    mount("/dev", "tmpfs", {"nosuid", "strictatime", "mode=755"}),
                    mount("/dev/pts", "devpts", {"nosuid", "noexec", "ptmxmode=0666"}),
                    mount("/dev/shm", "tmpfs", {"nosuid", "nodev", "mode=1777"})};
  return spec.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string NewId() {
  uint32_t random = 0;
  if (getrandom(&random, sizeof(random), 0) < 0) random = static_cast<uint32_t>(time(nullptr));
  return "runsc-do-" + std::to_string(getpid()) + "-" + std::to_string(random);
}

}  // namespace

void AddDoCommand(Context& context) {
  static std::string cwd, root = "/";
  Command command(
      context, "do", "run a command in a sandbox of the current root", "<command> [arguments...]",
      "The command sees this machine's files. What it writes stays in memory and is gone with\n"
      "it.\n\n"
      "EXAMPLE:\n"
      "       # runsc do uname -a");
  command.Text("--cwd", &cwd, "working directory (default: the current one)");
  command.Text("--root", &root, "directory to use as the root (default: \"/\")");
  command.StopAtArgument();
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, SIZE_MAX); !s.ok()) return s;
    auto fail = [](const absl::Status& s) { return Prefixed("runsc do failed", s); };
    if (cwd.empty()) {
      auto here = ResolvePath(".");
      if (!here.ok()) return fail(here.status());
      cwd = root == "/" ? *here : "/";
    }
    CreateOptions options;
    options.id = NewId();
    options.bundle = "/";
    options.config_text = DoConfig(args, root, cwd);
    auto spec = oci::ParseSpec(options.config_text);
    if (!spec.ok()) return fail(spec.status());
    options.spec = std::move(*spec);
    options.foreground = true;
    options.debug_log = context.globals.debug_log;
    options.flags = context.globals.flags;
    options.flags.overlay = true;
    BlockForwardedSignals();
    auto container = CreateContainer(context.store(), options);
    if (!container.ok()) return fail(container.status());
    auto code = RunInForeground(context.store(), std::move(*container), /*keep=*/false);
    if (!code.ok()) return fail(code.status());
    return code;
  });
}

}  // namespace runsc
