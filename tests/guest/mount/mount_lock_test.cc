// What a less privileged mount namespace may not undo: mounts that stand on others, and their
// flags.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "mount_util.h"

namespace {

// Runs `body` with a copy of the mounts in a user namespace of its own; what WithMounts has made is
// in it.
int LessPrivileged(const std::function<void()>& body) {
  return ExitStatus([&] {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return 95;
    WriteFile("/proc/self/setgroups", "deny");
    WriteFile("/proc/self/uid_map", "0 0 1");
    WriteFile("/proc/self/gid_map", "0 0 1");
    body();
    return ::testing::Test::HasFailure() ? 1 : 0;
  });
}

// a has a file under a mount on a/d, and b is read-only, without devices and so on.
void Prepare() {
  ASSERT_OK(Tmpfs("a"));
  Mkdirs({"a/d", "a/e"});
  WriteFile("a/d/secret", "x");
  ASSERT_OK(Tmpfs("a/d"));
  WriteFile("a/d/public", "x");
  ASSERT_OK(Tmpfs("b"));
  ASSERT_OK(mount(nullptr, "b", nullptr,
                  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC | MS_NOATIME,
                  nullptr));
}
bool Hidden(const std::string& in) { return access((in + "/secret").c_str(), F_OK) != 0; }

TEST(MountLock, WhatIsCoveredStaysCovered) {
  EXPECT_EQ(0, WithMounts([] {
              Prepare();
              EXPECT_EQ(0, LessPrivileged([] {
                          EXPECT_ERRNO(umount("a/d"), EINVAL);
                          EXPECT_ERRNO(umount2("a/d", MNT_DETACH), EINVAL);
                          EXPECT_ERRNO(mount("a/d", "c", nullptr, MS_MOVE, nullptr), EINVAL);
                          EXPECT_TRUE(Hidden("a/d"));
                          // Neither by a copy without it, nor by one of the place alone.
                          EXPECT_ERRNO(Bind("a", "c"), EINVAL);
                          EXPECT_OK(Bind("a/e", "c"));
                          EXPECT_OK(umount("c"));
                          EXPECT_OK(Bind("a", "c", MS_REC));
                          EXPECT_TRUE(Hidden("c/d"));
                          EXPECT_ERRNO(umount("c/d"), EINVAL);
                          EXPECT_OK(umount2("c", MNT_DETACH));
                          // What one mounts oneself goes.
                          EXPECT_OK(Tmpfs("a/d"));
                          EXPECT_OK(umount("a/d"));
                          EXPECT_OK(Bind("a/d", "c"));
                          EXPECT_OK(umount("c"));
                        }));
              // Who made them may.
              EXPECT_OK(umount("a/d"));
              EXPECT_FALSE(Hidden("a/d"));
            }));
}

TEST(MountLock, ADetachedTreeStaysTogether) {
  EXPECT_EQ(0, WithMounts([] {
              Prepare();
              EXPECT_EQ(0, LessPrivileged([] {
                          ASSERT_OK(Bind("a", "c", MS_REC));
                          const int dir = open("c", O_PATH | O_DIRECTORY);
                          ASSERT_OK(dir);
                          ASSERT_OK(umount2("c", MNT_DETACH));
                          EXPECT_ERRNO(faccessat(dir, "d/secret", F_OK, 0), ENOENT);
                          EXPECT_OK(faccessat(dir, "d/public", F_OK, 0));
                          close(dir);
                          // The same with the end of a namespace.
                          const int old = open("a", O_PATH | O_DIRECTORY);
                          ASSERT_OK(unshare(CLONE_NEWNS));
                          EXPECT_ERRNO(faccessat(old, "d/secret", F_OK, 0), ENOENT);
                          EXPECT_OK(faccessat(old, "d/public", F_OK, 0));
                          EXPECT_ERRNO(umount("a/d"), EINVAL);
                          close(old);
                        }));
            }));
}

TEST(MountLock, FlagsStay) {
  EXPECT_EQ(
      0, WithMounts([] {
        Prepare();
        EXPECT_EQ(
            0, LessPrivileged([] {
              const unsigned long all =
                  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC | MS_NOATIME;
              auto remount = [](unsigned long flags) {
                return mount(nullptr, "b", nullptr, flags, nullptr);
              };
              EXPECT_OK(remount(all));
              for (unsigned long one : {MS_RDONLY, MS_NODEV, MS_NOSUID, MS_NOEXEC}) {
                EXPECT_ERRNO(remount(all & ~one), EPERM);
              }
              EXPECT_ERRNO(remount((all & ~MS_NOATIME) | MS_RELATIME), EPERM);
              EXPECT_ERRNO(remount((all & ~MS_NOATIME) | MS_STRICTATIME), EPERM);
              EXPECT_OK(remount(all & ~MS_NOATIME));  // says nothing of it
              EXPECT_ERRNO(remount(all & ~MS_BIND), EPERM);
              EXPECT_EQ("ro,nosuid,nodev,noexec,noatime", OptionsOf("b"));
              // More is allowed; a copy is bound as well.
              EXPECT_OK(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_BIND | MS_NOEXEC, nullptr));
              EXPECT_OK(mount(nullptr, "a", nullptr, MS_REMOUNT | MS_BIND, nullptr));
              ASSERT_OK(Bind("b", "c"));
              EXPECT_ERRNO(mount(nullptr, "c", nullptr, MS_REMOUNT | MS_BIND, nullptr), EPERM);
            }));
      }));
}

TEST(MountLock, WhatComesByPropagationIsLocked) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              int go[2], done[2];
              ASSERT_OK(pipe(go));
              ASSERT_OK(pipe(done));
              const pid_t pid = fork();
              if (pid == 0) {
                _exit(LessPrivileged([&] {
                  char c = 0;
                  EXPECT_EQ(1, write(done[1], &c, 1));
                  EXPECT_EQ(1, read(go[0], &c, 1));
                  EXPECT_TRUE(Mounted("a/x"));
                  // The top of what came may go; what stands on it may not.
                  EXPECT_ERRNO(umount("a/x/y"), EINVAL);
                  EXPECT_ERRNO(mount(nullptr, "a/x", nullptr, MS_REMOUNT | MS_BIND, nullptr),
                               EPERM);
                  EXPECT_OK(umount2("a/x", MNT_DETACH));
                }));
              }
              char c = 0;
              EXPECT_EQ(1, read(done[0], &c, 1));
              ASSERT_OK(Tmpfs("c"));
              Mkdirs({"c/y"});
              ASSERT_OK(Tmpfs("c/y"));
              ASSERT_OK(mount(nullptr, "c", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr));
              ASSERT_OK(Bind("c", "a/x", MS_REC));
              EXPECT_EQ(1, write(go[1], &c, 1));
              int status = -1;
              EXPECT_EQ(pid, waitpid(pid, &status, 0));
              EXPECT_EQ(0, status);
            }));
}

TEST(MountLock, ProcShowsNothingThatIsHidden) {
  EXPECT_EQ(0, WithMounts([] {
              for (const char* covered : {"/proc/sys", "/proc/keys"}) umount2(covered, MNT_DETACH);
              auto in_pid_namespace = [](int expected) {
                return LessPrivileged([expected] {
                  EXPECT_EQ(0, ExitStatus([expected] {
                              if (unshare(CLONE_NEWPID) != 0) return 94;
                              return ExitStatus([expected] {
                                const int r = mount("proc", "c", "proc", 0, nullptr);
                                return (r == 0 ? 0 : errno) == expected ? 0 : 1;
                              });
                            }));
                });
              };
              EXPECT_EQ(0, in_pid_namespace(0));
              ASSERT_OK(mount("/dev/null", "/proc/version", nullptr, MS_BIND, nullptr));
              EXPECT_EQ(0, in_pid_namespace(EPERM));
            }));
}

TEST(MountLock, NothingStandsOnLinksToFiles) {
  EXPECT_EQ(0, WithMounts([] {
              WriteFile("f", "x");
              const int tree =
                  static_cast<int>(syscall(SYS_open_tree, AT_FDCWD, "f", 1 /* OPEN_TREE_CLONE */));
              ASSERT_OK(tree);
              const int fd = open("f", O_RDONLY);
              const std::string link = "/proc/self/fd/" + std::to_string(fd);
              EXPECT_ERRNO(syscall(SYS_move_mount, tree, "", AT_FDCWD, link.c_str(),
                                   4 /* MOVE_MOUNT_F_EMPTY_PATH */),
                           ENOENT);
              const std::string info = "/proc/self/fdinfo/" + std::to_string(fd);
              EXPECT_ERRNO(mount("f", info.c_str(), nullptr, MS_BIND, nullptr), ENOENT);
              // Through the link it is the file.
              EXPECT_OK(mount("f", link.c_str(), nullptr, MS_BIND, nullptr));
            }));
}

}  // namespace
