// The table of system calls: what dispatch, strace and the documentation share. Made from
// sentry/base/syscalls.def.
#pragma once

#include <cstdint>
#include <span>

#include "sentry/base/result.h"
#include "sentry/kernel/syscall_info.h"

namespace sentry {

// One past the highest number in the table.
int SyscallTableSize();
// Null for a number that no Linux of the table's age has.
const SyscallInfo* FindSyscall(int number);
// In order of numbers, gaps left out.
std::span<const SyscallInfo> AllSyscalls();

// Looks up and runs call `nr` with the arguments in t's registers; counts and traces it. Kernel's
// dispatch function.
base::Result<uint64_t> DispatchSyscall(Task& t, int nr);

}  // namespace sentry
