#include "sentry/syscalls/file_attr.h"

#include <linux/fs.h>

#include "sentry/fs/tmpfs/tmpfs_flags.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

constexpr uint64_t kPageSize = 4096;
static_assert(FS_IMMUTABLE_FL == kFileImmutable && FS_APPEND_FL == kFileAppend &&
              FS_NODUMP_FL == kFileNoDump && FS_NOATIME_FL == kFileNoAtime);

// struct file_attr of linux/fs.h.
struct FileAttr {
  uint64_t xflags;
  uint32_t extsize, nextents, projid, cowextsize;
};
static_assert(sizeof(FileAttr) == 24);

constexpr struct {
  uint32_t flag, xflag;
} kBoth[] = {{FS_SYNC_FL, FS_XFLAG_SYNC},
             {FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE},
             {FS_APPEND_FL, FS_XFLAG_APPEND},
             {FS_NODUMP_FL, FS_XFLAG_NODUMP},
             {FS_NOATIME_FL, FS_XFLAG_NOATIME},
             {FS_DAX_FL, FS_XFLAG_DAX},
             {FS_PROJINHERIT_FL, FS_XFLAG_PROJINHERIT}};

uint32_t XflagsOf(uint32_t flags) {
  uint32_t x = 0;
  for (const auto& both : kBoth) {
    if ((flags & both.flag) != 0) x |= both.xflag;
  }
  return x;
}

// EOPNOTSUPP for what is known but not in tmpfs.
Result<uint32_t> FlagsOf(const FileAttr& attr) {
  uint32_t flags = 0, common = 0;
  for (const auto& both : kBoth) {
    common |= both.xflag;
    if ((attr.xflags & both.xflag) != 0) flags |= both.flag;
  }
  if ((attr.xflags & ~uint64_t{common}) != 0 || attr.extsize != 0 || attr.projid != 0 ||
      attr.cowextsize != 0) {
    return Error(EOPNOTSUPP);
  }
  return flags;
}

// vfs_fileattr_set().
base::Status Change(Task& t, const Path& path, Inode& inode, uint32_t flags) {
  const uint32_t old = TRY(FileFlagsOf(inode));
  if (path.mount->read_only()) return Error(EROFS);
  const InodePerm perm = TRY(inode.GetPerm());
  if (!OwnerOrCapable(t.creds(), perm.uid, perm.gid)) return Error(EPERM);
  const UserNamespace* root = &t.user_ns();
  while (root->parent() != nullptr) root = root->parent().get();
  if (((flags ^ old) & (FS_APPEND_FL | FS_IMMUTABLE_FL)) != 0 &&
      !t.creds().HasCapIn(CAP_LINUX_IMMUTABLE, *root)) {
    return Error(EPERM);
  }
  return SetFileFlags(inode, flags);
}

// What the calls by path name. ENOTTY becomes EOPNOTSUPP.
Result<Path> FindFile(Task& t, const SyscallArgs& args) {
  const int flags = args.Int(4);
  if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  if (args[3] > kPageSize) return Error(E2BIG);
  if (args[3] < sizeof(FileAttr)) return Error(EINVAL);
  const bool by_fd = args[1] == 0 && (flags & AT_EMPTY_PATH) != 0;
  const std::string path = by_fd ? std::string() : TRY(t.CopyInPath(args[1]));
  Path found = TRY(WalkFrom(t, args.Int(0), path, AtFlags(flags)));
  if (!FileFlagsOf(*found.dentry->inode_ptr()).ok()) return Error(EOPNOTSUPP);
  return found;
}

}  // namespace

Result<bool> FileFlagsIoctl(Task& t, FileDescription& file, uint32_t cmd, uint64_t arg) {
  if (cmd != FS_IOC_GETFLAGS && cmd != FS_IOC_SETFLAGS && cmd != FS_IOC_FSGETXATTR &&
      cmd != FS_IOC_FSSETXATTR) {
    return false;
  }
  Inode* inode = file.inode();
  if (inode == nullptr) return false;
  const Result<uint32_t> flags = FileFlagsOf(*inode);
  if (!flags.ok()) return false;
  fsxattr x{};
  switch (cmd) {
    case FS_IOC_GETFLAGS:
      TRY(UserPtr<uint32_t>(arg).CopyOut(t.memory(), *flags));
      return true;
    case FS_IOC_SETFLAGS:
      TRY(Change(t, file.path(), *inode, TRY(UserPtr<uint32_t>(arg).CopyIn(t.memory()))));
      return true;
    case FS_IOC_FSGETXATTR:
      x.fsx_xflags = XflagsOf(*flags);
      TRY(UserPtr<fsxattr>(arg).CopyOut(t.memory(), x));
      return true;
    default:
      x = TRY(UserPtr<fsxattr>(arg).CopyIn(t.memory()));
      TRY(Change(t, file.path(), *inode,
                 TRY(FlagsOf({x.fsx_xflags, x.fsx_extsize, 0, x.fsx_projid, x.fsx_cowextsize}))));
      return true;
  }
}

Result<uint64_t> SysFileGetattr(Task& t, const SyscallArgs& args) {
  const Path path = TRY(FindFile(t, args));
  FileAttr attr{};
  attr.xflags = XflagsOf(TRY(FileFlagsOf(*path.dentry->inode_ptr())));
  // copy_struct_to_user: what the guest's struct has beyond ours becomes zero.
  std::string raw(args[3], '\0');
  memcpy(raw.data(), &attr, sizeof(attr));
  TRY(t.memory().Write(args[2], std::as_bytes(std::span(raw))));
  return uint64_t{0};
}

Result<uint64_t> SysFileSetattr(Task& t, const SyscallArgs& args) {
  const Path path = TRY(FindFile(t, args));
  std::string raw(args[3], '\0');
  TRY(t.memory().Read(args[2], std::as_writable_bytes(std::span(raw))));
  if (raw.find_first_not_of('\0', sizeof(FileAttr)) != std::string::npos) return Error(E2BIG);
  FileAttr attr;
  memcpy(&attr, raw.data(), sizeof(attr));
  TRY(Change(t, path, *path.dentry->inode_ptr(), TRY(FlagsOf(attr))));
  return uint64_t{0};
}

}  // namespace sentry
