// The one place that every system call of the guest passes.
#include <optional>

#include "sentry/base/log.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/syscall.h"
#include "sentry/trace/strace.h"

namespace sentry {

namespace {

// Counts a call that nobody implements, and names it in the log the first time.
void NoteUnknown(Kernel& kernel, int nr, const SyscallInfo* info) {
  uint64_t seen = nr >= 0 && nr < kMaxSyscall
                      ? kernel.unimplemented[nr].fetch_add(1, std::memory_order_relaxed)
                      : 1;
  if (seen == 0 && !(info && info->support == Support::kConfiguredOut)) {
    LOG_INFO("system call %d (%s) is not implemented", nr, info ? info->name : "unknown");
  }
}

}  // namespace

base::Result<uint64_t> DispatchSyscall(Task& t, int nr) {
  Kernel& kernel = t.kernel();
  const platform::Regs& r = t.regs();
  SyscallArgs args{{r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9}};
  const SyscallInfo* info = FindSyscall(nr);
  std::optional<trace::Call> traced;
  if (kernel.strace.load(std::memory_order_relaxed)) [[unlikely]]
    traced.emplace(t, nr, info, args);
  t.call_times().Begin(t.context(), nr);
  base::Result<uint64_t> result = base::Error(ENOSYS);
  if (info && info->handler) {
    result = info->handler(t, args);
  } else {
    NoteUnknown(kernel, nr, info);
  }
  t.call_times().End(t.context());
  if (traced) traced->Finish(result);
  return result;
}

}  // namespace sentry
