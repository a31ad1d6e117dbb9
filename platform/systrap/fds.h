// Sending descriptors over a Unix socket.
#pragma once

#include <cstddef>
#include <span>

#include "sentry/base/result.h"

namespace platform {

// Sends one message with descriptors, without blocking. EAGAIN if the socket is full.
base::Status SendWithFds(int socket, const void* data, size_t size, std::span<const int> fds);

}  // namespace platform
