#include "sentry/kernel/cgroup/cgroup.h"

#include <sched.h>
#include <sys/sysinfo.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace sentry {

namespace {

int HostCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

uint64_t HostMemory() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return uint64_t{1} << 30;
  return uint64_t{info.totalram} * info.mem_unit;
}

int CpusWithin(double limit) {
  const int host = HostCpus();
  return limit > 0 ? std::clamp(static_cast<int>(std::ceil(limit)), 1, host) : host;
}

}  // namespace

Cgroup::Cgroup(const Limits& limits) : cpu_limit_(limits.cpu), cpu_count_(CpusWithin(limits.cpu)) {
  SetLimits(limits.pids, static_cast<int64_t>(limits.memory));
}

void Cgroup::SetLimits(int64_t pids, int64_t memory) {
  if (pids >= 0) pids_limit_ = pids;
  if (memory < 0) return;
  const auto limit = static_cast<uint64_t>(memory);
  memory_limit_ = limit;
  const uint64_t host = HostMemory();
  total_memory_ = limit > 0 ? std::min(host, limit) : host;
}

base::Ref<base::RefCounted> Cgroup::console() const {
  absl::MutexLock l(&mutex_);
  return console_;
}

void Cgroup::set_console(base::Ref<base::RefCounted> console) {
  absl::MutexLock l(&mutex_);
  std::swap(console_, console);  // the old one goes after the lock
}

}  // namespace sentry
