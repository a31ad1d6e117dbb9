// What a change below a mount makes of those that share with it. Internal to sentry/vfs.
#pragma once

#include <deque>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "sentry/vfs/mount.h"

namespace sentry {

// Linux: propagate_mnt. Adds copies of the first of `grafts`, which is shared, as is its parent,
// for all that the parent propagates to. They are in no namespace yet and stand on nothing.
class MountNamespace::Propagator {
 public:
  Propagator(Dentry& point, std::deque<Graft>* grafts) : point_(point), grafts_(*grafts) {}
  // ENOSPC, ENOMEM: what is in `grafts` by then is to be discarded.
  base::Status Run() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Of a mount that goes: if it is locked to where it stands, it stays there as long as somebody is
  // in what it stands on (Linux: disconnect_mount). True: it does.
  static bool KeepConnected(const base::Ref<Mount>& mount) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Ends those that nobody can come across any more.
  static void SweepConnected() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A group whose peers get copies. The first of them follows `model`, or is its peer; those after
  // it are peers of the first.
  struct Work {
    int group;
    const Tree* model;
    bool follow;
  };
  bool Receives(const Mount& mount) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  base::Status Peers(Work work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status Slaves(int group, const Tree& model) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<const Tree*> CopyTo(const Tree& model, Mount& receiver, bool follow, bool shared)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  static std::vector<base::Ref<Mount>>& connected() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void SweepLocked(Drop* drop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Dentry& point_;
  std::deque<Graft>& grafts_;  // a deque: trees stay where they are
  std::vector<Work> work_;
  absl::flat_hash_set<int> seen_;
  absl::flat_hash_map<MountNamespace*, size_t> pending_;  // mounts that come to it
};

}  // namespace sentry
