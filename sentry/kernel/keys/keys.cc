// How keys are made, linked and let go: security/keys/key.c, keyring.c.
#include "sentry/kernel/keys/keys.h"

#include <algorithm>

#include "sentry/base/kernel_memory.h"
#include "sentry/base/random.h"
#include "sentry/kernel/keys/key_data.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

Keys& Keys::Get() {
  static Keys* const keys = new Keys;
  return *keys;
}

const Keys::Type* Keys::FindType(std::string_view name) {
  static constexpr Type kTypes[] = {
      {.name = "keyring", .keyring = true, .updatable = false},
      {.name = "user", .most = 32767},
      {.name = "logon", .readable = false, .most = 32767},
      {.name = "big_key", .most = 1 << 20, .counted = 16},
  };
  for (const Type& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

Keys::Key* Keys::Find(KeySerial id) {
  auto it = keys_.find(id);
  return it != keys_.end() ? it->second.get() : nullptr;
}

// key_alloc()
Result<Keys::Key*> Keys::Make(const Task& t, NewKey fresh) {
  // logon_vet_description(): the service stands before a colon.
  const size_t colon = fresh.description.find(':');
  if (fresh.type->name == "logon" && (colon == 0 || colon == std::string::npos)) {
    return Error(EINVAL);
  }
  if (keys_.size() >= kMaxKeys) return Error(EDQUOT);
  if (base::KernelMemory::Full()) return Error(ENOMEM);
  std::unique_ptr<User>& place = users_[fresh.uid];
  if (place == nullptr) place = std::make_unique<User>(User{.uid = fresh.uid});
  User& user = *place;
  const size_t bytes = fresh.description.size() + 1;
  if (fresh.in_quota) {
    if (!fresh.may_exceed &&
        (user.quota_keys + 1 > user.max_keys() || user.quota_bytes + bytes > user.max_bytes())) {
      if (user.keys == 0) users_.erase(fresh.uid);
      return Error(EDQUOT);
    }
    user.quota_keys++;
    user.quota_bytes += bytes;
  }
  user.keys++;
  KeySerial serial;
  do {
    serial = static_cast<KeySerial>(base::Random64() & INT32_MAX);
  } while (serial < 3 || keys_.contains(serial));
  auto key = std::make_unique<Key>(Key{.serial = serial,
                                       .type = fresh.type,
                                       .description = std::move(fresh.description),
                                       .uid = fresh.uid,
                                       .gid = fresh.gid,
                                       .permissions = fresh.permissions,
                                       .user = &user,
                                       .in_quota = fresh.in_quota,
                                       .reserved = bytes,
                                       .name_space = t.creds().user_ns->id()});
  return (keys_[serial] = std::move(key)).get();
}

// key_payload_reserve()
Status Keys::Reserve(Key& key, size_t bytes) {
  if (key.in_quota) {
    User& user = *key.user;
    if (bytes > key.reserved && user.quota_bytes + (bytes - key.reserved) > user.max_bytes()) {
      return Error(EDQUOT);
    }
    user.quota_bytes = user.quota_bytes - key.reserved + bytes;
  }
  key.reserved = bytes;
  return base::Ok();
}

Status Keys::SetPayload(Key& key, std::vector<std::byte> payload) {
  if (base::KernelMemory::Full() && payload.size() > key.payload.size()) return Error(ENOMEM);
  const size_t counted = key.type->counted != 0 ? key.type->counted : payload.size();
  TRY(Reserve(key, key.description.size() + 1 + counted));
  key.payload = std::move(payload);
  return base::Ok();
}

KeySerial Keys::Retain(Key& key) {
  key.uses++;
  return key.serial;
}

void Keys::Release(KeySerial id) { ReleaseAll({id}); }

// A keyring that goes lets its keys go, which may be keyrings: in a loop, since a chain of them may
// be long.
void Keys::ReleaseAll(std::vector<KeySerial> ids) {
  while (!ids.empty()) {
    auto it = keys_.find(ids.back());
    ids.pop_back();
    if (it == keys_.end() || --it->second->uses > 0) continue;
    Key& key = *it->second;
    ids.insert(ids.end(), key.links.begin(), key.links.end());
    User& user = *key.user;
    if (key.in_quota) {
      user.quota_keys--;
      user.quota_bytes -= key.reserved;
    }
    keys_.erase(it);
    if (--user.keys == 0) users_.erase(user.uid);
  }
}

void Keys::ClearRing(Key& ring) {
  ReleaseAll(std::exchange(ring.links, {}));
  (void)Reserve(ring, ring.description.size() + 1);  // less than before
}

int Keys::LinkTo(const Key& ring, const Type* type, std::string_view description) {
  for (size_t i = 0; i < ring.links.size(); ++i) {
    const Key* key = Find(ring.links[i]);
    if (key->type == type && key->description == description) return static_cast<int>(i);
  }
  return -1;
}

// keyring_detect_cycle()
Status Keys::CheckNoCycle(Key& ring, Key& key) {
  if (!key.type->keyring) return base::Ok();
  absl::flat_hash_set<const Key*> seen;
  std::vector<Key*> level = {&key};
  for (int depth = 0; !level.empty(); ++depth) {
    if (depth > kMaxDepth) return Error(ELOOP);
    std::vector<Key*> next;
    for (Key* at : level) {
      if (at == &ring) return Error(EDEADLK);
      if (!seen.insert(at).second) continue;
      for (KeySerial id : at->links) {
        if (Key* child = Find(id); child->type->keyring) next.push_back(child);
      }
    }
    level = std::move(next);
  }
  return base::Ok();
}

Status Keys::AddLink(Key& ring, Key& key) {
  if (!ring.type->keyring) return Error(ENOTDIR);
  if (ring.restricted) return Error(EPERM);
  TRY(CheckNoCycle(ring, key));
  const int at = LinkTo(ring, key.type, key.description);
  if (at < 0) {
    if (base::KernelMemory::Full()) return Error(ENOMEM);
    TRY(Reserve(ring, ring.reserved + kLinkBytes));
    ring.links.push_back(Retain(key));
    return base::Ok();
  }
  KeySerial& link = ring.links[static_cast<size_t>(at)];
  Release(std::exchange(link, Retain(key)));
  return base::Ok();
}

// --- finding ---

// key_task_permission()
bool Keys::Permits(const Credentials& creds, const Key& key, bool possessed, uint32_t need) {
  uint32_t have = key.permissions;
  if (key.uid == creds.fsuid) {
    have >>= kUserShift;
  } else if (key.gid != kNoId && (have & (kAllNeeds << kGroupShift)) != 0 &&
             creds.InGroup(key.gid)) {
    have >>= kGroupShift;
  }
  if (possessed) have |= key.permissions >> kPossessorShift;
  return (have & need) == need;
}

// key_validate()
Status Keys::Validate(const Key& key) {
  if (key.invalidated) return Error(ENOKEY);
  if (key.revoked) return Error(EKEYREVOKED);
  if (key.Expired()) return Error(EKEYEXPIRED);
  return base::Ok();
}

bool Keys::Wanted::Matches(const Key& k) const {
  return key != nullptr ? key == &k : k.type == type && k.description == description;
}

// keyring_search_rcu(). Each keyring is looked at once, the nearest first, so that a web of links
// costs no more than its size.
Result<Keys::Key*> Keys::SearchTree(const Task& t, Found root, const Wanted& wanted) {
  const Credentials& creds = t.creds();
  if (!Permits(creds, *root.key, root.possessed, kKeySearch)) return Error(EACCES);
  int error = EAGAIN;
  auto fits = [&](const Key& key) {
    if (wanted.all != nullptr) {
      if (Permits(creds, key, root.possessed, kKeySearch)) wanted.all->insert(&key);
      return false;
    }
    if (!wanted.Matches(key)) return false;
    if (wanted.key == nullptr) {
      if (key.revoked || key.invalidated) {
        error = EKEYREVOKED;
        return false;
      }
      if (key.Expired()) {
        if (!wanted.skip_expired) error = EKEYEXPIRED;
        return false;
      }
    }
    if (Permits(creds, key, root.possessed, kKeySearch)) return true;
    error = EACCES;
    return false;
  };
  if (fits(*root.key)) return root.key;
  absl::flat_hash_set<const Key*> seen = {root.key};
  std::vector<Key*> level = {root.key};
  for (int depth = 0; depth <= kMaxDepth && !level.empty(); ++depth) {
    std::vector<Key*> next;
    for (Key* ring : level) {
      if (ring->revoked) continue;
      for (KeySerial id : ring->links) {
        Key* key = Find(id);
        if (fits(*key)) return key;
        if (key->type->keyring && Permits(creds, *key, root.possessed, kKeySearch) &&
            seen.insert(key).second) {
          next.push_back(key);
        }
      }
    }
    level = std::move(next);
  }
  return Error(error);
}

std::vector<Keys::Key*> Keys::RootsOf(const Task& t) {
  std::vector<Key*> roots;
  auto add = [&](KeySerial id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (Key* key = id != 0 ? Find(id) : nullptr) roots.push_back(key);
  };
  const Held* held = FindHeld(t);
  if (held != nullptr) {
    add(held->thread);
    add(held->process);
    add(held->session);
  }
  if (held == nullptr || held->session == 0) {
    auto it = rings_.find({t.creds().user_ns.get(), t.creds().ruid});
    if (it != rings_.end()) add(it->second.session);
  }
  return roots;
}

// search_process_keyrings_rcu()
Result<Keys::Key*> Keys::SearchTask(const Task& t, const Wanted& wanted) {
  int error = EAGAIN;
  for (Key* root : RootsOf(t)) {
    Result<Key*> found = SearchTree(t, Found{root, /*possessed=*/true}, wanted);
    if (found.ok()) return found;
    if (found.error().code() != EAGAIN || error == EAGAIN) error = found.error().code();
  }
  return Error(error);
}

Result<Keys::Found> Keys::LookUp(const Task& t, KeySerial id, uint32_t need, bool create) {
  Found found;
  if (id < 0) {
    found = {TRY(OwnRing(t, id, create)), /*possessed=*/true};
  } else {
    if (id == 0) return Error(EINVAL);
    Key* key = Find(id);
    if (key == nullptr) return Error(ENOKEY);
    found = {key, SearchTask(t, Wanted{.key = key}).ok()};
  }
  if (need == kKeyNothing) return found;
  TRY(Validate(*found.key));
  if (!Permits(t.creds(), *found.key, found.possessed, need)) return Error(EACCES);
  return found;
}

}  // namespace sentry
