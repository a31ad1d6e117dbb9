// Flags of files and directories in tmpfs: chattr(1) (Linux: shmem_fileattr_get and _set).
#pragma once

#include <cstdint>

#include "sentry/base/result.h"
#include "sentry/vfs/inode.h"

namespace sentry {

// FS_*_FL of linux/fs.h, which does not go together with sys/mount.h.
inline constexpr uint32_t kFileImmutable = 0x10, kFileAppend = 0x20, kFileNoDump = 0x40;
inline constexpr uint32_t kFileNoAtime = 0x80;
// What can be set, and what a new object has from its directory.
inline constexpr uint32_t kFileFlags = kFileImmutable | kFileAppend | kFileNoDump | kFileNoAtime;
inline constexpr uint32_t kInheritedFileFlags = kFileNoDump | kFileNoAtime;

// FS_*_FL. ENOTTY: it is not in tmpfs, or neither a file nor a directory.
base::Result<uint32_t> FileFlagsOf(Inode& inode);
// The caller has checked who may do it. EOPNOTSUPP for flags that cannot be set.
base::Status SetFileFlags(Inode& inode, uint32_t flags);

}  // namespace sentry
