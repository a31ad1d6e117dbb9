// read, write and their vectored and positioned forms, lseek (Linux: fs/read_write.c).
#include <sys/uio.h>

#include "sentry/fs/eventfd/eventfd.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/read_target.h"

#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x00000020
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr int kKnownFlags =
    RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_NOWAIT | RWF_APPEND | RWF_NOAPPEND;

// kiocb_set_rw_flags(), which makes no difference between reads and writes.
base::Status CheckFlags(int flags) {
  if ((flags & ~kKnownFlags) != 0) return Error(EOPNOTSUPP);
  const bool both = (flags & RWF_APPEND) != 0 && (flags & RWF_NOAPPEND) != 0;
  return both ? base::Status(Error(EINVAL)) : base::Ok();
}

Result<base::Ref<FileDescription>> GetReadable(Task& t, int fd) {
  base::Ref<FileDescription> file = t.FileOf(fd);
  if (!file || !file->readable()) return Error(EBADF);
  if (file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(fd, *file);
  return file;
}

Result<base::Ref<FileDescription>> GetWritable(Task& t, int fd) {
  base::Ref<FileDescription> file = t.FileOf(fd);
  if (!file || !file->writable()) return Error(EBADF);
  if (file->WantsLanes(t.HasLanes())) [[unlikely]]
    t.ConsiderLanes(fd, *file);
  return file;
}

// Linux: access_ok and rw_verify_area. The length that is moved at most.
Result<uint64_t> CheckBuffer(uint64_t addr, uint64_t length) {
  TRY(CheckUserRange(addr, length));
  if (static_cast<int64_t>(length) < 0) return Error(EINVAL);
  return std::min(length, kMaxRwCount);
}

uint64_t FinishRead(Task& t, FileDescription& file, size_t n) {
  t.io.Read(n);
  if (n > 0 && AnyWatches() && file.path()) NotifyDentry(*file.path().dentry, IN_ACCESS);
  return n;
}

// The same for who reads a regular file by a descriptor: perhaps the next read needs no sentry.
uint64_t FinishRead(Task& t, int fd, FileDescription& file, size_t asked, size_t n) {
  if (file.WantsLending(asked, n)) t.LendFile(fd, file);
  return FinishRead(t, file, n);
}

// For a call with a position: that a file has none comes before that it is not open for this.
base::Result<base::Ref<FileDescription>> GetPositioned(Task& t, int fd, bool write) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, fd));
  if (write ? file->writable() : file->readable()) return file;
  const Inode* inode = file->inode();
  return Error(inode != nullptr && S_ISFIFO(inode->type()) ? ESPIPE : EBADF);
}

// `offset` -1 of preadv2 and pwritev2: the file position.
Result<uint64_t> ReadVector(Task& t, const SyscallArgs& args, bool at_offset, int64_t offset,
                            int flags) {
  base::Ref<FileDescription> file =
      TRY(at_offset ? GetPositioned(t, args.Int(0), false) : GetReadable(t, args.Int(0)));
  TRY(CheckFlags(flags));
  UserIovec iovec = TRY(ImportIovec(t.memory(), args[1], args[2]));
  if (iovec.total == 0 && !at_offset) return uint64_t{0};
  base::UserMemory& memory = ReadTarget(t, iovec);
  UserIoDest dst(memory, std::move(iovec));
  const bool nonblock = file->nonblock() || (flags & RWF_NOWAIT) != 0;
  const size_t n = TRY(at_offset ? file->PRead(dst, static_cast<uint64_t>(offset), nonblock)
                                 : file->Read(dst, nonblock));
  return FinishRead(t, *file, n);
}

// The parts of a file that knows only whole values: each is a write of its own
// (do_loop_readv_writev).
Result<uint64_t> WriteParts(Task& t, FileDescription& file, const UserIovec& iovec, bool nonblock) {
  uint64_t total = 0;
  for (const struct iovec& part : iovec.parts) {
    UserBufferSource src(t.memory(), reinterpret_cast<uint64_t>(part.iov_base), part.iov_len);
    Result<size_t> n = WriteFileChecked(t, file, src, {.nonblock = nonblock});
    if (!n.ok()) return total > 0 ? Result<uint64_t>(total) : n.error();
    total += *n;
    if (*n != part.iov_len) break;
  }
  return total;
}

Result<uint64_t> WriteVector(Task& t, const SyscallArgs& args, bool at_offset, int64_t offset,
                             int flags) {
  base::Ref<FileDescription> file =
      TRY(at_offset ? GetPositioned(t, args.Int(0), true) : GetWritable(t, args.Int(0)));
  TRY(CheckFlags(flags));
  UserIovec iovec = TRY(ImportIovec(t.memory(), args[1], args[2]));
  if (iovec.total == 0 && !at_offset) return uint64_t{0};
  if (!at_offset && iovec.parts.size() > 1 && dynamic_cast<EventFile*>(file.get()) != nullptr) {
    return WriteParts(t, *file, iovec, (flags & RWF_NOWAIT) != 0);
  }
  UserIoSource src(t.memory(), std::move(iovec));
  return TRY(WriteFileChecked(t, *file, src,
                              {.at_offset = at_offset,
                               .offset = static_cast<uint64_t>(offset),
                               .append = (flags & RWF_APPEND) != 0,
                               .nonblock = (flags & RWF_NOWAIT) != 0,
                               .sync = (flags & RWF_SYNC) != 0,
                               .data_sync = (flags & RWF_DSYNC) != 0}));
}

}  // namespace

base::Result<uint64_t> CheckFileSizeLimit(Task& t, uint64_t offset, uint64_t length) {
  const uint64_t limit = t.Rlimit(RLIMIT_FSIZE);
  if (limit == RLIM_INFINITY) return length;
  if (offset >= limit) {
    t.SendSignal(MakeSiginfo(SIGXFSZ, SI_KERNEL));
    return Error(EFBIG);
  }
  return std::min(length, limit - offset);
}

base::Result<size_t> WriteFileChecked(Task& t, FileDescription& file, IoSource& src,
                                      const WritePosition& at) {
  Inode* inode = file.inode();
  const bool regular = inode != nullptr && inode->IsReg();
  const bool nonblock = at.nonblock || file.nonblock();
  auto* seekable = regular ? dynamic_cast<SeekableFile*>(&file) : nullptr;
  const bool append = seekable != nullptr && (at.append || (file.flags() & O_APPEND) != 0);
  uint64_t limit = src.remaining();
  mode_t kept = 0;
  if (regular && limit > 0) {
    kept = TRY(VfsOf(t).RemovePrivs(t.creds(), *inode));
    if (t.Rlimit(RLIMIT_FSIZE) != RLIM_INFINITY) {
      uint64_t position = at.offset;
      if (append) {
        position = TRY(file.GetAttr()).size;
      } else if (!at.at_offset) {
        position = static_cast<uint64_t>(TRY(file.Seek(0, SEEK_CUR)));
      }
      limit = TRY(CheckFileSizeLimit(t, position, limit));
    }
  }
  LimitedSource limited(src, limit);
  IoSource& from = limit < src.remaining() ? static_cast<IoSource&>(limited) : src;
  size_t n;
  if (append && (at.at_offset || at.append)) {
    uint64_t offset = 0;
    n = TRY(seekable->PWriteAppend(from, &offset, nonblock));
  } else if (at.at_offset) {
    n = TRY(file.PWrite(from, at.offset, nonblock));
  } else {
    n = TRY(file.Write(from, nonblock));
  }
  t.io.Write(n);
  if (n > 0) {
    if (kept != 0) TRY(Vfs::RestorePrivs(*inode, kept));
    if (regular && (at.sync || at.data_sync || (file.flags() & O_DSYNC) != 0)) {
      TRY(file.Sync(!at.sync && (file.flags() & O_SYNC) != O_SYNC));
    }
    if (AnyWatches() && file.path()) NotifyDentry(*file.path().dentry, IN_MODIFY);
  }
  return n;
}

base::Result<uint64_t> SysRead(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetReadable(t, args.Int(0)));
  const uint64_t length = TRY(CheckBuffer(args[1], args[2]));
  UserBufferDest dst(ReadTarget(t, args[1], length), t.mm(), args[1], length);
  const size_t n = TRY(file->Read(dst, file->nonblock()));
  return FinishRead(t, args.Int(0), *file, length, n);
}

base::Result<uint64_t> SysWrite(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetWritable(t, args.Int(0)));
  UserBufferSource src(t.memory(), args[1], TRY(CheckBuffer(args[1], args[2])));
  return TRY(WriteFileChecked(t, *file, src, {}));
}

base::Result<uint64_t> SysPread64(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetPositioned(t, args.Int(0), false));
  const uint64_t length = TRY(CheckBuffer(args[1], args[2]));
  UserBufferDest dst(t.memory(), t.mm(), args[1], length);
  const size_t n = TRY(file->PRead(dst, args[3], file->nonblock()));
  return FinishRead(t, args.Int(0), *file, length, n);
}

base::Result<uint64_t> SysPwrite64(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetPositioned(t, args.Int(0), true));
  UserBufferSource src(t.memory(), args[1], TRY(CheckBuffer(args[1], args[2])));
  return TRY(WriteFileChecked(t, *file, src, {.at_offset = true, .offset = args[3]}));
}

base::Result<uint64_t> SysReadv(Task& t, const SyscallArgs& args) {
  return ReadVector(t, args, false, 0, 0);
}

base::Result<uint64_t> SysWritev(Task& t, const SyscallArgs& args) {
  return WriteVector(t, args, false, 0, 0);
}

// On a 64-bit kernel the low half of the position is all of it.
base::Result<uint64_t> SysPreadv(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < 0) return Error(EINVAL);
  return ReadVector(t, args, true, args.Long(3), 0);
}

base::Result<uint64_t> SysPwritev(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < 0) return Error(EINVAL);
  return WriteVector(t, args, true, args.Long(3), 0);
}

base::Result<uint64_t> SysPreadv2(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < -1) return Error(EINVAL);
  return ReadVector(t, args, args.Long(3) != -1, args.Long(3), args.Int(5));
}

base::Result<uint64_t> SysPwritev2(Task& t, const SyscallArgs& args) {
  if (args.Long(3) < -1) return Error(EINVAL);
  return WriteVector(t, args, args.Long(3) != -1, args.Long(3), args.Int(5));
}

base::Result<uint64_t> SysLseek(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if (args.Uint(2) > SEEK_HOLE) return Error(EINVAL);
  const int64_t position = TRY(file->Seek(args.Long(1), args.Int(2)));
  if (file->WantsLending(1, 0)) t.LendFile(args.Int(0), *file);
  return static_cast<uint64_t>(position);
}

}  // namespace sentry
