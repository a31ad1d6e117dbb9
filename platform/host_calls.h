// The host calls that the platform makes after the sentry confined itself, beyond those that any
// part of the sentry makes (sentry/boot/host_calls.cc).
#pragma once

namespace platform {

// Adds them to a libseccomp filter (scmp_filter_ctx). Returns 0 or a negative errno.
int AllowHostCalls(void* filter);

}  // namespace platform
