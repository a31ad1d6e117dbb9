// Who a task is: user and group ids, capabilities, user namespace. Follows Linux's struct cred.
#pragma once

#include <linux/capability.h>
#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace sentry {

// A set of capabilities, bit n for capability n.
using CapSet = uint64_t;
inline constexpr CapSet kAllCaps = (CapSet{1} << (CAP_LAST_CAP + 1)) - 1;
constexpr CapSet CapBit(int cap) { return CapSet{1} << cap; }

// One line of a uid_map or gid_map.
struct IdMapEntry {
  uint32_t first_inside, first_outside, count;
};

// A number for a new namespace of any kind, by which nsfs tells them apart.
uint64_t NextNamespaceId();

// A user namespace of the sandbox. Kernel ids (kuid) are those of the root namespace; every id in
// the VFS is a kernel id. Maps are written once.
class UserNamespace : public base::RefCounted {
 public:
  // The root namespace: identity map.
  static base::Ref<UserNamespace> NewRoot();
  UserNamespace(base::Ref<UserNamespace> parent, uid_t owner, gid_t owner_group);

  const base::Ref<UserNamespace>& parent() const { return parent_; }
  uid_t owner() const { return owner_; }
  gid_t owner_group() const { return owner_group_; }
  int level() const { return level_; }
  uint64_t id() const { return id_; }
  // Whether setgroups(2) is denied for good, here and in what is made below, and whether it may be
  // called now: not before there are groups to name.
  bool setgroups_denied() const;
  bool MaySetgroups() const;
  // EPERM once there is a gid map (Linux: proc_setgroups_write).
  base::Status DenySetgroups();
  // Id in this namespace -> kernel id; EINVAL if not mapped.
  base::Result<uid_t> MapUidIn(uid_t uid) const;
  base::Result<gid_t> MapGidIn(gid_t gid) const;
  // Kernel id -> id as this namespace shows it; the overflow id 65534 if not mapped.
  uid_t MapUidOut(uid_t kuid) const;
  gid_t MapGidOut(gid_t kgid) const;
  bool HasUid(uid_t kuid) const;
  bool HasGid(gid_t kgid) const;
  // Sets a map once, outside ids being those of the parent namespace; EPERM if it is set or the
  // parent has no such ids, EINVAL if entries overlap or overflow.
  base::Status SetUidMap(std::vector<IdMapEntry> map);
  base::Status SetGidMap(std::vector<IdMapEntry> map);
  std::vector<IdMapEntry> uid_map() const;
  std::vector<IdMapEntry> gid_map() const;

 private:
  struct Maps;
  ~UserNamespace() override;
  const base::Ref<UserNamespace> parent_;
  const uid_t owner_;
  const gid_t owner_group_;
  const int level_;
  const uint64_t id_ = NextNamespaceId();
  Maps* const maps_;
};

// Immutable once shared: a task changes its credentials by replacing them with a changed copy
// (Linux: prepare_creds, commit_creds).
class Credentials : public base::RefCounted {
 public:
  uid_t ruid = 0, euid = 0, suid = 0, fsuid = 0;
  gid_t rgid = 0, egid = 0, sgid = 0, fsgid = 0;
  std::vector<gid_t> groups;  // supplementary, sorted
  CapSet permitted = 0, effective = 0, inheritable = 0, bounding = kAllCaps, ambient = 0;
  uint32_t securebits = 0;
  base::Ref<UserNamespace> user_ns;

  // All capabilities, ids 0, in `ns`.
  static base::Ref<Credentials> NewRoot(base::Ref<UserNamespace> ns);
  base::Ref<Credentials> Clone() const;

  // True if these credentials have `cap` in `ns` (Linux: ns_capable, cap_capable).
  bool HasCapIn(int cap, const UserNamespace& ns) const;
  // In their own user namespace.
  bool HasCap(int cap) const;
  // With what access(2) looks: the real ids, and the capabilities that they would give (Linux:
  // access_override_creds). Null: these will do.
  base::Ref<Credentials> RealIds() const;
  bool InGroup(gid_t kgid) const;  // fsgid or supplementary (Linux: in_group_p)
};

}  // namespace sentry
