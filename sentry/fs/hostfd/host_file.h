// A host descriptor donated by runsc as an open file of the guest.
#pragma once

#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class Vfs;

// Makes a description of `fd`, which it owns from then on. The access mode is the host's.
// Errors are the host's (EBADF).
base::Result<base::Ref<FileDescription>> ImportHostFile(Vfs& vfs, base::UniqueFd fd);

}  // namespace sentry
