// What add_key(2), request_key(2) and keyctl(2) do: security/keys/key.c, keyctl.c.
#include <fmt/format.h>
#include <linux/capability.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/keys/key_data.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

// from_kgid_munged(): who has no group has the overflow id.
gid_t GidShown(const UserNamespace& ns, gid_t gid) {
  constexpr gid_t kOverflow = 65534;
  return gid == kNoId ? kOverflow : ns.MapGidOut(gid);
}

}  // namespace

// key_create_or_update()
Result<KeySerial> Keys::Add(const Task& t, const std::string& type_name,
                            const std::optional<std::string>& description,
                            std::vector<std::byte> payload, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  MakeRoom();
  const Found to = TRY(LookUp(t, ring, kKeyWrite, /*create=*/true));
  const Type* type = FindType(type_name);
  if (type == nullptr) return Error(ENODEV);
  if (!to.key->type->keyring) return Error(ENOTDIR);
  const bool fits = type->keyring ? payload.empty() : !payload.empty();
  if (!description || !fits || payload.size() > type->most) return Error(EINVAL);
  if (to.key->restricted) return Error(EPERM);
  if (type->updatable) {
    const int at = LinkTo(*to.key, type, *description);
    Key* old = at >= 0 ? Find(to.key->links[static_cast<size_t>(at)]) : nullptr;
    if (old != nullptr && !old->revoked && !old->invalidated) {
      if (!Permits(t.creds(), *old, to.possessed, kKeyWrite)) return Error(EACCES);
      TRY(SetPayload(*old, std::move(payload)));
      old->expiry = 0;
      return old->serial;
    }
  }
  uint32_t possessor = kKeyView | kKeySearch | kKeyLink | kKeySetattr;
  if (type->readable) possessor |= kKeyRead;
  if (type->keyring || type->updatable) possessor |= kKeyWrite;
  Key* key = TRY(Make(t, {.type = type,
                          .description = *description,
                          .uid = t.creds().fsuid,
                          .gid = t.creds().fsgid,
                          .permissions = possessor << kPossessorShift | kUserView}));
  Status status = type->keyring ? base::Ok() : SetPayload(*key, std::move(payload));
  if (status.ok()) status = AddLink(*to.key, *key);
  const KeySerial serial = key->serial;
  DropIfUnused(*key);
  if (!status.ok()) return status.error();
  return serial;
}

// request_key_and_link(). There is no program that makes what is not there.
Result<KeySerial> Keys::Request(const Task& t, const std::string& type_name,
                                const std::string& description, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  Key* to = ring != 0 ? TRY(LookUp(t, ring, kKeyWrite, /*create=*/true)).key : nullptr;
  const Type* type = FindType(type_name);
  if (type == nullptr) return Error(ENOKEY);
  Result<Key*> key =
      SearchTask(t, {.type = type, .description = description, .skip_expired = true});
  if (!key.ok()) return key.error().code() == EAGAIN ? Error(ENOKEY) : key.error();
  if (to != nullptr) {
    if (!Permits(t.creds(), **key, /*possessed=*/true, kKeyLink)) return Error(EACCES);
    TRY(AddLink(*to, **key));
  }
  return (*key)->serial;
}

Result<KeySerial> Keys::Search(const Task& t, KeySerial ring, const std::string& type_name,
                               const std::string& description, KeySerial destination) {
  absl::MutexLock lock(&mutex_);
  const Found from = TRY(LookUp(t, ring, kKeySearch));
  Key* to =
      destination != 0 ? TRY(LookUp(t, destination, kKeyWrite, /*create=*/true)).key : nullptr;
  const Type* type = FindType(type_name);
  if (type == nullptr) return Error(ENOKEY);
  if (!from.key->type->keyring) return Error(ENOTDIR);
  Result<Key*> key = SearchTree(t, from, {.type = type, .description = description});
  if (!key.ok()) return key.error().code() == EAGAIN ? Error(ENOKEY) : key.error();
  if (to != nullptr) {
    if (!Permits(t.creds(), **key, from.possessed, kKeyLink)) return Error(EACCES);
    TRY(AddLink(*to, **key));
  }
  return (*key)->serial;
}

Result<KeySerial> Keys::GetKeyringId(const Task& t, KeySerial id, bool create) {
  absl::MutexLock lock(&mutex_);
  return TRY(LookUp(t, id, kKeySearch, create)).key->serial;
}

Status Keys::Update(const Task& t, KeySerial id, std::vector<std::byte> payload) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeyWrite)).key;
  if (!key.type->updatable) return Error(EOPNOTSUPP);
  if (payload.empty() || payload.size() > key.type->most) return Error(EINVAL);
  TRY(SetPayload(key, std::move(payload)));
  key.expiry = 0;
  return base::Ok();
}

Status Keys::Revoke(const Task& t, KeySerial id) {
  absl::MutexLock lock(&mutex_);
  Result<Found> found = LookUp(t, id, kKeyWrite);
  if (!found.ok() && found.error().code() == EACCES) found = LookUp(t, id, kKeySetattr);
  Key& key = *TRY(found).key;
  key.revoked = true;
  if (key.type->keyring) {
    ClearRing(key);
  } else {
    (void)Reserve(key, key.description.size() + 1);
    key.payload = {};
  }
  return base::Ok();
}

Status Keys::Invalidate(const Task& t, KeySerial id) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeySearch)).key;
  key.invalidated = true;
  const KeySerial serial = Retain(key);
  for (auto& [number, ring] : keys_) {
    const auto link = std::find(ring->links.begin(), ring->links.end(), serial);
    if (link == ring->links.end()) continue;
    ring->links.erase(link);
    (void)Reserve(*ring, ring->reserved - kLinkBytes);
    --key.uses;
  }
  Release(serial);
  return base::Ok();
}

// keyctl_chown_key()
Status Keys::Chown(const Task& t, KeySerial id, std::optional<uid_t> uid,
                   std::optional<gid_t> gid) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeySetattr, /*create=*/true)).key;
  if (!t.creds().HasCap(CAP_SYS_ADMIN)) {
    if (uid && *uid != key.uid) return Error(EACCES);
    if (gid && *gid != key.gid && !t.creds().InGroup(*gid)) return Error(EACCES);
  }
  if (uid && *uid != key.uid) {
    std::unique_ptr<User>& place = users_[*uid];
    if (place == nullptr) place = std::make_unique<User>(User{.uid = *uid});
    User &to = *place, &from = *key.user;
    if (key.in_quota) {
      if (to.quota_keys + 1 > to.max_keys() || to.quota_bytes + key.reserved > to.max_bytes()) {
        if (to.keys == 0) users_.erase(*uid);
        return Error(EDQUOT);
      }
      to.quota_keys++;
      to.quota_bytes += key.reserved;
      from.quota_keys--;
      from.quota_bytes -= key.reserved;
    }
    to.keys++;
    key.user = &to;
    key.uid = *uid;
    if (--from.keys == 0) users_.erase(from.uid);
  }
  if (gid) key.gid = *gid;
  return base::Ok();
}

Status Keys::SetPermissions(const Task& t, KeySerial id, uint32_t permissions) {
  if ((permissions & ~kValidPermissions) != 0) return Error(EINVAL);
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeySetattr, /*create=*/true)).key;
  if (key.uid != t.creds().fsuid && !t.creds().HasCap(CAP_SYS_ADMIN)) return Error(EACCES);
  key.permissions = permissions;
  return base::Ok();
}

Result<std::string> Keys::Describe(const Task& t, KeySerial id) {
  absl::MutexLock lock(&mutex_);
  const Key& key = *TRY(LookUp(t, id, kKeyView)).key;
  const UserNamespace& ns = *t.creds().user_ns;
  return fmt::format("{};{};{};{:08x};{}", key.type->name, ns.MapUidOut(key.uid),
                     GidShown(ns, key.gid), key.permissions, key.description);
}

Status Keys::CheckView(const Task& t, KeySerial id) {
  absl::MutexLock lock(&mutex_);
  TRY(LookUp(t, id, kKeyView));
  return base::Ok();
}

Status Keys::Clear(const Task& t, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, ring, kKeyWrite, /*create=*/true)).key;
  if (!key.type->keyring) return Error(ENOTDIR);
  ClearRing(key);
  return base::Ok();
}

Status Keys::Link(const Task& t, KeySerial id, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  Key& to = *TRY(LookUp(t, ring, kKeyWrite, /*create=*/true)).key;
  return AddLink(to, *TRY(LookUp(t, id, kKeyLink, /*create=*/true)).key);
}

Status Keys::Unlink(const Task& t, KeySerial id, KeySerial ring) {
  absl::MutexLock lock(&mutex_);
  Key& from = *TRY(LookUp(t, ring, kKeyWrite)).key;
  const Key& key = *TRY(LookUp(t, id, kKeyNothing)).key;
  if (!from.type->keyring) return Error(ENOTDIR);
  const auto link = std::find(from.links.begin(), from.links.end(), key.serial);
  if (link == from.links.end()) return Error(ENOENT);
  from.links.erase(link);
  (void)Reserve(from, from.reserved - kLinkBytes);
  Release(key.serial);
  return base::Ok();
}

// key_move()
Status Keys::Move(const Task& t, KeySerial id, KeySerial from_id, KeySerial to_id, bool exclusive) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeyLink, /*create=*/true)).key;
  Key& from = *TRY(LookUp(t, from_id, kKeyWrite)).key;
  Key& to = *TRY(LookUp(t, to_id, kKeyWrite, /*create=*/true)).key;
  if (&from == &to) return base::Ok();
  if (!from.type->keyring || !to.type->keyring) return Error(ENOTDIR);
  if (std::find(from.links.begin(), from.links.end(), key.serial) == from.links.end()) {
    return Error(ENOENT);
  }
  const int there = LinkTo(to, key.type, key.description);
  if (exclusive && there >= 0 && to.links[static_cast<size_t>(there)] != key.serial) {
    return Error(EEXIST);
  }
  // What makes way may be all that holds `from`.
  const KeySerial kept = Retain(from);
  const Status status = AddLink(to, key);
  if (status.ok()) {
    from.links.erase(std::find(from.links.begin(), from.links.end(), key.serial));
    (void)Reserve(from, from.reserved - kLinkBytes);
    Release(key.serial);
  }
  Release(kept);
  return status;
}

// keyctl_read_key()
Result<std::vector<std::byte>> Keys::Read(const Task& t, KeySerial id) {
  absl::MutexLock lock(&mutex_);
  Result<Found> found = LookUp(t, id, kKeyNothing);
  if (!found.ok()) return Error(ENOKEY);
  const Key& key = *found->key;
  // Who possesses a key can search for it, and so may read it.
  if (!Permits(t.creds(), key, found->possessed, kKeyRead) && !found->possessed) {
    return Error(EACCES);
  }
  if (!key.type->readable) return Error(EOPNOTSUPP);
  TRY(Validate(key));
  if (!key.type->keyring) return key.payload;
  std::vector<std::byte> serials(key.links.size() * sizeof(KeySerial));
  if (!serials.empty()) memcpy(serials.data(), key.links.data(), serials.size());
  return serials;
}

Status Keys::SetTimeout(const Task& t, KeySerial id, uint32_t seconds) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeySetattr, /*create=*/true)).key;
  key.expiry = seconds != 0 ? base::RealtimeNs() / base::kNsPerSec + seconds : 0;
  return base::Ok();
}

// keyring_restrict(). No type has restrictions of its own.
Status Keys::Restrict(const Task& t, KeySerial id, const std::optional<std::string>& type) {
  absl::MutexLock lock(&mutex_);
  Key& key = *TRY(LookUp(t, id, kKeySetattr)).key;
  if (!key.type->keyring) return Error(ENOTDIR);
  if (type) return Error(FindType(*type) != nullptr ? ENOENT : ENOKEY);
  if (key.restricted) return Error(EEXIST);
  key.restricted = true;
  return base::Ok();
}

// --- /proc ---

namespace {

// proc_keys_show()
std::string TimeLeft(int64_t expiry) {
  if (expiry == 0) return "perm";
  const int64_t left = expiry - base::RealtimeNs() / base::kNsPerSec;
  constexpr int64_t kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour, kWeek = 7 * kDay;
  if (left <= 0) return "expd";
  if (left < kMinute) return fmt::format("{}s", left);
  if (left < kHour) return fmt::format("{}m", left / kMinute);
  if (left < kDay) return fmt::format("{}h", left / kHour);
  if (left < kWeek) return fmt::format("{}d", left / kDay);
  return fmt::format("{}w", left / kWeek);
}

}  // namespace

std::string Keys::KeysText(const Task& t) {
  absl::MutexLock lock(&mutex_);
  const UserNamespace& ns = *t.creds().user_ns;
  absl::flat_hash_set<const Key*> possessed;
  (void)SearchTask(t, Wanted{.all = &possessed});
  std::string text;
  for (const auto& [serial, held] : keys_) {
    const Key& key = *held;
    if (!ns.HasUid(key.user->uid)) continue;
    if (!Permits(t.creds(), key, possessed.contains(&key), kKeyView)) continue;
    text += fmt::format("{:08x} I{}-{}--{} {:5} {:>4} {:08x} {:5} {:5} {:<9.9} {}", serial,
                        key.revoked ? 'R' : '-', key.in_quota ? 'Q' : '-',
                        key.invalidated ? 'i' : '-', key.uses, TimeLeft(key.expiry),
                        key.permissions, ns.MapUidOut(key.uid), GidShown(ns, key.gid),
                        key.type->name, key.description.empty() ? "[anon]" : key.description);
    if (!key.type->keyring) {
      text += fmt::format(": {}", key.payload.size());
      if (key.type->counted != 0) text += " [buff]";
    } else if (!key.links.empty()) {
      text += fmt::format(": {}", key.links.size());
    } else {
      text += ": empty";
    }
    text += '\n';
  }
  return text;
}

std::string Keys::UsersText(const Task& t) {
  absl::MutexLock lock(&mutex_);
  const UserNamespace& ns = *t.creds().user_ns;
  std::map<uid_t, const User*> shown;
  for (const auto& [uid, user] : users_) {
    if (ns.HasUid(uid)) shown[uid] = user.get();
  }
  std::string text;
  for (const auto& [uid, user] : shown) {
    text += fmt::format("{:5}: {:5} {}/{} {}/{} {}/{}\n", ns.MapUidOut(uid), user->keys, user->keys,
                        user->keys, user->quota_keys, user->max_keys(), user->quota_bytes,
                        user->max_bytes());
  }
  return text;
}

}  // namespace sentry
