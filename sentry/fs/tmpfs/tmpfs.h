// tmpfs: files in memory (Linux: mm/shmem.c). Used for /tmp, /dev/shm, /dev, upper layers and
// memfd.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

struct TmpfsOptions {
  uint64_t size = 0;    // bytes; 0: no limit
  uint64_t inodes = 0;  // 0: no limit
  mode_t mode = 01777;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string type_name = "tmpfs";
};

// Root inode of a new instance.
base::Ref<Inode> NewTmpfs(const TmpfsOptions& options);

// mount(2)'s options (size, nr_blocks, nr_inodes, mode, uid, gid and those that only tell the host
// kernel how to keep pages) on top of `options`. EINVAL.
base::Status ParseTmpfsOptions(std::string_view data, uint64_t total_memory, TmpfsOptions* options);

// The filesystem type "tmpfs" (or "ramfs", "devtmpfs" under another name). total_memory decides the
// default size: half of it.
std::unique_ptr<FilesystemType> MakeTmpfsType(uint64_t total_memory,
                                              std::string_view name = "tmpfs");

// memfd_create(2): an open file of no directory. `name` is what the caller gave, checked. `flags`
// are MFD_CLOEXEC (ignored here), MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC.
base::Result<base::Ref<FileDescription>> NewMemfd(Vfs& vfs, const Credentials& creds,
                                                  std::string_view name, uint32_t flags);

}  // namespace sentry
