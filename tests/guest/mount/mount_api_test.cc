// open_tree, move_mount, mount_setattr, fsopen and its kin, statmount, listmount.
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <vector>

#include "mount_util.h"

namespace {

#ifndef MOVE_MOUNT_BENEATH
#define MOVE_MOUNT_BENEATH 0x200
#endif
constexpr unsigned kClone = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
constexpr int kOpenTreeAttr = 467, kStatmount = 457, kListmount = 458;
constexpr int kCreateExclusive = 8;

int OpenTree(int dir, const char* path, unsigned flags) {
  return static_cast<int>(syscall(SYS_open_tree, dir, path, flags));
}
int MoveMount(int from, const char* from_path, int to, const char* to_path, unsigned flags) {
  return static_cast<int>(syscall(SYS_move_mount, from, from_path, to, to_path, flags));
}
int Place(int tree, const char* where) {
  return MoveMount(tree, "", AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH);
}
int SetAttr(const char* path, unsigned flags, mount_attr attr) {
  return static_cast<int>(syscall(SYS_mount_setattr, AT_FDCWD, path, flags, &attr, sizeof(attr)));
}
int Fsopen(const char* type, unsigned flags = 0) {
  return static_cast<int>(syscall(SYS_fsopen, type, flags));
}
int Fsconfig(int fd, unsigned command, const char* key, const void* value, int aux = 0) {
  return static_cast<int>(syscall(SYS_fsconfig, fd, command, key, value, aux));
}
int Fsmount(int fd, unsigned flags = 0, unsigned attr = 0) {
  return static_cast<int>(syscall(SYS_fsmount, fd, flags, attr));
}
int Fspick(const char* path, unsigned flags = 0) {
  return static_cast<int>(syscall(SYS_fspick, AT_FDCWD, path, flags));
}
std::string Message(int fd) {
  char text[256];
  const ssize_t n = read(fd, text, sizeof(text));
  return n < 0 ? "" : std::string(text, static_cast<size_t>(n));
}
bool Has(const std::string& options, const std::string& word) {
  return ("," + options + ",").find("," + word + ",") != std::string::npos;
}

TEST(OpenTree, Errors) {
  EXPECT_EQ(0, WithMounts([] {
              EXPECT_ERRNO(OpenTree(AT_FDCWD, "a", 1u << 30), EINVAL);
              EXPECT_ERRNO(OpenTree(AT_FDCWD, "a", AT_RECURSIVE), EINVAL);
              EXPECT_ERRNO(OpenTree(AT_FDCWD, "none", kClone), ENOENT);
              EXPECT_ERRNO(OpenTree(AT_FDCWD, "", kClone), ENOENT);
              EXPECT_ERRNO(OpenTree(999, "x", 0), EBADF);
              EXPECT_ERRNO(OpenTree(AT_FDCWD, reinterpret_cast<char*>(0x10), 0), EFAULT);
              EXPECT_EQ(0, ExitStatus([] {
                          if (setresuid(1000, 1000, 1000) != 0) return 1;
                          if (OpenTree(AT_FDCWD, "none", kClone) != -1 || errno != EPERM) return 2;
                          return OpenTree(AT_FDCWD, "/tmp", 0) >= 0 ? 0 : 3;
                        }));
            }));
}

TEST(OpenTree, WithoutCloneIsPath) {
  EXPECT_EQ(0, WithMounts([] {
              WriteFile("a/f", "x");
              const int fd = OpenTree(AT_FDCWD, "a", OPEN_TREE_CLOEXEC);
              ASSERT_OK(fd);
              EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
              EXPECT_EQ(O_PATH, fcntl(fd, F_GETFL) & O_PATH);
              char c;
              EXPECT_ERRNO(read(fd, &c, 1), EBADF);
              EXPECT_OK(faccessat(fd, "f", F_OK, 0));
              EXPECT_EQ(0, fcntl(OpenTree(fd, "", AT_EMPTY_PATH), F_GETFD));
            }));
}

TEST(OpenTree, CloneIsDetached) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              Mkdirs({"a/x"});
              ASSERT_OK(Tmpfs("a/x"));
              WriteFile("a/x/f", "deep");
              const int one = OpenTree(AT_FDCWD, "a", kClone);
              const int all = OpenTree(AT_FDCWD, "a", kClone | AT_RECURSIVE);
              ASSERT_OK(one);
              ASSERT_OK(all);
              EXPECT_ERRNO(faccessat(one, "x/f", F_OK, 0), ENOENT);
              EXPECT_OK(faccessat(all, "x/f", F_OK, 0));
              // Of such a tree ".." leads nowhere else.
              EXPECT_OK(faccessat(all, "../x/f", F_OK, 0));
              EXPECT_ERRNO(MoveMount(one, "", AT_FDCWD, "b", 0), ENOENT);
              EXPECT_ERRNO(MoveMount(all, "x", AT_FDCWD, "b", 0), EINVAL);
              ASSERT_OK(Place(all, "b"));
              EXPECT_EQ("deep", ReadFile("b/x/f"));
              EXPECT_TRUE(Mounted("b/x"));
              close(all);
              EXPECT_TRUE(Mounted("b/x"));
              // What is placed can be placed elsewhere: it is as any other mount.
              close(one);
              ASSERT_OK(umount("a/x"));
              ASSERT_OK(umount("a"));
            }));
}

TEST(OpenTree, OneThatIsClosedIsGone) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              const int fd = OpenTree(AT_FDCWD, "a", kClone);
              ASSERT_OK(fd);
              const int below = openat(fd, ".", O_RDONLY | O_DIRECTORY);
              ASSERT_OK(below);
              close(fd);
              EXPECT_ERRNO(Place(below, "b"), EINVAL);
              EXPECT_ERRNO(OpenTree(below, "", AT_EMPTY_PATH | kClone), EINVAL);
            }));
}

TEST(OpenTree, SharesAsABind) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              const int fd = OpenTree(AT_FDCWD, "a", kClone);
              ASSERT_OK(fd);
              ASSERT_OK(Tmpfs("a/x"));  // does not come to what is detached
              ASSERT_OK(Place(fd, "b"));
              EXPECT_EQ(Part("a", "shared:"), Part("b", "shared:"));
              EXPECT_FALSE(Mounted("b/x"));
              ASSERT_OK(umount("a/x"));
              ASSERT_OK(Tmpfs("b/x"));
              EXPECT_TRUE(Mounted("a/x"));
              ASSERT_OK(Tmpfs("c"));
              ASSERT_OK(Type("c", MS_UNBINDABLE));
              EXPECT_ERRNO(OpenTree(AT_FDCWD, "c", kClone), EINVAL);
            }));
}

TEST(OpenTree, Attr) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              mount_attr attr{.attr_set = MOUNT_ATTR_NOEXEC};
              const int fd = static_cast<int>(
                  syscall(kOpenTreeAttr, AT_FDCWD, "a", kClone, &attr, sizeof(attr)));
              if (fd < 0 && errno == ENOSYS) return;
              ASSERT_OK(fd);
              ASSERT_OK(Place(fd, "b"));
              EXPECT_TRUE(Has(OptionsOf("b"), "noexec"));
              EXPECT_FALSE(Has(OptionsOf("a"), "noexec"));
              EXPECT_ERRNO(syscall(kOpenTreeAttr, AT_FDCWD, "a", kClone, nullptr, 8), EINVAL);
              EXPECT_ERRNO(syscall(kOpenTreeAttr, AT_FDCWD, "a", kClone, &attr, 8), EINVAL);
              EXPECT_OK(syscall(kOpenTreeAttr, AT_FDCWD, "a", kClone, nullptr, 0));
            }));
}

TEST(MoveMount, MovesAsMount) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              WriteFile("a/f", "1");
              ASSERT_OK(MoveMount(AT_FDCWD, "a", AT_FDCWD, "b", 0));
              EXPECT_TRUE(Mounted("b"));
              EXPECT_FALSE(Mounted("a"));
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "a", AT_FDCWD, "c", 0), EINVAL);  // no mount
              Mkdirs({"b/x"});
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "b/x", 0), ELOOP);
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "b/f", 0), EINVAL);
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "none", 0), ENOENT);
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "c", 1u << 20), EINVAL);
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "c",
                                     MOVE_MOUNT_BENEATH | MOVE_MOUNT_SET_GROUP),
                           EINVAL);
              ASSERT_OK(symlink("c", "link"));
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "link", 0), EINVAL);
              ASSERT_OK(MoveMount(AT_FDCWD, "b", AT_FDCWD, "link", MOVE_MOUNT_T_SYMLINKS));
              EXPECT_TRUE(Mounted("c"));
            }));
}

TEST(MoveMount, Beneath) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              WriteFile("a/top", "1");
              ASSERT_OK(Tmpfs("b"));
              WriteFile("b/under", "1");
              EXPECT_ERRNO(MoveMount(AT_FDCWD, "b", AT_FDCWD, "c", MOVE_MOUNT_BENEATH), EINVAL);
              ASSERT_OK(MoveMount(AT_FDCWD, "b", AT_FDCWD, "a", MOVE_MOUNT_BENEATH));
              EXPECT_OK(access("a/top", F_OK));
              EXPECT_FALSE(Mounted("b"));
              ASSERT_OK(umount("a"));
              EXPECT_OK(access("a/under", F_OK));
              ASSERT_OK(umount("a"));
              EXPECT_FALSE(Mounted("a"));
            }));
}

TEST(MoveMount, SetGroup) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              Mkdirs({"a/x"});
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Bind("a/x", "c"));
              auto set = [](const char* from, const char* to) {
                return MoveMount(AT_FDCWD, from, AT_FDCWD, to, MOVE_MOUNT_SET_GROUP);
              };
              EXPECT_ERRNO(set("a", "b"), EINVAL);  // it shares nothing
              ASSERT_OK(Type("a", MS_SHARED));
              ASSERT_OK(set("a", "b"));
              EXPECT_EQ(Part("a", "shared:"), Part("b", "shared:"));
              EXPECT_ERRNO(set("a", "b"), EINVAL);  // it shares already
              ASSERT_OK(set("a", "c"));
              EXPECT_EQ(Part("a", "shared:"), Part("c", "shared:"));
              ASSERT_OK(umount("b"));
              ASSERT_OK(Tmpfs("b"));
              EXPECT_ERRNO(set("a", "b"), EINVAL);  // another filesystem
            }));
}

TEST(MountSetattr, Flags) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              Mkdirs({"a/x"});
              ASSERT_OK(Tmpfs("a/x"));
              ASSERT_OK(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID}));
              EXPECT_EQ("rw,nosuid,nodev,relatime", OptionsOf("a"));
              EXPECT_EQ("rw,relatime", OptionsOf("a/x"));
              ASSERT_OK(SetAttr("a", AT_RECURSIVE,
                                {.attr_set = MOUNT_ATTR_NOATIME | MOUNT_ATTR_RDONLY,
                                 .attr_clr = MOUNT_ATTR__ATIME | MOUNT_ATTR_NOSUID}));
              EXPECT_EQ("ro,nodev,noatime", OptionsOf("a"));
              EXPECT_EQ("ro,noatime", OptionsOf("a/x"));
              EXPECT_ERRNO(mkdir("a/x/y", 0755), EROFS);
              ASSERT_OK(SetAttr("a", AT_RECURSIVE,
                                {.attr_set = MOUNT_ATTR_STRICTATIME,
                                 .attr_clr = MOUNT_ATTR__ATIME | MOUNT_ATTR_RDONLY}));
              EXPECT_EQ("rw", OptionsOf("a/x"));
              ASSERT_OK(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_NOSYMFOLLOW}));
              EXPECT_EQ("rw,nodev,nosymfollow", OptionsOf("a"));
              ASSERT_OK(SetAttr("a", 0, {.propagation = MS_SHARED}));
              EXPECT_NE("", Part("a", "shared:"));
              EXPECT_EQ("", Part("a/x", "shared:"));
              ASSERT_OK(SetAttr("a", AT_RECURSIVE, {.propagation = MS_UNBINDABLE}));
              EXPECT_EQ("unbindable", Fields("a/x"));
            }));
}

TEST(MountSetattr, Errors) {
  EXPECT_EQ(
      0, WithMounts([] {
        ASSERT_OK(Tmpfs("a"));
        Mkdirs({"a/x"});
        const mount_attr nosuid{.attr_set = MOUNT_ATTR_NOSUID};
        EXPECT_ERRNO(SetAttr("a", 0x40, nosuid), EINVAL);
        EXPECT_ERRNO(SetAttr("a/x", 0, nosuid), EINVAL);  // no mount
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_set = 1u << 9}), EINVAL);
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_NOATIME}), EINVAL);
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_clr = MOUNT_ATTR_NOATIME}), EINVAL);
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_set = 0x30, .attr_clr = MOUNT_ATTR__ATIME}), EINVAL);
        EXPECT_ERRNO(SetAttr("a", 0, {.propagation = MS_SHARED | MS_SLAVE}), EINVAL);
        EXPECT_ERRNO(SetAttr("a", 0, {.propagation = MS_RDONLY}), EINVAL);
        EXPECT_ERRNO(SetAttr("none", 0, nosuid), ENOENT);
        EXPECT_OK(SetAttr("none", 0, {}));  // nothing to do
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = 999}), EBADF);
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_clr = MOUNT_ATTR_IDMAP}), EINVAL);
        struct {
          mount_attr known;
          uint64_t more;
        } large{nosuid, 1};
        auto call = [&](size_t size) {
          return syscall(SYS_mount_setattr, AT_FDCWD, "a", 0, &large, size);
        };
        EXPECT_ERRNO(call(8), EINVAL);
        EXPECT_ERRNO(call(5000), E2BIG);
        EXPECT_ERRNO(call(sizeof(large)), E2BIG);
        large.more = 0;
        EXPECT_OK(call(sizeof(large)));
        EXPECT_ERRNO(syscall(SYS_mount_setattr, AT_FDCWD, "a", 0, BadAddress(), sizeof(mount_attr)),
                     EFAULT);
        // A file that is open for writing.
        const int fd = open("a/f", O_WRONLY | O_CREAT, 0644);
        ASSERT_OK(fd);
        EXPECT_ERRNO(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_RDONLY}), EBUSY);
        EXPECT_ERRNO(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr),
                     EBUSY);
        EXPECT_ERRNO(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_RDONLY, nullptr), EBUSY);
        EXPECT_OK(write(fd, "x", 1));
        close(fd);
        EXPECT_OK(SetAttr("a", 0, {.attr_set = MOUNT_ATTR_RDONLY}));
      }));
}

TEST(MountSetattr, OfADetachedTree) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              const int fd = OpenTree(AT_FDCWD, "a", kClone);
              ASSERT_OK(fd);
              mount_attr attr{.attr_set = MOUNT_ATTR_RDONLY};
              ASSERT_OK(syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
              EXPECT_ERRNO(mkdirat(fd, "x", 0755), EROFS);
              EXPECT_OK(mkdir("a/x", 0755));
              ASSERT_OK(Place(fd, "b"));
              EXPECT_EQ("ro,relatime", OptionsOf("b"));
            }));
}

TEST(Fsopen, MakesATmpfs) {
  EXPECT_EQ(0, WithMounts([] {
              const int fs = Fsopen("tmpfs", 1 /* FSOPEN_CLOEXEC */);
              ASSERT_OK(fs);
              EXPECT_EQ(FD_CLOEXEC, fcntl(fs, F_GETFD));
              EXPECT_ERRNO(Fsmount(fs), EINVAL);  // nothing made yet
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_STRING, "source", "mine"));
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_STRING, "size", "1M"));
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0700"));
              ASSERT_OK(Fsconfig(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr));
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr), EBUSY);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, "size", "1M"), EBUSY);
              const int tree = Fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME);
              ASSERT_OK(tree);
              EXPECT_EQ(FD_CLOEXEC, fcntl(tree, F_GETFD));
              EXPECT_ERRNO(Fsmount(fs), EBUSY);
              EXPECT_OK(mkdirat(tree, "made", 0755));
              ASSERT_OK(Place(tree, "a"));
              EXPECT_EQ("rw,nodev,noatime", OptionsOf("a"));
              EXPECT_NE(std::string::npos, MountLine("a").find(" - tmpfs mine rw"));
              EXPECT_OK(access("a/made", F_OK));
              struct stat st;
              ASSERT_OK(stat("a", &st));
              EXPECT_EQ(0700u, st.st_mode & 07777);
              struct statfs sf;
              ASSERT_OK(statfs("a", &sf));
              EXPECT_EQ(256u, sf.f_blocks);
              // The context is that of the filesystem from now on, to be configured anew.
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_STRING, "size", "2M"));
              ASSERT_OK(Fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr));
              ASSERT_OK(statfs("a", &sf));
              EXPECT_EQ(512u, sf.f_blocks);
              // It holds the filesystem, not the mount.
              close(tree);
              EXPECT_OK(umount("a"));
            }));
}

TEST(Fsopen, Errors) {
  EXPECT_EQ(0, WithMounts([] {
              EXPECT_ERRNO(Fsopen("nonsense"), ENODEV);
              EXPECT_ERRNO(Fsopen("nonsense", 2), EINVAL);
              EXPECT_ERRNO(Fsopen(BadAddress()), EFAULT);
              const int fs = Fsopen("tmpfs");
              ASSERT_OK(fs);
              EXPECT_EQ(0, fcntl(fs, F_GETFD));
              EXPECT_EQ("", Message(fs));
              EXPECT_EQ(ENODATA, errno);
              EXPECT_ERRNO(Fsconfig(-1, FSCONFIG_SET_FLAG, "ro", nullptr), EINVAL);
              EXPECT_ERRNO(Fsconfig(999, FSCONFIG_SET_FLAG, "ro", nullptr), EBADF);
              EXPECT_ERRNO(Fsconfig(0, FSCONFIG_SET_FLAG, "ro", nullptr), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, 77, "ro", nullptr), EOPNOTSUPP);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FLAG, nullptr, nullptr), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FLAG, "ro", "x"), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FLAG, "ro", nullptr, 1), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, "size", nullptr), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_BINARY, "size", "x", 0), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FD, "size", nullptr, 999), EBADF);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FD, "size", nullptr, -1), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_PATH, "size", "", AT_FDCWD), ENOENT);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_CMD_CREATE, "x", nullptr), EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr), EBUSY);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, std::string(300, 'k').c_str(), "x"),
                           EINVAL);
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, "nonsense", "x"), EINVAL);
              EXPECT_EQ("e tmpfs: Unknown parameter 'nonsense'\n", Message(fs));
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, "size", "x"), EINVAL);
              EXPECT_EQ("e tmpfs: Bad value for 'size'\n", Message(fs));
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_FLAG, "size", nullptr), EINVAL);
              char small[4];
              EXPECT_ERRNO(read(fs, small, sizeof(small)), EMSGSIZE);
              Message(fs);  // still there, before Linux 6.17 gone
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_STRING, "source", "one"));
              EXPECT_ERRNO(Fsconfig(fs, FSCONFIG_SET_STRING, "source", "two"), EINVAL);
              EXPECT_ERRNO(Fsmount(fs, 2), EINVAL);
              EXPECT_ERRNO(Fsmount(fs, 0, 0x30), EINVAL);
              EXPECT_ERRNO(Fsmount(fs, 0, MOUNT_ATTR_IDMAP), EINVAL);
              EXPECT_ERRNO(Fsmount(999), EBADF);
              EXPECT_ERRNO(Fsmount(0), EINVAL);
              EXPECT_EQ(0, ExitStatus([] {
                          if (setresuid(1000, 1000, 1000) != 0) return 1;
                          return Fsopen("nonsense", 99) == -1 && errno == EPERM ? 0 : 2;
                        }));
            }));
}

TEST(Fsopen, ReadOnly) {
  EXPECT_EQ(0, WithMounts([] {
              const int fs = Fsopen("tmpfs");
              ASSERT_OK(Fsconfig(fs, FSCONFIG_SET_FLAG, "ro", nullptr));
              if (Fsconfig(fs, kCreateExclusive, nullptr, nullptr) != 0) {
                ASSERT_OK(Fsconfig(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr));
              }
              const int tree = Fsmount(fs);
              ASSERT_OK(tree);
              EXPECT_ERRNO(mkdirat(tree, "x", 0755), EROFS);
              ASSERT_OK(Place(tree, "a"));
              EXPECT_EQ("rw,relatime", OptionsOf("a"));  // it is the filesystem's
              EXPECT_NE(std::string::npos, MountLine("a").find(" - tmpfs none ro"));
              EXPECT_NE(std::string::npos, ReadFile("/proc/mounts").find("none /tmp/a tmpfs ro,"));
              ASSERT_OK(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_BIND, nullptr));
              EXPECT_ERRNO(mkdir("a/x", 0755), EROFS);
              const int picked = Fspick("a", FSPICK_CLOEXEC);
              ASSERT_OK(picked);
              EXPECT_EQ(FD_CLOEXEC, fcntl(picked, F_GETFD));
              EXPECT_ERRNO(Fsmount(picked), EBUSY);
              EXPECT_ERRNO(Fsconfig(picked, FSCONFIG_CMD_CREATE, nullptr, nullptr), EBUSY);
              ASSERT_OK(Fsconfig(picked, FSCONFIG_SET_FLAG, "rw", nullptr));
              ASSERT_OK(Fsconfig(picked, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr));
              EXPECT_OK(mkdir("a/x", 0755));
              // Of one mount, it was said for both.
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_RDONLY, nullptr));
              EXPECT_ERRNO(mkdir("b/y", 0755), EROFS);
              EXPECT_EQ("rw,relatime", OptionsOf("b"));
              EXPECT_ERRNO(Fspick("a/x"), EINVAL);
              EXPECT_ERRNO(Fspick("none"), ENOENT);
              EXPECT_ERRNO(Fspick("a", 1u << 10), EINVAL);
            }));
}

struct Request {
  uint32_t size = 32, spare = 0;
  uint64_t id = 0, param = 0, ns = 0;
};
struct Stat {
  uint32_t size, mnt_opts;
  uint64_t mask;
  uint32_t major, minor;
  uint64_t magic;
  uint32_t sb_flags, fs_type;
  uint64_t id, parent;
  uint32_t old_id, old_parent;
  uint64_t attr, propagation, peer_group, master, from;
  uint32_t root, point;
  uint64_t ns;
  uint32_t subtype, source;
  uint64_t more[48];
  char text[4096];
};
constexpr uint64_t kNoId = ~uint64_t{0};

uint64_t UniqueId(const char* path) {
  struct statx st;
  EXPECT_OK(statx(AT_FDCWD, path, 0, 0x4000 /* STATX_MNT_ID_UNIQUE */, &st));
  EXPECT_NE(0u, st.stx_mask & 0x4000);
  return *reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(&st) + 144);  // stx_mnt_id
}
int Statmount(const Request& r, Stat* out, size_t size = sizeof(Stat)) {
  return static_cast<int>(syscall(kStatmount, &r, out, size, 0));
}
std::vector<uint64_t> Listmount(Request r, unsigned flags = 0, size_t room = 1000) {
  std::vector<uint64_t> ids(room);
  const long n = syscall(kListmount, &r, ids.data(), ids.size(), flags);
  EXPECT_OK(n);
  ids.resize(n < 0 ? 0 : static_cast<size_t>(n));
  return ids;
}
bool HasStatmount() {
  Request r;
  return syscall(kStatmount, &r, nullptr, 0, 0) != -1 || errno != ENOSYS;
}

TEST(Statmount, Fields) {
  if (!HasStatmount()) GTEST_SKIP() << "the host has no statmount";
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(mount("mine", "a", "tmpfs", MS_NOSUID | MS_NOATIME, "size=1M"));
              Mkdirs({"a/x"});
              ASSERT_OK(Type("a", MS_SHARED));
              ASSERT_OK(Bind("a/x", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              Stat s{};
              ASSERT_OK(Statmount({.id = UniqueId("b"), .param = 0x27f}, &s));
              EXPECT_EQ(0x27fu, s.mask);
              EXPECT_EQ(static_cast<uint64_t>(TMPFS_MAGIC), s.magic);
              struct stat st;
              ASSERT_OK(stat("a", &st));
              EXPECT_EQ(st.st_dev, makedev(s.major, s.minor));
              EXPECT_EQ(UniqueId("b"), s.id);
              EXPECT_EQ(UniqueId("."), s.parent);
              EXPECT_EQ(std::to_string(s.old_id) + " " + std::to_string(s.old_parent),
                        MountLine("b").substr(0, MountLine("b").find(" 0:")));
              EXPECT_EQ(uint64_t{MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOATIME}, s.attr);
              EXPECT_EQ(uint64_t{MS_SLAVE}, s.propagation);
              EXPECT_EQ(0u, s.peer_group);
              EXPECT_EQ(Part("a", "shared:"), std::to_string(s.master));
              EXPECT_STREQ("/x", s.text + s.root);
              EXPECT_STREQ("/tmp/b", s.text + s.point);
              EXPECT_STREQ("tmpfs", s.text + s.fs_type);
              EXPECT_STREQ("mine", s.text + s.source);
              EXPECT_NE(0u, s.ns);
              // By the namespace's number too.
              Stat again{};
              ASSERT_OK(Statmount({.id = s.id, .param = 2, .ns = s.ns}, &again));
              EXPECT_EQ(2u, again.mask);
              EXPECT_EQ(512u, again.size);
              ASSERT_OK(Statmount({.id = UniqueId("a"), .param = 0x82}, &s));
              EXPECT_EQ(uint64_t{MS_SHARED}, s.propagation);
              EXPECT_NE(nullptr, strstr(s.text + s.mnt_opts, "size=1024k")) << s.text + s.mnt_opts;
            }));
}

TEST(Statmount, Errors) {
  if (!HasStatmount()) GTEST_SKIP() << "the host has no statmount";
  EXPECT_EQ(0, WithMounts([] {
              Stat s{};
              const uint64_t id = UniqueId(".");
              EXPECT_ERRNO(syscall(kStatmount, BadAddress(), &s, sizeof(s), 0), EFAULT);
              EXPECT_ERRNO(syscall(kStatmount, BadAddress(), &s, sizeof(s), 1u << 20), EINVAL);
              EXPECT_ERRNO(Statmount({.size = 8, .id = id}, &s), EINVAL);
              EXPECT_ERRNO(Statmount({.size = 5000, .id = id}, &s), E2BIG);
              EXPECT_ERRNO(Statmount({.id = 1}, &s), EINVAL);
              EXPECT_ERRNO(Statmount({.id = id + 100000}, &s), ENOENT);
              EXPECT_ERRNO(Statmount({.id = id, .ns = 1}, &s), ENOENT);
              EXPECT_ERRNO(Statmount({.id = id, .param = 0x20}, &s, 512), EOVERFLOW);
              EXPECT_ERRNO(Statmount({.id = id, .param = 2}, reinterpret_cast<Stat*>(BadAddress())),
                           EFAULT);
              EXPECT_OK(Statmount({.size = 24, .id = id, .param = 2}, &s, 16));
              EXPECT_EQ(16u, s.size);
            }));
}

TEST(Listmount, Below) {
  if (!HasStatmount()) GTEST_SKIP() << "the host has no listmount";
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              Mkdirs({"a/x"});
              ASSERT_OK(Tmpfs("b"));
              ASSERT_OK(Tmpfs("a/x"));
              const uint64_t root = UniqueId("."), a = UniqueId("a"), b = UniqueId("b"),
                             x = UniqueId("a/x");
              using Ids = std::vector<uint64_t>;
              EXPECT_EQ((Ids{a, b, x}), Listmount({.id = root}));
              EXPECT_EQ((Ids{x, b, a}), Listmount({.id = root}, 1));
              EXPECT_EQ((Ids{x}), Listmount({.id = a}));
              EXPECT_EQ((Ids{}), Listmount({.id = b}));
              EXPECT_EQ((Ids{a, b}), Listmount({.id = root}, 0, 2));
              EXPECT_EQ((Ids{x}), Listmount({.id = root, .param = b}));
              EXPECT_EQ((Ids{a}), Listmount({.id = root, .param = b}, 1));
              const Ids all = Listmount({.id = kNoId});
              EXPECT_NE(all.end(), std::find(all.begin(), all.end(), root));
              EXPECT_NE(all.end(), std::find(all.begin(), all.end(), x));
              Request r{.id = root};
              uint64_t ids[4];
              EXPECT_ERRNO(syscall(kListmount, &r, ids, 4, 2), EINVAL);
              EXPECT_ERRNO(syscall(kListmount, &r, ids, 1000001, 0), EOVERFLOW);
              EXPECT_ERRNO(syscall(kListmount, &r, BadAddress(), 4, 0), EFAULT);
              r.param = 5;
              EXPECT_ERRNO(syscall(kListmount, &r, ids, 4, 0), EINVAL);
              r = {.id = x + 100000};
              EXPECT_ERRNO(syscall(kListmount, &r, ids, 4, 0), ENOENT);
            }));
}

}  // namespace
