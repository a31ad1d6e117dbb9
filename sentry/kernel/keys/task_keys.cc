// The keyrings that tasks and users have: security/keys/process_keys.c, persistent.c.
#include <algorithm>
#include <utility>

#include "sentry/base/kernel_memory.h"
#include "sentry/kernel/keys/key_data.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

const Keys::Held* Keys::FindHeld(const Task& t) const {
  auto it = held_.find(&t);
  return it != held_.end() ? &it->second : nullptr;
}

Keys::Held& Keys::HeldOf(const Task& t) {
  Held& held = held_[&t];
  holders_.store(held_.size(), std::memory_order_relaxed);
  return held;
}

void Keys::Hold(KeySerial* place, KeySerial ring) {
  if (Key* key = Find(ring)) Retain(*key);
  Release(std::exchange(*place, ring));
}

void Keys::Inherit(const Task& parent, const Task& child, bool thread) {
  if (holders_.load(std::memory_order_relaxed) == 0) return;
  absl::MutexLock lock(&mutex_);
  const Held* held = FindHeld(parent);
  if (held == nullptr) return;
  const Held theirs = *held;
  Held& mine = HeldOf(child);
  mine.default_ring = theirs.default_ring;
  Hold(&mine.session, theirs.session);
  if (!thread) return;
  Hold(&mine.process, theirs.process);
  // Who has a keyring of his own makes threads that have.
  if (theirs.thread == 0) return;
  Result<Key*> ring = MakeOwn(parent, "_tid");
  if (ring.ok()) Hold(&mine.thread, (*ring)->serial);
}

Result<Keys::Key*> Keys::MakeOwn(const Task& t, const char* name) {
  const Credentials& creds = t.creds();
  return Make(t, {.type = FindType("keyring"),
                  .description = name,
                  .uid = creds.ruid,
                  .gid = creds.rgid,
                  .permissions = kPossessorAll | kUserView,
                  .may_exceed = true});
}

void Keys::OnExec(const Task& t) {
  if (holders_.load(std::memory_order_relaxed) == 0) return;
  absl::MutexLock lock(&mutex_);
  if (FindHeld(t) == nullptr) return;
  Held& held = HeldOf(t);
  Hold(&held.process, 0);
  Hold(&held.thread, 0);
}

void Keys::Forget(const Task& t) {
  if (holders_.load(std::memory_order_relaxed) == 0) return;
  absl::MutexLock lock(&mutex_);
  const Held* held = FindHeld(t);
  if (held == nullptr) return;
  ReleaseAll({held->session, held->process, held->thread});
  held_.erase(&t);
  holders_.store(held_.size(), std::memory_order_relaxed);
}

// --- users ---

void Keys::MakeRoom() {
  if (rings_.size() < sweep_at_ && keys_.size() < kMaxKeys) return;
  for (auto it = rings_.begin(); it != rings_.end();) {
    UserRings& rings = it->second;
    if (rings.ns->ref_count() > 1) {
      ++it;
      continue;
    }
    ReleaseAll({rings.user, rings.session, rings.persistent});
    it = rings_.erase(it);
  }
  sweep_at_ = std::max<size_t>(64, 2 * rings_.size());
}

Result<Keys::UserRings*> Keys::PlaceOf(const Task& t, uid_t uid) {
  const base::Ref<UserNamespace>& ns = t.creds().user_ns;
  const UserId id{ns.get(), uid};
  if (auto it = rings_.find(id); it != rings_.end()) return &it->second;
  // What cannot have a keyring needs no place for it.
  if (keys_.size() >= kMaxKeys) return Error(EDQUOT);
  if (base::KernelMemory::Full()) return Error(ENOMEM);
  UserRings& rings = rings_[id];
  rings.ns = ns;
  return &rings;
}

// look_up_user_keyrings(): those of the real user.
Result<Keys::UserRings*> Keys::RingsOf(const Task& t) {
  const Credentials& creds = t.creds();
  UserRings& rings = *TRY(PlaceOf(t, creds.ruid));
  const std::string number = std::to_string(creds.user_ns->MapUidOut(creds.ruid));
  const uint32_t permissions = (kPossessorAll & ~(kKeySetattr << kPossessorShift)) | kUserAll;
  auto make = [&](const char* name, KeySerial* place)
                  ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> Status {
    if (*place != 0) return base::Ok();
    Key* ring = TRY(Make(t, {.type = FindType("keyring"),
                             .description = name + number,
                             .uid = creds.ruid,
                             .gid = kNoId,
                             .permissions = permissions}));
    ring->of_user = true;
    Hold(place, ring->serial);
    return base::Ok();
  };
  TRY(make("_uid.", &rings.user));
  if (rings.session == 0) {
    TRY(make("_uid_ses.", &rings.session));
    TRY(AddLink(*Find(rings.session), *Find(rings.user)));
  }
  return &rings;
}

Result<Keys::Key*> Keys::PersistentRing(const Task& t, uid_t uid) {
  KeySerial& place = TRY(PlaceOf(t, uid))->persistent;
  if (Key* old = Find(place); old != nullptr && Validate(*old).ok()) return old;
  const uint32_t permissions =
      (kPossessorAll & ~(kKeySetattr << kPossessorShift)) | kUserView | kUserRead;
  Key* fresh = TRY(
      Make(t, {.type = FindType("keyring"),
               .description = "_persistent." + std::to_string(t.creds().user_ns->MapUidOut(uid)),
               .uid = uid,
               .gid = kNoId,
               .permissions = permissions,
               .in_quota = false}));
  Hold(&place, fresh->serial);
  return fresh;
}

Result<KeySerial> Keys::GetPersistent(const Task& t, uid_t uid, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  MakeRoom();
  Key& to = *TRY(LookUp(t, ring, kKeyWrite, /*create=*/true)).key;
  if (!to.type->keyring) return Error(ENOTDIR);
  // An old one that goes may be all that holds it.
  const KeySerial kept = Retain(to);
  auto link = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> Result<KeySerial> {
    Key& persistent = *TRY(PersistentRing(t, uid));
    if (!Permits(t.creds(), persistent, /*possessed=*/true, kKeyLink)) return Error(EACCES);
    TRY(AddLink(to, persistent));
    persistent.expiry = base::RealtimeNs() / base::kNsPerSec + kPersistentKeyringSeconds;
    return persistent.serial;
  };
  const Result<KeySerial> serial = link();
  Release(kept);
  return serial;
}

// --- sessions ---

Result<Keys::Key*> Keys::NewSession(const Task& t, const std::string& name, uint32_t permissions) {
  const Credentials& creds = t.creds();
  Held& held = HeldOf(t);
  Key* ring = TRY(Make(t, {.type = FindType("keyring"),
                           .description = name,
                           .uid = creds.ruid,
                           .gid = creds.rgid,
                           .permissions = permissions,
                           .may_exceed = held.session == 0}));
  Hold(&held.session, ring->serial);
  return ring;
}

// join_session_keyring()
Result<KeySerial> Keys::JoinSession(const Task& t, const std::optional<std::string>& name) {
  constexpr uint32_t kOfSession = kPossessorAll | kUserView | kUserRead;
  absl::MutexLock lock(&mutex_);
  MakeRoom();
  if (!name) return TRY(NewSession(t, "_ses", kOfSession))->serial;
  for (auto& [serial, key] : keys_) {
    if (!key->type->keyring || key->revoked || key->of_user || key->description != *name ||
        key->name_space != t.creds().user_ns->id() ||
        !Permits(t.creds(), *key, /*possessed=*/false, kKeySearch)) {
      continue;
    }
    Held& held = HeldOf(t);
    if (held.session == serial) return 0;
    Hold(&held.session, serial);
    return serial;
  }
  return TRY(NewSession(t, *name, kOfSession | (kKeyLink << kUserShift)))->serial;
}

// A session without a keyring has that of its user until something is to be put there.
Result<Keys::Key*> Keys::SessionRing(const Task& t, bool create) {
  const Held* held = FindHeld(t);
  Key* now = held != nullptr ? Find(held->session) : nullptr;
  if (now != nullptr && !(now->of_user && create)) return now;
  UserRings* rings = TRY(RingsOf(t));
  if (create) return NewSession(t, "_ses", kPossessorAll | kUserView | kUserRead);
  Hold(&HeldOf(t).session, rings->session);
  return Find(rings->session);
}

// The keyrings that lookup_user_key() knows by special numbers.
Result<Keys::Key*> Keys::OwnRing(const Task& t, KeySerial id, bool create) {
  auto own = [&](KeySerial Held::*place, const char* name)
                 ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> Result<Key*> {
    const Held* held = FindHeld(t);
    if (Key* now = held != nullptr ? Find(held->*place) : nullptr) return now;
    if (!create) return Error(ENOKEY);
    Key* ring = TRY(MakeOwn(t, name));
    Hold(&(HeldOf(t).*place), ring->serial);
    return ring;
  };
  switch (id) {
    case kThreadRing:
      return own(&Held::thread, "_tid");
    case kProcessRing:
      return own(&Held::process, "_pid");
    case kSessionRing:
      return SessionRing(t, create);
    case kUserRing:
      return Find(TRY(RingsOf(t))->user);
    case kUserSessionRing:
      return Find(TRY(RingsOf(t))->session);
    case kAuthKey:
    case kRequestorRing:
      return Error(ENOKEY);  // nobody is asked to make keys
    default:
      return Error(EINVAL);  // kGroupRing too
  }
}

// keyctl_set_reqkey_keyring()
Result<int> Keys::SetDefaultKeyring(const Task& t, int which) {
  constexpr int kNoChange = -1, kDefault = 0, kThread = 1, kProcess = 2;
  constexpr int kGroup = 6, kRequestor = 7;
  absl::MutexLock lock(&mutex_);
  const Held* held = FindHeld(t);
  const int before = held != nullptr ? held->default_ring : kDefault;
  if (which == kNoChange) return before;
  if (which < kDefault || which > kRequestor || which == kGroup) return Error(EINVAL);
  if (which == kThread || which == kProcess) {
    TRY(OwnRing(t, which == kThread ? kThreadRing : kProcessRing, /*create=*/true));
  }
  HeldOf(t).default_ring = which;
  return before;
}

}  // namespace sentry
