// The host calls that the sentry side of the platform makes after start-up.
#pragma once

namespace platform {

// Adds the rules, with checked arguments, to the caller's filter (a scmp_filter_ctx whose default
// is to refuse): of the systrap platform, and with `traced` of the ptrace platform, which makes
// some more. Returns 0, or the negative errno of libseccomp.
int AllowHostCalls(void* filter, bool traced);

}  // namespace platform
