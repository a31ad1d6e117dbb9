#include "sentry/vfs/vfs.h"

#include <fcntl.h>
#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/notify.h"
#include "sentry/vfs/vfs_impl.h"
#include "sentry/vfs/walker.h"

namespace sentry {
namespace {

constexpr uint64_t kAnonInodeMagic = 0x09041934;
constexpr uint32_t kTmpfileBit = O_TMPFILE & ~O_DIRECTORY;

// Directories can be nested without bound by relative paths; nobody is shown more than this.
constexpr size_t kMaxShownPath = 4 * kPathMax;

class AnonymousFilesystem : public Filesystem {
 public:
  AnonymousFilesystem() : Filesystem("anon_inodefs", kAnonInodeMagic) {}
};

// What an access mode asks of permissions (Linux: ACC_MODE). 3 asks for both and gives neither.
int AccessModeOf(uint32_t flags) {
  switch (flags & O_ACCMODE) {
    case O_RDONLY:
      return kMayRead;
    case O_WRONLY:
      return kMayWrite;
    default:
      return kMayRead | kMayWrite;
  }
}

bool IsSpecial(mode_t type) {
  return S_ISCHR(type) || S_ISBLK(type) || S_ISFIFO(type) || S_ISSOCK(type);
}

uint64_t CharKey(unsigned major, int minor) {
  return uint64_t{major} << 32 | static_cast<uint32_t>(minor);
}

}  // namespace

void SpecialFiles::RegisterCharDevice(unsigned major, int minor, OpenDevice open) {
  chars_[CharKey(major, minor)] = std::move(open);
}

base::Result<base::Ref<FileDescription>> SpecialFiles::Open(const OpenArgs& args,
                                                            const InodeAttr& attr) const {
  if (S_ISFIFO(attr.mode) && fifo_) return fifo_(args);
  if (S_ISCHR(attr.mode)) {
    auto it = chars_.find(CharKey(major(attr.rdev), static_cast<int>(minor(attr.rdev))));
    if (it == chars_.end()) it = chars_.find(CharKey(major(attr.rdev), -1));
    if (it != chars_.end()) return it->second(args, attr.rdev);
  }
  return base::Error(ENXIO);
}

Vfs::Vfs() : impl_(std::make_unique<Impl>()) {
  impl_->anonymous = base::MakeRef<AnonymousFilesystem>();
  auto root = base::MakeRef<AnonInode>(impl_->anonymous.get(), S_IFDIR | 0555, 0, 0);
  impl_->anonymous_mount = NewMount(root, 0, "anon_inodefs");
}

Vfs::~Vfs() = default;

void Vfs::RegisterFilesystem(std::unique_ptr<FilesystemType> type) {
  absl::MutexLock l(&impl_->mutex);
  impl_->types.push_back(std::move(type));
}

FilesystemType* Vfs::FindFilesystem(std::string_view name) const {
  absl::ReaderMutexLock l(&impl_->mutex);
  for (const auto& type : impl_->types) {
    if (type->name() == name) return type.get();
  }
  return nullptr;
}

std::vector<const FilesystemType*> Vfs::filesystems() const {
  absl::ReaderMutexLock l(&impl_->mutex);
  std::vector<const FilesystemType*> result;
  for (const auto& type : impl_->types) result.push_back(type.get());
  return result;
}

base::Ref<Mount> Vfs::NewMount(const base::Ref<Inode>& root, uint64_t flags, std::string source) {
  return base::MakeRef<Mount>(base::Ref<Filesystem>(&root->fs()), Dentry::RootOf(root), flags,
                              std::move(source));
}

base::Result<base::Ref<Mount>> Vfs::MakeMount(std::string_view fs_type, const MountArgs& args) {
  FilesystemType* type = FindFilesystem(fs_type);
  if (type == nullptr) return base::Error(ENODEV);
  const base::Ref<Inode> root = TRY(type->Mount(args));
  // One that is there already stays as it is.
  if ((args.flags & MS_RDONLY) != 0 && root->fs().mounts() == 0) TRY(root->fs().SetReadOnly(true));
  return NewMount(root, args.flags, args.source);
}

base::Status Vfs::Bind(MountNamespace& ns, const Path& what, const Path& where, uint64_t flags) {
  return ns.Bind(what, where, (flags & MS_REC) != 0, flags & ~uint64_t{MS_REC | MS_BIND});
}

Path Vfs::AnonymousPath(base::Ref<Inode> inode, std::string name) {
  return Path{impl_->anonymous_mount, Dentry::NewRoot(std::move(inode), std::move(name))};
}

const base::Ref<Filesystem>& Vfs::anonymous_filesystem() const { return impl_->anonymous; }

base::Result<Path> Vfs::Walk(const WalkContext& ctx, std::string_view path, WalkFlags flags) {
  return Walker(ctx).Walk(path, flags);
}

std::string Vfs::PathName(MountNamespace& ns, const Path& root, const Path& path) {
  if (path.mount == impl_->anonymous_mount) return path.dentry->name();
  std::string result;
  for (;;) {
    const uint64_t sequence = Dentry::rename_sequence();
    std::string name;
    size_t shown = 0;
    bool reachable = true;
    Path at = path;
    while (!(at == root)) {
      if (at.dentry == at.mount->root()) {
        Path up = ns.MountPoint(*at.mount);
        if (!up) {
          reachable = false;
          break;
        }
        at = std::move(up);
        continue;
      }
      base::Ref<Dentry> up = at.dentry->parent();
      if (up == at.dentry) {
        // Of no directory (O_TMPFILE, memfd): the name tells all. Else above the task's root.
        if (name.empty() && at.dentry != at.mount->root()) return at.dentry->name();
        reachable = false;
        break;
      }
      name.insert(0, at.dentry->name());
      name.insert(0, 1, '/');
      // (Asked of the length itself, g++ 12 warns of a copy out of bounds that cannot be.)
      shown += at.dentry->name().size() + 1;
      if (shown > kMaxShownPath) return name;
      at.dentry = std::move(up);
    }
    if (name.empty()) name = "/";
    result = reachable ? std::move(name) : "(unreachable)" + name;
    if (Dentry::rename_sequence() == sequence) break;
  }
  if (path.dentry->unlinked()) result += " (deleted)";
  return result;
}

// Linux: do_open, may_open, do_dentry_open.
base::Result<base::Ref<FileDescription>> Vfs::OpenAt(const WalkContext& ctx, Path path,
                                                     uint32_t flags, bool created) {
  if ((flags & O_PATH) != 0) {
    return base::Ref<FileDescription>(base::MakeRef<PathOnlyFile>(std::move(path)));
  }
  Inode& inode = *path.dentry->inode_ptr();
  const mode_t type = inode.type();
  int may = AccessModeOf(flags);
  const bool truncate = (flags & O_TRUNC) != 0 && S_ISREG(type) && !created;
  if ((flags & O_TRUNC) != 0) may |= kMayWrite;
  if (truncate && path.mount->read_only()) return base::Error(EROFS);
  if (created) may = 0;
  switch (type) {
    case S_IFLNK:
      return base::Error(ELOOP);
    case S_IFDIR:
      if ((may & kMayWrite) != 0) return base::Error(EISDIR);
      break;
    case S_IFCHR:
    case S_IFBLK:
      if ((path.mount->flags() & MS_NODEV) != 0) return base::Error(EACCES);
      break;
    default:
      break;
  }
  if (may != 0) TRY(inode.CheckPermission(ctx.creds, may));
  if ((flags & O_NOATIME) != 0) {
    const InodePerm perm = TRY(inode.GetPerm());
    if (!OwnerOrCapable(ctx.creds, perm.uid, perm.gid)) return base::Error(EPERM);
  }
  const bool write = (flags & O_ACCMODE) == O_WRONLY || (flags & O_ACCMODE) == O_RDWR;
  const bool counts = write && S_ISREG(type);
  if (counts) TRY(inode.GetWriteAccess());
  auto open = [&]() -> base::Result<base::Ref<FileDescription>> {
    if (write && !IsSpecial(type) && path.mount->read_only()) return base::Error(EROFS);
    TRY(BreakLease(inode, flags));
    const bool made = created && (flags & kTmpfileBit) == 0;
    const OpenArgs args{path, (flags & ~uint32_t{O_CREAT}) | (made ? O_CREAT : 0u), ctx.creds};
    // A pipe of the host's that runsc donated is no FIFO of ours.
    const bool host_pipe = S_ISFIFO(type) && &inode.fs() == impl_->anonymous.get();
    if (IsSpecial(type) && !host_pipe) return special_.Open(args, TRY(inode.GetAttr()));
    return inode.Open(args);
  };
  base::Result<base::Ref<FileDescription>> file = open();
  if (!file.ok()) {
    if (counts) inode.DropWriteAccess();
    return file;
  }
  if (counts) (*file)->set_holds_write_access();
  NotifyDentry(*path.dentry, IN_OPEN);
  if (truncate) {
    AttrChange change;
    change.set_size = change.set_mtime = change.mtime_now = true;
    const mode_t kept = TRY(RemovePrivs(ctx.creds, inode));
    inode.attr_word().Changing();
    TRY(inode.SetAttr(change));
    TRY(RestorePrivs(inode, kept));
    NotifyDentry(*path.dentry, IN_MODIFY);
  }
  return file;
}

base::Result<base::Ref<FileDescription>> Vfs::OpenTmpfile(const WalkContext& ctx,
                                                          std::string_view path, uint32_t flags,
                                                          mode_t mode) {
  Path dir = TRY(Walk(ctx, path, {.need_dir = true}));
  if (dir.mount->read_only()) return base::Error(EROFS);
  Inode& inode = *dir.dentry->inode_ptr();
  TRY(inode.CheckPermission(ctx.creds, kMayWrite | kMayExec));
  NewInode fresh = TRY(PrepareNewInode(ctx, inode, S_IFREG | (mode & 07777), 0));
  base::Ref<Inode> file;
  {
    fiber::WriterLock l(&inode.lock());
    if (inode.dead()) return base::Error(ENOENT);
    file = TRY(inode.Tmpfile(fresh));
  }
  // A name as Linux shows it, of a file that never had one.
  auto dentry = Dentry::NewRoot(file, "/#" + std::to_string(file->ino()) + " (deleted)");
  return OpenAt(ctx, Path{dir.mount, std::move(dentry)}, flags & ~uint32_t{O_TRUNC},
                /*created=*/true);
}

// Linux: open_last_lookups, lookup_open.
base::Result<base::Ref<FileDescription>> Vfs::OpenCreate(const WalkContext& ctx,
                                                         std::string_view path, uint32_t flags,
                                                         mode_t mode) {
  const bool exclusive = (flags & O_EXCL) != 0;
  const bool follow = (flags & O_NOFOLLOW) == 0 && !exclusive;
  Walker walker(ctx);
  TRY(walker.Begin(path));
  for (;;) {
    TRY(walker.ToLast());
    if (walker.last_type() != LastType::kNormal) {
      TRY(walker.StepSpecial());
      return base::Error(exclusive ? EEXIST : EISDIR);
    }
    if (walker.trailing_slash()) return base::Error(EISDIR);
    Dentry& dir = *walker.cur().dentry;
    Inode& dir_inode = *dir.inode_ptr();
    base::Ref<Dentry> child;
    if (!dir_inode.fs().needs_revalidation()) child = dir.FindChild(walker.last());
    if (!child || child->IsNegative()) {
      fiber::WriterLock l(&dir_inode.lock());
      child = TRY(LookupLocked(dir, walker.last()));
      if (!child || child->IsNegative()) {
        if (dir_inode.dead()) return base::Error(ENOENT);
        if (walker.cur().mount->read_only()) return base::Error(EROFS);
        TRY(dir_inode.CheckPermission(ctx.creds, kMayWrite | kMayExec));
        const NewInode fresh = TRY(PrepareNewInode(ctx, dir_inode, S_IFREG | (mode & 07777), 0));
        dir_inode.fs().BeginChange();
        dir_inode.attr_word().Changing();
        if (child) child->word().Changing();
        base::Ref<Inode> inode = TRY(dir_inode.Create(walker.last(), fresh));
        if (child) {
          child->Instantiate(std::move(inode));
        } else {
          child = dir.AddChild(walker.last(), std::move(inode));
        }
        NotifyDir(dir_inode, IN_CREATE, walker.last());
        return OpenAt(ctx, Path{walker.cur().mount, std::move(child)}, flags & ~uint32_t{O_TRUNC},
                      /*created=*/true);
      }
    }
    if (exclusive) return base::Error(EEXIST);
    if (TRY(walker.StepTo(std::move(child), follow))) break;
  }
  Inode* inode = walker.cur().dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if (inode->IsDir()) return base::Error(EISDIR);
  return OpenAt(ctx, std::move(walker.cur()), flags, /*created=*/false);
}

base::Result<base::Ref<FileDescription>> Vfs::Open(const WalkContext& ctx, std::string_view path,
                                                   uint32_t flags, mode_t mode) {
  if ((flags & O_PATH) != 0) flags &= O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  if ((flags & kTmpfileBit) != 0) {
    if ((flags & O_TMPFILE) != O_TMPFILE || (flags & O_CREAT) != 0) return base::Error(EINVAL);
    if ((AccessModeOf(flags) & kMayWrite) == 0) return base::Error(EINVAL);
    return OpenTmpfile(ctx, path, flags, mode);
  }
  if ((flags & O_CREAT) != 0) {
    if ((flags & O_DIRECTORY) != 0) return base::Error(EINVAL);
    return OpenCreate(ctx, path, flags, mode);
  }
  Path found =
      TRY(Walk(ctx, path,
               {.follow_last = (flags & O_NOFOLLOW) == 0, .need_dir = (flags & O_DIRECTORY) != 0}));
  return OpenAt(ctx, std::move(found), flags, /*created=*/false);
}

base::Result<base::Ref<FileDescription>> Vfs::OpenPath(const WalkContext& ctx, const Path& path,
                                                       uint32_t flags) {
  if (path.dentry->IsNegative()) return base::Error(ENOENT);
  return OpenAt(ctx, path, flags & ~uint32_t{O_CREAT | O_EXCL}, /*created=*/false);
}

base::Result<base::Ref<FileDescription>> Vfs::OpenExec(const WalkContext& ctx,
                                                       std::string_view path, WalkFlags flags) {
  Path found = TRY(Walk(ctx, path, flags));
  Inode& inode = *found.dentry->inode_ptr();
  if (inode.IsSymlink()) return base::Error(ELOOP);
  if (!inode.IsReg() || (found.mount->flags() & MS_NOEXEC) != 0) return base::Error(EACCES);
  TRY(inode.CheckPermission(ctx.creds, kMayExec));
  TRY(BreakLease(inode, O_RDONLY));
  return inode.Open(OpenArgs{found, O_RDONLY, ctx.creds});
}

AnonInode::AnonInode(Filesystem* fs, mode_t mode, uid_t uid, gid_t gid)
    : Inode(fs, NextIno(), mode) {
  absl::MutexLock l(&mutex_);
  attr_.ino = ino();
  attr_.dev = fs->dev();
  attr_.mode = mode;
  attr_.uid = uid;
  attr_.gid = gid;
  attr_.atime = attr_.mtime = attr_.ctime = attr_.btime = CurrentTime();
  CachePerm(mode, uid, gid);
}

uint64_t AnonInode::NextIno() {
  static std::atomic<uint64_t> next{1000};
  return next.fetch_add(1, std::memory_order_relaxed);
}

base::Result<InodeAttr> AnonInode::GetAttr() {
  absl::MutexLock l(&mutex_);
  return attr_;
}

base::Status AnonInode::SetAttr(const AttrChange& change) {
  if (change.set_size) return base::Error(EINVAL);
  absl::MutexLock l(&mutex_);
  const timespec now = CurrentTime();
  if (change.set_mode) attr_.mode = type() | (change.mode & 07777);
  if (change.set_uid) attr_.uid = change.uid;
  if (change.set_gid) attr_.gid = change.gid;
  if (change.set_atime) attr_.atime = change.atime_now ? now : change.atime;
  if (change.set_mtime) attr_.mtime = change.mtime_now ? now : change.mtime;
  attr_.ctime = now;
  CachePerm(attr_.mode, attr_.uid, attr_.gid);
  return base::Ok();
}

base::Result<base::Ref<FileDescription>> AnonInode::Open(const OpenArgs&) {
  return base::Error(ENXIO);
}

}  // namespace sentry
