// The host calls that the sentry side of the platform makes after start-up.
#pragma once

namespace platform {

// Adds the rules, with checked arguments, to the caller's filter (a scmp_filter_ctx whose default
// is to refuse). Returns 0, or the negative errno of libseccomp.
int AllowHostCalls(void* filter);

}  // namespace platform
