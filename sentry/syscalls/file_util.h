// What the handlers of file calls share. Internal to sentry/syscalls.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/notify.h"
#include "sentry/vfs/vfs.h"

namespace sentry {

inline Vfs& VfsOf(Task& t) { return t.kernel().vfs(); }

// The file behind a descriptor, for calls that work on an open file: EBADF for O_PATH too
// (Linux: fdget; Task::GetFile is fdget_raw).
inline base::Result<base::Ref<FileDescription>> GetOpenFile(Task& t, int fd) {
  base::Ref<FileDescription> file = t.FileOf(fd);
  if (!file || file->is_path()) return base::Error(EBADF);
  return file;
}

// Walks a path argument that the caller copied in.
inline base::Result<Path> WalkFrom(Task& t, int dirfd, std::string_view path, WalkFlags flags,
                                   const Credentials* creds = nullptr) {
  const WalkContext ctx = TRY(t.Walk(dirfd, path, creds));
  return VfsOf(t).Walk(ctx, path, flags);
}

// The same, from the guest's pointer.
inline base::Result<Path> WalkArg(Task& t, int dirfd, uint64_t path_addr, WalkFlags flags,
                                  const Credentials* creds = nullptr) {
  const std::string path = TRY(t.CopyInPath(path_addr));
  return WalkFrom(t, dirfd, path, flags, creds);
}

// A path argument that names an object by AT_* `flags`, of which AT_SYMLINK_NOFOLLOW and
// AT_EMPTY_PATH are looked at.
inline WalkFlags AtFlags(int flags) {
  return {.follow_last = (flags & AT_SYMLINK_NOFOLLOW) == 0,
          .allow_empty = (flags & AT_EMPTY_PATH) != 0};
}

// One guest buffer as destination or source; both arguments must outlive it. `mm`: what the memory
// belongs to.
class UserBufferDest : public IoDest {
 public:
  UserBufferDest(base::UserMemory& memory, MemoryManager& mm, uint64_t addr, uint64_t length)
      : memory_(memory), mm_(mm), addr_(addr), left_(length) {}
  size_t remaining() const override { return left_; }
  base::Result<size_t> Put(std::span<const std::byte> src) override {
    src = src.first(std::min(src.size(), left_));
    if (src.empty()) return size_t{0};
    const size_t n = TRY(memory_.WritePartial(addr_, src));
    addr_ += n;
    left_ -= n;
    return n;
  }
  size_t PutFile(const base::Ref<base::FileSource>& source, uint64_t offset, size_t n) override {
    n = std::min(n, left_);
    if (n == 0 || !mm_.IsWritableAnonymous(addr_, n)) return 0;
    n = memory_.WriteFromFile(addr_, source, offset, n);
    addr_ += n;
    left_ -= n;
    return n;
  }

 private:
  base::UserMemory& memory_;
  MemoryManager& mm_;
  uint64_t addr_;
  size_t left_;
};

class UserBufferSource : public IoSource {
 public:
  UserBufferSource(base::UserMemory& memory, uint64_t addr, uint64_t length)
      : memory_(memory), addr_(addr), left_(length) {}
  size_t remaining() const override { return left_; }
  base::Result<size_t> Get(std::span<std::byte> dst) override {
    dst = dst.first(std::min(dst.size(), left_));
    if (dst.empty()) return size_t{0};
    const size_t n = TRY(memory_.ReadPartial(addr_, dst));
    addr_ += n;
    left_ -= n;
    return n;
  }

 private:
  base::UserMemory& memory_;
  uint64_t addr_;
  size_t left_;
};

// The first `limit` bytes of another source.
class LimitedSource : public IoSource {
 public:
  LimitedSource(IoSource& source, uint64_t limit) : source_(source), left_(limit) {}
  size_t remaining() const override { return std::min<uint64_t>(left_, source_.remaining()); }
  base::Result<size_t> Get(std::span<std::byte> dst) override {
    const size_t n = TRY(source_.Get(dst.first(std::min<uint64_t>(dst.size(), left_))));
    left_ -= n;
    return n;
  }

 private:
  IoSource& source_;
  uint64_t left_;
};

// Where a write goes.
struct WritePosition {
  bool at_offset = false;  // else at the file position
  uint64_t offset = 0;
  bool append = false;                   // RWF_APPEND
  bool nonblock = false;                 // RWF_NOWAIT
  bool sync = false, data_sync = false;  // RWF_SYNC, RWF_DSYNC
};

// A write to an open file with all that Linux does around it: RLIMIT_FSIZE with SIGXFSZ, removal of
// set-id bits, O_SYNC, inotify. The caller has checked that the file is writable.
base::Result<size_t> WriteFileChecked(Task& t, FileDescription& file, IoSource& src,
                                      const WritePosition& at);
// Bytes that may still be written at `offset` under RLIMIT_FSIZE; EFBIG with SIGXFSZ if none.
base::Result<uint64_t> CheckFileSizeLimit(Task& t, uint64_t offset, uint64_t length);

}  // namespace sentry
