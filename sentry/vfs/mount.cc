#include "sentry/vfs/mount.h"

#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/mount_events.h"
#include "sentry/vfs/mount_locks.h"
#include "sentry/vfs/notify.h"
#include "sentry/vfs/propagation.h"

namespace sentry {
namespace {

std::atomic<int> g_next_mount_id{20};
std::atomic<uint64_t> g_next_ns_id{0xf0000100};

}  // namespace

fiber::WaitQueue& MountEvents() {
  static fiber::WaitQueue& queue = *new fiber::WaitQueue;
  return queue;
}

void TellMountChange() { MountEvents().WakeAll(EPOLLERR | EPOLLPRI); }

Mount::Mount(base::Ref<Filesystem> fs, base::Ref<Dentry> root, uint64_t flags, std::string source)
    : fs_(std::move(fs)),
      root_(std::move(root)),
      source_(std::move(source)),
      id_(g_next_mount_id.fetch_add(1, std::memory_order_relaxed)),
      flags_(flags) {
  fs_->AddMount();
}

Mount::~Mount() {
  // Nothing of an unmounted filesystem should stay cached.
  if (!fs_->RemoveMount()) return;
  NotifyUnmount(*fs_);
  root_->PruneChildren();
}

bool Mount::read_only() const { return (flags() & MS_RDONLY) != 0 || fs_->read_only(); }

void Mount::AddWriter() {
  writers_.fetch_add(1, std::memory_order_acq_rel);
  fs_->AddWriters(1);
}

void Mount::DropWriter() {
  fs_->AddWriters(-1);
  writers_.fetch_sub(1, std::memory_order_acq_rel);
}

absl::Mutex MountNamespace::mutex_(absl::kConstInit);
absl::flat_hash_map<MountNamespace::Key, Mount*>& MountNamespace::by_place_ =
    *new absl::flat_hash_map<Key, Mount*>;
absl::flat_hash_map<uint64_t, MountNamespace*>& MountNamespace::all_ =
    *new absl::flat_hash_map<uint64_t, MountNamespace*>;

MountNamespace::MountNamespace(base::Ref<UserNamespace> user_ns, bool anonymous, uint64_t origin)
    : user_ns_(std::move(user_ns)),
      anonymous_(anonymous),
      origin_(origin),
      id_(g_next_ns_id.fetch_add(1, std::memory_order_relaxed)) {
  if (anonymous_) return;
  absl::MutexLock l(&mutex_);
  all_[id_] = this;
}

base::Ref<MountNamespace> MountNamespace::New(base::Ref<Mount> root,
                                              base::Ref<UserNamespace> user_ns) {
  auto ns = base::MakeRef<MountNamespace>(std::move(user_ns), /*anonymous=*/false, 0);
  Drop drop;
  absl::MutexLock l(&mutex_);
  ns->AdoptLocked(root, &drop);
  ns->root_ = std::move(root);
  return ns;
}

base::Ref<MountNamespace> MountNamespace::NewDetached(base::Ref<Mount> root) const {
  auto ns = base::MakeRef<MountNamespace>(user_ns_, /*anonymous=*/true, 0);
  Drop drop;
  absl::MutexLock l(&mutex_);
  ns->AdoptLocked(root, &drop);
  ns->root_ = std::move(root);
  return ns;
}

MountNamespace::~MountNamespace() {
  {
    Drop drop;
    absl::MutexLock l(&mutex_);
    all_.erase(id_);
    for (const auto& [id, mount] : mounts_) {
      Isolate(*mount);
      // Whoever still has a place in one does not see what is under another.
      if (!Propagator::KeepConnected(mount)) UnplaceLocked(*mount, &drop);
      mount->ns_ = nullptr;
      drop.push_back(mount);
    }
    drop.push_back(std::move(root_));
    mounts_.clear();
  }
  Propagator::SweepConnected();
}

base::Ref<MountNamespace> MountNamespace::Find(uint64_t id) {
  absl::ReaderMutexLock l(&mutex_);
  auto it = all_.find(id);
  if (it == all_.end() || !it->second->TryIncRef()) return nullptr;
  return base::Ref<MountNamespace>::Adopt(it->second);
}

Mount* MountNamespace::At(const Mount* mount, const Dentry* dentry) {
  auto it = by_place_.find(Key(mount, dentry));
  return it == by_place_.end() ? nullptr : it->second;
}

Mount* MountNamespace::TopLocked(const Mount* mount, const Dentry* dentry) {
  Mount* top = nullptr;
  for (Mount* next = At(mount, dentry); next != nullptr; next = At(top, top->root_.get())) {
    top = next;
  }
  return top;
}

bool MountNamespace::IsAbove(const Mount& ancestor, const Mount& mount) {
  for (const Mount* m = &mount; m != nullptr; m = m->parent_.get()) {
    if (m == &ancestor) return true;
  }
  return false;
}

base::Ref<Mount> MountNamespace::root_mount() const {
  absl::ReaderMutexLock l(&mutex_);
  return root_;
}

base::Ref<Mount> MountNamespace::MountedOn(const Path& path) const {
  absl::ReaderMutexLock l(&mutex_);
  return base::Ref<Mount>(TopLocked(path.mount.get(), path.dentry.get()));
}

void MountNamespace::CrossDown(Path* path) const {
  if (!path->dentry->is_mountpoint()) return;
  base::Ref<Mount> top = MountedOn(*path);
  if (!top) return;
  path->dentry = top->root();
  path->mount = std::move(top);
}

Path MountNamespace::MountPoint(const Mount& mount) const {
  absl::ReaderMutexLock l(&mutex_);
  return Path{mount.parent_, mount.mountpoint_};
}

base::Ref<Mount> MountNamespace::ParentOf(const Mount& mount) const {
  absl::ReaderMutexLock l(&mutex_);
  return mount.parent_;
}

bool MountNamespace::Contains(const Mount& mount) const {
  absl::ReaderMutexLock l(&mutex_);
  return mount.ns_ == this;
}

// is_path_reachable().
bool MountNamespace::IsReachable(const Mount& mount, const Path& root) {
  absl::ReaderMutexLock l(&mutex_);
  const Mount* m = &mount;
  const Dentry* at = mount.root_.get();
  while (m != root.mount.get() && m->parent_) {
    at = m->mountpoint_.get();
    m = m->parent_.get();
  }
  return m == root.mount.get() && root.dentry->IsAncestorOf(*at);
}

std::vector<base::Ref<Mount>> MountNamespace::Mounts() const {
  absl::ReaderMutexLock l(&mutex_);
  std::vector<base::Ref<Mount>> all;
  all.reserve(mounts_.size());
  for (const auto& [id, mount] : mounts_) all.push_back(mount);
  return all;
}

base::Ref<Mount> MountNamespace::FindMount(uint64_t unique_id) const {
  if (unique_id <= kUniqueMountIds || unique_id - kUniqueMountIds > INT32_MAX) return nullptr;
  absl::ReaderMutexLock l(&mutex_);
  auto it = mounts_.find(static_cast<int>(unique_id - kUniqueMountIds));
  return it == mounts_.end() ? nullptr : it->second;
}

bool MountNamespace::MayUse(const Mount& mount) const {
  if (mount.ns_ == this) return true;
  return mount.ns_ != nullptr && mount.ns_->anonymous_ &&
         (mount.ns_->origin_ == 0 || mount.ns_->origin_ == id_);
}

bool MountNamespace::IsDetachedRoot(const Mount& mount) {
  return mount.ns_ != nullptr && mount.ns_->anonymous_ && mount.ns_->root_.get() == &mount;
}

base::Status MountNamespace::SetAttr(Mount& mount, const AttrChange& change) {
  absl::MutexLock l(&mutex_);
  if (mount.ns_ != this && !IsDetachedRoot(mount)) return base::Error(EINVAL);
  const Tree tree = change.recursive ? TreeLocked(mount) : Tree{base::Ref<Mount>(&mount)};
  // The locks stay.
  auto changed = [&](const Mount& m) {
    return (m.flags() & ~(change.clear & ~kMountLocks)) | change.set;
  };
  for (const auto& m : tree) {
    if (!LocksAllow(m->flags(), changed(*m))) return base::Error(EPERM);
  }
  if ((change.set & MS_RDONLY) != 0) {
    for (const auto& m : tree) {
      if ((m->flags() & MS_RDONLY) == 0 && m->writers() > 0) return base::Error(EBUSY);
    }
  }
  for (const auto& m : tree) {
    m->set_flags(changed(*m));
    if (change.propagation != 0) ChangeType(*m, change.propagation);
  }
  mount.ns_->version_.fetch_add(1, std::memory_order_acq_rel);
  TellMountChange();
  return base::Ok();
}

base::Ref<MountNamespace> MountNamespace::Copy(std::span<Path*> paths,
                                               base::Ref<UserNamespace> user_ns) {
  const bool less_privileged = user_ns != user_ns_;
  auto copy = base::MakeRef<MountNamespace>(std::move(user_ns), /*anonymous=*/false, 0);
  absl::flat_hash_map<const Mount*, base::Ref<Mount>> clones;
  Drop drop;
  {
    absl::MutexLock l(&mutex_);
    const Tree tree = TreeLocked(*root_);
    for (const auto& m : tree) {
      base::Ref<Mount> clone = CloneOf(*m, m->root_);
      ShareLike(*clone, *m, less_privileged);
      if (less_privileged) {
        clone->set_flags(WithLocks(clone->flags()) | (m == root_ ? 0 : kMountLocked));
      }
      if (m == root_) copy->root_ = clone;
      copy->AdoptLocked(clone, &drop);
      clones[m.get()] = std::move(clone);
    }
    for (const auto& m : tree) {
      if (m->parent_) PlaceLocked(*clones[m.get()], *clones[m->parent_.get()], *m->mountpoint_);
    }
  }
  for (Path* path : paths) {
    auto it = clones.find(path->mount.get());
    if (it != clones.end()) path->mount = it->second;
  }
  return copy;
}

}  // namespace sentry
