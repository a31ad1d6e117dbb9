// stat and its forms, access, readlink, statfs (Linux: fs/stat.c, fs/open.c, fs/statfs.c).
#include <linux/magic.h>
#include <linux/stat.h>
#include <sys/stat.h>

#include <cstring>

#include "sentry/fs/tmpfs/tmpfs_flags.h"
#include "sentry/syscalls/file_util.h"

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

Result<uint64_t> CopyOutStat(Task& t, uint64_t addr, const InodeAttr& attr) {
  TRY(UserPtr<struct stat>(addr).CopyOut(t.memory(), ToStat(t.user_ns(), attr)));
  return uint64_t{0};
}

// The walk of a path argument of a call that the platform may answer by itself, the next time.
Result<Path> LookUp(Task& t, int dirfd, uint64_t path_addr, WalkFlags flags,
                    const Credentials* creds = nullptr) {
  const std::string path = TRY(t.CopyInPath(path_addr));
  auto found = WalkFrom(t, dirfd, path, flags, creds);
  t.ConsiderPath(dirfd, path, flags.follow_last);
  return found;
}

Result<uint64_t> StatPath(Task& t, int dirfd, uint64_t path, uint64_t out, WalkFlags flags) {
  const Path found = TRY(LookUp(t, dirfd, path, flags));
  return CopyOutStat(t, out, TRY(VfsOf(t).GetAttr(found)));
}

Result<uint64_t> StatFd(Task& t, int fd, uint64_t out) {
  base::Ref<FileDescription> file = TRY(t.GetFile(fd));
  const InodeAttr attr = TRY(file->GetAttr());
  t.ConsiderFile(fd, *file);
  return CopyOutStat(t, out, attr);
}

// For AT_EMPTY_PATH: true if the path is the empty string, or NULL as Linux 6.11 allows.
Result<bool> IsEmptyPath(Task& t, uint64_t addr) {
  if (addr == 0) return true;
  char first;
  TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(&first, 1))));
  return first == '\0';
}

statx_timestamp ToStatx(const timespec& ts) {
  statx_timestamp out = {};
  out.tv_sec = ts.tv_sec;
  out.tv_nsec = static_cast<uint32_t>(ts.tv_nsec);
  return out;
}

Result<uint64_t> CopyOutStatx(Task& t, uint64_t addr, const InodeAttr& attr, const Path& path,
                              uint32_t mask) {
  struct statx st;
  memset(&st, 0, sizeof(st));
  st.stx_mask = STATX_BASIC_STATS;
  st.stx_blksize = attr.blksize;
  st.stx_nlink = attr.nlink;
  st.stx_uid = t.user_ns().MapUidOut(attr.uid);
  st.stx_gid = t.user_ns().MapGidOut(attr.gid);
  st.stx_mode = static_cast<uint16_t>(attr.mode);
  st.stx_ino = attr.ino;
  st.stx_size = attr.size;
  st.stx_blocks = attr.blocks;
  st.stx_atime = ToStatx(attr.atime);
  st.stx_ctime = ToStatx(attr.ctime);
  st.stx_mtime = ToStatx(attr.mtime);
  if (attr.btime.tv_sec != 0) {
    st.stx_btime = ToStatx(attr.btime);
    st.stx_mask |= STATX_BTIME;
  }
  st.stx_rdev_major = major(attr.rdev);
  st.stx_rdev_minor = minor(attr.rdev);
  st.stx_dev_major = major(attr.dev);
  st.stx_dev_minor = minor(attr.dev);
  if (path.mount) {
    const bool unique = (mask & STATX_MNT_ID_UNIQUE) != 0;
    st.stx_mnt_id = unique ? path.mount->unique_id() : static_cast<uint64_t>(path.mount->id());
    st.stx_mask |= unique ? STATX_MNT_ID_UNIQUE : STATX_MNT_ID;
    st.stx_attributes_mask |= STATX_ATTR_MOUNT_ROOT;
    if (path.dentry == path.mount->root()) st.stx_attributes |= STATX_ATTR_MOUNT_ROOT;
  }
  Inode* inode = path.dentry ? path.dentry->inode_ptr() : nullptr;
  if (inode != nullptr && inode->fs().magic() == TMPFS_MAGIC) {
    // Of what has none: no flags, but they are known.
    const uint32_t flags = FileFlagsOf(*inode).value_or(0);
    static_assert(kFileImmutable == STATX_ATTR_IMMUTABLE && kFileAppend == STATX_ATTR_APPEND &&
                  kFileNoDump == STATX_ATTR_NODUMP);
    constexpr uint32_t kTold = kFileImmutable | kFileAppend | kFileNoDump;
    st.stx_attributes_mask |= kTold;
    st.stx_attributes |= flags & kTold;
  }
  TRY(t.memory().Write(addr, std::as_bytes(std::span(&st, 1))));
  return uint64_t{0};
}

Result<uint64_t> DoAccess(Task& t, int dirfd, uint64_t path, int mode, int flags) {
  if ((mode & ~7) != 0) return Error(EINVAL);
  if ((flags & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  base::Ref<Credentials> real;
  if ((flags & AT_EACCESS) == 0) real = t.creds().RealIds();
  const Credentials& creds = real ? *real : t.creds();
  const Path found = TRY(LookUp(t, dirfd, path, AtFlags(flags), &creds));
  TRY(VfsOf(t).Access(creds, found, mode));
  return uint64_t{0};
}

Result<uint64_t> DoReadlink(Task& t, int dirfd, uint64_t path_addr, uint64_t out, int size) {
  if (size <= 0) return Error(EINVAL);
  const std::string path = TRY(t.CopyInPath(path_addr));
  auto walked = WalkFrom(t, dirfd, path, {.follow_last = false, .allow_empty = true});
  t.ConsiderPath(dirfd, path, /*follows=*/false);
  const Path found = TRY(std::move(walked));
  if (path.empty() && !found.dentry->inode_ptr()->IsSymlink()) return Error(ENOENT);
  const std::string target = TRY(VfsOf(t).ReadLink(t.creds(), found));
  const size_t n = std::min(target.size(), static_cast<size_t>(size));
  TRY(t.memory().Write(out, std::as_bytes(std::span(target.data(), n))));
  return n;
}

Result<uint64_t> CopyOutStatfs(Task& t, uint64_t addr, const Path& path) {
  TRY(UserPtr<struct statfs>(addr).CopyOut(t.memory(), TRY(VfsOf(t).StatFs(path))));
  return uint64_t{0};
}

}  // namespace

base::Result<uint64_t> SysStat(Task& t, const SyscallArgs& args) {
  return StatPath(t, AT_FDCWD, args[0], args[1], {});
}

base::Result<uint64_t> SysLstat(Task& t, const SyscallArgs& args) {
  return StatPath(t, AT_FDCWD, args[0], args[1], {.follow_last = false});
}

base::Result<uint64_t> SysFstat(Task& t, const SyscallArgs& args) {
  return StatFd(t, args.Int(0), args[1]);
}

base::Result<uint64_t> SysNewfstatat(Task& t, const SyscallArgs& args) {
  const int flags = args.Int(3);
  if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  if ((flags & AT_EMPTY_PATH) != 0 && args.Int(0) >= 0 && TRY(IsEmptyPath(t, args[1]))) {
    return StatFd(t, args.Int(0), args[2]);
  }
  return StatPath(t, args.Int(0), args[1], args[2], AtFlags(flags));
}

base::Result<uint64_t> SysStatx(Task& t, const SyscallArgs& args) {
  const int flags = args.Int(2);
  constexpr int kValid = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE;
  if ((args.Uint(3) & STATX__RESERVED) != 0) return Error(EINVAL);
  if ((flags & ~kValid) != 0 || (flags & AT_STATX_SYNC_TYPE) == AT_STATX_SYNC_TYPE) {
    return Error(EINVAL);
  }
  if ((flags & AT_EMPTY_PATH) != 0 && args.Int(0) >= 0 && TRY(IsEmptyPath(t, args[1]))) {
    base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
    const InodeAttr attr = TRY(file->GetAttr());
    t.ConsiderFile(args.Int(0), *file);
    return CopyOutStatx(t, args[4], attr, file->path(), args.Uint(3));
  }
  const Path found = TRY(LookUp(t, args.Int(0), args[1], AtFlags(flags)));
  return CopyOutStatx(t, args[4], TRY(VfsOf(t).GetAttr(found)), found, args.Uint(3));
}

base::Result<uint64_t> SysAccess(Task& t, const SyscallArgs& args) {
  return DoAccess(t, AT_FDCWD, args[0], args.Int(1), 0);
}

base::Result<uint64_t> SysFaccessat(Task& t, const SyscallArgs& args) {
  return DoAccess(t, args.Int(0), args[1], args.Int(2), 0);
}

base::Result<uint64_t> SysFaccessat2(Task& t, const SyscallArgs& args) {
  return DoAccess(t, args.Int(0), args[1], args.Int(2), args.Int(3));
}

base::Result<uint64_t> SysReadlink(Task& t, const SyscallArgs& args) {
  return DoReadlink(t, AT_FDCWD, args[0], args[1], args.Int(2));
}

base::Result<uint64_t> SysReadlinkat(Task& t, const SyscallArgs& args) {
  return DoReadlink(t, args.Int(0), args[1], args[2], args.Int(3));
}

base::Result<uint64_t> SysStatfs(Task& t, const SyscallArgs& args) {
  return CopyOutStatfs(t, args[1], TRY(WalkArg(t, AT_FDCWD, args[0], {})));
}

base::Result<uint64_t> SysFstatfs(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  if (!file->path()) return Error(EBADF);
  return CopyOutStatfs(t, args[1], file->path());
}

base::Result<uint64_t> SysUstat(Task& t, const SyscallArgs& args) {
  struct Ustat {
    int32_t free_blocks;
    uint64_t free_inodes;
    char name[6], pack[6];
  };
  const dev_t dev = args.Uint(0);
  for (const base::Ref<Mount>& mount : t.mount_namespace().Mounts()) {
    if (mount->fs().dev() != dev) continue;
    const struct statfs fs = TRY(VfsOf(t).StatFs(Path{mount, mount->root()}));
    Ustat out;
    memset(&out, 0, sizeof(out));
    out.free_blocks = static_cast<int32_t>(fs.f_bfree);
    out.free_inodes = fs.f_ffree;
    TRY(t.memory().Write(args[1], std::as_bytes(std::span(&out, 1))));
    return uint64_t{0};
  }
  return Error(EINVAL);
}

}  // namespace sentry
