// From the OCI configuration to what the sentry and the gofer are told.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runsc/oci/spec.h"
#include "runsc/sandbox/launch.h"
#include "sentry/base/host_fd.h"
#include "sentry/boot/boot_spec.h"

namespace runsc {

// Our own global flags that reach the sandbox.
struct SandboxFlags {
  std::string platform = "auto";
  std::string network = sentry::kNoNetwork;
  bool overlay = false;
  std::string file_access = "exclusive";  // or "shared": BootSpec::root_shared
  bool strace = false;
  bool strict = false;
  bool allow_no_seccomp = false;
  bool debug = false;
  int64_t spin_ns = -1;
  bool lanes = true;
};

struct SandboxSetup {
  sentry::BootSpec boot;
  base::UniqueFd network_namespace;      // of the sentry; invalid: one of its own
  std::vector<GoferMount> gofer_mounts;  // 0 is the root file system
  std::string rootfs;                    // absolute, resolved
};

// Checks that the root file system and the sources of bind mounts exist; relative paths count from
// `bundle`.
absl::StatusOr<SandboxSetup> BuildSandboxSetup(const oci::Spec& spec, const std::string& id,
                                               const std::string& bundle,
                                               const SandboxFlags& flags);
// Of a sandbox of its own with --network=host: finds or makes its network namespace.
absl::Status AddNetwork(const oci::Spec& spec, SandboxSetup* setup);
sentry::ProcessSpec BuildProcessSpec(const oci::Process& process);

// The path without links, "." and "..". NotFound etc. with strerror and the path.
absl::StatusOr<std::string> ResolvePath(const std::string& path);

}  // namespace runsc
