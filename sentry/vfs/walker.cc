#include "sentry/vfs/walker.h"

#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/lanes/path_record.h"

namespace sentry {
namespace {

#ifndef MS_NOSYMFOLLOW
constexpr uint64_t MS_NOSYMFOLLOW = 256;
#endif

// Components looked up in one exchange at most.
constexpr size_t kMaxRun = 32;

std::string_view SkipSlashes(std::string_view s) {
  const size_t n = s.find_first_not_of('/');
  return n == std::string_view::npos ? std::string_view() : s.substr(n);
}

// Enters what a filesystem found into the cache.
base::Ref<Dentry> EnterChild(Dentry& dir, Filesystem& fs, std::string_view name,
                             base::Ref<Inode> inode) {
  if (!inode && fs.cheap_lookup()) return nullptr;
  base::Ref<Dentry> child = dir.AddChild(name, inode);
  if (inode && child->IsNegative()) child->Instantiate(std::move(inode));
  return child;
}

// The cached child, unless the filesystem says that it is no longer right.
base::Ref<Dentry> FindValid(Dentry& dir, Inode& dir_inode, std::string_view name) {
  base::Ref<Dentry> child = dir.FindChild(name);
  if (!child || !dir_inode.fs().needs_revalidation()) return child;
  if (child->is_mountpoint() || dir_inode.Revalidate(name, child->inode_ptr())) return child;
  child->Invalidate();
  return nullptr;
}

}  // namespace

base::Result<base::Ref<Dentry>> LookupLocked(Dentry& dir, std::string_view name) {
  if (name.size() > kNameMax) return base::Error(ENAMETOOLONG);
  Inode& inode = *dir.inode_ptr();
  if (base::Ref<Dentry> child = FindValid(dir, inode, name)) return child;
  if (inode.dead()) return base::Error(ENOENT);
  auto found = inode.Lookup(name);
  if (!found.ok() && found.error().code() != ENOENT) return found.error();
  return EnterChild(dir, inode.fs(), name, found.ok() ? std::move(*found) : nullptr);
}

Walker::Walker(const WalkContext& ctx)
    : ctx_(ctx),
      root_((ctx.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) != 0 ? ctx.start : ctx.root) {}

base::Status Walker::JumpToRoot() {
  if ((ctx_.resolve & RESOLVE_BENEATH) != 0) return base::Error(EXDEV);
  if ((ctx_.resolve & RESOLVE_NO_XDEV) != 0 && cur_.mount && cur_.mount != root_.mount) {
    return base::Error(EXDEV);
  }
  cur_ = root_;
  return base::Ok();
}

base::Status Walker::Begin(std::string_view path) {
  if (path.empty()) return base::Error(ENOENT);
  if (scoped()) rename_sequence_ = Dentry::rename_sequence();
  rest_ = path;
  if (path.front() == '/') return JumpToRoot();
  cur_ = ctx_.start;
  Inode* inode = cur_.dentry->inode_ptr();
  if (inode == nullptr || !inode->IsDir()) return base::Error(ENOTDIR);
  return base::Ok();
}

base::Status Walker::MaySearch() {
  if (ctx_.record != nullptr) ctx_.record->Searched(*cur_.dentry->inode_ptr());
  return cur_.dentry->inode_ptr()->CheckPermission(ctx_.creds, kMayExec);
}

base::Status Walker::ToLast() {
  for (;;) {
    rest_ = SkipSlashes(rest_);
    if (rest_.empty()) {
      if (frames_.empty()) {
        last_type_ = LastType::kRoot;
        last_ = {};
        return base::Ok();
      }
      rest_ = frames_.back();
      frames_.pop_back();
      continue;
    }
    TRY(MaySearch());
    const size_t length = std::min(rest_.find('/'), rest_.size());
    const std::string_view name = rest_.substr(0, length);
    const bool slash = length < rest_.size();
    rest_ = SkipSlashes(rest_.substr(length));
    if (rest_.empty()) {
      if (frames_.empty()) {
        last_ = name;
        trailing_slash_ |= slash;
        last_type_ = name == "."    ? LastType::kDot
                     : name == ".." ? LastType::kDotDot
                                    : LastType::kNormal;
        return base::Ok();
      }
      rest_ = frames_.back();
      frames_.pop_back();
    }
    if (TRY(Component(name)) && !cur_.dentry->inode_ptr()->IsDir()) return base::Error(ENOTDIR);
  }
}

base::Result<bool> Walker::Component(std::string_view name) {
  if (name == ".") return true;
  if (name == "..") {
    TRY(DotDot());
    return true;
  }
  return StepTo(TRY(LookupChild(name)), /*follow=*/true);
}

base::Status Walker::StepSpecial() {
  return last_type_ == LastType::kDotDot ? DotDot() : base::Ok();
}

base::Status Walker::DotDot() {
  for (;;) {
    if (cur_ == root_) {
      if ((ctx_.resolve & RESOLVE_BENEATH) != 0) return base::Error(EXDEV);
      break;
    }
    if (ctx_.record != nullptr) ctx_.record->names.push_back(cur_.dentry);
    if (cur_.dentry != cur_.mount->root()) {
      cur_.dentry = cur_.dentry->parent();
      break;
    }
    Path up = ctx_.ns.MountPoint(*cur_.mount);
    if (!up) break;  // the topmost root, or a detached mount
    if ((ctx_.resolve & RESOLVE_NO_XDEV) != 0) return base::Error(EXDEV);
    cur_ = std::move(up);
  }
  // A rename meanwhile could have led the walk out of its root.
  if (scoped() && Dentry::rename_sequence() != rename_sequence_) return base::Error(EAGAIN);
  if (cur_.dentry->is_mountpoint()) {
    const base::Ref<Mount> before = cur_.mount;
    ctx_.ns.CrossDown(&cur_);
    if ((ctx_.resolve & RESOLVE_NO_XDEV) != 0 && cur_.mount != before) return base::Error(EXDEV);
  }
  return base::Ok();
}

base::Result<bool> Walker::StepTo(base::Ref<Dentry> child, bool follow) {
  Inode* inode = child ? child->inode_ptr() : nullptr;
  if (inode == nullptr) return base::Error(ENOENT);
  if (inode->IsSymlink() && follow) return FollowLink(std::move(child));
  cur_.dentry = std::move(child);
  if (cur_.dentry->is_mountpoint()) {
    const base::Ref<Mount> before = cur_.mount;
    ctx_.ns.CrossDown(&cur_);
    if ((ctx_.resolve & RESOLVE_NO_XDEV) != 0 && cur_.mount != before) return base::Error(EXDEV);
  }
  return true;
}

base::Result<bool> Walker::FollowLink(base::Ref<Dentry> link) {
  if (++links_ > kMaxSymlinks) return base::Error(ELOOP);
  if ((ctx_.resolve & RESOLVE_NO_SYMLINKS) != 0) return base::Error(ELOOP);
  if ((cur_.mount->flags() & MS_NOSYMFOLLOW) != 0) return base::Error(ELOOP);
  Inode& inode = *link->inode_ptr();
  if (inode.is_magic_link()) {
    if (ctx_.record != nullptr) ctx_.record->fixed = false;
    if ((ctx_.resolve & RESOLVE_NO_MAGICLINKS) != 0) return base::Error(ELOOP);
    Path target = TRY(inode.FollowMagicLink(ctx_.creds));
    if ((ctx_.resolve & RESOLVE_NO_XDEV) != 0 && target.mount != cur_.mount) {
      return base::Error(EXDEV);
    }
    if (scoped()) return base::Error(EXDEV);
    cur_ = std::move(target);
    if (cur_.dentry->IsNegative()) return base::Error(ENOENT);
    return true;
  }
  auto body = std::make_unique<std::string>(TRY(inode.ReadLink()));
  if (body->empty()) return base::Error(ENOENT);
  if (!rest_.empty()) frames_.push_back(rest_);
  rest_ = *body;
  bodies_.push_back(std::move(body));
  if (rest_.front() == '/') TRY(JumpToRoot());
  return false;
}

base::Result<base::Ref<Dentry>> Walker::LookupChild(std::string_view name) {
  Dentry& dir = *cur_.dentry;
  base::Ref<Dentry> child = FindValid(dir, *dir.inode_ptr(), name);
  if (!child) {
    auto found = LookupSlow(name);
    if (!found.ok()) {
      if (ctx_.record != nullptr) ctx_.record->fixed = false;
      return found;
    }
    child = *std::move(found);
  }
  if (ctx_.record != nullptr) ctx_.record->Found(*dir.inode_ptr(), child);
  return child;
}

base::Result<base::Ref<Dentry>> Walker::LookupSlow(std::string_view name) {
  if (name.size() > kNameMax) return base::Error(ENAMETOOLONG);
  if ((ctx_.resolve & RESOLVE_CACHED) != 0) return base::Error(EAGAIN);
  Inode& inode = *cur_.dentry->inode_ptr();
  fiber::ReaderLock l(&inode.lock());
  if (!rest_.empty() && inode.looks_up_many()) return LookupRun(name);
  return LookupLocked(*cur_.dentry, name);
}

// Called with the directory's lock held shared. What is found below the first component is entered
// without the locks of its directories, so it is dropped if names changed meanwhile.
base::Result<base::Ref<Dentry>> Walker::LookupRun(std::string_view name) {
  Dentry& dir = *cur_.dentry;
  Inode& inode = *dir.inode_ptr();
  if (base::Ref<Dentry> child = dir.FindChild(name)) return child;
  if (inode.dead()) return base::Error(ENOENT);
  std::vector<std::string_view> names{name};
  for (std::string_view rest = rest_; !rest.empty() && names.size() < kMaxRun;) {
    const size_t length = std::min(rest.find('/'), rest.size());
    const std::string_view next = rest.substr(0, length);
    if (next == "." || next == ".." || next.size() > kNameMax) break;
    names.push_back(next);
    rest = SkipSlashes(rest.substr(length));
  }
  Filesystem& fs = inode.fs();
  const uint64_t sequence = fs.change_sequence();
  std::vector<base::Ref<Inode>> found = TRY(inode.LookupMany(names));
  if (found.empty() || found.size() > names.size()) return base::Error(EIO);
  base::Ref<Dentry> first = EnterChild(dir, fs, name, found[0]);
  base::Ref<Dentry> at = first;
  for (size_t i = 1; i < found.size() && at && at->inode_ptr() == found[i - 1].get(); i++) {
    if (!found[i - 1] || !found[i - 1]->IsDir() || at->is_mountpoint()) break;
    if (fs.change_sequence() != sequence) break;
    base::Ref<Dentry> next = EnterChild(*at, fs, names[i], found[i]);
    if (fs.change_sequence() != sequence) {
      if (next) next->Invalidate();
      break;
    }
    at = std::move(next);
  }
  return first;
}

base::Result<Path> Walker::Walk(std::string_view path, WalkFlags flags) {
  if (path.empty() && flags.allow_empty) {
    cur_ = ctx_.start;
  } else {
    TRY(Begin(path));
    for (;;) {
      TRY(ToLast());
      if (last_type_ != LastType::kNormal) {
        TRY(StepSpecial());
        break;
      }
      base::Ref<Dentry> child = TRY(LookupChild(last_));
      if (TRY(StepTo(std::move(child), flags.follow_last || trailing_slash_))) break;
    }
  }
  Inode* inode = cur_.dentry->inode_ptr();
  if (inode == nullptr) return base::Error(ENOENT);
  if ((flags.need_dir || trailing_slash_) && !inode->IsDir()) return base::Error(ENOTDIR);
  if (flags.exec_check) TRY(inode->CheckPermission(ctx_.creds, kMayExec));
  return std::move(cur_);
}

}  // namespace sentry
