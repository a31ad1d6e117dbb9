// sched, syscall and stack of a process or thread: kernel/sched/debug.c, fs/proc/base.c.
#include <fmt/format.h>
#include <linux/capability.h>
#include <sched.h>

#include <algorithm>
#include <array>

#include "sentry/fs/proc/pid_files.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr int kNsPerMs = 1'000'000;

// sched_prio_to_weight[] of kernel/sched/core.c: each step of nice is 1.25.
constexpr std::array<int, 40> kWeights = {
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904,
    3906,  3121,  2501,  1991,  1586,  1277,  1024,  820,   655,   526,   423,  335,  272,  215,
    172,   137,   110,   87,    70,    56,    45,    36,    29,    23,    18,   15};
constexpr int kIdleWeight = 3;

int Weight(const Task& t) {
  if (t.sched_policy.load() == SCHED_IDLE) return kIdleWeight;
  return kWeights[static_cast<size_t>(std::clamp(t.nice.load(), -20, 19) + 20)];
}

// As the kernel counts it: 0 to 98 real time, 100 to 139 by nice.
int Priority(const Task& t) {
  int policy = t.sched_policy.load();
  if (policy == SCHED_FIFO || policy == SCHED_RR) return 99 - t.sched_priority.load();
  return 120 + t.nice.load();
}

}  // namespace

// proc_sched_show_task(): what is known here of its lines.
Result<std::string> PidSched(const PidContext& c) {
  Task& t = *c.task;
  Usage u = t.usage();
  int64_t cpu = u.user_ns + u.system_ns;
  std::string s = fmt::format("{} ({}, #threads: {})\n", t.comm(), t.TidIn(c.ns()),
                              std::max(t.thread_group().thread_count(), 1));
  s += std::string(67, '-') + "\n";
  auto line = [&s](std::string_view name, int64_t value) {
    s += fmt::format("{:<45}:{:21}\n", name, value);
  };
  s += fmt::format("{:<45}:{:14}.{:06}\n", "se.sum_exec_runtime", cpu / kNsPerMs, cpu % kNsPerMs);
  line("nr_switches", u.voluntary_switches + u.involuntary_switches);
  line("nr_voluntary_switches", u.voluntary_switches);
  line("nr_involuntary_switches", u.involuntary_switches);
  line("se.load.weight", int64_t{Weight(t)} * 1024);
  line("policy", t.sched_policy.load());
  line("prio", Priority(t));
  return s;
}

// Writing clears the statistics of CONFIG_SCHEDSTATS, of which there are none here.
base::Status ResetSched(const PidContext&, std::string_view) { return base::Ok(); }

// proc_pid_syscall().
Result<std::string> PidSyscall(const PidContext& c) {
  Task::Blocked b = c.task->BlockedIn();
  if (b.running) return std::string("running\n");
  if (b.nr < 0) return fmt::format("{} 0x{:x} 0x{:x}\n", b.nr, b.call.sp, b.call.pc);
  const auto& a = b.call.call.args;
  return fmt::format("{} 0x{:x} 0x{:x} 0x{:x} 0x{:x} 0x{:x} 0x{:x} 0x{:x} 0x{:x}\n", b.nr, a[0],
                     a[1], a[2], a[3], a[4], a[5], b.call.sp, b.call.pc);
}

// proc_pid_stack(): for CAP_SYS_ADMIN of the first user namespace. No function of a Linux kernel is
// on a task's stack here, so none is named.
Result<std::string> PidStack(const PidContext&) {
  Task* current = Task::Current();
  if (current == nullptr || current->user_ns().parent() != nullptr ||
      !current->HasCap(CAP_SYS_ADMIN)) {
    return Error(EACCES);
  }
  return std::string();
}

}  // namespace sentry
