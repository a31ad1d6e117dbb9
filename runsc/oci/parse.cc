#include "runsc/oci/parse.h"

#include <linux/capability.h>
#include <strings.h>
#include <sys/resource.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "runsc/oci/json_reader.h"
#include "runsc/oci/mount_options.h"

namespace runsc::oci {

using Json = nlohmann::json;

namespace {

constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();
constexpr uint64_t kUint64Max = std::numeric_limits<uint64_t>::max();
constexpr uint32_t kUint32Max = std::numeric_limits<uint32_t>::max();

constexpr const char* kCapabilities[kCapabilityCount] = {"CAP_CHOWN",
                                                         "CAP_DAC_OVERRIDE",
                                                         "CAP_DAC_READ_SEARCH",
                                                         "CAP_FOWNER",
                                                         "CAP_FSETID",
                                                         "CAP_KILL",
                                                         "CAP_SETGID",
                                                         "CAP_SETUID",
                                                         "CAP_SETPCAP",
                                                         "CAP_LINUX_IMMUTABLE",
                                                         "CAP_NET_BIND_SERVICE",
                                                         "CAP_NET_BROADCAST",
                                                         "CAP_NET_ADMIN",
                                                         "CAP_NET_RAW",
                                                         "CAP_IPC_LOCK",
                                                         "CAP_IPC_OWNER",
                                                         "CAP_SYS_MODULE",
                                                         "CAP_SYS_RAWIO",
                                                         "CAP_SYS_CHROOT",
                                                         "CAP_SYS_PTRACE",
                                                         "CAP_SYS_PACCT",
                                                         "CAP_SYS_ADMIN",
                                                         "CAP_SYS_BOOT",
                                                         "CAP_SYS_NICE",
                                                         "CAP_SYS_RESOURCE",
                                                         "CAP_SYS_TIME",
                                                         "CAP_SYS_TTY_CONFIG",
                                                         "CAP_MKNOD",
                                                         "CAP_LEASE",
                                                         "CAP_AUDIT_WRITE",
                                                         "CAP_AUDIT_CONTROL",
                                                         "CAP_SETFCAP",
                                                         "CAP_MAC_OVERRIDE",
                                                         "CAP_MAC_ADMIN",
                                                         "CAP_SYSLOG",
                                                         "CAP_WAKE_ALARM",
                                                         "CAP_BLOCK_SUSPEND",
                                                         "CAP_AUDIT_READ",
                                                         "CAP_PERFMON",
                                                         "CAP_BPF",
                                                         "CAP_CHECKPOINT_RESTORE"};
static_assert(CAP_CHECKPOINT_RESTORE == kCapabilityCount - 1);

struct RlimitName {
  const char* name;
  int resource;
};
constexpr RlimitName kRlimits[] = {
    {"RLIMIT_AS", RLIMIT_AS},
    {"RLIMIT_CORE", RLIMIT_CORE},
    {"RLIMIT_CPU", RLIMIT_CPU},
    {"RLIMIT_DATA", RLIMIT_DATA},
    {"RLIMIT_FSIZE", RLIMIT_FSIZE},
    {"RLIMIT_LOCKS", RLIMIT_LOCKS},
    {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK},
    {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE},
    {"RLIMIT_NICE", RLIMIT_NICE},
    {"RLIMIT_NOFILE", RLIMIT_NOFILE},
    {"RLIMIT_NPROC", RLIMIT_NPROC},
    {"RLIMIT_RSS", RLIMIT_RSS},
    {"RLIMIT_RTPRIO", RLIMIT_RTPRIO},
    {"RLIMIT_RTTIME", RLIMIT_RTTIME},
    {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING},
    {"RLIMIT_STACK", RLIMIT_STACK},
};

uint64_t ReadCapabilitySet(const Node& node) {
  uint64_t set = 0;
  for (const Node& item : node.Items()) {
    std::string name = item.String();
    int number = CapabilityNumber(name);
    if (number < 0) {
      item.Fail("unknown capability \"" + name + "\"");
      continue;
    }
    set |= uint64_t{1} << number;
  }
  return set;
}

Capabilities ReadCapabilities(const Node& node) {
  Capabilities caps;
  caps.bounding = ReadCapabilitySet(node["bounding"]);
  caps.effective = ReadCapabilitySet(node["effective"]);
  caps.inheritable = ReadCapabilitySet(node["inheritable"]);
  caps.permitted = ReadCapabilitySet(node["permitted"]);
  caps.ambient = ReadCapabilitySet(node["ambient"]);
  return caps;
}

std::vector<Rlimit> ReadRlimits(const Node& node) {
  std::vector<Rlimit> limits;
  for (const Node& item : node.Items()) {
    Rlimit limit;
    limit.resource = -1;
    std::string type = item["type"].RequiredString();
    for (const RlimitName& known : kRlimits) {
      if (type == known.name) limit.resource = known.resource;
    }
    if (limit.resource < 0) item["type"].Fail("unknown resource limit \"" + type + "\"");
    limit.soft = item["soft"].Unsigned(kUint64Max).value_or(0);
    limit.hard = item["hard"].Unsigned(kUint64Max).value_or(0);
    if (limit.soft > limit.hard) item.Fail("the soft limit is above the hard limit");
    for (const Rlimit& other : limits) {
      if (other.resource == limit.resource) item["type"].Fail("\"" + type + "\" occurs twice");
    }
    limits.push_back(limit);
  }
  return limits;
}

void NotEnforced(const Node& node, std::vector<std::string>* list) {
  if (node.present()) list->push_back(node.path());
}

Process ReadProcess(const Node& node, std::vector<std::string>* not_enforced) {
  Process p;
  p.terminal = node["terminal"].Bool();
  Node size = node["consoleSize"];
  p.console_rows = static_cast<uint16_t>(size["height"].Unsigned(UINT16_MAX).value_or(0));
  p.console_cols = static_cast<uint16_t>(size["width"].Unsigned(UINT16_MAX).value_or(0));
  Node user = node["user"];
  p.uid = user["uid"].Uint32();
  p.gid = user["gid"].Uint32();
  if (auto umask = user["umask"].Unsigned(0777)) p.umask = static_cast<uint32_t>(*umask);
  for (const Node& gid : user["additionalGids"].Items()) p.additional_gids.push_back(gid.Uint32());
  Node args = node["args"];
  p.args = args.Strings();
  if (!args.present()) args.Fail("is missing");
  if (p.args.empty()) args.Fail("must not be empty");
  if (!p.args.empty() && p.args[0].empty()) args.Fail("must not begin with an empty string");
  Node env = node["env"];
  p.env = env.Strings();
  p.cwd = node["cwd"].AbsolutePath();
  p.capabilities = ReadCapabilities(node["capabilities"]);
  p.rlimits = ReadRlimits(node["rlimits"]);
  p.no_new_privileges = node["noNewPrivileges"].Bool();
  if (auto adj = node["oomScoreAdj"].Int(-1000, 1000)) {
    p.oom_score_adj = static_cast<int32_t>(*adj);
  }
  if (!node["apparmorProfile"].String().empty()) NotEnforced(node["apparmorProfile"], not_enforced);
  if (!node["selinuxLabel"].String().empty()) NotEnforced(node["selinuxLabel"], not_enforced);
  for (const char* name : {"scheduler", "ioPriority", "execCPUAffinity"}) {
    NotEnforced(node[name], not_enforced);
  }
  return p;
}

std::vector<Mount> ReadMounts(const Node& node) {
  std::vector<Mount> mounts;
  for (const Node& item : node.Items()) {
    Mount m;
    m.destination = item["destination"].RequiredString();
    // As runc: a relative destination counts from the root.
    if (!m.destination.empty() && m.destination[0] != '/') m.destination = "/" + m.destination;
    m.type = item["type"].String();
    m.source = item["source"].String();
    m.options = item["options"].Strings();
    mounts.push_back(std::move(m));
  }
  return mounts;
}

std::vector<Hook> ReadHookList(const Node& node) {
  std::vector<Hook> hooks;
  for (const Node& item : node.Items()) {
    Hook h;
    h.path = item["path"].AbsolutePath();
    h.args = item["args"].Strings();
    h.env = item["env"].Strings();
    h.timeout = item["timeout"].Int(1, kInt64Max / 1'000'000'000);
    hooks.push_back(std::move(h));
  }
  return hooks;
}

Hooks ReadHooks(const Node& node) {
  Hooks hooks;
  hooks.prestart = ReadHookList(node["prestart"]);
  hooks.create_runtime = ReadHookList(node["createRuntime"]);
  hooks.create_container = ReadHookList(node["createContainer"]);
  hooks.start_container = ReadHookList(node["startContainer"]);
  hooks.poststart = ReadHookList(node["poststart"]);
  hooks.poststop = ReadHookList(node["poststop"]);
  return hooks;
}

std::vector<IdMap> ReadIdMaps(const Node& node) {
  std::vector<IdMap> maps;
  for (const Node& item : node.Items()) {
    IdMap m;
    m.container_id = item["containerID"].Uint32();
    m.host_id = item["hostID"].Uint32();
    m.size = item["size"].Uint32();
    if (m.size == 0) item["size"].Fail("must not be 0");
    if (m.size > kUint32Max - m.container_id || m.size > kUint32Max - m.host_id) {
      item.Fail("the range of ids overflows");
    }
    maps.push_back(m);
  }
  return maps;
}

std::vector<Namespace> ReadNamespaces(const Node& node, std::vector<std::string>* not_enforced) {
  constexpr const char* kTypes[] = {"pid", "network", "mount",  "ipc",
                                    "uts", "user",    "cgroup", "time"};
  std::vector<Namespace> namespaces;
  for (const Node& item : node.Items()) {
    Namespace ns;
    ns.type = item["type"].RequiredString();
    bool known = false;
    for (const char* type : kTypes) known |= ns.type == type;
    if (!known) item["type"].Fail("unknown namespace \"" + ns.type + "\"");
    for (const Namespace& other : namespaces) {
      if (other.type == ns.type) item["type"].Fail("namespace \"" + ns.type + "\" occurs twice");
    }
    ns.path = item["path"].String();
    if (!ns.path.empty() && ns.path[0] != '/') item["path"].Fail("must be an absolute path");
    // The sandbox has namespaces of its own; none of the host's is joined. (The network
    // namespace is used by --network.)
    if (!ns.path.empty() && ns.type != "network") not_enforced->push_back(item["path"].path());
    if (ns.type == "time") not_enforced->push_back(item.path());
    namespaces.push_back(std::move(ns));
  }
  return namespaces;
}

std::vector<Device> ReadDevices(const Node& node) {
  std::vector<Device> devices;
  for (const Node& item : node.Items()) {
    Device d;
    d.path = item["path"].AbsolutePath();
    std::string type = item["type"].RequiredString();
    if (type != "c" && type != "b" && type != "u" && type != "p") {
      item["type"].Fail("unknown device type \"" + type + "\"");
      continue;
    }
    d.type = type == "u" ? 'c' : type[0];
    d.major = static_cast<uint32_t>(item["major"].Int(0, kUint32Max).value_or(0));
    d.minor = static_cast<uint32_t>(item["minor"].Int(0, kUint32Max).value_or(0));
    d.mode = static_cast<uint32_t>(item["fileMode"].Unsigned(kUint32Max).value_or(0666)) & 07777;
    d.uid = item["uid"].Uint32();
    d.gid = item["gid"].Uint32();
    devices.push_back(std::move(d));
  }
  return devices;
}

Resources ReadResources(const Node& node, std::vector<std::string>* not_enforced) {
  Resources r;
  Node memory = node["memory"];
  r.memory_limit = memory["limit"].Int(-1, kInt64Max);
  r.memory_reservation = memory["reservation"].Int(-1, kInt64Max);
  r.memory_swap = memory["swap"].Int(-1, kInt64Max);
  for (const char* name : {"kernel", "kernelTCP", "swappiness", "disableOOMKiller"}) {
    NotEnforced(memory[name], not_enforced);
  }
  Node cpu = node["cpu"];
  r.cpu_shares = cpu["shares"].Unsigned(kInt64Max);
  r.cpu_quota = cpu["quota"].Int(-1, kInt64Max);
  r.cpu_period = cpu["period"].Unsigned(kInt64Max);
  r.cpus = cpu["cpus"].String();
  r.mems = cpu["mems"].String();
  for (const char* name : {"realtimeRuntime", "realtimePeriod", "idle", "burst"}) {
    NotEnforced(cpu[name], not_enforced);
  }
  Node pids = node["pids"];
  r.pids_limit = pids["limit"].Int(std::numeric_limits<int64_t>::min(), kInt64Max);
  node["unified"].ForEachMember([&](const std::string& key, const Node& value) {
    if (key.find('/') != std::string::npos || key.find('\0') != std::string::npos || key.empty()) {
      value.Fail("is not the name of a cgroup file");
    }
    r.unified.emplace_back(key, value.String());
  });
  // There are no devices of the host to refuse; a rule that allows one is what has no effect.
  Node devices = node["devices"];
  for (const Node& rule : devices.Items()) {
    if (rule["allow"].Bool()) {
      NotEnforced(devices, not_enforced);
      break;
    }
  }
  if (!node["hugepageLimits"].Items().empty()) NotEnforced(node["hugepageLimits"], not_enforced);
  for (const char* name : {"blockIO", "network", "rdma"}) NotEnforced(node[name], not_enforced);
  return r;
}

Linux ReadLinux(const Node& node, std::vector<std::string>* not_enforced) {
  Linux l;
  l.namespaces = ReadNamespaces(node["namespaces"], not_enforced);
  l.uid_mappings = ReadIdMaps(node["uidMappings"]);
  l.gid_mappings = ReadIdMaps(node["gidMappings"]);
  node["sysctl"].ForEachMember([&](const std::string& key, const Node& value) {
    l.sysctl.emplace_back(key, value.String());
  });
  l.cgroups_path = node["cgroupsPath"].String();
  l.resources = ReadResources(node["resources"], not_enforced);
  l.devices = ReadDevices(node["devices"]);
  for (const Node& path : node["maskedPaths"].Items()) {
    l.masked_paths.push_back(path.AbsolutePath());
  }
  for (const Node& path : node["readonlyPaths"].Items()) {
    l.readonly_paths.push_back(path.AbsolutePath());
  }
  if (node["seccomp"].present()) l.seccomp = ReadSeccomp(node["seccomp"]);
  for (const char* name : {"intelRdt", "personality", "timeOffsets"}) {
    NotEnforced(node[name], not_enforced);
  }
  if (!node["mountLabel"].String().empty()) NotEnforced(node["mountLabel"], not_enforced);
  l.rootfs_propagation = node["rootfsPropagation"].String();
  if (!l.rootfs_propagation.empty() &&
      ParseMountOptions({l.rootfs_propagation}).propagation.empty()) {
    node["rootfsPropagation"].Fail("\"" + l.rootfs_propagation + "\" is not a propagation");
  }
  return l;
}

// "MAJOR.MINOR.PATCH", perhaps with "-pre" or "+build" behind it; major 1 is what we know.
void CheckVersion(const Node& node, const std::string& version) {
  unsigned major = 0, minor = 0, patch = 0;
  int used = 0;
  if (sscanf(version.c_str(), "%u.%u.%u%n", &major, &minor, &patch, &used) != 3 ||
      (version[used] != '\0' && version[used] != '-' && version[used] != '+')) {
    node.Fail("\"" + version + "\" is not a version");
  } else if (major != 1) {
    node.Fail("unknown version \"" + version + "\", known are 1.0.0 and later 1.x");
  }
}

Spec ReadSpec(const Node& node) {
  Spec spec;
  spec.version = node["ociVersion"].RequiredString();
  CheckVersion(node["ociVersion"], spec.version);
  Node process = node["process"];
  if (process.present()) {
    spec.process = ReadProcess(process, &spec.not_enforced);
  } else {
    process.Fail("is missing");
  }
  Node root = node["root"];
  if (!root.present()) root.Fail("is missing");
  spec.root.path = root["path"].RequiredString();
  spec.root.readonly = root["readonly"].Bool();
  spec.hostname = node["hostname"].String();
  if (spec.hostname.size() > 64) node["hostname"].Fail("is longer than 64 bytes");
  spec.domainname = node["domainname"].String();
  if (spec.domainname.size() > 64) node["domainname"].Fail("is longer than 64 bytes");
  spec.mounts = ReadMounts(node["mounts"]);
  spec.hooks = ReadHooks(node["hooks"]);
  node["annotations"].ForEachMember([&](const std::string& key, const Node& value) {
    if (key.empty()) value.Fail("an annotation's name must not be empty");
    spec.annotations[key] = value.String();
  });
  spec.linux_ = ReadLinux(node["linux"], &spec.not_enforced);
  for (const char* name : {"solaris", "windows", "vm", "zos", "freebsd"}) {
    NotEnforced(node[name], &spec.not_enforced);
  }
  return spec;
}

template <typename Read>
auto Parse(std::string_view text, Read read)
    -> absl::StatusOr<decltype(read(std::declval<const Node&>()))> {
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError("the document is larger than 16 MiB");
  }
  Json document;
  if (auto error = ParseJson(text, &document)) return absl::InvalidArgumentError(*error);
  std::string error;
  Node node(&document, "", &error);
  if (!document.is_object()) node.Fail("must be an object");
  auto result = read(node);
  // What it quotes from the document may hold line feeds.
  for (char& c : error) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  if (!error.empty()) return absl::InvalidArgumentError(error);
  return result;
}

}  // namespace

absl::StatusOr<Spec> ParseSpec(std::string_view text) { return Parse(text, ReadSpec); }

absl::StatusOr<Process> ParseProcess(std::string_view text) {
  return Parse(text, [](const Node& node) {
    std::vector<std::string> not_enforced;
    return ReadProcess(node, &not_enforced);
  });
}

absl::StatusOr<Resources> ParseResources(std::string_view text) {
  return Parse(text, [](const Node& node) {
    std::vector<std::string> not_enforced;
    return ReadResources(node, &not_enforced);
  });
}

int CapabilityNumber(std::string_view name) {
  std::string full(name);
  if (strncasecmp(full.c_str(), "CAP_", 4) != 0) full = "CAP_" + full;
  for (int i = 0; i < kCapabilityCount; ++i) {
    if (strcasecmp(full.c_str(), kCapabilities[i]) == 0) return i;
  }
  return -1;
}

std::string CapabilityName(int number) {
  return number >= 0 && number < kCapabilityCount ? kCapabilities[number] : "";
}

}  // namespace runsc::oci
