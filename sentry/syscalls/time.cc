// Clocks, sleeping and timers (Linux: kernel/time/).
#include <sys/time.h>
#include <sys/times.h>
#include <sys/timex.h>

#include <algorithm>
#include <limits>

#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/posix_timers.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

constexpr int64_t kClockTick = base::kNsPerSec / 100;
constexpr int64_t kCpuSleepPollNs = base::kNsPerMs;

// The clocks of other threads and processes are negative numbers (include/linux/posix-timers.h):
// ~pid in the upper bits, then bit 2 for a thread, and which of three clocks.
struct DynamicClock {
  int pid;
  bool thread;
  int which;
};
DynamicClock Decode(clockid_t clock) { return {~(clock >> 3), (clock & 4) != 0, clock & 3}; }

Result<int64_t> CpuClock(Task& t, const DynamicClock& c) {
  if (c.which == 3) return Error(EINVAL);
  if (c.thread) {
    base::Ref<Task> target(&t);
    if (c.pid != 0) {
      target = t.kernel().FindTask(t.pid_namespace(), c.pid);
      // Threads of other processes have no clocks for us.
      if (!target || &target->thread_group() != &t.thread_group()) return Error(EINVAL);
    }
    return target->CpuTimeNs();
  }
  base::Ref<ThreadGroup> group = t.thread_group_ref();
  if (c.pid != 0) {
    group = t.kernel().FindThreadGroup(t.pid_namespace(), c.pid);
    if (!group) return Error(EINVAL);
  }
  return group->CpuNs();
}

bool IsCoarse(clockid_t clock) {
  return clock == CLOCK_REALTIME_COARSE || clock == CLOCK_MONOTONIC_COARSE;
}

Result<int64_t> ReadClock(Task& t, clockid_t clock) {
  if (clock < 0) return CpuClock(t, Decode(clock));
  switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME:
    case CLOCK_TAI:
      return base::ClockNs(clock);
    // The host has these only if it has a clock that wakes it up.
    case CLOCK_REALTIME_ALARM:
      return base::ClockNs(CLOCK_REALTIME);
    case CLOCK_BOOTTIME_ALARM:
      return base::ClockNs(CLOCK_BOOTTIME);
    case CLOCK_PROCESS_CPUTIME_ID:
      return CpuClock(t, {0, false, 2});
    case CLOCK_THREAD_CPUTIME_ID:
      return t.CpuTimeNs();
    default:
      return Error(EINVAL);
  }
}

timeval TimevalFromNs(int64_t ns) { return {ns / base::kNsPerSec, ns % base::kNsPerSec / 1000}; }

Result<int64_t> CopyInTimespec(Task& t, uint64_t addr) {
  timespec ts = TRY(UserPtr<timespec>(addr).CopyIn(t.memory()));
  std::optional<int64_t> ns = base::NsFromTimespec(ts);
  if (!ns) return Error(EINVAL);
  return *ns;
}

// Sleeps to a CLOCK_MONOTONIC deadline. With `rem` the time left is written there when interrupted.
Result<uint64_t> SleepRelative(Task& t, int64_t deadline, uint64_t rem) {
  if (fiber::SleepUntil(deadline) == fiber::WakeReason::kTimeout) return 0;
  int64_t left = deadline == base::kNever ? base::kNever : deadline - base::MonotonicNs();
  if (left <= 0) return 0;
  if (rem != 0) TRY(UserPtr<timespec>(rem).CopyOut(t.memory(), base::TimespecFromNs(left)));
  t.SetRestartBlock([deadline, rem](Task& task) { return SleepRelative(task, deadline, rem); });
  return Error(base::kERESTART_RESTARTBLOCK);
}

// Until a CPU clock has reached `target`.
Result<uint64_t> SleepOnCpu(Task& t, clockid_t clock, int64_t target, bool absolute, uint64_t rem) {
  while (true) {
    int64_t left = target - TRY(ReadClock(t, clock));
    if (left <= 0) return 0;
    int64_t wait = std::max(left / std::max(t.thread_group().thread_count(), 1), kCpuSleepPollNs);
    if (fiber::SleepUntil(base::DeadlineAfter(wait)) == fiber::WakeReason::kTimeout) continue;
    if (absolute) return Error(base::kERESTARTNOHAND);
    if (rem != 0) TRY(UserPtr<timespec>(rem).CopyOut(t.memory(), base::TimespecFromNs(left)));
    t.SetRestartBlock([=](Task& task) { return SleepOnCpu(task, clock, target, false, rem); });
    return Error(base::kERESTART_RESTARTBLOCK);
  }
}

}  // namespace

Result<uint64_t> SysNanosleep(Task& t, const SyscallArgs& a) {
  int64_t ns = TRY(CopyInTimespec(t, a[0]));
  return SleepRelative(t, base::DeadlineAfter(ns), a[1]);
}

Result<uint64_t> SysClockNanosleep(Task& t, const SyscallArgs& a) {
  clockid_t clock = a.Int(0);
  bool absolute = (a.Int(1) & TIMER_ABSTIME) != 0;
  switch (clock) {
    case CLOCK_THREAD_CPUTIME_ID:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_REALTIME_COARSE:
    case CLOCK_MONOTONIC_COARSE:
      return Error(EOPNOTSUPP);
    case CLOCK_REALTIME_ALARM:
    case CLOCK_BOOTTIME_ALARM:
      if (!t.HasCap(CAP_WAKE_ALARM)) return Error(EPERM);
      break;
    default:
      break;
  }
  int64_t now = TRY(ReadClock(t, clock));
  int64_t ns = TRY(CopyInTimespec(t, a[2]));
  if (clock < 0 || clock == CLOCK_PROCESS_CPUTIME_ID) {
    return SleepOnCpu(t, clock, absolute ? ns : base::SaturatingAdd(now, ns), absolute, a[3]);
  }
  if (!absolute) return SleepRelative(t, base::DeadlineAfter(ns), a[3]);
  // A clock that is set meanwhile is looked at again when the time has come.
  while (now < ns) {
    if (fiber::SleepUntil(base::DeadlineAfter(ns - now)) != fiber::WakeReason::kTimeout) {
      return Error(base::kERESTARTNOHAND);
    }
    now = TRY(ReadClock(t, clock));
  }
  return 0;
}

Result<uint64_t> SysRestartSyscall(Task& t, const SyscallArgs&) {
  auto block = t.TakeRestartBlock();
  if (!block) return Error(EINTR);
  return block(t);
}

Result<uint64_t> SysClockGettime(Task& t, const SyscallArgs& a) {
  int64_t now = TRY(ReadClock(t, a.Int(0)));
  TRY(UserPtr<timespec>(a[1]).CopyOut(t.memory(), base::TimespecFromNs(now)));
  return 0;
}

Result<uint64_t> SysClockGetres(Task& t, const SyscallArgs& a) {
  clockid_t clock = a.Int(0);
  TRY(ReadClock(t, clock));
  // Coarse clocks tick with the host's timer (CONFIG_HZ is 250 in Debian).
  int64_t resolution = IsCoarse(clock) ? 4 * base::kNsPerMs : 1;
  if (a[1] != 0) TRY(UserPtr<timespec>(a[1]).CopyOut(t.memory(), base::TimespecFromNs(resolution)));
  return 0;
}

Result<uint64_t> SysClockSettime(Task& t, const SyscallArgs& a) {
  clockid_t clock = a.Int(0);
  TRY(ReadClock(t, clock));
  if (clock != CLOCK_REALTIME) return Error(EINVAL);
  TRY(CopyInTimespec(t, a[1]));
  return Error(EPERM);  // the clock is the host's
}

Result<uint64_t> SysSettimeofday(Task&, const SyscallArgs&) { return Error(EPERM); }

Result<uint64_t> SysGettimeofday(Task& t, const SyscallArgs& a) {
  if (a[0] != 0) TRY(UserPtr<timeval>(a[0]).CopyOut(t.memory(), TimevalFromNs(base::RealtimeNs())));
  if (a[1] != 0) TRY(UserPtr<struct timezone>(a[1]).CopyOut(t.memory(), {0, 0}));
  return 0;
}

Result<uint64_t> SysTime(Task& t, const SyscallArgs& a) {
  int64_t now = base::ClockNs(CLOCK_REALTIME_COARSE) / base::kNsPerSec;
  if (a[0] != 0) TRY(UserPtr<int64_t>(a[0]).CopyOut(t.memory(), now));
  return static_cast<uint64_t>(now);
}

Result<uint64_t> SysTimes(Task& t, const SyscallArgs& a) {
  if (a[0] != 0) {
    Usage self = t.thread_group().SelfUsage(), children = t.thread_group().ChildrenUsage();
    tms out{self.user_ns / kClockTick, self.system_ns / kClockTick, children.user_ns / kClockTick,
            children.system_ns / kClockTick};
    TRY(UserPtr<tms>(a[0]).CopyOut(t.memory(), out));
  }
  return static_cast<uint64_t>(base::MonotonicNs() / kClockTick);
}

// adjtimex and clock_adjtime read the host's clock discipline; nobody may change it.
namespace {
Result<uint64_t> Adjust(Task& t, uint64_t addr) {
  timex in = TRY(UserPtr<timex>(addr).CopyIn(t.memory()));
  if (in.modes != 0) return Error(EPERM);
  timex out{};
  out.status = STA_UNSYNC;
  out.tick = 10000;
  out.tolerance = 32768000;
  out.precision = 1;
  out.maxerror = out.esterror = 16000000;
  out.time = TimevalFromNs(base::RealtimeNs());
  TRY(UserPtr<timex>(addr).CopyOut(t.memory(), out));
  return TIME_ERROR;
}
}  // namespace

Result<uint64_t> SysAdjtimex(Task& t, const SyscallArgs& a) { return Adjust(t, a[0]); }
Result<uint64_t> SysClockAdjtime(Task& t, const SyscallArgs& a) {
  TRY(ReadClock(t, a.Int(0)));
  if (a.Int(0) != CLOCK_REALTIME) return Error(EOPNOTSUPP);
  return Adjust(t, a[1]);
}

// --- interval timers ---

namespace {

bool TimevalValid(const timeval& tv) {
  return tv.tv_sec >= 0 && tv.tv_usec >= 0 && tv.tv_usec < 1000000;
}
int64_t NsFromTimeval(const timeval& tv) {
  return base::SaturatingAdd(base::SaturatingMul<int64_t>(tv.tv_sec, base::kNsPerSec),
                             tv.tv_usec * 1000);
}
itimerval ToItimerval(const TimerSetting& s) {
  itimerval v{TimevalFromNs(s.interval_ns), TimevalFromNs(s.value_ns)};
  // An armed timer does not read as zero.
  if (s.value_ns > 0 && v.it_value.tv_sec == 0 && v.it_value.tv_usec == 0) v.it_value.tv_usec = 1;
  return v;
}

}  // namespace

Result<uint64_t> SysSetitimer(Task& t, const SyscallArgs& a) {
  int which = a.Int(0);
  itimerval in{};
  if (a[1] != 0) in = TRY(UserPtr<itimerval>(a[1]).CopyIn(t.memory()));
  if (which < 0 || which > 2) return Error(EINVAL);
  if (!TimevalValid(in.it_value) || !TimevalValid(in.it_interval)) return Error(EINVAL);
  TimerSetting old = t.thread_group().timers().SetItimer(
      which, {NsFromTimeval(in.it_value), NsFromTimeval(in.it_interval)});
  if (a[2] != 0) TRY(UserPtr<itimerval>(a[2]).CopyOut(t.memory(), ToItimerval(old)));
  return 0;
}

Result<uint64_t> SysGetitimer(Task& t, const SyscallArgs& a) {
  int which = a.Int(0);
  if (which < 0 || which > 2) return Error(EINVAL);
  TRY(UserPtr<itimerval>(a[1]).CopyOut(t.memory(),
                                       ToItimerval(t.thread_group().timers().GetItimer(which))));
  return 0;
}

Result<uint64_t> SysAlarm(Task& t, const SyscallArgs& a) {
  TimerSetting old = t.thread_group().timers().SetItimer(
      ITIMER_REAL, {static_cast<int64_t>(a.Uint(0)) * base::kNsPerSec, 0});
  if (old.value_ns == 0) return 0;
  // Rounded to the nearest second, but never to zero.
  int64_t seconds = (old.value_ns + base::kNsPerSec / 2) / base::kNsPerSec;
  return static_cast<uint64_t>(std::max<int64_t>(seconds, 1));
}

// --- POSIX timers ---

namespace {
struct Itimerspec {
  timespec interval, value;
};
Itimerspec ToItimerspec(const TimerSetting& s) {
  return {base::TimespecFromNs(s.interval_ns), base::TimespecFromNs(s.value_ns)};
}
}  // namespace

Result<uint64_t> SysTimerCreate(Task& t, const SyscallArgs& a) {
  // The kernel's sigevent: value, signo, notify, then the thread id.
  struct SigEvent {
    sigval value;
    int32_t signo, notify, tid, pad[11];
  };
  static_assert(sizeof(SigEvent) == 64);
  TimerSpec spec;
  spec.clock = a.Int(0);
  SigEvent event{};
  if (a[1] != 0) event = TRY(UserPtr<SigEvent>(a[1]).CopyIn(t.memory()));
  // Clocks that can be read alone, whatever is to be told.
  if (spec.clock >= CLOCK_MONOTONIC_RAW && spec.clock <= CLOCK_MONOTONIC_COARSE) {
    return Error(EOPNOTSUPP);
  }
  if (a[1] != 0) {
    spec.value = event.value;
    spec.signo = event.signo;
    spec.notify = event.notify;
    switch (event.notify) {
      case SIGEV_SIGNAL | SIGEV_THREAD_ID:
        spec.thread = t.kernel().FindTask(t.pid_namespace(), event.tid);
        if (!spec.thread || &spec.thread->thread_group() != &t.thread_group()) return Error(EINVAL);
        [[fallthrough]];
      case SIGEV_SIGNAL:
      case SIGEV_THREAD:
        if (!SigValid(event.signo)) return Error(EINVAL);
        break;
      case SIGEV_NONE:
        break;
      default:
        return Error(EINVAL);
    }
  } else {
    spec.value_is_id = true;
  }
  switch (spec.clock) {
    case CLOCK_REALTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_BOOTTIME:
    case CLOCK_TAI:
    case CLOCK_PROCESS_CPUTIME_ID:
    case CLOCK_THREAD_CPUTIME_ID:
      break;
    case CLOCK_REALTIME_ALARM:
    case CLOCK_BOOTTIME_ALARM:
      if (!t.HasCap(CAP_WAKE_ALARM)) return Error(EPERM);
      spec.clock = spec.clock == CLOCK_REALTIME_ALARM ? CLOCK_REALTIME : CLOCK_BOOTTIME;
      break;
    default: {
      if (spec.clock >= 0) return Error(EINVAL);
      // Only clocks of the caller's own process and thread.
      DynamicClock c = Decode(spec.clock);
      TRY(CpuClock(t, c));
      bool own = c.thread ? c.pid == 0 || c.pid == t.Tid() : c.pid == 0 || c.pid == t.Pid_();
      if (!own) return Error(EOPNOTSUPP);
      spec.clock = c.thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_PROCESS_CPUTIME_ID;
    }
  }
  PosixTimers& timers = t.thread_group().timers();
  int id = TRY(timers.Create(t, spec));
  base::Status written = UserPtr<int32_t>(a[2]).CopyOut(t.memory(), id);
  if (!written.ok()) {
    (void)timers.Delete(id).ok();
    return written.error();
  }
  return 0;
}

Result<uint64_t> SysTimerSettime(Task& t, const SyscallArgs& a) {
  if (a[2] == 0) return Error(EINVAL);
  Itimerspec in = TRY(UserPtr<Itimerspec>(a[2]).CopyIn(t.memory()));
  std::optional<int64_t> value = base::NsFromTimespec(in.value);
  std::optional<int64_t> interval = base::NsFromTimespec(in.interval);
  if (!value || !interval) return Error(EINVAL);
  TimerSetting old = TRY(t.thread_group().timers().SetTime(
      a.Int(0), (a.Int(1) & TIMER_ABSTIME) != 0, {*value, *interval}));
  if (a[3] != 0) TRY(UserPtr<Itimerspec>(a[3]).CopyOut(t.memory(), ToItimerspec(old)));
  return 0;
}

Result<uint64_t> SysTimerGettime(Task& t, const SyscallArgs& a) {
  TimerSetting s = TRY(t.thread_group().timers().GetTime(a.Int(0)));
  TRY(UserPtr<Itimerspec>(a[1]).CopyOut(t.memory(), ToItimerspec(s)));
  return 0;
}

Result<uint64_t> SysTimerGetoverrun(Task& t, const SyscallArgs& a) {
  return static_cast<uint64_t>(TRY(t.thread_group().timers().Overrun(a.Int(0))));
}

Result<uint64_t> SysTimerDelete(Task& t, const SyscallArgs& a) {
  TRY(t.thread_group().timers().Delete(a.Int(0)));
  return 0;
}

}  // namespace sentry
