#include "runsc/container/pod.h"

#include <sys/stat.h>

#include <utility>
#include <vector>

#include "runsc/container/container.h"

namespace runsc {

namespace {

struct Names {
  const char* type;
  const char* sandbox;
};
constexpr Names kAnnotations[] = {
    {"io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"},
    {"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"},
};

// The kinds that are shared, as the configuration and as /proc/PID/ns call them.
struct Kind {
  const char* type;
  const char* file;
  std::string sentry::SharedNamespaces::*share;
};
constexpr Kind kKinds[] = {
    {"pid", "pid", &sentry::SharedNamespaces::pid},
    {"uts", "uts", &sentry::SharedNamespaces::uts},
    {"ipc", "ipc", &sentry::SharedNamespaces::ipc},
    {"network", "net", &sentry::SharedNamespaces::net},
    {"user", "user", &sentry::SharedNamespaces::user},
};

// Device and inode of a namespace; nothing if there is none.
std::optional<std::pair<dev_t, ino_t>> Identify(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return std::nullopt;
  return std::pair(st.st_dev, st.st_ino);
}

// The path of the container's namespace of that kind in its configuration; empty: none.
std::string ConfiguredPath(const oci::Spec& spec, const std::string& type) {
  for (const oci::Namespace& ns : spec.linux_.namespaces) {
    if (ns.type == type) return ns.path;
  }
  return "";
}

}  // namespace

std::vector<ContainerState> PodMembers(const Store& store, const std::string& sandbox_id) {
  std::vector<ContainerState> members;
  auto ids = store.List();
  if (!ids.ok()) return members;
  for (const std::string& id : *ids) {
    auto state = store.Load(id);
    if (state.ok() && state->sandbox_id == sandbox_id && state->init().Alive()) {
      members.push_back(std::move(*state));
    }
  }
  return members;
}

absl::StatusOr<std::optional<std::string>> PodSandboxId(
    const std::map<std::string, std::string>& annotations) {
  for (const Names& names : kAnnotations) {
    auto type = annotations.find(names.type);
    if (type == annotations.end() || type->second != "container") continue;
    auto sandbox = annotations.find(names.sandbox);
    if (sandbox == annotations.end() || sandbox->second.empty()) {
      return absl::InvalidArgumentError(std::string("annotation ") + names.type +
                                        " says that this is a container of a pod, but " +
                                        names.sandbox + " does not say of which");
    }
    if (auto s = CheckId(sandbox->second); !s.ok()) {
      return absl::InvalidArgumentError(std::string("annotation ") + names.sandbox + ": " +
                                        std::string(s.message()));
    }
    return sandbox->second;
  }
  return std::nullopt;
}

absl::StatusOr<ContainerState> FindPodSandbox(const Store& store, const std::string& id) {
  auto state = store.Load(id);
  if (absl::IsNotFound(state.status())) {
    return absl::NotFoundError("the pod's sandbox " + id + " is no container of this runtime in " +
                               store.root());
  }
  if (!state.ok()) return state.status();
  if (!state->sandbox_id.empty()) {
    return absl::FailedPreconditionError("the pod's sandbox " + id +
                                         " has no sandbox of its own: it is in that of " +
                                         state->sandbox_id);
  }
  const ContainerStatus status = state->CurrentStatus();
  if (status != ContainerStatus::kCreated && status != ContainerStatus::kRunning) {
    return absl::FailedPreconditionError("the pod's sandbox " + id + " is " + StatusName(status));
  }
  return state;
}

absl::StatusOr<sentry::SharedNamespaces> ShareNamespaces(const Store& store,
                                                         const ContainerState& sandbox,
                                                         const oci::Spec& spec) {
  auto first = LoadStoredSpec(store, sandbox.id);
  if (!first.ok()) return first.status();
  sentry::SharedNamespaces share;
  auto find = [&](const Kind& kind, const std::string& path) -> std::string {
    const auto wanted = Identify(path);
    if (!wanted) return "";
    auto is = [&](pid_t pid) {
      return Identify("/proc/" + std::to_string(pid) + "/ns/" + kind.file) == wanted;
    };
    if (is(sandbox.sandbox.pid)) return sandbox.id;
    const std::string configured = ConfiguredPath(*first, kind.type);
    if (!configured.empty() && Identify(configured) == wanted) return sandbox.id;
    for (const ContainerState& member : PodMembers(store, sandbox.id)) {
      if (is(member.gofer.pid)) return member.id;
    }
    return "";
  };
  for (const Kind& kind : kKinds) {
    share.*kind.share = sandbox.id;  // unless it wants one of its own
    for (const oci::Namespace& ns : spec.linux_.namespaces) {
      if (ns.type != kind.type) continue;
      share.*kind.share = ns.path.empty() ? "" : find(kind, ns.path);
      if (!ns.path.empty() && (share.*kind.share).empty()) {
        return absl::InvalidArgumentError("the " + ns.type + " namespace " + ns.path +
                                          " is not that of a container of the pod " + sandbox.id);
      }
    }
  }
  return share;
}

}  // namespace runsc
