// Scheduling attributes, resource limits, priorities. The host schedules the guest's threads; what
// is set here is kept and reported.
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;
using base::Status;
using base::UserPtr;

namespace {

constexpr int kMaxRtPriority = 99;
constexpr uint64_t kNrOpen = 1048576;  // /proc/sys/fs/nr_open

Result<Ref<Task>> TaskOf(Task& t, int pid) {
  if (pid == 0) return Ref<Task>(&t);
  Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), pid);
  if (!target) return Error(ESRCH);
  return target;
}

// Linux: check_same_owner, or CAP_SYS_NICE.
bool MaySchedule(Task& t, Task& target) {
  Ref<const Credentials> theirs = target.credentials();
  uid_t e = t.creds().euid;
  return e == theirs->euid || e == theirs->ruid ||
         t.creds().HasCapIn(CAP_SYS_NICE, *theirs->user_ns);
}

bool IsRealTime(int policy) { return policy == SCHED_FIFO || policy == SCHED_RR; }
bool IsKnown(int policy) {
  return IsRealTime(policy) || policy == SCHED_OTHER || policy == SCHED_BATCH ||
         policy == SCHED_IDLE;
}

constexpr int kResetOnFork = 0x40000000;

Status SetScheduler(Task& t, Task& target, int policy, bool reset, int priority, const int* nice) {
  if (!IsKnown(policy)) return Error(EINVAL);
  if (IsRealTime(policy) ? priority < 1 || priority > kMaxRtPriority : priority != 0)
    return Error(EINVAL);
  if (!MaySchedule(t, target)) return Error(EPERM);
  bool privileged = t.HasCap(CAP_SYS_NICE);
  if (!privileged) {
    uint64_t limit = target.Rlimit(RLIMIT_RTPRIO);
    if (IsRealTime(policy)) {
      if (policy != target.sched_policy && limit == 0) return Error(EPERM);
      if (priority > target.sched_priority && static_cast<uint64_t>(priority) > limit)
        return Error(EPERM);
    }
    if (target.sched_reset_on_fork && !reset) return Error(EPERM);
    if (nice && *nice<target.nice&& static_cast<uint64_t>(20 - *nice)> target.Rlimit(RLIMIT_NICE)) {
      return Error(EPERM);
    }
  }
  target.sched_policy = policy;
  target.sched_priority = priority;
  target.sched_reset_on_fork = reset;
  if (nice) target.nice = std::clamp(*nice, -20, 19);
  return base::Ok();
}

}  // namespace

Result<uint64_t> SysSchedYield(Task&, const SyscallArgs&) {
  fiber::Yield();
  return 0;
}

Result<uint64_t> SysSchedGetscheduler(Task& t, const SyscallArgs& a) {
  if (a.Int(0) < 0) return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  return static_cast<uint64_t>(target->sched_policy |
                               (target->sched_reset_on_fork ? kResetOnFork : 0));
}

Result<uint64_t> SysSchedSetscheduler(Task& t, const SyscallArgs& a) {
  int policy = a.Int(1);
  if (policy < 0 || a[2] == 0 || a.Int(0) < 0) return Error(EINVAL);
  int priority = TRY(UserPtr<int32_t>(a[2]).CopyIn(t.memory()));
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  TRY(SetScheduler(t, *target, policy & ~kResetOnFork, (policy & kResetOnFork) != 0, priority,
                   nullptr));
  return 0;
}

Result<uint64_t> SysSchedGetparam(Task& t, const SyscallArgs& a) {
  if (a[1] == 0 || a.Int(0) < 0) return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  TRY(UserPtr<int32_t>(a[1]).CopyOut(t.memory(), target->sched_priority.load()));
  return 0;
}

Result<uint64_t> SysSchedSetparam(Task& t, const SyscallArgs& a) {
  if (a[1] == 0 || a.Int(0) < 0) return Error(EINVAL);
  int priority = TRY(UserPtr<int32_t>(a[1]).CopyIn(t.memory()));
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  TRY(SetScheduler(t, *target, target->sched_policy, target->sched_reset_on_fork, priority,
                   nullptr));
  return 0;
}

namespace {
struct SchedAttr {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
  uint32_t util_min, util_max;
};
constexpr uint32_t kSchedAttrV0 = 48, kSchedAttrV1 = 56;
// SCHED_FLAG_*; RECLAIM and DL_OVERRUN say nothing of policies that are not SCHED_DEADLINE.
constexpr uint64_t kResetFlag = 1, kReclaim = 2, kOverrun = 4, kKeepPolicy = 8, kKeepParams = 0x10;
constexpr uint64_t kUtilFlags = 0x60;
constexpr uint64_t kKnownSchedFlags =
    kResetFlag | kReclaim | kOverrun | kKeepPolicy | kKeepParams | kUtilFlags;
}  // namespace

Result<uint64_t> SysSchedSetattr(Task& t, const SyscallArgs& a) {
  if (a[1] == 0 || a.Int(0) < 0 || a.Uint(2) != 0) return Error(EINVAL);
  uint32_t size = TRY(UserPtr<uint32_t>(a[1]).CopyIn(t.memory()));
  if (size == 0) size = kSchedAttrV0;
  if (size < kSchedAttrV0 || size > 4096) {
    TRY(UserPtr<uint32_t>(a[1]).CopyOut(t.memory(), sizeof(SchedAttr)));
    return Error(E2BIG);
  }
  SchedAttr attr{};
  TRY(t.memory().Read(
      a[1],
      std::as_writable_bytes(std::span(&attr, 1)).first(std::min<size_t>(size, sizeof(attr)))));
  if ((attr.flags & kUtilFlags) != 0 && size < kSchedAttrV1) return Error(EINVAL);
  if (static_cast<int>(attr.policy) < 0) return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  bool reset = (attr.flags & kResetFlag) != 0;
  if ((attr.flags & kKeepPolicy) != 0) {
    attr.policy = static_cast<uint32_t>(target->sched_policy.load());
    reset = target->sched_reset_on_fork;
  }
  if ((attr.flags & kKeepParams) != 0) {  // the policy is one of them
    if (!IsKnown(static_cast<int>(attr.policy))) return Error(EINVAL);
    attr.policy = static_cast<uint32_t>(target->sched_policy.load());
    attr.priority = static_cast<uint32_t>(target->sched_priority.load());
    attr.nice = target->nice;
  }
  if ((attr.flags & ~kKnownSchedFlags) != 0) return Error(EINVAL);
  if ((attr.flags & kUtilFlags) != 0) return Error(EOPNOTSUPP);  // as without CONFIG_UCLAMP_TASK
  const int policy = static_cast<int>(attr.policy);
  int nice = std::clamp(attr.nice, -20, 19);
  TRY(SetScheduler(t, *target, policy, reset, static_cast<int>(attr.priority),
                   IsRealTime(policy) ? nullptr : &nice));
  return 0;
}

Result<uint64_t> SysSchedGetattr(Task& t, const SyscallArgs& a) {
  uint32_t size = a.Uint(2);
  if (a[1] == 0 || a.Int(0) < 0 || size < kSchedAttrV0 || size > 4096 || a.Uint(3) != 0)
    return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  SchedAttr attr{};
  attr.size = std::min<uint32_t>(size, sizeof(attr));
  attr.policy = target->sched_policy;
  attr.flags = target->sched_reset_on_fork ? 1 : 0;
  attr.nice = target->nice;
  attr.priority = target->sched_priority;
  attr.util_max = 1024;
  TRY(t.memory().Write(a[1], std::as_bytes(std::span(&attr, 1)).first(attr.size)));
  return 0;
}

Result<uint64_t> SysSchedGetPriorityMax(Task&, const SyscallArgs& a) {
  if (IsRealTime(a.Int(0))) return kMaxRtPriority;
  return IsKnown(a.Int(0)) || a.Int(0) == 6 ? Result<uint64_t>(0) : Error(EINVAL);
}
Result<uint64_t> SysSchedGetPriorityMin(Task&, const SyscallArgs& a) {
  if (IsRealTime(a.Int(0))) return 1;
  return IsKnown(a.Int(0)) || a.Int(0) == 6 ? Result<uint64_t>(0) : Error(EINVAL);
}

Result<uint64_t> SysSchedRrGetInterval(Task& t, const SyscallArgs& a) {
  if (a.Int(0) < 0) return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  int64_t ns = target->sched_policy == SCHED_RR     ? 100 * base::kNsPerMs
               : target->sched_policy == SCHED_FIFO ? 0
                                                    : 4 * base::kNsPerMs;
  TRY(UserPtr<timespec>(a[1]).CopyOut(t.memory(), base::TimespecFromNs(ns)));
  return 0;
}

namespace {
// Processors 0 to n-1, as two words.
std::array<uint64_t, 2> Online(int n) {
  std::array<uint64_t, 2> mask{};
  for (int i = 0; i < std::min(n, 128); ++i) mask[i / 64] |= uint64_t{1} << (i % 64);
  return mask;
}
}  // namespace

Result<uint64_t> SysSchedGetaffinity(Task& t, const SyscallArgs& a) {
  uint64_t length = a.Uint(1);
  int cpus = t.thread_group().cgroup()->cpu_count();
  size_t words = cpus > 64 ? 2 : 1;
  if (length * 8 < static_cast<uint64_t>(std::min(cpus, 128)) || (length & 7) != 0)
    return Error(EINVAL);
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  std::array<uint64_t, 2> online = Online(cpus);
  for (size_t i = 0; i < 2; ++i) online[i] &= target->cpu_mask_words[i].load();
  size_t bytes = std::min<size_t>(length, words * 8);
  TRY(t.memory().Write(a[2], std::as_bytes(std::span(online)).first(bytes)));
  return bytes;
}

Result<uint64_t> SysSchedSetaffinity(Task& t, const SyscallArgs& a) {
  std::array<uint64_t, 2> mask{};
  size_t bytes = std::min<size_t>(a.Uint(1), sizeof(mask));
  TRY(t.memory().Read(a[2], std::as_writable_bytes(std::span(mask)).first(bytes)));
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  if (!MaySchedule(t, *target)) return Error(EPERM);
  std::array<uint64_t, 2> online = Online(t.thread_group().cgroup()->cpu_count());
  for (size_t i = 0; i < 2; ++i) mask[i] &= online[i];
  if (mask[0] == 0 && mask[1] == 0) return Error(EINVAL);
  for (size_t i = 0; i < 2; ++i) target->cpu_mask_words[i] = mask[i];
  return 0;
}

Result<uint64_t> SysGetcpu(Task& t, const SyscallArgs& a) {
  int cpu = std::max(sched_getcpu(), 0) % t.thread_group().cgroup()->cpu_count();
  if (a[0] != 0) TRY(UserPtr<uint32_t>(a[0]).CopyOut(t.memory(), static_cast<uint32_t>(cpu)));
  if (a[1] != 0) TRY(UserPtr<uint32_t>(a[1]).CopyOut(t.memory(), 0));
  return 0;
}

// --- nice and I/O priorities of a process, a group or a user ---

namespace {

constexpr int kIoprioWhoProcess = 1, kIoprioWhoPgrp = 2, kIoprioWhoUser = 3;

// The tasks that (which, who) names.
template <typename Fn>
Status ForEachOf(Task& t, int which, int who, bool ioprio, Fn fn) {
  int process = ioprio ? kIoprioWhoProcess : PRIO_PROCESS;
  int pgrp_kind = ioprio ? kIoprioWhoPgrp : PRIO_PGRP;
  int user = ioprio ? kIoprioWhoUser : PRIO_USER;
  bool found = false;
  auto each = [&](Task& task) {
    found = true;
    return fn(task);
  };
  if (which == process && who == 0) {
    TRY(each(t));
  } else if (which == process) {
    Ref<Task> target = TRY(TaskOf(t, who));
    TRY(each(*target));
  } else if (which == pgrp_kind) {
    Ref<ProcessGroup> pgrp = who == 0 ? t.thread_group().process_group()
                                      : t.kernel().FindProcessGroup(t.pid_namespace(), who);
    if (!pgrp) return Error(ESRCH);
    for (const auto& group : t.kernel().Members(*pgrp)) {
      for (const auto& task : group->Threads()) TRY(each(*task));
    }
  } else if (which == user) {
    uid_t uid = t.creds().ruid;
    if (who != 0) {
      Result<uid_t> mapped = t.user_ns().MapUidIn(static_cast<uid_t>(who));
      if (!mapped.ok()) return Error(ESRCH);
      uid = *mapped;
    }
    for (const auto& task : t.kernel().Tasks(t.pid_namespace())) {
      if (task->credentials()->ruid == uid) TRY(each(*task));
    }
  } else {
    return Error(EINVAL);
  }
  return found ? base::Ok() : Status(Error(ESRCH));
}

}  // namespace

Result<uint64_t> SysGetpriority(Task& t, const SyscallArgs& a) {
  int best = 0;
  TRY(ForEachOf(t, a.Int(0), a.Int(1), false, [&](Task& task) {
    best = std::max(best, 20 - task.nice);
    return base::Ok();
  }));
  return static_cast<uint64_t>(best);
}

Result<uint64_t> SysSetpriority(Task& t, const SyscallArgs& a) {
  int nice = std::clamp(a.Int(2), -20, 19);
  Status last = base::Ok();
  TRY(ForEachOf(t, a.Int(0), a.Int(1), false, [&](Task& task) {
    Ref<const Credentials> theirs = task.credentials();
    uid_t e = t.creds().euid;
    if (theirs->ruid != e && theirs->euid != e && !t.HasCap(CAP_SYS_NICE)) {
      last = Error(EPERM);
    } else if (nice < task.nice && !t.HasCap(CAP_SYS_NICE) &&
               static_cast<uint64_t>(20 - nice) > task.Rlimit(RLIMIT_NICE)) {
      last = Error(EACCES);
    } else {
      task.nice = nice;
    }
    return base::Ok();
  }));
  TRY(last);
  return 0;
}

Result<uint64_t> SysIoprioGet(Task& t, const SyscallArgs& a) {
  int best = 0;
  TRY(ForEachOf(t, a.Int(0), a.Int(1), true, [&](Task& task) {
    int value = task.io_priority;
    if (best == 0 || (value != 0 && value < best)) best = value;
    return base::Ok();
  }));
  return static_cast<uint64_t>(best);
}

Result<uint64_t> SysIoprioSet(Task& t, const SyscallArgs& a) {
  int value = a.Int(2), io_class = (value >> 13) & 7, level = value & 0x1fff;
  if (io_class > 3 || (io_class == 0 && level != 0) ||
      ((io_class == 1 || io_class == 2) && (level & 7) > 7)) {
    return Error(EINVAL);
  }
  if (io_class == 1 && !t.HasCap(CAP_SYS_ADMIN) && !t.HasCap(CAP_SYS_NICE)) return Error(EPERM);
  TRY(ForEachOf(t, a.Int(0), a.Int(1), true, [&](Task& task) -> Status {
    if (!MaySchedule(t, task)) return Error(EPERM);
    task.io_priority = value;
    return base::Ok();
  }));
  return 0;
}

// --- resource limits ---

namespace {

Status SetLimit(Task& t, ThreadGroup& group, int resource, Rlimits::Limit limit) {
  if (limit.soft > limit.hard) return Error(EINVAL);
  if (resource == RLIMIT_NOFILE && limit.hard > kNrOpen) return Error(EPERM);
  Rlimits::Limit old = group.rlimits().Get(resource);
  if (limit.hard > old.hard && !t.HasCap(CAP_SYS_RESOURCE)) return Error(EPERM);
  // A CPU limit of zero would kill at once: Linux makes it one second.
  if (resource == RLIMIT_CPU && limit.soft == 0) limit.soft = 1;
  group.rlimits().Set(resource, limit);
  if (resource == RLIMIT_NOFILE && limit.soft == 0) {
    // open(2) fails in another way from now on.
    for (const Ref<Task>& thread : group.Threads()) thread->HandOffLookUps();
  }
  if (resource == RLIMIT_STACK && &group == &t.thread_group()) t.mm().ReadyMainStack(t);
  if (resource == RLIMIT_CPU && limit.soft != RLIM64_INFINITY) group.timers().WatchCpuLimit();
  return base::Ok();
}

}  // namespace

Result<uint64_t> SysGetrlimit(Task& t, const SyscallArgs& a) {
  if (a.Uint(0) >= RLIM_NLIMITS) return Error(EINVAL);
  Rlimits::Limit limit = t.thread_group().rlimits().Get(a.Int(0));
  TRY(UserPtr<Rlimits::Limit>(a[1]).CopyOut(t.memory(), limit));
  return 0;
}

Result<uint64_t> SysSetrlimit(Task& t, const SyscallArgs& a) {
  Rlimits::Limit limit = TRY(UserPtr<Rlimits::Limit>(a[1]).CopyIn(t.memory()));
  if (a.Uint(0) >= RLIM_NLIMITS) return Error(EINVAL);
  TRY(SetLimit(t, t.thread_group(), a.Int(0), limit));
  return 0;
}

Result<uint64_t> SysPrlimit64(Task& t, const SyscallArgs& a) {
  Rlimits::Limit wanted{};
  if (a[2] != 0) wanted = TRY(UserPtr<Rlimits::Limit>(a[2]).CopyIn(t.memory()));
  Ref<Task> target = TRY(TaskOf(t, a.Int(0)));
  if (&target->thread_group() != &t.thread_group()) {
    Ref<const Credentials> theirs = target->credentials();
    const Credentials& c = t.creds();
    bool same = c.ruid == theirs->euid && c.ruid == theirs->suid && c.ruid == theirs->ruid &&
                c.rgid == theirs->egid && c.rgid == theirs->sgid && c.rgid == theirs->rgid;
    if (!same && !c.HasCapIn(CAP_SYS_RESOURCE, *theirs->user_ns)) return Error(EPERM);
  }
  if (a.Uint(1) >= RLIM_NLIMITS) return Error(EINVAL);
  Rlimits::Limit old = target->thread_group().rlimits().Get(a.Int(1));
  if (a[2] != 0) TRY(SetLimit(t, target->thread_group(), a.Int(1), wanted));
  if (a[3] != 0) TRY(UserPtr<Rlimits::Limit>(a[3]).CopyOut(t.memory(), old));
  return 0;
}

}  // namespace sentry
