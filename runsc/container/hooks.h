// Programs of the host that the configuration wants run at moments of the container's life.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runsc/oci/spec.h"

namespace runsc {

// Runs them in order, each with `state_json` on standard input and nothing else open. Stops at the
// first that cannot be run, exits with another status than 0, or outlasts its timeout (it is killed
// then). The error names the kind, the index, the path, and what it wrote to standard error.
absl::Status RunHooks(const char* kind, const std::vector<oci::Hook>& hooks,
                      const std::string& state_json);

}  // namespace runsc
