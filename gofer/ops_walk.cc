// Finding and opening: walk, attributes of a name, open, list, read links, connect.
//
// Why none of this leads out of a mount:
// - A handle is made from the mount's root by steps. A step opens one component with O_PATH |
//   O_NOFOLLOW below a directory handle; the name has been checked to be neither ".." nor to hold a
//   '/', and RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS say the same to the
//   kernel. The outcome is an entry of that very directory, whatever is renamed meanwhile, and no
//   link is followed: a swapped-in link is itself the node.
// - Data is opened from a handle and not by name: through the link "N" in /proc/self/fd, where N is
//   a descriptor number of ours. The kernel's link leads to that inode and to nothing else, no
//   component is looked up after it, and the node's type (which an inode keeps for life) was found
//   to be a regular file or directory. So renames and links in a race change nothing, and what was
//   renamed or unlinked since is still opened rightly.
// - The mount is a private copy without a parent, so ".." at its root would stay there too.
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "gofer/session.h"

namespace gofer {
namespace {

// Of getdents64(2).
struct LinuxDirent64 {
  uint64_t ino;
  int64_t off;
  uint16_t reclen;
  uint8_t type;
  char name[];
};

Time ToTime(const statx_timestamp& t) { return {t.tv_sec, t.tv_nsec, 0}; }

base::Result<Attr> Statx(int dir, const char* name, int flags) {
  struct statx x;
  if (statx(dir, name, flags | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
            STATX_BASIC_STATS | STATX_BTIME, &x) != 0) {
    return base::LastError();
  }
  Attr a = {};
  a.mode = x.stx_mode;
  a.nlink = x.stx_nlink;
  a.uid = x.stx_uid;
  a.gid = x.stx_gid;
  a.size = x.stx_size;
  a.blocks = x.stx_blocks;
  a.ino = x.stx_ino;
  a.dev_major = x.stx_dev_major;
  a.dev_minor = x.stx_dev_minor;
  a.rdev_major = x.stx_rdev_major;
  a.rdev_minor = x.stx_rdev_minor;
  a.blksize = x.stx_blksize;
  a.has_btime = (x.stx_mask & STATX_BTIME) != 0 ? 1 : 0;
  a.atime = ToTime(x.stx_atime);
  a.mtime = ToTime(x.stx_mtime);
  a.ctime = ToTime(x.stx_ctime);
  if (a.has_btime != 0) a.btime = ToTime(x.stx_btime);
  return a;
}

// The flags of kOpen as open(2) wants them: EINVAL for any other.
base::Result<int> OpenFlags(uint32_t flags, bool allow_truncate) {
  const uint32_t allowed = O_ACCMODE | (allow_truncate ? O_TRUNC : 0);
  if ((flags & ~allowed) != 0 || (flags & O_ACCMODE) == O_ACCMODE) return base::Error(EINVAL);
  return static_cast<int>(flags);
}

base::Result<base::UniqueFd> OpenRegular(const Session& s, const FsNode& node, uint32_t flags) {
  const int open_flags = TRY(OpenFlags(flags, true));
  if (node.IsDir()) return base::Error(EISDIR);
  // Links cannot be opened; pipes, sockets and devices are the sentry's own.
  if (!node.IsReg()) return base::Error(S_ISLNK(node.type()) ? ELOOP : ENXIO);
  if (s.Readonly(node) && open_flags != O_RDONLY) return base::Error(EROFS);
  return s.Reopen(node, open_flags);
}

// The target of a symbolic link's descriptor.
base::Result<std::string> ReadLink(const FsNode& node) {
  if (!S_ISLNK(node.type())) return base::Error(EINVAL);
  char target[kMaxLink + 1];
  const ssize_t n = readlinkat(node.fd(), "", target, sizeof(target));
  if (n < 0) return base::LastError();
  if (static_cast<size_t>(n) > kMaxLink) return base::Error(ENAMETOOLONG);
  return std::string(target, static_cast<size_t>(n));
}

}  // namespace

FdName::FdName(int fd) { snprintf(text, sizeof(text), "%d", fd); }

base::Result<Attr> StatFd(int fd) { return Statx(fd, "", AT_EMPTY_PATH); }
base::Result<Attr> StatName(int dir, const char* name) { return Statx(dir, name, 0); }

base::Result<base::Ref<FsNode>> Session::Any(Handle handle, bool write) const {
  base::Ref<FsNode> node = TRY(nodes.Get(handle));
  if (write && Readonly(*node)) return base::Error(EROFS);
  return node;
}

base::Result<base::Ref<FsNode>> Session::Dir(Handle handle, bool write) const {
  base::Ref<FsNode> node = TRY(nodes.Get(handle));
  if (!node->IsDir()) return base::Error(ENOTDIR);
  if (write && Readonly(*node)) return base::Error(EROFS);
  return node;
}

base::Result<Node> Session::Step(const FsNode& dir, std::string_view name, base::Ref<FsNode>* out) {
  const NameBuffer buffer(name);
  open_how how = {};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  base::UniqueFd fd(
      static_cast<int>(syscall(SYS_openat2, dir.fd(), buffer.text, &how, sizeof(how))));
  if (!fd.valid()) return base::LastError();
  const Attr attr = TRY(StatFd(fd.get()));
  auto node = base::MakeRef<FsNode>(std::move(fd), dir.mount(), attr.mode & S_IFMT);
  const Handle handle = TRY(nodes.Add(node));
  *out = std::move(node);
  return Node{handle, attr};
}

base::Result<base::UniqueFd> Session::Reopen(const FsNode& node, int flags) const {
  base::UniqueFd fd(
      openat(proc_fd, FdName(node.fd()).text, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return base::LastError();
  return fd;
}

base::Status DoHello(Session& s, Reader in, ReplyBuilder out) {
  HelloRequest r;
  if (!in.Read(&r) || !in.empty() || r.version != kVersion) return base::Error(EPROTO);
  s.greeted.store(true, std::memory_order_release);
  Append(out.body, HelloReply{kVersion, static_cast<uint32_t>(s.mounts.size()), s.max_handles, 0});
  return base::Ok();
}

base::Status DoAttach(Session& s, Reader in, ReplyBuilder out) {
  AttachRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  if (r.mount >= s.mounts.size()) return base::Error(ENOENT);
  const MountRoot& mount = s.mounts[r.mount];
  const Attr attr = TRY(StatFd(mount.node->fd()));
  const Handle handle = TRY(s.nodes.Add(mount.node));
  const uint32_t flags = (mount.readonly ? uint32_t{kMountReadonly} : 0u) |
                         (mount.allow_connect ? uint32_t{kMountConnect} : 0u);
  Append(out.body, AttachReply{{handle, attr}, flags, 0});
  return base::Ok();
}

base::Status DoWalk(Session& s, Reader in, ReplyBuilder out) {
  WalkRequest r;
  std::string_view blob;
  if (!in.Read(&r) || !in.Bytes(r.blob, &blob) || !in.empty()) return base::Error(EPROTO);
  if (r.count == 0 || r.count > kMaxWalk || (r.flags & ~kWalkOpen) != 0) return base::Error(EPROTO);
  // The names are checked before the first step: a malformed request changes nothing.
  std::string_view names[kMaxWalk];
  Reader lengths(blob);
  for (uint32_t i = 0; i < r.count; ++i) {
    uint16_t length;
    if (!lengths.Read(&length) || !lengths.Bytes(length, &names[i]) || !ValidName(names[i])) {
      return base::Error(EPROTO);
    }
  }
  if (!lengths.empty()) return base::Error(EPROTO);

  base::Ref<FsNode> at = TRY(s.Dir(r.handle, false));
  WalkReply reply = {};
  Node reached[kMaxWalk];
  while (reply.reached < r.count) {
    if (!at->IsDir()) {
      reply.stop = S_ISLNK(at->type()) ? ELOOP : ENOTDIR;
      break;
    }
    base::Ref<FsNode> next;
    auto node = s.Step(*at, names[reply.reached], &next);
    if (!node.ok()) {
      reply.stop = static_cast<uint32_t>(node.error().code());
      break;
    }
    at = std::move(next);
    reached[reply.reached++] = *node;
  }
  std::string link;
  if (reply.reached > 0 && S_ISLNK(at->type())) {
    auto target = ReadLink(*at);
    if (target.ok()) link = *std::move(target);
  }
  reply.link = static_cast<uint32_t>(link.size());
  if ((r.flags & kWalkOpen) != 0 && reply.stop == 0 && at->IsReg()) {
    auto fd = OpenRegular(s, *at, r.open_flags);
    if (fd.ok()) {
      out.Give(*std::move(fd));
    } else {
      reply.open_error = static_cast<uint32_t>(fd.error().code());
    }
  }
  Append(out.body, reply);
  for (uint32_t i = 0; i < reply.reached; ++i) Append(out.body, reached[i]);
  out.body->append(link);
  return base::Ok();
}

base::Status DoStatAt(Session& s, Reader in, ReplyBuilder out) {
  StatAtRequest r;
  std::string_view name;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.empty() || !ValidName(name)) {
    return base::Error(EPROTO);
  }
  const auto dir = TRY(s.Dir(r.parent, false));
  Append(out.body, AttrReply{TRY(StatName(dir->fd(), NameBuffer(name).text))});
  return base::Ok();
}

base::Status DoOpen(Session& s, Reader in, ReplyBuilder out) {
  OpenRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  out.Give(TRY(OpenRegular(s, *node, r.flags)));
  return base::Ok();
}

base::Status DoOpenMany(Session& s, Reader in, ReplyBuilder out) {
  OpenManyRequest r;
  if (!in.Read(&r) || r.count == 0 || r.count > kMaxOpenMany) return base::Error(EPROTO);
  OpenManyReply reply = {};
  for (uint32_t i = 0; i < r.count; ++i) {
    Handle handle;
    if (!in.Read(&handle)) return base::Error(EPROTO);
    const auto node = s.nodes.Get(handle);
    if (!node.ok()) continue;
    auto fd = OpenRegular(s, **node, O_RDONLY);
    if (!fd.ok()) continue;
    reply.opened |= uint32_t{1} << i;
    out.Give(*std::move(fd));
  }
  if (!in.empty()) return base::Error(EPROTO);
  Append(out.body, reply);
  return base::Ok();
}

base::Status DoReadlink(Session& s, Reader in, ReplyBuilder out) {
  HandleRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  const std::string target = TRY(ReadLink(*node));
  Append(out.body, BlobReply{static_cast<uint32_t>(target.size()), 0});
  out.body->append(target);
  return base::Ok();
}

namespace {

// Appends what goes with a directory entry, and returns which that is. An entry that has gone
// meanwhile, or for which no handle is left, has nothing.
DirEntryWith AppendWith(Session& s, const FsNode& dir, const char* name, uint32_t flags,
                        std::string* out) {
  if ((flags & kReadDirNodes) != 0) {
    base::Ref<FsNode> node;
    auto step = s.Step(dir, name, &node);
    if (!step.ok()) return kWithNothing;
    Append(out, *step);
    return kWithNode;
  }
  if ((flags & kReadDirAttrs) != 0) {
    auto attr = StatName(dir.fd(), name);
    if (!attr.ok()) return kWithNothing;
    Append(out, *attr);
    return kWithAttr;
  }
  return kWithNothing;
}

}  // namespace

base::Status DoReadDir(Session& s, Reader in, ReplyBuilder out) {
  ReadDirRequest r;
  if (!in.Read(&r) || !in.empty() || (r.flags & ~kReadDirAll) != 0) return base::Error(EPROTO);
  const auto node = TRY(s.Dir(r.handle, false));
  const base::UniqueFd dir = TRY(s.Reopen(*node, O_RDONLY | O_DIRECTORY));
  if (r.cursor != 0 && lseek(dir.get(), static_cast<off_t>(r.cursor), SEEK_SET) < 0) {
    return base::LastError();
  }
  constexpr size_t kFixed = sizeof(ReplyHeader) + sizeof(ReadDirReply);
  const size_t limit = kFixed + std::min<size_t>(r.max_bytes, kMaxMessage - kFixed);
  const size_t fixed_at = out.body->size();
  ReadDirReply reply = {0, 0, r.cursor};
  Append(out.body, reply);
  alignas(LinuxDirent64) char buffer[32 * 1024];
  bool full = false;
  while (!full) {
    const ssize_t n = getdents64(dir.get(), buffer, sizeof(buffer));
    if (n < 0) {
      // What was found so far is told (handles must not be lost); the error comes again.
      if (reply.count > 0) break;
      return base::LastError();
    }
    if (n == 0) {
      reply.eof = 1;
      break;
    }
    for (ssize_t at = 0; at < n;) {
      const auto* d = reinterpret_cast<const LinuxDirent64*>(buffer + at);
      at += d->reclen;
      const std::string_view name(d->name);
      if (name != "." && name != "..") {
        const size_t need = sizeof(DirEntry) + sizeof(Node) + name.size();
        if (reply.count > 0 && out.body->size() + need > limit) {
          full = true;
          break;
        }
        std::string with;
        DirEntry entry = {d->ino,
                          static_cast<uint64_t>(d->off),
                          static_cast<uint16_t>(name.size()),
                          d->type,
                          AppendWith(s, *node, d->name, r.flags, &with),
                          0};
        Append(out.body, entry);
        out.body->append(with);
        out.body->append(name);
        ++reply.count;
      }
      reply.next = static_cast<uint64_t>(d->off);
    }
  }
  memcpy(out.body->data() + fixed_at, &reply, sizeof(reply));
  return base::Ok();
}

base::Status DoConnect(Session& s, Reader in, ReplyBuilder out) {
  ConnectRequest r;
  if (!in.Read(&r) || !in.empty()) return base::Error(EPROTO);
  const auto node = TRY(s.nodes.Get(r.handle));
  if (r.type != SOCK_STREAM && r.type != SOCK_DGRAM && r.type != SOCK_SEQPACKET) {
    return base::Error(EINVAL);
  }
  if (!s.mounts[node->mount()].allow_connect) return base::Error(EACCES);
  if (!S_ISSOCK(node->type())) return base::Error(ECONNREFUSED);
  base::UniqueFd fd(socket(AF_UNIX, static_cast<int>(r.type) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return base::LastError();
  // Relative to the working directory, /proc/self/fd: this very socket, as in Reopen.
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof(address.sun_path), "%s", FdName(node->fd()).text);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return base::LastError();
  }
  out.Give(std::move(fd));
  return base::Ok();
}

base::Status DoEnd(Session& s, Reader in, ReplyBuilder) {
  EndRequest r;
  if (!in.Read(&r) || !in.empty() || r.exit_code > 255) return base::Error(EPROTO);
  s.exit_code.store(static_cast<int>(r.exit_code), std::memory_order_relaxed);
  s.ending.store(true, std::memory_order_release);
  return base::Ok();
}

base::Status DoForget(Session& s, Reader in, ReplyBuilder) {
  ForgetRequest r;
  if (!in.Read(&r) || r.count > kMaxForget) return base::Error(EPROTO);
  for (uint32_t i = 0; i < r.count; ++i) {
    Handle handle;
    if (!in.Read(&handle)) return base::Error(EPROTO);
    s.nodes.Forget(handle);
  }
  return in.empty() ? base::Ok() : base::Status(base::Error(EPROTO));
}

}  // namespace gofer
