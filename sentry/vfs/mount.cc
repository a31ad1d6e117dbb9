#include "sentry/vfs/mount.h"

#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

std::atomic<int> g_next_mount_id{20};
std::atomic<uint64_t> g_next_ns_id{0xf0000100};

bool IsDirectory(const Dentry& d) { return d.inode_ptr() != nullptr && d.inode_ptr()->IsDir(); }

}  // namespace

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
  if (fs_->RemoveMount()) root_->PruneChildren();
}

bool Mount::read_only() const { return (flags() & MS_RDONLY) != 0; }

absl::Mutex MountNamespace::mutex_(absl::kConstInit);

MountNamespace::MountNamespace() : id_(g_next_ns_id.fetch_add(1, std::memory_order_relaxed)) {}

base::Ref<MountNamespace> MountNamespace::New(base::Ref<Mount> root) {
  auto ns = base::MakeRef<MountNamespace>();
  absl::MutexLock l(&ns->mutex_);
  root->ns_ = ns.get();
  ns->mounts_.push_back(root);
  ns->root_ = std::move(root);
  return ns;
}

MountNamespace::~MountNamespace() {
  std::vector<base::Ref<base::RefCounted>> drop;
  absl::MutexLock l(&mutex_);
  for (const auto& mount : mounts_) {
    Isolate(*mount);
    UnplaceLocked(*mount, &drop);
    mount->ns_ = nullptr;
  }
}

void MountNamespace::PlaceLocked(Mount& mount, Mount& parent, Dentry& where) {
  mount.parent_ = base::Ref<Mount>(&parent);
  mount.mountpoint_ = base::Ref<Dentry>(&where);
  parent.children_++;
  where.AddMountCount(1);
  by_place_[Key(&parent, &where)] = &mount;
  version_.fetch_add(1, std::memory_order_acq_rel);
}

void MountNamespace::UnplaceLocked(Mount& mount, std::vector<base::Ref<base::RefCounted>>* drop) {
  if (!mount.parent_) return;
  by_place_.erase(Key(mount.parent_.get(), mount.mountpoint_.get()));
  mount.mountpoint_->AddMountCount(-1);
  mount.parent_->children_--;
  drop->push_back(std::move(mount.parent_));
  drop->push_back(std::move(mount.mountpoint_));
  version_.fetch_add(1, std::memory_order_acq_rel);
}

Mount* MountNamespace::TopLocked(const Mount* mount, const Dentry* dentry) const {
  Mount* top = nullptr;
  for (;;) {
    auto it = by_place_.find(Key(mount, dentry));
    if (it == by_place_.end()) return top;
    top = it->second;
    mount = top;
    dentry = top->root_.get();
  }
}

bool MountNamespace::IsAbove(const Mount& ancestor, const Mount& mount) const {
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

std::vector<base::Ref<Mount>> MountNamespace::Mounts() const {
  absl::ReaderMutexLock l(&mutex_);
  return mounts_;
}

base::Status MountNamespace::AttachLocked(const base::Ref<Mount>& mount, const Path& where,
                                          bool is_new) {
  if (where.mount->ns_ != this) return base::Error(EINVAL);
  if (where.dentry->unlinked()) return base::Error(ENOENT);
  Mount* parent = where.mount.get();
  Dentry* point = where.dentry.get();
  if (Mount* top = TopLocked(parent, point)) {
    parent = top;
    point = top->root_.get();
  }
  if (IsDirectory(*mount->root_) != IsDirectory(*point)) return base::Error(ENOTDIR);
  if (is_new) {
    if (mounts_.size() >= kMaxMounts) return base::Error(ENOSPC);
    mount->ns_ = this;
    mounts_.push_back(mount);
  }
  PlaceLocked(*mount, *parent, *point);
  return base::Ok();
}

std::vector<Mount*> MountNamespace::TreeLocked(Mount& mount) const {
  std::vector<Mount*> tree{&mount};
  // Parents stand before children in creation order, except after moves; so look until all are in.
  for (bool grown = true; grown;) {
    grown = false;
    for (const auto& m : mounts_) {
      auto in = [&](const Mount* one) {
        return std::find(tree.begin(), tree.end(), one) != tree.end();
      };
      if (m->parent_ == nullptr || in(m.get()) || !in(m->parent_.get())) continue;
      tree.push_back(m.get());
      grown = true;
    }
  }
  return tree;
}

void MountNamespace::RemoveTreeLocked(Mount& mount,
                                      std::vector<base::Ref<base::RefCounted>>* drop) {
  for (Mount* m : TreeLocked(mount)) {
    Isolate(*m);
    UnplaceLocked(*m, drop);
    m->ns_ = nullptr;
    auto it =
        std::find_if(mounts_.begin(), mounts_.end(), [m](const auto& o) { return o.get() == m; });
    drop->push_back(std::move(*it));
    mounts_.erase(it);
  }
}

base::Status MountNamespace::Attach(base::Ref<Mount> mount, const Path& where) {
  absl::MutexLock l(&mutex_);
  if (mount->ns_ != nullptr) return base::Error(EINVAL);
  // Linux refuses the same root on itself.
  if (where.mount->fs_ == mount->fs_ && where.dentry == where.mount->root_ &&
      mount->root_ == where.mount->root_) {
    return base::Error(EBUSY);
  }
  TRY(AttachLocked(mount, where, /*is_new=*/true));
  PropagateTree(*mount, *mount->parent_, *mount->mountpoint_);
  return base::Ok();
}

base::Status MountNamespace::Detach(const base::Ref<Mount>& mount, int flags,
                                    uint32_t caller_refs) {
  std::vector<base::Ref<base::RefCounted>> drop;  // dropped without the mutex
  absl::MutexLock l(&mutex_);
  if (mount->ns_ != this || mount == root_) return base::Error(EINVAL);
  if ((flags & MNT_DETACH) == 0) {
    if (mount->children_ > 0) return base::Error(EBUSY);
    if (mount->ref_count() > 1 + caller_refs) return base::Error(EBUSY);
    // Linux: the first umount2(MNT_EXPIRE) marks, the second unmounts if it was unused between.
    if ((flags & MNT_EXPIRE) != 0) return base::Error(EAGAIN);
  }
  // Those that share with what it stands on lose theirs too.
  for (Mount* other : Receivers(*mount->parent_)) {
    if (other->ns_ == nullptr) continue;
    auto it = other->ns_->by_place_.find(Key(other, mount->mountpoint_.get()));
    if (it == other->ns_->by_place_.end() || it->second == mount.get()) continue;
    if ((flags & MNT_DETACH) == 0 && it->second->children_ > 0) continue;
    other->ns_->RemoveTreeLocked(*it->second, &drop);
  }
  if (mount->ns_ == this) RemoveTreeLocked(*mount, &drop);
  return base::Ok();
}

base::Status MountNamespace::Move(const base::Ref<Mount>& mount, const Path& where) {
  std::vector<base::Ref<base::RefCounted>> drop;
  absl::MutexLock l(&mutex_);
  if (mount->ns_ != this || where.mount->ns_ != this || !mount->parent_) return base::Error(EINVAL);
  if (mount->parent_->peer_group_ != 0) return base::Error(EINVAL);
  Mount* top = TopLocked(where.mount.get(), where.dentry.get());
  const Dentry& point = top ? *top->root_ : *where.dentry;
  if (IsDirectory(*mount->root_) != IsDirectory(point)) return base::Error(EINVAL);
  if (where.dentry->unlinked()) return base::Error(ENOENT);
  if (IsAbove(*mount, top ? *top : *where.mount)) return base::Error(ELOOP);
  const std::vector<Mount*> tree = TreeLocked(*mount);
  const bool unbindable =
      std::any_of(tree.begin(), tree.end(), [](const Mount* m) { return m->unbindable_; });
  if ((top ? *top : *where.mount).peer_group_ != 0 && unbindable) return base::Error(EINVAL);
  UnplaceLocked(*mount, &drop);
  TRY(AttachLocked(mount, where, /*is_new=*/false));
  PropagateTree(*mount, *mount->parent_, *mount->mountpoint_);
  return base::Ok();
}

base::Status MountNamespace::PivotRoot(const Path& root, const Path& new_root,
                                       const Path& put_old) {
  std::vector<base::Ref<base::RefCounted>> drop;
  absl::MutexLock l(&mutex_);
  Mount* const root_mount = root.mount.get();
  Mount* const new_mount = new_root.mount.get();
  if (put_old.mount->ns_ != this || root_mount->ns_ != this || new_mount->ns_ != this) {
    return base::Error(EINVAL);
  }
  auto shares = [](const Mount* m) { return m != nullptr && m->peer_group_ != 0; };
  if (shares(put_old.mount.get()) || shares(new_mount->parent_.get()) ||
      shares(root_mount->parent_.get())) {
    return base::Error(EINVAL);
  }
  if (new_root.dentry->unlinked()) return base::Error(ENOENT);
  // A loop, on the same filesystem.
  if (new_mount == root_mount || put_old.mount == root.mount) return base::Error(EBUSY);
  if (root.dentry != root_mount->root_) return base::Error(EINVAL);  // chroot into a directory
  if (new_root.dentry != new_mount->root_ || !new_mount->parent_) return base::Error(EINVAL);
  // put_old must lie below new_root, and new_root below root.
  auto reachable = [&](const Mount* m, const Path& from)
                       ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return IsAbove(*from.mount, *m); };
  if (!reachable(put_old.mount.get(), new_root)) return base::Error(EINVAL);
  if (!new_root.dentry->IsAncestorOf(*put_old.dentry) && put_old.mount == new_root.mount) {
    return base::Error(EINVAL);
  }
  if (!reachable(new_mount, root)) return base::Error(EINVAL);
  const base::Ref<Mount> root_parent = root_mount->parent_;
  const base::Ref<Dentry> root_point = root_mount->mountpoint_;
  UnplaceLocked(*new_mount, &drop);
  UnplaceLocked(*root_mount, &drop);
  PlaceLocked(*root_mount, *put_old.mount, *put_old.dentry);
  if (root_parent) {
    PlaceLocked(*new_mount, *root_parent, *root_point);
  } else {
    drop.push_back(std::move(root_));
    root_ = new_root.mount;
  }
  return base::Ok();
}

base::Status MountNamespace::Bind(const Path& what, const Path& where, bool recursive,
                                  uint64_t flags) {
  absl::MutexLock l(&mutex_);
  if (what.mount->ns_ != this || where.mount->ns_ != this) return base::Error(EINVAL);
  if (what.mount->unbindable_) return base::Error(EINVAL);
  // Clones of the mounts below go where their originals stand, seen from what.dentry.
  struct Clone {
    base::Ref<Mount> from, to;
  };
  auto clone = [flags](const Mount& m, const base::Ref<Dentry>& root) {
    return base::MakeRef<Mount>(m.fs_, root, m.flags() | flags, m.source_);
  };
  std::vector<Clone> clones{{what.mount, clone(*what.mount, what.dentry)}};
  if (recursive) {
    if (mounts_.size() * 2 > kMaxMounts) return base::Error(ENOSPC);
    // Parents stand before children in creation order, except after moves; so look until all are
    // in.
    for (bool grown = true; grown;) {
      grown = false;
      for (const auto& m : mounts_) {
        auto have = [&](const Mount* p) {
          return std::any_of(clones.begin(), clones.end(),
                             [&](const Clone& c) { return c.from.get() == p; });
        };
        if (!m->parent_ || have(m.get()) || !have(m->parent_.get()) || m->unbindable_) continue;
        if (m->parent_ == what.mount && !what.dentry->IsAncestorOf(*m->mountpoint_)) continue;
        clones.push_back({m, clone(*m, m->root_)});
        grown = true;
      }
    }
  }
  TRY(AttachLocked(clones[0].to, where, /*is_new=*/true));
  ShareLike(*clones[0].to, *clones[0].from, /*as_slave=*/false);
  for (size_t i = 1; i < clones.size(); i++) {
    const Mount& from = *clones[i].from;
    auto parent = std::find_if(clones.begin(), clones.end(),
                               [&](const Clone& c) { return c.from == from.parent_; });
    clones[i].to->ns_ = this;
    mounts_.push_back(clones[i].to);
    PlaceLocked(*clones[i].to, *parent->to, *from.mountpoint_);
    ShareLike(*clones[i].to, from, /*as_slave=*/false);
  }
  Mount& top = *clones[0].to;
  PropagateTree(top, *top.parent_, *top.mountpoint_);
  return base::Ok();
}

base::Ref<MountNamespace> MountNamespace::Copy(std::span<Path*> paths, bool less_privileged) {
  auto copy = base::MakeRef<MountNamespace>();
  absl::flat_hash_map<const Mount*, base::Ref<Mount>> clones;
  struct Place {
    base::Ref<Mount> original, mount, parent;
    base::Ref<Dentry> point;
  };
  std::vector<Place> places;
  base::Ref<Mount> root;
  {
    absl::ReaderMutexLock l(&mutex_);
    for (const auto& m : mounts_) {
      auto clone = base::MakeRef<Mount>(m->fs_, m->root_, m->flags(), m->source_);
      clones[m.get()] = clone;
      if (m == root_) root = clone;
      places.push_back({m, std::move(clone), m->parent_, m->mountpoint_});
    }
  }
  {
    absl::MutexLock l(&copy->mutex_);
    copy->root_ = root;
    for (Place& p : places) {
      if (p.original->ns_ == this) ShareLike(*p.mount, *p.original, less_privileged);
      p.mount->ns_ = copy.get();
      copy->mounts_.push_back(p.mount);
      if (p.parent) copy->PlaceLocked(*p.mount, *clones[p.parent.get()], *p.point);
    }
  }
  for (Path* path : paths) {
    auto it = clones.find(path->mount.get());
    if (it != clones.end()) path->mount = it->second;
  }
  return copy;
}

}  // namespace sentry
