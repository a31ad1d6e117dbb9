#include <dirent.h>
#include <linux/fs.h>
#include <sys/stat.h>

#include <algorithm>

#include "absl/hash/hash.h"
#include "sentry/fs/tmpfs/tmpfs_inode.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/dir_file.h"

namespace sentry {
namespace {

// What Linux counts a directory entry as (BOGO_DIRENT_SIZE).
constexpr uint64_t kDirentSize = 20;
constexpr uint32_t kMaxLinks = 0x7fffffff;

class DirectoryFile : public DirFile {
 public:
  DirectoryFile(Path path, uint32_t flags, TmpfsDirectory* dir)
      : DirFile(std::move(path), flags), dir_(dir) {
    ClosesUnseen();
  }

  base::Status GetDents(const DirEmit& emit) override {
    fiber::MutexLock l(&pos_mutex_);
    fiber::ReaderLock l2(&dir_->lock());
    if (dir_->dead()) return base::Error(ENOENT);
    dir_->TouchAccess(*path().mount, flags());
    if (pos_ == 0) {
      if (!emit(DirEntry{".", dir_->ino(), DT_DIR, 1})) return base::Ok();
      pos_ = 1;
    }
    if (pos_ == 1) {
      base::Ref<Dentry> up = path().dentry->parent();
      if (!emit(DirEntry{"..", up->inode_ptr()->ino(), DT_DIR, 2})) return base::Ok();
      pos_ = 2;
    }
    dir_->ForEach(pos_, [&](const DirEntry& e) {
      if (!emit(e)) return false;
      pos_ = static_cast<uint64_t>(e.next_off);
      return true;
    });
    return base::Ok();
  }

 private:
  TmpfsDirectory* const dir_;  // kept by path()
};

}  // namespace

size_t TmpfsDirectory::Hash::operator()(std::string_view name) const { return absl::HashOf(name); }

TmpfsDirectory::TmpfsDirectory(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args)
    : TmpfsInode(fs, ino, args) {
  AddLink(1);  // "."
}

TmpfsDirectory::~TmpfsDirectory() { by_name_.clear(); }

void TmpfsDirectory::FillAttr(InodeAttr* attr) {
  attr->size = (count_.load(std::memory_order_relaxed) + 2) * kDirentSize;
}

bool TmpfsDirectory::empty() const { return count_.load(std::memory_order_relaxed) == 0; }

TmpfsDirectory::Entry* TmpfsDirectory::Find(std::string_view name) const {
  auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : *it;
}

void TmpfsDirectory::AddEntry(std::string_view name, base::Ref<TmpfsInode> inode) {
  const uint64_t cursor = next_cursor_++;
  auto entry = std::make_unique<Entry>(Entry{std::string(name), std::move(inode), cursor});
  by_name_.insert(entry.get());
  slots_.push_back({cursor, std::move(entry)});
  count_.fetch_add(1, std::memory_order_relaxed);
}

base::Ref<TmpfsInode> TmpfsDirectory::RemoveEntry(std::string_view name) {
  auto it = by_name_.find(name);
  Entry* entry = *it;
  by_name_.erase(it);
  auto slot = std::lower_bound(slots_.begin(), slots_.end(), entry->cursor,
                               [](const Slot& s, uint64_t cursor) { return s.cursor < cursor; });
  base::Ref<TmpfsInode> inode = std::move(entry->inode);
  slot->entry.reset();
  const size_t left = count_.fetch_sub(1, std::memory_order_relaxed) - 1;
  while (!slots_.empty() && !slots_.back().entry) slots_.pop_back();
  if (slots_.size() > 16 && slots_.size() > 2 * left) {
    std::erase_if(slots_, [](const Slot& s) { return !s.entry; });
  }
  return inode;
}

template <typename T, typename... Args>
base::Result<base::Ref<T>> TmpfsDirectory::Make(const NewInode& args, Args&&... more) {
  const uint64_t ino = TRY(tmpfs().TakeInode());
  auto made = base::MakeRef<T>(&tmpfs(), ino, args, std::forward<Args>(more)...);
  made->set_file_flags(file_flags() & kInheritedFileFlags);
  return made;
}

base::Result<base::Ref<Inode>> TmpfsDirectory::Lookup(std::string_view name) {
  Entry* entry = Find(name);
  if (entry == nullptr) return base::Error(ENOENT);
  return base::Ref<Inode>(entry->inode);
}

base::Result<base::Ref<Inode>> TmpfsDirectory::Create(std::string_view name, const NewInode& args) {
  base::Ref<TmpfsInode> inode;
  if (S_ISREG(args.mode)) {
    inode = TRY(Make<TmpfsRegular>(args));
  } else {
    inode = TRY(Make<TmpfsInode>(args));
  }
  AddEntry(name, inode);
  Touch(false, true, true);
  return base::Ref<Inode>(std::move(inode));
}

base::Result<base::Ref<Inode>> TmpfsDirectory::Mkdir(std::string_view name, const NewInode& args) {
  base::Ref<TmpfsDirectory> dir = TRY(Make<TmpfsDirectory>(args));
  AddEntry(name, dir);
  AddLink(1);
  Touch(false, true, true);
  return base::Ref<Inode>(std::move(dir));
}

base::Result<base::Ref<Inode>> TmpfsDirectory::Symlink(std::string_view name,
                                                       std::string_view target,
                                                       const NewInode& args) {
  const uint64_t pages = TmpfsSymlink::PagesFor(target);
  if (pages != 0 && !tmpfs().pages().Charge(pages)) return base::Error(ENOSPC);
  auto made = Make<TmpfsSymlink>(args, target);
  if (!made.ok()) {
    tmpfs().pages().Uncharge(pages);
    return made.error();
  }
  base::Ref<TmpfsSymlink> link = *std::move(made);
  AddEntry(name, link);
  Touch(false, true, true);
  return base::Ref<Inode>(std::move(link));
}

base::Status TmpfsDirectory::Link(std::string_view name, Inode& target) {
  auto& inode = static_cast<TmpfsInode&>(target);
  TRY(inode.CheckChangeable());
  const uint32_t nlink = inode.nlink();
  if (nlink == 0 && !inode.linkable()) return base::Error(ENOENT);
  if (nlink >= kMaxLinks) return base::Error(EMLINK);
  if (nlink > 0) TRY(tmpfs().TakeInode());
  inode.AddLink(1);
  AddEntry(name, base::Ref<TmpfsInode>(&inode));
  Touch(false, true, true);
  return base::Ok();
}

base::Status TmpfsDirectory::Unlink(std::string_view name, Inode& victim) {
  if (Find(name) == nullptr) return base::Error(ENOENT);
  TRY(CheckRemovable(static_cast<TmpfsInode&>(victim)));
  RemoveEntry(name);
  static_cast<TmpfsInode&>(victim).DropName();
  Touch(false, true, true);
  return base::Ok();
}

base::Status TmpfsDirectory::Rmdir(std::string_view name, Inode& victim) {
  auto& dir = static_cast<TmpfsDirectory&>(victim);
  if (Find(name) == nullptr) return base::Error(ENOENT);
  TRY(CheckRemovable(dir));
  if (!dir.empty()) return base::Error(ENOTEMPTY);
  RemoveEntry(name);
  dir.AddLink(-2);
  AddLink(-1);
  Touch(false, true, true);
  return base::Ok();
}

base::Status TmpfsDirectory::Rename(std::string_view name, Inode& moved, Inode& new_dir_inode,
                                    std::string_view new_name, Inode* replaced, uint32_t flags) {
  auto& new_dir = static_cast<TmpfsDirectory&>(new_dir_inode);
  auto* old = static_cast<TmpfsInode*>(replaced);
  base::Ref<TmpfsInode> inode(&static_cast<TmpfsInode&>(moved));
  if (Find(name) == nullptr) return base::Error(ENOENT);
  TRY(CheckRemovable(*inode));
  if (old != nullptr) TRY(new_dir.CheckRemovable(*old));
  if ((flags & RENAME_EXCHANGE) != 0) {
    Entry* a = Find(name);
    Entry* b = new_dir.Find(new_name);
    if (b == nullptr) return base::Error(ENOENT);
    std::swap(a->inode, b->inode);
    if (&new_dir != this && moved.IsDir() != old->IsDir()) {
      AddLink(moved.IsDir() ? -1 : 1);
      new_dir.AddLink(moved.IsDir() ? 1 : -1);
    }
    old->Touch(false, false, true);
  } else {
    base::Ref<TmpfsInode> whiteout;
    if ((flags & RENAME_WHITEOUT) != 0) {
      const InodeAttr attr = TRY(moved.GetAttr());
      whiteout = TRY(Make<TmpfsInode>(NewInode{S_IFCHR, attr.uid, attr.gid, 0}));
    }
    if (old != nullptr) {
      if (old->IsDir()) {
        if (!static_cast<TmpfsDirectory*>(old)->empty()) return base::Error(ENOTEMPTY);
        old->AddLink(-2);
        new_dir.AddLink(-1);
      } else {
        old->DropName();
      }
      new_dir.RemoveEntry(new_name);
    }
    RemoveEntry(name);
    new_dir.AddEntry(new_name, inode);
    if (moved.IsDir() && &new_dir != this) {
      AddLink(-1);
      new_dir.AddLink(1);
    }
    if (whiteout) AddEntry(name, std::move(whiteout));
  }
  inode->Touch(false, false, true);
  Touch(false, true, true);
  if (&new_dir != this) new_dir.Touch(false, true, true);
  return base::Ok();
}

base::Result<base::Ref<Inode>> TmpfsDirectory::Tmpfile(const NewInode& args) {
  base::Ref<TmpfsRegular> file = TRY(Make<TmpfsRegular>(args));
  file->AddLink(-1);
  return base::Ref<Inode>(std::move(file));
}

base::Result<base::Ref<FileDescription>> TmpfsDirectory::Open(const OpenArgs& args) {
  return base::Ref<FileDescription>(base::MakeRef<DirectoryFile>(args.path, args.flags, this));
}

void TmpfsDirectory::ForEach(uint64_t from, const DirEmit& emit) {
  auto slot = std::lower_bound(slots_.begin(), slots_.end(), from,
                               [](const Slot& s, uint64_t cursor) { return s.cursor < cursor; });
  for (; slot != slots_.end(); ++slot) {
    if (!slot->entry) continue;
    const Entry& e = *slot->entry;
    if (!emit(DirEntry{e.name, e.inode->ino(), static_cast<uint8_t>(IFTODT(e.inode->type())),
                       static_cast<int64_t>(e.cursor + 1)})) {
      return;
    }
  }
}

}  // namespace sentry
