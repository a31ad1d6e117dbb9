// Makers of requests and checkers of replies.
#include <dirent.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>

#include "gofer/client.h"

namespace gofer {
namespace {

template <typename T>
Request Make(Op op, const T& body, std::initializer_list<std::string_view> tails = {}) {
  Request request{op, std::string(sizeof(RequestHeader), '\0')};
  size_t size = sizeof(RequestHeader) + sizeof(T);
  for (std::string_view tail : tails) size += tail.size();
  request.packet.reserve(size);
  Append(&request.packet, body);
  for (std::string_view tail : tails) request.packet.append(tail);
  return request;
}

std::string_view Bytes(const std::vector<Handle>& handles) {
  return {reinterpret_cast<const char*>(handles.data()), handles.size() * sizeof(Handle)};
}

uint32_t Length(std::string_view s) { return static_cast<uint32_t>(s.size()); }

const base::Error kBad(EIO);

base::Status CheckError(const Reply& reply) {
  if (reply.error != 0) return base::Error(reply.error);
  return base::Ok();
}

bool ValidTime(const Time& t) { return t.nsec <= 999'999'999; }

bool ValidAttr(const Attr& a) {
  switch (a.mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFIFO:
    case S_IFSOCK:
    case S_IFCHR:
    case S_IFBLK:
      break;
    default:
      return false;
  }
  return (a.mode & ~uint32_t{S_IFMT | 07777}) == 0 && a.size <= INT64_MAX && a.has_btime <= 1 &&
         ValidTime(a.atime) && ValidTime(a.mtime) && ValidTime(a.ctime) && ValidTime(a.btime);
}

bool ValidNode(const Node& node) { return node.handle != 0 && ValidAttr(node.attr); }

// The type of what a descriptor is open on, 0 if there is none. The raw call, which the sentry's
// filter has: the C library's fstat makes another one.
uint32_t FileType(const base::UniqueFd& fd) {
  struct stat st;
  return syscall(SYS_fstat, fd.get(), &st) == 0 ? st.st_mode & S_IFMT : 0;
}

bool ValidFile(const base::UniqueFd& fd) { return FileType(fd) == S_IFREG; }

// The descriptor of a reply that has at most one; invalid if there is none.
base::UniqueFd TakeFd(Reply& reply) {
  return reply.fds.empty() ? base::UniqueFd() : std::move(reply.fds[0]);
}

}  // namespace

Request MakeHello() { return Make(Op::kHello, HelloRequest{kVersion, 0}); }
Request MakeAttach(uint32_t mount) { return Make(Op::kAttach, AttachRequest{mount, 0}); }
Request MakeWalk(Handle handle, const std::vector<std::string_view>& names, uint32_t flags,
                 uint32_t open_flags) {
  std::string blob;
  for (std::string_view name : names) {
    Append(&blob, static_cast<uint16_t>(name.size()));
    blob.append(name);
  }
  return Make(
      Op::kWalk,
      WalkRequest{handle, flags, open_flags, static_cast<uint32_t>(names.size()), Length(blob)},
      {blob});
}
Request MakeStatAt(Handle parent, std::string_view name) {
  return Make(Op::kStatAt, StatAtRequest{parent, Length(name), 0}, {name});
}
Request MakeOn(Op op, Handle handle) { return Make(op, HandleRequest{handle}); }
Request MakeSetAttr(const SetAttrRequest& change) { return Make(Op::kSetAttr, change); }
Request MakeOpen(Handle handle, uint32_t flags) {
  return Make(Op::kOpen, OpenRequest{handle, flags, 0});
}
Request MakeOpenMany(const std::vector<Handle>& handles) {
  return Make(Op::kOpenMany, OpenManyRequest{static_cast<uint32_t>(handles.size()), 0},
              {Bytes(handles)});
}
Request MakeMake(Op op, Handle parent, std::string_view name, uint32_t mode, uint32_t uid,
                 uint32_t gid, uint32_t flags) {
  return Make(op, MakeRequest{parent, mode, uid, gid, flags, Length(name), 0}, {name});
}
Request MakeSymlink(Handle parent, std::string_view name, std::string_view target, uint32_t uid,
                    uint32_t gid) {
  return Make(Op::kSymlink, SymlinkRequest{parent, uid, gid, Length(name), Length(target)},
              {name, target});
}
Request MakeLink(Handle handle, Handle parent, std::string_view name) {
  return Make(Op::kLink, LinkRequest{handle, parent, Length(name), 0}, {name});
}
Request MakeUnlink(Handle parent, std::string_view name, bool directory) {
  return Make(Op::kUnlink, UnlinkRequest{parent, directory ? 1u : 0u, Length(name)}, {name});
}
Request MakeRename(Handle old_parent, std::string_view old_name, Handle new_parent,
                   std::string_view new_name, uint32_t flags) {
  return Make(Op::kRename,
              RenameRequest{old_parent, new_parent, flags, Length(old_name), Length(new_name), 0},
              {old_name, new_name});
}
Request MakeReadDir(Handle handle, uint64_t cursor, uint32_t max_bytes, uint32_t flags) {
  return Make(Op::kReadDir, ReadDirRequest{handle, cursor, max_bytes, flags});
}
Request MakeGetXattr(Handle handle, std::string_view name, uint32_t size) {
  return Make(Op::kGetXattr, GetXattrRequest{handle, size, Length(name)}, {name});
}
Request MakeSetXattr(Handle handle, std::string_view name, std::string_view value, uint32_t flags) {
  return Make(Op::kSetXattr, SetXattrRequest{handle, flags, Length(name), Length(value), 0},
              {name, value});
}
Request MakeListXattr(Handle handle, uint32_t size) {
  return Make(Op::kListXattr, ListXattrRequest{handle, size, 0});
}
Request MakeRemoveXattr(Handle handle, std::string_view name) {
  return Make(Op::kRemoveXattr, RemoveXattrRequest{handle, Length(name), 0}, {name});
}
Request MakeConnect(Handle handle, uint32_t type) {
  return Make(Op::kConnect, ConnectRequest{handle, type, 0});
}
Request MakeForget(const std::vector<Handle>& handles) {
  return Make(Op::kForget, ForgetRequest{static_cast<uint32_t>(handles.size()), 0},
              {Bytes(handles)});
}

Request MakeEnd(uint32_t exit_code) { return Make(Op::kEnd, EndRequest{exit_code, 0}); }

base::Result<HelloReply> ParseHello(const Reply& reply) {
  TRY(CheckError(reply));
  HelloReply r;
  Reader in(reply.body);
  if (!in.Read(&r) || !in.empty() || r.version != kVersion || r.max_handles == 0) return kBad;
  return r;
}

base::Result<AttachReply> ParseAttach(const Reply& reply) {
  TRY(CheckError(reply));
  AttachReply r;
  Reader in(reply.body);
  if (!in.Read(&r) || !in.empty() || !ValidNode(r.root)) return kBad;
  return r;
}

base::Result<WalkResult> ParseWalk(Reply reply, size_t names, uint32_t flags) {
  TRY(CheckError(reply));
  WalkReply r;
  WalkResult result;
  Reader in(reply.body);
  if (!in.Read(&r) || r.reached > names || r.stop > 4095 || r.open_error > 4095 ||
      r.link > kMaxLink || (r.reached < names) != (r.stop != 0)) {
    return kBad;
  }
  result.nodes.resize(r.reached);
  for (uint32_t i = 0; i < r.reached; ++i) {
    Node& node = result.nodes[i];
    // All but the last were walked through.
    if (!in.Read(&node) || !ValidNode(node) || (i + 1 < r.reached && !S_ISDIR(node.attr.mode))) {
      return kBad;
    }
  }
  std::string_view link;
  if (!in.Bytes(r.link, &link) || !in.empty() || link.find('\0') != link.npos) return kBad;
  const uint32_t last = r.reached > 0 ? result.nodes.back().attr.mode & S_IFMT : 0;
  if (!link.empty() && last != S_IFLNK) return kBad;
  base::UniqueFd fd = TakeFd(reply);
  if (fd.valid() && ((flags & kWalkOpen) == 0 || r.stop != 0 || r.open_error != 0 ||
                     last != S_IFREG || !ValidFile(fd))) {
    return kBad;
  }
  result.stop = static_cast<int>(r.stop);
  result.open_error = static_cast<int>(r.open_error);
  result.link = link;
  result.fd = std::move(fd);
  return result;
}

base::Result<NodeResult> ParseNode(Reply reply, bool want_fd) {
  TRY(CheckError(reply));
  NodeResult result;
  base::UniqueFd fd = TakeFd(reply);
  Reader in(reply.body);
  if (!in.Read(&result.node) || !in.empty() || !ValidNode(result.node) || fd.valid() != want_fd ||
      (want_fd && !ValidFile(fd))) {
    return kBad;
  }
  result.fd = std::move(fd);
  return result;
}

base::Result<Attr> ParseAttr(const Reply& reply) {
  TRY(CheckError(reply));
  AttrReply r;
  Reader in(reply.body);
  if (!in.Read(&r) || !in.empty() || !ValidAttr(r.attr)) return kBad;
  return r.attr;
}

base::Result<base::UniqueFd> ParseFd(Reply reply) {
  TRY(CheckError(reply));
  base::UniqueFd fd = TakeFd(reply);
  if (!reply.body.empty() || !fd.valid()) return kBad;
  const uint32_t type = FileType(fd);
  if (type != S_IFREG && type != S_IFSOCK) return kBad;
  return fd;
}

base::Result<std::vector<base::UniqueFd>> ParseOpenMany(Reply reply, size_t count) {
  TRY(CheckError(reply));
  OpenManyReply r;
  Reader in(reply.body);
  if (!in.Read(&r) || !in.empty() || r.reserved != 0 ||
      (count < kMaxOpenMany && r.opened >> count != 0) ||
      static_cast<size_t>(std::popcount(r.opened)) != reply.fds.size()) {
    return kBad;
  }
  std::vector<base::UniqueFd> fds(count);
  size_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    if ((r.opened >> i & 1) == 0) continue;
    fds[i] = std::move(reply.fds[next++]);
    if (!ValidFile(fds[i])) return kBad;
  }
  return fds;
}

base::Result<std::string> ParseLink(const Reply& reply) {
  TRY(CheckError(reply));
  BlobReply r;
  std::string_view target;
  Reader in(reply.body);
  if (!in.Read(&r) || r.size == 0 || r.size > kMaxLink || !in.Bytes(r.size, &target) ||
      !in.empty() || target.find('\0') != target.npos) {
    return kBad;
  }
  return std::string(target);
}

base::Result<DirResult> ParseDir(const Reply& reply) {
  TRY(CheckError(reply));
  ReadDirReply r;
  DirResult result;
  Reader in(reply.body);
  if (!in.Read(&r) || r.eof > 1 || r.count > reply.body.size() / sizeof(DirEntry)) return kBad;
  result.entries.reserve(r.count);
  for (uint32_t i = 0; i < r.count; ++i) {
    DirEntry d;
    Entry entry;
    std::string_view name;
    if (!in.Read(&d) || d.with > kWithNode) return kBad;
    entry.with = static_cast<DirEntryWith>(d.with);
    if (entry.with == kWithAttr && (!in.Read(&entry.node.attr) || !ValidAttr(entry.node.attr))) {
      return kBad;
    }
    if (entry.with == kWithNode && (!in.Read(&entry.node) || !ValidNode(entry.node))) return kBad;
    if (!in.Bytes(d.name, &name) || !ValidName(name) || d.next > INT64_MAX) return kBad;
    entry.ino = d.ino;
    entry.next = d.next;
    entry.type = d.type <= DT_SOCK ? d.type : uint8_t{DT_UNKNOWN};
    entry.name = name;
    result.entries.push_back(std::move(entry));
  }
  // One that neither advances nor ends would be asked for ever.
  if (!in.empty() || (r.count == 0 && r.eof == 0) || r.next > INT64_MAX) return kBad;
  result.eof = r.eof == 1;
  result.next = r.next;
  return result;
}

base::Result<StatFsReply> ParseStatFs(const Reply& reply) {
  TRY(CheckError(reply));
  StatFsReply r;
  Reader in(reply.body);
  if (!in.Read(&r) || !in.empty()) return kBad;
  return r;
}

base::Result<XattrResult> ParseXattr(const Reply& reply, uint32_t size) {
  TRY(CheckError(reply));
  BlobReply r;
  std::string_view bytes;
  Reader in(reply.body);
  if (!in.Read(&r) || r.size > kMaxXattr || !in.Bytes(size > 0 ? r.size : 0, &bytes) ||
      !in.empty() || (size > 0 && r.size > size)) {
    return kBad;
  }
  return XattrResult{r.size, std::string(bytes)};
}

base::Status ParseEmpty(const Reply& reply) {
  TRY(CheckError(reply));
  return reply.body.empty() ? base::Ok() : base::Status(kBad);
}

}  // namespace gofer
