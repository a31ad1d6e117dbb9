// open_tree, open_tree_attr, move_mount, mount_setattr (Linux: fs/namespace.c).
#include <optional>

#include "sentry/syscalls/mount/mount_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint32_t kPathFlags =
    AT_EMPTY_PATH | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;

// A path argument that names something by AT_* `flags`.
Result<Path> WalkAt(Task& t, int dirfd, uint64_t addr, uint32_t flags) {
  Path path = TRY(WalkArg(t, dirfd, addr, AtFlags(static_cast<int>(flags))));
  if (!path.mount) return Error(EBADF);
  return path;
}

Result<base::Ref<FileDescription>> OpenTree(Task& t, const SyscallArgs& args) {
  const uint32_t flags = args.Uint(2);
  if ((flags & ~(kPathFlags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)) != 0) return Error(EINVAL);
  if ((flags & (AT_RECURSIVE | OPEN_TREE_CLONE)) == AT_RECURSIVE) return Error(EINVAL);
  const bool clone = (flags & OPEN_TREE_CLONE) != 0;
  if (clone) TRY(MayMount(t));
  Path path = TRY(WalkAt(t, args.Int(0), args[1], flags));
  if (!clone) return base::Ref<FileDescription>(base::MakeRef<PathOnlyFile>(std::move(path)));
  base::Ref<MountNamespace> tree =
      TRY(t.mount_namespace().CloneDetached(path, (flags & AT_RECURSIVE) != 0));
  const base::Ref<Mount> root = tree->root_mount();
  return base::Ref<FileDescription>(
      base::MakeRef<PathOnlyFile>(Path{root, root->root()}, std::move(tree)));
}

// build_mount_idmapped(): no filesystem here maps ids.
base::Status CheckIdMap(Task& t, const mount_attr& attr) {
  if (((attr.attr_set | attr.attr_clr) & MOUNT_ATTR_IDMAP) == 0) return base::Ok();
  if ((attr.attr_clr & MOUNT_ATTR_IDMAP) == 0 && attr.userns_fd <= INT32_MAX) {
    TRY(GetOpenFile(t, static_cast<int>(attr.userns_fd)));
  }
  return Error(EINVAL);
}

// wants_mount_setattr(), build_mount_kattr(). None: there is nothing to change.
Result<std::optional<MountNamespace::AttrChange>> CopyInAttr(Task& t, uint64_t addr,
                                                             uint64_t size) {
  if (size > 4096) return Error(E2BIG);
  if (size < MOUNT_ATTR_SIZE_VER0) return Error(EINVAL);
  TRY(MayMount(t));
  const auto attr = TRY(CopyInStruct<mount_attr>(t, addr, size));
  if (attr.attr_set == 0 && attr.attr_clr == 0 && attr.propagation == 0) {
    return std::optional<MountNamespace::AttrChange>();
  }
  if ((attr.propagation & ~kPropagationTypes) != 0 || __builtin_popcountll(attr.propagation) > 1) {
    return Error(EINVAL);
  }
  if (((attr.attr_set | attr.attr_clr) & ~(kAttrFlags | MOUNT_ATTR_IDMAP)) != 0) {
    return Error(EINVAL);
  }
  MountNamespace::AttrChange change{.set = MountFlagsOf(attr.attr_set),
                                    .clear = MountFlagsOf(attr.attr_clr),
                                    .propagation = attr.propagation};
  const uint64_t clear_times = attr.attr_clr & MOUNT_ATTR__ATIME;
  if (clear_times != 0) {
    if (clear_times != MOUNT_ATTR__ATIME) return Error(EINVAL);
    change.clear |= kAccessTimeFlags;
    change.set |= TRY(AccessTimesOf(attr.attr_set));
  } else if ((attr.attr_set & MOUNT_ATTR__ATIME) != 0) {
    return Error(EINVAL);
  }
  TRY(CheckIdMap(t, attr));
  return std::optional(change);
}

base::Status ChangeAttr(Task& t, const Path& path, MountNamespace::AttrChange change,
                        uint32_t flags) {
  if (!IsMountRoot(path)) return Error(EINVAL);
  change.recursive = (flags & AT_RECURSIVE) != 0;
  return t.mount_namespace().SetAttr(*path.mount, change);
}

}  // namespace

base::Result<uint64_t> SysOpenTree(Task& t, const SyscallArgs& args) {
  auto file = TRY(OpenTree(t, args));
  const bool cloexec = (args.Uint(2) & OPEN_TREE_CLOEXEC) != 0;
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), cloexec)));
}

base::Result<uint64_t> SysOpenTreeAttr(Task& t, const SyscallArgs& args) {
  if (args[3] == 0 && args[4] != 0) return Error(EINVAL);
  auto file = TRY(OpenTree(t, args));
  const uint32_t flags = args.Uint(2);
  if (args[3] != 0) {
    const auto change = TRY(CopyInAttr(t, args[3], args[4]));
    if (change) TRY(ChangeAttr(t, file->path(), *change, flags));
  }
  return static_cast<uint64_t>(
      TRY(t.InstallFile(std::move(file), (flags & OPEN_TREE_CLOEXEC) != 0)));
}

base::Result<uint64_t> SysMountSetattr(Task& t, const SyscallArgs& args) {
  const uint32_t flags = args.Uint(2);
  if ((flags & ~kPathFlags) != 0) return Error(EINVAL);
  const auto change = TRY(CopyInAttr(t, args[3], args[4]));
  if (!change) return uint64_t{0};
  const Path path = TRY(WalkAt(t, args.Int(0), args[1], flags));
  TRY(ChangeAttr(t, path, *change, flags));
  return uint64_t{0};
}

base::Result<uint64_t> SysMoveMount(Task& t, const SyscallArgs& args) {
  constexpr uint32_t kKnown = MOVE_MOUNT_F_SYMLINKS | MOVE_MOUNT_F_AUTOMOUNTS |
                              MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS |
                              MOVE_MOUNT_T_AUTOMOUNTS | MOVE_MOUNT_T_EMPTY_PATH |
                              MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_BENEATH;
  constexpr uint32_t kEither = MOVE_MOUNT_SET_GROUP | MOVE_MOUNT_BENEATH;
  const uint32_t flags = args.Uint(4);
  TRY(MayMount(t));
  if ((flags & ~kKnown) != 0 || (flags & kEither) == kEither) return Error(EINVAL);
  auto at = [&](uint32_t follow, uint32_t empty) {
    return ((flags & follow) != 0 ? 0 : AT_SYMLINK_NOFOLLOW) |
           ((flags & empty) != 0 ? AT_EMPTY_PATH : 0);
  };
  const Path to =
      TRY(WalkAt(t, args.Int(2), args[3], at(MOVE_MOUNT_T_SYMLINKS, MOVE_MOUNT_T_EMPTY_PATH)));
  const Path from =
      TRY(WalkAt(t, args.Int(0), args[1], at(MOVE_MOUNT_F_SYMLINKS, MOVE_MOUNT_F_EMPTY_PATH)));
  if ((flags & MOVE_MOUNT_SET_GROUP) != 0) {
    TRY(MountNamespace::ShareAs(from, to));
    return uint64_t{0};
  }
  if (!IsMountRoot(from)) return Error(EINVAL);
  const Path root = t.fs_context().root();
  TRY(t.mount_namespace().Move(from.mount, to, (flags & MOVE_MOUNT_BENEATH) != 0,
                               root.mount.get()));
  return uint64_t{0};
}

}  // namespace sentry
