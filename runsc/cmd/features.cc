// runsc features
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "runsc/cmd/command.h"
#include "runsc/oci/mount_options.h"
#include "runsc/oci/parse.h"
#include "runsc/oci/seccomp.h"

namespace runsc {
namespace {

using Platforms = std::vector<sentry::BootHooks::PlatformChoice>;

// What --platform=auto picks: the first that can be done. Null if none can.
const sentry::BootHooks::PlatformChoice* Best(const Platforms& platforms) {
  for (const auto& p : platforms) {
    if (p.why_not.empty()) return &p;
  }
  return nullptr;
}

void AddPlatforms(const Platforms& platforms, nlohmann::ordered_json* annotations) {
  if (platforms.empty()) return;
  const auto* best = Best(platforms);
  (*annotations)["runsc.platform"] = best != nullptr ? best->name : "";
  for (const auto& p : platforms) {
    (*annotations)["runsc.platform." + p.name] =
        p.why_not.empty() ? "available" : "unavailable: " + p.why_not;
  }
}

int PrintPlatforms(const Platforms& platforms) {
  const auto* best = Best(platforms);
  for (const auto& p : platforms) {
    const char* state = &p == best          ? "available, used by --platform=auto"
                        : p.why_not.empty() ? "available"
                                            : p.why_not.c_str();
    printf("%s: %s\n", p.name.c_str(), state);
  }
  return best != nullptr ? 0 : 1;
}

}  // namespace

void AddFeaturesCommand(Context& context) {
  Command command(context, "features", "show the enabled features", "",
                  "Show the enabled features.\n"
                  "The result is parsable as a JSON.");
  static bool platforms_only = false;
  command.Flag("--platforms", &platforms_only, "say in words which platforms this host can do");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 0, 0); !s.ok()) return s;
    std::vector<sentry::BootHooks::PlatformChoice> platforms;
    if (context.boot_hooks && context.boot_hooks->describe_platforms) {
      platforms = context.boot_hooks->describe_platforms();
    }
    if (platforms_only) return PrintPlatforms(platforms);
    using Json = nlohmann::ordered_json;
    Json caps = Json::array();
    for (int i = 0; i < oci::kCapabilityCount; ++i) caps.push_back(oci::CapabilityName(i));
    // What the sandbox gives a container of its own; "apparmor" and the like are accepted in a
    // configuration but not enforced, and so not claimed.
    Json json = {
        {"ociVersionMin", "1.0.0"},
        {"ociVersionMax", kSpecVersion},
        {"hooks",
         {"prestart", "createRuntime", "createContainer", "startContainer", "poststart",
          "poststop"}},
        {"mountOptions", oci::KnownMountOptions()},
        {"linux",
         {{"namespaces", {"cgroup", "ipc", "mount", "network", "pid", "user", "uts"}},
          {"capabilities", caps},
          {"cgroup", {{"v1", true}, {"v2", true}, {"systemd", false}, {"systemdUser", false}}},
          {"seccomp",
           {{"enabled", true},
            {"actions", oci::KnownSeccompActions()},
            {"operators", oci::KnownSeccompOperators()},
            {"archs", {"SCMP_ARCH_X86_64"}}}},
          {"apparmor", {{"enabled", false}}},
          {"selinux", {{"enabled", false}}}}},
        {"annotations", {{"runsc.version", kVersion}}}};
    if (context.boot_hooks && context.boot_hooks->describe_syscalls) {
      json["annotations"]["runsc.syscalls"] = context.boot_hooks->describe_syscalls();
    }
    if (context.boot_hooks && context.boot_hooks->probe_strict) {
      base::Status strict = context.boot_hooks->probe_strict();
      json["annotations"]["runsc.strict"] =
          strict.ok() ? "possible"
                      : std::string("not possible: ") + strerror(strict.error().code());
    }
    AddPlatforms(platforms, &json["annotations"]);
    printf("%s\n", json.dump(4).c_str());
    return 0;
  });
}

}  // namespace runsc
