// mount, umount2, pivot_root (Linux: fs/namespace.c).
#include <sched.h>

#include "sentry/fs/nsfs/nsfs.h"
#include "sentry/syscalls/mount/mount_util.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/mount_locks.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint64_t kMagicMask = 0xffff0000, kMagic = 0xC0ED0000;  // MS_MGC_MSK, MS_MGC_VAL
constexpr uint64_t kInternalFlags = uint64_t{1} << 31;            // MS_NOUSER
constexpr uint64_t kMountFlags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME |
                                 MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME | MS_NOSYMFOLLOW;
constexpr size_t kMaxOptions = 4096;

// A string argument that may be NULL.
Result<std::string> CopyInOptional(Task& t, uint64_t addr, size_t max) {
  if (addr == 0) return std::string();
  return CopyInText(t, addr, max);
}

uint64_t AttachFlags(uint64_t flags) {
  uint64_t result = flags & kMountFlags;
  if ((result & (MS_NOATIME | MS_STRICTATIME)) == 0) result |= MS_RELATIME;
  return result;
}

// do_remount() or, with MS_BIND, do_reconfigure_mnt().
base::Status Remount(Task& t, const Path& path, uint64_t flags, std::string_view data) {
  MountNamespace& ns = t.mount_namespace();
  if (!IsMountRoot(path) || !ns.Contains(*path.mount)) return Error(EINVAL);
  Filesystem& fs = path.mount->fs();
  // Without a word about access times they stay as they are.
  constexpr uint64_t kTimes = MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME;
  uint64_t kept = AttachFlags(flags);
  if ((flags & kTimes) == 0) kept = (kept & ~kTimes) | (path.mount->flags() & kTimes);
  if (!LocksAllow(path.mount->flags(), kept)) return Error(EPERM);
  if ((flags & MS_BIND) == 0) {
    // A filesystem of those who are more privileged.
    if ((path.mount->flags() & kLockTimes) != 0) return Error(EPERM);
    const bool before = fs.read_only();
    TRY(fs.SetReadOnly((flags & MS_RDONLY) != 0));
    const base::Status status = fs.Reconfigure(data);
    if (!status.ok()) {
      (void)fs.SetReadOnly(before);
      return status;
    }
  }
  return ns.SetAttr(*path.mount, {.set = kept, .clear = ~uint64_t{0}});
}

// /proc/PID/ns/NAME, which stands in no tree. Mounts that keep mount namespaces could keep each
// other, so there are none (Linux: mnt_ns_loop, which refuses older ones alone).
base::Status BindNamespace(Task& t, const Path& what, const NamespaceRef& ns, const Path& target) {
  if (ns.type == CLONE_NEWNS) return Error(EINVAL);
  base::Ref<Filesystem> fs(&what.dentry->inode_ptr()->fs());
  return t.mount_namespace().Attach(
      base::MakeRef<Mount>(std::move(fs), what.dentry, /*flags=*/0, "nsfs"), target);
}

base::Status BindMount(Task& t, const std::string& source, const Path& target, uint64_t flags) {
  if (source.empty()) return Error(EINVAL);
  const Path what = TRY(WalkFrom(t, AT_FDCWD, source, {}));
  const Inode* inode = what.dentry->inode_ptr();
  const NamespaceRef* ns = inode != nullptr ? NamespaceOfInode(*inode) : nullptr;
  if (ns != nullptr && !t.mount_namespace().Contains(*what.mount)) {
    return BindNamespace(t, what, *ns, target);
  }
  return VfsOf(t).Bind(t.mount_namespace(), what, target, flags & MS_REC);
}

base::Status MoveMount(Task& t, const std::string& source, const Path& target) {
  if (source.empty()) return Error(EINVAL);
  const Path what = TRY(WalkFrom(t, AT_FDCWD, source, {}));
  if (!IsMountRoot(what)) return Error(EINVAL);
  return t.mount_namespace().Move(what.mount, target);
}

base::Status NewMount(Task& t, const std::string& source, const Path& target,
                      const std::string& type, uint64_t flags, const std::string& data) {
  if (type.empty()) return Error(EINVAL);
  const MountArgs args{source.empty() ? "none" : source, AttachFlags(flags), data, t.creds()};
  base::Ref<Mount> mount = TRY(VfsOf(t).MakeMount(type, args));
  TRY(CheckRevealing(t, *mount));
  return t.mount_namespace().Attach(std::move(mount), target);
}

}  // namespace

base::Result<uint64_t> SysMount(Task& t, const SyscallArgs& args) {
  uint64_t flags = args[3];
  const std::string type = TRY(CopyInOptional(t, args[2], kPathMax));
  const std::string source = TRY(CopyInOptional(t, args[0], kPathMax));
  const std::string data = TRY(CopyInOptional(t, args[4], kMaxOptions));
  const Path target = TRY(WalkArg(t, AT_FDCWD, args[1], {}));
  if ((flags & kMagicMask) == kMagic) flags &= ~kMagicMask;
  if ((flags & kInternalFlags) != 0) return Error(EINVAL);
  TRY(MayMount(t));
  base::Status status;
  if ((flags & MS_REMOUNT) != 0) {
    status = Remount(t, target, flags, data);
  } else if ((flags & MS_BIND) != 0) {
    status = BindMount(t, source, target, flags);
  } else if ((flags & kPropagationTypes) != 0) {
    if ((flags & ~(kPropagationTypes | MS_REC | MS_SILENT)) != 0) return Error(EINVAL);
    if (__builtin_popcountll(flags & kPropagationTypes) != 1 || !IsMountRoot(target)) {
      return Error(EINVAL);
    }
    status = MountNamespace::SetPropagation(*target.mount, flags & kPropagationTypes,
                                            (flags & MS_REC) != 0);
  } else if ((flags & MS_MOVE) != 0) {
    status = MoveMount(t, source, target);
  } else {
    status = NewMount(t, source, target, type, flags, data);
  }
  if (!status.ok()) return status.error();
  return uint64_t{0};
}

base::Result<uint64_t> SysUmount2(Task& t, const SyscallArgs& args) {
  const int flags = args.Int(1);
  if ((flags & ~(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW)) != 0) return Error(EINVAL);
  if ((flags & MNT_EXPIRE) != 0 && (flags & (MNT_FORCE | MNT_DETACH)) != 0) return Error(EINVAL);
  const Path path =
      TRY(WalkArg(t, AT_FDCWD, args[0], {.follow_last = (flags & UMOUNT_NOFOLLOW) == 0}));
  TRY(MayMount(t));
  if (!IsMountRoot(path)) return Error(EINVAL);
  FdTable::TakeAllClosed();
  TRY(t.mount_namespace().Detach(path.mount, flags));
  return uint64_t{0};
}

base::Result<uint64_t> SysPivotRoot(Task& t, const SyscallArgs& args) {
  TRY(MayMount(t));
  const Path new_root = TRY(WalkArg(t, AT_FDCWD, args[0], {.need_dir = true}));
  const Path put_old = TRY(WalkArg(t, AT_FDCWD, args[1], {.need_dir = true}));
  const Path old_root = t.fs_context().root();
  TRY(t.mount_namespace().PivotRoot(old_root, new_root, put_old));
  for (const base::Ref<Task>& task : t.kernel().Tasks(*t.kernel().root_pid_ns())) {
    if (base::Ref<FsContext> fs = task->fs_context_ref()) fs->Replace(old_root, new_root);
  }
  return uint64_t{0};
}

}  // namespace sentry
