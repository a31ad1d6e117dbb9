#include "runsc/cgroup/stats.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "runsc/container/state.h"

namespace runsc {

namespace {

constexpr size_t kMaxFile = 1 << 20;
constexpr uint64_t kNsPerUs = 1000;

std::string Text(const std::string& path) {
  auto text = ReadFile(path, kMaxFile);
  return text.ok() ? *text : "";
}

// "max" is `none`.
uint64_t Number(const std::string& text, uint64_t none = 0) {
  if (text.rfind("max", 0) == 0) return none;
  return strtoull(text.c_str(), nullptr, 10);
}

// Lines of a name and a number.
std::map<std::string, uint64_t> Table(const std::string& path) {
  std::map<std::string, uint64_t> table;
  std::istringstream lines(Text(path));
  std::string name;
  uint64_t value;
  while (lines >> name >> value) table[name] = value;
  return table;
}

uint64_t Get(const std::map<std::string, uint64_t>& table, const char* name) {
  auto it = table.find(name);
  return it == table.end() ? 0 : it->second;
}

CgroupStats::Memory ReadV1Memory(const std::string& prefix) {
  return {.limit = Number(Text(prefix + "limit_in_bytes")),
          .usage = Number(Text(prefix + "usage_in_bytes")),
          .max = Number(Text(prefix + "max_usage_in_bytes")),
          .failures = Number(Text(prefix + "failcnt"))};
}

void ReadV1(const CgroupDirs& dirs, CgroupStats* s) {
  s->memory = ReadV1Memory(dirs.memory + "/memory.");
  s->swap = ReadV1Memory(dirs.memory + "/memory.memsw.");
  s->kernel = ReadV1Memory(dirs.memory + "/memory.kmem.");
  s->kernel_tcp = ReadV1Memory(dirs.memory + "/memory.kmem.tcp.");
  s->memory_raw = Table(dirs.memory + "/memory.stat");
  s->cache = Get(s->memory_raw, "cache");
}

void ReadV2(const CgroupDirs& dirs, CgroupStats* s) {
  s->memory = {.limit = Number(Text(dirs.memory + "/memory.max"), UINT64_MAX),
               .usage = Number(Text(dirs.memory + "/memory.current")),
               .max = Number(Text(dirs.memory + "/memory.peak")),
               .failures = Get(Table(dirs.memory + "/memory.events"), "max")};
  const uint64_t swap = Number(Text(dirs.memory + "/memory.swap.current"));
  const uint64_t swap_limit = Number(Text(dirs.memory + "/memory.swap.max"), UINT64_MAX);
  s->swap.usage = s->memory.usage + swap;
  s->swap.limit = UINT64_MAX;
  if (swap_limit != UINT64_MAX && s->memory.limit != UINT64_MAX) {
    s->swap.limit = s->memory.limit + swap_limit;
  }
  s->memory_raw = Table(dirs.memory + "/memory.stat");
  s->cache = Get(s->memory_raw, "file");
}

void ReadCpu(const CgroupDirs& dirs, CgroupStats* s) {
  const std::map<std::string, uint64_t> stat = Table(dirs.cpu + "/cpu.stat");
  s->periods = Get(stat, "nr_periods");
  s->throttled_periods = Get(stat, "nr_throttled");
  s->throttled_time = Get(stat, "throttled_time");
  if (stat.count("usage_usec") != 0) {  // v2
    s->cpu_total = Get(stat, "usage_usec") * kNsPerUs;
    s->cpu_user = Get(stat, "user_usec") * kNsPerUs;
    s->cpu_kernel = Get(stat, "system_usec") * kNsPerUs;
    s->throttled_time = Get(stat, "throttled_usec") * kNsPerUs;
    return;
  }
  s->cpu_total = Number(Text(dirs.cpuacct + "/cpuacct.usage"));
  std::istringstream each(Text(dirs.cpuacct + "/cpuacct.usage_percpu"));
  for (uint64_t ns; each >> ns;) s->cpu_each.push_back(ns);
  const std::map<std::string, uint64_t> ticks = Table(dirs.cpuacct + "/cpuacct.stat");
  const uint64_t tick_ns = 1'000'000'000 / sysconf(_SC_CLK_TCK);
  s->cpu_user = Get(ticks, "user") * tick_ns;
  s->cpu_kernel = Get(ticks, "system") * tick_ns;
}

}  // namespace

CgroupStats ReadCgroupStats(const CgroupDirs& dirs) {
  CgroupStats s;
  if (!dirs.memory.empty()) (dirs.v2 ? ReadV2 : ReadV1)(dirs, &s);
  ReadCpu(dirs, &s);
  s.pids = Number(Text(dirs.pids + "/pids.current"));
  s.pids_limit = Number(Text(dirs.pids + "/pids.max"));
  return s;
}

absl::StatusOr<OomWatch> OomWatch::Begin(const CgroupDirs& dirs) {
  if (dirs.memory.empty()) return absl::UnavailableError("the container has no memory cgroup");
  OomWatch watch;
  if (dirs.v2) {
    watch.counter_file_ = dirs.memory + "/memory.events";
    watch.events_.reset(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!watch.events_.valid() ||
        inotify_add_watch(watch.events_.get(), watch.counter_file_.c_str(), IN_MODIFY) < 0) {
      return ErrnoStatus("watch " + watch.counter_file_);
    }
    watch.seen_ = Get(Table(watch.counter_file_), "oom_kill");
    return watch;
  }
  watch.events_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  std::string path = dirs.memory + "/memory.oom_control";
  base::UniqueFd control(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!control.valid()) return ErrnoStatus("open " + path);
  path = dirs.memory + "/cgroup.event_control";
  base::UniqueFd registry(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  std::string line = std::to_string(watch.events_.get()) + " " + std::to_string(control.get());
  if (write(registry.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return ErrnoStatus("write " + path);
  }
  return watch;
}

uint64_t OomWatch::Take() {
  if (counter_file_.empty()) {
    uint64_t count = 0;
    return read(events_.get(), &count, sizeof(count)) == sizeof(count) ? count : 0;
  }
  char drained[4096];
  while (read(events_.get(), drained, sizeof(drained)) > 0) {
  }
  const uint64_t now = Get(Table(counter_file_), "oom_kill");
  const uint64_t more = now > seen_ ? now - seen_ : 0;
  seen_ = std::max(seen_, now);
  return more;
}

}  // namespace runsc
