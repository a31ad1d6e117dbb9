// Control groups of a container: the v1 hierarchies, v2, or both side by side ("hybrid": the
// controllers of v1 and a v2 tree without them).
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runsc/cgroup/stats.h"
#include "runsc/oci/spec.h"

namespace runsc {

// Where the hierarchies are mounted and where this process is in them.
struct CgroupLayout {
  std::map<std::string, std::string> v1;      // controller -> mount point
  std::map<std::string, std::string> v1_own;  // controller -> own path in it, "/..."
  std::string v2;                             // mount point, or empty
  std::string v2_own;
  std::vector<std::string> v2_controllers;  // available at v2's root
};
// From the text of /proc/self/mountinfo, /proc/self/cgroup; v2_controllers stays empty.
CgroupLayout ParseCgroupLayout(std::string_view mountinfo, std::string_view own_cgroups);
absl::StatusOr<CgroupLayout> ReadCgroupLayout();

// The directory in one hierarchy: an absolute `path` counts from the mount point, a relative one
// from `own`. InvalidArgument if it holds "..".
absl::StatusOr<std::string> CgroupDir(const std::string& mount, const std::string& own,
                                      const std::string& path);
// linux.cgroupsPath as a path: with `systemd`, "slice:prefix:name" is the path that systemd would
// use ("/a.slice/a-b.slice/prefix-name.scope").
absl::StatusOr<std::string> CgroupPath(const std::string& cgroups_path, const std::string& id,
                                       bool systemd);

// The host's tasks of a container that may have `limit` tasks: each is a thread of the host, a
// second one while it executes a program, and the sentry and the gofer have threads of their own.
// What the container itself counts, the sentry counts.
inline constexpr int64_t kSandboxTasks = 192;
inline constexpr int64_t kMaxPidsLimit = int64_t{1} << 30;
constexpr int64_t HostTasks(int64_t limit) {
  return limit > kMaxPidsLimit ? limit : 2 * limit + kSandboxTasks;
}

// A value to write into a file of a controller.
struct CgroupWrite {
  std::string controller, file, value;
};
// What `resources` asks for, for v1 or v2, in the order of writing.
std::vector<CgroupWrite> CgroupWrites(const oci::Resources& resources, bool v2);

class Cgroups {
 public:
  // Finds out what the configuration asks for; nothing if it asks nothing. Makes nothing yet.
  static absl::StatusOr<Cgroups> Plan(const oci::Linux& config, const std::string& id,
                                      bool systemd);
  // The directories that Make will make, parents first. To be stored before, so that none is left
  // behind by a crash.
  std::vector<std::string> Missing() const;
  // The groups' own directories.
  std::vector<std::string> Dirs() const;
  // The groups by what is read from them.
  CgroupDirs StatsDirs() const;
  // Makes the groups and sets their limits.
  absl::Status Make();
  // Sets the limits of groups that are there.
  absl::Status Change() const;
  // Moves a process (with its future children) in.
  absl::Status Add(pid_t pid) const;
  // Removes directories, the last first. One that other containers use stays, without an error.
  static absl::Status Remove(const std::vector<std::string>& made);

 private:
  // One directory in one hierarchy; in v2 it serves all controllers.
  struct Group {
    std::string controller;  // v1; empty: v2
    std::string mount, dir;
    std::vector<CgroupWrite> writes;
    bool needed = false;  // false: passed over where it cannot be made
    bool made = false;
  };
  absl::Status PlanV1(const CgroupLayout& layout, const std::string& path,
                      const oci::Resources& resources);
  absl::Status PlanV2(const CgroupLayout& layout, const std::string& path,
                      const oci::Resources& resources);
  static absl::Status MakeGroup(Group* group, const std::vector<std::string>& v2_controllers);

  std::vector<Group> groups_;
  std::vector<std::string> v2_controllers_;
};

}  // namespace runsc
