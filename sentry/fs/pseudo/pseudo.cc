#include "sentry/fs/pseudo/pseudo.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>

#include "sentry/vfs/dentry.h"

namespace sentry {
namespace {

constexpr size_t kMaxStore = 64 * 1024;

// An open directory over the listing taken when it was opened or rewound.
class PseudoDirFile : public FileDescription {
 public:
  PseudoDirFile(Path path, uint32_t flags, base::Ref<PseudoDir> dir)
      : FileDescription(std::move(path), flags), dir_(std::move(dir)) {}

  base::Status GetDents(const DirEmit& emit) override {
    fiber::MutexLock lock(&pos_mutex_);
    if (pos_ == 0 || !listed_) {
      entries_ = dir_->List();
      listed_ = true;
    }
    for (; pos_ < entries_.size() + 2; ++pos_) {
      DirEntry e{".", dir_->ino(), DT_DIR, static_cast<int64_t>(pos_ + 1)};
      if (pos_ == 1) {
        e.name = "..";
        e.ino = ParentIno();
      } else if (pos_ > 1) {
        const PseudoEntry& entry = entries_[pos_ - 2];
        e.name = entry.name;
        e.ino = entry.ino;
        e.type = entry.type;
      }
      if (!emit(e)) break;
    }
    return base::Ok();
  }

  base::Result<int64_t> Seek(int64_t offset, int whence) override {
    fiber::MutexLock lock(&pos_mutex_);
    if (whence == SEEK_CUR) {
      offset += static_cast<int64_t>(pos_);
    } else if (whence != SEEK_SET) {
      return base::Error(EINVAL);
    }
    if (offset < 0) return base::Error(EINVAL);
    pos_ = static_cast<uint64_t>(offset);
    return offset;
  }
  base::Result<size_t> Read(IoDest&, bool) override { return base::Error(EISDIR); }
  bool CanPoll() const override { return false; }

 private:
  ~PseudoDirFile() override = default;
  uint64_t ParentIno() const {
    base::Ref<Dentry> parent = path().dentry->parent();
    Inode* inode = parent != nullptr ? parent->inode_ptr() : nullptr;
    return inode != nullptr ? inode->ino() : dir_->ino();
  }
  const base::Ref<PseudoDir> dir_;
  std::vector<PseudoEntry> entries_;  // under pos_mutex_
  bool listed_ = false;
};

}  // namespace

uint8_t DirentType(const Inode& inode) { return static_cast<uint8_t>(IFTODT(inode.type())); }

PseudoInode::PseudoInode(PseudoFs* fs, uint64_t ino, mode_t mode, uid_t uid, gid_t gid)
    : Inode(fs, ino != 0 ? ino : fs->NextIno(), mode) {
  attr_.ino = Inode::ino();
  attr_.dev = fs->dev();
  attr_.mode = mode;
  attr_.uid = uid;
  attr_.gid = gid;
  attr_.blksize = 1024;
  attr_.atime = attr_.mtime = attr_.ctime = CurrentTime();
}

base::Result<InodeAttr> PseudoInode::GetAttr() {
  InodeAttr attr;
  {
    absl::MutexLock lock(&mutex_);
    attr = attr_;
  }
  attr.nlink = nlink();
  attr.rdev = rdev();
  attr.size = size();
  return attr;
}

base::Status PseudoInode::SetAttr(const AttrChange& change) {
  absl::MutexLock lock(&mutex_);
  timespec now = CurrentTime();
  if (change.set_mode) attr_.mode = (attr_.mode & S_IFMT) | (change.mode & 07777);
  if (change.set_uid) attr_.uid = change.uid;
  if (change.set_gid) attr_.gid = change.gid;
  if (change.set_atime) attr_.atime = change.atime_now ? now : change.atime;
  if (change.set_mtime) attr_.mtime = change.mtime_now ? now : change.mtime;
  if (!change.set_size) attr_.ctime = now;  // truncation is accepted and means nothing
  return base::Ok();
}

PseudoDir::PseudoDir(PseudoFs* fs, mode_t mode, uint64_t ino)
    : PseudoInode(fs, ino, S_IFDIR | mode) {}

base::Result<base::Ref<Inode>> PseudoDir::Lookup(std::string_view name) {
  auto it = entries_.find(name);
  if (it != entries_.end()) return it->second;
  return LookupDynamic(name);
}

base::Result<base::Ref<Inode>> PseudoDir::LookupDynamic(std::string_view) {
  return base::Error(ENOENT);
}

bool PseudoDir::Revalidate(std::string_view name, Inode* child) {
  auto it = entries_.find(name);
  if (it != entries_.end()) return child == it->second.get();
  return RevalidateDynamic(name, child);
}

bool PseudoDir::RevalidateDynamic(std::string_view, Inode* child) { return child == nullptr; }

uint32_t PseudoDir::nlink() const {
  uint32_t n = 2;
  for (const auto& [name, inode] : entries_) n += inode->IsDir() ? 1 : 0;
  return n;
}

std::vector<PseudoEntry> PseudoDir::List() {
  std::vector<PseudoEntry> out;
  for (const auto& [name, inode] : entries_)
    out.push_back({name, inode->ino(), DirentType(*inode)});
  ListDynamic(&out);
  return out;
}

base::Result<base::Ref<FileDescription>> PseudoDir::Open(const OpenArgs& args) {
  return base::Ref<FileDescription>(
      base::MakeRef<PseudoDirFile>(args.path, args.flags, base::Ref<PseudoDir>(this)));
}

PseudoFile::PseudoFile(PseudoFs* fs, mode_t mode, uint64_t ino)
    : PseudoInode(fs, ino, S_IFREG | mode) {}

base::Result<base::Ref<FileDescription>> PseudoFile::Open(const OpenArgs& args) {
  return base::Ref<FileDescription>(
      base::MakeRef<PseudoFileDescription>(args.path, args.flags, base::Ref<PseudoFile>(this)));
}

base::Status PseudoFile::Store(std::string_view, uint64_t) { return base::Error(EIO); }

base::Result<size_t> PseudoFileDescription::PRead(IoDest& dst, uint64_t offset, bool) {
  fiber::MutexLock lock(&mutex_);
  if (!valid_ || offset == 0) {
    text_ = TRY(file_->Generate());
    valid_ = true;
  }
  if (offset >= text_.size()) return size_t{0};
  std::string_view rest = std::string_view(text_).substr(offset);
  return dst.Put(std::as_bytes(std::span(rest.substr(0, dst.remaining()))));
}

base::Result<size_t> PseudoFileDescription::PWrite(IoSource& src, uint64_t offset, bool) {
  std::string data(std::min(src.remaining(), kMaxStore), '\0');
  size_t n = TRY(src.Get(std::as_writable_bytes(std::span(data))));
  data.resize(n);
  TRY(file_->Store(data, offset));
  fiber::MutexLock lock(&mutex_);
  valid_ = false;
  return n;
}

PseudoLink::PseudoLink(PseudoFs* fs, Target target, uint64_t ino)
    : PseudoInode(fs, ino, S_IFLNK | 0777), target_(std::move(target)) {}

PseudoLink::PseudoLink(PseudoFs* fs, std::string target)
    : PseudoInode(fs, 0, S_IFLNK | 0777),
      target_([target = std::move(target)]() -> base::Result<std::string> { return target; }) {}

base::Result<base::Ref<FileDescription>> PseudoLink::Open(const OpenArgs&) {
  return base::Error(ELOOP);
}

}  // namespace sentry
