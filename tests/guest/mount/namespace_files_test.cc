// Namespaces that files keep: a bind of /proc/PID/ns/NAME.
#include "mount_util.h"

namespace {

TEST(NamespaceFiles, KeepANamespace) {
  EXPECT_EQ(0, WithMounts([] {
              WriteFile("file", "");
              EXPECT_EQ(0, ExitStatus([] {
                          if (unshare(CLONE_NEWUTS) != 0) return 1;
                          if (sethostname("kept", 4) != 0) return 2;
                          return Bind("/proc/self/ns/uts", "file") == 0 ? 0 : 3;
                        }));
              const std::string line = MountLine("file");
              EXPECT_NE(std::string::npos, line.find(" uts:[")) << line;
              EXPECT_NE(std::string::npos, line.find(" - nsfs nsfs rw")) << line;
              EXPECT_EQ(0, ExitStatus([] {
                          const int fd = open("file", O_RDONLY);
                          if (fd < 0 || setns(fd, CLONE_NEWUTS) != 0) return 1;
                          char name[64];
                          if (gethostname(name, sizeof(name)) != 0) return 2;
                          return strcmp("kept", name) == 0 ? 0 : 3;
                        }));
              WriteFile("other", "");
              ASSERT_OK(Bind("file", "other"));
              struct stat one, two;
              ASSERT_OK(stat("file", &one));
              ASSERT_OK(stat("other", &two));
              EXPECT_EQ(one.st_ino, two.st_ino);
              ASSERT_OK(umount("file"));
              ASSERT_OK(umount("other"));
              EXPECT_EQ("", ReadFile("file"));
              EXPECT_ERRNO(Bind("/proc/self/ns/uts", "a"), ENOTDIR);
              EXPECT_ERRNO(Bind("/proc/self/ns/mnt", "file"), EINVAL);
            }));
}

}  // namespace
