// The sentry's main function.
//
// At exec the process has the descriptors of boot_fds.h, namespaces of its own, user id 0 in a user
// namespace that maps it to an unprivileged one, and is a session leader. The sync socket carries
// datagrams: from the sentry "ready", or "error " and one line; from runsc "commit", after which
// the sandbox outlives the socket. Until then the end of the socket ends the sandbox.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/boot/boot_spec.h"
#include "sentry/boot/confine.h"
#include "sentry/boot/sandbox.h"

namespace sentry {

struct BootOptions {
  int file_count = 3;     // how many guest files start at kBootFirstFile
  bool have_log = false;  // descriptor 2 is the debug log
};

// What the sentry is made of; tests put others in their place.
struct BootHooks {
  // Makes the platform, before confinement.
  std::function<base::Result<std::unique_ptr<platform::Platform>>(const BootSpec& spec,
                                                                  std::string* why)>
      create_platform;
  decltype(&CreateSandbox) create_sandbox = nullptr;
  // The platforms that this program has, the best first, and why this host cannot do one; empty: it
  // can. For `runsc features`; may be null.
  struct PlatformChoice {
    std::string name, why_not;
  };
  std::vector<PlatformChoice> (*describe_platforms)() = nullptr;
  // The table of system calls as JSON, for `runsc features`; may be null.
  std::string (*describe_syscalls)() = nullptr;
  // Whether BootSpec::strict is possible on this host, for the same; may be null.
  base::Status (*probe_strict)() = nullptr;
};

// Runs the sandbox to its end; returns the exit status for the process: that of init, or 128 and
// its signal. To be followed by _exit: threads of the kernel may still run.
int RunSentry(const BootOptions& options, const BootHooks& hooks);

}  // namespace sentry
