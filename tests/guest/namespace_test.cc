// Namespaces as files, setns(2), and the counts of /proc/PID/io.
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
  } kinds[] = {{"uts", CLONE_NEWUTS}, {"ipc", CLONE_NEWIPC}, {"mnt", CLONE_NEWNS},
               {"net", CLONE_NEWNET}, {"pid", CLONE_NEWPID}, {"cgroup", CLONE_NEWCGROUP}};
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
