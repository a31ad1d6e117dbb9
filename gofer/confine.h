// What the gofer gives up before it serves. Steps in order; each returns its error and names itself
// in `*step`. For the main thread of a process without others, until InstallFilter.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gofer/server.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace gofer {

// Standard input and output become /dev/null, standard error the log; every descriptor but those of
// `config` and `errors` is closed; limits are set. No core dumps, no tracing by processes of the
// same user.
base::Status LimitProcess(GoferConfig& config, int errors, const char** step);

// Replaces each mount's descriptor by a private copy of the mount tree below it, without a parent,
// on which links are not followed, devices and set-id bits mean nothing, and which is read-only if
// the mount is. Returns a like copy of /proc/self/fd.
base::Result<base::UniqueFd> CloneMounts(GoferConfig& config, const char** step);

// The root becomes an empty read-only file system, all else is unmounted from this namespace, and
// `proc_fd` becomes the working directory.
base::Status EnterEmptyRoot(int proc_fd, const char** step);

// Bounding, ambient and inheritable sets emptied, effective and permitted ones reduced; securebits
// locked; no_new_privs.
base::Status DropCapabilities(bool rootless, const char** step);

// Descriptors that the filter knows.
struct FilterFds {
  int connection = -1;
  int proc = -1;
  int log = 2;
  bool connect = false;  // some mount allows connections to unix sockets
};
// Loads the seccomp filter in every thread of the process.
base::Status InstallFilter(const FilterFds& fds, const char** step);

// The names of the host calls that the filter lets through, for tests and documentation.
std::vector<std::string> FilterCalls(const FilterFds& fds);

}  // namespace gofer
