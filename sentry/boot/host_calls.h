// The host calls that the sentry itself may make once it is confined. The platform adds its own
// (platform/host_calls.h).
#pragma once

namespace sentry {

// Adds them to a libseccomp filter (scmp_filter_ctx). Returns 0 or a negative errno.
int AllowSentryHostCalls(void* filter);

// Adds what sockets of the host need, with BootSpec::network "host" alone.
int AllowHostNetworkCalls(void* filter);

}  // namespace sentry
