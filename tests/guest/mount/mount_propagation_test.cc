// Shared, slave, private and unbindable mounts.
#include <sys/mount.h>

#include "mount_util.h"

namespace {

TEST(MountPropagation, Types) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              EXPECT_EQ("", Fields("a"));
              EXPECT_OK(Type("a", MS_SHARED));
              EXPECT_NE("", Part("a", "shared:"));
              EXPECT_OK(Type("a", MS_SLAVE));  // nobody is left to follow
              EXPECT_EQ("", Fields("a"));
              EXPECT_OK(Type("a", MS_UNBINDABLE));
              EXPECT_EQ("unbindable", Fields("a"));
              EXPECT_ERRNO(Bind("a", "b"), EINVAL);
              EXPECT_OK(Type("a", MS_PRIVATE));
              EXPECT_EQ("", Fields("a"));
              EXPECT_ERRNO(Type("a", MS_SHARED | MS_PRIVATE), EINVAL);
              EXPECT_ERRNO(Type("a", MS_SHARED | MS_NOEXEC), EINVAL);
              EXPECT_ERRNO(Type("b", MS_SHARED), EINVAL);  // no mount
            }));
}

TEST(MountPropagation, PeersGetWhatPeersGet) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              ASSERT_OK(Bind("a", "b"));
              EXPECT_EQ(Part("a", "shared:"), Part("b", "shared:"));
              ASSERT_OK(mkdir("a/x", 0755));
              ASSERT_OK(Tmpfs("a/x"));
              EXPECT_TRUE(Mounted("b/x"));
              EXPECT_NE("", Part("a/x", "shared:"));
              EXPECT_EQ(Part("a/x", "shared:"), Part("b/x", "shared:"));
              WriteFile("a/x/f", "hello");
              EXPECT_EQ("hello", ReadFile("b/x/f"));
              ASSERT_OK(umount("b/x"));
              EXPECT_FALSE(Mounted("a/x"));
              EXPECT_FALSE(Mounted("b/x"));
              ASSERT_OK(Type("b", MS_PRIVATE));
              ASSERT_OK(Tmpfs("a/x"));
              EXPECT_FALSE(Mounted("b/x"));
            }));
}

TEST(MountPropagation, SlavesFollow) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              EXPECT_EQ(Part("a", "shared:"), Part("b", "master:"));
              EXPECT_EQ("", Part("b", "shared:"));
              ASSERT_OK(mkdir("a/x", 0755));
              ASSERT_OK(mkdir("a/y", 0755));
              ASSERT_OK(Tmpfs("a/x"));
              EXPECT_TRUE(Mounted("b/x"));
              EXPECT_EQ(Part("a/x", "shared:"), Part("b/x", "master:"));
              ASSERT_OK(Tmpfs("b/y"));
              EXPECT_FALSE(Mounted("a/y"));
              // A slave that shares itself hands on what it gets.
              ASSERT_OK(Type("b", MS_SHARED));
              EXPECT_NE("", Part("b", "shared:"));
              EXPECT_EQ(Part("a", "shared:"), Part("b", "master:"));
              ASSERT_OK(Bind("b", "c"));
              EXPECT_EQ(Fields("b"), Fields("c"));
              ASSERT_OK(umount("a/x"));
              EXPECT_FALSE(Mounted("b/x"));
              ASSERT_OK(Tmpfs("a/x"));
              EXPECT_TRUE(Mounted("b/x"));
              EXPECT_TRUE(Mounted("c/x"));
              EXPECT_EQ(Part("a/x", "shared:"), Part("c/x", "master:"));
              EXPECT_EQ(Part("b/x", "shared:"), Part("c/x", "shared:"));
              // Without its master it follows nobody.
              ASSERT_OK(Type("a", MS_PRIVATE));
              EXPECT_EQ("", Part("b", "master:"));
            }));
}

TEST(MountPropagation, BetweenNamespaces) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              ASSERT_OK(mkdir("a/x", 0755));
              ASSERT_OK(mkdir("a/y", 0755));
              int p[2], q[2];
              ASSERT_OK(pipe(p));
              ASSERT_OK(pipe(q));
              pid_t child = fork();
              if (child == 0) {
                char c;
                if (unshare(CLONE_NEWNS) != 0) _exit(1);
                if (Part("a", "shared:").empty()) _exit(2);
                if (Tmpfs("a/x") != 0) _exit(3);
                write(p[1], "m", 1);
                read(q[0], &c, 1);
                if (!Mounted("a/y")) _exit(4);
                if (Type("a", MS_SLAVE | MS_REC) != 0) _exit(5);
                if (umount("a/x") != 0) _exit(6);
                _exit(0);
              }
              char c;
              EXPECT_EQ(1, read(p[0], &c, 1));
              EXPECT_TRUE(Mounted("a/x"));
              ASSERT_OK(Tmpfs("a/y"));
              write(q[1], "m", 1);
              int status = 0;
              waitpid(child, &status, 0);
              EXPECT_EQ(0, status);
              EXPECT_TRUE(Mounted("a/x"));
              // What was shared with it is shared with nobody more.
              EXPECT_NE("", Part("a", "shared:"));
            }));
}

TEST(MountPropagation, MovesAndTrees) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(mkdir("a/x", 0755));
              ASSERT_OK(Tmpfs("a/x"));
              ASSERT_OK(Type("a", MS_SHARED | MS_REC));
              EXPECT_NE(Part("a", "shared:"), Part("a/x", "shared:"));
              ASSERT_OK(Bind("a", "b", MS_REC));
              EXPECT_EQ(Part("a/x", "shared:"), Part("b/x", "shared:"));
              // From below something shared nothing moves away.
              EXPECT_ERRNO(mount("a/x", "c", nullptr, MS_MOVE, nullptr), EINVAL);
              ASSERT_OK(Tmpfs("c"));
              ASSERT_OK(mkdir("a/m", 0755));
              WriteFile("c/f", "moved");
              ASSERT_OK(mount("c", "a/m", nullptr, MS_MOVE, nullptr));
              EXPECT_EQ("moved", ReadFile("b/m/f"));
              ASSERT_OK(Type("a", MS_UNBINDABLE));
              ASSERT_OK(mkdir("d", 0755));
              ASSERT_OK(Type("a/m", MS_PRIVATE));
              EXPECT_ERRNO(Bind("a", "d"), EINVAL);
            }));
}

// What comes to a place where something is mounted already goes under it.
TEST(MountPropagation, ComesUnderWhatIsThere) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              ASSERT_OK(Tmpfs("b/x"));
              WriteFile("b/x/own", "1");
              ASSERT_OK(Tmpfs("a/x"));
              WriteFile("a/x/came", "1");
              EXPECT_OK(access("b/x/own", F_OK));
              ASSERT_OK(umount("b/x"));
              EXPECT_OK(access("b/x/came", F_OK));
              // And the other way: what stands on it stays when it goes.
              ASSERT_OK(Tmpfs("b/x"));
              WriteFile("b/x/own", "1");
              ASSERT_OK(umount("a/x"));
              EXPECT_OK(access("b/x/own", F_OK));
              ASSERT_OK(umount("b/x"));
              EXPECT_FALSE(Mounted("b/x"));
            }));
}

TEST(MountPropagation, CopiesWithMountsOfTheirOwnStay) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              ASSERT_OK(Tmpfs("a/x"));
              Mkdirs({"a/x/y", "a/x/z"});
              ASSERT_OK(Tmpfs("a/x/z"));
              EXPECT_TRUE(Mounted("b/x/z"));
              ASSERT_OK(Tmpfs("b/x/y"));
              EXPECT_FALSE(Mounted("a/x/y"));
              EXPECT_ERRNO(umount("a/x"), EBUSY);
              ASSERT_OK(umount2("a/x", MNT_DETACH));
              EXPECT_FALSE(Mounted("a/x"));
              EXPECT_TRUE(Mounted("b/x"));
              EXPECT_TRUE(Mounted("b/x/y"));
              EXPECT_FALSE(Mounted("b/x/z"));
              ASSERT_OK(umount("b/x/y"));
              ASSERT_OK(umount("b/x"));
            }));
}

TEST(MountPropagation, CopiesInUse) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Tmpfs("a/x"));
              const int fd = open("b/x", O_RDONLY | O_DIRECTORY);
              ASSERT_OK(fd);
              EXPECT_ERRNO(umount("a/x"), EBUSY);
              EXPECT_TRUE(Mounted("a/x"));
              close(fd);
              ASSERT_OK(umount("a/x"));
              EXPECT_FALSE(Mounted("b/x"));
            }));
}

// Slaves of a slave that does not see the place get what comes there all the same.
TEST(MountPropagation, PastThoseThatDoNotSee) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/in", "a/out", "a/out/x", "d"});
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              ASSERT_OK(Type("b", MS_SHARED));
              ASSERT_OK(Bind("b", "c"));
              ASSERT_OK(Type("c", MS_SLAVE));
              ASSERT_OK(Bind("b/in", "d"));
              ASSERT_OK(umount("b"));
              EXPECT_EQ(Part("d", "shared:"), Part("c", "master:"));
              ASSERT_OK(Tmpfs("a/out/x"));
              EXPECT_TRUE(Mounted("c/out/x"));
              EXPECT_EQ(Part("a/out/x", "shared:"), Part("c/out/x", "master:"));
              ASSERT_OK(umount("a/out/x"));
              EXPECT_FALSE(Mounted("c/out/x"));
            }));
}

TEST(MountPropagation, PropagateFrom) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              const std::string first = Part("a", "shared:");
              ASSERT_OK(Bind("a", "b"));
              ASSERT_OK(Type("b", MS_SLAVE));
              ASSERT_OK(Type("b", MS_SHARED));
              ASSERT_OK(Tmpfs("c"));
              Mkdirs({"c/old", "c/a", "c/d"});
              ASSERT_OK(Bind("b", "c/d"));
              ASSERT_OK(Type("c/d", MS_SLAVE));
              EXPECT_EQ("", Part("c/d", "propagate_from:"));
              ASSERT_OK(Bind("a", "c/a"));
              // Of the masters in between there is none in sight of the new root.
              EXPECT_EQ(0, ExitStatus([&] {
                          if (chroot("c") != 0 || chdir("/") != 0) return 1;
                          if (mkdir("proc", 0755) != 0) return 2;
                          if (mount("proc", "proc", "proc", 0, nullptr) != 0) return 3;
                          const std::string info = ReadFile("/proc/self/mountinfo");
                          return info.find(" propagate_from:" + first) == std::string::npos ? 4 : 0;
                        }));
            }));
}

TEST(MountPropagation, UnbindableOnesAreLeftOut) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              Mkdirs({"a/x", "a/y", "a/w"});
              ASSERT_OK(Tmpfs("a/x"));
              ASSERT_OK(Tmpfs("a/y"));
              Mkdirs({"a/x/z"});
              ASSERT_OK(Tmpfs("a/x/z"));
              ASSERT_OK(Type("a/x", MS_UNBINDABLE));
              ASSERT_OK(Bind("a", "b", MS_REC));
              EXPECT_FALSE(Mounted("b/x"));
              EXPECT_TRUE(Mounted("b/y"));
              // Nor do they move below something shared.
              ASSERT_OK(Type("b", MS_SHARED));
              EXPECT_ERRNO(mount("a", "b/w", nullptr, MS_MOVE, nullptr), EINVAL);
            }));
}

TEST(MountPropagation, LessPrivilegedFollow) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              const std::string group = Part("a", "shared:");
              EXPECT_EQ(0, ExitStatus([&] {
                          if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return 1;
                          return Fields("a") == "master:" + group ? 0 : 2;
                        }));
              // Whoever is privileged in a namespace of users of their own alone may not mount.
              EXPECT_EQ(0, ExitStatus([&] {
                          if (unshare(CLONE_NEWUSER) != 0) return 1;
                          return Tmpfs("b") == -1 && errno == EPERM ? 0 : 2;
                        }));
            }));
}

TEST(MountPropagation, BindOntoItselfAndPeers) {
  EXPECT_EQ(0, WithMounts([] {
              ASSERT_OK(Tmpfs("a"));
              ASSERT_OK(Type("a", MS_SHARED));
              Mkdirs({"a/x"});
              ASSERT_OK(Bind("a", "b"));
              // The copy is one of the peers, but what is new hears nothing of itself.
              ASSERT_OK(Bind("a", "a/x"));
              EXPECT_TRUE(Mounted("b/x"));
              EXPECT_FALSE(Mounted("a/x/x"));
              EXPECT_FALSE(Mounted("b/x/x"));
              EXPECT_EQ(Part("a", "shared:"), Part("b/x", "shared:"));
              ASSERT_OK(umount("a/x"));
              EXPECT_FALSE(Mounted("b/x"));
            }));
}

}  // namespace
