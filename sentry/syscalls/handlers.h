// Declarations of the handlers that sentry/base/syscalls.def names: base::Result<uint64_t>
// SysName(Task&, const SyscallArgs&), one file of this folder per subject.
#pragma once

#include "sentry/kernel/task.h"
#include "sentry/syscalls/syscall.h"

namespace sentry {

// kNone in the table is a call that is not implemented.
#define SYSCALL(number, name, handler, ...) \
  base::Result<uint64_t> handler(Task& t, const SyscallArgs& args);
#include "sentry/base/syscalls.def"
#undef SYSCALL

}  // namespace sentry
