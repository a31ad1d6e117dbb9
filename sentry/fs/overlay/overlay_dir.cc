// Directories of an overlay: names of both layers.
#include <linux/fs.h>
#include <sys/stat.h>

#include "sentry/fs/overlay/overlay_inode.h"
#include "sentry/vfs/file_description.h"

namespace sentry {
namespace {

// All entries of an open directory of a layer but "." and "..".
base::Status ReadAll(FileDescription& dir, const DirEmit& emit) {
  for (bool more = true, stopped = false; more && !stopped;) {
    more = false;
    TRY(dir.GetDents([&](const DirEntry& e) {
      more = true;
      if (e.name == "." || e.name == "..") return true;
      if (emit(e)) return true;
      stopped = true;
      return false;
    }));
  }
  return base::Ok();
}

}  // namespace

bool OverlayInode::HasUpperName(std::string_view name) {
  Inode* u = upper();
  return u != nullptr && u->Lookup(name).ok();
}

bool OverlayInode::IsWhiteout(std::string_view name) {
  if (upper() == nullptr || !state_) return false;
  absl::MutexLock l(&state_->mutex);
  return state_->whiteouts.contains(std::string(name));
}

void OverlayInode::AddWhiteout(std::string_view name) {
  if (!state_) return;
  absl::MutexLock l(&state_->mutex);
  state_->whiteouts.insert(std::string(name));
}

base::Result<base::Ref<Inode>> OverlayInode::Lookup(std::string_view name) {
  if (!IsDir()) return base::Error(ENOTDIR);
  if (Inode* u = upper()) {
    auto found = u->Lookup(name);
    if (found.ok()) return base::Ref<Inode>(overlay().Wrap(nullptr, std::move(*found)));
    if (found.error().code() != ENOENT) return found.error();
    if (IsWhiteout(name)) return base::Error(ENOENT);
  }
  if (!lower_) return base::Error(ENOENT);
  return base::Ref<Inode>(overlay().Wrap(TRY(lower_->Lookup(name)), nullptr));
}

bool OverlayInode::looks_up_many() const { return upper() == nullptr && lower_->looks_up_many(); }

base::Result<std::vector<base::Ref<Inode>>> OverlayInode::LookupMany(
    std::span<const std::string_view> names) {
  if (!looks_up_many()) return Inode::LookupMany(names);
  std::vector<base::Ref<Inode>> found = TRY(lower_->LookupMany(names));
  std::vector<base::Ref<Inode>> result;
  for (base::Ref<Inode>& lower : found) {
    if (!lower) {
      result.push_back(nullptr);
      break;
    }
    base::Ref<OverlayInode> inode = overlay().Wrap(std::move(lower), nullptr);
    const bool copied = inode->upper() != nullptr;
    result.push_back(std::move(inode));
    if (copied) break;  // what is below may be hidden or replaced
  }
  return result;
}

base::Result<base::Ref<Inode>> OverlayInode::Create(std::string_view name, const NewInode& args) {
  TRY(CopyUp());
  return base::Ref<Inode>(overlay().Wrap(nullptr, TRY(upper()->Create(name, args))));
}

// A new directory has no lower one: whatever the lower layer has of that name stays hidden.
base::Result<base::Ref<Inode>> OverlayInode::Mkdir(std::string_view name, const NewInode& args) {
  TRY(CopyUp());
  return base::Ref<Inode>(overlay().Wrap(nullptr, TRY(upper()->Mkdir(name, args))));
}

base::Result<base::Ref<Inode>> OverlayInode::Symlink(std::string_view name, std::string_view target,
                                                     const NewInode& args) {
  TRY(CopyUp());
  return base::Ref<Inode>(overlay().Wrap(nullptr, TRY(upper()->Symlink(name, target, args))));
}

base::Result<base::Ref<Inode>> OverlayInode::Tmpfile(const NewInode& args) {
  OverlayFilesystem& fs = overlay();
  absl::MutexLock l(&fs.pool_mutex_);
  return base::Ref<Inode>(fs.Wrap(nullptr, TRY(fs.pool_->Tmpfile(args))));
}

base::Status OverlayInode::Link(std::string_view name, Inode& target) {
  auto& inode = static_cast<OverlayInode&>(target);
  TRY(CopyUp());
  TRY(inode.CopyUp());
  if (inode.state_ && inode.state_->nlink.load() <= 0) return base::Error(ENOENT);
  TRY(upper()->Link(name, *inode.upper()));
  if (inode.state_) inode.state_->nlink.fetch_add(1);
  inode.attr_word().Changed();
  return base::Ok();
}

base::Status OverlayInode::Unlink(std::string_view name, Inode& victim) {
  auto& inode = static_cast<OverlayInode&>(victim);
  TRY(CopyUp());
  if (HasUpperName(name)) {
    TRY(upper()->Unlink(name, *inode.upper()));
  } else {
    AddWhiteout(name);
    AttrChange touch;
    touch.set_mtime = touch.mtime_now = true;
    (void)upper()->SetAttr(touch);
  }
  inode.LoseLink();
  return base::Ok();
}

base::Result<bool> OverlayInode::IsEmptyDir() {
  bool empty = true;
  TRY(ForEachEntry([&](const DirEntry&) { return empty = false; }));
  return empty;
}

base::Status OverlayInode::Rmdir(std::string_view name, Inode& victim) {
  auto& inode = static_cast<OverlayInode&>(victim);
  if (!TRY(inode.IsEmptyDir())) return base::Error(ENOTEMPTY);
  TRY(CopyUp());
  if (HasUpperName(name)) {
    TRY(upper()->Rmdir(name, *inode.upper()));
  } else {
    AddWhiteout(name);
    AttrChange touch;
    touch.set_mtime = touch.mtime_now = true;
    (void)upper()->SetAttr(touch);
  }
  inode.LoseLink();
  return base::Ok();
}

base::Status OverlayInode::EnsureUpperName(std::string_view name, OverlayInode& child) {
  if (HasUpperName(name)) return base::Ok();
  TRY(child.CopyUp());
  OverlayFilesystem& fs = overlay();
  if (child.IsDir()) {
    // A directory has one name: out of the pool. It still remembers what it was copied from, so it
    // can be moved without what is below.
    absl::MutexLock l(&fs.pool_mutex_);
    TRY(fs.pool_->Rename(child.state_->pool_name, *child.upper(), *upper(), name, nullptr, 0));
    child.state_->pool_name.clear();
  } else {
    TRY(upper()->Link(name, *child.upper()));
  }
  AddWhiteout(name);
  return base::Ok();
}

base::Status OverlayInode::Rename(std::string_view name, Inode& moved_inode, Inode& new_dir_inode,
                                  std::string_view new_name, Inode* replaced_inode,
                                  uint32_t flags) {
  auto& moved = static_cast<OverlayInode&>(moved_inode);
  auto& new_dir = static_cast<OverlayInode&>(new_dir_inode);
  auto* replaced = static_cast<OverlayInode*>(replaced_inode);
  const bool exchange = (flags & RENAME_EXCHANGE) != 0;
  if (replaced != nullptr && !exchange && replaced->IsDir() && !TRY(replaced->IsEmptyDir())) {
    return base::Error(ENOTEMPTY);
  }
  TRY(CopyUp());
  TRY(new_dir.CopyUp());
  TRY(EnsureUpperName(name, moved));
  if (exchange) TRY(new_dir.EnsureUpperName(new_name, *replaced));
  Inode* upper_replaced = new_dir.HasUpperName(new_name) ? replaced->upper() : nullptr;
  TRY(upper()->Rename(name, *moved.upper(), *new_dir.upper(), new_name, upper_replaced, flags));
  new_dir.AddWhiteout(new_name);
  if (replaced != nullptr && !exchange) replaced->LoseLink();
  return base::Ok();
}

base::Status OverlayInode::ForEachEntry(const DirEmit& emit) {
  OverlayFilesystem& fs = overlay();
  bool stopped = false;
  if (Inode* u = upper()) {
    base::Ref<FileDescription> dir =
        TRY(u->Open(OpenArgs{fs.UpperPath(base::Ref<Inode>(u)), O_RDONLY, fs.creds()}));
    TRY(ReadAll(*dir, [&](const DirEntry& e) {
      auto child = u->Lookup(e.name);
      if (!child.ok()) return true;
      DirEntry entry = e;
      entry.ino = InoOf(**child);
      stopped = !emit(entry);
      return !stopped;
    }));
  }
  if (stopped || !lower_) return base::Ok();
  base::Ref<FileDescription> dir =
      TRY(lower_->Open(OpenArgs{fs.LowerPath(lower_), O_RDONLY, fs.creds()}));
  return ReadAll(*dir, [&](const DirEntry& e) {
    if (upper() != nullptr && (IsWhiteout(e.name) || HasUpperName(e.name))) return true;
    return emit(e);
  });
}

}  // namespace sentry
