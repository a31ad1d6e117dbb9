// Attributes of a node that is already found: stat, chmod and the like, statfs, extended
// attributes, fsync. Each works on the handle's descriptor or through its link in /proc/self/fd
// (see ops_walk.cc for why that reaches this inode alone), never by name.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <memory>

#include "gofer/session.h"

namespace gofer {
namespace {

enum class XattrUse { kRead, kWrite };

// "user.*" is the container's own. "security.capability" is read for exec. The rest speaks to the
// host's kernel (trusted, security modules, system.*) and stays out of reach.
base::Status CheckXattr(std::string_view name, XattrUse use) {
  if (name.empty() || name.size() > kMaxXattrName) return base::Error(ERANGE);
  if (name.find('\0') != name.npos) return base::Error(EPROTO);
  if (name.starts_with("user.") && name.size() > 5) return base::Ok();
  if (use == XattrUse::kRead && name == "security.capability") return base::Ok();
  return base::Error(EOPNOTSUPP);
}

timespec ToTimespec(const Time& time, bool set, bool now) {
  timespec t = {};
  if (now) {
    t.tv_nsec = UTIME_NOW;
  } else if (set) {
    t.tv_sec = time.sec;
    t.tv_nsec = time.nsec;
  } else {
    t.tv_nsec = UTIME_OMIT;
  }
  return t;
}

base::Status SetAttr(const Session& s, const FsNode& node, const SetAttrRequest& r) {
  if ((r.mask & kSetSize) != 0) {
    if (!node.IsReg()) return base::Error(node.IsDir() ? EISDIR : EINVAL);
    const base::UniqueFd fd = TRY(s.Reopen(node, O_WRONLY));
    if (ftruncate(fd.get(), static_cast<off_t>(r.size)) != 0) return base::LastError();
  }
  if ((r.mask & (kSetUid | kSetGid)) != 0) {
    const uid_t uid = (r.mask & kSetUid) != 0 ? r.uid : static_cast<uid_t>(-1);
    const gid_t gid = (r.mask & kSetGid) != 0 ? r.gid : static_cast<gid_t>(-1);
    if (fchownat(node.fd(), "", uid, gid, AT_EMPTY_PATH) != 0) return base::LastError();
  }
  if ((r.mask & kSetMode) != 0) {
    // Linux has no permissions of links to change.
    if (S_ISLNK(node.type())) return base::Error(EOPNOTSUPP);
    if (fchmodat(s.proc_fd, FdName(node.fd()).text, r.mode, 0) != 0) return base::LastError();
  }
  if ((r.mask & (kSetAtime | kSetMtime | kSetAtimeNow | kSetMtimeNow)) != 0) {
    const timespec times[2] = {
        ToTimespec(r.atime, (r.mask & kSetAtime) != 0, (r.mask & kSetAtimeNow) != 0),
        ToTimespec(r.mtime, (r.mask & kSetMtime) != 0, (r.mask & kSetMtimeNow) != 0)};
    if (utimensat(node.fd(), "", times, AT_EMPTY_PATH) != 0) return base::LastError();
  }
  return base::Ok();
}

}  // namespace

base::Status DoGetAttr(Session& s, Reader in, ReplyBuilder out) {
  HandleRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  Append(out.body, AttrReply{TRY(StatFd(node->fd()))});
  return base::Ok();
}

base::Status DoSetAttr(Session& s, Reader in, ReplyBuilder out) {
  SetAttrRequest r;
  if (!in.Read(&r) || !in.empty() || (r.mask & ~kSetAll) != 0) return base::Error(EPROTO);
  if ((r.mask & kSetMode) != 0 && (r.mode & ~07777u) != 0) return base::Error(EINVAL);
  if ((r.mask & kSetSize) != 0 && r.size > INT64_MAX) return base::Error(EINVAL);
  if (((r.mask & kSetAtime) != 0 && r.atime.nsec > 999'999'999) ||
      ((r.mask & kSetMtime) != 0 && r.mtime.nsec > 999'999'999)) {
    return base::Error(EINVAL);
  }
  const auto node = TRY(s.Any(r.handle, true));
  TRY(SetAttr(s, *node, r));
  Append(out.body, AttrReply{TRY(StatFd(node->fd()))});
  return base::Ok();
}

base::Status DoStatFs(Session& s, Reader in, ReplyBuilder out) {
  HandleRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  struct statfs f;
  if (fstatfs(node->fd(), &f) != 0) return base::LastError();
  Append(
      out.body,
      StatFsReply{static_cast<uint64_t>(f.f_type), static_cast<uint64_t>(f.f_bsize), f.f_blocks,
                  f.f_bfree, f.f_bavail, f.f_files, f.f_ffree, static_cast<uint64_t>(f.f_namelen),
                  static_cast<uint64_t>(f.f_frsize), static_cast<uint64_t>(f.f_flags)});
  return base::Ok();
}

base::Status DoGetXattr(Session& s, Reader in, ReplyBuilder out) {
  GetXattrRequest r;
  std::string_view name;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.empty()) return base::Error(EPROTO);
  TRY(CheckXattr(name, XattrUse::kRead));
  const auto node = TRY(s.nodes.Get(r.handle));
  const size_t size = std::min<size_t>(r.size, kMaxXattr);
  const auto value = std::make_unique_for_overwrite<char[]>(size + 1);
  const ssize_t n = getxattr(FdName(node->fd()).text, std::string(name).c_str(), value.get(), size);
  if (n < 0) return base::LastError();
  Append(out.body, BlobReply{static_cast<uint32_t>(n), 0});
  if (size > 0) out.body->append(value.get(), static_cast<size_t>(n));
  return base::Ok();
}

base::Status DoSetXattr(Session& s, Reader in, ReplyBuilder) {
  SetXattrRequest r;
  std::string_view name, value;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.Bytes(r.value, &value) || !in.empty()) {
    return base::Error(EPROTO);
  }
  if (r.flags != 0 && r.flags != XATTR_CREATE && r.flags != XATTR_REPLACE) {
    return base::Error(EINVAL);
  }
  if (value.size() > kMaxXattr) return base::Error(E2BIG);
  TRY(CheckXattr(name, XattrUse::kWrite));
  const auto node = TRY(s.Any(r.handle, true));
  if (setxattr(FdName(node->fd()).text, std::string(name).c_str(), value.data(), value.size(),
               static_cast<int>(r.flags)) != 0) {
    return base::LastError();
  }
  return base::Ok();
}

base::Status DoListXattr(Session& s, Reader in, ReplyBuilder out) {
  ListXattrRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  const auto list = std::make_unique_for_overwrite<char[]>(kMaxXattr);
  const ssize_t n = listxattr(FdName(node->fd()).text, list.get(), kMaxXattr);
  if (n < 0) return base::LastError();
  // Only what may be read is named.
  std::string names;
  std::string_view rest(list.get(), static_cast<size_t>(n));
  while (!rest.empty()) {
    const std::string_view name = rest.substr(0, rest.find('\0'));
    if (CheckXattr(name, XattrUse::kRead).ok()) names.append(name).push_back('\0');
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
  }
  if (r.size > 0 && names.size() > r.size) return base::Error(ERANGE);
  Append(out.body, BlobReply{static_cast<uint32_t>(names.size()), 0});
  if (r.size > 0) out.body->append(names);
  return base::Ok();
}

base::Status DoRemoveXattr(Session& s, Reader in, ReplyBuilder) {
  RemoveXattrRequest r;
  std::string_view name;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.empty()) return base::Error(EPROTO);
  TRY(CheckXattr(name, XattrUse::kWrite));
  const auto node = TRY(s.Any(r.handle, true));
  if (removexattr(FdName(node->fd()).text, std::string(name).c_str()) != 0) {
    return base::LastError();
  }
  return base::Ok();
}

namespace {

base::Status Sync(Session& s, Reader in, int (*sync)(int)) {
  HandleRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  if (!node->IsDir() && !node->IsReg()) return base::Error(EINVAL);
  const base::UniqueFd fd = TRY(s.Reopen(*node, O_RDONLY));
  if (sync(fd.get()) != 0) return base::LastError();
  return base::Ok();
}

}  // namespace

base::Status DoFsync(Session& s, Reader in, ReplyBuilder) { return Sync(s, in, fsync); }
base::Status DoSyncFs(Session& s, Reader in, ReplyBuilder) { return Sync(s, in, syncfs); }

}  // namespace gofer
