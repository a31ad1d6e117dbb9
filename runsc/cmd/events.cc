// runsc events
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>

#include "runsc/cgroup/cgroup.h"
#include "runsc/cgroup/stats.h"
#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kNsPerMs = 1'000'000;

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / kNsPerMs;
}

// "5s", "1m30s", "500ms", as Go's durations; milliseconds, none if it is not a positive one.
std::optional<int64_t> ParseDuration(const std::string& text) {
  double total = 0;
  const char* at = text.c_str();
  while (*at != '\0') {
    char* end;
    double value = strtod(at, &end);
    if (end == at || !(value >= 0)) return std::nullopt;
    std::string unit;
    for (at = end; isalpha(static_cast<unsigned char>(*at)); ++at) unit += *at;
    double ms = unit == "h" ? 3'600'000 : unit == "m" ? 60'000 : unit == "s" ? 1000 : 0;
    if (unit == "ms") ms = 1;
    if (ms == 0) return std::nullopt;
    total += value * ms;
  }
  if (total < 1 || total > INT32_MAX) return std::nullopt;
  return static_cast<int64_t>(total);
}

Json ToJson(const CgroupStats::Memory& m) {
  return {{"limit", m.limit}, {"usage", m.usage}, {"max", m.max}, {"failcnt", m.failures}};
}

// As runc's "stats" event.
Json ToJson(const CgroupStats& s) {
  Json usage = {{"total", s.cpu_total}, {"kernel", s.cpu_kernel}, {"user", s.cpu_user}};
  if (!s.cpu_each.empty()) usage["percpu"] = s.cpu_each;
  return {{"cpu",
           {{"usage", usage},
            {"throttling",
             {{"periods", s.periods},
              {"throttledPeriods", s.throttled_periods},
              {"throttledTime", s.throttled_time}}}}},
          {"memory",
           {{"cache", s.cache},
            {"usage", ToJson(s.memory)},
            {"swap", ToJson(s.swap)},
            {"kernel", ToJson(s.kernel)},
            {"kernelTCP", ToJson(s.kernel_tcp)},
            {"raw", s.memory_raw}}},
          {"pids", {{"current", s.pids}, {"limit", s.pids_limit}}},
          {"blkio", Json::object()},
          {"hugetlb", Json::object()},
          {"intel_rdt", Json::object()},
          {"network_interfaces", nullptr}};
}

void Print(const char* type, const std::string& id, const Json* data) {
  Json event = {{"type", type}, {"id", id}};
  if (data != nullptr) event["data"] = *data;
  printf("%s\n", event.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  fflush(stdout);
}

void PrintStats(const std::string& id, const CgroupDirs& dirs) {
  Json stats = ToJson(ReadCgroupStats(dirs));
  Print("stats", id, &stats);
}

absl::StatusOr<CgroupDirs> FindDirs(const Store& store, const std::string& id, bool systemd) {
  auto spec = LoadStoredSpec(store, id);
  if (!spec.ok()) return spec.status();
  auto cgroups = Cgroups::Plan(spec->linux_, id, systemd);
  if (!cgroups.ok()) return cgroups.status();
  CgroupDirs dirs = cgroups->StatsDirs();
  if (dirs.memory.empty() && dirs.cpu.empty() && dirs.pids.empty()) {
    return absl::FailedPreconditionError("container " + id + " has no cgroup");
  }
  return dirs;
}

absl::Status Events(const Store& store, const std::string& id, bool systemd, bool once,
                    int64_t interval_ms) {
  auto state = store.Load(id);
  if (!state.ok()) return state.status();
  base::UniqueFd ended(static_cast<int>(syscall(SYS_pidfd_open, state->init().pid, 0)));
  if (!ended.valid() || state->CurrentStatus() == ContainerStatus::kStopped) {
    return absl::FailedPreconditionError("container with id " + id + " is not running");
  }
  auto dirs = FindDirs(store, id, systemd);
  if (!dirs.ok()) return dirs.status();
  if (once) {
    PrintStats(id, *dirs);
    return absl::OkStatus();
  }
  auto oom = OomWatch::Begin(*dirs);
  if (!oom.ok()) return oom.status();
  for (int64_t next = NowMs() + interval_ms;;) {
    pollfd fds[2] = {{oom->fd(), POLLIN, 0}, {ended.get(), POLLIN, 0}};
    int n = poll(fds, 2, static_cast<int>(std::max<int64_t>(next - NowMs(), 0)));
    if (n < 0 && errno != EINTR) return ErrnoStatus("poll");
    if (n > 0 && fds[0].revents != 0) {
      for (uint64_t count = oom->Take(); count > 0; --count) Print("oom", id, nullptr);
    }
    if (n > 0 && fds[1].revents != 0) return absl::OkStatus();
    if (NowMs() < next) continue;
    PrintStats(id, *dirs);
    next = NowMs() + interval_ms;
  }
}

}  // namespace

void AddEventsCommand(Context& context) {
  static std::string interval = "5s";
  static bool stats = false;
  Command command(context, "events",
                  "display container events such as OOM notifications, cpu, memory, and IO usage "
                  "statistics",
                  kIdUsage,
                  "The events command displays information about the container. By default the\n"
                  "information is displayed once every 5 seconds, until the container ends.");
  command.Text("--interval", &interval, "set the stats collection interval (default: 5s)");
  command.Flag("--stats", &stats, "display the container's stats then exit");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    auto ms = ParseDuration(interval);
    if (!ms) return absl::InvalidArgumentError("duration interval must be greater than 0");
    auto s = Events(context.store(), args[0], context.globals.systemd_cgroup, stats, *ms);
    if (!s.ok()) return s;
    return 0;
  });
}

}  // namespace runsc
