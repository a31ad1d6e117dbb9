#pragma once

#include <cstdint>

#include "sentry/base/result.h"
#include "sentry/kernel/task.h"

namespace sentry {

// seccomp(2): `operation` SECCOMP_SET_MODE_*, SECCOMP_GET_*; for prctl(2) too.
base::Result<uint64_t> DoSeccomp(Task& t, uint32_t operation, uint64_t flags, uint64_t addr);

}  // namespace sentry
