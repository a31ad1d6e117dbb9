// The registers of a stopped tracee as ptrace(2) shows them on amd64 (Linux:
// arch/x86/kernel/ptrace.c, arch/x86/kernel/fpu/regset.c).
#pragma once

#include <cstdint>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/kernel/ptrace/ptrace.h"

namespace sentry {

// A word of struct user at `offset`; EIO.
base::Result<uint64_t> PeekUser(const StoppedTracee& tracee, uint64_t offset);
base::Status PokeUser(StoppedTracee& tracee, uint64_t offset, uint64_t value);

// One of the register sets: NT_PRSTATUS, NT_PRFPREG, NT_X86_XSTATE. EINVAL for another.
base::Result<std::vector<std::byte>> GetRegset(const StoppedTracee& tracee, uint64_t type);
// Sets the first bytes of one. As Linux: EINVAL for another, or for part of a register; EIO for
// what no register can hold; EFAULT for part of the extended state.
base::Status SetRegset(StoppedTracee& tracee, uint64_t type, std::vector<std::byte> bytes);

}  // namespace sentry
