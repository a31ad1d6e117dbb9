// ioctl(2) of a pidfd.
#pragma once

#include <cstdint>

#include "sentry/base/result.h"

namespace sentry {

class Pid;
class Task;

// Linux: pidfd_ioctl. ENOTTY, ESRCH, EPERM.
base::Result<uint64_t> PidFdIoctl(Task& t, Pid& pid, uint32_t cmd, uint64_t arg);

}  // namespace sentry
