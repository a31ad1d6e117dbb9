// What the sentry opens of the host's network before it is confined.
#pragma once

#include <string>

#include "sentry/boot/sandbox.h"

namespace sentry {

// In the network namespace of this process. False: *why is one line.
bool OpenHostNetwork(NetworkFds* fds, std::string* why);

}  // namespace sentry
