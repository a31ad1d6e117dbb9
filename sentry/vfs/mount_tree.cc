// Changes of the tree of mounts (Linux: fs/namespace.c).
#include <linux/magic.h>
#include <sys/mount.h>

#include <algorithm>
#include <deque>
#include <string>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/mount_events.h"
#include "sentry/vfs/mount_locks.h"
#include "sentry/vfs/propagation.h"

namespace sentry {
namespace {

// What comes and goes by itself (Linux: proc_splice_unmountable).
bool IsEphemeral(const Dentry& d) {
  const Inode* inode = d.inode_ptr();
  if (inode == nullptr || inode->fs().magic() != PROC_SUPER_MAGIC || inode->IsDir()) return false;
  const std::string in = d.parent()->name();
  return in == "fd" || in == "fdinfo" || in == "map_files";
}

bool IsDirectory(const Dentry& d) { return d.inode_ptr() != nullptr && d.inode_ptr()->IsDir(); }

}  // namespace

void MountNamespace::PlaceLocked(Mount& mount, Mount& parent, Dentry& where) {
  mount.parent_ = base::Ref<Mount>(&parent);
  mount.mountpoint_ = base::Ref<Dentry>(&where);
  parent.children_.insert(&mount);
  where.AddMountCount(1);
  by_place_[Key(&parent, &where)] = &mount;
  if (parent.ns_ != nullptr) {
    parent.ns_->version_.fetch_add(1, std::memory_order_acq_rel);
    TellMountChange();
  }
}

void MountNamespace::UnplaceLocked(Mount& mount, Drop* drop) {
  if (!mount.parent_) return;
  by_place_.erase(Key(mount.parent_.get(), mount.mountpoint_.get()));
  mount.mountpoint_->AddMountCount(-1);
  mount.parent_->children_.erase(&mount);
  drop->push_back(std::move(mount.parent_));
  drop->push_back(std::move(mount.mountpoint_));
  if (mount.ns_ != nullptr) {
    mount.ns_->version_.fetch_add(1, std::memory_order_acq_rel);
    TellMountChange();
  }
}

void MountNamespace::LeaveLocked(Mount& mount, Drop* drop) {
  MountNamespace* ns = std::exchange(mount.ns_, nullptr);
  if (ns == nullptr) return;
  auto it = ns->mounts_.find(mount.id_);
  drop->push_back(std::move(it->second));
  ns->mounts_.erase(it);
  if (ns->root_.get() == &mount) drop->push_back(std::move(ns->root_));
  ns->version_.fetch_add(1, std::memory_order_acq_rel);
  TellMountChange();
}

void MountNamespace::AdoptLocked(const base::Ref<Mount>& mount, Drop* drop) {
  if (mount->ns_ == this) return;
  LeaveLocked(*mount, drop);
  mount->ns_ = this;
  mounts_[mount->id_] = mount;
  version_.fetch_add(1, std::memory_order_acq_rel);
  TellMountChange();
}

MountNamespace::Tree MountNamespace::TreeLocked(Mount& mount) {
  // Depth first, as next_mnt(): clones are numbered in this order.
  Tree tree;
  std::vector<Mount*> next{&mount};
  while (!next.empty()) {
    Mount* m = next.back();
    next.pop_back();
    tree.emplace_back(m);
    next.insert(next.end(), m->children_.rbegin(), m->children_.rend());
  }
  return tree;
}

base::Ref<Mount> MountNamespace::CloneOf(const Mount& mount, const base::Ref<Dentry>& root,
                                         uint64_t more_flags) {
  return base::MakeRef<Mount>(mount.fs_, root, mount.flags() | more_flags, mount.source_);
}

// copy_tree().
base::Result<MountNamespace::Tree> MountNamespace::CloneLocked(const Path& what, bool recursive,
                                                               uint64_t flags) {
  if (what.mount->unbindable_) return base::Error(EINVAL);
  // What is locked cannot be left out.
  for (const Mount* child : what.mount->children_) {
    if ((child->flags() & kMountLocked) == 0) continue;
    if (!what.dentry->IsAncestorOf(*child->mountpoint_)) continue;
    if (!recursive) return base::Error(EINVAL);
  }
  Tree clones{CloneOf(*what.mount, what.dentry, flags)};
  clones[0]->set_flags(clones[0]->flags() & ~kMountLocked);
  ShareLike(*clones[0], *what.mount, /*as_slave=*/false);
  if (!recursive) return clones;
  absl::flat_hash_map<const Mount*, Mount*> clone_of{{what.mount.get(), clones[0].get()}};
  for (const auto& m : TreeLocked(*what.mount)) {
    if (m == what.mount) continue;
    auto parent = clone_of.find(m->parent_.get());
    if (parent == clone_of.end()) continue;  // below one that was left out
    if (m->parent_ == what.mount && !what.dentry->IsAncestorOf(*m->mountpoint_)) continue;
    if (m->unbindable_ && (m->flags() & kMountLocked) == 0) continue;
    if (m->unbindable_) {
      Drop drop;
      DiscardLocked(clones, &drop);
      return base::Error(EPERM);
    }
    clones.push_back(CloneOf(*m, m->root_, flags));
    ShareLike(*clones.back(), *m, /*as_slave=*/false);
    PlaceLocked(*clones.back(), *parent->second, *m->mountpoint_);
    clone_of[m.get()] = clones.back().get();
  }
  return clones;
}

void MountNamespace::DiscardLocked(const Tree& tree, Drop* drop) {
  for (const auto& m : tree) {
    Isolate(*m);
    UnplaceLocked(*m, drop);
    drop->push_back(m);
  }
}

namespace {

// What has come to another user's namespace is locked there.
void LockCopies(const std::vector<base::Ref<Mount>>& tree, const MountNamespace& to,
                const MountNamespace& from) {
  const bool foreign = to.user_ns() != from.user_ns();
  for (const auto& m : tree) {
    if (foreign) m->set_flags(WithLocks(m->flags()) | kMountLocked);
  }
  tree.front()->set_flags(tree.front()->flags() & ~kMountLocked);
}

}  // namespace

// attach_recursive_mnt(). What stands on something shared is shared.
base::Status MountNamespace::GraftLocked(Tree tree, Mount& parent, Dentry& point, Drop* drop) {
  MountNamespace& ns = *parent.ns_;
  Mount& top = *tree.front();
  if (top.ns_ != &ns && ns.mounts_.size() + tree.size() > kMaxMounts) return base::Error(ENOSPC);
  std::deque<Graft> grafts;
  grafts.push_back({tree, &parent});
  if (parent.peer_group_ != 0) {
    std::vector<Mount*> made_shared;
    for (const auto& m : tree) {
      if (m->peer_group_ == 0) made_shared.push_back(m.get());
      ChangeType(*m, MS_SHARED);
    }
    base::Status status = Propagator(point, &grafts).Run();
    if (!status.ok()) {
      for (size_t i = 1; i < grafts.size(); ++i) DiscardLocked(grafts[i].tree, drop);
      for (Mount* m : made_shared) LeavePeers(*m);
      return status;
    }
  }
  UnplaceLocked(top, drop);
  for (size_t i = 1; i < grafts.size(); ++i) LockCopies(grafts[i].tree, *grafts[i].parent->ns_, ns);
  for (const Graft& graft : grafts) {
    // What stands there already comes to stand on it.
    Mount* covering = At(graft.parent, &point);
    if (covering != nullptr) UnplaceLocked(*covering, drop);
    Mount& child = *graft.tree.front();
    PlaceLocked(child, *graft.parent, point);
    for (const auto& m : graft.tree) graft.parent->ns_->AdoptLocked(m, drop);
    if (covering == nullptr) continue;
    Mount* over = TopLocked(&child, child.root_.get());
    Mount& under = over != nullptr ? *over : child;
    PlaceLocked(*covering, under, *under.root_);
  }
  return base::Ok();
}

base::Status MountNamespace::AttachLocked(Tree tree, const Path& where, Drop* drop) {
  if (where.dentry->unlinked() || IsEphemeral(*where.dentry)) return base::Error(ENOENT);
  if (!MayUse(*where.mount)) return base::Error(EINVAL);
  Mount* parent = where.mount.get();
  Dentry* point = where.dentry.get();
  if (Mount* top = TopLocked(parent, point)) {
    parent = top;
    point = top->root_.get();
  }
  if (IsDirectory(*tree.front()->root_) != IsDirectory(*point)) return base::Error(ENOTDIR);
  return GraftLocked(std::move(tree), *parent, *point, drop);
}

base::Status MountNamespace::Attach(base::Ref<Mount> mount, const Path& where) {
  Drop drop;
  absl::MutexLock l(&mutex_);
  if (mount->ns_ != nullptr) return base::Error(EINVAL);
  // Linux refuses the same root on itself.
  if (where.mount->fs_ == mount->fs_ && where.dentry == where.mount->root_ &&
      mount->root_ == where.mount->root_) {
    return base::Error(EBUSY);
  }
  return AttachLocked({mount}, where, &drop);
}

base::Status MountNamespace::Bind(const Path& what, const Path& where, bool recursive,
                                  uint64_t flags) {
  Drop drop;
  absl::MutexLock l(&mutex_);
  if (!MayUse(*what.mount) || where.mount->ns_ != this) return base::Error(EINVAL);
  Tree tree = TRY(CloneLocked(what, recursive, flags));
  base::Status status = AttachLocked(tree, where, &drop);
  if (!status.ok()) DiscardLocked(tree, &drop);
  return status;
}

base::Result<base::Ref<MountNamespace>> MountNamespace::CloneDetached(const Path& what,
                                                                      bool recursive) {
  Drop drop;
  absl::MutexLock l(&mutex_);
  if (!MayUse(*what.mount)) return base::Error(EINVAL);
  const MountNamespace& from = *what.mount->ns_;
  Tree tree = TRY(CloneLocked(what, recursive, 0));
  auto ns = base::MakeRef<MountNamespace>(user_ns_, /*anonymous=*/true,
                                          from.anonymous_ ? from.origin_ : from.id_);
  for (const auto& m : tree) ns->AdoptLocked(m, &drop);
  ns->root_ = tree.front();
  return ns;
}

base::Status MountNamespace::Detach(const base::Ref<Mount>& mount, int flags,
                                    uint32_t caller_refs) {
  auto detach = [&]() -> base::Status {
    Drop drop;
    absl::MutexLock l(&mutex_);
    if (mount->ns_ != this || mount == root_) return base::Error(EINVAL);
    if ((mount->flags() & kMountLocked) != 0) return base::Error(EINVAL);
    if ((flags & MNT_DETACH) == 0) {
      if (!mount->children_.empty()) return base::Error(EBUSY);
      if (mount->ref_count() > 1 + caller_refs) return base::Error(EBUSY);
      // Linux: the first umount2(MNT_EXPIRE) marks, the second unmounts if it was unused between.
      if ((flags & MNT_EXPIRE) != 0) return base::Error(EAGAIN);
      if (CopiesBusy(*mount)) return base::Error(EBUSY);
    }
    RemoveTreeLocked(*mount, &drop);
    return base::Ok();
  };
  TRY(detach());
  Propagator::SweepConnected();
  return base::Ok();
}

// can_move_mount_beneath().
base::Status MountNamespace::MayMoveBeneath(const Mount& mount, const Mount& over,
                                            const Mount* caller_root) {
  if (At(&mount, mount.root_.get()) != nullptr) return base::Error(EINVAL);
  if (&over == caller_root || IsAbove(over, mount)) return base::Error(EINVAL);
  if ((over.flags() & kMountLocked) != 0) return base::Error(EINVAL);
  if (WouldCover(*over.parent_, *over.mountpoint_, over) ||
      WouldCover(*over.parent_, *over.mountpoint_, mount)) {
    return base::Error(EINVAL);
  }
  return base::Ok();
}

// do_move_mount().
base::Status MountNamespace::Move(const base::Ref<Mount>& mount, const Path& where, bool beneath,
                                  const Mount* caller_root) {
  Drop drop;
  absl::MutexLock l(&mutex_);
  if (IsDirectory(*where.dentry) != IsDirectory(*mount->root_)) return base::Error(EINVAL);
  if (beneath && (where.dentry != where.mount->root_ || !where.mount->parent_)) {
    return base::Error(EINVAL);
  }
  Mount* parent = where.mount.get();
  Dentry* point = where.dentry.get();
  if (Mount* top = TopLocked(parent, point)) {
    parent = top;
    point = top->root_.get();
  }
  Mount* const over = parent;
  if (beneath) {
    point = over->mountpoint_.get();
    parent = over->parent_.get();
  }
  if (point->unlinked() || IsEphemeral(*point)) return base::Error(ENOENT);
  if (mount->ns_ == this) {
    if (!mount->parent_ || (mount->flags() & kMountLocked) != 0) return base::Error(EINVAL);
    if (mount->parent_->peer_group_ != 0) return base::Error(EINVAL);
    if (parent->ns_ != this) return base::Error(EINVAL);
  } else if (!IsDetachedRoot(*mount) || mount->ns_ == parent->ns_ || !MayUse(*parent)) {
    return base::Error(EINVAL);
  }
  if (beneath) TRY(MayMoveBeneath(*mount, *over, caller_root));
  Tree tree = TreeLocked(*mount);
  if (parent->peer_group_ != 0) {
    for (const auto& m : tree) {
      if (m->unbindable_) return base::Error(EINVAL);
    }
  }
  if (IsAbove(*mount, *parent)) return base::Error(ELOOP);
  return GraftLocked(std::move(tree), *parent, *point, &drop);
}

base::Status MountNamespace::PivotRoot(const Path& root, const Path& new_root,
                                       const Path& put_old) {
  Drop drop;
  absl::MutexLock l(&mutex_);
  Mount* const root_mount = root.mount.get();
  Mount* const new_mount = new_root.mount.get();
  auto shares = [](const Mount* m) { return m != nullptr && m->peer_group_ != 0; };
  if (shares(put_old.mount.get()) || shares(new_mount->parent_.get()) ||
      shares(root_mount->parent_.get())) {
    return base::Error(EINVAL);
  }
  if (put_old.mount->ns_ != this || root_mount->ns_ != this || new_mount->ns_ != this) {
    return base::Error(EINVAL);
  }
  if ((new_mount->flags() & kMountLocked) != 0) return base::Error(EINVAL);
  if (new_root.dentry->unlinked()) return base::Error(ENOENT);
  // A loop, on the same filesystem.
  if (new_mount == root_mount || put_old.mount == root.mount) return base::Error(EBUSY);
  if (root.dentry != root_mount->root_) return base::Error(EINVAL);  // chroot into a directory
  if (new_root.dentry != new_mount->root_ || !new_mount->parent_) return base::Error(EINVAL);
  // put_old must lie below new_root, and new_root below root.
  if (!IsAbove(*new_mount, *put_old.mount)) return base::Error(EINVAL);
  if (!new_root.dentry->IsAncestorOf(*put_old.dentry) && put_old.mount == new_root.mount) {
    return base::Error(EINVAL);
  }
  if (!IsAbove(*root_mount, *new_mount)) return base::Error(EINVAL);
  const base::Ref<Mount> root_parent = root_mount->parent_;
  const base::Ref<Dentry> root_point = root_mount->mountpoint_;
  UnplaceLocked(*new_mount, &drop);
  UnplaceLocked(*root_mount, &drop);
  if ((root_mount->flags() & kMountLocked) != 0) {
    new_mount->set_flags(new_mount->flags() | kMountLocked);
    root_mount->set_flags(root_mount->flags() & ~kMountLocked);
  }
  PlaceLocked(*root_mount, *put_old.mount, *put_old.dentry);
  if (root_parent) {
    PlaceLocked(*new_mount, *root_parent, *root_point);
  } else {
    drop.push_back(std::move(root_));
    root_ = new_root.mount;
  }
  return base::Ok();
}

}  // namespace sentry
