#include <sys/sysinfo.h>

#include "sentry/fs/overlay/overlay_inode.h"

namespace sentry {
namespace {
constexpr uint64_t kOverlayMagic = 0x794c7630;
}  // namespace

OverlayFilesystem::OverlayFilesystem(const base::Ref<Inode>& lower, const base::Ref<Inode>& pool)
    : Filesystem("overlay", kOverlayMagic),
      lower_mount_(Vfs::NewMount(lower, 0, "overlay-lower")),
      upper_mount_(Vfs::NewMount(pool, 0, "overlay-upper")),
      creds_(Credentials::NewRoot(UserNamespace::NewRoot())),
      pool_(pool) {}

OverlayFilesystem::~OverlayFilesystem() = default;

base::Result<struct statfs> OverlayFilesystem::StatFs() {
  struct statfs out = TRY(upper_mount_->fs().StatFs());
  if (out.f_blocks == 0) out = TRY(lower_mount_->fs().StatFs());
  out.f_type = kOverlayMagic;
  return out;
}

std::string OverlayFilesystem::ShowOptions() const { return ",lowerdir=/,upperdir=memory"; }

Path OverlayFilesystem::UpperPath(const base::Ref<Inode>& inode) const {
  return Path{upper_mount_, Dentry::NewRoot(inode)};
}

Path OverlayFilesystem::LowerPath(const base::Ref<Inode>& inode) const {
  return Path{lower_mount_, Dentry::NewRoot(inode)};
}

base::Ref<OverlayInode> OverlayFilesystem::Wrap(base::Ref<Inode> lower, base::Ref<Inode> upper) {
  base::Ref<OverlayInode> fresh;
  base::Ref<UpperState> state;
  auto load_state = [&] {
    base::Ref<Inode::Special> special = upper->special();
    if (special) state = base::Ref<UpperState>(static_cast<UpperState*>(special.get()));
  };
  absl::MutexLock l(&mutex_);
  if (!upper) {
    auto it = index_.find(lower.get());
    if (it != index_.end()) upper = it->second.upper;
  }
  if (upper) load_state();
  if (state) lower = state->lower;
  const Inode* key = upper ? upper.get() : lower.get();
  auto it = live_.find(key);
  if (it != live_.end() && it->second->TryIncRef()) {
    return base::Ref<OverlayInode>::Adopt(it->second);
  }
  int lost = 0;
  if (auto l2 = lost_.find(lower.get()); !upper && l2 != lost_.end()) lost = l2->second.links;
  fresh =
      base::MakeRef<OverlayInode>(this, std::move(lower), std::move(upper), std::move(state), lost);
  live_[key] = fresh.get();
  return fresh;
}

base::Result<base::Ref<Inode>> NewOverlay(base::Ref<Inode> lower, const TmpfsOptions& upper) {
  if (!lower->IsDir()) return base::Error(ENOTDIR);
  TmpfsOptions options = upper;
  options.mode = 0700;
  if (struct sysinfo info; (options.size == 0 || options.inodes == 0) && sysinfo(&info) == 0) {
    const uint64_t half = uint64_t{info.totalram} * info.mem_unit / 2;
    if (options.size == 0) options.size = half;
    if (options.inodes == 0) options.inodes = half / 4096;
  }
  auto fs = base::MakeRef<OverlayFilesystem>(lower, NewTmpfs(options));
  return base::Ref<Inode>(fs->Wrap(std::move(lower), nullptr));
}

}  // namespace sentry
