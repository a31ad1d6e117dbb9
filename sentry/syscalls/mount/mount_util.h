// What the calls about mounts share. Internal to sentry/syscalls.
#pragma once

#include <sys/mount.h>

#include <cstring>

#include "sentry/syscalls/file_util.h"

#ifndef MS_NOSYMFOLLOW
#define MS_NOSYMFOLLOW 256
#endif
#ifndef MOVE_MOUNT_BENEATH
#define MOVE_MOUNT_BENEATH 0x200
#endif

namespace sentry {

// Linux: may_mount.
inline base::Status MayMount(Task& t) {
  const base::Ref<UserNamespace>& owner = t.mount_namespace().user_ns();
  const bool may = owner ? t.creds().HasCapIn(CAP_SYS_ADMIN, *owner) : t.HasCap(CAP_SYS_ADMIN);
  return may ? base::Ok() : base::Error(EPERM);
}

// Linux: path_mounted.
inline bool IsMountRoot(const Path& path) {
  return path.mount && path.dentry == path.mount->root();
}

// A new mount of proc or sysfs must not show what mounts on the ones that are in sight hide: EPERM
// (Linux: mount_too_revealing). Takes over their locks.
base::Status CheckRevealing(Task& t, Mount& mount);

// copy_struct_from_user: what the guest's struct has beyond ours must be zero (E2BIG), what it
// lacks is zero. Precondition: `size` is at most a page.
template <typename T>
base::Result<T> CopyInStruct(Task& t, uint64_t addr, uint64_t size) {
  std::string raw(size, '\0');
  TRY(t.memory().Read(addr, std::as_writable_bytes(std::span(raw))));
  T value{};
  memcpy(&value, raw.data(), std::min<size_t>(size, sizeof(T)));
  if (raw.find_first_not_of('\0', sizeof(T)) != std::string::npos) return base::Error(E2BIG);
  return value;
}

// strndup_user: EINVAL if it is longer than `max` with its NUL.
inline base::Result<std::string> CopyInText(Task& t, uint64_t addr, size_t max) {
  auto text = t.memory().ReadString(addr, max);
  if (!text.ok() && text.error().code() == ENAMETOOLONG) return base::Error(EINVAL);
  return text;
}

// attr_flags_to_mnt_flags, without those about access times: MOUNT_ATTR_* as MS_*.
inline uint64_t MountFlagsOf(uint64_t attr) {
  constexpr struct {
    uint64_t attr, flag;
  } kFlags[] = {{MOUNT_ATTR_RDONLY, MS_RDONLY},         {MOUNT_ATTR_NOSUID, MS_NOSUID},
                {MOUNT_ATTR_NODEV, MS_NODEV},           {MOUNT_ATTR_NOEXEC, MS_NOEXEC},
                {MOUNT_ATTR_NODIRATIME, MS_NODIRATIME}, {MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW}};
  uint64_t flags = 0;
  for (const auto& f : kFlags) {
    if ((attr & f.attr) != 0) flags |= f.flag;
  }
  return flags;
}

// The flag of MS_* that MOUNT_ATTR__ATIME of `attr` asks for. EINVAL.
inline base::Result<uint64_t> AccessTimesOf(uint64_t attr) {
  switch (attr & MOUNT_ATTR__ATIME) {
    case MOUNT_ATTR_RELATIME:
      return uint64_t{MS_RELATIME};
    case MOUNT_ATTR_NOATIME:
      return uint64_t{MS_NOATIME};
    case MOUNT_ATTR_STRICTATIME:
      return uint64_t{MS_STRICTATIME};
    default:
      return base::Error(EINVAL);
  }
}

inline constexpr uint64_t kAccessTimeFlags = MS_RELATIME | MS_NOATIME | MS_STRICTATIME;
inline constexpr uint64_t kAttrFlags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                       MOUNT_ATTR_NOEXEC | MOUNT_ATTR__ATIME |
                                       MOUNT_ATTR_NODIRATIME | MOUNT_ATTR_NOSYMFOLLOW;
inline constexpr uint64_t kPropagationTypes = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE;

}  // namespace sentry
