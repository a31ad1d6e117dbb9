// inotify_init, inotify_add_watch, inotify_rm_watch.
#include "sentry/fs/inotify/inotify.h"

#include "sentry/syscalls/file_util.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

Result<uint64_t> Init(Task& t, uint32_t flags) {
  if ((flags & ~uint32_t{IN_CLOEXEC | IN_NONBLOCK}) != 0) return Error(EINVAL);
  base::Ref<InotifyFile> file = TRY(InotifyFile::New(VfsOf(t), flags));
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(file), (flags & IN_CLOEXEC) != 0)));
}

}  // namespace

base::Result<uint64_t> SysInotifyInit(Task& t, const SyscallArgs&) { return Init(t, 0); }

base::Result<uint64_t> SysInotifyInit1(Task& t, const SyscallArgs& args) {
  return Init(t, args.Uint(0));
}

base::Result<uint64_t> SysInotifyAddWatch(Task& t, const SyscallArgs& args) {
  const uint32_t mask = args.Uint(2);
  // Any bit that means something will do (ALL_INOTIFY_BITS).
  constexpr uint32_t kBits = IN_ALL_EVENTS | IN_UNMOUNT | IN_Q_OVERFLOW | IN_IGNORED | IN_ONLYDIR |
                             IN_DONT_FOLLOW | IN_EXCL_UNLINK | IN_MASK_CREATE | IN_MASK_ADD |
                             IN_ISDIR | IN_ONESHOT;
  if ((mask & kBits) == 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  if ((mask & IN_MASK_ADD) != 0 && (mask & IN_MASK_CREATE) != 0) return Error(EINVAL);
  auto* inotify = dynamic_cast<InotifyFile*>(file.get());
  if (inotify == nullptr) return Error(EINVAL);
  const Path path = TRY(
      WalkArg(t, AT_FDCWD, args[1],
              {.follow_last = (mask & IN_DONT_FOLLOW) == 0, .need_dir = (mask & IN_ONLYDIR) != 0}));
  TRY(path.dentry->inode_ptr()->CheckPermission(t.creds(), kMayRead));
  return static_cast<uint64_t>(TRY(inotify->AddWatch(path.dentry->inode(), mask)));
}

base::Result<uint64_t> SysInotifyRmWatch(Task& t, const SyscallArgs& args) {
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, args.Int(0)));
  auto* inotify = dynamic_cast<InotifyFile*>(file.get());
  if (inotify == nullptr) return Error(EINVAL);
  TRY(inotify->RemoveWatch(args.Int(1)));
  return uint64_t{0};
}

}  // namespace sentry
