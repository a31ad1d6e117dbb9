// eventfd, signalfd, timerfd.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>

#include <limits>

#include "sentry/fs/eventfd/eventfd.h"
#include "sentry/fs/signalfd/signalfd.h"
#include "sentry/fs/timerfd/timerfd.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

Result<uint64_t> MakeEventfd(Task& t, uint32_t count, uint32_t flags) {
  if (flags & ~static_cast<uint32_t>(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)) {
    return Error(EINVAL);
  }
  auto file = base::MakeRef<EventFile>(t.kernel().vfs(), count, flags);
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & EFD_CLOEXEC) != 0)));
}

Result<uint64_t> MakeSignalfd(Task& t, int fd, uint64_t mask_addr, uint64_t size, uint32_t flags) {
  if (size != sizeof(SigSet)) return Error(EINVAL);
  SigSet mask = TRY(UserPtr<SigSet>(mask_addr).CopyIn(t.memory()));
  if (flags & ~static_cast<uint32_t>(SFD_CLOEXEC | SFD_NONBLOCK)) return Error(EINVAL);
  if (fd == -1) {
    auto file = base::MakeRef<SignalFile>(t.kernel().vfs(), mask, flags);
    return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & SFD_CLOEXEC) != 0)));
  }
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  SignalFile* signal_file = SignalFile::From(*file);
  if (signal_file == nullptr) return Error(EINVAL);
  signal_file->SetMask(mask);
  return static_cast<uint64_t>(fd);
}

constexpr int64_t kSecond = 1'000'000'000;

// Saturates: Linux's ktime does as well. EINVAL for what is no time.
Result<int64_t> ToNs(const timespec& ts) {
  if (ts.tv_sec < 0 || ts.tv_nsec < 0 || ts.tv_nsec >= kSecond) return Error(EINVAL);
  if (ts.tv_sec >= std::numeric_limits<int64_t>::max() / kSecond) {
    return std::numeric_limits<int64_t>::max();
  }
  return ts.tv_sec * kSecond + ts.tv_nsec;
}

timespec ToTimespec(int64_t ns) { return {ns / kSecond, ns % kSecond}; }

itimerspec ToItimerspec(const TimerSpec& spec) {
  return {ToTimespec(spec.interval_ns), ToTimespec(spec.value_ns)};
}

Result<base::Ref<FileDescription>> GetTimer(Task& t, int fd) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (TimerFile::From(*file) == nullptr) return Error(EINVAL);
  return file;
}

}  // namespace

Result<uint64_t> SysEventfd(Task& t, const SyscallArgs& a) { return MakeEventfd(t, a.Uint(0), 0); }
Result<uint64_t> SysEventfd2(Task& t, const SyscallArgs& a) {
  return MakeEventfd(t, a.Uint(0), a.Uint(1));
}

Result<uint64_t> SysSignalfd(Task& t, const SyscallArgs& a) {
  return MakeSignalfd(t, a.Int(0), a[1], a[2], 0);
}
Result<uint64_t> SysSignalfd4(Task& t, const SyscallArgs& a) {
  return MakeSignalfd(t, a.Int(0), a[1], a[2], a.Uint(3));
}

Result<uint64_t> SysTimerfdCreate(Task& t, const SyscallArgs& a) {
  int clock = a.Int(0);
  uint32_t flags = a.Uint(1);
  if (flags & ~static_cast<uint32_t>(TFD_CLOEXEC | TFD_NONBLOCK)) return Error(EINVAL);
  bool alarm = clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM;
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME && !alarm) {
    return Error(EINVAL);
  }
  if (alarm && !t.HasCap(CAP_WAKE_ALARM)) return Error(EPERM);
  auto file = base::MakeRef<TimerFile>(t.kernel().vfs(), clock, flags);
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & TFD_CLOEXEC) != 0)));
}

Result<uint64_t> SysTimerfdSettime(Task& t, const SyscallArgs& a) {
  int flags = a.Int(1);
  itimerspec in = TRY(UserPtr<itimerspec>(a[2]).CopyIn(t.memory()));
  if (flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET)) return Error(EINVAL);
  TimerSpec spec;
  spec.value_ns = TRY(ToNs(in.it_value));
  spec.interval_ns = TRY(ToNs(in.it_interval));
  base::Ref<FileDescription> file = TRY(GetTimer(t, a.Int(0)));
  TimerSpec old = TimerFile::From(*file)->Set(flags, spec);
  if (a[3] != 0) TRY(UserPtr<itimerspec>(a[3]).CopyOut(t.memory(), ToItimerspec(old)));
  return uint64_t{0};
}

Result<uint64_t> SysTimerfdGettime(Task& t, const SyscallArgs& a) {
  base::Ref<FileDescription> file = TRY(GetTimer(t, a.Int(0)));
  TRY(UserPtr<itimerspec>(a[1]).CopyOut(t.memory(), ToItimerspec(TimerFile::From(*file)->Get())));
  return uint64_t{0};
}

}  // namespace sentry
