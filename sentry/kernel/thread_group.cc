#include "sentry/kernel/thread_group.h"

#include <algorithm>
#include <utility>

#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/task.h"

namespace sentry {

namespace {
constexpr uint64_t kInfinity = RLIM64_INFINITY;
}

Rlimits::Rlimits() {
  // include/asm-generic/resource.h, with the process and signal limits of a machine of a few GiB.
  for (Limit& limit : limits_) limit = {kInfinity, kInfinity};
  limits_[RLIMIT_STACK] = {8 << 20, kInfinity};
  limits_[RLIMIT_CORE] = {0, kInfinity};
  limits_[RLIMIT_NPROC] = {kInfinity, kInfinity};
  limits_[RLIMIT_NOFILE] = {1024, 1048576};
  limits_[RLIMIT_MEMLOCK] = {8 << 20, 8 << 20};
  limits_[RLIMIT_SIGPENDING] = {31000, 31000};
  limits_[RLIMIT_MSGQUEUE] = {819200, 819200};
  limits_[RLIMIT_NICE] = {0, 0};
  limits_[RLIMIT_RTPRIO] = {0, 0};
}
Rlimits::Limit Rlimits::Get(int resource) const {
  absl::MutexLock l(&mutex_);
  return limits_[resource];
}
void Rlimits::Set(int resource, Limit limit) {
  absl::MutexLock l(&mutex_);
  limits_[resource] = limit;
}
void Rlimits::CopyFrom(const Rlimits& other) {
  std::array<Limit, RLIM_NLIMITS> copy;
  {
    absl::MutexLock l(&other.mutex_);
    copy = other.limits_;
  }
  absl::MutexLock l(&mutex_);
  limits_ = copy;
}

void Usage::Add(const Usage& o) {
  user_ns += o.user_ns;
  system_ns += o.system_ns;
  max_rss_kb = std::max(max_rss_kb, o.max_rss_kb);
  min_faults += o.min_faults;
  maj_faults += o.maj_faults;
  in_blocks += o.in_blocks;
  out_blocks += o.out_blocks;
  voluntary_switches += o.voluntary_switches;
  involuntary_switches += o.involuntary_switches;
}

struct rusage ToRusage(const Usage& u) {
  struct rusage r {};
  r.ru_utime = {u.user_ns / base::kNsPerSec, u.user_ns % base::kNsPerSec / 1000};
  r.ru_stime = {u.system_ns / base::kNsPerSec, u.system_ns % base::kNsPerSec / 1000};
  r.ru_maxrss = u.max_rss_kb;
  r.ru_minflt = u.min_faults;
  r.ru_majflt = u.maj_faults;
  r.ru_inblock = u.in_blocks;
  r.ru_oublock = u.out_blocks;
  r.ru_nvcsw = u.voluntary_switches;
  r.ru_nivcsw = u.involuntary_switches;
  return r;
}

Deferred::Deferred() = default;
Deferred::~Deferred() {
  for (const auto& call : calls) call();
}

ThreadGroup::ThreadGroup(Kernel* kernel, base::Ref<SignalHandlers> handlers,
                         base::Ref<Cgroup> cgroup)
    : kernel_(kernel),
      cgroup_(std::move(cgroup)),
      start_time_ns_(kernel->MonotonicNs()),
      timers_(std::make_unique<PosixTimers>(*this)),
      handlers_(std::move(handlers)) {}

ThreadGroup::~ThreadGroup() = default;

base::Ref<Pid> ThreadGroup::pid() const {
  absl::MutexLock l(&pid_mutex_);
  return pid_;
}

base::Ref<ProcessGroup> ThreadGroup::process_group() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return pgrp_;
}
base::Ref<Session> ThreadGroup::session() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return pgrp_ ? pgrp_->session() : nullptr;
}
base::Ref<Tty> ThreadGroup::tty() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return pgrp_ ? pgrp_->session()->tty : nullptr;
}
base::Ref<Task> ThreadGroup::leader() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return tasks_.empty() ? nullptr : tasks_.front();
}
std::vector<base::Ref<Task>> ThreadGroup::Threads() const {
  absl::MutexLock l(&signal_mutex_);
  std::vector<base::Ref<Task>> live;
  for (const auto& t : tasks_) {
    TaskState state = t->state();
    if (state != TaskState::kZombie && state != TaskState::kDead) live.push_back(t);
  }
  return live;
}

int ThreadGroup::ParentPidIn(const PidNamespace& ns) const {
  absl::MutexLock l(&kernel_->task_mutex());
  return ParentPidLocked(ns);
}

int ThreadGroup::ParentPidLocked(const PidNamespace& ns) const {
  kernel_->task_mutex().AssertHeld();
  return parent_ ? parent_->thread_group().PidIn(ns) : 0;
}

Usage ThreadGroup::SelfUsage() const {
  Usage u;
  std::vector<base::Ref<Task>> tasks;
  {
    absl::MutexLock l(&kernel_->task_mutex());
    u = dead_usage_;
    if (zombie_) return u;
    absl::MutexLock l2(&signal_mutex_);
    for (const auto& t : tasks_) {
      if (!t->dead_) tasks.push_back(t);
    }
  }
  for (const auto& t : tasks) {
    Usage one = t->usage();
    one.user_ns = 0;
    u.Add(one);
  }
  u.user_ns += cpu_base_ns_.load(std::memory_order_relaxed);
  if (!tasks.empty()) u.user_ns += tasks.front()->ContextCpuNs();
  return u;
}
int64_t ThreadGroup::CpuNs() const {
  base::Ref<Task> first;
  int64_t total;
  {
    absl::MutexLock l(&kernel_->task_mutex());
    total = dead_usage_.user_ns + dead_usage_.system_ns;
    if (zombie_) return total;
    absl::MutexLock l2(&signal_mutex_);
    for (const auto& t : tasks_) {
      if (t->dead_) continue;
      total += t->system_ns_.load(std::memory_order_relaxed);
      if (!first) first = t;
    }
  }
  total += cpu_base_ns_.load(std::memory_order_relaxed);
  return first ? total + first->ContextCpuNs() : total;
}

void ThreadGroup::AddIo(IoCounts* sum) const {
  absl::MutexLock l(&kernel_->task_mutex());
  sum->Add(dead_io_);
  for (const auto& t : tasks_) {
    if (t->state() != TaskState::kZombie) sum->Add(t->io);
  }
}
Usage ThreadGroup::ChildrenUsage() const {
  absl::MutexLock l(&kernel_->task_mutex());
  return children_usage_;
}

}  // namespace sentry
