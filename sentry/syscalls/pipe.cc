// pipe, pipe2, splice, tee, vmsplice.
#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "sentry/fs/pipe/pipe_file.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/net/socket.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/read_target.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

constexpr uint32_t kSpliceFlags = SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT;
constexpr size_t kChunk = 64 * 1024;

Result<uint64_t> MakePipe(Task& t, uint64_t addr, uint32_t flags) {
  if (flags & ~static_cast<uint32_t>(O_CLOEXEC | O_NONBLOCK | O_DIRECT)) return Error(EINVAL);
  auto [reader, writer] = TRY(NewPipe(t.kernel().vfs(), t.creds(), flags));
  bool cloexec = (flags & O_CLOEXEC) != 0;
  int fds[2];
  fds[0] = TRY(t.InstallFile(std::move(reader), cloexec));
  Result<int> second = t.InstallFile(std::move(writer), cloexec);
  if (!second.ok()) {
    t.fd_table().Remove(fds[0]);
    return second.error();
  }
  fds[1] = *second;
  base::Status copied = t.memory().Write(addr, std::as_bytes(std::span(fds)));
  if (!copied.ok()) {
    t.fd_table().Remove(fds[0]);
    t.fd_table().Remove(fds[1]);
    return copied.error();
  }
  return uint64_t{0};
}

// An end of a splice: a file with an optional offset of its own.
struct SpliceEnd {
  base::Ref<FileDescription> file;
  PipeFile* pipe = nullptr;
  bool has_offset = false;
  uint64_t offset = 0;
  bool more = false;  // SPLICE_F_MORE: of a socket, MSG_MORE

  Result<size_t> Read(IoDest& dst, bool nonblock) {
    if (!has_offset) return file->Read(dst, nonblock || file->nonblock());
    size_t n = TRY(file->PRead(dst, offset, nonblock || file->nonblock()));
    offset += n;
    return n;
  }
  Result<size_t> Write(IoSource& src, bool nonblock) {
    if (Socket* socket = more && !has_offset ? Socket::From(*file) : nullptr) {
      Result<size_t> n =
          socket->Send(src, {.flags = MSG_MORE, .nonblock = nonblock || file->nonblock()});
      if (!n.ok()) socket->NoteNoSpace(n.error());
      return n;
    }
    if (!has_offset) return file->Write(src, nonblock || file->nonblock());
    size_t n = TRY(file->PWrite(src, offset, nonblock || file->nonblock()));
    offset += n;
    return n;
  }
};

Result<SpliceEnd> GetEnd(Task& t, int fd, uint64_t offset_addr) {
  SpliceEnd end;
  end.file = TRY(GetOpenFile(t, fd));
  end.pipe = PipeFile::From(*end.file);
  if (offset_addr != 0) {
    if (end.pipe != nullptr) return Error(ESPIPE);
    auto offset = TRY(UserPtr<int64_t>(offset_addr).CopyIn(t.memory()));
    if (offset < 0) return Error(EINVAL);
    end.has_offset = true;
    end.offset = static_cast<uint64_t>(offset);
  }
  return end;
}

Result<size_t> PipeRoom(PipeFile& pipe, bool nonblock) {
  Result<size_t> room = pipe.pipe().WaitForRoom(nonblock || pipe.nonblock());
  if (!room.ok() && room.error().code() == EPIPE) RaiseSigpipe();
  return room;
}

// From a pipe to anything: what the other side does not take stays in the pipe.
Result<size_t> SpliceFromPipe(SpliceEnd& in, SpliceEnd& out, size_t length, bool nonblock,
                              bool keep) {
  size_t total = 0;
  while (total < length) {
    size_t want = std::min(length - total, kChunk);
    if (out.pipe != nullptr) {
      Result<size_t> room = PipeRoom(*out.pipe, nonblock || total > 0);
      if (!room.ok()) return total > 0 ? Result<size_t>(total) : room;
      want = std::min(want, *room);
    }
    std::vector<std::byte> buffer(want);
    BufferDest dst(buffer);
    Result<size_t> got = in.pipe->pipe().Peek(dst, nonblock || in.file->nonblock() || total > 0);
    if (!got.ok() || *got == 0) {
      if (total > 0 || got.ok()) return total;
      return got;
    }
    BufferSource src{std::span(buffer).first(*got)};
    Result<size_t> put = out.Write(src, nonblock);
    if (!put.ok()) return total > 0 ? Result<size_t>(total) : put;
    if (!keep) in.pipe->pipe().Discard(*put);
    total += *put;
    if (keep || *put < *got) break;  // tee copies what is there, once
  }
  return total;
}

// Directories, eventfds and their kin have no splice_read.
bool HasSpliceRead(const FileDescription& file) {
  const Inode* inode = file.inode();
  if (inode == nullptr) return true;
  const mode_t type = inode->type();
  return S_ISREG(type) || S_ISSOCK(type) || S_ISCHR(type) || S_ISBLK(type) || S_ISFIFO(type);
}

// From a file to a pipe: no more is read than the pipe has room for.
Result<size_t> SpliceToPipe(SpliceEnd& in, PipeFile& pipe, size_t length, bool nonblock) {
  size_t room = TRY(PipeRoom(pipe, nonblock));
  std::vector<std::byte> buffer(std::min({length, kChunk, room}));
  BufferDest dst(buffer);
  size_t got = TRY(in.Read(dst, nonblock));
  BufferSource src{std::span(buffer).first(got)};
  size_t total = 0;
  while (src.remaining() > 0) total += TRY(pipe.Write(src, false));
  return total;
}

}  // namespace

Result<uint64_t> SysPipe(Task& t, const SyscallArgs& a) { return MakePipe(t, a[0], 0); }
Result<uint64_t> SysPipe2(Task& t, const SyscallArgs& a) { return MakePipe(t, a[0], a.Uint(1)); }

Result<uint64_t> SysSplice(Task& t, const SyscallArgs& a) {
  uint32_t flags = a.Uint(5);
  if (a[4] == 0) return uint64_t{0};
  if (flags & ~kSpliceFlags) return Error(EINVAL);
  for (int fd : {a.Int(0), a.Int(2)}) TRY(GetOpenFile(t, fd));
  SpliceEnd in = TRY(GetEnd(t, a.Int(0), a[1]));
  SpliceEnd out = TRY(GetEnd(t, a.Int(2), a[3]));
  out.more = (flags & SPLICE_F_MORE) != 0;
  if (!in.file->readable() || !out.file->writable()) return Error(EBADF);
  size_t length = std::min<uint64_t>(a[4], kMaxRwCount);
  bool nonblock = (flags & SPLICE_F_NONBLOCK) != 0;
  size_t n = 0;
  if (in.pipe != nullptr) {
    if (out.pipe != nullptr && &in.pipe->pipe() == &out.pipe->pipe()) return Error(EINVAL);
    if (out.pipe == nullptr && (out.file->flags() & O_APPEND)) return Error(EINVAL);
    n = TRY(SpliceFromPipe(in, out, length, nonblock, /*keep=*/false));
  } else if (out.pipe != nullptr) {
    if (!HasSpliceRead(*in.file)) return Error(EINVAL);
    n = TRY(SpliceToPipe(in, *out.pipe, length, nonblock));
  } else {
    return Error(EINVAL);
  }
  if (in.has_offset) TRY(UserPtr<uint64_t>(a[1]).CopyOut(t.memory(), in.offset));
  if (out.has_offset) TRY(UserPtr<uint64_t>(a[3]).CopyOut(t.memory(), out.offset));
  return uint64_t{n};
}

Result<uint64_t> SysTee(Task& t, const SyscallArgs& a) {
  uint32_t flags = a.Uint(3);
  if (flags & ~kSpliceFlags) return Error(EINVAL);
  if (a[2] == 0) return uint64_t{0};
  SpliceEnd in = TRY(GetEnd(t, a.Int(0), 0));
  SpliceEnd out = TRY(GetEnd(t, a.Int(1), 0));
  if (!in.file->readable() || !out.file->writable()) return Error(EBADF);
  if (in.pipe == nullptr || out.pipe == nullptr || &in.pipe->pipe() == &out.pipe->pipe()) {
    return Error(EINVAL);
  }
  size_t length = std::min<uint64_t>(a[2], kMaxRwCount);
  return uint64_t{
      TRY(SpliceFromPipe(in, out, length, (flags & SPLICE_F_NONBLOCK) != 0, /*keep=*/true))};
}

// Without page flipping: the bytes are copied, as Linux does for the reading direction.
Result<uint64_t> SysVmsplice(Task& t, const SyscallArgs& a) {
  uint32_t flags = a.Uint(3);
  if (flags & ~kSpliceFlags) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, a.Int(0)));
  if (!file->readable() && !file->writable()) return Error(EBADF);
  UserIovec iovec = TRY(ImportIovec(t.memory(), a[1], a[2]));
  if (iovec.total == 0) return uint64_t{0};
  PipeFile* pipe = PipeFile::From(*file);
  if (pipe == nullptr) return Error(EBADF);
  bool nonblock = (flags & SPLICE_F_NONBLOCK) != 0 || file->nonblock();
  if (file->writable()) {
    // It waits for some room, not for enough.
    const size_t room = TRY(PipeRoom(*pipe, nonblock));
    UserIoSource src(t.memory(), std::move(iovec));
    LimitedSource limited(src, room);
    return uint64_t{TRY(file->Write(limited, nonblock))};
  }
  base::UserMemory& target = ReadTarget(t, iovec);
  UserIoDest dst(target, std::move(iovec));
  return uint64_t{TRY(file->Read(dst, nonblock))};
}

}  // namespace sentry
