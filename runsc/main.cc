// runsc: the OCI runtime, and by internal subcommands the sentry and the gofer.
#include "platform/host_calls.h"
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
  return platform::CreateSystrap(options, why);
}

}  // namespace

int main(int argc, char** argv) {
  const sentry::BootHooks hooks{.create_platform = CreatePlatform,
                                .platform_host_calls = platform::AllowHostCalls,
                                .create_sandbox = &sentry::CreateSandbox,
                                .describe_syscalls = &sentry::SyscallsJson,
                                .probe_strict = &platform::ProbeStrict};
  return runsc::RunMain(argc, argv, hooks);
}
