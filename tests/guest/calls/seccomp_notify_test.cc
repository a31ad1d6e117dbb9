// seccomp's user notifications: a supervisor answers the calls that a filter leaves to it.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <thread>

#include "guest_util.h"
#include "net/fd_util.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif

namespace {

// Leaves `nr` to the listener. The listener, or -1.
int Listen(int nr, unsigned flags = SECCOMP_FILTER_FLAG_NEW_LISTENER) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(nr), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{4, code};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  return static_cast<int>(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}

// A child that has such a filter and runs `body`; the listener is here.
class Child {
 public:
  Child(int nr, const std::function<int()>& body, unsigned more = 0) {
    int pair[2];
    EXPECT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    fflush(nullptr);
    pid = fork();
    if (pid == 0) {
      int fd = Listen(nr, SECCOMP_FILTER_FLAG_NEW_LISTENER | more);
      if (fd < 0) _exit(100);
      if (SendFd(pair[1], fd) != 1) _exit(101);
      close(fd);
      _exit(body());
    }
    close(pair[1]);
    listener = RecvFd(pair[0]);
    close(pair[0]);
    EXPECT_GE(listener, 0);
  }
  ~Child() {
    if (listener >= 0) close(listener);
    if (pid > 0) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }
  seccomp_notif Receive() {
    seccomp_notif n{};
    EXPECT_OK(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &n));
    return n;
  }
  int Answer(uint64_t id, int64_t value, int error = 0, unsigned flags = 0) {
    seccomp_notif_resp r{id, value, error, flags};
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r);
  }
  int Exit() {
    int status = -1;
    EXPECT_EQ(pid, waitpid(pid, &status, 0));
    pid = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int Poll() {
    pollfd p{listener, POLLIN | POLLOUT, 0};
    poll(&p, 1, 0);
    return p.revents;
  }
  pid_t pid;
  int listener = -1;
};

TEST(SeccompNotify, WhatThereIs) {
  uint32_t action = SECCOMP_RET_USER_NOTIF;
  EXPECT_OK(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action));
  seccomp_notif_sizes sizes{};
  EXPECT_OK(syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes));
  EXPECT_EQ(sizeof(seccomp_notif), sizes.seccomp_notif);
  EXPECT_EQ(sizeof(seccomp_notif_resp), sizes.seccomp_notif_resp);
  EXPECT_EQ(sizeof(seccomp_data), sizes.seccomp_data);
}

TEST(SeccompNotify, WrongFlags) {
  EXPECT_EQ(
      0, ExitStatus([] {
        if (Listen(SYS_getppid, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) != -1 || errno != EINVAL) {
          return 1;
        }
        unsigned sync = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_NEW_LISTENER;
        if (Listen(SYS_getppid, sync) != -1 || errno != EINVAL) return 2;
        int fd = Listen(SYS_getppid, sync | SECCOMP_FILTER_FLAG_TSYNC_ESRCH);
        if (fd < 0) return 3;
        if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC)) return 4;
        // One listener for a task.
        if (Listen(SYS_getppid) != -1 || errno != EBUSY) return 5;
        return 0;
      }));
}

TEST(SeccompNotify, WithoutAListenerThereIsNoCall) {
  EXPECT_EQ(0, ExitStatus([] {
              if (Listen(SYS_getppid, 0) != 0) return 1;
              return syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 2;
            }));
  EXPECT_EQ(0, ExitStatus([] {
              int fd = Listen(SYS_getppid);
              if (fd < 0) return 1;
              close(fd);
              return syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 2;
            }));
}

TEST(SeccompNotify, AnswersAndErrors) {
  Child child(SYS_getppid, [] {
    if (syscall(SYS_getppid, 11, 22, 33) != 77) return 1;
    if (syscall(SYS_getppid) != -1 || errno != EXDEV) return 2;
    return syscall(SYS_getppid) > 0 ? 0 : 3;
  });
  seccomp_notif n = child.Receive();
  EXPECT_EQ(child.pid, static_cast<pid_t>(n.pid));
  EXPECT_EQ(SYS_getppid, n.data.nr);
  EXPECT_EQ(11u, n.data.args[0]);
  EXPECT_EQ(33u, n.data.args[2]);
  EXPECT_EQ(0u, n.flags);
  EXPECT_EQ(POLLOUT, child.Poll());
  EXPECT_OK(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &n.id));
  uint64_t other = n.id + 1;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &other), ENOENT);
  EXPECT_ERRNO(child.Answer(other, 1), ENOENT);
  EXPECT_ERRNO(child.Answer(n.id, 1, 0, 2), EINVAL);
  EXPECT_ERRNO(child.Answer(n.id, 1, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE), EINVAL);
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_SEND, BadAddress()), EFAULT);
  EXPECT_OK(child.Answer(n.id, 77));
  uint64_t first = n.id;
  n = child.Receive();
  EXPECT_EQ(first + 1, n.id);
  EXPECT_OK(child.Answer(n.id, 0, -EXDEV));
  n = child.Receive();
  EXPECT_OK(child.Answer(n.id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE));
  EXPECT_EQ(0, child.Exit());
  EXPECT_EQ(POLLHUP, child.Poll() & POLLHUP);
  EXPECT_ERRNO(child.Answer(n.id, 0), ENOENT);
}

TEST(SeccompNotify, Garbage) {
  Child child(SYS_getppid, [] { return syscall(SYS_getppid) == 5 ? 0 : 1; });
  seccomp_notif n{};
  n.pid = 1;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_RECV, &n), EINVAL);
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_RECV, BadAddress()), EFAULT);
  EXPECT_ERRNO(ioctl(child.listener, FIONREAD, &n), EINVAL);
  char c;
  EXPECT_ERRNO(read(child.listener, &c, 1), EINVAL);
  n = child.Receive();
  EXPECT_OK(child.Answer(n.id, 5));
  EXPECT_EQ(0, child.Exit());
}

TEST(SeccompNotify, DescriptorsAreAdded) {
  Child child(SYS_getppid, [] {
    int fd = static_cast<int>(syscall(SYS_getppid));
    char c = 0;
    if (read(fd, &c, 1) != 1 || c != 'x') return 1;
    if (fcntl(200, F_GETFD) != FD_CLOEXEC) return 2;
    fd = static_cast<int>(syscall(SYS_getppid));
    return read(fd, &c, 1) == 1 && c == 'y' ? 0 : 3;
  });
  int p[2];
  ASSERT_OK(pipe(p));
  ASSERT_EQ(2, write(p[1], "xy", 2));
  seccomp_notif n = child.Receive();
  seccomp_notif_addfd add{};
  add.id = n.id;
  add.srcfd = static_cast<uint32_t>(p[0]);
  add.newfd = 3;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add), EINVAL);
  add.newfd = 0;
  add.newfd_flags = O_NONBLOCK;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add), EINVAL);
  add.newfd_flags = 0;
  add.srcfd = 999;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add), EBADF);
  add.srcfd = static_cast<uint32_t>(p[0]);
  add.flags = 8;
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add), EINVAL);
  add.flags = SECCOMP_ADDFD_FLAG_SETFD;
  add.newfd = 200;
  add.newfd_flags = O_CLOEXEC;
  EXPECT_EQ(200, ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add));
  add.flags = 0;
  add.newfd = 0;
  add.newfd_flags = 0;
  int fd = ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
  EXPECT_GT(fd, 2);
  EXPECT_OK(child.Answer(n.id, fd));
  n = child.Receive();
  add.id = n.id;
  add.flags = SECCOMP_ADDFD_FLAG_SEND;
  EXPECT_GT(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add), 2);
  EXPECT_EQ(0, child.Exit());
  close(p[0]);
  close(p[1]);
}

TEST(SeccompNotify, ASignalEndsTheWait) {
  Child child(SYS_getppid, [] {
    struct sigaction a {};
    a.sa_handler = [](int) {};
    sigaction(SIGUSR1, &a, nullptr);
    return syscall(SYS_getppid) == -1 && errno == EINTR ? 0 : 1;
  });
  seccomp_notif n = child.Receive();
  kill(child.pid, SIGUSR1);
  EXPECT_EQ(0, child.Exit());
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &n.id), ENOENT);
  EXPECT_ERRNO(child.Answer(n.id, 1), ENOENT);
}

TEST(SeccompNotify, TakenCallsMayBeKillableAlone) {
  Child child(
      SYS_getppid,
      [] {
        struct sigaction a {};
        a.sa_handler = [](int) {};
        sigaction(SIGUSR1, &a, nullptr);
        return syscall(SYS_getppid) == 9 ? 0 : 1;
      },
      SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
  seccomp_notif n = child.Receive();
  kill(child.pid, SIGUSR1);
  SleepMs(50);
  EXPECT_OK(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &n.id));
  EXPECT_OK(child.Answer(n.id, 9));
  EXPECT_EQ(0, child.Exit());
}

TEST(SeccompNotify, TheSupervisorGoes) {
  Child child(SYS_getppid, [] { return syscall(SYS_getppid) == -1 && errno == ENOSYS ? 0 : 1; });
  child.Receive();
  close(child.listener);
  child.listener = -1;
  EXPECT_EQ(0, child.Exit());
}

TEST(SeccompNotify, TheCallerIsKilled) {
  Child child(SYS_getppid, [] { return static_cast<int>(syscall(SYS_getppid)); });
  seccomp_notif n = child.Receive();
  kill(child.pid, SIGKILL);
  EXPECT_EQ(-SIGKILL, child.Exit());
  EXPECT_ERRNO(child.Answer(n.id, 1), ENOENT);
  EXPECT_ERRNO(ioctl(child.listener, SECCOMP_IOCTL_NOTIF_RECV, &(n = {})), ENOENT);
}

}  // namespace
