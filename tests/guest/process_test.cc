// fork, vfork, wait4, waitid, exit, reparenting, process groups and sessions.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "guest_util.h"

TEST(Fork, ChildHasItsOwnMemoryAndPid) {
  volatile int value = 1;
  pid_t parent = getpid();
  int status = ExitStatus([&] {
    value = 2;
    return getppid() == parent && getpid() != parent ? 7 : 1;
  });
  EXPECT_EQ(7, status);
  EXPECT_EQ(1, value);
}

TEST(Fork, ThousandTimes) {
  for (int i = 0; i < 1000; i++) {
    pid_t pid = fork();
    ASSERT_GE(pid, 0) << i << strerror(errno);
    if (pid == 0) _exit(i & 0x7f);
    int status;
    ASSERT_EQ(pid, waitpid(pid, &status, 0));
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_EQ(i & 0x7f, WEXITSTATUS(status));
  }
}

TEST(Fork, SharesOffsetsOfOpenFiles) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_OK(fd);
  EXPECT_EQ(0, ExitStatus([&] { return write(fd, "hello", 5) == 5 ? 0 : 1; }));
  EXPECT_EQ(5, lseek(fd, 0, SEEK_CUR));
  close(fd);
}

TEST(Vfork, SharesMemoryUntilExit) {
  volatile int value = 1;
  pid_t pid = vfork();
  if (pid == 0) {
    value = 2;
    _exit(3);
  }
  EXPECT_EQ(2, value);
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(3, WEXITSTATUS(status));
}

TEST(Vfork, ParentGoesOnAfterExec) {
  for (int i = 0; i < 20; i++) {
    pid_t pid = vfork();
    if (pid == 0) {
      execl("/bin/true", "true", nullptr);
      _exit(127);
    }
    int status;
    ASSERT_EQ(pid, waitpid(pid, &status, 0));
    ASSERT_EQ(0, status);
  }
}

TEST(Wait, NoChildIsEchild) {
  int status = ExitStatus([] {
    if (wait(nullptr) != -1 || errno != ECHILD) return 1;
    if (waitpid(1 << 21, nullptr, 0) != -1 || errno != ECHILD) return 2;
    return 0;
  });
  EXPECT_EQ(0, status);
}

TEST(Wait, InvalidOptions) { EXPECT_ERRNO(waitpid(-1, nullptr, 0x40000), EINVAL); }

TEST(Wait, NohangReturnsZero) {
  int fds[2];
  ASSERT_OK(pipe(fds));
  pid_t pid = fork();
  if (pid == 0) {
    char c;
    close(fds[1]);
    _exit(read(fds[0], &c, 1) == 0 ? 0 : 1);
  }
  EXPECT_EQ(0, waitpid(pid, nullptr, WNOHANG));
  close(fds[1]);
  int status;
  EXPECT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  close(fds[0]);
}

TEST(Wait, SignaledStatus) {
  int status = RunInChild([] {
    raise(SIGKILL);
    return 0;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGKILL, WTERMSIG(status));
}

TEST(Wait, WaitidFillsSiginfo) {
  pid_t pid = fork();
  if (pid == 0) _exit(42);
  siginfo_t info{};
  ASSERT_OK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
  EXPECT_EQ(pid, info.si_pid);
  EXPECT_EQ(SIGCHLD, info.si_signo);
  EXPECT_EQ(CLD_EXITED, info.si_code);
  EXPECT_EQ(42, info.si_status);
  memset(&info, 0, sizeof info);
  ASSERT_OK(waitid(P_ALL, 0, &info, WEXITED));
  EXPECT_EQ(pid, info.si_pid);
  EXPECT_ERRNO(waitid(P_ALL, 0, &info, WEXITED), ECHILD);
  EXPECT_ERRNO(waitid(P_ALL, 0, &info, 0), EINVAL);
}

TEST(Wait, StopAndContinue) {
  int go[2];
  ASSERT_OK(pipe(go));
  pid_t pid = fork();
  if (pid == 0) {
    raise(SIGSTOP);
    char c;
    read(go[0], &c, 1);  // an exit would be reported before the continuation
    _exit(5);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(SIGSTOP, WSTOPSIG(status));
  ASSERT_OK(kill(pid, SIGCONT));
  ASSERT_EQ(pid, waitpid(pid, &status, WCONTINUED));
  EXPECT_TRUE(WIFCONTINUED(status));
  ASSERT_EQ(1, write(go[1], "x", 1));
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(5, WEXITSTATUS(status));
  close(go[0]);
  close(go[1]);
}

TEST(Wait, RusageOfChildren) {
  rusage usage{};
  pid_t pid = fork();
  if (pid == 0) {
    int64_t end = NowNs() + 60000000;
    while (NowNs() < end) {
    }
    _exit(0);
  }
  ASSERT_EQ(pid, wait4(pid, nullptr, 0, &usage));
  int64_t us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL +
               usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
  EXPECT_GT(us, 1000);
}

TEST(Reparent, ToSubreaper) {
  int status = ExitStatus([] {
    if (prctl(PR_SET_CHILD_SUBREAPER, 1)) return 1;
    int fds[2];
    if (pipe(fds)) return 2;
    pid_t middle = fork();
    if (middle == 0) {
      pid_t child = fork();
      if (child == 0) {
        pid_t self = getpid();
        if (write(fds[1], &self, sizeof self) != sizeof self) _exit(1);
        SleepMs(100);
        _exit(9);
      }
      _exit(0);
    }
    pid_t grandchild;
    if (read(fds[0], &grandchild, sizeof grandchild) != sizeof grandchild) return 3;
    if (waitpid(middle, nullptr, 0) != middle) return 4;
    int child_status;
    if (waitpid(grandchild, &child_status, 0) != grandchild) return 5;
    return WEXITSTATUS(child_status) == 9 ? 0 : 6;
  });
  EXPECT_EQ(0, status);
}

TEST(Groups, SetpgidAndSetsid) {
  int status = ExitStatus([] {
    if (setsid() != getpid()) return 1;
    if (getpgrp() != getpid() || getsid(0) != getpid()) return 2;
    if (setsid() != -1 || errno != EPERM) return 3;
    if (setpgid(0, 0) != -1 || errno != EPERM) return 4;  // a session leader
    pid_t child = fork();
    if (child == 0) {
      SleepMs(200);
      _exit(getpgrp() == getpid() ? 0 : 1);
    }
    if (setpgid(child, child)) return 5;
    if (getpgid(child) != child) return 6;
    int s;
    if (waitpid(-child, &s, 0) != child) return 7;
    return s == 0 ? 0 : 8;
  });
  EXPECT_EQ(0, status);
  EXPECT_ERRNO(getpgid(1 << 21), ESRCH);
  EXPECT_ERRNO(setpgid(0, -1), EINVAL);
}

TEST(Clone, InvalidFlags) {
  EXPECT_ERRNO(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0), EINVAL);
  EXPECT_ERRNO(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0), EINVAL);
  EXPECT_ERRNO(syscall(SYS_clone, CLONE_FS | CLONE_NEWNS, 0, 0, 0, 0), EINVAL);
}

TEST(Exit, GroupEndsAllThreads) {
  int status = ExitStatus([] {
    char* stack = static_cast<char*>(
        mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    clone(
        [](void*) -> int {
          for (;;) pause();
        },
        stack + 65536, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, nullptr);
    SleepMs(20);
    syscall(SYS_exit_group, 11);
    return 0;
  });
  EXPECT_EQ(11, status);
}

TEST(Pidfd, WaitAndSignal) {
  pid_t pid = fork();
  if (pid == 0) {
    for (;;) pause();
  }
  int fd = syscall(SYS_pidfd_open, pid, 0);
  ASSERT_OK(fd);
  ASSERT_OK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, nullptr, 0));
  siginfo_t info{};
  ASSERT_OK(waitid(static_cast<idtype_t>(3) /* P_PIDFD */, fd, &info, WEXITED));
  EXPECT_EQ(CLD_KILLED, info.si_code);
  EXPECT_EQ(SIGTERM, info.si_status);
  close(fd);
}

TEST(Pidfd, DirectoryOfAProcessTakesSignals) {
  pid_t pid = fork();
  if (pid == 0) {
    for (;;) pause();
  }
  std::string path = "/proc/" + std::to_string(pid);
  int dir = open(path.c_str(), O_RDONLY | O_DIRECTORY);
  int task = open((path + "/task/" + std::to_string(pid)).c_str(), O_RDONLY | O_DIRECTORY);
  int fds = open((path + "/fd").c_str(), O_RDONLY | O_DIRECTORY);
  int place = open(path.c_str(), O_PATH);
  ASSERT_OK(place);
  for (int fd : {task, fds, place}) {
    EXPECT_ERRNO(syscall(SYS_pidfd_send_signal, fd, SIGTERM, nullptr, 0), EBADF);
  }
  EXPECT_OK(syscall(SYS_pidfd_send_signal, dir, 0, nullptr, 0));
  ASSERT_OK(syscall(SYS_pidfd_send_signal, dir, SIGTERM, nullptr, 0));
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(SIGTERM, WTERMSIG(status));
  EXPECT_ERRNO(syscall(SYS_pidfd_send_signal, dir, 0, nullptr, 0), ESRCH);
  for (int fd : {dir, task, fds, place}) close(fd);
}

TEST(Limits, NprocAndNofile) {
  rlimit limit;
  ASSERT_OK(getrlimit(RLIMIT_NOFILE, &limit));
  int status = ExitStatus([&] {
    rlimit low{8, 8};
    if (setrlimit(RLIMIT_NOFILE, &low)) return 1;
    int last = -1;
    for (int i = 0; i < 16; i++) {
      int fd = open("/", O_RDONLY);
      if (fd < 0) return errno == EMFILE && last == 7 ? 0 : 2;
      last = fd;
    }
    return 3;
  });
  EXPECT_EQ(0, status);
  limit.rlim_cur = limit.rlim_max + 1;
  if (limit.rlim_max != RLIM_INFINITY) {
    EXPECT_ERRNO(setrlimit(RLIMIT_NOFILE, &limit), EINVAL);
  }
  EXPECT_ERRNO(getrlimit(static_cast<__rlimit_resource>(100), &limit), EINVAL);
}
