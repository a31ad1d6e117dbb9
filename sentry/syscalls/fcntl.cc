// fcntl, flock, ioctl (Linux: fs/fcntl.c, fs/locks.c, fs/ioctl.c).
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <sys/file.h>
#include <sys/ioctl.h>

#include <set>

#include "sentry/fs/inotify/dnotify.h"
#include "sentry/fs/pipe/pipe_file.h"
#include "sentry/kernel/async/sigio.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/net/host/interface_ioctl.h"
#include "sentry/net/inet/interface_ioctl.h"
#include "sentry/net/socket.h"
#include "sentry/syscalls/file_attr.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/thread/pidfd_ioctl.h"
#include "sentry/vfs/file_locks.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

// Linux's struct flock on amd64 and struct f_owner_ex.
struct GuestFlock {
  int16_t type, whence;
  int32_t pad;
  int64_t start, length;
  int32_t pid, pad2;
};
static_assert(sizeof(GuestFlock) == 32);
struct GuestOwner {
  int32_t type, pid;
};

constexpr int kSetSignal = 10, kGetSignal = 11;    // F_SETSIG, F_GETSIG
constexpr int kSetOwnerEx = 15, kGetOwnerEx = 16;  // F_SETOWN_EX, F_GETOWN_EX
constexpr int kGetOwnerUids = 17;                  // F_GETOWNER_UIDS
constexpr int kSameQuery = 1027;                   // F_DUPFD_QUERY
constexpr int kCreatedQuery = 1028;                // F_CREATED_QUERY

// Linux: flock_to_posix_lock.
Result<RecordLock> ToRecord(FileDescription& file, const GuestFlock& in) {
  int64_t base_offset = 0;
  switch (in.whence) {
    case SEEK_SET:
      break;
    case SEEK_CUR: {
      auto pos = file.Seek(0, SEEK_CUR);
      base_offset = pos.ok() ? *pos : 0;
      break;
    }
    case SEEK_END:
      base_offset = static_cast<int64_t>(TRY(file.GetAttr()).size);
      break;
    default:
      return Error(EINVAL);
  }
  int64_t start;
  if (__builtin_add_overflow(base_offset, in.start, &start)) return Error(EOVERFLOW);
  if (start < 0) return Error(EINVAL);
  RecordLock lock;
  lock.end = kLockEof;
  if (in.length > 0) {
    int64_t end;
    if (__builtin_add_overflow(start, in.length - 1, &end)) return Error(EOVERFLOW);
    lock.end = static_cast<uint64_t>(end);
  } else if (in.length < 0) {
    if (__builtin_add_overflow(start, in.length, &start) || start < 0) return Error(EINVAL);
    lock.end = static_cast<uint64_t>(start - in.length - 1);
  }
  lock.start = static_cast<uint64_t>(start);
  lock.write = in.type == F_WRLCK;
  return lock;
}

LockOwner OwnerOf(Task& t, FileDescription& file, bool ofd) {
  if (ofd) return {.id = &file, .ofd = true, .pid = -1};
  return {
      .id = &t.fd_table(), .ofd = false, .pid = t.thread_group().PidIn(*t.kernel().root_pid_ns())};
}

Result<uint64_t> SetLock(Task& t, int fd, FileDescription& file, uint64_t addr, bool ofd,
                         bool wait) {
  const auto in = TRY(UserPtr<GuestFlock>(addr).CopyIn(t.memory()));
  RecordLock lock = TRY(ToRecord(file, in));
  lock.owner = OwnerOf(t, file, ofd);
  if (ofd && in.pid != 0) return Error(EINVAL);
  Inode* inode = file.inode();
  if (inode == nullptr) return Error(EBADF);
  switch (in.type) {
    case F_RDLCK:
      if (!file.readable()) return Error(EBADF);
      break;
    case F_WRLCK:
      if (!file.writable()) return Error(EBADF);
      break;
    case F_UNLCK:
      if (FileLocks* locks = inode->locks_if_any()) {
        locks->UnlockRecord(lock.owner, lock.start, lock.end);
      }
      return uint64_t{0};
    default:
      return Error(EINVAL);
  }
  TRY(inode->locks().SetRecord(lock, wait));
  // A close in another thread may have released the table's locks just before this one was set.
  if (!ofd && t.fd_table().Get(fd).get() != &file) {
    inode->locks().UnlockRecord(lock.owner, lock.start, lock.end);
    return Error(EBADF);
  }
  return uint64_t{0};
}

Result<uint64_t> GetLock(Task& t, FileDescription& file, uint64_t addr, bool ofd) {
  auto in = TRY(UserPtr<GuestFlock>(addr).CopyIn(t.memory()));
  if (in.type != F_RDLCK && in.type != F_WRLCK) return Error(EINVAL);
  RecordLock lock = TRY(ToRecord(file, in));
  if (ofd && in.pid != 0) return Error(EINVAL);
  lock.owner = OwnerOf(t, file, ofd);
  Inode* inode = file.inode();
  if (inode == nullptr) return Error(EBADF);
  RecordLock conflict;
  FileLocks* locks = inode->locks_if_any();
  if (locks == nullptr || !locks->FindConflict(lock, &conflict)) {
    in.type = F_UNLCK;
  } else {
    in.type = conflict.write ? F_WRLCK : F_RDLCK;
    in.whence = SEEK_SET;
    in.start = static_cast<int64_t>(conflict.start);
    in.length =
        conflict.end == kLockEof ? 0 : static_cast<int64_t>(conflict.end - conflict.start + 1);
    in.pid = -1;
    if (!conflict.owner.ofd) {
      auto group = t.kernel().FindThreadGroup(*t.kernel().root_pid_ns(), conflict.owner.pid);
      in.pid = group ? group->PidIn(t.pid_namespace()) : 0;
    }
  }
  TRY(UserPtr<GuestFlock>(addr).CopyOut(t.memory(), in));
  return uint64_t{0};
}

// Linux: setfl. O_ASYNC of a file that cannot have it is passed over.
Result<uint64_t> SetFlags(Task& t, int fd, FileDescription& file, uint32_t flags) {
  Inode* inode = file.inode();
  if ((flags & O_NOATIME) != 0 && (file.flags() & O_NOATIME) == 0 && inode != nullptr) {
    const InodePerm perm = TRY(inode->GetPerm());
    if (!OwnerOrCapable(t.creds(), perm.uid, perm.gid)) return Error(EPERM);
  }
  if (((flags ^ file.flags()) & O_ASYNC) != 0 && file.CanAsync()) {
    file.SetAsync(fd, (flags & O_ASYNC) != 0);
  }
  TRY(file.SetStatusFlags(flags));
  return uint64_t{0};
}

Result<uint64_t> OwnerCommand(Task& t, FileDescription& file, int cmd, uint64_t arg) {
  auto owner = file.async_owner();
  switch (cmd) {
    case F_GETOWN:
      return static_cast<uint64_t>(AsyncOwnerWho(t, file));
    case F_SETOWN:
      TRY(SetAsyncOwner(t, file, static_cast<int>(arg)));
      return uint64_t{0};
    case kGetOwnerEx:
      TRY(UserPtr<GuestOwner>(arg).CopyOut(t.memory(),
                                           GuestOwner{owner.type, AsyncOwnerId(t, owner)}));
      return uint64_t{0};
    case kSetOwnerEx: {
      const auto in = TRY(UserPtr<GuestOwner>(arg).CopyIn(t.memory()));
      if (in.type < F_OWNER_TID || in.type > F_OWNER_PGRP) return Error(EINVAL);
      TRY(SetAsyncOwner(t, file, in.type, in.pid));
      return uint64_t{0};
    }
    case kGetOwnerUids: {
      const uint32_t ids[2] = {t.user_ns().MapUidOut(owner.ruid),
                               t.user_ns().MapUidOut(owner.euid)};
      TRY(t.memory().Write(arg, std::as_bytes(std::span(ids))));
      return uint64_t{0};
    }
    case kGetSignal:
      return static_cast<uint64_t>(owner.signo);
    default:
      if (arg > kNumSignals) return Error(EINVAL);
      owner.signo = static_cast<int>(arg);
      file.set_async_owner(std::move(owner));
      return uint64_t{0};
  }
}

// F_NOTIFY. Linux: fcntl_dirnotify.
Result<uint64_t> SetNotify(Task& t, int fd, FileDescription& file, uint32_t mask) {
  if ((mask & ~uint32_t{DN_MULTISHOT}) != 0 && file.inode() != nullptr && file.inode()->IsDir()) {
    SetAsyncOwnerIfNone(t, file, F_OWNER_PID, t.thread_group().pid());
  }
  TRY(WatchDirectory(&t.fd_table(), fd, file, mask));
  return uint64_t{0};
}

// Is the file open elsewhere? What only a mapping or a message on its way still has is not looked
// for.
bool IsOpenElsewhere(Task& t, const FileDescription& file) {
  std::set<const FdTable*> seen;
  for (const base::Ref<Task>& task : t.kernel().Tasks(*t.kernel().root_pid_ns())) {
    base::Ref<FdTable> table = task->fd_table_ref();
    if (table == nullptr || !seen.insert(table.get()).second) continue;
    for (int fd : table->List()) {
      base::Ref<FileDescription> other = table->Get(fd);
      if (other == nullptr || other.get() == &file || other->is_path()) continue;
      if (other->inode() == file.inode()) return true;
    }
  }
  return false;
}

// Linux: fcntl_setlease, generic_setlease.
Result<uint64_t> SetLease(Task& t, int fd, FileDescription& file, int type) {
  Inode* inode = file.inode();
  if (type != F_RDLCK && type != F_WRLCK && type != F_UNLCK) return Error(EINVAL);
  if (inode == nullptr) return Error(EINVAL);
  const InodePerm perm = TRY(inode->GetPerm());
  if (perm.uid != t.creds().fsuid && !t.HasCap(CAP_LEASE)) return Error(EACCES);
  if (!inode->IsReg()) return Error(EINVAL);
  if (type == F_UNLCK) {
    FileLocks* locks = inode->locks_if_any();
    if (locks == nullptr) return Error(EAGAIN);
    TRY(locks->DropLease(file));
    file.set_async_owner({});
    return uint64_t{0};
  }
  TRY(inode->locks().SetLease(file, fd, type, [&] {
    return type == F_RDLCK ? !inode->has_writers() : !IsOpenElsewhere(t, file);
  }));
  SetAsyncOwnerIfNone(t, file, F_OWNER_PID, t.thread_group().pid());
  return uint64_t{0};
}

int LeaseOf(const FileDescription& file) {
  Inode* inode = file.inode();
  FileLocks* locks = inode != nullptr ? inode->locks_if_any() : nullptr;
  return locks != nullptr && locks->has_leases() ? locks->LeaseOf(file) : F_UNLCK;
}

// What works on O_PATH descriptors too (Linux: check_fcntl_cmd).
bool AllowedOnPath(int cmd) {
  return cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC || cmd == F_GETFD || cmd == F_SETFD ||
         cmd == F_GETFL || cmd == kSameQuery || cmd == kCreatedQuery;
}

Result<uint64_t> DoFcntl(Task& t, const SyscallArgs& args) {
  const int fd = args.Int(0), cmd = args.Int(1);
  const uint64_t arg = args[2];
  bool cloexec = false;
  base::Ref<FileDescription> file = t.fd_table().Get(fd, &cloexec);
  if (!file || (file->is_path() && !AllowedOnPath(cmd))) return Error(EBADF);
  switch (cmd) {
    case F_DUPFD:
    case F_DUPFD_CLOEXEC:
      if (arg >= t.Rlimit(RLIMIT_NOFILE) || arg > INT32_MAX) return Error(EINVAL);
      return static_cast<uint64_t>(
          TRY(t.InstallFile(std::move(file), cmd == F_DUPFD_CLOEXEC, static_cast<int>(arg))));
    case F_GETFD:
      return cloexec ? uint64_t{FD_CLOEXEC} : uint64_t{0};
    case F_SETFD:
      TRY(t.fd_table().SetCloexec(fd, (arg & FD_CLOEXEC) != 0));
      return uint64_t{0};
    case F_GETFL:
      return uint64_t{file->flags() & ~uint32_t{O_CREAT}};
    case F_SETFL:
      return SetFlags(t, fd, *file, static_cast<uint32_t>(arg));
    case F_GETLK:
      return GetLock(t, *file, arg, /*ofd=*/false);
    case F_SETLK:
      return SetLock(t, fd, *file, arg, /*ofd=*/false, /*wait=*/false);
    case F_SETLKW:
      return SetLock(t, fd, *file, arg, /*ofd=*/false, /*wait=*/true);
    case F_OFD_GETLK:
      return GetLock(t, *file, arg, /*ofd=*/true);
    case F_OFD_SETLK:
      return SetLock(t, fd, *file, arg, /*ofd=*/true, /*wait=*/false);
    case F_OFD_SETLKW:
      return SetLock(t, fd, *file, arg, /*ofd=*/true, /*wait=*/true);
    case F_GETOWN:
    case F_SETOWN:
    case kGetOwnerEx:
    case kSetOwnerEx:
    case kGetOwnerUids:
    case kGetSignal:
    case kSetSignal:
      return OwnerCommand(t, *file, cmd, arg);
    case F_SETLEASE:
      return SetLease(t, fd, *file, static_cast<int>(arg));
    case F_GETLEASE:
      return static_cast<uint64_t>(LeaseOf(*file));
    case kSameQuery: {
      const base::Ref<FileDescription> other = t.fd_table().Get(static_cast<int>(arg));
      if (!other) return Error(EBADF);
      return other == file ? 1 : 0;
    }
    case F_SETPIPE_SZ:
    case F_GETPIPE_SZ:
      if (dynamic_cast<PipeFile*>(file.get()) == nullptr) return Error(EBADF);
      return file->Fcntl(cmd, arg);
    case F_ADD_SEALS:  // what may be sealed is looked at later
      if (!file->writable()) return Error(EPERM);
      return file->Fcntl(cmd, arg);
    case kCreatedQuery:
      return (file->flags() & O_CREAT) != 0 ? 1 : 0;
    case F_NOTIFY:
      return SetNotify(t, fd, *file, static_cast<uint32_t>(arg));
    default:
      return file->Fcntl(cmd, arg);
  }
}

// Who gets a socket's signals (sock_ioctl). False: it is another ioctl.
Result<bool> OwnerIoctl(Task& t, FileDescription& file, uint32_t cmd, uint64_t arg) {
  switch (cmd) {
    case FIOSETOWN:
    case SIOCSPGRP:
      TRY(SetAsyncOwner(t, file, TRY(UserPtr<int>(arg).CopyIn(t.memory()))));
      return true;
    case FIOGETOWN:
    case SIOCGPGRP:
      TRY(UserPtr<int>(arg).CopyOut(t.memory(), AsyncOwnerWho(t, file)));
      return true;
    default:
      return false;
  }
}

// ioctls that Linux answers for every file (do_vfs_ioctl). False: ask the file.
Result<bool> GenericIoctl(Task& t, int fd, FileDescription& file, uint32_t cmd, uint64_t arg) {
  Inode* inode = file.inode();
  const bool regular = inode != nullptr && inode->IsReg();
  switch (cmd) {
    case FIOCLEX:
    case FIONCLEX:
      TRY(t.fd_table().SetCloexec(fd, cmd == FIOCLEX));
      return true;
    case FIONBIO: {
      const int on = TRY(UserPtr<int>(arg).CopyIn(t.memory()));
      const uint32_t bit = O_NONBLOCK;
      TRY(file.SetStatusFlags(on != 0 ? file.flags() | bit : file.flags() & ~bit));
      return true;
    }
    case FIOASYNC: {
      const bool on = TRY(UserPtr<int>(arg).CopyIn(t.memory())) != 0;
      if (on == ((file.flags() & O_ASYNC) != 0)) return true;
      if (!file.CanAsync()) return Error(ENOTTY);
      file.SetAsync(fd, on);
      return true;
    }
    case FIOQSIZE: {
      if (inode == nullptr || !(regular || inode->IsDir() || inode->IsSymlink())) {
        return Error(ENOTTY);
      }
      const auto size = static_cast<int64_t>(TRY(file.GetAttr()).size);
      TRY(UserPtr<int64_t>(arg).CopyOut(t.memory(), size));
      return true;
    }
    case FIGETBSZ:
      if (inode == nullptr) return false;
      TRY(UserPtr<int>(arg).CopyOut(t.memory(), static_cast<int>(TRY(file.GetAttr()).blksize)));
      return true;
    case FIONREAD: {
      if (!regular) return false;
      const auto size = static_cast<int64_t>(TRY(file.GetAttr()).size);
      auto pos = file.Seek(0, SEEK_CUR);
      if (!pos.ok()) return false;
      TRY(UserPtr<int>(arg).CopyOut(t.memory(), static_cast<int>(size - *pos)));
      return true;
    }
    case FS_IOC_FIEMAP:  // nothing here tells where its blocks are
      return Error(EOPNOTSUPP);
    case FIFREEZE:
    case FITHAW:
      if (!t.HasCap(CAP_SYS_ADMIN)) return Error(EPERM);
      return Error(cmd == FIFREEZE ? EOPNOTSUPP : EINVAL);
    case FICLONE:
      if (t.fd_table().Get(static_cast<int>(arg)) == nullptr) return Error(EBADF);
      return Error(EOPNOTSUPP);
    case FICLONERANGE:
    case FIDEDUPERANGE:
      return Error(EOPNOTSUPP);
    default:
      return false;
  }
}

}  // namespace

base::Result<uint64_t> SysFcntl(Task& t, const SyscallArgs& args) { return DoFcntl(t, args); }

base::Result<uint64_t> SysFlock(Task& t, const SyscallArgs& args) {
  if ((args.Int(1) & LOCK_MAND) != 0) return uint64_t{0};  // mandatory locks of old: ignored
  const int operation = args.Int(1) & ~LOCK_NB;
  if (operation != LOCK_SH && operation != LOCK_EX && operation != LOCK_UN) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  Inode* inode = file->inode();
  if (inode == nullptr) return Error(EBADF);
  if (operation == LOCK_UN) {
    if (FileLocks* locks = inode->locks_if_any()) locks->Unflock(file.get());
    return uint64_t{0};
  }
  if (!file->readable() && !file->writable()) return Error(EBADF);
  TRY(inode->locks().Flock(file.get(), operation == LOCK_EX, (args.Int(1) & LOCK_NB) == 0));
  return uint64_t{0};
}

base::Result<uint64_t> SysIoctl(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (Socket::From(*file) != nullptr && TRY(OwnerIoctl(t, *file, args.Uint(1), args[2]))) {
    return uint64_t{0};
  }
  if (TRY(GenericIoctl(t, args.Int(0), *file, args.Uint(1), args[2]))) return uint64_t{0};
  if (TRY(FileFlagsIoctl(t, *file, args.Uint(1), args[2]))) return uint64_t{0};
  IoctlArgs ioctl{.cmd = args.Uint(1), .arg = args[2], .memory = t.memory()};
  Result<uint64_t> result = file->Ioctl(ioctl);
  Socket* socket = Socket::From(*file);
  if (result.ok() || result.error().code() != ENOTTY) return result;
  if (socket == nullptr) {
    const base::Ref<Pid> pid = PidOfFile(*file);
    return pid != nullptr ? PidFdIoctl(t, *pid, ioctl.cmd, ioctl.arg) : result;
  }
  // No packets, no times: streams have none. Addresses are asked for over IPv4 sockets alone.
  const bool inet = socket->domain() == AF_INET || socket->domain() == AF_INET6;
  if (inet && (ioctl.cmd == SIOCGSTAMP_OLD || ioctl.cmd == SIOCGSTAMPNS_OLD)) return Error(ENOENT);
  const bool address = ioctl.cmd == SIOCGIFADDR || ioctl.cmd == SIOCGIFDSTADDR ||
                       ioctl.cmd == SIOCGIFBRDADDR || ioctl.cmd == SIOCGIFNETMASK;
  if (address && socket->domain() != AF_INET) return result;
  // Any socket answers for the devices (sock_ioctl).
  if (HostNetwork* host = HostNetwork::Current(t)) return HostInterfaceIoctl(*host, ioctl);
  return InterfaceIoctl(t, *InetStack::Current(t), ioctl);
}

}  // namespace sentry
