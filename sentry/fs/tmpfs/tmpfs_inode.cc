#include "sentry/fs/tmpfs/tmpfs_inode.h"

#include <sys/mount.h>
#include <sys/xattr.h>

#include <algorithm>

#include "sentry/base/kernel_memory.h"

namespace sentry {
namespace {

constexpr uint64_t kTmpfsMagic = 0x01021994;
// Bytes of names and values of one inode's extended attributes.
constexpr size_t kMaxXattrBytes = 128 * 1024;

bool Older(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

}  // namespace

TmpfsFilesystem::TmpfsFilesystem(const TmpfsOptions& options)
    : Filesystem(options.type_name, kTmpfsMagic),
      options_(options),
      pages_(options.size == 0 ? 0 : std::max<uint64_t>(1, (options.size + 4095) / 4096)),
      max_inodes_(options.inodes) {}

base::Result<uint64_t> TmpfsFilesystem::TakeInode() {
  if (base::KernelMemory::Full()) return base::Error(ENOSPC);
  const uint64_t max = max_inodes_.load(std::memory_order_relaxed);
  if (used_inodes_.fetch_add(1, std::memory_order_relaxed) >= max && max != 0) {
    used_inodes_.fetch_sub(1, std::memory_order_relaxed);
    return base::Error(ENOSPC);
  }
  return next_ino_.fetch_add(1, std::memory_order_relaxed);
}

base::Result<struct statfs> TmpfsFilesystem::StatFs() {
  struct statfs out = TRY(Filesystem::StatFs());
  if (const uint64_t max = pages_.max(); max != 0) {
    out.f_blocks = max;
    out.f_bfree = out.f_bavail = max - std::min(max, pages_.used());
  }
  if (const uint64_t max = max_inodes_.load(std::memory_order_relaxed); max != 0) {
    out.f_files = max;
    out.f_ffree = max - std::min(max, used_inodes_.load(std::memory_order_relaxed));
  }
  return out;
}

std::string TmpfsFilesystem::ShowOptions() const {
  std::string out;
  if (pages_.max() != 0) out += ",size=" + std::to_string(pages_.max() * 4) + "k";
  const uint64_t inodes = max_inodes_.load(std::memory_order_relaxed);
  if (inodes != 0) out += ",nr_inodes=" + std::to_string(inodes);
  if (options_.mode != 01777) {
    char text[16];
    snprintf(text, sizeof(text), ",mode=%03o", options_.mode);
    out += text;
  }
  if (options_.uid != 0) out += ",uid=" + std::to_string(options_.uid);
  if (options_.gid != 0) out += ",gid=" + std::to_string(options_.gid);
  return out;
}

base::Status TmpfsFilesystem::Reconfigure(std::string_view data) {
  TmpfsOptions options = options_;
  options.size = pages_.max() * 4096;
  options.inodes = max_inodes_.load(std::memory_order_relaxed);
  TRY(ParseTmpfsOptions(data, 0, &options));
  const uint64_t pages = (options.size + 4095) / 4096;
  if (pages != 0 && pages < pages_.used()) return base::Error(EINVAL);
  if (options.inodes != 0 && options.inodes < used_inodes_.load()) return base::Error(EINVAL);
  pages_.set_max(pages);
  max_inodes_.store(options.inodes);
  return base::Ok();
}

TmpfsInode::TmpfsInode(TmpfsFilesystem* fs, uint64_t ino, const NewInode& args)
    : Inode(fs, ino, args.mode) {
  absl::MutexLock l(&mutex_);
  attr_.ino = ino;
  attr_.dev = fs->dev();
  attr_.mode = args.mode;
  attr_.uid = args.uid;
  attr_.gid = args.gid;
  attr_.rdev = args.rdev;
  attr_.nlink = 1;
  attr_.atime = attr_.mtime = attr_.ctime = attr_.btime = CurrentTime();
  CachePerm(args.mode, args.uid, args.gid);
}

TmpfsInode::~TmpfsInode() {
  {
    absl::MutexLock l(&mutex_);
    (void)ChargeXattrs(0);
  }
  tmpfs().ReturnInode();
}

base::Status TmpfsInode::ChargeXattrs(size_t bytes) {
  if (bytes > kMaxXattrBytes) return base::Error(ENOSPC);
  const uint64_t had = (xattr_bytes_ + kMemoryPage - 1) / kMemoryPage;
  const uint64_t want = (bytes + kMemoryPage - 1) / kMemoryPage;
  if (want > had && !tmpfs().pages().Charge(want - had)) return base::Error(ENOSPC);
  if (want < had) tmpfs().pages().Uncharge(had - want);
  xattr_bytes_ = bytes;
  return base::Ok();
}

void TmpfsInode::OnZeroRefs() {
  // A directory's end drops its children, and so on downwards: in a loop, since directories can be
  // nested deeper than a stack is long.
  static thread_local std::vector<TmpfsInode*>* dying = nullptr;
  if (dying != nullptr) {
    dying->push_back(this);
    return;
  }
  std::vector<TmpfsInode*> list{this};
  dying = &list;
  while (!list.empty()) {
    TmpfsInode* inode = list.back();
    list.pop_back();
    delete inode;
  }
  dying = nullptr;
}

base::Result<InodeAttr> TmpfsInode::GetAttr() {
  InodeAttr attr;
  {
    absl::MutexLock l(&mutex_);
    attr = attr_;
  }
  FillAttr(&attr);
  return attr;
}

base::Status TmpfsInode::CheckPermission(const Credentials& creds, int may) {
  if ((may & kMayWrite) != 0 && immutable()) return base::Error(EPERM);
  return Inode::CheckPermission(creds, may);
}

base::Status TmpfsInode::SetAttr(const AttrChange& change) {
  const bool times =
      (change.set_atime && !change.atime_now) || (change.set_mtime && !change.mtime_now);
  if (change.set_mode || change.set_uid || change.set_gid || times) TRY(CheckChangeable());
  const bool touch = (change.set_atime || change.set_mtime) && !change.set_size;
  if ((touch && immutable()) || (change.set_size && append_only())) return base::Error(EPERM);
  if (change.set_size) TRY(Resize(change.size));
  absl::MutexLock l(&mutex_);
  const timespec now = CurrentTime();
  if (change.set_mode) attr_.mode = type() | (change.mode & 07777);
  if (change.set_uid) attr_.uid = change.uid;
  if (change.set_gid) attr_.gid = change.gid;
  if (change.set_atime) attr_.atime = change.atime_now ? now : change.atime;
  if (change.set_mtime) attr_.mtime = change.mtime_now ? now : change.mtime;
  if (change.set_size && !change.set_mtime) attr_.mtime = now;
  attr_.ctime = now;
  CachePerm(attr_.mode, attr_.uid, attr_.gid);
  attr_word().Changed();
  return base::Ok();
}

base::Result<base::Ref<FileDescription>> TmpfsInode::Open(const OpenArgs&) {
  return base::Error(ENXIO);
}

void TmpfsInode::AddLink(int n) {
  absl::MutexLock l(&mutex_);
  attr_.nlink += n;
  attr_.ctime = CurrentTime();
  attr_word().Changed();
}

void TmpfsInode::DropName() {
  AddLink(-1);
  if (nlink() > 0) tmpfs().ReturnInode();
}

uint32_t TmpfsInode::nlink() const {
  absl::MutexLock l(&mutex_);
  return attr_.nlink;
}

void TmpfsInode::Touch(bool atime, bool mtime, bool ctime) {
  const timespec now = CurrentTime();
  absl::MutexLock l(&mutex_);
  if (atime) attr_.atime = now;
  if (mtime) attr_.mtime = now;
  if (ctime) attr_.ctime = now;
  attr_word().Changed();
}

bool TmpfsInode::AccessIsDue(const Mount& mount, uint32_t open_flags, const timespec& now) const {
  if ((open_flags & O_NOATIME) != 0 || (mount.flags() & (MS_NOATIME | MS_RDONLY)) != 0) {
    return false;
  }
  if ((mount.flags() & MS_NODIRATIME) != 0 && IsDir()) return false;
  if ((file_flags() & kFileNoAtime) != 0) return false;
  // Linux: relatime_need_update, the default of every mount.
  const bool strict = (mount.flags() & MS_STRICTATIME) != 0;
  return strict || !Older(attr_.mtime, attr_.atime) || !Older(attr_.ctime, attr_.atime) ||
         now.tv_sec - attr_.atime.tv_sec >= 24 * 60 * 60;
}

bool TmpfsInode::TouchesAccess(const Mount& mount, uint32_t open_flags) {
  const timespec now = CurrentTime();
  absl::MutexLock l(&mutex_);
  return AccessIsDue(mount, open_flags, now);
}

void TmpfsInode::TouchAccess(const Mount& mount, uint32_t open_flags) {
  const timespec now = CurrentTime();
  absl::MutexLock l(&mutex_);
  if (!AccessIsDue(mount, open_flags, now)) return;
  attr_.atime = now;
  attr_word().Changed();
}

base::Result<std::string> TmpfsInode::GetXattr(std::string_view name) {
  absl::MutexLock l(&mutex_);
  auto it = xattrs_.find(name);
  if (it == xattrs_.end()) return base::Error(ENODATA);
  return it->second;
}

base::Status TmpfsInode::SetXattr(std::string_view name, std::string_view value, int flags) {
  constexpr std::string_view kPrefixes[] = {"user.", "trusted.", "security."};
  const bool known = std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [&](auto prefix) {
    return name.size() > prefix.size() && name.substr(0, prefix.size()) == prefix;
  });
  TRY(CheckChangeable());
  if (!known) return base::Error(EOPNOTSUPP);
  absl::MutexLock l(&mutex_);
  auto it = xattrs_.find(name);
  if ((flags & XATTR_CREATE) != 0 && it != xattrs_.end()) return base::Error(EEXIST);
  if ((flags & XATTR_REPLACE) != 0 && it == xattrs_.end()) return base::Error(ENODATA);
  const size_t old = it != xattrs_.end() ? name.size() + it->second.size() : 0;
  TRY(ChargeXattrs(xattr_bytes_ - old + name.size() + value.size()));
  if (it != xattrs_.end()) {
    it->second = std::string(value);
  } else {
    xattrs_.emplace(name, value);
  }
  attr_.ctime = CurrentTime();
  attr_word().Changed();
  return base::Ok();
}

base::Result<std::vector<std::string>> TmpfsInode::ListXattr() {
  absl::MutexLock l(&mutex_);
  std::vector<std::string> names;
  for (const auto& [name, value] : xattrs_) names.push_back(name);
  return names;
}

base::Status TmpfsInode::RemoveXattr(std::string_view name) {
  TRY(CheckChangeable());
  absl::MutexLock l(&mutex_);
  auto it = xattrs_.find(name);
  if (it == xattrs_.end()) return base::Error(ENODATA);
  TRY(ChargeXattrs(xattr_bytes_ - name.size() - it->second.size()));
  xattrs_.erase(it);
  attr_.ctime = CurrentTime();
  attr_word().Changed();
  return base::Ok();
}

}  // namespace sentry
