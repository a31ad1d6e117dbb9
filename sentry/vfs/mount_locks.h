// What a less privileged mount namespace may not undo of the mounts that it has from another one
// (Linux: MNT_LOCKED, MNT_LOCK_READONLY and the like, lock_mnt_tree).
#pragma once

#include <sys/mount.h>

#include <cstdint>

#include "sentry/vfs/mount.h"

namespace sentry {

// Kept with Mount::flags(), beyond those of mount(2).
inline constexpr uint64_t kMountLocked = uint64_t{1} << 40;  // not unmounted or moved by itself
inline constexpr uint64_t kLockReadOnly = uint64_t{1} << 41;
inline constexpr uint64_t kLockNoSuid = uint64_t{1} << 42;
inline constexpr uint64_t kLockNoDev = uint64_t{1} << 43;
inline constexpr uint64_t kLockNoExec = uint64_t{1} << 44;
inline constexpr uint64_t kLockTimes = uint64_t{1} << 45;
inline constexpr uint64_t kMountLocks =
    kMountLocked | kLockReadOnly | kLockNoSuid | kLockNoDev | kLockNoExec | kLockTimes;
inline constexpr uint64_t kTimeFlags = MS_NOATIME | MS_NODIRATIME | MS_RELATIME;

// With the locks of what `flags` say.
constexpr uint64_t WithLocks(uint64_t flags) {
  flags |= kLockTimes;
  if ((flags & MS_RDONLY) != 0) flags |= kLockReadOnly;
  if ((flags & MS_NOSUID) != 0) flags |= kLockNoSuid;
  if ((flags & MS_NODEV) != 0) flags |= kLockNoDev;
  if ((flags & MS_NOEXEC) != 0) flags |= kLockNoExec;
  return flags;
}

// May a mount with these flags get those of `wanted`? (can_change_locked_flags)
constexpr bool LocksAllow(uint64_t flags, uint64_t wanted) {
  auto lost = [&](uint64_t lock, uint64_t flag) {
    return (flags & lock) != 0 && (wanted & flag) == 0;
  };
  if (lost(kLockReadOnly, MS_RDONLY) || lost(kLockNoSuid, MS_NOSUID) ||
      lost(kLockNoDev, MS_NODEV) || lost(kLockNoExec, MS_NOEXEC)) {
    return false;
  }
  return (flags & kLockTimes) == 0 || ((flags ^ wanted) & kTimeFlags) == 0;
}

}  // namespace sentry
