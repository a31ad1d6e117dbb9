// ioctl(2) of pidfds and of PID namespaces: what a process is, and where it lives.
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "guest_util.h"

namespace {

// Of <linux/pidfd.h>, which may not be there.
struct Info {
  uint64_t mask, cgroup;
  int32_t pid, tgid, ppid;
  uint32_t ids[8];
  int32_t exit_code;
};
static_assert(sizeof(Info) == 64);
constexpr unsigned kGetInfo = _IOWR(0xff, 11, Info);
constexpr unsigned kNet = _IO(0xff, 4), kPid = _IO(0xff, 5), kUts = _IO(0xff, 10);
constexpr unsigned kPidFrom = _IOR(0xb7, 6, int), kTgidIn = _IOR(0xb7, 9, int);

int PidFd(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

// A child that lives until it is killed.
struct Child {
  Child() {
    pid = fork();
    if (pid == 0) {
      while (true) pause();
    }
    fd = PidFd(pid);
  }
  ~Child() {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    close(fd);
  }
  pid_t pid;
  int fd;
};

TEST(PidFdIoctl, Info) {
  Child child;
  Info info{};
  info.mask = 3;
  if (ioctl(child.fd, kGetInfo, &info) != 0 && errno == ENOTTY) GTEST_SKIP() << "before 6.13";
  EXPECT_EQ(3u, info.mask & 3);
  EXPECT_EQ(child.pid, info.pid);
  EXPECT_EQ(child.pid, info.tgid);
  EXPECT_EQ(getpid(), info.ppid);
  EXPECT_EQ(getuid(), info.ids[0]);
  EXPECT_EQ(getgid(), info.ids[1]);
  EXPECT_EQ(geteuid(), info.ids[2]);
  EXPECT_ERRNO(ioctl(child.fd, kGetInfo, nullptr), EINVAL);
  EXPECT_ERRNO(ioctl(child.fd, _IOC(_IOC_READ | _IOC_WRITE, 0xff, 11, 8), &info), ENOTTY);
  EXPECT_ERRNO(ioctl(child.fd, _IO(0xff, 99), 0), ENOTTY);
}

TEST(PidFdIoctl, Namespaces) {
  Child child;
  for (auto [command, name] : {std::pair{kNet, "net"}, {kPid, "pid"}, {kUts, "uts"}}) {
    const int ns = ioctl(child.fd, command, 0);
    if (ns < 0 && errno == ENOTTY) GTEST_SKIP() << "before 6.11";
    ASSERT_GE(ns, 0) << name << ": " << strerror(errno);
    struct stat of_fd, of_link;
    EXPECT_OK(fstat(ns, &of_fd));
    EXPECT_OK(stat((std::string("/proc/self/ns/") + name).c_str(), &of_link));
    EXPECT_EQ(of_link.st_ino, of_fd.st_ino) << name;
    EXPECT_EQ(FD_CLOEXEC, fcntl(ns, F_GETFD));
    close(ns);
    EXPECT_ERRNO(ioctl(child.fd, command, 1), EINVAL);
  }
}

TEST(PidFdIoctl, OfTheDead) {
  const pid_t pid = fork();
  if (pid == 0) _exit(0);
  const int fd = PidFd(pid);
  EXPECT_EQ(pid, waitpid(pid, nullptr, 0));
  if (ioctl(fd, kNet, 0) < 0 && errno == ENOTTY) GTEST_SKIP() << "before 6.11";
  EXPECT_ERRNO(ioctl(fd, kNet, 0), ESRCH);
  close(fd);
}

TEST(PidNamespaceIoctl, NumbersThere) {
  const int ns = open("/proc/self/ns/pid", O_RDONLY);
  const int same = ioctl(ns, kTgidIn, getpid());
  if (same < 0 && errno == ENOTTY) GTEST_SKIP() << "before 6.11";
  EXPECT_EQ(getpid(), same);
  EXPECT_EQ(getpid(), ioctl(ns, kPidFrom, getpid()));
  EXPECT_ERRNO(ioctl(ns, kPidFrom, 99999999), ESRCH);
  close(ns);
  const int uts = open("/proc/self/ns/uts", O_RDONLY);
  EXPECT_ERRNO(ioctl(uts, kPidFrom, 1), EINVAL);
  close(uts);
}

TEST(ProcNs, PidForChildren) {
  struct stat own, children;
  ASSERT_OK(stat("/proc/self/ns/pid", &own));
  ASSERT_OK(stat("/proc/self/ns/pid_for_children", &children));
  EXPECT_EQ(own.st_ino, children.st_ino);
  EXPECT_EQ(0, ExitStatus([] {
              if (unshare(CLONE_NEWPID) != 0) return errno == EPERM ? 0 : 1;
              // It has none until there is a first child.
              struct stat now;
              if (fork() == 0) _exit(0);
              wait(nullptr);
              char text[64] = {};
              if (readlink("/proc/self/ns/pid_for_children", text, sizeof text - 1) < 0) return 0;
              struct stat before;
              if (stat("/proc/self/ns/pid", &before) != 0) return 2;
              if (stat("/proc/self/ns/pid_for_children", &now) != 0) return 3;
              return now.st_ino != before.st_ino && strncmp(text, "pid:[", 5) == 0 ? 0 : 4;
            }));
}

}  // namespace
