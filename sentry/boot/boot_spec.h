// What the sentry is told: how to run the sandbox (BootSpec), and about each container that it
// shall run (ContainerSpec). Plain values, made by runsc from the OCI configuration after checking
// it; they cross to the sentry as JSON (boot_spec_json.h). Strings are bytes and hold no NUL.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace sentry {

// The five capability sets of a process, bit n for capability n.
struct CapSets {
  uint64_t bounding = 0;
  uint64_t effective = 0;
  uint64_t inheritable = 0;
  uint64_t permitted = 0;
  uint64_t ambient = 0;
};

// One resource limit. `resource` is an RLIMIT_ number; UINT64_MAX is RLIM_INFINITY.
struct RlimitSpec {
  int resource = 0;
  uint64_t soft = 0;
  uint64_t hard = 0;
};

// A process to start: the container's init, or one of `runsc exec`.
struct ProcessSpec {
  std::vector<std::string> args;  // not empty; args[0] is looked up in env's PATH if it has no '/'
  std::vector<std::string> env;   // NAME=value
  std::string cwd;                // absolute; created if it is missing (as runc does)
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> additional_gids;
  int32_t umask = -1;  // -1: 0022
  CapSets caps;
  std::vector<RlimitSpec> rlimits;  // each resource at most once; others keep the sentry's defaults
  bool no_new_privileges = false;
  int32_t oom_score_adj = 0;
  // The guest files 0, 1 and 2 are one terminal, which is the controlling terminal of the process.
  bool terminal = false;
  uint16_t console_rows = 0;  // 0: leave the terminal's size as it is
  uint16_t console_cols = 0;
};

// A mount, in the order in which it is to be made.
struct MountSpec {
  std::string destination;  // absolute path in the container; created if it is missing
  std::string type;         // "bind", "proc", "tmpfs", "sysfs", "devpts", "mqueue", "cgroup", ...
  std::string source;       // as written in the configuration; for /proc/PID/mounts
  // Index into the gofer's mounts (0 is the root file system) if it is a bind mount, else -1.
  int32_t gofer_mount = -1;
  bool source_is_directory = false;   // bind: what kind of mount point to create
  uint64_t flags = 0;                 // MS_RDONLY, MS_NOSUID, ... of mount(2)
  std::vector<uint64_t> propagation;  // MS_PRIVATE, MS_SLAVE, ... each perhaps with MS_REC
  std::vector<std::string> data;      // "size=65536k", "mode=1777", ...: for the file system
};

// A device node to make in /dev.
struct DeviceSpec {
  std::string path;  // absolute
  char type = 'c';   // 'c', 'b' or 'p'
  uint32_t major = 0;
  uint32_t minor = 0;
  uint32_t mode = 0666;
  uint32_t uid = 0;
  uint32_t gid = 0;
};

// One line of a uid or gid mapping of the container's user namespace.
struct IdMapping {
  uint32_t container_id = 0;
  uint32_t host_id = 0;
  uint32_t size = 0;
};

// BootSpec::network.
inline constexpr char kNoNetwork[] = "none", kHostNetwork[] = "host";

// By container id: whose namespace of each kind a container shares; empty: it has one of its own.
struct SharedNamespaces {
  std::string pid, uts, ipc, net, user;
};

// A container: the sandbox's first, or one that joins it later (of a pod).
struct ContainerSpec {
  std::string container_id;
  SharedNamespaces share;  // of one that joins: whose namespaces it has
  std::string hostname;    // empty: keep the sentry's default
  std::string domainname;
  ProcessSpec process;
  bool root_readonly = false;
  std::vector<uint64_t> root_propagation;  // as MountSpec::propagation; once all is mounted
  bool overlay = false;                    // writes to the root file system go to memory
  bool root_shared = false;  // others change the root file system while the container runs
  std::vector<MountSpec> mounts;
  std::vector<std::string> masked_paths;
  std::vector<std::string> readonly_paths;
  std::vector<DeviceSpec> devices;      // in addition to the default ones
  std::vector<IdMapping> uid_mappings;  // empty unless the configuration asks for a user namespace
  std::vector<IdMapping> gid_mappings;
  bool new_user_namespace = false;
  bool new_cgroup_namespace = false;
  struct Sysctl {
    std::string name, value;
  };
  std::vector<Sysctl> sysctls;
  // What holds in the host's network namespace, for the container's /proc/sys, if it has one.
  std::vector<Sysctl> network_sysctls;
  // The filter that every process of the container is under, an instruction (struct sock_filter) in
  // each word; empty: none.
  std::vector<uint64_t> seccomp;
  bool seccomp_log = false;   // SECCOMP_FILTER_FLAG_LOG
  uint64_t memory_limit = 0;  // bytes that the cgroup allows; 0: none. For /proc/meminfo
  double cpu_limit = 0;       // processors that the cgroup allows; 0: none
  int64_t pids_limit = 0;     // 0: none
};

// A sandbox with its first container.
struct BootSpec {
  ContainerSpec container;
  std::string platform = "auto";  // as for platform::Create
  // kNoNetwork: the sentry's own stack, with a loopback device alone. kHostNetwork: sockets of the
  // host's network namespace that the sentry's process is in.
  std::string network = kNoNetwork;
  bool strace = false;
  bool strict = false;
  // To start even where the host has no seccomp(2): the sentry has no filter then.
  bool allow_no_seccomp = false;
  bool debug = false;
  int64_t spin_ns = -1;  // platform::Options::spin_ns
  bool lanes = true;     // platform::Options::lanes
};

}  // namespace sentry
