// fcntl(F_NOTIFY): signals about what happens in a directory (Linux: fs/notify/dnotify).
#pragma once

#include <cstdint>

#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// `mask`: DN_*; for descriptor `fd` of `table`, which is `file`. Without events ends what that
// table has asked for. ENOTDIR. The caller has seen to the file's owner.
base::Status WatchDirectory(const void* table, int fd, FileDescription& file, uint32_t mask);

}  // namespace sentry
