// chmod, chown, utimes, truncate and fallocate with their forms (Linux: fs/open.c, fs/utimes.c).
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <utime.h>

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

Result<uint64_t> Apply(Task& t, const Path& path, const AttrChange& change) {
  TRY(VfsOf(t).SetAttr(t.creds(), path, change));
  return uint64_t{0};
}

// The place of an open file, for calls that work on a descriptor. EBADF.
Result<Path> PathOfFd(Task& t, int fd) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (!file->path()) return Error(EBADF);
  return file->path();
}

Result<uint64_t> DoChmod(Task& t, int dirfd, uint64_t path, mode_t mode, int flags) {
  if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  const Path found = TRY(WalkArg(t, dirfd, path, AtFlags(flags)));
  return Apply(t, found, {.set_mode = true, .mode = mode & 07777});
}

Result<AttrChange> OwnerChange(Task& t, uint32_t uid, uint32_t gid) {
  AttrChange change;
  if (uid != UINT32_MAX) {
    change.set_uid = true;
    change.uid = TRY(t.user_ns().MapUidIn(uid));
  }
  if (gid != UINT32_MAX) {
    change.set_gid = true;
    change.gid = TRY(t.user_ns().MapGidIn(gid));
  }
  return change;
}

// chown_common(): also where neither is to change, set-id bits go.
Result<uint64_t> ApplyOwner(Task& t, const Path& path, uint32_t uid, uint32_t gid) {
  AttrChange change = TRY(OwnerChange(t, uid, gid));
  Inode* inode = path.dentry->inode_ptr();
  if (!change.set_uid && !change.set_gid && inode != nullptr) {
    const InodePerm perm = TRY(inode->GetPerm());
    change.set_uid = perm.uid == t.creds().fsuid;
    change.uid = perm.uid;
  }
  return Apply(t, path, change);
}

Result<uint64_t> DoChown(Task& t, int dirfd, uint64_t path, uint32_t uid, uint32_t gid, int flags) {
  if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  const Path found = TRY(WalkArg(t, dirfd, path, AtFlags(flags)));
  return ApplyOwner(t, found, uid, gid);
}

// Two times as utimensat has them; false: UTIME_OMIT.
Result<AttrChange> TimesChange(const timespec times[2]) {
  AttrChange change;
  auto one = [](const timespec& ts, bool* set, bool* now, timespec* out) {
    if (ts.tv_nsec == UTIME_OMIT) return true;
    *set = true;
    if (ts.tv_nsec == UTIME_NOW) return *now = true;
    *out = ts;
    return ts.tv_nsec >= 0 && ts.tv_nsec < 1000000000;
  };
  if (!one(times[0], &change.set_atime, &change.atime_now, &change.atime) ||
      !one(times[1], &change.set_mtime, &change.mtime_now, &change.mtime)) {
    return Error(EINVAL);
  }
  return change;
}

constexpr timespec kNow[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};

Result<uint64_t> DoUtimes(Task& t, int dirfd, uint64_t path, const timespec times[2], int flags) {
  if (times[0].tv_nsec == UTIME_OMIT && times[1].tv_nsec == UTIME_OMIT) return uint64_t{0};
  const AttrChange change = TRY(TimesChange(times));
  if (path == 0 && dirfd != AT_FDCWD) {
    if (flags != 0) return Error(EINVAL);
    return Apply(t, TRY(PathOfFd(t, dirfd)), change);
  }
  if ((flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) != 0) return Error(EINVAL);
  return Apply(t, TRY(WalkArg(t, dirfd, path, AtFlags(flags))), change);
}

// utimes and futimesat: microseconds.
Result<uint64_t> DoTimevals(Task& t, int dirfd, uint64_t path, uint64_t addr) {
  if (addr == 0) return DoUtimes(t, dirfd, path, kNow, 0);
  timespec times[2];
  for (int i = 0; i < 2; i++) {
    const auto tv = TRY((UserPtr<timeval>(addr) + i).CopyIn(t.memory()));
    if (tv.tv_usec < 0 || tv.tv_usec >= 1000000) return Error(EINVAL);
    times[i] = {tv.tv_sec, tv.tv_usec * 1000};
  }
  return DoUtimes(t, dirfd, path, times, 0);
}

// A file grows to `size` at most as far as RLIMIT_FSIZE allows (Linux: inode_newsize_ok).
base::Status CheckNewSize(Task& t, uint64_t old_size, uint64_t size) {
  if (size <= old_size || size <= t.Rlimit(RLIMIT_FSIZE)) return base::Ok();
  t.SendSignal(MakeSiginfo(SIGXFSZ, SI_KERNEL));
  return Error(EFBIG);
}

}  // namespace

base::Result<uint64_t> SysChmod(Task& t, const SyscallArgs& args) {
  return DoChmod(t, AT_FDCWD, args[0], args.Uint(1), 0);
}
base::Result<uint64_t> SysFchmodat(Task& t, const SyscallArgs& args) {
  return DoChmod(t, args.Int(0), args[1], args.Uint(2), 0);
}
base::Result<uint64_t> SysFchmodat2(Task& t, const SyscallArgs& args) {
  return DoChmod(t, args.Int(0), args[1], args.Uint(2), args.Int(3));
}
base::Result<uint64_t> SysFchmod(Task& t, const SyscallArgs& args) {
  return Apply(t, TRY(PathOfFd(t, args.Int(0))), {.set_mode = true, .mode = args.Uint(1) & 07777});
}
base::Result<uint64_t> SysChown(Task& t, const SyscallArgs& args) {
  return DoChown(t, AT_FDCWD, args[0], args.Uint(1), args.Uint(2), 0);
}
base::Result<uint64_t> SysLchown(Task& t, const SyscallArgs& args) {
  return DoChown(t, AT_FDCWD, args[0], args.Uint(1), args.Uint(2), AT_SYMLINK_NOFOLLOW);
}
base::Result<uint64_t> SysFchownat(Task& t, const SyscallArgs& args) {
  return DoChown(t, args.Int(0), args[1], args.Uint(2), args.Uint(3), args.Int(4));
}
base::Result<uint64_t> SysFchown(Task& t, const SyscallArgs& args) {
  const Path path = TRY(PathOfFd(t, args.Int(0)));
  return ApplyOwner(t, path, args.Uint(1), args.Uint(2));
}

base::Result<uint64_t> SysUtime(Task& t, const SyscallArgs& args) {
  if (args[1] == 0) return DoUtimes(t, AT_FDCWD, args[0], kNow, 0);
  const auto in = TRY(UserPtr<utimbuf>(args[1]).CopyIn(t.memory()));
  const timespec times[2] = {{in.actime, 0}, {in.modtime, 0}};
  return DoUtimes(t, AT_FDCWD, args[0], times, 0);
}
base::Result<uint64_t> SysUtimes(Task& t, const SyscallArgs& args) {
  return DoTimevals(t, AT_FDCWD, args[0], args[1]);
}
base::Result<uint64_t> SysFutimesat(Task& t, const SyscallArgs& args) {
  return DoTimevals(t, args.Int(0), args[1], args[2]);
}
base::Result<uint64_t> SysUtimensat(Task& t, const SyscallArgs& args) {
  if (args[2] == 0) return DoUtimes(t, args.Int(0), args[1], kNow, args.Int(3));
  timespec times[2];
  TRY(t.memory().Read(args[2], std::as_writable_bytes(std::span(times))));
  return DoUtimes(t, args.Int(0), args[1], times, args.Int(3));
}

base::Result<uint64_t> SysTruncate(Task& t, const SyscallArgs& args) {
  if (args.Long(1) < 0) return Error(EINVAL);
  const Path path = TRY(WalkArg(t, AT_FDCWD, args[0], {}));
  if (path.dentry->inode_ptr()->IsReg() && t.Rlimit(RLIMIT_FSIZE) != RLIM_INFINITY) {
    TRY(CheckNewSize(t, TRY(VfsOf(t).GetAttr(path)).size, args[1]));
  }
  TRY(VfsOf(t).Truncate(t.creds(), path, args[1]));
  return uint64_t{0};
}

base::Result<uint64_t> SysFtruncate(Task& t, const SyscallArgs& args) {
  if (args.Long(1) < 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (file->writable() && t.Rlimit(RLIMIT_FSIZE) != RLIM_INFINITY) {
    TRY(CheckNewSize(t, TRY(file->GetAttr()).size, args[1]));
  }
  TRY(VfsOf(t).Truncate(t.creds(), *file, args[1]));
  return uint64_t{0};
}

base::Result<uint64_t> SysFallocate(Task& t, const SyscallArgs& args) {
  const int mode = args.Int(1);
  const int64_t offset = args.Long(2), length = args.Long(3);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (offset < 0 || length <= 0) return Error(EINVAL);
  constexpr int kKnown = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_COLLAPSE_RANGE |
                         FALLOC_FL_ZERO_RANGE | FALLOC_FL_INSERT_RANGE | FALLOC_FL_UNSHARE_RANGE;
  if ((mode & ~kKnown) != 0) return Error(EOPNOTSUPP);
  if (!file->writable()) return Error(EBADF);
  Inode* inode = file->inode();
  if (inode == nullptr) return Error(ENODEV);
  if (S_ISFIFO(inode->type())) return Error(ESPIPE);
  if (inode->IsDir()) return Error(EISDIR);
  if (!inode->IsReg()) return Error(ENODEV);
  int64_t end;
  if (__builtin_add_overflow(offset, length, &end)) return Error(EFBIG);
  if ((mode & (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) == 0 &&
      t.Rlimit(RLIMIT_FSIZE) != RLIM_INFINITY) {
    TRY(CheckNewSize(t, TRY(file->GetAttr()).size, static_cast<uint64_t>(end)));
  }
  const mode_t kept = TRY(VfsOf(t).RemovePrivs(t.creds(), *inode));
  TRY(file->Allocate(mode, args[2], args[3]));
  TRY(Vfs::RestorePrivs(*inode, kept));
  if (AnyWatches()) NotifyDentry(*file->path().dentry, IN_MODIFY);
  return uint64_t{0};
}

}  // namespace sentry
