#include "runsc/oci/default_spec.h"

#include <nlohmann/json.hpp>

namespace runsc::oci {
namespace {

using Json = nlohmann::ordered_json;

Json Mount(const char* destination, const char* type, const char* source, Json options) {
  Json mount = {{"destination", destination}, {"type", type}, {"source", source}};
  if (!options.empty()) mount["options"] = std::move(options);
  return mount;
}

Json Process() {
  const Json caps = {"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"};
  Json limit = {{"type", "RLIMIT_NOFILE"}, {"hard", 1024}, {"soft", 1024}};
  Json process;
  process["terminal"] = true;
  process["user"] = {{"uid", 0}, {"gid", 0}};
  process["args"] = Json::array({"sh"});
  process["env"] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "TERM=xterm"};
  process["cwd"] = "/";
  process["capabilities"] = {
      {"bounding", caps}, {"effective", caps}, {"permitted", caps}, {"ambient", caps}};
  process["rlimits"] = Json::array({limit});
  process["noNewPrivileges"] = true;
  return process;
}

Json Mounts(bool rootless) {
  Json pts_options = {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"};
  if (!rootless) pts_options.push_back("gid=5");
  Json mounts = Json::array();
  mounts.push_back(Mount("/proc", "proc", "proc", Json::array()));
  mounts.push_back(
      Mount("/dev", "tmpfs", "tmpfs", {"nosuid", "strictatime", "mode=755", "size=65536k"}));
  mounts.push_back(Mount("/dev/pts", "devpts", "devpts", pts_options));
  mounts.push_back(
      Mount("/dev/shm", "tmpfs", "shm", {"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}));
  mounts.push_back(Mount("/dev/mqueue", "mqueue", "mqueue", {"nosuid", "noexec", "nodev"}));
  if (rootless) {
    mounts.push_back(Mount("/sys", "none", "/sys", {"rbind", "nosuid", "noexec", "nodev", "ro"}));
  } else {
    mounts.push_back(Mount("/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", "ro"}));
    mounts.push_back(Mount("/sys/fs/cgroup", "cgroup", "cgroup",
                           {"nosuid", "noexec", "nodev", "relatime", "ro"}));
  }
  return mounts;
}

Json LinuxPart(bool rootless, uid_t uid, gid_t gid) {
  Json part = Json::object();
  Json namespaces = Json::array();
  if (rootless) {
    auto map = [](unsigned id) {
      return Json::array({{{"containerID", 0}, {"hostID", id}, {"size", 1}}});
    };
    part["uidMappings"] = map(uid);
    part["gidMappings"] = map(gid);
  } else {
    part["resources"] = {{"devices", Json::array({{{"allow", false}, {"access", "rwm"}}})}};
  }
  for (const char* type : {"pid", "network", "ipc", "uts", "mount", "user"}) {
    bool wanted = std::string(type) == "network" ? !rootless
                  : std::string(type) == "user"  ? rootless
                                                 : true;
    if (wanted) namespaces.push_back({{"type", type}});
  }
  part["namespaces"] = namespaces;
  part["maskedPaths"] = {"/proc/acpi",        "/proc/asound",        "/proc/kcore",
                         "/proc/keys",        "/proc/latency_stats", "/proc/timer_list",
                         "/proc/timer_stats", "/proc/sched_debug",   "/sys/firmware",
                         "/proc/scsi"};
  part["readonlyPaths"] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                           "/proc/sysrq-trigger"};
  return part;
}

}  // namespace

std::string DefaultSpec(bool rootless, uid_t uid, gid_t gid) {
  Json spec;
  spec["ociVersion"] = "1.0.2-dev";
  spec["process"] = Process();
  spec["root"] = {{"path", "rootfs"}, {"readonly", true}};
  spec["hostname"] = "runsc";
  spec["mounts"] = Mounts(rootless);
  spec["linux"] = LinuxPart(rootless, uid, gid);
  return spec.dump(1, '\t') + "\n";
}

}  // namespace runsc::oci
