// Plain types of the VFS.
#pragma once

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "sentry/base/file_source.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace sentry {

class Credentials;
class Dentry;
class FileDescription;
class Filesystem;
class Inode;
class Mount;
class MountNamespace;

// Attributes of an inode, as statx(2) reports them. Ids are kernel ids.
struct InodeAttr {
  uint64_t ino = 0;
  dev_t dev = 0;    // of the filesystem
  mode_t mode = 0;  // type and permissions
  uint32_t nlink = 1;
  uid_t uid = 0;
  gid_t gid = 0;
  dev_t rdev = 0;
  uint64_t size = 0;
  uint64_t blocks = 0;  // of 512 bytes
  uint32_t blksize = 4096;
  timespec atime{}, mtime{}, ctime{}, btime{};
};

class UserNamespace;
// As stat(2) shows them in `ns`.
struct stat ToStat(const UserNamespace& ns, const InodeAttr& attr);

// What SetAttr changes; unset fields stay (Linux: struct iattr).
struct AttrChange {
  bool set_mode = false, set_uid = false, set_gid = false, set_size = false;
  bool set_atime = false, set_mtime = false;
  bool atime_now = false, mtime_now = false;  // with set_atime / set_mtime: use the current time
  mode_t mode = 0;                            // permission bits
  uid_t uid = 0;
  gid_t gid = 0;
  uint64_t size = 0;
  timespec atime{}, mtime{};
};

// Bits of permission requests, as access(2).
inline constexpr int kMayExec = 1, kMayWrite = 2, kMayRead = 4;

// Where bytes of a read go: guest memory (gathered over an iovec), or sentry memory.
class IoDest {
 public:
  virtual ~IoDest() = default;
  // Bytes that still fit.
  virtual size_t remaining() const = 0;
  // Copies `src` to the next bytes; returns how many were taken (fewer at a fault or at the end),
  // EFAULT if none could be at a fault.
  virtual base::Result<size_t> Put(std::span<const std::byte> src) = 0;
  // Fills the next `n` bytes with zeros; as Put.
  virtual base::Result<size_t> PutZeros(size_t n);
  // The next `n` bytes at most are those of a file at `offset`, which has them: returns how many
  // are taken care of, 0 if they are to be Put.
  virtual size_t PutFile(const base::Ref<base::FileSource>& /*source*/, uint64_t /*offset*/,
                         size_t /*n*/) {
    return 0;
  }
};

// Where bytes of a write come from. Each byte is read once.
class IoSource {
 public:
  virtual ~IoSource() = default;
  virtual size_t remaining() const = 0;
  // Copies the next bytes into `dst`; as IoDest::Put.
  virtual base::Result<size_t> Get(std::span<std::byte> dst) = 0;
};

// Sentry memory as source or destination.
class BufferDest : public IoDest {
 public:
  explicit BufferDest(std::span<std::byte> buffer) : left_(buffer) {}
  size_t remaining() const override { return left_.size(); }
  base::Result<size_t> Put(std::span<const std::byte> src) override;

 private:
  std::span<std::byte> left_;
};
class BufferSource : public IoSource {
 public:
  explicit BufferSource(std::span<const std::byte> buffer) : left_(buffer) {}
  size_t remaining() const override { return left_.size(); }
  base::Result<size_t> Get(std::span<std::byte> dst) override;

 private:
  std::span<const std::byte> left_;
};

// A place in the tree of a mount namespace.
struct Path {
  base::Ref<Mount> mount;
  base::Ref<Dentry> dentry;
  explicit operator bool() const { return static_cast<bool>(dentry); }
  friend bool operator==(const Path& a, const Path& b) {
    return a.mount == b.mount && a.dentry == b.dentry;
  }
};

inline constexpr size_t kNameMax = 255;
inline constexpr size_t kPathMax = 4096;  // including the NUL
inline constexpr int kMaxSymlinks = 40;   // Linux: MAXSYMLINKS
inline constexpr uint64_t kMaxFileSize = std::numeric_limits<int64_t>::max();

}  // namespace sentry
