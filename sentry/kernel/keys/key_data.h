// What keys are made of; for the code of Keys alone.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sentry/base/time.h"
#include "sentry/kernel/keys/keys.h"

namespace sentry {

// KEY_SPEC_*: keyrings of the caller's.
inline constexpr KeySerial kThreadRing = -1, kProcessRing = -2, kSessionRing = -3, kUserRing = -4;
inline constexpr KeySerial kUserSessionRing = -5, kGroupRing = -6, kAuthKey = -7,
                           kRequestorRing = -8;

// Permissions: the possessor's bits, then the user's, the group's and those of others.
inline constexpr int kPossessorShift = 24, kUserShift = 16, kGroupShift = 8;
inline constexpr uint32_t kAllNeeds = 0x3f;
inline constexpr uint32_t kPossessorAll = kAllNeeds << kPossessorShift;
inline constexpr uint32_t kUserAll = kAllNeeds << kUserShift;
inline constexpr uint32_t kValidPermissions = 0x3f3f3f3f;
inline constexpr uint32_t kUserView = kKeyView << kUserShift, kUserRead = kKeyRead << kUserShift;

inline constexpr uid_t kNoId = static_cast<uid_t>(-1);
inline constexpr size_t kLinkBytes = 4;      // KEYQUOTA_LINK_BYTES
inline constexpr int kMaxDepth = 6;          // KEYRING_SEARCH_MAX_DEPTH
inline constexpr size_t kMaxKeys = 1 << 16;  // of all users

struct Keys::Type {
  std::string_view name;
  bool keyring = false;
  bool readable = true;
  bool updatable = true;
  size_t most = 0;     // bytes
  size_t counted = 0;  // of them, for the quota; 0: all
};

struct Keys::User {
  uid_t uid;
  uint64_t keys = 0, quota_keys = 0, quota_bytes = 0;
  uint64_t max_keys() const { return uid == 0 ? kMaxRootKeys : kMaxUserKeys; }
  uint64_t max_bytes() const { return uid == 0 ? kMaxRootKeyBytes : kMaxUserKeyBytes; }
};

struct Keys::Key {
  KeySerial serial;
  const Type* type;
  std::string description;
  uid_t uid;
  gid_t gid;
  uint32_t permissions;
  User* user;
  bool in_quota;
  size_t reserved = 0;  // bytes of the user's quota
  std::vector<std::byte> payload;
  std::vector<KeySerial> links;  // of a keyring
  uint64_t name_space = 0;       // the user namespace in which a keyring's name counts
  uint32_t uses = 0;             // links to it, and places that hold it
  int64_t expiry = 0;            // seconds of CLOCK_REALTIME; 0: never
  bool revoked = false, invalidated = false;
  bool of_user = false;     // _uid, _uid_ses
  bool restricted = false;  // takes no links

  bool Expired() const { return expiry != 0 && base::RealtimeNs() / base::kNsPerSec >= expiry; }
};

}  // namespace sentry
