// sendfile and copy_file_range (Linux: fs/read_write.c, fs/splice.c).
#include <memory>
#include <vector>

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

constexpr size_t kChunk = 64 * 1024;

// One end of a copy with its own offset or the file's position, which is written back at the end.
struct CopyEnd {
  base::Ref<FileDescription> file;
  uint64_t user_offset = 0;  // where the offset came from; 0: the file position
  uint64_t offset = 0;

  base::Status Load(Task& t, uint64_t addr) {
    user_offset = addr;
    int64_t value;
    if (addr != 0) {
      value = TRY(UserPtr<int64_t>(addr).CopyIn(t.memory()));
    } else {
      value = TRY(file->Seek(0, SEEK_CUR));
    }
    offset = static_cast<uint64_t>(value);
    return base::Ok();
  }
  bool negative() const { return static_cast<int64_t>(offset) < 0; }
  base::Status Store(Task& t) const {
    const auto value = static_cast<int64_t>(offset);
    if (user_offset != 0) return UserPtr<int64_t>(user_offset).CopyOut(t.memory(), value);
    TRY(file->Seek(value, SEEK_SET));
    return base::Ok();
  }
};

// Reads a chunk of `in` at its offset; what is empty is the end of the file.
Result<std::span<const std::byte>> ReadChunk(CopyEnd& in, std::span<std::byte> buffer) {
  BufferDest dst(buffer);
  const size_t n = TRY(in.file->PRead(dst, in.offset, in.file->nonblock()));
  return buffer.first(n);
}

bool IsRegular(FileDescription& file) { return file.inode() != nullptr && file.inode()->IsReg(); }

}  // namespace

base::Result<uint64_t> SysSendfile(Task& t, const SyscallArgs& args) {
  if (args[2] != 0) TRY(UserPtr<int64_t>(args[2]).CopyIn(t.memory()));
  CopyEnd in{.file = TRY(GetOpenFile(t, args.Int(1)))};
  if (!in.file->readable()) return Error(EBADF);
  if (args[2] != 0 && !dynamic_cast<SeekableFile*>(in.file.get())) return Error(ESPIPE);
  base::Ref<FileDescription> out = TRY(GetOpenFile(t, args.Int(0)));
  if (!out->writable()) return Error(EBADF);
  Inode* inode = in.file->inode();
  if (inode == nullptr || !(inode->IsReg() || S_ISBLK(inode->type()))) return Error(EINVAL);
  if ((out->flags() & O_APPEND) != 0) return Error(EINVAL);
  if (args.Long(3) < 0) return Error(EINVAL);
  TRY(in.Load(t, args[2]));
  if (in.negative()) return Error(EINVAL);
  uint64_t left = std::min(args[3], kMaxRwCount);
  uint64_t done = 0;
  std::vector<std::byte> buffer(std::min<uint64_t>(kChunk, left));
  Result<size_t> result = size_t{0};
  while (left > 0) {
    auto chunk = ReadChunk(in, std::span(buffer).first(std::min<uint64_t>(buffer.size(), left)));
    if (!chunk.ok()) {
      result = chunk.error();
      break;
    }
    if (chunk->empty()) break;
    BufferSource src(*chunk);
    result = WriteFileChecked(t, *out, src, {});
    if (!result.ok()) break;
    in.offset += *result;
    done += *result;
    left -= *result;
    if (*result < chunk->size()) break;
  }
  if (done == 0 && !result.ok()) return result.error();
  TRY(in.Store(t));
  return done;
}

base::Result<uint64_t> SysCopyFileRange(Task& t, const SyscallArgs& args) {
  CopyEnd in{.file = TRY(GetOpenFile(t, args.Int(0)))};
  CopyEnd out{.file = TRY(GetOpenFile(t, args.Int(2)))};
  for (uint64_t addr : {args[1], args[3]}) {
    if (addr != 0) TRY(UserPtr<int64_t>(addr).CopyIn(t.memory()));
  }
  if (args.Uint(5) != 0) return Error(EINVAL);
  // Linux: generic_file_rw_checks, generic_copy_file_checks.
  for (const CopyEnd* end : {&in, &out}) {
    if (end->file->inode() != nullptr && end->file->inode()->IsDir()) return Error(EISDIR);
    if (!IsRegular(*end->file)) return Error(EINVAL);
  }
  if (!in.file->readable() || !out.file->writable()) return Error(EBADF);
  if ((out.file->flags() & O_APPEND) != 0) return Error(EBADF);
  TRY(in.Load(t, args[1]));
  TRY(out.Load(t, args[3]));
  uint64_t left = std::min(args[4], kMaxRwCount);
  if (&in.file->inode()->fs() != &out.file->inode()->fs()) return Error(EXDEV);
  uint64_t in_end, out_end;
  if (__builtin_add_overflow(in.offset, args[4], &in_end) ||
      __builtin_add_overflow(out.offset, args[4], &out_end)) {
    return Error(EOVERFLOW);
  }
  if (in.negative() || out.negative()) return Error(EINVAL);
  if (out.offset >= kMaxFileSize) return Error(EFBIG);
  const uint64_t size = TRY(in.file->GetAttr()).size;
  left = in.offset >= size ? 0 : std::min(left, size - in.offset);
  if (in.file->inode() == out.file->inode() && out.offset + left > in.offset &&
      out.offset < in.offset + left) {
    return Error(EINVAL);
  }
  uint64_t done = 0;
  std::vector<std::byte> buffer(std::min<uint64_t>(kChunk, left));
  Result<size_t> result = size_t{0};
  while (left > 0) {
    auto chunk = ReadChunk(in, std::span(buffer).first(std::min<uint64_t>(buffer.size(), left)));
    if (!chunk.ok()) {
      result = chunk.error();
      break;
    }
    if (chunk->empty()) break;
    BufferSource src(*chunk);
    result = WriteFileChecked(t, *out.file, src, {.at_offset = true, .offset = out.offset});
    if (!result.ok()) break;
    in.offset += *result;
    out.offset += *result;
    done += *result;
    left -= *result;
    if (*result < chunk->size()) break;
  }
  if (done == 0 && !result.ok()) return result.error();
  TRY(in.Store(t));
  TRY(out.Store(t));
  return done;
}

}  // namespace sentry
