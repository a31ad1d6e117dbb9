// Shared, slave, private and unbindable mounts.
#include <sched.h>
#include <sys/mount.h>

#include <sstream>

#include "guest_util.h"

namespace {

// Runs `body` in a child with mounts of its own, on a fresh tmpfs that is private; the current
// directory is in it.
int WithMounts(const std::function<void()>& body) {
  return ExitStatus([&] {
    if (unshare(CLONE_NEWNS) != 0) return 99;
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 98;
    if (mount("root", "/tmp", "tmpfs", 0, nullptr) != 0) return 97;
    if (chdir("/tmp") != 0) return 96;
    for (const char* d : {"a", "b", "c"}) mkdir(d, 0755);
    body();
    return ::testing::Test::HasFailure() ? 1 : 0;
  });
}

// The optional fields of the last line of mountinfo for /tmp/`name`; "none": it is not mounted.
std::string Fields(const std::string& name) {
  std::istringstream lines(ReadFile("/proc/self/mountinfo"));
  std::string line, found = "none";
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string word, where;
    for (int i = 0; i < 5; ++i) words >> where;
    if (where != "/tmp/" + name) continue;
    words >> word;  // the options
    found.clear();
    while (words >> word && word != "-") found += (found.empty() ? "" : " ") + word;
  }
  return found;
}
std::string Part(const std::string& name, const std::string& key) {
  std::istringstream words(Fields(name));
  std::string word;
  while (words >> word) {
    if (word.rfind(key, 0) == 0) return word.substr(key.size());
  }
  return "";
}
bool Mounted(const std::string& name) { return Fields(name) != "none"; }
int Tmpfs(const char* where) { return mount("none", where, "tmpfs", 0, nullptr); }
int Type(const char* where, unsigned long type) {
  return mount(nullptr, where, nullptr, type, nullptr);
}
int Bind(const char* from, const char* to, unsigned long more = 0) {
  return mount(from, to, nullptr, MS_BIND | more, nullptr);
}

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

}  // namespace
