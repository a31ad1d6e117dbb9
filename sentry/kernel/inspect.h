// Who may look into another process.
#pragma once

#include "sentry/base/result.h"

namespace sentry {

class Task;

// Linux: ptrace_may_access with PTRACE_MODE_ATTACH_REALCREDS (ESRCH and EPERM).
base::Status MayInspect(Task& t, Task& target);

}  // namespace sentry
