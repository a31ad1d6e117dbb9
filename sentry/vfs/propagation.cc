// What happens below one mount happens below those that share with it (Linux: fs/pnode.c,
// Documentation/filesystems/sharedsubtree.rst, propagate_umount.txt).
#include "sentry/vfs/propagation.h"

#include <sys/mount.h>

#include "sentry/base/kernel_memory.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/mount_locks.h"

namespace sentry {

absl::flat_hash_map<int, MountNamespace::PeerGroup>& MountNamespace::groups_ =
    *new absl::flat_hash_map<int, PeerGroup>;
base::IdAllocator& MountNamespace::group_ids_ = *new base::IdAllocator(1, INT32_MAX);

int MountNamespace::NewGroup() {
  const int group = static_cast<int>(*group_ids_.AllocateLowest());
  groups_[group];
  return group;
}

void MountNamespace::Join(Mount& mount, int group) {
  mount.peer_group_ = group;
  groups_[group].peers.insert(&mount);
}

// The slaves of a group whose last peer goes follow what it followed.
void MountNamespace::LeavePeers(Mount& mount) {
  const int number = std::exchange(mount.peer_group_, 0);
  if (number == 0) return;
  PeerGroup& group = groups_[number];
  group.peers.erase(&mount);
  if (!group.peers.empty()) return;
  const Mount::Set slaves = group.slaves;
  const int master = group.master;
  for (Mount* slave : slaves) SetMaster(*slave, master);
  groups_.erase(number);
  group_ids_.Free(static_cast<uint32_t>(number));
}

void MountNamespace::SetMaster(Mount& mount, int group) {
  if (mount.master_group_ != 0) groups_[mount.master_group_].slaves.erase(&mount);
  mount.master_group_ = group;
  if (group != 0) groups_[group].slaves.insert(&mount);
  if (mount.peer_group_ != 0) groups_[mount.peer_group_].master = group;
}

void MountNamespace::Isolate(Mount& mount) {
  LeavePeers(mount);
  SetMaster(mount, 0);
}

void MountNamespace::ShareLike(Mount& clone, const Mount& original, bool as_slave) {
  clone.unbindable_ = original.unbindable_;
  if (as_slave && original.peer_group_ != 0) {
    SetMaster(clone, original.peer_group_);
    return;
  }
  if (original.peer_group_ != 0) Join(clone, original.peer_group_);
  if (original.master_group_ != 0) SetMaster(clone, original.master_group_);
}

// change_mnt_propagation().
void MountNamespace::ChangeType(Mount& mount, uint64_t type) {
  if (type == MS_SHARED) {
    mount.unbindable_ = false;
    if (mount.peer_group_ != 0) return;
    const int group = NewGroup();
    groups_[group].master = mount.master_group_;
    Join(mount, group);
    return;
  }
  if (type == MS_SLAVE) {
    const int group = mount.peer_group_;
    if (group == 0) return;
    // Without another peer there is nobody to follow but whom the group followed.
    const bool alone = groups_[group].peers.size() == 1;
    LeavePeers(mount);
    if (!alone) SetMaster(mount, group);
    return;
  }
  Isolate(mount);
  mount.unbindable_ = type == MS_UNBINDABLE;
}

base::Status MountNamespace::SetPropagation(Mount& mount, uint64_t type, bool recursive) {
  absl::MutexLock l(&mutex_);
  if (mount.ns_ == nullptr) return base::Error(EINVAL);
  for (const auto& m : recursive ? TreeLocked(mount) : Tree{base::Ref<Mount>(&mount)}) {
    ChangeType(*m, type);
  }
  return base::Ok();
}

// do_set_group().
base::Status MountNamespace::ShareAs(const Path& from_path, const Path& to_path) {
  absl::MutexLock l(&mutex_);
  Mount& from = *from_path.mount;
  Mount& to = *to_path.mount;
  if (from.ns_ == nullptr || to.ns_ == nullptr) return base::Error(EINVAL);
  if (from_path.dentry != from.root_ || to_path.dentry != to.root_) return base::Error(EINVAL);
  if (from.fs_ != to.fs_ || !from.root_->IsAncestorOf(*to.root_)) return base::Error(EINVAL);
  if (to.peer_group_ != 0 || to.master_group_ != 0) return base::Error(EINVAL);
  if (from.peer_group_ == 0 && from.master_group_ == 0) return base::Error(EINVAL);
  if (from.master_group_ != 0) SetMaster(to, from.master_group_);
  if (from.peer_group_ != 0) {
    Join(to, from.peer_group_);
    to.unbindable_ = false;
  }
  return base::Ok();
}

Propagation MountNamespace::PropagationOf(const Mount& mount, const Path& root) {
  absl::ReaderMutexLock l(&mutex_);
  Propagation p{mount.peer_group_, mount.master_group_, 0, mount.unbindable_};
  // get_dominating_id().
  for (int group = p.master; group != 0;) {
    const PeerGroup& peers = groups_.at(group);
    for (const Mount* peer : peers.peers) {
      if (peer->ns_ != root.mount->ns_ || !IsAbove(*root.mount, *peer)) continue;
      if (group != p.master) p.from = group;
      return p;
    }
    group = peers.master;
  }
  return p;
}

bool MountNamespace::Propagator::Receives(const Mount& mount) const {
  return mount.ns_ != nullptr && !mount.ns_->anonymous_ && mount.root_->IsAncestorOf(point_);
}

base::Status MountNamespace::Propagator::Run() {
  const int group = grafts_.front().parent->peer_group_;
  seen_.insert(group);
  work_.push_back({group, &grafts_.front().tree, /*follow=*/false});
  while (!work_.empty()) {
    const Work work = work_.back();
    work_.pop_back();
    TRY(Peers(work));
  }
  return base::Ok();
}

base::Status MountNamespace::Propagator::Peers(Work work) {
  const Mount::Set peers = groups_[work.group].peers;  // copies may join it
  for (Mount* peer : peers) {
    if (peer == grafts_.front().parent || !Receives(*peer)) continue;
    work.model = TRY(CopyTo(*work.model, *peer, work.follow, /*shared=*/true));
    work.follow = false;
  }
  return Slaves(work.group, *work.model);
}

base::Status MountNamespace::Propagator::Slaves(int group, const Tree& model) {
  const Mount::Set slaves = groups_[group].slaves;
  for (Mount* slave : slaves) {
    if (slave->peer_group_ != 0) {
      if (!seen_.insert(slave->peer_group_).second) continue;
      work_.push_back({slave->peer_group_, &model, /*follow=*/true});
    } else if (Receives(*slave)) {
      TRY(CopyTo(model, *slave, /*follow=*/true, /*shared=*/false));
    }
  }
  return base::Ok();
}

base::Result<const MountNamespace::Tree*> MountNamespace::Propagator::CopyTo(const Tree& model,
                                                                             Mount& receiver,
                                                                             bool follow,
                                                                             bool shared) {
  MountNamespace& ns = *receiver.ns_;
  if (ns.mounts_.size() + (pending_[&ns] += model.size()) > kMaxMounts) {
    return base::Error(ENOSPC);
  }
  if (base::KernelMemory::Full()) return base::Error(ENOMEM);
  absl::flat_hash_map<const Mount*, Mount*> clones;
  Graft graft{{}, &receiver};
  for (const auto& m : model) {
    base::Ref<Mount> clone = CloneOf(*m, m->root_);
    ShareLike(*clone, *m, follow);
    if (shared) ChangeType(*clone, MS_SHARED);
    if (!graft.tree.empty()) PlaceLocked(*clone, *clones[m->parent_.get()], *m->mountpoint_);
    clones[m.get()] = clone.get();
    graft.tree.push_back(std::move(clone));
  }
  grafts_.push_back(std::move(graft));
  return &grafts_.back().tree;
}

std::vector<base::Ref<Mount>>& MountNamespace::Propagator::connected() {
  static auto& mounts = *new std::vector<base::Ref<Mount>>;
  return mounts;
}

bool MountNamespace::Propagator::KeepConnected(const base::Ref<Mount>& mount) {
  if (!mount->parent_ || (mount->flags() & kMountLocked) == 0) return false;
  connected().push_back(mount);
  return true;
}

// From the top: what stands on a mount that only they refer to goes, and then what stands on that.
void MountNamespace::Propagator::SweepLocked(Drop* drop) {
  absl::flat_hash_map<const Mount*, std::vector<base::Ref<Mount>>> on;
  absl::flat_hash_set<const Mount*> kept;
  for (auto& m : connected()) kept.insert(m.get());
  std::vector<base::Ref<Mount>> tops;
  for (auto& m : connected()) {
    auto& children = on[m->parent_.get()];
    if (children.empty() && !kept.contains(m->parent_.get())) tops.push_back(m->parent_);
    children.push_back(std::move(m));
  }
  connected().clear();
  // A top is held by `tops` besides those on it.
  std::vector<base::Ref<Mount>> stay;
  while (!tops.empty()) {
    base::Ref<Mount> top = std::move(tops.back());
    tops.pop_back();
    auto it = on.find(top.get());
    if (it == on.end()) {
      drop->push_back(std::move(top));
      continue;
    }
    std::vector<base::Ref<Mount>> children = std::move(it->second);
    on.erase(it);
    if (top->ns_ == nullptr && top->ref_count() == 1 + top->children_.size()) {
      for (auto& child : children) {
        UnplaceLocked(*child, drop);
        tops.push_back(std::move(child));
      }
      drop->push_back(std::move(top));
      continue;
    }
    // With all that stands on them.
    for (size_t i = 0; i < children.size(); ++i) {
      base::Ref<Mount> child = children[i];
      if (auto more = on.find(child.get()); more != on.end()) {
        for (auto& m : more->second) children.push_back(std::move(m));
        on.erase(more);
      }
      stay.push_back(std::move(child));
    }
    drop->push_back(std::move(top));
  }
  connected() = std::move(stay);
}

void MountNamespace::Propagator::SweepConnected() {
  Drop drop;
  absl::MutexLock l(&mutex_);
  if (!connected().empty()) SweepLocked(&drop);
}

std::vector<Mount*> MountNamespace::Receivers(const Mount& mount) {
  std::vector<Mount*> out;
  if (mount.peer_group_ == 0) return out;
  std::vector<int> groups{mount.peer_group_};
  absl::flat_hash_set<int> seen(groups.begin(), groups.end());
  for (size_t i = 0; i < groups.size(); ++i) {
    const PeerGroup& group = groups_.at(groups[i]);
    for (Mount* peer : group.peers) {
      if (peer != &mount) out.push_back(peer);
    }
    for (Mount* slave : group.slaves) {
      if (slave->peer_group_ == 0) {
        out.push_back(slave);
      } else if (seen.insert(slave->peer_group_).second) {
        groups.push_back(slave->peer_group_);
      }
    }
  }
  return out;
}

bool MountNamespace::WouldCover(const Mount& parent, const Dentry& point, const Mount& mount) {
  if (mount.root_.get() != &point) return false;
  const std::vector<Mount*> receivers = Receivers(parent);
  return std::find(receivers.begin(), receivers.end(), &mount) != receivers.end();
}

// propagate_mount_busy(). A copy with mounts below it stays, so it may be in use.
bool MountNamespace::CopiesBusy(const Mount& mount) {
  for (const Mount* receiver : Receivers(*mount.parent_)) {
    const Mount* copy = At(receiver, mount.mountpoint_.get());
    if (copy == nullptr || copy == &mount) continue;
    const size_t below = copy->children_.size();
    if (below > 1 || (below == 1 && At(copy, copy->root_.get()) == nullptr)) continue;
    if (copy->ref_count() > 1 + below) return true;
  }
  return false;
}

// umount_tree() and propagate_umount(). What came elsewhere with a mount goes with it, unless
// something else stands below it there; what stands on its root then stands in its place.
void MountNamespace::RemoveTreeLocked(Mount& mount, Drop* drop) {
  Tree tree = TreeLocked(mount);
  absl::flat_hash_set<const Mount*> going, asked_for;
  for (const auto& m : tree) going.insert(m.get());
  const size_t asked = tree.size();
  for (size_t i = 0; i < asked; ++i) {
    if (!tree[i]->parent_) continue;
    for (const Mount* receiver : Receivers(*tree[i]->parent_)) {
      Mount* copy = At(receiver, tree[i]->mountpoint_.get());
      if (copy != nullptr && going.insert(copy).second) tree.emplace_back(copy);
    }
  }
  auto stands_on_root = [](const Mount& m) { return m.mountpoint_ == m.parent_->root_; };
  // Something that stays stands on its root, or on the root of what stands there.
  auto leaves_cover = [&](const Mount& m) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const Mount* over = At(&m, m.root_.get()); over != nullptr;
         over = At(over, over->root_.get())) {
      if (!going.contains(over)) return true;
    }
    return false;
  };
  auto must_stay = [&](const Mount& m) ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    for (const Mount* child : m.children_) {
      if (stands_on_root(*child)) continue;
      if (!going.contains(child) || leaves_cover(*child)) return true;
    }
    return false;
  };
  for (size_t i = 0; i < asked; ++i) asked_for.insert(tree[i].get());
  std::vector<const Mount*> look;
  for (size_t i = asked; i < tree.size(); ++i) look.push_back(tree[i].get());
  while (!look.empty()) {  // from the last one, which is farthest from the root
    const Mount* m = look.back();
    look.pop_back();
    if (!going.contains(m) || asked_for.contains(m) || !must_stay(*m)) continue;
    going.erase(m);
    // Those that it stands on, through roots alone, are looked at again.
    for (const Mount* at = m; at->parent_ && going.contains(at->parent_.get());
         at = at->parent_.get()) {
      look.push_back(at->parent_.get());
      if (!stands_on_root(*at)) break;
    }
  }
  struct Cover {
    base::Ref<Mount> mount, parent;
    base::Ref<Dentry> point;
  };
  std::vector<Cover> covers;
  for (const auto& m : tree) {
    if (!going.contains(m.get())) continue;
    Mount* over = At(m.get(), m->root_.get());
    if (over == nullptr || going.contains(over)) continue;
    const Mount* lowest = m.get();
    while (going.contains(lowest->parent_.get()) && stands_on_root(*lowest)) {
      lowest = lowest->parent_.get();
    }
    covers.push_back({base::Ref<Mount>(over), lowest->parent_, lowest->mountpoint_});
  }
  for (const Cover& cover : covers) UnplaceLocked(*cover.mount, drop);
  for (const auto& m : tree) {
    if (!going.contains(m.get())) continue;
    Isolate(*m);
    const bool with_parent = m->parent_ && going.contains(m->parent_.get());
    if (!with_parent || !Propagator::KeepConnected(m)) UnplaceLocked(*m, drop);
    LeaveLocked(*m, drop);
  }
  for (const Cover& cover : covers) {
    PlaceLocked(*cover.mount, *cover.parent, *cover.point);
    drop->push_back(cover.mount);
    drop->push_back(cover.parent);
    drop->push_back(cover.point);
  }
  for (auto& m : tree) drop->push_back(std::move(m));
}

}  // namespace sentry
