// The seccomp filter of stubs: what the host does for code of the guest.
#pragma once

#include <cstdint>
#include <vector>

namespace platform {

// The program as struct sock_filter words, for the calls of architecture.md's table "What a stub
// may ask of the host". `has_fsgsbase`: the host lets user code write FS and GS; without it
// arch_prctl is let through for them.
std::vector<uint64_t> BuildStubFilter(bool has_fsgsbase);

// The zygote's filter: a stub's clone is put to the sentry (SECCOMP_RET_USER_NOTIF), all else is
// left to the stub's own filter.
std::vector<uint64_t> BuildCloneGate();

}  // namespace platform
