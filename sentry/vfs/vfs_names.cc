// Creation, removal and renaming of names (Linux: fs/namei.c).
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/notify.h"
#include "sentry/vfs/vfs_impl.h"
#include "sentry/vfs/walker.h"

namespace sentry {
namespace {

// A parent directory with a name that is free, for mkdir, mknod, symlink and link
// (Linux: filename_create). The parent's inode lock is held while this lives.
class ABSL_SCOPED_LOCKABLE NewName {
 public:
  // Not annotated: which lock it takes is known at run time only.
  static base::Result<std::unique_ptr<NewName>> Find(const WalkContext& ctx, std::string_view path,
                                                     bool for_dir) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto name = std::unique_ptr<NewName>(new NewName(ctx));
    Walker& w = name->walker_;
    TRY(w.Begin(path));
    TRY(w.ToLast());
    if (w.last_type() != LastType::kNormal) return base::Error(EEXIST);
    name->dir_ = w.cur().dentry->inode_ptr();
    name->dir_->lock().Lock();
    name->locked_ = true;
    name->child_ = TRY(LookupLocked(*w.cur().dentry, w.last()));
    if (name->child_ && !name->child_->IsNegative()) return base::Error(EEXIST);
    if (w.trailing_slash() && !for_dir) return base::Error(ENOENT);
    if (w.cur().mount->read_only()) return base::Error(EROFS);
    return name;
  }
  ~NewName() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (locked_) dir_->lock().Unlock();
  }
  Inode& dir() { return *dir_; }
  const base::Ref<Mount>& mount() { return walker_.cur().mount; }
  std::string_view name() const { return walker_.last(); }
  // The filesystem is about to make it.
  void Begin() {
    dir_->fs().BeginChange();
    dir_->attr_word().Changing();
    if (child_) child_->word().Changing();
  }
  // The filesystem made it.
  Path Done(base::Ref<Inode> inode) {
    const bool is_dir = inode->IsDir();
    if (child_) {
      child_->Instantiate(std::move(inode));
    } else {
      child_ = walker_.cur().dentry->AddChild(name(), std::move(inode));
    }
    NotifyDir(*dir_, IN_CREATE | (is_dir ? IN_ISDIR : 0), name());
    return Path{mount(), child_};
  }

 private:
  explicit NewName(const WalkContext& ctx) : walker_(ctx) {}
  Walker walker_;
  Inode* dir_ = nullptr;
  base::Ref<Dentry> child_;
  bool locked_ = false;
};

// Linux: may_mknod.
base::Status CheckNodeType(mode_t mode) {
  switch (mode & S_IFMT) {
    case 0:
    case S_IFREG:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
      return base::Ok();
    case S_IFDIR:
      return base::Error(EPERM);
    default:
      return base::Error(EINVAL);
  }
}

// A name is about to be removed, or given to something else. Null: there is none.
void BeginChange(Inode& dir, Dentry* name) {
  dir.attr_word().Changing();
  if (name == nullptr) return;
  name->word().Changing();
  if (Inode* inode = name->inode_ptr()) inode->attr_word().Changing();
}

// After a name was removed: the cache learns that there is none.
void ForgetName(Dentry& dir, Dentry& victim, std::string_view name) {
  victim.MarkUnlinked();
  if (!dir.inode_ptr()->fs().cheap_lookup()) dir.AddChild(name, nullptr);
}

// An object lost its last name, or one of several. The order is Linux's: the object's own events
// come before its parent's.
void NotifyLostName(Inode& victim) {
  if (victim.watches() == nullptr) return;
  auto attr = victim.GetAttr();
  if (!victim.IsDir()) NotifyInode(victim, IN_ATTRIB);
  if (victim.IsDir() || (attr.ok() && attr->nlink == 0)) NotifyInode(victim, IN_DELETE_SELF);
}

// What has lost a name, if anything. Stands before the locks, so that it goes without them: whoever
// has closed the object in its stub has let it go then, as its space may be wanted.
struct LostName {
  ~LostName() {
    if (dentry) dentry->inode_ptr()->SeeCloses();
  }
  base::Ref<Dentry> dentry;
};

void NotifyRemoved(Inode& dir, std::string_view name, Inode& victim) {
  if (!AnyWatches()) return;
  NotifyLostName(victim);
  NotifyDir(dir, IN_DELETE | (victim.IsDir() ? IN_ISDIR : 0), name);
}

}  // namespace

base::Status MayCreate(const Credentials& creds, Inode& dir) {
  if (dir.dead()) return base::Error(ENOENT);
  if (creds.user_ns &&
      !(creds.user_ns->HasUid(creds.fsuid) && creds.user_ns->HasGid(creds.fsgid))) {
    return base::Error(EOVERFLOW);
  }
  return dir.CheckPermission(creds, kMayWrite | kMayExec);
}

base::Status MayDelete(const Credentials& creds, Inode& dir, const Dentry& victim, bool want_dir) {
  Inode* inode = victim.inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  TRY(dir.CheckPermission(creds, kMayWrite | kMayExec));
  const InodePerm dir_perm = TRY(dir.GetPerm());
  if ((dir_perm.mode & S_ISVTX) != 0) {
    const InodePerm perm = TRY(inode->GetPerm());
    if (creds.fsuid != perm.uid && creds.fsuid != dir_perm.uid &&
        !CapableOver(creds, CAP_FOWNER, perm.uid, perm.gid)) {
      return base::Error(EPERM);
    }
  }
  if (want_dir && !inode->IsDir()) return base::Error(ENOTDIR);
  if (!want_dir && inode->IsDir()) return base::Error(EISDIR);
  if (dir.dead()) return base::Error(ENOENT);
  return base::Ok();
}

base::Result<NewInode> PrepareNewInode(const WalkContext& ctx, Inode& dir, mode_t type_and_mode,
                                       dev_t rdev) {
  const InodePerm perm = TRY(dir.GetPerm());
  NewInode fresh{type_and_mode, ctx.creds.fsuid, ctx.creds.fsgid, rdev};
  if (!S_ISLNK(type_and_mode)) fresh.mode &= ~(ctx.umask & 0777);
  if ((perm.mode & S_ISGID) != 0) {
    fresh.gid = perm.gid;
    if (S_ISDIR(type_and_mode)) {
      fresh.mode |= S_ISGID;
    } else if ((fresh.mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) &&
               !ctx.creds.InGroup(perm.gid) &&
               !CapableOver(ctx.creds, CAP_FSETID, perm.uid, perm.gid)) {
      fresh.mode &= ~S_ISGID;
    }
  }
  return fresh;
}

base::Status Vfs::Mkdir(const WalkContext& ctx, std::string_view path, mode_t mode) {
  auto name = TRY(NewName::Find(ctx, path, /*for_dir=*/true));
  TRY(MayCreate(ctx.creds, name->dir()));
  const NewInode fresh = TRY(PrepareNewInode(ctx, name->dir(), S_IFDIR | (mode & 01777), 0));
  name->Begin();
  name->Done(TRY(name->dir().Mkdir(name->name(), fresh)));
  return base::Ok();
}

base::Result<Path> Vfs::MknodAt(const WalkContext& ctx, std::string_view path, mode_t mode,
                                dev_t dev) {
  auto name = TRY(NewName::Find(ctx, path, /*for_dir=*/false));
  TRY(MayCreate(ctx.creds, name->dir()));
  const bool whiteout = S_ISCHR(mode) && dev == 0;
  if ((S_ISCHR(mode) || S_ISBLK(mode)) && !whiteout && !ctx.creds.HasCap(CAP_MKNOD)) {
    return base::Error(EPERM);
  }
  if ((mode & S_IFMT) == 0) mode |= S_IFREG;
  const NewInode fresh = TRY(PrepareNewInode(ctx, name->dir(), mode & (S_IFMT | 07777), dev));
  name->Begin();
  return name->Done(TRY(name->dir().Create(name->name(), fresh)));
}

base::Status Vfs::Mknod(const WalkContext& ctx, std::string_view path, mode_t mode, dev_t dev) {
  TRY(CheckNodeType(mode));
  TRY(MknodAt(ctx, path, mode, dev));
  return base::Ok();
}

base::Status Vfs::Symlink(const WalkContext& ctx, std::string_view target, std::string_view path) {
  if (target.empty()) return base::Error(ENOENT);
  auto name = TRY(NewName::Find(ctx, path, /*for_dir=*/false));
  TRY(MayCreate(ctx.creds, name->dir()));
  const NewInode fresh = TRY(PrepareNewInode(ctx, name->dir(), S_IFLNK | 0777, 0));
  name->Begin();
  name->Done(TRY(name->dir().Symlink(name->name(), target, fresh)));
  return base::Ok();
}

base::Status Vfs::Link(const WalkContext& old_ctx, std::string_view old_path, WalkFlags old_flags,
                       const WalkContext& new_ctx, std::string_view new_path) {
  return LinkPath(TRY(Walk(old_ctx, old_path, old_flags)), new_ctx, new_path);
}

base::Status Vfs::LinkPath(const Path& old, const WalkContext& new_ctx, std::string_view new_path) {
  auto name = TRY(NewName::Find(new_ctx, new_path, /*for_dir=*/false));
  if (name->mount() != old.mount) return base::Error(EXDEV);
  base::Ref<Inode> inode = old.dentry->inode();
  if (!inode) return base::Error(ENOENT);
  TRY(MayCreate(new_ctx.creds, name->dir()));
  if (inode->IsDir()) return base::Error(EPERM);
  name->Begin();
  inode->attr_word().Changing();
  TRY(name->dir().Link(name->name(), *inode));
  NotifyInode(*inode, IN_ATTRIB);
  name->Done(std::move(inode));
  return base::Ok();
}

base::Status Vfs::Unlink(const WalkContext& ctx, std::string_view path) {
  Walker w(ctx);
  TRY(w.Begin(path));
  TRY(w.ToLast());
  if (w.last_type() != LastType::kNormal) return base::Error(EISDIR);
  if (w.cur().mount->read_only()) return base::Error(EROFS);
  Dentry& dir = *w.cur().dentry;
  Inode& dir_inode = *dir.inode_ptr();
  base::Ref<Dentry> victim;  // dies without the lock
  LostName lost;
  fiber::WriterLock l(&dir_inode.lock());
  victim = TRY(LookupLocked(dir, w.last()));
  if (!victim || victim->IsNegative()) return base::Error(ENOENT);
  Inode& inode = *victim->inode_ptr();
  if (w.trailing_slash()) return base::Error(inode.IsDir() ? EISDIR : ENOTDIR);
  TRY(MayDelete(ctx.creds, dir_inode, *victim, /*want_dir=*/false));
  if (victim->is_mountpoint()) return base::Error(EBUSY);
  dir_inode.fs().BeginChange();
  BeginChange(dir_inode, victim.get());
  TRY(dir_inode.Unlink(w.last(), inode));
  ForgetName(dir, *victim, w.last());
  lost.dentry = victim;
  NotifyRemoved(dir_inode, w.last(), inode);
  return base::Ok();
}

base::Status Vfs::Rmdir(const WalkContext& ctx, std::string_view path) {
  Walker w(ctx);
  TRY(w.Begin(path));
  TRY(w.ToLast());
  switch (w.last_type()) {
    case LastType::kDotDot:
      return base::Error(ENOTEMPTY);
    case LastType::kDot:
      return base::Error(EINVAL);
    case LastType::kRoot:
      return base::Error(EBUSY);
    case LastType::kNormal:
      break;
  }
  if (w.cur().mount->read_only()) return base::Error(EROFS);
  Dentry& dir = *w.cur().dentry;
  Inode& dir_inode = *dir.inode_ptr();
  base::Ref<Dentry> victim;
  LostName lost;
  fiber::WriterLock l(&dir_inode.lock());
  victim = TRY(LookupLocked(dir, w.last()));
  if (!victim || victim->IsNegative()) return base::Error(ENOENT);
  TRY(MayDelete(ctx.creds, dir_inode, *victim, /*want_dir=*/true));
  if (victim->is_mountpoint()) return base::Error(EBUSY);
  Inode& inode = *victim->inode_ptr();
  fiber::WriterLock l2(&inode.lock());
  dir_inode.fs().BeginChange();
  BeginChange(dir_inode, victim.get());
  TRY(dir_inode.Rmdir(w.last(), inode));
  inode.SetDead();
  ForgetName(dir, *victim, w.last());
  lost.dentry = victim;
  NotifyRemoved(dir_inode, w.last(), inode);
  return base::Ok();
}

namespace {

// Locks of a rename, in Linux's order (lock_rename): the filesystem's rename mutex when the parents
// differ, then ancestors before descendants.
class RenameLocks {
 public:
  RenameLocks(Dentry& old_dir, Dentry& new_dir) ABSL_NO_THREAD_SAFETY_ANALYSIS
      : first_(old_dir.inode_ptr()),
        second_(new_dir.inode_ptr()) {
    if (first_ == second_) {
      second_ = nullptr;
    } else {
      rename_mutex_ = &first_->fs().rename_mutex();
      rename_mutex_->Lock();
      const bool swap =
          new_dir.IsAncestorOf(old_dir) || (!old_dir.IsAncestorOf(new_dir) && second_ < first_);
      if (swap) std::swap(first_, second_);
    }
    first_->lock().Lock();
    if (second_ != nullptr) second_->lock().Lock();
  }
  ~RenameLocks() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (second_ != nullptr) second_->lock().Unlock();
    first_->lock().Unlock();
    if (rename_mutex_ != nullptr) rename_mutex_->Unlock();
  }

 private:
  Inode* first_;
  Inode* second_;
  fiber::Mutex* rename_mutex_ = nullptr;
};

struct RenamePlan {
  const Credentials& creds;
  Dentry& old_dir;
  Dentry& new_dir;
  std::string_view old_name, new_name;
  bool old_slash, new_slash;
  uint32_t flags;
  base::Ref<Dentry> moved, target;
};

// Looks both names up and checks what do_renameat2 and vfs_rename check. True: nothing to do.
base::Result<bool> CheckRename(RenamePlan& p) {
  p.moved = TRY(LookupLocked(p.old_dir, p.old_name));
  if (!p.moved || p.moved->IsNegative()) return base::Error(ENOENT);
  p.target = TRY(LookupLocked(p.new_dir, p.new_name));
  const bool exists = p.target && !p.target->IsNegative();
  const bool exchange = (p.flags & RENAME_EXCHANGE) != 0;
  Inode& moved = *p.moved->inode_ptr();
  if ((p.flags & RENAME_NOREPLACE) != 0 && exists) return base::Error(EEXIST);
  if (exchange) {
    if (!exists) return base::Error(ENOENT);
    if (!p.target->inode_ptr()->IsDir() && p.new_slash) return base::Error(ENOTDIR);
  }
  if (!moved.IsDir()) {
    if (p.old_slash) return base::Error(ENOTDIR);
    if (!exchange && p.new_slash) return base::Error(ENOTDIR);
  }
  if (p.moved->IsAncestorOf(p.new_dir)) return base::Error(EINVAL);
  if (exists && p.target->IsAncestorOf(p.old_dir)) {
    return base::Error(exchange ? EINVAL : ENOTEMPTY);
  }
  if (exists && p.target->inode_ptr() == &moved) return true;
  Inode& old_dir = *p.old_dir.inode_ptr();
  Inode& new_dir = *p.new_dir.inode_ptr();
  TRY(MayDelete(p.creds, old_dir, *p.moved, moved.IsDir()));
  if (exists) {
    const bool want_dir = exchange ? p.target->inode_ptr()->IsDir() : moved.IsDir();
    TRY(MayDelete(p.creds, new_dir, *p.target, want_dir));
  } else {
    TRY(MayCreate(p.creds, new_dir));
  }
  // A directory that gets another parent has its ".." written.
  if (&old_dir != &new_dir) {
    if (moved.IsDir()) TRY(moved.CheckPermission(p.creds, kMayWrite));
    if (exchange && p.target->inode_ptr()->IsDir()) {
      TRY(p.target->inode_ptr()->CheckPermission(p.creds, kMayWrite));
    }
  }
  if (p.moved->is_mountpoint() || (exists && p.target->is_mountpoint())) return base::Error(EBUSY);
  return false;
}

void NotifyRename(const RenamePlan& p, Inode& moved, Inode* replaced) {
  if (!AnyWatches()) return;
  const uint32_t cookie = NextNotifyCookie();
  const uint32_t dir_bit = moved.IsDir() ? IN_ISDIR : 0;
  NotifyDir(*p.old_dir.inode_ptr(), IN_MOVED_FROM | dir_bit, p.old_name, cookie);
  NotifyDir(*p.new_dir.inode_ptr(), IN_MOVED_TO | dir_bit, p.new_name, cookie);
  NotifyInode(moved, IN_MOVE_SELF);
  if (replaced != nullptr) NotifyLostName(*replaced);
}

}  // namespace

base::Status Vfs::Rename(const WalkContext& old_ctx, std::string_view old_path,
                         const WalkContext& new_ctx, std::string_view new_path, uint32_t flags) {
  if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)) != 0) {
    return base::Error(EINVAL);
  }
  if ((flags & RENAME_EXCHANGE) != 0 && (flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)) != 0) {
    return base::Error(EINVAL);
  }
  Walker from(old_ctx), to(new_ctx);
  TRY(from.Begin(old_path));
  TRY(from.ToLast());
  TRY(to.Begin(new_path));
  TRY(to.ToLast());
  if (from.cur().mount != to.cur().mount) return base::Error(EXDEV);
  if (from.last_type() != LastType::kNormal) return base::Error(EBUSY);
  if (to.last_type() != LastType::kNormal) {
    return base::Error((flags & RENAME_NOREPLACE) != 0 ? EEXIST : EBUSY);
  }
  if (from.cur().mount->read_only()) return base::Error(EROFS);
  RenamePlan p{old_ctx.creds,
               *from.cur().dentry,
               *to.cur().dentry,
               from.last(),
               to.last(),
               from.trailing_slash(),
               to.trailing_slash(),
               flags,
               {},
               {}};
  LostName lost;
  RenameLocks locks(p.old_dir, p.new_dir);
  if (TRY(CheckRename(p))) return base::Ok();
  Inode& old_dir = *p.old_dir.inode_ptr();
  Inode& new_dir = *p.new_dir.inode_ptr();
  base::Ref<Inode> moved = p.moved->inode();
  base::Ref<Inode> target = p.target ? p.target->inode() : nullptr;
  const bool exchange = (flags & RENAME_EXCHANGE) != 0;
  // A directory that is replaced must not get new entries meanwhile.
  const bool lock_target = target && target->IsDir() && !exchange;
  auto run = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (lock_target) target->lock().Lock();
    base::Status status =
        old_dir.Rename(p.old_name, *moved, new_dir, p.new_name, target.get(), flags);
    if (status.ok() && lock_target) target->SetDead();
    if (lock_target) target->lock().Unlock();
    return status;
  };
  old_dir.fs().BeginChange();
  BeginChange(old_dir, p.moved.get());
  BeginChange(new_dir, p.target.get());
  TRY(run());
  if (exchange) {
    Dentry::Exchange(*p.moved, *p.target);
  } else {
    if (p.target) p.target->MarkUnlinked();
    if (target) lost.dentry = p.target;
    Dentry::Move(*p.moved, p.new_dir, p.new_name);
    // With RENAME_WHITEOUT something else stands at the old name now.
    if ((flags & RENAME_WHITEOUT) == 0 && !old_dir.fs().cheap_lookup()) {
      p.old_dir.AddChild(p.old_name, nullptr);
    }
  }
  NotifyRename(p, *moved, exchange ? nullptr : target.get());
  return base::Ok();
}

}  // namespace sentry
