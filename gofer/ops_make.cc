// Making and removing names: create, mkdir, mknod, symlink, link, unlink, rename.
//
// A new node belongs to the caller of the sandbox, whose ids the request brings. The gofer makes it
// as itself and gives it away. For a regular file that is done on the descriptor which O_EXCL
// created. For the other kinds the name must be looked up again, and someone outside could have put
// another node there meanwhile; so the node found is given away only if it is of the kind, owner,
// permissions and number of names that were just made (JustMade). Set-id bits are set after the
// owner, as Linux clears them when the owner changes.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>

#include "gofer/session.h"

namespace gofer {
namespace {

constexpr uint32_t kPermissions = 07777;

struct Owner {
  uint32_t uid;
  uint32_t gid;
  uint32_t mode;  // permissions
};

// Linux's inode_init_owner(): in a set-group-id directory a node gets its group, and a directory
// the bit as well.
base::Result<Owner> OwnerIn(const FsNode& parent, uint32_t uid, uint32_t gid, uint32_t mode,
                            bool directory) {
  const Attr attr = TRY(StatFd(parent.fd()));
  Owner owner = {uid, gid, mode & kPermissions};
  if ((attr.mode & S_ISGID) != 0) {
    owner.gid = attr.gid;
    if (directory) owner.mode |= S_ISGID;
  }
  return owner;
}

// True if the node can only be one that this process made a moment ago with `mode`.
bool JustMade(const Session& s, const Attr& attr, uint32_t type, uint32_t mode) {
  return (attr.mode & S_IFMT) == type && attr.uid == s.uid &&
         (type == S_IFLNK || (attr.mode & 0777 & ~mode) == 0) &&
         attr.nlink <= (type == S_IFDIR ? 2u : 1u);
}

// Gives the node of the O_PATH or data descriptor `fd` to `owner`.
base::Status GiveAway(const Session& s, int fd, const Attr& attr, const Owner& owner) {
  if (attr.uid != owner.uid || attr.gid != owner.gid) {
    if (fchownat(fd, "", owner.uid, owner.gid, AT_EMPTY_PATH) != 0) return base::LastError();
  }
  if (!S_ISLNK(attr.mode) && (owner.mode & ~0777u) != (attr.mode & (kPermissions & ~0777u))) {
    if (fchmodat(s.proc_fd, FdName(fd).text, owner.mode, 0) != 0) return base::LastError();
  }
  return base::Ok();
}

// The node that a request has made at `name`: given to its owner, with a handle. The name is
// removed again if that fails.
base::Status Finish(Session& s, const FsNode& parent, std::string_view name, uint32_t type,
                    const Owner& owner, ReplyBuilder out) {
  base::Ref<FsNode> node;
  auto made = s.Step(parent, name, &node);
  if (!made.ok()) return made.error();
  base::Status status;
  if (!JustMade(s, made->attr, type, owner.mode & 0777)) {
    status = base::Error(ESTALE);
  } else {
    status = GiveAway(s, node->fd(), made->attr, owner);
    if (!status.ok()) {
      unlinkat(parent.fd(), NameBuffer(name).text, type == S_IFDIR ? AT_REMOVEDIR : 0);
    }
  }
  base::Result<Attr> attr = base::Error(EIO);
  if (status.ok()) attr = StatFd(node->fd());
  if (!attr.ok()) {
    s.nodes.Forget(made->handle);
    return status.ok() ? attr.error() : status.error();
  }
  Append(out.body, Node{made->handle, *attr});
  return base::Ok();
}

struct MakeArgs {
  base::Ref<FsNode> parent;
  std::string_view name;
  MakeRequest request;
};

base::Result<MakeArgs> ReadMake(Session& s, Reader in, bool named = true) {
  MakeArgs args;
  MakeRequest& r = args.request;
  if (!in.Read(&r) || !in.Bytes(r.name, &args.name) || !in.empty() ||
      (named ? !ValidName(args.name) : !args.name.empty())) {
    return base::Error(EPROTO);
  }
  args.parent = TRY(s.Dir(r.parent, true));
  if (!s.nodes.HasRoom()) return base::Error(ENFILE);
  return args;
}

base::Status CheckOpenRequest(const MakeRequest& r) {
  if ((r.mode & ~kPermissions) != 0 || (r.flags & ~uint32_t{O_ACCMODE}) != 0 ||
      (r.flags & O_ACCMODE) == O_ACCMODE) {
    return base::Error(EINVAL);
  }
  return base::Ok();
}

// The new regular file of `fd`, given to its owner, as the reply. The handle is taken from the
// descriptor, as a name may be another's by now.
base::Status FinishOpen(Session& s, const FsNode& parent, base::UniqueFd fd, const Owner& owner,
                        ReplyBuilder out) {
  TRY(GiveAway(s, fd.get(), TRY(StatFd(fd.get())), owner));
  const Attr attr = TRY(StatFd(fd.get()));
  base::UniqueFd path(openat(s.proc_fd, FdName(fd.get()).text, O_PATH | O_CLOEXEC));
  if (!path.valid()) return base::LastError();
  const Handle handle =
      TRY(s.nodes.Add(base::MakeRef<FsNode>(std::move(path), parent.mount(), S_IFREG)));
  Append(out.body, Node{handle, attr});
  out.Give(std::move(fd));
  return base::Ok();
}

}  // namespace

base::Status DoTmpfile(Session& s, Reader in, ReplyBuilder out) {
  const MakeArgs args = TRY(ReadMake(s, in, /*named=*/false));
  const MakeRequest& r = args.request;
  TRY(CheckOpenRequest(r));
  if ((r.flags & O_ACCMODE) == O_RDONLY) return base::Error(EINVAL);
  const Owner owner = TRY(OwnerIn(*args.parent, r.uid, r.gid, r.mode, false));
  base::UniqueFd fd(openat(args.parent->fd(), ".",
                           static_cast<int>(r.flags) | O_TMPFILE | O_CLOEXEC | O_NONBLOCK,
                           owner.mode & 0777));
  if (!fd.valid()) return base::LastError();
  return FinishOpen(s, *args.parent, std::move(fd), owner, out);
}

base::Status DoCreate(Session& s, Reader in, ReplyBuilder out) {
  const MakeArgs args = TRY(ReadMake(s, in));
  const MakeRequest& r = args.request;
  TRY(CheckOpenRequest(r));
  const Owner owner = TRY(OwnerIn(*args.parent, r.uid, r.gid, r.mode, false));
  const NameBuffer name(args.name);
  // O_EXCL: the descriptor is of a file that did not exist, and no link is followed.
  base::UniqueFd fd(openat(
      args.parent->fd(), name.text,
      static_cast<int>(r.flags) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
      owner.mode & 0777));
  if (!fd.valid()) return base::LastError();
  const base::Status done = FinishOpen(s, *args.parent, std::move(fd), owner, out);
  if (!done.ok()) unlinkat(args.parent->fd(), name.text, 0);
  return done;
}

base::Status DoMkdir(Session& s, Reader in, ReplyBuilder out) {
  const MakeArgs args = TRY(ReadMake(s, in));
  const MakeRequest& r = args.request;
  if ((r.mode & ~kPermissions) != 0 || r.flags != 0) return base::Error(EINVAL);
  const Owner owner = TRY(OwnerIn(*args.parent, r.uid, r.gid, r.mode, true));
  if (mkdirat(args.parent->fd(), NameBuffer(args.name).text, owner.mode & 0777) != 0) {
    return base::LastError();
  }
  return Finish(s, *args.parent, args.name, S_IFDIR, owner, out);
}

base::Status DoMknod(Session& s, Reader in, ReplyBuilder out) {
  const MakeArgs args = TRY(ReadMake(s, in));
  const MakeRequest& r = args.request;
  const uint32_t type = r.mode & S_IFMT;
  if ((r.mode & ~(kPermissions | S_IFMT)) != 0 || r.flags != 0) return base::Error(EINVAL);
  if (type == S_IFCHR || type == S_IFBLK) return base::Error(EPERM);
  if (type != S_IFREG && type != S_IFIFO && type != S_IFSOCK) return base::Error(EINVAL);
  const Owner owner = TRY(OwnerIn(*args.parent, r.uid, r.gid, r.mode, false));
  if (mknodat(args.parent->fd(), NameBuffer(args.name).text, type | (owner.mode & 0777), 0) != 0) {
    return base::LastError();
  }
  return Finish(s, *args.parent, args.name, type, owner, out);
}

base::Status DoSymlink(Session& s, Reader in, ReplyBuilder out) {
  SymlinkRequest r;
  std::string_view name, target;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.Bytes(r.target, &target) || !in.empty() ||
      !ValidName(name) || target.size() > kMaxLink || target.find('\0') != target.npos) {
    return base::Error(EPROTO);
  }
  if (target.empty()) return base::Error(ENOENT);
  const auto parent = TRY(s.Dir(r.parent, true));
  if (!s.nodes.HasRoom()) return base::Error(ENFILE);
  const Owner owner = TRY(OwnerIn(*parent, r.uid, r.gid, 0777, false));
  if (symlinkat(std::string(target).c_str(), parent->fd(), NameBuffer(name).text) != 0) {
    return base::LastError();
  }
  return Finish(s, *parent, name, S_IFLNK, owner, out);
}

base::Status DoLink(Session& s, Reader in, ReplyBuilder out) {
  LinkRequest r;
  std::string_view name;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.empty() || !ValidName(name)) {
    return base::Error(EPROTO);
  }
  const auto node = TRY(s.Any(r.handle, true));
  const auto parent = TRY(s.Dir(r.parent, true));
  if (node->IsDir()) return base::Error(EPERM);
  if (node->mount() != parent->mount()) return base::Error(EXDEV);
  // Through /proc/self/fd/N as in Reopen: that inode, whatever its names are now.
  if (linkat(s.proc_fd, FdName(node->fd()).text, parent->fd(), NameBuffer(name).text,
             AT_SYMLINK_FOLLOW) != 0) {
    return base::LastError();
  }
  Append(out.body, AttrReply{TRY(StatFd(node->fd()))});
  return base::Ok();
}

base::Status DoUnlink(Session& s, Reader in, ReplyBuilder) {
  UnlinkRequest r;
  std::string_view name;
  if (!in.Read(&r) || !in.Bytes(r.name, &name) || !in.empty() || !ValidName(name) ||
      r.directory > 1) {
    return base::Error(EPROTO);
  }
  const auto parent = TRY(s.Dir(r.parent, true));
  if (unlinkat(parent->fd(), NameBuffer(name).text, r.directory != 0 ? AT_REMOVEDIR : 0) != 0) {
    return base::LastError();
  }
  return base::Ok();
}

base::Status DoRename(Session& s, Reader in, ReplyBuilder) {
  RenameRequest r;
  std::string_view old_name, new_name;
  if (!in.Read(&r) || !in.Bytes(r.old_name, &old_name) || !in.Bytes(r.new_name, &new_name) ||
      !in.empty() || !ValidName(old_name) || !ValidName(new_name) || r.reserved != 0) {
    return base::Error(EPROTO);
  }
  if (r.flags != 0 && r.flags != RENAME_NOREPLACE && r.flags != RENAME_EXCHANGE) {
    return base::Error(EINVAL);
  }
  const auto old_parent = TRY(s.Dir(r.old_parent, true));
  const auto new_parent = TRY(s.Dir(r.new_parent, true));
  if (old_parent->mount() != new_parent->mount()) return base::Error(EXDEV);
  // The raw call: glibc makes another one for flags 0, which the filter would not know.
  if (syscall(SYS_renameat2, old_parent->fd(), NameBuffer(old_name).text, new_parent->fd(),
              NameBuffer(new_name).text, r.flags) != 0) {
    return base::LastError();
  }
  return base::Ok();
}

}  // namespace gofer
