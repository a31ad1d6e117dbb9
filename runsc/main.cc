// runsc: the OCI runtime, and by internal subcommands the sentry and the gofer.
#include "platform/platform.h"
#include "runsc/cmd/command.h"
#include "sentry/boot/boot.h"
#include "sentry/boot/sandbox.h"
#include "sentry/fs/proc/host_snapshot.h"
#include "sentry/syscalls/docs.h"

namespace {

base::Result<std::unique_ptr<platform::Platform>> CreatePlatform(const sentry::BootSpec& spec,
                                                                 std::string* why) {
  sentry::TakeHostSnapshot();  // while the host's files are in reach
  platform::Options options;
  options.strict = spec.strict;
  options.spin_ns = spec.spin_ns;
  options.lanes = spec.lanes;
  return platform::Create(spec.platform, options, why);
}

// Tries them.
std::vector<sentry::BootHooks::PlatformChoice> DescribePlatforms() {
  std::vector<sentry::BootHooks::PlatformChoice> choices;
  for (const char* name : platform::kPlatforms) {
    std::string why;
    auto made = platform::Create(name, platform::Options{.pool_size = 0}, &why);
    choices.push_back({name, made.ok() ? "" : why});
  }
  return choices;
}

}  // namespace

int main(int argc, char** argv) {
  const sentry::BootHooks hooks{.create_platform = CreatePlatform,
                                .create_sandbox = &sentry::CreateSandbox,
                                .describe_platforms = &DescribePlatforms,
                                .describe_syscalls = &sentry::SyscallsJson,
                                .probe_strict = &platform::ProbeStrict};
  return runsc::RunMain(argc, argv, hooks);
}
