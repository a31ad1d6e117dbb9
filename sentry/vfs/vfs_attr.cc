// Attributes and extended attributes (Linux: fs/attr.c, fs/open.c, fs/xattr.c).
#include <sys/mount.h>

#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/notify.h"
#include "sentry/vfs/vfs_impl.h"

namespace sentry {
namespace {

bool StartsWith(std::string_view s, std::string_view prefix) {
  return s.substr(0, prefix.size()) == prefix;
}

// Linux: xattr_permission. `may` is kMayRead or kMayWrite.
base::Status CheckXattr(const Credentials& creds, const Path& path, std::string_view name,
                        int may) {
  Inode& inode = *path.dentry->inode_ptr();
  const bool write = may == kMayWrite;
  if (write && path.mount->read_only()) return base::Error(EROFS);
  if (StartsWith(name, "security.") || StartsWith(name, "system.")) {
    if (write && StartsWith(name, "security.")) {
      // Linux: cap_inode_setxattr.
      const bool file_caps = name == "security.capability";
      if (!creds.HasCap(file_caps ? CAP_SETFCAP : CAP_SYS_ADMIN)) return base::Error(EPERM);
    }
    return base::Ok();
  }
  if (StartsWith(name, "trusted.")) {
    if (!creds.HasCap(CAP_SYS_ADMIN)) return base::Error(write ? EPERM : ENODATA);
    return base::Ok();
  }
  if (StartsWith(name, "user.")) {
    if (!inode.IsReg() && !inode.IsDir()) return base::Error(write ? EPERM : ENODATA);
    if (inode.IsDir() && write) {
      const InodePerm perm = TRY(inode.GetPerm());
      if ((perm.mode & S_ISVTX) != 0 && !OwnerOrCapable(creds, perm.uid, perm.gid)) {
        return base::Error(EPERM);
      }
    }
  }
  return inode.CheckPermission(creds, may);
}

// Linux: setattr_prepare for owner, group and mode; what set-id bits become.
base::Status PrepareOwner(const Credentials& creds, const InodePerm& attr, mode_t type,
                          AttrChange* change) {
  const bool owner = creds.fsuid == attr.uid;
  if (change->set_uid && !(owner && change->uid == attr.uid) &&
      !CapableOver(creds, CAP_CHOWN, attr.uid, attr.gid)) {
    return base::Error(EPERM);
  }
  if (change->set_gid && !(owner && (change->gid == attr.gid || creds.InGroup(change->gid))) &&
      !CapableOver(creds, CAP_CHOWN, attr.uid, attr.gid)) {
    return base::Error(EPERM);
  }
  if (change->set_mode) {
    if (!OwnerOrCapable(creds, attr.uid, attr.gid)) return base::Error(EPERM);
    const gid_t gid = change->set_gid ? change->gid : attr.gid;
    if (!creds.InGroup(gid) && !CapableOver(creds, CAP_FSETID, attr.uid, gid)) {
      change->mode &= ~S_ISGID;
    }
  } else if ((change->set_uid || change->set_gid) && !S_ISDIR(type)) {
    // chown(2) takes set-id bits away, from root too.
    mode_t mode = attr.mode & 07777 & ~S_ISUID;
    const bool drop_gid =
        (mode & S_IXGRP) != 0 ||
        (!creds.InGroup(attr.gid) && !CapableOver(creds, CAP_FSETID, attr.uid, attr.gid));
    if (drop_gid) mode &= ~S_ISGID;
    if (mode != (attr.mode & 07777)) {
      change->set_mode = true;
      change->mode = mode;
    }
  }
  return base::Ok();
}

}  // namespace

base::Result<InodeAttr> Vfs::GetAttr(const Path& path) {
  Inode* inode = path.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  return inode->GetAttr();
}

base::Status Vfs::SetAttr(const Credentials& creds, const Path& path, AttrChange change) {
  Inode* inode = path.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if (path.mount->read_only()) return base::Error(EROFS);
  const InodePerm attr = TRY(inode->GetPerm());
  if (inode->IsSymlink() && change.set_mode) return base::Error(EOPNOTSUPP);
  change.mode &= 07777;
  TRY(PrepareOwner(creds, attr, inode->type(), &change));
  if (change.set_atime || change.set_mtime) {
    const bool both_now =
        change.set_atime && change.atime_now && change.set_mtime && change.mtime_now;
    if (!OwnerOrCapable(creds, attr.uid, attr.gid)) {
      if (!both_now) return base::Error(EPERM);
      TRY(inode->CheckPermission(creds, kMayWrite));
    }
  }
  inode->attr_word().Changing();
  TRY(inode->SetAttr(change));
  if (change.set_mode || change.set_uid || change.set_gid || change.set_atime || change.set_mtime) {
    NotifyDentry(*path.dentry, IN_ATTRIB);
  }
  return base::Ok();
}

base::Result<mode_t> Vfs::RemovePrivs(const Credentials& creds, Inode& inode) {
  if (!inode.IsReg()) return mode_t{0};
  const InodePerm perm = TRY(inode.GetPerm());
  if ((perm.mode & (S_ISUID | S_ISGID)) == 0) return mode_t{0};
  const mode_t mode = perm.mode & 07777;
  if (creds.HasCap(CAP_FSETID)) return mode;
  AttrChange change;
  change.mode = mode & ~S_ISUID;
  if ((perm.mode & S_IXGRP) != 0 || !creds.InGroup(perm.gid)) change.mode &= ~S_ISGID;
  if (change.mode != mode) {
    change.set_mode = true;
    TRY(inode.SetAttr(change));
  }
  return (change.mode & S_ISGID) != 0 ? change.mode : mode_t{0};
}

base::Status Vfs::RestorePrivs(Inode& inode, mode_t kept) {
  if (kept == 0) return base::Ok();
  AttrChange change;
  change.set_mode = true;
  change.mode = kept;
  inode.attr_word().Changing();
  return inode.SetAttr(change);
}

base::Status Vfs::Truncate(const Credentials& creds, const Path& path, uint64_t size) {
  Inode* inode = path.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if (inode->IsDir()) return base::Error(EISDIR);
  if (!inode->IsReg()) return base::Error(EINVAL);
  if (path.mount->read_only()) return base::Error(EROFS);
  TRY(inode->CheckPermission(creds, kMayWrite));
  TRY(inode->GetWriteAccess());
  auto run = [&]() -> base::Status {
    TRY(BreakLease(*inode, O_WRONLY));
    const mode_t kept = TRY(RemovePrivs(creds, *inode));
    AttrChange change;
    change.set_size = true;
    change.size = size;
    inode->attr_word().Changing();
    TRY(inode->SetAttr(change));
    return RestorePrivs(*inode, kept);
  };
  base::Status status = run();
  inode->DropWriteAccess();
  if (status.ok()) NotifyDentry(*path.dentry, IN_MODIFY);
  return status;
}

base::Status Vfs::Truncate(const Credentials& creds, FileDescription& file, uint64_t size) {
  Inode* inode = file.inode();
  if (!file.writable() || inode == nullptr || !inode->IsReg()) return base::Error(EINVAL);
  const mode_t kept = TRY(RemovePrivs(creds, *inode));
  TRY(file.Truncate(size));
  TRY(RestorePrivs(*inode, kept));
  NotifyDentry(*file.path().dentry, IN_MODIFY);
  return base::Ok();
}

base::Status Vfs::Access(const Credentials& creds, const Path& path, int may) {
  Inode* inode = path.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if ((may & kMayExec) != 0 && inode->IsReg() && (path.mount->flags() & MS_NOEXEC) != 0) {
    return base::Error(EACCES);
  }
  if (may != 0) TRY(inode->CheckPermission(creds, may));
  const bool on_disk = inode->IsReg() || inode->IsDir() || inode->IsSymlink();
  if ((may & kMayWrite) != 0 && on_disk && path.mount->read_only()) return base::Error(EROFS);
  return base::Ok();
}

base::Result<std::string> Vfs::ReadLink(const Credentials&, const Path& path) {
  Inode* inode = path.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if (!inode->IsSymlink()) return base::Error(EINVAL);
  return inode->ReadLink();
}

base::Result<std::string> Vfs::GetXattr(const Credentials& creds, const Path& path,
                                        std::string_view name) {
  TRY(CheckXattr(creds, path, name, kMayRead));
  return path.dentry->inode_ptr()->GetXattr(name);
}

base::Status Vfs::SetXattr(const Credentials& creds, const Path& path, std::string_view name,
                           std::string_view value, int flags) {
  TRY(CheckXattr(creds, path, name, kMayWrite));
  TRY(path.dentry->inode_ptr()->SetXattr(name, value, flags));
  NotifyDentry(*path.dentry, IN_ATTRIB);
  return base::Ok();
}

base::Result<std::vector<std::string>> Vfs::ListXattr(const Credentials& creds, const Path& path) {
  auto names = TRY(path.dentry->inode_ptr()->ListXattr());
  if (!creds.HasCap(CAP_SYS_ADMIN)) {
    std::erase_if(names, [](const std::string& n) { return StartsWith(n, "trusted."); });
  }
  return names;
}

base::Status Vfs::RemoveXattr(const Credentials& creds, const Path& path, std::string_view name) {
  TRY(CheckXattr(creds, path, name, kMayWrite));
  TRY(path.dentry->inode_ptr()->RemoveXattr(name));
  NotifyDentry(*path.dentry, IN_ATTRIB);
  return base::Ok();
}

base::Result<struct statfs> Vfs::StatFs(const Path& path) {
  struct statfs out = TRY(path.mount->fs().StatFs());
  // Linux: ST_VALID, and the mount's flags in their statfs form.
  constexpr long kStValid = 0x0020;
  struct {
    uint64_t ms;
    long st;
  } const kFlags[] = {{MS_RDONLY, 1},        {MS_NOSUID, 2},       {MS_NODEV, 4},
                      {MS_NOEXEC, 8},        {MS_SYNCHRONOUS, 16}, {MS_NOATIME, 1024},
                      {MS_NODIRATIME, 2048}, {MS_RELATIME, 4096}};
  long flags = kStValid;
  for (const auto& f : kFlags) {
    if ((path.mount->flags() & f.ms) != 0) flags |= f.st;
  }
  out.f_flags = flags;
  if (out.f_fsid.__val[0] == 0 && out.f_fsid.__val[1] == 0) {
    out.f_fsid.__val[0] = static_cast<int>(path.mount->fs().dev());
  }
  return out;
}

}  // namespace sentry
