// How user and group ids of a sandbox process map to the host's.
#pragma once

#include <sys/types.h>

#include "absl/status/status.h"

namespace runsc {

enum class IdMapKind {
  kUnprivileged,  // id 0 inside is the host's nobody: the sentry
  kIdentity,      // every id is itself: the gofer, which changes owners of files
};

// True if this process may map any id (it has CAP_SETUID in its user namespace). Otherwise every
// kind maps 0 inside to the caller's own id.
bool CanMapIds();
// Writes the maps of a child that has a new user namespace and waits.
absl::Status WriteIdMaps(pid_t child, IdMapKind kind);

}  // namespace runsc
