// runsc ps
#include <time.h>

#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "runsc/cmd/command.h"
#include "runsc/container/container.h"
#include "runsc/container/host_processes.h"

namespace runsc {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

// As `ps -ef` of procps shows processes; the numbers are those of the container.
void PrintTable(const std::vector<sentry::ProcessInfo>& processes) {
  printf("UID        PID  PPID  C STIME TTY          TIME CMD\n");
  time_t now = time(nullptr);
  for (const sentry::ProcessInfo& p : processes) {
    std::string user = p.uid == 0 ? "root" : std::to_string(p.uid);
    int64_t cpu = p.cpu_ns / kNsPerSecond;
    int64_t age = std::max<int64_t>(now - p.start_time, 1);
    int64_t percent = std::min<int64_t>(cpu * 100 / age, 99);
    time_t start = p.start_time;
    tm local;
    localtime_r(&start, &local);
    char stime[16];
    strftime(stime, sizeof(stime), now - start < 24 * 3600 ? "%H:%M" : "%b%d", &local);
    printf("%-8s %5d %5d %2ld %5s %-8s %02ld:%02ld:%02ld %s\n", user.c_str(), p.pid, p.ppid,
           static_cast<long>(percent), stime, p.tty.empty() ? "?" : p.tty.c_str(),
           static_cast<long>(cpu / 3600), static_cast<long>(cpu / 60 % 60),
           static_cast<long>(cpu % 60), p.command.c_str());
  }
}

// The container's processes as the host numbers them, for engines, which know no other numbers.
// Those that share an address space (vfork) are one.
std::vector<pid_t> HostPids(const ContainerState& state,
                            const std::vector<sentry::ProcessInfo>& processes) {
  std::map<pid_t, pid_t> host;  // by the number in the sandbox's PID namespace
  for (HostProcess& p : Descendants(state.sandbox.pid)) {
    if (ReadInnerPid(&p)) host[p.inner_pid] = p.pid;
  }
  std::set<pid_t> pids;
  for (const sentry::ProcessInfo& p : processes) {
    if (p.init) {
      pids.insert(state.init().pid);
    } else if (auto it = host.find(p.host_pid); it != host.end()) {
      pids.insert(it->second);
    }
  }
  return {pids.begin(), pids.end()};
}

}  // namespace

void AddPsCommand(Context& context) {
  static std::string format = "table";
  Command command(
      context, "ps", "ps displays the processes running inside a container",
      "<container-id> [ps options]",
      "The table's numbers are those of the container's PID namespace; options of ps are\n"
      "accepted and ignored. With --format json they are the host's, of the processes that run\n"
      "the container's: the one that stands for init, and one for each address space.");
  command.Text("--format,-f", &format, "select one of: table or json (default: \"table\")");
  command.StopAtArgument();
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, SIZE_MAX); !s.ok()) return s;
    if (format != "table" && format != "json") {
      return absl::InvalidArgumentError("invalid format option");
    }
    if (auto s = CheckId(args[0]); !s.ok()) return s;
    Store store = context.store();
    auto state = store.Load(args[0]);
    if (!state.ok()) return state.status();
    std::vector<sentry::ProcessInfo> processes;
    // As runc: a stopped container has no processes, which is no error.
    if (state->CurrentStatus() == ContainerStatus::kPaused) {
      return absl::FailedPreconditionError("container " + args[0] + " is paused");
    }
    if (state->CurrentStatus() != ContainerStatus::kStopped) {
      auto sandbox = ConnectSandbox(store, args[0]);
      if (!sandbox.ok()) return sandbox.status();
      auto list = sandbox->Processes();
      if (!list.ok()) return absl::UnavailableError("the sandbox does not answer");
      processes = std::move(*list);
    }
    if (format == "table") {
      PrintTable(processes);
      return 0;
    }
    printf("%s\n", nlohmann::json(HostPids(*state, processes)).dump().c_str());
    return 0;
  });
}

}  // namespace runsc
