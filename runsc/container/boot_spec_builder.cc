#include "runsc/container/boot_spec_builder.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "runsc/container/network.h"
#include "runsc/container/state.h"
#include "runsc/oci/mount_options.h"

namespace runsc {
namespace {

std::string From(const std::string& bundle, const std::string& path) {
  return !path.empty() && path[0] == '/' ? path : bundle + "/" + path;
}

absl::StatusOr<sentry::MountSpec> BuildMount(const oci::Mount& mount, const std::string& bundle,
                                             std::vector<GoferMount>* gofer_mounts) {
  oci::MountOptions options = oci::ParseMountOptions(mount.options);
  sentry::MountSpec out;
  out.destination = mount.destination;
  out.type = mount.type;
  out.source = mount.source;
  out.flags = options.flags;
  out.propagation = options.propagation;
  out.data = options.data;
  if (!options.bind && mount.type != "bind") return out;
  out.type = "bind";
  if (mount.source.empty()) {
    return absl::InvalidArgumentError("mount of " + mount.destination + ": source is missing");
  }
  auto source = ResolvePath(From(bundle, mount.source));
  if (!source.ok()) {
    return absl::NotFoundError("mount of " + mount.destination + ": " +
                               std::string(source.status().message()));
  }
  struct stat st;
  if (stat(source->c_str(), &st) != 0) return ErrnoStatus("stat " + *source);
  out.source_is_directory = S_ISDIR(st.st_mode);
  out.gofer_mount = static_cast<int32_t>(gofer_mounts->size());
  gofer_mounts->push_back({*source, (options.flags & MS_RDONLY) != 0});
  return out;
}

// True if each mount's destination is there: either in the root file system, or below an earlier
// mount, where it is the sentry's affair.
bool DestinationsExist(const std::string& rootfs, const std::vector<oci::Mount>& mounts) {
  base::UniqueFd root(open(rootfs.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (size_t i = 0; i < mounts.size(); ++i) {
    const std::string& path = mounts[i].destination;
    bool below = std::any_of(mounts.begin(), mounts.begin() + i, [&](const oci::Mount& other) {
      return path.rfind(other.destination + "/", 0) == 0;
    });
    if (below) continue;
    open_how how{};
    how.flags = O_PATH | O_CLOEXEC;
    how.resolve = RESOLVE_IN_ROOT;
    base::UniqueFd fd(
        static_cast<int>(syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof(how))));
    if (!fd.valid()) return false;
  }
  return true;
}

sentry::CapSets BuildCaps(const oci::Capabilities& caps) {
  return {caps.bounding, caps.effective, caps.inheritable, caps.permitted, caps.ambient};
}

// The name of the host in the UTS namespace at `path`, as a child of this process sees it; empty if
// it cannot be joined.
std::string HostnameIn(const std::string& path) {
  base::UniqueFd ns(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  int fds[2];
  if (!ns.valid() || pipe2(fds, O_CLOEXEC) != 0) return "";
  base::UniqueFd from_child(fds[0]), to_parent(fds[1]);
  const pid_t child = fork();
  if (child == 0) {
    utsname host;
    if (setns(ns.get(), CLONE_NEWUTS) != 0 || uname(&host) != 0) _exit(1);
    const size_t length = strlen(host.nodename);
    _exit(write(to_parent.get(), host.nodename, length) == static_cast<ssize_t>(length) ? 0 : 1);
  }
  to_parent.reset();
  char name[sizeof(utsname::nodename)];
  const ssize_t length = read(from_child.get(), name, sizeof(name));
  if (child > 0) WaitForChild(child);
  return {name, static_cast<size_t>(std::max<ssize_t>(length, 0))};
}

// A container that shares a UTS namespace, the host's or a pod's, has its name.
std::string Hostname(const oci::Spec& spec) {
  if (!spec.hostname.empty()) return spec.hostname;
  for (const oci::Namespace& ns : spec.linux_.namespaces) {
    if (ns.type == "uts") return ns.path.empty() ? "" : HostnameIn(ns.path);
  }
  utsname host;
  return uname(&host) == 0 ? host.nodename : "";
}

void BuildLinux(const oci::Linux& config, sentry::ContainerSpec* boot) {
  boot->masked_paths = config.masked_paths;
  boot->readonly_paths = config.readonly_paths;
  for (const oci::Device& d : config.devices) {
    boot->devices.push_back({d.path, d.type, d.major, d.minor, d.mode, d.uid, d.gid});
  }
  for (const oci::Namespace& ns : config.namespaces) {
    if (ns.type == "user") boot->new_user_namespace = ns.path.empty();
    if (ns.type == "cgroup") boot->new_cgroup_namespace = ns.path.empty();
  }
  auto ids = [](const std::vector<oci::IdMap>& from, std::vector<sentry::IdMapping>* to) {
    for (const oci::IdMap& m : from) to->push_back({m.container_id, m.host_id, m.size});
  };
  ids(config.uid_mappings, &boot->uid_mappings);
  ids(config.gid_mappings, &boot->gid_mappings);
  for (const auto& [name, value] : config.sysctl) boot->sysctls.push_back({name, value});
  const oci::Resources& r = config.resources;
  boot->memory_limit = static_cast<uint64_t>(std::max<int64_t>(r.memory_limit.value_or(0), 0));
  boot->pids_limit = std::max<int64_t>(r.pids_limit.value_or(0), 0);
  if (r.cpu_quota.value_or(0) > 0) {
    uint64_t period = r.cpu_period.value_or(0);
    boot->cpu_limit =
        static_cast<double>(*r.cpu_quota) / static_cast<double>(period == 0 ? 100'000 : period);
  }
}

}  // namespace

absl::StatusOr<std::string> ResolvePath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return ErrnoStatus(path);
  std::string out = resolved;
  free(resolved);
  return out;
}

sentry::ProcessSpec BuildProcessSpec(const oci::Process& p) {
  sentry::ProcessSpec out;
  out.args = p.args;
  out.env = p.env;
  out.cwd = p.cwd;
  out.uid = p.uid;
  out.gid = p.gid;
  out.additional_gids = p.additional_gids;
  out.umask = p.umask ? static_cast<int32_t>(*p.umask) : -1;
  out.caps = BuildCaps(p.capabilities);
  for (const oci::Rlimit& r : p.rlimits) out.rlimits.push_back({r.resource, r.soft, r.hard});
  out.no_new_privileges = p.no_new_privileges;
  out.oom_score_adj = p.oom_score_adj.value_or(0);
  out.terminal = p.terminal;
  out.console_rows = p.console_rows;
  out.console_cols = p.console_cols;
  return out;
}

absl::StatusOr<SandboxSetup> BuildSandboxSetup(const oci::Spec& spec, const std::string& id,
                                               const std::string& bundle,
                                               const SandboxFlags& flags) {
  SandboxSetup setup;
  auto rootfs = ResolvePath(From(bundle, spec.root.path));
  if (!rootfs.ok()) {
    return absl::NotFoundError("invalid rootfs: " + std::string(rootfs.status().message()));
  }
  struct stat st;
  if (stat(rootfs->c_str(), &st) != 0) return ErrnoStatus("stat " + *rootfs);
  if (!S_ISDIR(st.st_mode)) {
    return absl::InvalidArgumentError("invalid rootfs: " + *rootfs + " is not a directory");
  }
  setup.rootfs = *rootfs;
  // With an overlay nothing is ever written through the gofer. A read-only root is written once if
  // mount points are to be made, and read-only in the sentry then.
  setup.gofer_mounts.push_back(
      {*rootfs, flags.overlay || (spec.root.readonly && DestinationsExist(*rootfs, spec.mounts))});

  sentry::BootSpec& sandbox = setup.boot;
  sentry::ContainerSpec& boot = sandbox.container;
  boot.container_id = id;
  boot.hostname = Hostname(spec);
  boot.domainname = spec.domainname;
  boot.process = BuildProcessSpec(*spec.process);
  boot.root_readonly = spec.root.readonly;
  boot.root_propagation = oci::ParseMountOptions({spec.linux_.rootfs_propagation}).propagation;
  boot.overlay = flags.overlay;
  boot.root_shared = flags.file_access == "shared";
  for (const oci::Mount& mount : spec.mounts) {
    auto built = BuildMount(mount, bundle, &setup.gofer_mounts);
    if (!built.ok()) return built.status();
    boot.mounts.push_back(std::move(*built));
  }
  BuildLinux(spec.linux_, &boot);
  if (spec.linux_.seccomp) {
    auto filter = oci::CompileSeccomp(*spec.linux_.seccomp);
    if (!filter.ok()) return filter.status();
    boot.seccomp = std::move(*filter);
    boot.seccomp_log = spec.linux_.seccomp->log;
  }
  sandbox.platform = flags.platform;
  sandbox.network = flags.network;
  sandbox.strace = flags.strace;
  sandbox.strict = flags.strict;
  sandbox.allow_no_seccomp = flags.allow_no_seccomp;
  sandbox.debug = flags.debug;
  sandbox.spin_ns = flags.spin_ns;
  sandbox.lanes = flags.lanes;
  return setup;
}

absl::Status AddNetwork(const oci::Spec& spec, SandboxSetup* setup) {
  if (setup->boot.network != sentry::kHostNetwork) return absl::OkStatus();
  auto network = PrepareNetwork(spec);
  if (!network.ok()) return network.status();
  setup->network_namespace = std::move(network->ns);
  // They are set on the host; the sentry shows what came of it.
  sentry::ContainerSpec& container = setup->boot.container;
  std::erase_if(container.sysctls, [](const auto& s) { return s.name.rfind("net.", 0) == 0; });
  container.network_sysctls = std::move(network->sysctls);
  return absl::OkStatus();
}

}  // namespace runsc
