// Keys and keyrings: security/keys of Linux. What a task holds of them lies here too, beside the
// tasks, since few have any.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "sentry/auth/credentials.h"
#include "sentry/base/result.h"

namespace sentry {

class Task;

using KeySerial = int32_t;

// What a caller needs of a key: the bits of each class of its permissions.
enum KeyNeed : uint32_t {
  kKeyNothing = 0,
  kKeyView = 1,
  kKeyRead = 2,
  kKeyWrite = 4,
  kKeySearch = 8,
  kKeyLink = 0x10,
  kKeySetattr = 0x20,
};

// /proc/sys/kernel/keys: for each user. Linux lets root have 1,000,000 keys; here every look-up
// walks those that its caller can reach.
inline constexpr uint64_t kMaxUserKeys = 200, kMaxUserKeyBytes = 20000;
inline constexpr uint64_t kMaxRootKeys = 10000, kMaxRootKeyBytes = 25000000;
inline constexpr int64_t kPersistentKeyringSeconds = 3 * 24 * 3600;

// All keys. Thread-safe; one mutex guards them (a leaf). The operations are those of add_key(2),
// request_key(2) and keyctl(2), for the task that calls them, with their errors.
class Keys {
 public:
  static Keys& Get();

  // --- operations ---
  base::Result<KeySerial> Add(const Task& t, const std::string& type,
                              const std::optional<std::string>& description,
                              std::vector<std::byte> payload, KeySerial ring);
  base::Result<KeySerial> Request(const Task& t, const std::string& type,
                                  const std::string& description, KeySerial ring);
  base::Result<KeySerial> GetKeyringId(const Task& t, KeySerial id, bool create);
  base::Result<KeySerial> JoinSession(const Task& t, const std::optional<std::string>& name);
  base::Status Update(const Task& t, KeySerial id, std::vector<std::byte> payload);
  base::Status Revoke(const Task& t, KeySerial id);
  base::Status Invalidate(const Task& t, KeySerial id);
  base::Status Chown(const Task& t, KeySerial id, std::optional<uid_t> uid,
                     std::optional<gid_t> gid);
  base::Status SetPermissions(const Task& t, KeySerial id, uint32_t permissions);
  base::Result<std::string> Describe(const Task& t, KeySerial id);
  base::Status CheckView(const Task& t, KeySerial id);
  base::Status Clear(const Task& t, KeySerial ring);
  base::Status Link(const Task& t, KeySerial id, KeySerial ring);
  base::Status Unlink(const Task& t, KeySerial id, KeySerial ring);
  base::Status Move(const Task& t, KeySerial id, KeySerial from, KeySerial to, bool exclusive);
  base::Result<KeySerial> Search(const Task& t, KeySerial ring, const std::string& type,
                                 const std::string& description, KeySerial destination);
  base::Result<std::vector<std::byte>> Read(const Task& t, KeySerial id);
  base::Result<int> SetDefaultKeyring(const Task& t, int which);
  base::Status SetTimeout(const Task& t, KeySerial id, uint32_t seconds);
  base::Status Restrict(const Task& t, KeySerial id, const std::optional<std::string>& type);
  base::Result<KeySerial> GetPersistent(const Task& t, uid_t uid, KeySerial ring);

  // --- /proc/keys, /proc/key-users ---
  std::string KeysText(const Task& t);
  std::string UsersText(const Task& t);

  // --- tasks ---
  // Of a clone: the session's keyring, and the process's if the child is a thread.
  void Inherit(const Task& parent, const Task& child, bool thread);
  // exec: all but the session's.
  void OnExec(const Task& t);
  // The task has ended, or never began. Idempotent.
  void Forget(const Task& t);

 private:
  struct Type;
  struct Key;
  struct User;
  // A key with whether the caller possesses it.
  struct Found {
    Key* key;
    bool possessed;
  };
  // What a task holds; 0: none.
  struct Held {
    KeySerial session = 0, process = 0, thread = 0;
    int default_ring = 0;  // KEY_REQKEY_DEFL_*
  };
  // The keyrings that a user has in a namespace.
  struct UserRings {
    base::Ref<UserNamespace> ns;
    KeySerial user = 0, session = 0, persistent = 0;
  };
  using UserId = std::pair<const UserNamespace*, uid_t>;

  Keys() = default;
  ~Keys() = default;
  static const Type* FindType(std::string_view name);

  // --- tasks ---
  const Held* FindHeld(const Task& t) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Held& HeldOf(const Task& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `*place` holds `ring` from now on, and no longer what it held.
  void Hold(KeySerial* place, KeySerial ring) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropHeld(const Task& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<Key*> OwnRing(const Task& t, KeySerial id, bool create)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A keyring of a thread or a process, which nobody holds yet.
  base::Result<Key*> MakeOwn(const Task& t, const char* name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<Key*> SessionRing(const Task& t, bool create) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<Key*> NewSession(const Task& t, const std::string& name, uint32_t permissions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<UserRings*> RingsOf(const Task& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<Key*> PersistentRing(const Task& t, uid_t uid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<UserRings*> PlaceOf(const Task& t, uid_t uid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Lets keyrings of users in namespaces that are gone go, where there are many: before any key is
  // looked up, since they may be what is found.
  void MakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- keys ---
  Key* Find(KeySerial id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A key that nobody holds yet: it is to be held, linked, or dropped. EDQUOT, ENOMEM.
  struct NewKey {
    const Type* type;
    std::string description;
    uid_t uid;
    gid_t gid;
    uint32_t permissions;
    bool in_quota = true, may_exceed = false;
  };
  base::Result<Key*> Make(const Task& t, NewKey fresh) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status SetPayload(Key& key, std::vector<std::byte> payload)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Changes what of the key's bytes counts. EDQUOT.
  base::Status Reserve(Key& key, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Release(KeySerial id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseAll(std::vector<KeySerial> ids) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropIfUnused(Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { Release(Retain(key)); }
  KeySerial Retain(Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ClearRing(Key& ring) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Links, as key_link() does: a link to a key of the same name and type makes way.
  base::Status AddLink(Key& ring, Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status CheckNoCycle(Key& ring, Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The link in `ring` to a key of this type and name; its place, or -1.
  int LinkTo(const Key& ring, const Type* type, std::string_view description)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- finding ---
  static bool Permits(const Credentials& creds, const Key& key, bool possessed, uint32_t need);
  static base::Status Validate(const Key& key);
  // lookup_user_key(). With kKeyNothing a key in whatever state; `create`: a keyring of the
  // caller's that is not there is made.
  base::Result<Found> LookUp(const Task& t, KeySerial id, uint32_t need, bool create = false)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is looked for in a tree of keyrings.
  struct Wanted {
    const Key* key = nullptr;  // this one, in whatever state; or
    const Type* type = nullptr;
    std::string_view description;
    bool skip_expired = false;
    absl::flat_hash_set<const Key*>* all = nullptr;  // none, but all that could be found go here
    bool Matches(const Key& k) const;
  };
  // EAGAIN: it is not there.
  base::Result<Key*> SearchTree(const Task& t, Found root, const Wanted& wanted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same in all keyrings of the task.
  base::Result<Key*> SearchTask(const Task& t, const Wanted& wanted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The keyrings in which a task's search begins.
  std::vector<Key*> RootsOf(const Task& t) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::map<KeySerial, std::unique_ptr<Key>> keys_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uid_t, std::unique_ptr<User>> users_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<const Task*, Held> held_ ABSL_GUARDED_BY(mutex_);
  std::map<UserId, UserRings> rings_ ABSL_GUARDED_BY(mutex_);
  size_t sweep_at_ ABSL_GUARDED_BY(mutex_) = 64;  // so many rings_
  std::atomic<size_t> holders_{0};                // entries of held_
};

}  // namespace sentry
