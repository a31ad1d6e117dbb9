// Names and directories: mkdir, rmdir, unlink, rename, link, symlink, mknod, getdents, chdir,
// chroot, getcwd, umask (Linux: fs/namei.c, fs/readdir.c, fs/open.c, fs/d_path.c).
#include <linux/fs.h>
#include <sys/stat.h>

#include <cstring>

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

// Entries are gathered here before they are copied out.
constexpr size_t kMaxDirBuffer = 256 * 1024;

Result<uint64_t> Done(base::Status status) {
  if (!status.ok()) return status.error();
  return uint64_t{0};
}

Result<uint64_t> DoMkdir(Task& t, int dirfd, uint64_t path_addr, mode_t mode) {
  const std::string path = TRY(t.CopyInPath(path_addr));
  return Done(VfsOf(t).Mkdir(TRY(t.Walk(dirfd, path)), path, mode));
}

Result<uint64_t> DoUnlink(Task& t, int dirfd, uint64_t path_addr, bool dir) {
  const std::string path = TRY(t.CopyInPath(path_addr));
  const WalkContext ctx = TRY(t.Walk(dirfd, path));
  return Done(dir ? VfsOf(t).Rmdir(ctx, path) : VfsOf(t).Unlink(ctx, path));
}

Result<uint64_t> DoRename(Task& t, int old_dirfd, uint64_t old_addr, int new_dirfd,
                          uint64_t new_addr, uint32_t flags) {
  if ((flags & ~uint32_t{RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT}) != 0) {
    return Error(EINVAL);
  }
  if ((flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)) != 0 && (flags & RENAME_EXCHANGE) != 0) {
    return Error(EINVAL);
  }
  const std::string old_path = TRY(t.CopyInPath(old_addr));
  const std::string new_path = TRY(t.CopyInPath(new_addr));
  const WalkContext from = TRY(t.Walk(old_dirfd, old_path));
  const WalkContext to = TRY(t.Walk(new_dirfd, new_path));
  return Done(VfsOf(t).Rename(from, old_path, to, new_path, flags));
}

Result<uint64_t> DoLink(Task& t, int old_dirfd, uint64_t old_addr, int new_dirfd, uint64_t new_addr,
                        int flags) {
  if ((flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  if ((flags & AT_EMPTY_PATH) != 0 && !t.HasCap(CAP_DAC_READ_SEARCH)) return Error(ENOENT);
  const std::string old_path = TRY(t.CopyInPath(old_addr));
  const std::string new_path = TRY(t.CopyInPath(new_addr));
  const WalkContext from = TRY(t.Walk(old_dirfd, old_path));
  const WalkContext to = TRY(t.Walk(new_dirfd, new_path));
  const WalkFlags walk{.follow_last = (flags & AT_SYMLINK_FOLLOW) != 0,
                       .allow_empty = (flags & AT_EMPTY_PATH) != 0};
  return Done(VfsOf(t).Link(from, old_path, walk, to, new_path));
}

Result<uint64_t> DoSymlink(Task& t, uint64_t target_addr, int dirfd, uint64_t path_addr) {
  const std::string target = TRY(t.CopyInPath(target_addr));
  const std::string path = TRY(t.CopyInPath(path_addr));
  return Done(VfsOf(t).Symlink(TRY(t.Walk(dirfd, path)), target, path));
}

Result<uint64_t> DoMknod(Task& t, int dirfd, uint64_t path_addr, mode_t mode, uint32_t dev) {
  // Linux: may_mknod.
  const mode_t type = mode & S_IFMT;
  if (type == S_IFDIR) return Error(EPERM);
  if (type != 0 && !S_ISREG(type) && !S_ISCHR(type) && !S_ISBLK(type) && !S_ISFIFO(type) &&
      !S_ISSOCK(type)) {
    return Error(EINVAL);
  }
  const std::string path = TRY(t.CopyInPath(path_addr));
  // Linux: new_decode_dev.
  const unsigned dev_major = (dev & 0xfff00) >> 8;
  const unsigned dev_minor = (dev & 0xff) | ((dev >> 12) & 0xfff00);
  return Done(VfsOf(t).Mknod(TRY(t.Walk(dirfd, path)), path, mode, makedev(dev_major, dev_minor)));
}

// Appends one entry as linux_dirent64 or linux_dirent. False if it does not fit.
bool AppendEntry(std::string* out, size_t limit, const DirEntry& e, bool is64) {
  const size_t header = is64 ? 19 : 18;
  const size_t length = (header + e.name.size() + (is64 ? 1 : 2) + 7) & ~size_t{7};
  if (out->size() + length > limit) return false;
  const size_t at = out->size();
  out->resize(at + length, '\0');
  char* p = out->data() + at;
  const uint16_t reclen = static_cast<uint16_t>(length);
  memcpy(p, &e.ino, 8);
  memcpy(p + 8, &e.next_off, 8);
  memcpy(p + 16, &reclen, 2);
  if (is64) p[18] = static_cast<char>(e.type);
  memcpy(p + header, e.name.data(), e.name.size());
  if (!is64) p[length - 1] = static_cast<char>(e.type);
  return true;
}

Result<uint64_t> DoGetdents(Task& t, const SyscallArgs& args, bool is64) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (!file->readable()) return Error(EBADF);
  const size_t limit = std::min<size_t>(args.Uint(2), kMaxDirBuffer);
  std::string buffer;
  buffer.reserve(std::min<size_t>(limit, 32768));
  bool full = false;
  const base::Status status = file->GetDents([&](const DirEntry& e) {
    if (AppendEntry(&buffer, limit, e, is64)) return true;
    full = true;
    return false;
  });
  if (buffer.empty()) {
    if (!status.ok()) return status.error();
    if (full) return Error(EINVAL);
    return uint64_t{0};
  }
  TRY(t.memory().Write(args[1], std::as_bytes(std::span(buffer))));
  return buffer.size();
}

}  // namespace

base::Result<uint64_t> SysMkdir(Task& t, const SyscallArgs& args) {
  return DoMkdir(t, AT_FDCWD, args[0], args.Uint(1));
}
base::Result<uint64_t> SysMkdirat(Task& t, const SyscallArgs& args) {
  return DoMkdir(t, args.Int(0), args[1], args.Uint(2));
}
base::Result<uint64_t> SysRmdir(Task& t, const SyscallArgs& args) {
  return DoUnlink(t, AT_FDCWD, args[0], /*dir=*/true);
}
base::Result<uint64_t> SysUnlink(Task& t, const SyscallArgs& args) {
  return DoUnlink(t, AT_FDCWD, args[0], /*dir=*/false);
}
base::Result<uint64_t> SysUnlinkat(Task& t, const SyscallArgs& args) {
  if ((args.Int(2) & ~AT_REMOVEDIR) != 0) return Error(EINVAL);
  return DoUnlink(t, args.Int(0), args[1], (args.Int(2) & AT_REMOVEDIR) != 0);
}
base::Result<uint64_t> SysRename(Task& t, const SyscallArgs& args) {
  return DoRename(t, AT_FDCWD, args[0], AT_FDCWD, args[1], 0);
}
base::Result<uint64_t> SysRenameat(Task& t, const SyscallArgs& args) {
  return DoRename(t, args.Int(0), args[1], args.Int(2), args[3], 0);
}
base::Result<uint64_t> SysRenameat2(Task& t, const SyscallArgs& args) {
  return DoRename(t, args.Int(0), args[1], args.Int(2), args[3], args.Uint(4));
}
base::Result<uint64_t> SysLink(Task& t, const SyscallArgs& args) {
  return DoLink(t, AT_FDCWD, args[0], AT_FDCWD, args[1], 0);
}
base::Result<uint64_t> SysLinkat(Task& t, const SyscallArgs& args) {
  return DoLink(t, args.Int(0), args[1], args.Int(2), args[3], args.Int(4));
}
base::Result<uint64_t> SysSymlink(Task& t, const SyscallArgs& args) {
  return DoSymlink(t, args[0], AT_FDCWD, args[1]);
}
base::Result<uint64_t> SysSymlinkat(Task& t, const SyscallArgs& args) {
  return DoSymlink(t, args[0], args.Int(1), args[2]);
}
base::Result<uint64_t> SysMknod(Task& t, const SyscallArgs& args) {
  return DoMknod(t, AT_FDCWD, args[0], args.Uint(1) & 0xffff, args.Uint(2));
}
base::Result<uint64_t> SysMknodat(Task& t, const SyscallArgs& args) {
  return DoMknod(t, args.Int(0), args[1], args.Uint(2) & 0xffff, args.Uint(3));
}
base::Result<uint64_t> SysGetdents(Task& t, const SyscallArgs& args) {
  return DoGetdents(t, args, /*is64=*/false);
}
base::Result<uint64_t> SysGetdents64(Task& t, const SyscallArgs& args) {
  return DoGetdents(t, args, /*is64=*/true);
}

base::Result<uint64_t> SysChdir(Task& t, const SyscallArgs& args) {
  t.fs_context().SetCwd(TRY(WalkArg(t, AT_FDCWD, args[0], {.need_dir = true, .exec_check = true})));
  return uint64_t{0};
}

base::Result<uint64_t> SysFchdir(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  Inode* inode = file->inode();
  if (inode == nullptr || !inode->IsDir()) return Error(ENOTDIR);
  TRY(inode->CheckPermission(t.creds(), kMayExec));
  t.fs_context().SetCwd(file->path());
  return uint64_t{0};
}

base::Result<uint64_t> SysChroot(Task& t, const SyscallArgs& args) {
  Path path = TRY(WalkArg(t, AT_FDCWD, args[0], {.need_dir = true, .exec_check = true}));
  if (!t.HasCap(CAP_SYS_CHROOT)) return Error(EPERM);
  t.fs_context().SetRoot(std::move(path));
  t.LeavePaths();
  return uint64_t{0};
}

base::Result<uint64_t> SysGetcwd(Task& t, const SyscallArgs& args) {
  const Path cwd = t.fs_context().cwd();
  if (cwd.dentry->unlinked()) return Error(ENOENT);
  const std::string name = VfsOf(t).PathName(t.mount_namespace(), t.fs_context().root(), cwd);
  if (name.size() + 1 > kPathMax) return Error(ENAMETOOLONG);
  if (name.size() + 1 > args[1]) return Error(ERANGE);
  TRY(t.memory().Write(args[0], std::as_bytes(std::span(name.c_str(), name.size() + 1))));
  return name.size() + 1;
}

base::Result<uint64_t> SysUmask(Task& t, const SyscallArgs& args) {
  return uint64_t{t.fs_context().SetUmask(args.Uint(0) & 0777)};
}

}  // namespace sentry
