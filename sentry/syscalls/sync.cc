// sync and its forms, readahead, fadvise, file handles (Linux: fs/sync.c, mm/fadvise.c,
// fs/fhandle.c).
#include <fcntl.h>

#include <set>

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint64_t kPage = 4096;
constexpr uint32_t kMaxHandle = 128;  // MAX_HANDLE_SZ

// struct file_handle without what the filesystem put in it.
struct HandleHead {
  uint32_t bytes;
  int32_t type;
};

Result<uint64_t> SyncFile(Task& t, int fd, bool data_only) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  TRY(file->Sync(data_only));
  return uint64_t{0};
}

}  // namespace

base::Result<uint64_t> SysFsync(Task& t, const SyscallArgs& args) {
  return SyncFile(t, args.Int(0), /*data_only=*/false);
}

base::Result<uint64_t> SysFdatasync(Task& t, const SyscallArgs& args) {
  return SyncFile(t, args.Int(0), /*data_only=*/true);
}

base::Result<uint64_t> SysSync(Task& t, const SyscallArgs&) {
  std::set<Filesystem*> done;
  for (const base::Ref<Mount>& mount : t.mount_namespace().Mounts()) {
    if (done.insert(&mount->fs()).second) (void)mount->fs().Sync();  // sync(2) tells no errors
  }
  return uint64_t{0};
}

base::Result<uint64_t> SysSyncfs(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (!file->path()) return Error(EBADF);
  TRY(file->path().mount->fs().Sync());
  return uint64_t{0};
}

base::Result<uint64_t> SysSyncFileRange(Task& t, const SyscallArgs& args) {
  constexpr uint32_t kFlags =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  int64_t end;
  if ((args.Uint(3) & ~kFlags) != 0 || args.Long(1) < 0 || args.Long(2) < 0 ||
      __builtin_add_overflow(args.Long(1), args.Long(2), &end)) {
    return Error(EINVAL);
  }
  Inode* inode = file->inode();
  if (inode == nullptr ||
      !(inode->IsReg() || inode->IsDir() || inode->IsSymlink() || S_ISBLK(inode->type()))) {
    return Error(ESPIPE);
  }
  if (args.Uint(3) != 0) TRY(file->Sync(/*data_only=*/true));
  return uint64_t{0};
}

// Pages come from the host's page cache, which reads ahead itself.
base::Result<uint64_t> SysReadahead(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (!file->readable()) return Error(EBADF);
  Inode* inode = file->inode();
  if (inode == nullptr || !(inode->IsReg() || S_ISBLK(inode->type()))) return Error(EINVAL);
  return uint64_t{0};
}

base::Result<uint64_t> SysFadvise64(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  Inode* inode = file->inode();
  if (inode != nullptr && S_ISFIFO(inode->type())) return Error(ESPIPE);
  if (args.Long(2) < 0) return Error(EINVAL);
  if (args.Uint(3) > POSIX_FADV_NOREUSE) return Error(EINVAL);
  return uint64_t{0};
}

// What of a file the host has in memory is not asked: all that it is long counts, as clean.
base::Result<uint64_t> SysCachestat(Task& t, const SyscallArgs& args) {
  struct Range {
    uint64_t offset, length;
  };
  struct Stat {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  };
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  const Range range = TRY(base::UserPtr<Range>(args[1]).CopyIn(t.memory()));
  if (args.Uint(3) != 0) return Error(EINVAL);
  Stat stat{};
  if (const Inode* inode = file->inode(); inode != nullptr && inode->IsReg()) {
    const uint64_t pages = (TRY(file->GetAttr()).size + kPage - 1) / kPage;
    const uint64_t first = range.offset / kPage;
    const uint64_t last =
        range.length == 0 ? UINT64_MAX : (range.offset + range.length - 1) / kPage;
    if (first < pages && first <= last) stat.cached = std::min(last, pages - 1) - first + 1;
  }
  TRY(base::UserPtr<Stat>(args[2]).CopyOut(t.memory(), stat));
  return uint64_t{0};
}

// No filesystem opens files by a handle; what a file is, a handle tells (AT_HANDLE_FID;
// exportfs_encode_ino64_fid).
base::Result<uint64_t> SysNameToHandleAt(Task& t, const SyscallArgs& args) {
  constexpr int kUniqueId = 1, kConnectable = 2, kFid = 0x200;  // AT_HANDLE_*
  constexpr int kInodeAndGeneration = 0x81;                     // FILEID_INO64_GEN
  struct Fid {
    uint64_t ino;
    uint32_t generation;
  } __attribute__((packed));
  const int flags = args.Int(4);
  if ((flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH | kUniqueId | kConnectable | kFid)) != 0 ||
      ((flags & kConnectable) != 0 && (flags & kFid) != 0)) {
    return Error(EINVAL);
  }
  const Path path = TRY(WalkArg(t, args.Int(0), args[1],
                                {.follow_last = (flags & AT_SYMLINK_FOLLOW) != 0,
                                 .allow_empty = (flags & AT_EMPTY_PATH) != 0}));
  if ((flags & kFid) == 0) return Error(EOPNOTSUPP);
  HandleHead head = TRY(base::UserPtr<HandleHead>(args[2]).CopyIn(t.memory()));
  if (head.bytes > kMaxHandle) return Error(EINVAL);
  const bool fits = head.bytes >= sizeof(Fid);
  head = {sizeof(Fid), fits ? kInodeAndGeneration : 0xff};
  if ((flags & kUniqueId) != 0) {
    TRY(base::UserPtr<uint64_t>(args[3]).CopyOut(t.memory(), path.mount->unique_id()));
  } else {
    TRY(base::UserPtr<int>(args[3]).CopyOut(t.memory(), path.mount->id()));
  }
  TRY(base::UserPtr<HandleHead>(args[2]).CopyOut(t.memory(), head));
  if (!fits) return Error(EOVERFLOW);
  const Fid fid{path.dentry->inode_ptr()->ino(), 0};
  TRY(base::UserPtr<Fid>(args[2] + sizeof(head)).CopyOut(t.memory(), fid));
  return uint64_t{0};
}

// No handle was ever given out that opens a file.
base::Result<uint64_t> SysOpenByHandleAt(Task& t, const SyscallArgs& args) {
  if (!t.HasCap(CAP_DAC_READ_SEARCH)) return Error(EPERM);
  const HandleHead head = TRY(base::UserPtr<HandleHead>(args[1]).CopyIn(t.memory()));
  if (head.bytes == 0 || head.bytes > kMaxHandle) return Error(EINVAL);
  if (args.Int(0) != AT_FDCWD) TRY(GetOpenFile(t, args.Int(0)));
  return Error(ESTALE);
}

}  // namespace sentry
