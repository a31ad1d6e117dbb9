// futex(2) as far as it reaches the sentry: waits that the host's futex ran and a signal ended.
#include <linux/futex.h>

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
  int command = a.Int(1) & FUTEX_CMD_MASK;
  // Without a handler the call is made again: absolute deadlines stay what they are. A relative
  // one cannot be shortened in the guest's memory, so only a handler ends such a wait early.
  if (command == FUTEX_WAIT && trap.remaining_ns >= 0) return Error(base::kERESTARTNOHAND);
  return Error(base::kERESTARTSYS);
}

}  // namespace sentry
