// open and its forms, close, dup, memfd_create (Linux: fs/open.c, fs/file.c, mm/memfd.c).
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <sys/mman.h>

#include "sentry/fs/tmpfs/tmpfs.h"
#include "sentry/syscalls/file_util.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#define MFD_EXEC 0x0010U
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint32_t kLargeFile = 0100000;  // libc's O_LARGEFILE is 0 on 64-bit machines
constexpr uint32_t kTmpfile = O_TMPFILE & ~O_DIRECTORY;
constexpr uint64_t kValidOpenFlags = O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND |
                                     O_NONBLOCK | O_SYNC | O_DSYNC | O_ASYNC | O_DIRECT |
                                     kLargeFile | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC |
                                     O_PATH | kTmpfile;
constexpr uint64_t kValidResolve = RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS |
                                   RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_CACHED;
constexpr size_t kMemfdNameMax = 249;

Result<uint64_t> OpenAndInstall(Task& t, const WalkContext& ctx, std::string_view path,
                                uint32_t flags, mode_t mode) {
  // An empty table is found out before anything is created.
  const uint64_t limit = t.Rlimit(RLIMIT_NOFILE);
  if (limit == 0) return Error(EMFILE);
  base::Ref<FileDescription> file = TRY(VfsOf(t).Open(ctx, path, flags, mode));
  const int fd = TRY(t.fd_table().Install(file, (flags & O_CLOEXEC) != 0, 0, limit));
  t.ConsiderOpened(fd, *file);
  return static_cast<uint64_t>(fd);
}

Result<uint64_t> DoOpen(Task& t, int dirfd, uint64_t path_addr, uint32_t flags, mode_t mode) {
  // Unlike openat2, open ignores bits that it does not know, and the mode where none is used.
  flags = (flags & static_cast<uint32_t>(kValidOpenFlags)) | kLargeFile;
  if ((flags & (O_CREAT | kTmpfile)) == 0) mode = 0;
  const std::string path = TRY(t.CopyInPath(path_addr));
  if (path.empty()) return Error(ENOENT);
  const WalkContext ctx = TRY(t.Walk(dirfd, path));
  auto opened = OpenAndInstall(t, ctx, path, flags, mode & 07777);
  if (!opened.ok() && opened.error().code() == ENOENT && (flags & (O_CREAT | kTmpfile)) == 0) {
    t.ConsiderPath(dirfd, path, /*follows=*/(flags & O_NOFOLLOW) == 0);
  }
  return opened;
}

Result<uint64_t> CloseRange(Task& t, uint32_t first, uint32_t last) {
  for (const auto& file : t.fd_table().RemoveRange(first, last)) (void)t.fd_table().Finish(file);
  return uint64_t{0};
}

}  // namespace

base::Result<uint64_t> SysOpen(Task& t, const SyscallArgs& args) {
  return DoOpen(t, AT_FDCWD, args[0], args.Uint(1), args.Uint(2));
}

base::Result<uint64_t> SysOpenat(Task& t, const SyscallArgs& args) {
  return DoOpen(t, args.Int(0), args[1], args.Uint(2), args.Uint(3));
}

base::Result<uint64_t> SysCreat(Task& t, const SyscallArgs& args) {
  return DoOpen(t, AT_FDCWD, args[0], O_CREAT | O_WRONLY | O_TRUNC, args.Uint(1));
}

base::Result<uint64_t> SysOpenat2(Task& t, const SyscallArgs& args) {
  const uint64_t size = args[3];
  if (size < sizeof(open_how)) return Error(EINVAL);
  if (size > 4096) return Error(E2BIG);
  std::string raw(size, '\0');
  TRY(t.memory().Read(args[2], std::as_writable_bytes(std::span(raw))));
  open_how how;
  memcpy(&how, raw.data(), sizeof(how));
  // Linux: copy_struct_from_user. What a later version added must be zero.
  if (raw.find_first_not_of('\0', sizeof(how)) != std::string::npos) return Error(E2BIG);
  if ((how.flags & ~kValidOpenFlags) != 0 || (how.resolve & ~kValidResolve) != 0) {
    return Error(EINVAL);
  }
  if ((how.resolve & RESOLVE_BENEATH) != 0 && (how.resolve & RESOLVE_IN_ROOT) != 0) {
    return Error(EINVAL);
  }
  const bool creates = (how.flags & (O_CREAT | kTmpfile)) != 0;
  if (creates ? (how.mode & ~uint64_t{07777}) != 0 : how.mode != 0) return Error(EINVAL);
  if ((how.flags & O_PATH) != 0 &&
      (how.flags & ~uint64_t{O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC}) != 0) {
    return Error(EINVAL);
  }
  if ((how.resolve & RESOLVE_CACHED) != 0 && (how.flags & (O_TRUNC | O_CREAT | kTmpfile)) != 0) {
    return Error(EAGAIN);
  }
  const std::string path = TRY(t.CopyInPath(args[1]));
  if (path.empty()) return Error(ENOENT);
  // A scoped walk starts at the directory even for an absolute path.
  const bool scoped = (how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) != 0;
  WalkContext ctx = TRY(t.Walk(args.Int(0), scoped ? std::string_view(".") : path));
  ctx.resolve = how.resolve;
  return OpenAndInstall(t, ctx, path, static_cast<uint32_t>(how.flags) | kLargeFile,
                        static_cast<mode_t>(how.mode));
}

base::Result<uint64_t> SysClose(Task& t, const SyscallArgs& args) {
  base::Status status = t.fd_table().Close(args.Int(0));
  if (status.ok()) return uint64_t{0};
  // The descriptor is gone: a restart would close another (Linux: filp_close's caller).
  const int code = status.error().code();
  if (code == base::kERESTARTSYS || code == base::kERESTARTNOINTR ||
      code == base::kERESTARTNOHAND || code == base::kERESTART_RESTARTBLOCK) {
    return Error(EINTR);
  }
  return status.error();
}

base::Result<uint64_t> SysCloseRange(Task& t, const SyscallArgs& args) {
  const uint32_t first = args.Uint(0), last = args.Uint(1), flags = args.Uint(2);
  if ((flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC)) != 0) return Error(EINVAL);
  if (first > last) return Error(EINVAL);
  if ((flags & CLOSE_RANGE_UNSHARE) != 0) t.SetFdTable(t.fd_table().Fork());
  if ((flags & CLOSE_RANGE_CLOEXEC) != 0) {
    t.fd_table().SetCloexecRange(first, last);
    return uint64_t{0};
  }
  return CloseRange(t, first, last);
}

base::Result<uint64_t> SysDup(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), false)));
}

base::Result<uint64_t> SysDup2(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  if (args.Int(0) == args.Int(1)) return static_cast<uint64_t>(args.Int(0));
  TRY(t.fd_table().InstallAt(args.Int(1), std::move(file), false, t.Rlimit(RLIMIT_NOFILE)));
  return static_cast<uint64_t>(args.Int(1));
}

base::Result<uint64_t> SysDup3(Task& t, const SyscallArgs& args) {
  if ((args.Uint(2) & ~uint32_t{O_CLOEXEC}) != 0) return Error(EINVAL);
  if (args.Int(0) == args.Int(1)) return Error(EINVAL);
  if (args.Uint(1) >= t.Rlimit(RLIMIT_NOFILE)) return Error(EBADF);
  base::Ref<FileDescription> file = TRY(t.GetFile(args.Int(0)));
  TRY(t.fd_table().InstallAt(args.Int(1), std::move(file), (args.Uint(2) & O_CLOEXEC) != 0,
                             t.Rlimit(RLIMIT_NOFILE)));
  return static_cast<uint64_t>(args.Int(1));
}

base::Result<uint64_t> SysMemfdCreate(Task& t, const SyscallArgs& args) {
  const uint32_t flags = args.Uint(1);
  constexpr uint32_t kValid = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;
  if ((flags & ~kValid) != 0) return Error(EINVAL);
  if ((flags & MFD_NOEXEC_SEAL) != 0 && (flags & MFD_EXEC) != 0) return Error(EINVAL);
  auto name = t.memory().ReadString(args[0], kMemfdNameMax + 1);
  if (!name.ok()) return Error(name.error().code() == ENAMETOOLONG ? EINVAL : name.error().code());
  base::Ref<FileDescription> file = TRY(NewMemfd(VfsOf(t), t.creds(), *name, flags));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & MFD_CLOEXEC) != 0)));
}

}  // namespace sentry
