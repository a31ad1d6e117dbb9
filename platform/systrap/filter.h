// The seccomp filter of stubs: what the host does for code of the guest.
#pragma once

#include <cstdint>
#include <vector>

namespace platform {

// The program as struct sock_filter words, for the calls of architecture.md's table "What a stub
// may ask of the host". `has_fsgsbase`: the host lets user code write FS and GS; without it
// arch_prctl is let through for them. `strict`: the stub has no socket to receive from.
std::vector<uint64_t> BuildStubFilter(bool has_fsgsbase, bool strict);

// Which calls of stubs are put to the sentry (SECCOMP_RET_USER_NOTIF): none, clone, or that and
// those about memory.
enum class Gated { kNothing, kClone, kMemory };

// The zygote's filter, which its clones inherit below their own: the calls of a stub's list by
// number and what the zygote itself needs; the rest raises SIGSYS, by which the zygote ends.
// What is not put to the sentry is left to the stub's filter.
std::vector<uint64_t> BuildZygoteFilter(bool has_fsgsbase, Gated gated);

}  // namespace platform
