// runsc update
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <optional>
#include <tuple>

#include "runsc/cgroup/cgroup.h"
#include "runsc/cmd/command.h"
#include "runsc/container/container.h"
#include "runsc/oci/parse.h"

namespace runsc {
namespace {

struct UpdateFlags {
  std::string file, memory, reservation, swap, shares, quota, period, cpus, mems, pids;
};

// "123", or "-1" for no limit. Absent if it was not given.
absl::Status ParseAmount(const char* name, const std::string& text, std::optional<int64_t>* out) {
  if (text.empty()) return absl::OkStatus();
  char* end;
  errno = 0;
  long long value = strtoll(text.c_str(), &end, 10);
  if (errno != 0 || *end != '\0' || end == text.c_str() || value < -1) {
    return absl::InvalidArgumentError("invalid value for " + std::string(name) + ": " + text);
  }
  *out = value;
  return absl::OkStatus();
}

absl::StatusOr<oci::Resources> ReadFlags(const UpdateFlags& flags) {
  if (!flags.file.empty()) {
    auto text = ReadFile(flags.file == "-" ? "/proc/self/fd/0" : flags.file, oci::kMaxConfigBytes);
    if (!text.ok()) return text.status();
    auto resources = oci::ParseResources(*text);
    if (resources.ok()) return resources;
    return absl::InvalidArgumentError(flags.file + ": " +
                                      std::string(resources.status().message()));
  }
  oci::Resources r;
  std::optional<int64_t> shares, period;
  const std::tuple<const char*, const std::string&, std::optional<int64_t>*> amounts[] = {
      {"memory", flags.memory, &r.memory_limit},
      {"memory-reservation", flags.reservation, &r.memory_reservation},
      {"memory-swap", flags.swap, &r.memory_swap},
      {"cpu-share", flags.shares, &shares},
      {"cpu-quota", flags.quota, &r.cpu_quota},
      {"cpu-period", flags.period, &period},
      {"pids-limit", flags.pids, &r.pids_limit}};
  for (const auto& [name, text, out] : amounts) {
    if (auto s = ParseAmount(name, text, out); !s.ok()) return s;
  }
  if (shares) r.cpu_shares = static_cast<uint64_t>(std::max<int64_t>(*shares, 0));
  if (period) r.cpu_period = static_cast<uint64_t>(std::max<int64_t>(*period, 0));
  r.cpus = flags.cpus;
  r.mems = flags.mems;
  return r;
}

// The kernel inside counts and shows the limits too.
absl::Status Tell(const Store& store, const std::string& id, const oci::Resources& r) {
  if (!r.pids_limit && !r.memory_limit) return absl::OkStatus();
  auto sandbox = ConnectSandbox(store, id);
  if (!sandbox.ok()) return sandbox.status();
  const int64_t unchanged = -1;
  auto told =
      sandbox->SetLimits(r.pids_limit ? std::max<int64_t>(*r.pids_limit, 0) : unchanged,
                         r.memory_limit ? std::max<int64_t>(*r.memory_limit, 0) : unchanged);
  return told.ok() ? absl::OkStatus() : absl::UnavailableError("the sandbox does not answer");
}

absl::Status Update(const Store& store, const std::string& id, const oci::Resources& resources,
                    bool systemd) {
  auto lock = store.Lock(id, /*create=*/false);
  if (!lock.ok()) return lock.status();
  auto state = store.Load(id);
  if (!state.ok()) return state.status();
  if (state->CurrentStatus() == ContainerStatus::kStopped) {
    return absl::FailedPreconditionError("container not running");
  }
  if (state->CurrentStatus() == ContainerStatus::kPaused) {
    return absl::FailedPreconditionError("container " + id + " is paused");
  }
  auto spec = LoadStoredSpec(store, id);
  if (!spec.ok()) return spec.status();
  if (spec->linux_.cgroups_path.empty() && spec->linux_.resources.empty()) {
    return absl::FailedPreconditionError("container " + id + " has no cgroup to update");
  }
  spec->linux_.resources = resources;
  // With the same path, whatever else the configuration asks for.
  if (spec->linux_.cgroups_path.empty()) spec->linux_.cgroups_path = id;
  auto cgroups = Cgroups::Plan(spec->linux_, id, systemd);
  if (!cgroups.ok()) return cgroups.status();
  if (auto s = cgroups->Change(); !s.ok()) return s;
  return Tell(store, id, resources);
}

}  // namespace

void AddUpdateCommand(Context& context) {
  static UpdateFlags f;
  Command command(
      context, "update", "update container resource constraints", kIdUsage,
      "The limits of the container's cgroup are changed as they are given; -1 is none.");
  command.Text("--resources,-r", &f.file,
               "path to the file containing the resources to update or '-' to read from the "
               "standard input");
  command.Text("--memory", &f.memory, "Memory limit (in bytes)");
  command.Text("--memory-reservation", &f.reservation,
               "Memory reservation or soft_limit (in bytes)");
  command.Text("--memory-swap", &f.swap,
               "Total memory usage (memory + swap); set '-1' to enable unlimited swap");
  command.Text("--cpu-share", &f.shares, "CPU shares (relative weight vs. other containers)");
  command.Text("--cpu-quota", &f.quota, "CPU CFS hardcap limit (in usecs)");
  command.Text("--cpu-period", &f.period, "CPU CFS period to be used for hardcapping (in usecs)");
  command.Text("--cpuset-cpus", &f.cpus, "CPU(s) to use");
  command.Text("--cpuset-mems", &f.mems, "Memory node(s) to use");
  command.Text("--pids-limit", &f.pids, "Maximum number of pids allowed in the container");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    auto resources = ReadFlags(f);
    if (!resources.ok()) return resources.status();
    auto s = Update(context.store(), args[0], *resources, context.globals.systemd_cgroup);
    if (!s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
