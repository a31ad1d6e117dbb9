// Flags of files, by ioctl and by file_getattr and file_setattr (Linux: fs/file_attr.c).
#pragma once

#include "sentry/syscalls/file_util.h"

namespace sentry {

// FS_IOC_GETFLAGS, SETFLAGS, FSGETXATTR and FSSETXATTR. False: it is another one, or the file has
// none.
base::Result<bool> FileFlagsIoctl(Task& t, FileDescription& file, uint32_t cmd, uint64_t arg);

}  // namespace sentry
