#include "gofer/confine.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/securebits.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000
#endif

namespace gofer {
namespace {

constexpr rlim_t kMaxDescriptors = 1 << 20;

base::UniqueFd OpenTree(int dir, const char* path, unsigned flags) {
  return base::UniqueFd(static_cast<int>(
      syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
}

base::Status SetLimit(int resource, rlim_t soft, rlim_t hard) {
  const rlimit limit = {soft, hard};
  if (setrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) return base::LastError();
  return base::Ok();
}

bool SameFile(int a, int b) {
  struct stat sa, sb;
  return fstat(a, &sa) == 0 && fstat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
         sa.st_ino == sb.st_ino;
}

// A copy of the tree at `fd`. A descriptor from another mount namespace cannot be copied: then what
// stands at its path in this one is, if it is the same file.
base::Result<base::UniqueFd> CloneTree(int fd) {
  base::UniqueFd tree = OpenTree(fd, "", AT_EMPTY_PATH | AT_RECURSIVE);
  if (tree.valid()) return tree;
  if (errno != EINVAL) return base::LastError();
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  char path[PATH_MAX];
  const ssize_t n = readlink(link.c_str(), path, sizeof(path) - 1);
  if (n < 0) return base::LastError();
  path[n] = 0;
  tree = OpenTree(AT_FDCWD, path, AT_RECURSIVE | AT_SYMLINK_NOFOLLOW);
  if (!tree.valid()) return base::LastError();
  if (!SameFile(tree.get(), fd)) return base::Error(ESTALE);
  return tree;
}

base::Status RestrictTree(int tree, bool readonly) {
  mount_attr attr = {};
  attr.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOSYMFOLLOW |
                  (readonly ? MOUNT_ATTR_RDONLY : 0);
  const auto set = [&] {
    return syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr));
  };
  if (set() == 0) return base::Ok();
  attr.attr_set &= ~static_cast<uint64_t>(MOUNT_ATTR_NOSYMFOLLOW);  // since Linux 5.14
  if (set() == 0) return base::Ok();
  return base::LastError();
}

}  // namespace

base::Status LimitProcess(GoferConfig& config, int errors, const char** step) {
  *step = "redirect standard streams";
  {
    const base::UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!null.valid()) return base::LastError();
    if (dup2(null.get(), 0) < 0 || dup2(null.get(), 1) < 0) return base::LastError();
    if (config.log.valid() && config.log.get() != 2 && dup2(config.log.get(), 2) < 0) {
      return base::LastError();
    }
    config.log.reset();
  }
  *step = "close other descriptors";
  std::vector<int> keep = {0, 1, 2, config.connection.get()};
  for (const MountConfig& mount : config.mounts) keep.push_back(mount.fd.get());
  if (errors >= 0) keep.push_back(errors);
  std::sort(keep.begin(), keep.end());
  for (size_t i = 0; i < keep.size(); ++i) {
    const unsigned first = static_cast<unsigned>(keep[i]) + 1;
    const unsigned last = i + 1 < keep.size() ? static_cast<unsigned>(keep[i + 1]) - 1 : UINT_MAX;
    if (first <= last && syscall(SYS_close_range, first, last, 0) != 0) return base::LastError();
  }
  for (int fd : keep) {
    if (fd > 2 && fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return base::LastError();
  }
  *step = "set limits";
  umask(0);
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return base::LastError();
  const rlim_t descriptors = std::min(files.rlim_max, kMaxDescriptors);
  TRY(SetLimit(RLIMIT_NOFILE, descriptors, descriptors));
  TRY(SetLimit(RLIMIT_CORE, 0, 0));
  TRY(SetLimit(RLIMIT_MEMLOCK, 0, 0));
  if (prctl(PR_SET_DUMPABLE, 0) != 0) return base::LastError();
  return base::Ok();
}

base::Result<base::UniqueFd> CloneMounts(GoferConfig& config, const char** step) {
  *step = "copy the container's mounts";
  for (MountConfig& mount : config.mounts) {
    base::UniqueFd tree = TRY(CloneTree(mount.fd.get()));
    TRY(RestrictTree(tree.get(), mount.readonly));
    mount.fd = std::move(tree);
  }
  *step = "copy /proc/self/fd";
  base::UniqueFd proc = OpenTree(AT_FDCWD, "/proc/self/fd", 0);
  if (!proc.valid()) return base::LastError();
  return proc;
}

base::Status EnterEmptyRoot(int proc_fd, const char** step) {
  *step = "make mounts private";
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return base::LastError();
  // Any directory does for a mount point; this one is there, as its files were just used.
  *step = "mount an empty root";
  if (mount("none", "/proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
            "size=4k,nr_inodes=1,mode=555") != 0 ||
      chdir("/proc") != 0) {
    return base::LastError();
  }
  *step = "pivot_root";
  if (syscall(SYS_pivot_root, ".", ".") == 0) {
    if (umount2(".", MNT_DETACH) != 0) return base::LastError();
  } else if (errno == EINVAL) {  // the root is the initial ramfs
    if (mount(".", "/", nullptr, MS_MOVE, nullptr) != 0 || chroot(".") != 0) {
      return base::LastError();
    }
  } else {
    return base::LastError();
  }
  *step = "enter /proc/self/fd";
  if (fchdir(proc_fd) != 0) return base::LastError();
  return base::Ok();
}

base::Status DropCapabilities(bool rootless, const char** step) {
  *step = "drop capabilities";
  uint64_t keep = 0;
  if (!rootless) {
    for (int cap : {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID}) {
      keep |= uint64_t{1} << cap;
    }
  }
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0) return base::LastError();
  for (int cap = 0; cap <= CAP_LAST_CAP; ++cap) {
    // EINVAL: the kernel is older and has no such capability.
    if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0 && errno != EINVAL) return base::LastError();
  }
  if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED |
                                   SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                                   SECBIT_NO_CAP_AMBIENT_RAISE |
                                   SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED) != 0) {
    return base::LastError();
  }
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (syscall(SYS_capget, &header, data) != 0) return base::LastError();
  for (int i = 0; i < 2; ++i) {
    data[i].permitted &= static_cast<uint32_t>(keep >> (32 * i));
    data[i].effective = data[i].permitted;
    data[i].inheritable = 0;
  }
  if (syscall(SYS_capset, &header, data) != 0) return base::LastError();
  *step = "set no_new_privs";
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return base::LastError();
  return base::Ok();
}

}  // namespace gofer
