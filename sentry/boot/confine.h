// The steps by which the sentry gives up what it does not need. Each returns false with one line in
// `why` that names the step and the host's error.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "sentry/base/result.h"

namespace sentry {

// Checks that the launcher gave this process namespaces of its own: it is process 1 of its PID
// namespace. Makes all mounts private and, where the host allows it, mounts a /proc of that PID
// namespace (for the platform; it goes with the old root).
bool PrepareMounts(std::string* why);

// Makes the directory for memory files (base::SetMemoryDirectory): a tmpfs that is mounted nowhere.
bool OpenMemoryDirectory(std::string* why);

// Replaces the root by an empty read-only one; the processes of this mount namespace follow.
bool EnterEmptyRoot(std::string* why);

// No core files, all descriptors that the hard limit allows, a bound on host threads and processes.
bool LimitResources(std::string* why);

// Closes all descriptors from `first` up.
bool CloseFrom(int first, std::string* why);

// Gives up every capability, in all five sets and for good, sets no_new_privs, and makes the
// process undumpable.
bool DropCapabilities(std::string* why);

// What else to allow: called with the scmp_filter_ctx; a negative errno fails the step.
using FilterContribution = std::function<int(void* filter)>;

// Loads the filter made of host_calls.h and `contribution`, for all threads. With `diagnose` a
// refused call is named on standard error before the process dies.
bool InstallFilter(const FilterContribution& contribution, bool diagnose, std::string* why);

}  // namespace sentry
