#include "sentry/vfs/inode.h"

#include <array>
#include <cstring>

#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

// Minor numbers of the anonymous range (major 0); low ones are left to look like a host's.
std::atomic<unsigned> g_next_dev{20};

absl::Mutex& SpecialMutex(const Inode* inode) {
  static std::array<absl::Mutex, 64> mutexes;
  return mutexes[(reinterpret_cast<uintptr_t>(inode) >> 6) % mutexes.size()];
}

}  // namespace

timespec CurrentTime() {
  timespec now;
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return now;
}

bool CapableOver(const Credentials& creds, int cap, uid_t uid, gid_t gid) {
  if (!creds.HasCap(cap)) return false;
  return !creds.user_ns || (creds.user_ns->HasUid(uid) && creds.user_ns->HasGid(gid));
}

bool OwnerOrCapable(const Credentials& creds, uid_t uid, gid_t gid) {
  return creds.fsuid == uid || CapableOver(creds, CAP_FOWNER, uid, gid);
}

base::Status GenericPermission(const Credentials& creds, const InodePerm& perm, int may) {
  unsigned bits = perm.mode;
  if (creds.fsuid == perm.uid) {
    bits >>= 6;
  } else if (((bits ^ (bits >> 3)) & may & 7) != 0 && creds.InGroup(perm.gid)) {
    // Membership is looked at only where it makes a difference.
    bits >>= 3;
  }
  if ((may & ~bits & 7) == 0) return base::Ok();
  if (S_ISDIR(perm.mode)) {
    if ((may & kMayWrite) == 0 && CapableOver(creds, CAP_DAC_READ_SEARCH, perm.uid, perm.gid)) {
      return base::Ok();
    }
    if (CapableOver(creds, CAP_DAC_OVERRIDE, perm.uid, perm.gid)) return base::Ok();
    return base::Error(EACCES);
  }
  if (may == kMayRead && CapableOver(creds, CAP_DAC_READ_SEARCH, perm.uid, perm.gid)) {
    return base::Ok();
  }
  if (((may & kMayExec) == 0 || (perm.mode & 0111) != 0) &&
      CapableOver(creds, CAP_DAC_OVERRIDE, perm.uid, perm.gid)) {
    return base::Ok();
  }
  return base::Error(EACCES);
}

Filesystem::Filesystem(std::string type_name, uint64_t magic)
    : type_name_(std::move(type_name)),
      magic_(magic),
      dev_(makedev(0, g_next_dev.fetch_add(1, std::memory_order_relaxed))) {}

Filesystem::~Filesystem() = default;

base::Result<struct statfs> Filesystem::StatFs() {
  struct statfs out;
  memset(&out, 0, sizeof(out));
  out.f_type = static_cast<decltype(out.f_type)>(magic_);
  out.f_bsize = out.f_frsize = 4096;
  out.f_namelen = kNameMax;
  return out;
}

Inode::Inode(Filesystem* fs, uint64_t ino, mode_t mode)
    : fs_(fs), ino_(ino), type_(mode & S_IFMT) {}

Inode::~Inode() {
  delete locks_.load(std::memory_order_relaxed);
  delete watches_.load(std::memory_order_relaxed);
  if (special_ != nullptr) special_->DecRef();
}

void Inode::CachePerm(mode_t mode, uid_t uid, gid_t gid) {
  const mode_t full = (mode & ~S_IFMT) | type_;
  const uint64_t ids = uint64_t{uid} << 32 | gid;
  const bool changes = perm_mode_.load(std::memory_order_relaxed) != full ||
                       perm_ids_.load(std::memory_order_relaxed) != ids;
  if (changes && perm_used_.load(std::memory_order_acquire)) AllPathsChanged();
  perm_mode_.store(full, std::memory_order_relaxed);
  perm_ids_.store(ids, std::memory_order_relaxed);
  perm_cached_.store(true, std::memory_order_seq_cst);
  if (changes && perm_used_.load(std::memory_order_seq_cst)) AllPathsChanged();
}

base::Result<InodePerm> Inode::GetPerm() {
  if (perm_cached_.load(std::memory_order_acquire)) {
    const uint64_t ids = perm_ids_.load(std::memory_order_relaxed);
    return InodePerm{perm_mode_.load(std::memory_order_relaxed), static_cast<uid_t>(ids >> 32),
                     static_cast<gid_t>(ids)};
  }
  const InodeAttr attr = TRY(GetAttr());
  return InodePerm{attr.mode, attr.uid, attr.gid};
}

base::Status Inode::CheckPermission(const Credentials& creds, int may) {
  return GenericPermission(creds, TRY(GetPerm()), may);
}

base::Result<base::Ref<Inode>> Inode::Lookup(std::string_view) { return base::Error(ENOTDIR); }
base::Result<std::vector<base::Ref<Inode>>> Inode::LookupMany(
    std::span<const std::string_view> names) {
  auto one = Lookup(names[0]);
  if (!one.ok() && one.error().code() != ENOENT) return one.error();
  std::vector<base::Ref<Inode>> result;
  result.push_back(one.ok() ? std::move(*one) : nullptr);
  return result;
}
base::Result<base::Ref<Inode>> Inode::Create(std::string_view, const NewInode&) {
  return base::Error(IsDir() ? EACCES : ENOTDIR);
}
base::Result<base::Ref<Inode>> Inode::Mkdir(std::string_view, const NewInode&) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
base::Result<base::Ref<Inode>> Inode::Symlink(std::string_view, std::string_view, const NewInode&) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
base::Status Inode::Link(std::string_view, Inode&) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
base::Status Inode::Unlink(std::string_view, Inode&) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
base::Status Inode::Rmdir(std::string_view, Inode&) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
base::Status Inode::Rename(std::string_view, Inode&, Inode&, std::string_view, Inode*, uint32_t) {
  return base::Error(IsDir() ? EPERM : ENOTDIR);
}
bool Inode::Revalidate(std::string_view, Inode*) { return true; }
base::Result<base::Ref<Inode>> Inode::Tmpfile(const NewInode&) { return base::Error(EOPNOTSUPP); }
base::Result<std::string> Inode::ReadLink() { return base::Error(EINVAL); }
base::Result<Path> Inode::FollowMagicLink(const Credentials&) { return base::Error(EINVAL); }
base::Result<std::string> Inode::GetXattr(std::string_view) { return base::Error(EOPNOTSUPP); }
base::Status Inode::SetXattr(std::string_view, std::string_view, int) {
  return base::Error(EOPNOTSUPP);
}
base::Result<std::vector<std::string>> Inode::ListXattr() { return std::vector<std::string>(); }
base::Status Inode::RemoveXattr(std::string_view) { return base::Error(EOPNOTSUPP); }

FileLocks& Inode::locks() {
  FileLocks* locks = locks_.load(std::memory_order_acquire);
  if (locks != nullptr) return *locks;
  SeeCloses();  // they end with descriptors
  auto* fresh = new FileLocks;
  if (locks_.compare_exchange_strong(locks, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *locks;
}

void Inode::SeeCloses() {
  // Whoever lends looks at these two the other way round.
  sees_closes_.store(true, std::memory_order_seq_cst);
  if (lent_closes_.load(std::memory_order_seq_cst) > 0) FdTable::RecallCloses(this);
}

InodeWatches& Inode::MakeWatches() {
  InodeWatches* watches = watches_.load(std::memory_order_acquire);
  if (watches != nullptr) return *watches;
  auto* fresh = new InodeWatches;
  if (watches_.compare_exchange_strong(watches, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *watches;
}

base::Ref<Inode::Special> Inode::special() const {
  absl::MutexLock l(&SpecialMutex(this));
  return base::Ref<Special>(special_);
}

base::Ref<Inode::Special> Inode::SetSpecialIfNone(base::Ref<Special> special) {
  absl::MutexLock l(&SpecialMutex(this));
  if (special_ == nullptr) special_ = base::Ref<Special>(special).release();
  return base::Ref<Special>(special_);
}

void Inode::ClearSpecial() {
  Special* old;
  {
    absl::MutexLock l(&SpecialMutex(this));
    old = special_;
    special_ = nullptr;
  }
  if (old != nullptr) old->DecRef();
}

base::Status Filesystem::SetReadOnly(bool read_only) {
  if (read_only && !this->read_only() && writers_.load(std::memory_order_acquire) > 0) {
    return base::Error(EBUSY);
  }
  read_only_.store(read_only, std::memory_order_release);
  AllPathsChanged();
  return base::Ok();
}

base::Status FilesystemType::CheckOption(std::string_view, std::string_view) const {
  return base::Error(ENOENT);
}

base::Status Inode::GetWriteAccess() {
  int n = write_count_.load(std::memory_order_relaxed);
  do {
    if (n < 0) return base::Error(ETXTBSY);
  } while (!write_count_.compare_exchange_weak(n, n + 1, std::memory_order_acq_rel));
  write_opens_.fetch_add(1, std::memory_order_acq_rel);
  return base::Ok();
}

void Inode::DropWriteAccess() { write_count_.fetch_sub(1, std::memory_order_acq_rel); }

base::Status Inode::DenyWriteAccess() {
  int n = write_count_.load(std::memory_order_relaxed);
  do {
    if (n > 0) return base::Error(ETXTBSY);
  } while (!write_count_.compare_exchange_weak(n, n - 1, std::memory_order_acq_rel));
  return base::Ok();
}

void Inode::AllowWriteAccess() { write_count_.fetch_add(1, std::memory_order_acq_rel); }

}  // namespace sentry
