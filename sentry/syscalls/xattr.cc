// Extended attributes (Linux: fs/xattr.c).
#include <linux/limits.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint64_t kPageSize = 4096;

// How the object is named: by path, by path without following a last link, or by descriptor.
enum class By { kPath, kLink, kFd };

Result<Path> Find(Task& t, By by, uint64_t arg) {
  if (by == By::kFd) {
    base::Ref<FileDescription> file = TRY(GetOpenFile(t, static_cast<int>(arg)));
    if (!file->path()) return Error(EBADF);
    return file->path();
  }
  return WalkArg(t, AT_FDCWD, arg, {.follow_last = by == By::kPath});
}

Result<std::string> CopyInName(Task& t, uint64_t addr) {
  auto name = t.memory().ReadString(addr, XATTR_NAME_MAX + 1);
  if (!name.ok()) return Error(name.error().code() == ENAMETOOLONG ? ERANGE : name.error().code());
  if (name->empty()) return Error(ERANGE);
  return name;
}

Result<uint64_t> CopyOutValue(Task& t, uint64_t addr, uint64_t size, std::string_view value) {
  if (size == 0) return value.size();
  if (value.size() > size) return Error(ERANGE);
  TRY(t.memory().Write(addr, std::as_bytes(std::span(value))));
  return value.size();
}

Result<uint64_t> Set(Task& t, By by, const SyscallArgs& args) {
  const int flags = args.Int(4);
  if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) != 0) return Error(EINVAL);
  const std::string name = TRY(CopyInName(t, args[1]));
  if (args[3] > XATTR_SIZE_MAX) return Error(E2BIG);
  std::string value(args[3], '\0');
  TRY(t.memory().Read(args[2], std::as_writable_bytes(std::span(value))));
  TRY(VfsOf(t).SetXattr(t.creds(), TRY(Find(t, by, args[0])), name, value, flags));
  return uint64_t{0};
}

Result<uint64_t> Get(Task& t, By by, const SyscallArgs& args) {
  const std::string name = TRY(CopyInName(t, args[1]));
  const std::string value = TRY(VfsOf(t).GetXattr(t.creds(), TRY(Find(t, by, args[0])), name));
  return CopyOutValue(t, args[2], args[3], value);
}

Result<uint64_t> ListOf(Task& t, const Path& path, uint64_t addr, uint64_t size) {
  const auto names = TRY(VfsOf(t).ListXattr(t.creds(), path));
  std::string list;
  for (const std::string& name : names) {
    list += name;
    list += '\0';
  }
  return CopyOutValue(t, addr, size, list);
}

Result<uint64_t> List(Task& t, By by, const SyscallArgs& args) {
  return ListOf(t, TRY(Find(t, by, args[0])), args[1], args[2]);
}

Result<uint64_t> Remove(Task& t, By by, const SyscallArgs& args) {
  const std::string name = TRY(CopyInName(t, args[1]));
  TRY(VfsOf(t).RemoveXattr(t.creds(), TRY(Find(t, by, args[0])), name));
  return uint64_t{0};
}

// struct xattr_args of setxattrat(2) and getxattrat(2).
struct XattrArgs {
  uint64_t value;
  uint32_t size, flags;
};

Result<XattrArgs> CopyInArgs(Task& t, uint64_t addr, uint64_t size) {
  if (size < sizeof(XattrArgs)) return Error(EINVAL);
  if (size > kPageSize) return Error(E2BIG);
  std::vector<std::byte> bytes(size);
  TRY(t.memory().Read(addr, bytes));
  const bool more = std::any_of(bytes.begin() + sizeof(XattrArgs), bytes.end(),
                                [](std::byte b) { return b != std::byte{0}; });
  if (more) return Error(E2BIG);
  XattrArgs out;
  memcpy(&out, bytes.data(), sizeof(out));
  return out;
}

// path_setxattrat() and its kin.
Status CheckAtFlags(int flags) {
  return (flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)) == 0 ? base::Ok() : Error(EINVAL);
}

Result<Path> FindAt(Task& t, const SyscallArgs& args) {
  const int flags = args.Int(2);
  if ((flags & AT_EMPTY_PATH) != 0 && args[1] == 0) {
    return WalkFrom(t, args.Int(0), "", AtFlags(flags));
  }
  return WalkArg(t, args.Int(0), args[1], AtFlags(flags));
}

}  // namespace

base::Result<uint64_t> SysSetxattrat(Task& t, const SyscallArgs& args) {
  const XattrArgs in = TRY(CopyInArgs(t, args[4], args[5]));
  TRY(CheckAtFlags(args.Int(2)));
  if ((in.flags & ~uint32_t{XATTR_CREATE | XATTR_REPLACE}) != 0) return Error(EINVAL);
  const std::string name = TRY(CopyInName(t, args[3]));
  if (in.size > XATTR_SIZE_MAX) return Error(E2BIG);
  std::string value(in.size, '\0');
  TRY(t.memory().Read(in.value, std::as_writable_bytes(std::span(value))));
  TRY(VfsOf(t).SetXattr(t.creds(), TRY(FindAt(t, args)), name, value, static_cast<int>(in.flags)));
  return uint64_t{0};
}

base::Result<uint64_t> SysGetxattrat(Task& t, const SyscallArgs& args) {
  const XattrArgs in = TRY(CopyInArgs(t, args[4], args[5]));
  if (in.flags != 0) return Error(EINVAL);
  TRY(CheckAtFlags(args.Int(2)));
  const std::string name = TRY(CopyInName(t, args[3]));
  const std::string value = TRY(VfsOf(t).GetXattr(t.creds(), TRY(FindAt(t, args)), name));
  return CopyOutValue(t, in.value, in.size, value);
}

base::Result<uint64_t> SysListxattrat(Task& t, const SyscallArgs& args) {
  TRY(CheckAtFlags(args.Int(2)));
  return ListOf(t, TRY(FindAt(t, args)), args[3], args[4]);
}

base::Result<uint64_t> SysRemovexattrat(Task& t, const SyscallArgs& args) {
  TRY(CheckAtFlags(args.Int(2)));
  const std::string name = TRY(CopyInName(t, args[3]));
  TRY(VfsOf(t).RemoveXattr(t.creds(), TRY(FindAt(t, args)), name));
  return uint64_t{0};
}

base::Result<uint64_t> SysSetxattr(Task& t, const SyscallArgs& args) {
  return Set(t, By::kPath, args);
}
base::Result<uint64_t> SysLsetxattr(Task& t, const SyscallArgs& args) {
  return Set(t, By::kLink, args);
}
base::Result<uint64_t> SysFsetxattr(Task& t, const SyscallArgs& args) {
  return Set(t, By::kFd, args);
}
base::Result<uint64_t> SysGetxattr(Task& t, const SyscallArgs& args) {
  return Get(t, By::kPath, args);
}
base::Result<uint64_t> SysLgetxattr(Task& t, const SyscallArgs& args) {
  return Get(t, By::kLink, args);
}
base::Result<uint64_t> SysFgetxattr(Task& t, const SyscallArgs& args) {
  return Get(t, By::kFd, args);
}
base::Result<uint64_t> SysListxattr(Task& t, const SyscallArgs& args) {
  return List(t, By::kPath, args);
}
base::Result<uint64_t> SysLlistxattr(Task& t, const SyscallArgs& args) {
  return List(t, By::kLink, args);
}
base::Result<uint64_t> SysFlistxattr(Task& t, const SyscallArgs& args) {
  return List(t, By::kFd, args);
}
base::Result<uint64_t> SysRemovexattr(Task& t, const SyscallArgs& args) {
  return Remove(t, By::kPath, args);
}
base::Result<uint64_t> SysLremovexattr(Task& t, const SyscallArgs& args) {
  return Remove(t, By::kLink, args);
}
base::Result<uint64_t> SysFremovexattr(Task& t, const SyscallArgs& args) {
  return Remove(t, By::kFd, args);
}

}  // namespace sentry
