// Namespaces as files, setns(2), and the counts of /proc/PID/io.
#include <grp.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/utsname.h>

#include "guest_util.h"

namespace {

int OpenNs(const char* kind, pid_t pid = 0) {
  std::string dir = pid == 0 ? "/proc/self" : "/proc/" + std::to_string(pid);
  return open((dir + "/ns/" + kind).c_str(), O_RDONLY | O_CLOEXEC);
}

std::string LinkOf(const std::string& path) {
  char text[256];
  ssize_t n = readlink(path.c_str(), text, sizeof text);
  return n < 0 ? "" : std::string(text, static_cast<size_t>(n));
}

std::string HostName() {
  utsname u;
  uname(&u);
  return u.nodename;
}

TEST(Nsfs, FilesTellWhatTheyAre) {
  struct {
    const char* name;
    int type;
  } kinds[] = {{"uts", CLONE_NEWUTS},  {"ipc", CLONE_NEWIPC}, {"mnt", CLONE_NEWNS},
               {"net", CLONE_NEWNET},  {"pid", CLONE_NEWPID}, {"cgroup", CLONE_NEWCGROUP},
               {"user", CLONE_NEWUSER}};
  for (const auto& kind : kinds) {
    int fd = OpenNs(kind.name);
    ASSERT_OK(fd) << kind.name;
    EXPECT_EQ(kind.type, ioctl(fd, NS_GET_NSTYPE));
    struct stat st;
    ASSERT_EQ(0, fstat(fd, &st));
    std::string text = std::string(kind.name) + ":[" + std::to_string(st.st_ino) + "]";
    EXPECT_EQ(text, LinkOf(std::string("/proc/self/ns/") + kind.name));
    EXPECT_EQ(text, LinkOf("/proc/self/fd/" + std::to_string(fd)));
    EXPECT_ERRNO(setns(fd, kind.type == CLONE_NEWUTS ? CLONE_NEWIPC : CLONE_NEWUTS), EINVAL);
    close(fd);
  }
  EXPECT_ERRNO(open("/proc/self/ns/uts", O_RDWR), EPERM);
  int null = open("/dev/null", O_RDONLY);
  EXPECT_ERRNO(setns(null, 0), EINVAL);
  EXPECT_ERRNO(setns(-1, 0), EBADF);
  close(null);
}

TEST(UserNs, GroupsAreDeniedBeforeTheyAreMapped) {
  EXPECT_EQ(0, ExitStatus([] {
              const gid_t gid = getegid();
              if (setgid(gid) != 0) return 1;
              if (unshare(CLONE_NEWUSER) != 0) return 2;
              if (ReadFile("/proc/self/setgroups") != "allow\n") return 3;
              if (setgroups(0, nullptr) == 0 || errno != EPERM) return 4;  // nothing is mapped
              WriteFile("/proc/self/setgroups", "deny");
              if (ReadFile("/proc/self/setgroups") != "deny\n") return 5;
              WriteFile("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1\n");
              WriteFile("/proc/self/uid_map", "0 0 1\n");
              if (getegid() != 0) return 6;
              if (setgroups(0, nullptr) == 0 || errno != EPERM) return 7;
              const int fd = open("/proc/self/setgroups", O_WRONLY);
              if (fd < 0 || write(fd, "allow", 5) == 5 || errno != EPERM) return 8;
              if (write(fd, "perhaps", 7) == 7 || errno != EINVAL) return 9;
              // What is made below has it from here.
              return ExitStatus([] {
                if (unshare(CLONE_NEWUSER) != 0) return 1;
                return ReadFile("/proc/self/setgroups") == "deny\n" ? 0 : 2;
              });
            }));
}

TEST(UserNs, EnteredByItsOwner) {
  int to_child[2], to_parent[2];
  ASSERT_EQ(0, pipe(to_child));
  ASSERT_EQ(0, pipe(to_parent));
  const pid_t child = fork();
  if (child == 0) {
    close(to_child[1]);
    char c = unshare(CLONE_NEWUSER) == 0 ? 'y' : 'n';
    write(to_parent[1], &c, 1);
    read(to_child[0], &c, 1);
    _exit(0);
  }
  char c = 0;
  ASSERT_EQ(1, read(to_parent[0], &c, 1));
  ASSERT_EQ('y', c);
  const std::string theirs = LinkOf("/proc/" + std::to_string(child) + "/ns/user");
  EXPECT_NE(theirs, LinkOf("/proc/self/ns/user"));
  const int fd = OpenNs("user", child), own = OpenNs("user");
  ASSERT_OK(fd);
  EXPECT_EQ(CLONE_NEWUSER, ioctl(fd, NS_GET_NSTYPE));
  uid_t owner = 99;
  EXPECT_EQ(0, ioctl(fd, NS_GET_OWNER_UID, &owner));
  EXPECT_EQ(geteuid(), owner);
  const int parent = ioctl(fd, NS_GET_PARENT);
  ASSERT_OK(parent);
  struct stat a, b;
  ASSERT_EQ(0, fstat(parent, &a));
  ASSERT_EQ(0, fstat(own, &b));
  EXPECT_EQ(a.st_ino, b.st_ino);
  EXPECT_ERRNO(setns(own, CLONE_NEWUSER), EINVAL);  // one is in it
  EXPECT_EQ(0, ExitStatus([&] {
              if (setns(fd, CLONE_NEWUSER) != 0) return 1;
              if (LinkOf("/proc/self/ns/user") != theirs) return 2;
              return setns(own, CLONE_NEWUSER) == -1 && errno == EPERM ? 0 : 3;
            }));
  const int uts = OpenNs("uts"), user_of_uts = ioctl(uts, NS_GET_USERNS);
  ASSERT_OK(user_of_uts);
  EXPECT_EQ(CLONE_NEWUSER, ioctl(user_of_uts, NS_GET_NSTYPE));
  EXPECT_ERRNO(ioctl(uts, NS_GET_PARENT), EINVAL);
  EXPECT_ERRNO(ioctl(uts, NS_GET_OWNER_UID, &owner), EINVAL);
  close(to_child[1]);
  EXPECT_EQ(child, waitpid(child, nullptr, 0));
  for (int f : {fd, own, parent, uts, user_of_uts, to_child[0], to_parent[0], to_parent[1]})
    close(f);
}

TEST(Setns, BackToTheOldOne) {
  EXPECT_EQ(0, ExitStatus([] {
              std::string before = HostName();
              int old = OpenNs("uts");
              if (unshare(CLONE_NEWUTS) != 0 || sethostname("elsewhere", 9) != 0) return 1;
              if (HostName() != "elsewhere") return 2;
              if (setns(old, CLONE_NEWUTS) != 0) return 3;
              return HostName() == before ? 0 : 4;
            }));
}

TEST(Setns, MountsOfAnother) {
  EXPECT_EQ(0, ExitStatus([] {
              int old = OpenNs("mnt");
              if (unshare(CLONE_NEWNS) != 0) return 1;
              mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
              if (mount("none", "/tmp", "tmpfs", 0, nullptr) != 0) return 2;
              close(open("/tmp/only-here", O_CREAT | O_RDWR, 0600));
              int own = OpenNs("mnt");
              if (chdir("/tmp") != 0 || setns(old, 0) != 0) return 3;
              if (access("/tmp/only-here", F_OK) == 0 || LinkOf("/proc/self/cwd") != "/") return 4;
              if (setns(own, 0) != 0) return 5;
              return access("/tmp/only-here", F_OK) == 0 ? 0 : 6;
            }));
}

TEST(Setns, OfAnotherProcessAndWithoutRights) {
  pid_t child = fork();
  if (child == 0) {
    unshare(CLONE_NEWUTS);
    sethostname("child", 5);
    pause();
  }
  EXPECT_EQ(0, ExitStatus([child] {
              for (int i = 0; i < 1000; i++) {
                int fd = OpenNs("uts", child);
                if (fd < 0 || setns(fd, 0) != 0) return 1;
                close(fd);
                if (HostName() == "child") break;
                SleepMs(1);
              }
              if (HostName() != "child") return 2;
              int fd = OpenNs("uts");
              if (setuid(1000) != 0) return 3;
              return setns(fd, 0) == -1 && errno == EPERM ? 0 : 4;
            }));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(Proc, IoCounts) {
  auto value = [](const std::string& text, const std::string& key) {
    size_t at = text.find(key + ": ");
    return at == std::string::npos ? -1 : atoll(text.c_str() + at + key.size() + 2);
  };
  std::string before = ReadFile("/proc/self/io");
  int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
  if (fd < 0) fd = memfd_create("io", 0);
  std::string block(10000, 'x');
  for (int i = 0; i < 3; i++) ASSERT_EQ(10000, write(fd, block.data(), block.size()));
  ASSERT_EQ(10000, pread(fd, block.data(), 10000, 5));
  close(fd);
  std::string after = ReadFile("/proc/self/io");
  EXPECT_EQ(30000, value(after, "wchar") - value(before, "wchar"));
  EXPECT_GE(value(after, "rchar") - value(before, "rchar"), 10000);
  EXPECT_EQ(3, value(after, "syscw") - value(before, "syscw"));
  EXPECT_GE(value(after, "syscr") - value(before, "syscr"), 1);
  EXPECT_GE(value(after, "write_bytes"), 0);
}

}  // namespace
