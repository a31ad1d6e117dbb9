// runsc features
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "runsc/cmd/command.h"
#include "runsc/oci/mount_options.h"
#include "runsc/oci/parse.h"
#include "runsc/oci/seccomp.h"

namespace runsc {

void AddFeaturesCommand(Context& context) {
  Command command(context, "features", "show the enabled features", "",
                  "Show the enabled features.\n"
                  "The result is parsable as a JSON.");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 0, 0); !s.ok()) return s;
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
    printf("%s\n", json.dump(4).c_str());
    return 0;
  });
}

}  // namespace runsc
