// The network namespace of a container with --network=host: the one that its configuration names, a
// new one, or the caller's. Its sentry will live there without rights over it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runsc/oci/spec.h"
#include "sentry/base/host_fd.h"
#include "sentry/boot/boot_spec.h"

namespace runsc {

struct ContainerNetwork {
  base::UniqueFd ns;  // its namespace
  // What holds there for the container, for the sentry's /proc/sys/net and its own checks.
  std::vector<sentry::ContainerSpec::Sysctl> sysctls;
};

// Finds or makes the namespace and, unless it is the caller's, does what runc does in it (the
// loopback device is up, the configuration's sysctls are set), and opens it for the sentry: low
// ports and echo sockets are for every user there, since the sentry, which is nobody on the host,
// decides who of the container may have them.
absl::StatusOr<ContainerNetwork> PrepareNetwork(const oci::Spec& spec);

}  // namespace runsc
