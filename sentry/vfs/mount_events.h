// Who polls /proc/PID/mounts (Linux: mnt_namespace.poll).
#pragma once

#include "sentry/fiber/wait_queue.h"

namespace sentry {

// Of all namespaces: woken with EPOLLERR and EPOLLPRI when MountNamespace::version() of one of them
// has changed.
fiber::WaitQueue& MountEvents();
// Wakes them.
void TellMountChange();

}  // namespace sentry
