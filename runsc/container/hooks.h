// Programs of the host that the configuration wants run at moments of the container's life.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runsc/oci/spec.h"

namespace runsc {

// The two processes whose namespaces are the container's as the host sees them. They are there and
// wait while the hooks run.
struct HookNamespaces {
  pid_t gofer = 0;   // mount: the host's files, of which the gofer takes the container's later
  pid_t sentry = 0;  // PID, IPC, UTS, network, cgroup
};

// Runs them in order, each with `state_json` on standard input and nothing else open. Stops at the
// first that cannot be run, exits with another status than 0, or outlasts its timeout (it is killed
// then). The error names the kind, the index, the path, and what it wrote to standard error.
absl::Status RunHooks(const char* kind, const std::vector<oci::Hook>& hooks,
                      const std::string& state_json);
// The same, inside those namespaces. A caller without rights over the sentry's is put in the
// gofer's instead, its user namespace included.
absl::Status RunHooksInside(const HookNamespaces& where, const char* kind,
                            const std::vector<oci::Hook>& hooks, const std::string& state_json);

}  // namespace runsc
