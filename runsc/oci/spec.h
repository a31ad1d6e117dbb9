// The OCI runtime configuration (config.json) as checked values. Only what the runtime acts on is
// kept; names and defaults are those of the runtime specification.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runsc/oci/seccomp.h"

namespace runsc::oci {

struct Capabilities {  // bit n for capability n
  uint64_t bounding = 0, effective = 0, inheritable = 0, permitted = 0, ambient = 0;
};

struct Rlimit {
  int resource = 0;  // RLIMIT_ number
  uint64_t soft = 0, hard = 0;
};

struct Process {
  bool terminal = false;
  uint16_t console_rows = 0, console_cols = 0;
  uint32_t uid = 0, gid = 0;
  std::optional<uint32_t> umask;
  std::vector<uint32_t> additional_gids;
  std::vector<std::string> args;  // not empty
  std::vector<std::string> env;
  std::string cwd;  // absolute
  Capabilities capabilities;
  std::vector<Rlimit> rlimits;
  bool no_new_privileges = false;
  std::optional<int32_t> oom_score_adj;
};

struct Root {
  std::string path;
  bool readonly = false;
};

struct Mount {
  std::string destination;  // absolute
  std::string type;
  std::string source;
  std::vector<std::string> options;
};

struct Hook {
  std::string path;  // absolute
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::optional<int64_t> timeout;  // seconds
};

struct Hooks {
  std::vector<Hook> prestart, create_runtime, create_container, start_container, poststart,
      poststop;
};

struct Namespace {
  std::string type;  // "pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"
  std::string path;  // empty: a new one
};

struct IdMap {
  uint32_t container_id = 0, host_id = 0, size = 0;
};

struct Device {
  std::string path;  // absolute
  char type = 'c';
  uint32_t major = 0, minor = 0;
  uint32_t mode = 0666;
  uint32_t uid = 0, gid = 0;
};

// Limits for the container's cgroup. Absent: not touched.
struct Resources {
  std::optional<int64_t> memory_limit, memory_reservation, memory_swap;  // bytes, -1: none
  std::optional<uint64_t> cpu_shares, cpu_period;                        // period: microseconds
  std::optional<int64_t> cpu_quota;                                      // microseconds, -1: none
  std::string cpus, mems;                                                // lists, as "0-2,7"
  std::optional<int64_t> pids_limit;                                     // <= 0: none
  std::vector<std::pair<std::string, std::string>> unified;              // cgroup v2 files
  bool empty() const {
    return !memory_limit && !memory_reservation && !memory_swap && !cpu_shares && !cpu_period &&
           !cpu_quota && cpus.empty() && mems.empty() && !pids_limit && unified.empty();
  }
};

struct Linux {
  std::vector<Namespace> namespaces;
  std::vector<IdMap> uid_mappings, gid_mappings;
  std::string rootfs_propagation;  // "rshared", "slave", ...; empty: as it comes
  std::vector<std::pair<std::string, std::string>> sysctl;
  std::string cgroups_path;
  Resources resources;
  std::vector<Device> devices;
  std::vector<std::string> masked_paths, readonly_paths;
  std::optional<Seccomp> seccomp;
};

struct Spec {
  std::string version;
  std::optional<Process> process;
  Root root;
  std::string hostname, domainname;
  std::vector<Mount> mounts;
  Hooks hooks;
  std::map<std::string, std::string> annotations;
  Linux linux_;
  // Fields that were present, are valid, and have no effect here.
  std::vector<std::string> not_enforced;
};

}  // namespace runsc::oci
