#include "runsc/cgroup/cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "runsc/container/state.h"
#include "sentry/base/host_fd.h"

namespace runsc {
namespace {

constexpr const char* kV1Controllers[] = {"memory", "cpu", "cpuacct", "cpuset", "pids", "blkio"};
constexpr int kRemoveTries = 100;
constexpr long kRemovePauseNs = 20'000'000;

std::vector<std::string> Split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  size_t at = 0;
  for (;;) {
    size_t end = text.find(separator, at);
    parts.emplace_back(text.substr(at, end - at));
    if (end == std::string_view::npos) return parts;
    at = end + 1;
  }
}

bool Contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

absl::Status WriteCgroupFile(const std::string& path, const std::string& value) {
  base::UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) {
      return absl::UnavailableError("cgroup: this kernel has no " + path);
    }
    return ErrnoStatus("cgroup: open " + path);
  }
  if (write(fd.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
    return ErrnoStatus("cgroup: write \"" + value + "\" to " + path);
  }
  return absl::OkStatus();
}

// mkdir -p below `mount`.
absl::Status MakeDirs(const std::string& mount, const std::string& dir) {
  size_t at = mount.size();
  while (at != std::string::npos) {
    at = dir.find('/', at + 1);
    std::string path = dir.substr(0, at);
    if (mkdir(path.c_str(), 0755) == 0) continue;
    if (errno == ENOENT && at != std::string::npos) {
      at = mount.size();  // another container's end took a parent away: from the top
    } else if (errno != EEXIST) {
      return ErrnoStatus("cgroup: mkdir " + path);
    }
  }
  return absl::OkStatus();
}

// A new cpuset has no processors and no memory, and takes no process before it has.
absl::Status InheritCpuset(const std::string& mount, const std::string& dir) {
  for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
    size_t at = mount.size();
    std::string value;
    while (at != std::string::npos) {
      std::string parent = dir.substr(0, at);
      at = dir.find('/', at + 1);
      auto inherited = ReadFile(parent + file, 4096);
      if (!inherited.ok()) return absl::Status(inherited.status());
      std::string path = dir.substr(0, at) + file;
      auto own = ReadFile(path, 4096);
      if (!own.ok()) return own.status();
      if (own->find_first_not_of(" \n") == std::string::npos) {
        if (auto s = WriteCgroupFile(path, *inherited); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

// The parents of `dir` must pass the controllers on.
void EnableControllers(const std::string& mount, const std::string& dir,
                       const std::vector<std::string>& controllers) {
  size_t at = mount.size();
  while (at != std::string::npos) {
    std::string parent = dir.substr(0, at);
    for (const std::string& c : controllers) {
      // What fails here shows when a limit is written.
      (void)WriteCgroupFile(parent + "/cgroup.subtree_control", "+" + c);
    }
    at = dir.find('/', at + 1);
  }
}

}  // namespace

CgroupLayout ParseCgroupLayout(std::string_view mountinfo, std::string_view own_cgroups) {
  CgroupLayout layout;
  // 36 35 98:0 /root /mount/point options [tags] - type source superoptions
  for (const std::string& line : Split(mountinfo, '\n')) {
    std::vector<std::string> f = Split(line, ' ');
    auto dash = std::find(f.begin(), f.end(), "-");
    if (f.size() < 7 || f.end() - dash < 4) continue;
    const std::string& mount = f[4];
    const std::string& type = dash[1];
    if (type == "cgroup2" && layout.v2.empty()) layout.v2 = mount;
    if (type != "cgroup") continue;
    for (const std::string& option : Split(dash[3], ',')) layout.v1.emplace(option, mount);
  }
  // 4:memory:/path
  for (const std::string& line : Split(own_cgroups, '\n')) {
    size_t first = line.find(':');
    size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (controllers.empty()) layout.v2_own = path;
    for (const std::string& c : Split(controllers, ',')) layout.v1_own.emplace(c, path);
  }
  return layout;
}

absl::StatusOr<CgroupLayout> ReadCgroupLayout() {
  auto mounts = ReadFile("/proc/self/mountinfo", 64 << 20);
  if (!mounts.ok()) return mounts.status();
  auto own = ReadFile("/proc/self/cgroup", 1 << 20);
  if (!own.ok()) return own.status();
  CgroupLayout layout = ParseCgroupLayout(*mounts, *own);
  if (!layout.v2.empty()) {
    if (auto text = ReadFile(layout.v2 + "/cgroup.controllers", 4096); text.ok()) {
      std::istringstream words(*text);
      for (std::string word; words >> word;) layout.v2_controllers.push_back(word);
    }
  }
  return layout;
}

absl::StatusOr<std::string> CgroupDir(const std::string& mount, const std::string& own,
                                      const std::string& path) {
  std::string whole = path.empty() || path[0] != '/' ? own + "/" + path : path;
  std::string dir = mount;
  for (const std::string& part : Split(whole, '/')) {
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      return absl::InvalidArgumentError("linux.cgroupsPath: must not contain \"..\"");
    }
    dir += "/" + part;
  }
  return dir;
}

absl::StatusOr<std::string> CgroupPath(const std::string& cgroups_path, const std::string& id,
                                       bool systemd) {
  if (cgroups_path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("linux.cgroupsPath: must not contain a NUL");
  }
  if (!systemd) return cgroups_path.empty() ? id : cgroups_path;
  if (cgroups_path.empty()) return "/system.slice/runsc-" + id + ".scope";
  std::vector<std::string> parts = Split(cgroups_path, ':');
  if (parts.size() != 3) {
    return absl::InvalidArgumentError(
        "linux.cgroupsPath: expected \"slice:prefix:name\" for "
        "systemd cgroups, is \"" +
        cgroups_path + "\"");
  }
  std::string slice = parts[0].empty() ? "system.slice" : parts[0];
  if (slice.size() < 7 || slice.substr(slice.size() - 6) != ".slice" ||
      slice.find('/') != std::string::npos || parts[2].empty()) {
    return absl::InvalidArgumentError("linux.cgroupsPath: invalid slice \"" + slice + "\"");
  }
  // "a-b.slice" lies in "a.slice"; "-.slice" is the root.
  std::string stem = slice.substr(0, slice.size() - 6);
  std::string path, prefix;
  if (stem != "-") {
    for (const std::string& part : Split(stem, '-')) {
      if (part.empty()) {
        return absl::InvalidArgumentError("linux.cgroupsPath: invalid slice \"" + slice + "\"");
      }
      prefix += part;
      path += "/" + prefix + ".slice";
      prefix += "-";
    }
  }
  std::string unit = parts[2];
  if (unit.size() > 6 && unit.substr(unit.size() - 6) == ".slice") return path + "/" + unit;
  return path + "/" + (parts[1].empty() ? "" : parts[1] + "-") + unit + ".scope";
}

std::vector<CgroupWrite> CgroupWrites(const oci::Resources& r, bool v2) {
  std::vector<CgroupWrite> w;
  auto amount = [&](int64_t n) { return n < 0 ? (v2 ? "max" : "-1") : std::to_string(n); };
  if (r.memory_limit) {
    w.push_back({"memory", v2 ? "memory.max" : "memory.limit_in_bytes", amount(*r.memory_limit)});
  }
  if (r.memory_reservation) {
    w.push_back({"memory", v2 ? "memory.low" : "memory.soft_limit_in_bytes",
                 amount(*r.memory_reservation)});
  }
  if (r.memory_swap) {
    if (!v2) {
      w.push_back({"memory", "memory.memsw.limit_in_bytes", amount(*r.memory_swap)});
    } else if (*r.memory_swap < 0) {
      w.push_back({"memory", "memory.swap.max", "max"});
    } else {
      // The specification counts memory and swap together.
      int64_t memory = std::max<int64_t>(r.memory_limit.value_or(0), 0);
      w.push_back({"memory", "memory.swap.max",
                   std::to_string(std::max<int64_t>(*r.memory_swap - memory, 0))});
    }
  }
  if (r.cpu_shares && *r.cpu_shares != 0) {
    if (v2) {
      // [2, 262144] to [1, 10000].
      uint64_t shares = std::clamp<uint64_t>(*r.cpu_shares, 2, 262144);
      w.push_back({"cpu", "cpu.weight", std::to_string(1 + (shares - 2) * 9999 / 262142)});
    } else {
      w.push_back({"cpu", "cpu.shares", std::to_string(*r.cpu_shares)});
    }
  }
  if (v2 && (r.cpu_quota || r.cpu_period)) {
    std::string quota = r.cpu_quota && *r.cpu_quota > 0 ? std::to_string(*r.cpu_quota) : "max";
    w.push_back({"cpu", "cpu.max", quota + " " + std::to_string(r.cpu_period.value_or(100'000))});
  } else {
    if (r.cpu_period && *r.cpu_period != 0) {
      w.push_back({"cpu", "cpu.cfs_period_us", std::to_string(*r.cpu_period)});
    }
    if (r.cpu_quota && *r.cpu_quota != 0) {
      w.push_back({"cpu", "cpu.cfs_quota_us", std::to_string(*r.cpu_quota)});
    }
  }
  if (!r.cpus.empty()) w.push_back({"cpuset", "cpuset.cpus", r.cpus});
  if (!r.mems.empty()) w.push_back({"cpuset", "cpuset.mems", r.mems});
  if (r.pids_limit && *r.pids_limit != 0) {
    w.push_back(
        {"pids", "pids.max", *r.pids_limit > 0 ? std::to_string(HostTasks(*r.pids_limit)) : "max"});
  }
  if (v2) {
    for (const auto& [file, value] : r.unified) {
      w.push_back({file.substr(0, file.find('.')), file, value});
    }
  }
  return w;
}

absl::Status Cgroups::PlanV1(const CgroupLayout& layout, const std::string& path,
                             const oci::Resources& resources) {
  std::vector<CgroupWrite> writes = CgroupWrites(resources, /*v2=*/false);
  for (const std::string controller : kV1Controllers) {
    Group group;
    group.controller = controller;
    for (const CgroupWrite& w : writes) {
      if (w.controller == controller) group.writes.push_back(w);
    }
    group.needed = !group.writes.empty();
    auto mount = layout.v1.find(controller);
    if (mount == layout.v1.end()) {
      // In the hybrid layout each controller is in one of the two.
      if (!group.needed || Contains(layout.v2_controllers, controller)) continue;
      return absl::UnavailableError("cgroup: the controller \"" + controller +
                                    "\" is not available on this machine");
    }
    // A cpuset that is not asked for is better inherited.
    if (controller == "cpuset" && !group.needed) continue;
    auto own = layout.v1_own.find(controller);
    group.mount = mount->second;
    auto dir = CgroupDir(group.mount, own == layout.v1_own.end() ? "/" : own->second, path);
    if (!dir.ok()) return dir.status();
    group.dir = *dir;
    groups_.push_back(std::move(group));
  }
  return absl::OkStatus();
}

absl::Status Cgroups::PlanV2(const CgroupLayout& layout, const std::string& path,
                             const oci::Resources& resources) {
  if (layout.v2.empty() || (layout.v2_controllers.empty() && resources.unified.empty())) {
    return absl::OkStatus();
  }
  Group group;
  for (CgroupWrite& w : CgroupWrites(resources, /*v2=*/true)) {
    if (layout.v1.count(w.controller) == 0) group.writes.push_back(std::move(w));
  }
  group.needed = !group.writes.empty();
  group.mount = layout.v2;
  auto dir = CgroupDir(layout.v2, layout.v2_own, path);
  if (!dir.ok()) return dir.status();
  group.dir = *dir;
  groups_.push_back(std::move(group));
  for (const char* c : {"memory", "cpu", "cpuset", "pids"}) {
    if (Contains(layout.v2_controllers, c)) v2_controllers_.push_back(c);
  }
  return absl::OkStatus();
}

absl::StatusOr<Cgroups> Cgroups::Plan(const oci::Linux& config, const std::string& id,
                                      bool systemd) {
  Cgroups cgroups;
  if (config.cgroups_path.empty() && config.resources.empty()) return cgroups;
  auto path = CgroupPath(config.cgroups_path, id, systemd);
  if (!path.ok()) return path.status();
  auto layout = ReadCgroupLayout();
  if (!layout.ok()) return layout.status();
  if (layout->v2.empty() || !layout->v1.empty()) {
    if (auto s = cgroups.PlanV1(*layout, *path, config.resources); !s.ok()) return s;
  }
  if (auto s = cgroups.PlanV2(*layout, *path, config.resources); !s.ok()) return s;
  return cgroups;
}

std::vector<std::string> Cgroups::Missing() const {
  std::vector<std::string> missing;
  for (const Group& group : groups_) {
    size_t at = group.mount.size();
    while (at != std::string::npos) {
      at = group.dir.find('/', at + 1);
      std::string path = group.dir.substr(0, at);
      if (access(path.c_str(), F_OK) != 0 && !Contains(missing, path)) missing.push_back(path);
    }
  }
  return missing;
}

std::vector<std::string> Cgroups::Dirs() const {
  std::vector<std::string> dirs;
  for (const Group& group : groups_) {
    if (!Contains(dirs, group.dir)) dirs.push_back(group.dir);
  }
  return dirs;
}

CgroupDirs Cgroups::StatsDirs() const {
  CgroupDirs dirs;
  auto of = [this](const char* controller) -> std::string {
    for (const Group& group : groups_) {
      const bool here = group.controller.empty() ? Contains(v2_controllers_, controller)
                                                 : group.controller == controller;
      if (here) return group.dir;
    }
    return "";
  };
  dirs.memory = of("memory");
  dirs.cpu = of("cpu");
  dirs.cpuacct = of("cpuacct");
  dirs.pids = of("pids");
  dirs.v2 = Contains(v2_controllers_, "memory");
  return dirs;
}

absl::Status Cgroups::MakeGroup(Group* group, const std::vector<std::string>& v2_controllers) {
  if (auto s = MakeDirs(group->mount, group->dir); !s.ok()) return s;
  if (group->controller == "cpuset") {
    if (auto s = InheritCpuset(group->mount, group->dir); !s.ok()) return s;
  }
  if (group->controller.empty()) {
    EnableControllers(group->mount, group->dir.substr(0, group->dir.rfind('/')), v2_controllers);
  }
  for (const CgroupWrite& w : group->writes) {
    if (auto s = WriteCgroupFile(group->dir + "/" + w.file, w.value); !s.ok()) return s;
  }
  group->made = true;
  return absl::OkStatus();
}

absl::Status Cgroups::Make() {
  for (Group& group : groups_) {
    absl::Status s = MakeGroup(&group, v2_controllers_);
    if (!s.ok() && group.needed) return s;
  }
  return absl::OkStatus();
}

absl::Status Cgroups::Change() const {
  for (const Group& group : groups_) {
    for (const CgroupWrite& w : group.writes) {
      if (auto s = WriteCgroupFile(group.dir + "/" + w.file, w.value); !s.ok()) return s;
    }
  }
  return absl::OkStatus();
}

absl::Status Cgroups::Add(pid_t pid) const {
  for (const Group& group : groups_) {
    if (!group.made) continue;
    auto s = WriteCgroupFile(group.dir + "/cgroup.procs", std::to_string(pid));
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Cgroups::Remove(const std::vector<std::string>& made) {
  absl::Status result;
  for (size_t i = made.size(); i-- > 0;) {
    if (access(made[i].c_str(), F_OK) != 0) continue;  // it was only planned
    // A process that has just died holds its group for a moment more.
    bool leaf = std::none_of(made.begin(), made.end(), [&](const std::string& other) {
      return other.rfind(made[i] + "/", 0) == 0;
    });
    int tries = leaf ? kRemoveTries : 1;
    while (rmdir(made[i].c_str()) != 0 && errno != ENOENT) {
      if (--tries == 0) {
        if (leaf) result = ErrnoStatus("cgroup: remove " + made[i]);
        break;
      }
      timespec pause{0, kRemovePauseNs};
      nanosleep(&pause, nullptr);
    }
  }
  return result;
}

}  // namespace runsc
