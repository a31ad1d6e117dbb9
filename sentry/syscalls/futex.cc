// futex(2) as far as it reaches the sentry: waits that the host's futex ran and a signal ended.
#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Result;

// Waits, wakes and requeues run in the guest's thread on the host's futex and come here only when
// interrupted. Anything else here is an operation that the stub does not carry out (priority
// inheritance and the long gone FUTEX_FD).
Result<uint64_t> SysFutex(Task& t, const SyscallArgs& a) {
  const platform::Trap& trap = t.context().trap();
  if (!trap.futex_interrupted) return Error(ENOSYS);
  // A wait with a timeout is made again only if no handler ran (Linux: a restart block). An
  // absolute deadline stays what it is; a relative one, which cannot be shortened in the guest's
  // memory, begins anew.
  return Error(a[3] != 0 ? base::kERESTARTNOHAND : base::kERESTARTSYS);
}

}  // namespace sentry
