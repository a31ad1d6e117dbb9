#include "sentry/fs/overlay/overlay_inode.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "sentry/vfs/file_description.h"

namespace sentry {
namespace {

// Numbers of inodes that are in the upper layer alone, apart from those of the lower one.
constexpr uint64_t kUpperInoBit = uint64_t{1} << 48;
constexpr size_t kCopyChunk = 128 * 1024;

uint64_t NumberOf(const base::Ref<Inode>& lower, const base::Ref<Inode>& upper) {
  return lower ? lower->ino() : upper->ino() | kUpperInoBit;
}

bool AllZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

OverlayInode::OverlayInode(OverlayFilesystem* fs, base::Ref<Inode> lower, base::Ref<Inode> upper,
                           base::Ref<UpperState> state, int lost_links)
    : Inode(fs, NumberOf(lower, upper), upper ? upper->type() : lower->type()),
      lower_(std::move(lower)),
      upper_(upper.release()),
      state_(std::move(state)),
      lost_links_(lost_links) {
  RefreshPerm();
}

OverlayInode::~OverlayInode() {
  if (state_ && !IsDir() && state_->nlink.load() <= 0) DropFromPool();
  OverlayFilesystem& fs = overlay();
  base::Ref<Inode> upper = base::Ref<Inode>::Adopt(upper_.load());
  absl::MutexLock l(&fs.mutex_);
  for (const Inode* key :
       {static_cast<const Inode*>(upper.get()), static_cast<const Inode*>(lower_.get())}) {
    auto it = fs.live_.find(key);
    if (it != fs.live_.end() && it->second == this) fs.live_.erase(it);
  }
}

uint64_t OverlayInode::InoOf(Inode& upper_inode) {
  base::Ref<Special> special = upper_inode.special();
  if (special) return static_cast<UpperState*>(special.get())->lower->ino();
  return upper_inode.ino() | kUpperInoBit;
}

void OverlayInode::RefreshPerm() {
  auto perm = real().GetPerm();
  if (perm.ok()) CachePerm(perm->mode, perm->uid, perm->gid);
}

base::Result<InodeAttr> OverlayInode::GetAttr() {
  InodeAttr attr = TRY(real().GetAttr());
  attr.ino = ino();
  attr.dev = fs().dev();
  if (IsDir()) {
    // A merged directory does not count its subdirectories; 1 says so to find(1) and the like.
    if (upper() != nullptr && lower_) attr.nlink = 1;
  } else if (upper() != nullptr && state_) {
    attr.nlink = static_cast<uint32_t>(std::max(0, state_->nlink.load()));
  } else if (upper() == nullptr) {
    const auto lost = static_cast<uint32_t>(lost_links_.load());
    attr.nlink -= std::min(attr.nlink, lost);
  }
  return attr;
}

base::Status OverlayInode::SetAttr(const AttrChange& change) {
  TRY(CopyUp(/*data=*/!(change.set_size && change.size == 0)));
  TRY(upper()->SetAttr(change));
  RefreshPerm();
  attr_word().Changed();
  return base::Ok();
}

base::Result<std::string> OverlayInode::GetXattr(std::string_view name) {
  return real().GetXattr(name);
}

base::Status OverlayInode::SetXattr(std::string_view name, std::string_view value, int flags) {
  TRY(CopyUp());
  return upper()->SetXattr(name, value, flags);
}

base::Status OverlayInode::RemoveXattr(std::string_view name) {
  TRY(real().GetXattr(name));
  TRY(CopyUp());
  return upper()->RemoveXattr(name);
}

base::Status OverlayInode::CopyData(Inode& copy, const InodeAttr& attr) {
  OverlayFilesystem& fs = overlay();
  base::Ref<FileDescription> from =
      TRY(lower_->Open(OpenArgs{fs.LowerPath(lower_), O_RDONLY, fs.creds()}));
  base::Ref<FileDescription> to =
      TRY(copy.Open(OpenArgs{fs.UpperPath(base::Ref<Inode>(&copy)), O_WRONLY, fs.creds()}));
  std::vector<std::byte> buffer(std::min<uint64_t>(kCopyChunk, attr.size));
  uint64_t offset = 0;
  while (offset < attr.size) {
    BufferDest dst(buffer);
    const size_t n = TRY(from->PRead(dst, offset, false));
    if (n == 0) break;
    // Holes stay holes.
    if (!AllZero(std::span(buffer).first(n))) {
      size_t done = 0;
      while (done < n) {
        BufferSource src(std::span<const std::byte>(buffer).subspan(done, n - done));
        done += TRY(to->PWrite(src, offset + done, false));
      }
    }
    offset += n;
  }
  return to->Truncate(offset);
}

base::Status OverlayInode::FillCopy(Inode& copy, const InodeAttr& attr, bool data) {
  auto names = lower_->ListXattr();
  if (names.ok()) {
    for (const std::string& name : *names) {
      auto value = lower_->GetXattr(name);
      // What the memory layer has no place for (POSIX ACLs as Linux's overlay without them) is
      // left.
      if (value.ok()) (void)copy.SetXattr(name, *value, 0);
    }
  }
  if (IsReg() && data && attr.size > 0) TRY(CopyData(copy, attr));
  AttrChange change;
  change.set_mode = !IsSymlink();
  change.mode = attr.mode & 07777;
  change.set_atime = change.set_mtime = true;
  change.atime = attr.atime;
  change.mtime = attr.mtime;
  return copy.SetAttr(change);
}

// Linux: ovl_copy_up_one.
base::Status OverlayInode::CopyUp(bool data) {
  if (upper() != nullptr) return base::Ok();
  fiber::MutexLock l(&copy_up_mutex_);
  if (upper() != nullptr) return base::Ok();
  OverlayFilesystem& fs = overlay();
  const InodeAttr attr = TRY(lower_->GetAttr());
  std::string target;
  if (IsSymlink()) target = TRY(lower_->ReadLink());
  const NewInode args{attr.mode, attr.uid, attr.gid, attr.rdev};
  base::Ref<Inode> copy;
  std::string pool_name;
  {
    absl::MutexLock pool(&fs.pool_mutex_);
    pool_name = std::to_string(fs.next_pool_name_++);
    switch (type()) {
      case S_IFDIR:
        copy = TRY(fs.pool_->Mkdir(pool_name, args));
        break;
      case S_IFLNK:
        copy = TRY(fs.pool_->Symlink(pool_name, target, args));
        break;
      default:
        copy = TRY(fs.pool_->Create(pool_name, args));
        break;
    }
  }
  base::Status filled = FillCopy(*copy, attr, data);
  if (!filled.ok()) {
    absl::MutexLock pool(&fs.pool_mutex_);
    (void)(IsDir() ? fs.pool_->Rmdir(pool_name, *copy) : fs.pool_->Unlink(pool_name, *copy));
    return filled;
  }
  const int links = static_cast<int>(attr.nlink) - lost_links_.load();
  state_ = base::MakeRef<UpperState>(lower_, pool_name, links);
  copy->SetSpecialIfNone(state_);
  absl::MutexLock l2(&fs.mutex_);
  fs.index_[lower_.get()] = {lower_, copy};
  fs.lost_.erase(lower_.get());
  fs.live_[copy.get()] = this;
  upper_.store(copy.release(), std::memory_order_release);
  attr_word().Changed();
  return base::Ok();
}

void OverlayInode::DropFromPool() {
  OverlayFilesystem& fs = overlay();
  base::Ref<Inode> dropped_lower, dropped_upper;
  {
    absl::MutexLock pool(&fs.pool_mutex_);
    if (!state_->pool_name.empty()) {
      (void)(IsDir() ? fs.pool_->Rmdir(state_->pool_name, *upper())
                     : fs.pool_->Unlink(state_->pool_name, *upper()));
      state_->pool_name.clear();
    }
  }
  absl::MutexLock l(&fs.mutex_);
  auto it = fs.index_.find(lower_.get());
  if (it == fs.index_.end()) return;
  dropped_lower = std::move(it->second.lower);
  dropped_upper = std::move(it->second.upper);
  fs.index_.erase(it);
}

void OverlayInode::LoseLink() {
  const PathChange change(attr_word());
  if (upper() == nullptr) {
    const int lost = lost_links_.fetch_add(1) + 1;
    auto attr = lower_->GetAttr();
    if (!attr.ok() || attr->nlink <= 1) return;
    OverlayFilesystem& fs = overlay();
    absl::MutexLock l(&fs.mutex_);
    fs.lost_[lower_.get()] = {lower_, lost};
    return;
  }
  if (!state_) return;
  const int left = state_->nlink.fetch_sub(1) - 1;
  if (IsDir() || left <= 0) DropFromPool();
}

base::Result<base::Ref<FileDescription>> OverlayInode::OpenReal(uint32_t flags, bool* is_upper) {
  OverlayFilesystem& fs = overlay();
  if (Inode* u = upper()) {
    *is_upper = true;
    return u->Open(OpenArgs{fs.UpperPath(base::Ref<Inode>(u)), flags, fs.creds()});
  }
  *is_upper = false;
  return lower_->Open(OpenArgs{fs.LowerPath(lower_), flags, fs.creds()});
}

}  // namespace sentry
