// Pods: containers that run in another's sandbox.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runsc/container/state.h"
#include "runsc/oci/spec.h"
#include "sentry/boot/boot_spec.h"

namespace runsc {

// The id of the container whose sandbox this one is to join, by the annotations of containerd's CRI
// or of CRI-O (which Podman uses too); nothing: it gets a sandbox of its own. InvalidArgument if
// they say that it joins one but not which.
absl::StatusOr<std::optional<std::string>> PodSandboxId(
    const std::map<std::string, std::string>& annotations);

// The state of the container with that sandbox. NotFound or FailedPrecondition unless it is one of
// this store that has a sandbox of its own, which runs.
absl::StatusOr<ContainerState> FindPodSandbox(const Store& store, const std::string& id);

// The containers that are in that one's sandbox beside it and have not ended.
std::vector<ContainerState> PodMembers(const Store& store, const std::string& sandbox_id);

// Whose namespaces a container of the pod shares: those at whose path it names another container of
// the pod, and the first container's where it wants the host's. InvalidArgument for a path that
// leads elsewhere.
absl::StatusOr<sentry::SharedNamespaces> ShareNamespaces(const Store& store,
                                                         const ContainerState& sandbox,
                                                         const oci::Spec& spec);

}  // namespace runsc
