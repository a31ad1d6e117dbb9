// What happens below one mount happens below those that share with it (Linux: fs/pnode.c,
// Documentation/filesystems/sharedsubtree.rst).
#include <sys/mount.h>

#include <algorithm>

#include "sentry/vfs/dentry.h"
#include "sentry/vfs/mount.h"

namespace sentry {

absl::flat_hash_map<int, MountNamespace::PeerGroup> MountNamespace::groups_;

// The lowest free number.
int MountNamespace::NewGroup() {
  int group = 1;
  while (groups_.contains(group)) ++group;
  groups_[group];
  return group;
}

void MountNamespace::Join(Mount& mount, int group) {
  mount.peer_group_ = group;
  groups_[group].peers.push_back(&mount);
}

// The slaves of a group whose last peer goes follow what it followed.
void MountNamespace::LeavePeers(Mount& mount) {
  const int number = std::exchange(mount.peer_group_, 0);
  if (number == 0) return;
  PeerGroup& group = groups_[number];
  std::erase(group.peers, &mount);
  if (!group.peers.empty()) return;
  const std::vector<Mount*> slaves = group.slaves;
  const int master = group.master;
  for (Mount* slave : slaves) SetMaster(*slave, master);
  groups_.erase(number);
}

void MountNamespace::SetMaster(Mount& mount, int group) {
  if (mount.master_group_ != 0) std::erase(groups_[mount.master_group_].slaves, &mount);
  mount.master_group_ = group;
  if (group != 0) groups_[group].slaves.push_back(&mount);
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

base::Status MountNamespace::SetPropagation(const Mount& mount, uint64_t type, bool recursive) {
  absl::MutexLock l(&mutex_);
  if (mount.ns_ != this) return base::Error(EINVAL);
  auto& top = const_cast<Mount&>(mount);
  const std::vector<Mount*> tree = recursive ? TreeLocked(top) : std::vector<Mount*>{&top};
  for (Mount* m : tree) ChangeType(*m, type);
  return base::Ok();
}

Propagation MountNamespace::PropagationOf(const Mount& mount) const {
  absl::ReaderMutexLock l(&mutex_);
  return {mount.peer_group_, mount.master_group_, mount.unbindable_};
}

// propagate_one(): clones of the tree `model` stand on `point` of `parent`, on top of what is
// there.
std::vector<Mount*> MountNamespace::CloneOnto(const std::vector<Mount*>& model, Mount& parent,
                                              Dentry& point) {
  MountNamespace& ns = *parent.ns_;
  if (ns.mounts_.size() + model.size() > kMaxMounts) return {};
  std::vector<Mount*> clones;
  for (const Mount* m : model) {
    auto clone = base::MakeRef<Mount>(m->fs_, m->root_, m->flags(), m->source_);
    clone->ns_ = &ns;
    if (clones.empty()) {
      Mount* top = ns.TopLocked(&parent, &point);
      ns.PlaceLocked(*clone, top != nullptr ? *top : parent, top != nullptr ? *top->root_ : point);
    } else {
      auto above = std::find(model.begin(), model.end(), m->parent_.get());
      ns.PlaceLocked(*clone, *clones[static_cast<size_t>(above - model.begin())], *m->mountpoint_);
    }
    clones.push_back(clone.get());
    ns.mounts_.push_back(std::move(clone));
  }
  return clones;
}

// To the peers of `group`, whose clones are peers of `model`, and to its slaves, whose clones
// follow it; and so on from those slaves that share themselves.
void MountNamespace::PropagateTo(int group, const std::vector<Mount*>& model, Dentry& point,
                                 std::vector<const Mount*>* seen) {
  auto reached = [&](const Mount* m) {
    if (m->ns_ == nullptr || std::find(seen->begin(), seen->end(), m) != seen->end()) return false;
    seen->push_back(m);
    return m->root_.get() == &point || m->root_->IsAncestorOf(point);
  };
  const std::vector<Mount*> peers = groups_[group].peers, slaves = groups_[group].slaves;
  for (Mount* peer : peers) {
    if (!reached(peer)) continue;
    const std::vector<Mount*> clones = CloneOnto(model, *peer, point);
    for (size_t i = 0; i < clones.size(); ++i) ShareLike(*clones[i], *model[i], false);
  }
  for (Mount* slave : slaves) {
    if (!reached(slave)) continue;
    const std::vector<Mount*> clones = CloneOnto(model, *slave, point);
    for (size_t i = 0; i < clones.size(); ++i) {
      SetMaster(*clones[i], model[i]->peer_group_);
      if (slave->peer_group_ != 0) ChangeType(*clones[i], MS_SHARED);
    }
    if (slave->peer_group_ != 0 && !clones.empty()) {
      PropagateTo(slave->peer_group_, clones, point, seen);
    }
  }
}

// attach_recursive_mnt(): what stands on something shared is shared.
void MountNamespace::PropagateTree(Mount& top, Mount& parent, Dentry& point) {
  if (parent.peer_group_ == 0) return;
  const std::vector<Mount*> tree = TreeLocked(top);
  for (Mount* m : tree) ChangeType(*m, MS_SHARED);
  std::vector<const Mount*> seen{&parent};
  seen.insert(seen.end(), tree.begin(), tree.end());
  PropagateTo(parent.peer_group_, tree, point, &seen);
}

std::vector<Mount*> MountNamespace::Receivers(const Mount& mount) {
  std::vector<Mount*> out;
  if (mount.peer_group_ == 0) return out;
  std::vector<int> groups{mount.peer_group_};
  for (size_t i = 0; i < groups.size(); ++i) {
    const PeerGroup& group = groups_[groups[i]];
    for (Mount* peer : group.peers) {
      if (peer != &mount) out.push_back(peer);
    }
    for (Mount* slave : group.slaves) {
      if (slave->peer_group_ == 0) {
        out.push_back(slave);
      } else if (std::find(groups.begin(), groups.end(), slave->peer_group_) == groups.end()) {
        groups.push_back(slave->peer_group_);
      }
    }
  }
  return out;
}

}  // namespace sentry
