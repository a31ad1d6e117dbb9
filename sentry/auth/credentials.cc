#include "sentry/auth/credentials.h"

#include <linux/securebits.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace sentry {
namespace {

constexpr uint32_t kOverflowId = 65534;
constexpr uint32_t kInvalidId = 0xffffffff;
constexpr size_t kMaxExtents = 340;  // Linux: UID_GID_MAP_MAX_EXTENTS

// An id map in both forms: as it was written (outside ids are the parent namespace's), and with
// outside ids turned into kernel ids.
struct IdMap {
  std::vector<IdMapEntry> written;
  std::vector<IdMapEntry> kernel;

  bool In(uint32_t id, uint32_t* kid) const {
    for (const IdMapEntry& e : kernel) {
      if (id >= e.first_inside && id - e.first_inside < e.count) {
        *kid = e.first_outside + (id - e.first_inside);
        return true;
      }
    }
    return false;
  }
  bool Out(uint32_t kid, uint32_t* id) const {
    for (const IdMapEntry& e : kernel) {
      if (kid >= e.first_outside && kid - e.first_outside < e.count) {
        *id = e.first_inside + (kid - e.first_outside);
        return true;
      }
    }
    return false;
  }
  // Kernel id of the whole range [id, id + count), which must lie in one extent
  // (Linux: map_id_range_down).
  bool InRange(uint32_t id, uint32_t count, uint32_t* kid) const {
    for (const IdMapEntry& e : kernel) {
      if (id >= e.first_inside && uint64_t{id} + count <= uint64_t{e.first_inside} + e.count) {
        *kid = e.first_outside + (id - e.first_inside);
        return true;
      }
    }
    return false;
  }
};

bool Overlap(uint32_t a, uint32_t a_count, uint32_t b, uint32_t b_count) {
  return uint64_t{a} < uint64_t{b} + b_count && uint64_t{b} < uint64_t{a} + a_count;
}

// Linux: the checks of map_write in kernel/user_namespace.c.
base::Status CheckEntries(const std::vector<IdMapEntry>& map) {
  if (map.empty() || map.size() > kMaxExtents) return base::Error(EINVAL);
  for (size_t i = 0; i < map.size(); i++) {
    const IdMapEntry& e = map[i];
    if (e.first_inside == kInvalidId || e.first_outside == kInvalidId) return base::Error(EINVAL);
    if (e.count == 0) return base::Error(EINVAL);
    if (uint64_t{e.first_inside} + e.count > kInvalidId ||
        uint64_t{e.first_outside} + e.count > kInvalidId) {
      return base::Error(EINVAL);
    }
    for (size_t j = 0; j < i; j++) {
      if (Overlap(e.first_inside, e.count, map[j].first_inside, map[j].count) ||
          Overlap(e.first_outside, e.count, map[j].first_outside, map[j].count)) {
        return base::Error(EINVAL);
      }
    }
  }
  return base::Ok();
}

}  // namespace

struct UserNamespace::Maps {
  mutable absl::Mutex mutex;
  IdMap uid ABSL_GUARDED_BY(mutex);
  IdMap gid ABSL_GUARDED_BY(mutex);
  bool setgroups_denied ABSL_GUARDED_BY(mutex) = false;
};

uint64_t NextNamespaceId() {
  constexpr uint64_t kFirst = 0xf0000010;
  static std::atomic<uint64_t> next{kFirst};
  return next.fetch_add(1, std::memory_order_relaxed);
}

base::Ref<UserNamespace> UserNamespace::NewRoot() {
  auto ns = base::MakeRef<UserNamespace>(nullptr, 0, 0);
  absl::MutexLock l(&ns->maps_->mutex);
  const IdMapEntry all{0, 0, kInvalidId};
  ns->maps_->uid = {{all}, {all}};
  ns->maps_->gid = {{all}, {all}};
  return ns;
}

UserNamespace::UserNamespace(base::Ref<UserNamespace> parent, uid_t owner, gid_t owner_group)
    : parent_(std::move(parent)),
      owner_(owner),
      owner_group_(owner_group),
      level_(parent_ ? parent_->level_ + 1 : 0),
      maps_(new Maps) {
  if (!parent_) return;
  const bool denied = parent_->setgroups_denied();
  absl::MutexLock l(&maps_->mutex);
  maps_->setgroups_denied = denied;
}

UserNamespace::~UserNamespace() { delete maps_; }

bool UserNamespace::setgroups_denied() const {
  absl::ReaderMutexLock l(&maps_->mutex);
  return maps_->setgroups_denied;
}

bool UserNamespace::MaySetgroups() const {
  absl::ReaderMutexLock l(&maps_->mutex);
  return !maps_->setgroups_denied && !maps_->gid.written.empty();
}

base::Status UserNamespace::DenySetgroups() {
  absl::MutexLock l(&maps_->mutex);
  if (!maps_->setgroups_denied && !maps_->gid.written.empty()) return base::Error(EPERM);
  maps_->setgroups_denied = true;
  return base::Ok();
}

base::Result<uid_t> UserNamespace::MapUidIn(uid_t uid) const {
  if (level_ == 0) {
    if (uid == kInvalidId) return base::Error(EINVAL);
    return uid;
  }
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t kid;
  if (!maps_->uid.In(uid, &kid)) return base::Error(EINVAL);
  return kid;
}

base::Result<gid_t> UserNamespace::MapGidIn(gid_t gid) const {
  if (level_ == 0) {
    if (gid == kInvalidId) return base::Error(EINVAL);
    return gid;
  }
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t kid;
  if (!maps_->gid.In(gid, &kid)) return base::Error(EINVAL);
  return kid;
}

uid_t UserNamespace::MapUidOut(uid_t kuid) const {
  if (level_ == 0) return kuid;
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t id;
  return maps_->uid.Out(kuid, &id) ? id : kOverflowId;
}

gid_t UserNamespace::MapGidOut(gid_t kgid) const {
  if (level_ == 0) return kgid;
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t id;
  return maps_->gid.Out(kgid, &id) ? id : kOverflowId;
}

bool UserNamespace::HasUid(uid_t kuid) const {
  if (level_ == 0) return kuid != kInvalidId;
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t id;
  return maps_->uid.Out(kuid, &id);
}

bool UserNamespace::HasGid(gid_t kgid) const {
  if (level_ == 0) return kgid != kInvalidId;
  absl::ReaderMutexLock l(&maps_->mutex);
  uint32_t id;
  return maps_->gid.Out(kgid, &id);
}

base::Status UserNamespace::SetUidMap(std::vector<IdMapEntry> map) {
  TRY(CheckEntries(map));
  if (!parent_) return base::Error(EPERM);
  std::vector<IdMapEntry> kernel = map;
  {
    absl::ReaderMutexLock l(&parent_->maps_->mutex);
    for (IdMapEntry& e : kernel) {
      if (!parent_->maps_->uid.InRange(e.first_outside, e.count, &e.first_outside)) {
        return base::Error(EPERM);
      }
    }
  }
  absl::MutexLock l(&maps_->mutex);
  if (!maps_->uid.written.empty()) return base::Error(EPERM);
  maps_->uid = {std::move(map), std::move(kernel)};
  return base::Ok();
}

base::Status UserNamespace::SetGidMap(std::vector<IdMapEntry> map) {
  TRY(CheckEntries(map));
  if (!parent_) return base::Error(EPERM);
  std::vector<IdMapEntry> kernel = map;
  {
    absl::ReaderMutexLock l(&parent_->maps_->mutex);
    for (IdMapEntry& e : kernel) {
      if (!parent_->maps_->gid.InRange(e.first_outside, e.count, &e.first_outside)) {
        return base::Error(EPERM);
      }
    }
  }
  absl::MutexLock l(&maps_->mutex);
  if (!maps_->gid.written.empty()) return base::Error(EPERM);
  maps_->gid = {std::move(map), std::move(kernel)};
  return base::Ok();
}

std::vector<IdMapEntry> UserNamespace::uid_map() const {
  absl::ReaderMutexLock l(&maps_->mutex);
  return maps_->uid.written;
}

std::vector<IdMapEntry> UserNamespace::gid_map() const {
  absl::ReaderMutexLock l(&maps_->mutex);
  return maps_->gid.written;
}

base::Ref<Credentials> Credentials::NewRoot(base::Ref<UserNamespace> ns) {
  auto creds = base::MakeRef<Credentials>();
  creds->permitted = creds->effective = kAllCaps;
  creds->user_ns = std::move(ns);
  return creds;
}

base::Ref<Credentials> Credentials::Clone() const {
  auto c = base::MakeRef<Credentials>();
  c->ruid = ruid, c->euid = euid, c->suid = suid, c->fsuid = fsuid;
  c->rgid = rgid, c->egid = egid, c->sgid = sgid, c->fsgid = fsgid;
  c->groups = groups;
  c->permitted = permitted, c->effective = effective, c->inheritable = inheritable;
  c->bounding = bounding, c->ambient = ambient;
  c->securebits = securebits;
  c->user_ns = user_ns;
  return c;
}

bool Credentials::HasCapIn(int cap, const UserNamespace& ns) const {
  const UserNamespace* target = &ns;
  for (;;) {
    if (target == user_ns.get()) return (effective & CapBit(cap)) != 0;
    // The credentials' namespace is no ancestor of the target.
    if (!user_ns || target->level() <= user_ns->level()) return false;
    // The owner of a namespace has all capabilities in it, when in its parent.
    if (target->parent() == user_ns && target->owner() == euid) return true;
    target = target->parent().get();
  }
}

bool Credentials::HasCap(int cap) const { return (effective & CapBit(cap)) != 0; }

base::Ref<Credentials> Credentials::RealIds() const {
  CapSet real = effective;
  if ((securebits & SECBIT_NO_SETUID_FIXUP) == 0) {
    const bool root = user_ns ? user_ns->MapUidOut(ruid) == 0 : ruid == 0;
    real = root ? permitted : 0;
  }
  if (fsuid == ruid && fsgid == rgid && real == effective) return nullptr;
  base::Ref<Credentials> creds = Clone();
  creds->fsuid = ruid;
  creds->fsgid = rgid;
  creds->effective = real;
  return creds;
}

bool Credentials::InGroup(gid_t kgid) const {
  return kgid == fsgid || std::binary_search(groups.begin(), groups.end(), kgid);
}

}  // namespace sentry
