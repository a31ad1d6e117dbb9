// Signals of files that become ready: O_ASYNC, F_SETOWN, F_SETSIG and their ioctls, and F_NOTIFY.
#include <poll.h>
#include <pty.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <atomic>
#include <thread>

#include "inet_util.h"

#ifndef F_GETOWNER_UIDS
#define F_GETOWNER_UIDS 17
#endif

namespace {

struct Ends {
  int read, write;
};

// Signals are blocked and taken one by one.
class Sigio : public ::testing::Test {
 protected:
  void SetUp() override {
    sigset_t set;
    sigemptyset(&set);
    for (int s : {SIGIO, SIGURG, SIGUSR1, SIGRTMIN, SIGRTMIN + 1, SIGCHLD}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, &before_);
    while (Take() != 0) {
    }
  }
  void TearDown() override {
    while (Take() != 0) {
    }
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  // The next pending signal, or 0 if there is none.
  int Take(siginfo_t* info = nullptr, int ms = 0) {
    sigset_t set;
    sigemptyset(&set);
    for (int s : {SIGIO, SIGURG, SIGUSR1, SIGRTMIN, SIGRTMIN + 1}) sigaddset(&set, s);
    timespec wait{ms / 1000, ms % 1000 * 1000000L};
    siginfo_t own;
    int r = sigtimedwait(&set, info != nullptr ? info : &own, &wait);
    return r < 0 ? 0 : r;
  }
  void Arm(int fd, int signo = 0) {
    EXPECT_OK(fcntl(fd, F_SETOWN, getpid()));
    if (signo != 0) EXPECT_OK(fcntl(fd, F_SETSIG, signo));
    EXPECT_OK(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC));
    EXPECT_TRUE(fcntl(fd, F_GETFL) & O_ASYNC);
  }
  static Ends Pipe() {
    int p[2];
    EXPECT_OK(pipe(p));
    return {p[0], p[1]};
  }
  static void Close(const Ends& p) {
    close(p.read);
    close(p.write);
  }

 private:
  sigset_t before_;
};

TEST_F(Sigio, APipeTellsOfData) {
  Ends p = Pipe();
  Arm(p.read);
  EXPECT_EQ(0, Take());
  EXPECT_EQ(1, write(p.write, "x", 1));
  siginfo_t info;
  ASSERT_EQ(SIGIO, Take(&info));
  EXPECT_EQ(SI_KERNEL, info.si_code);
  EXPECT_EQ(0, Take());
  EXPECT_EQ(0, fcntl(p.read, F_SETFL, 0));
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(0, Take());
  Close(p);
}

TEST_F(Sigio, WithoutAnOwnerNobodyIsTold) {
  Ends p = Pipe();
  EXPECT_OK(fcntl(p.read, F_SETFL, O_ASYNC));
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(0, Take());
  Close(p);
}

TEST_F(Sigio, AChosenSignalTellsWhatAndWhere) {
  Ends p = Pipe();
  Arm(p.read, SIGRTMIN);
  EXPECT_EQ(SIGRTMIN, fcntl(p.read, F_GETSIG));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(1, write(p.write, "x", 1));
    siginfo_t info;
    ASSERT_EQ(SIGRTMIN, Take(&info));
    EXPECT_EQ(POLL_IN, info.si_code);
    EXPECT_EQ(p.read, info.si_fd);
    EXPECT_EQ(POLLIN | POLLRDNORM, info.si_band);
  }
  // SIGIO chosen by its number comes with all that too.
  EXPECT_OK(fcntl(p.read, F_SETSIG, SIGIO));
  EXPECT_EQ(1, write(p.write, "x", 1));
  siginfo_t info;
  ASSERT_EQ(SIGIO, Take(&info));
  EXPECT_EQ(POLL_IN, info.si_code);
  EXPECT_EQ(p.read, info.si_fd);
  EXPECT_ERRNO(fcntl(p.read, F_SETSIG, 65), EINVAL);
  EXPECT_ERRNO(fcntl(p.read, F_SETSIG, -1), EINVAL);
  EXPECT_OK(fcntl(p.read, F_SETSIG, 0));
  EXPECT_EQ(0, fcntl(p.read, F_GETSIG));
  close(p.write);
  ASSERT_EQ(SIGIO, Take());  // the end of the data
  close(p.read);
}

TEST_F(Sigio, TheNumberIsThatOfWhoAsked) {
  Ends p = Pipe();
  int other = dup(p.read);
  EXPECT_OK(fcntl(p.read, F_SETOWN, getpid()));
  EXPECT_OK(fcntl(other, F_SETSIG, SIGRTMIN));
  EXPECT_OK(fcntl(other, F_SETFL, O_ASYNC));
  EXPECT_EQ(1, write(p.write, "x", 1));
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info));
  EXPECT_EQ(other, info.si_fd);
  close(other);
  EXPECT_EQ(1, write(p.write, "x", 1));  // it is one description: still on
  ASSERT_EQ(SIGRTMIN, Take(&info));
  EXPECT_EQ(other, info.si_fd);
  Close(p);
}

TEST_F(Sigio, AWriterIsToldOfRoom) {
  Ends p = Pipe();
  EXPECT_OK(fcntl(p.write, F_SETFL, O_NONBLOCK));
  std::string page(65536, 'x');
  while (write(p.write, page.data(), page.size()) > 0) {
  }
  Arm(p.write, SIGRTMIN);
  std::string back(65536, ' ');
  EXPECT_EQ(65536, read(p.read, back.data(), back.size()));
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info));
  EXPECT_EQ(POLL_OUT, info.si_code);
  EXPECT_EQ(POLLOUT | POLLWRNORM | POLLWRBAND, info.si_band);
  while (Take() != 0) {
  }
  close(p.read);
  ASSERT_EQ(SIGRTMIN, Take(&info));
  EXPECT_EQ(POLL_OUT, info.si_code);
  close(p.write);
}

TEST_F(Sigio, SocketPairs) {
  for (int type : {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}) {
    int s[2];
    ASSERT_OK(socketpair(AF_UNIX, type, 0, s));
    Arm(s[0], SIGRTMIN);
    EXPECT_EQ(1, write(s[1], "x", 1));
    siginfo_t info;
    ASSERT_EQ(SIGRTMIN, Take(&info)) << type;
    EXPECT_EQ(POLL_IN, info.si_code);
    EXPECT_EQ(s[0], info.si_fd);
    EXPECT_EQ(0, Take());
    // Room that nobody has missed is no news.
    EXPECT_EQ(1, write(s[0], "x", 1));
    char c;
    EXPECT_EQ(1, read(s[1], &c, 1));
    EXPECT_EQ(0, Take());
    if (type != SOCK_DGRAM) {
      EXPECT_OK(shutdown(s[1], SHUT_WR));
      ASSERT_EQ(SIGRTMIN, Take(&info));
      EXPECT_EQ(POLL_IN, info.si_code);
      close(s[1]);
      ASSERT_EQ(SIGRTMIN, Take(&info));
      EXPECT_EQ(POLL_HUP, info.si_code);
      EXPECT_EQ(POLLHUP | POLLERR, info.si_band);
    } else {
      close(s[1]);
    }
    close(s[0]);
  }
}

TEST_F(Sigio, RoomThatWasMissedIsNews) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s));
  Arm(s[0], SIGRTMIN);
  std::string page(65536, 'x');
  while (write(s[0], page.data(), page.size()) > 0) {
  }
  EXPECT_EQ(0, Take());
  while (read(s[1], page.data(), page.size()) > 0) {
  }
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info));
  EXPECT_EQ(POLL_OUT, info.si_code);
  EXPECT_EQ(0, Take());
  close(s[0]);
  close(s[1]);
}

TEST_F(Sigio, DatagramsAndConnections) {
  int u = socket(AF_INET, SOCK_DGRAM, 0), v = socket(AF_INET, SOCK_DGRAM, 0);
  Loopback a(AF_INET);
  ASSERT_OK(a.Bind(u));
  a = NameOf(u);
  Arm(u, SIGRTMIN);
  EXPECT_EQ(1, sendto(v, "x", 1, 0, a.get(), a.length));
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info, 1000));
  EXPECT_EQ(POLL_IN, info.si_code);
  close(u);
  // Nobody listens there any more.
  ASSERT_OK(a.Connect(v));
  Arm(v, SIGRTMIN);
  EXPECT_EQ(1, send(v, "x", 1, 0));
  ASSERT_EQ(SIGRTMIN, Take(&info, 1000));
  EXPECT_EQ(POLL_ERR, info.si_code);
  EXPECT_EQ(POLLERR, info.si_band);
  close(v);

  Listener listener;
  Arm(listener.fd, SIGRTMIN);
  int client = listener.Client();
  ASSERT_EQ(SIGRTMIN, Take(&info, 1000));
  EXPECT_EQ(POLL_IN, info.si_code);
  EXPECT_EQ(listener.fd, info.si_fd);
  int server = listener.Accept();
  EXPECT_FALSE(fcntl(server, F_GETFL) & O_ASYNC);
  Arm(server, SIGRTMIN + 1);
  EXPECT_EQ(1, send(client, "x", 1, 0));
  ASSERT_EQ(SIGRTMIN + 1, Take(&info, 1000));
  EXPECT_EQ(POLL_IN, info.si_code);
  EXPECT_EQ(1, send(client, "!", 1, MSG_OOB));
  bool urgent = false;
  for (int n; (n = Take(&info, 100)) != 0;) urgent |= n == SIGRTMIN + 1 && info.si_code == POLL_PRI;
  close(client);
  ASSERT_EQ(SIGRTMIN + 1, Take(&info, 1000));
  EXPECT_EQ(POLL_IN, info.si_code);
  close(server);
}

TEST_F(Sigio, Terminals) {
  int master, slave;
  ASSERT_OK(openpty(&master, &slave, nullptr, nullptr, nullptr));
  EXPECT_EQ(0, fcntl(slave, F_GETOWN));
  EXPECT_OK(fcntl(slave, F_SETFL, fcntl(slave, F_GETFL) | O_ASYNC));
  EXPECT_EQ(getpid(), fcntl(slave, F_GETOWN));  // chosen for whoever has chosen nobody
  EXPECT_EQ(3, write(master, "ab\n", 3));
  EXPECT_EQ(SIGIO, Take(nullptr, 1000));
  while (Take(nullptr, 50) != 0) {
  }
  EXPECT_EQ(2, write(slave, "cd", 2));
  EXPECT_EQ(0, Take(nullptr, 50));
  close(slave);
  close(master);
}

TEST_F(Sigio, Inotify) {
  TempDir dir;
  int fd = inotify_init1(IN_NONBLOCK);
  ASSERT_OK(fd);
  ASSERT_OK(inotify_add_watch(fd, dir.path().c_str(), IN_CREATE));
  Arm(fd, SIGRTMIN);
  WriteFile(dir / "a", "");
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info, 1000));
  EXPECT_EQ(POLL_IN, info.si_code);
  EXPECT_EQ(fd, info.si_fd);
  close(fd);
}

TEST_F(Sigio, WhatCannotTell) {
  TempDir dir;
  WriteFile(dir / "a", "");
  int on = 1;
  for (int fd : {open((dir / "a").c_str(), O_RDWR), eventfd(0, 0),
                 timerfd_create(CLOCK_MONOTONIC, 0), epoll_create1(0)}) {
    ASSERT_OK(fd);
    EXPECT_EQ(0, fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC));
    EXPECT_FALSE(fcntl(fd, F_GETFL) & O_ASYNC);
    EXPECT_ERRNO(ioctl(fd, FIOASYNC, &on), ENOTTY);
    int off = 0;
    EXPECT_OK(ioctl(fd, FIOASYNC, &off));  // as it is
    // An owner may be named all the same.
    EXPECT_OK(fcntl(fd, F_SETOWN, getpid()));
    EXPECT_EQ(getpid(), fcntl(fd, F_GETOWN));
    close(fd);
  }
}

TEST_F(Sigio, Ioctls) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  int who = getpid(), on = 1, got = -7;
  EXPECT_OK(ioctl(s[0], FIOSETOWN, &who));
  EXPECT_OK(ioctl(s[0], FIOGETOWN, &got));
  EXPECT_EQ(who, got);
  EXPECT_EQ(who, fcntl(s[0], F_GETOWN));
  who = -getpgrp();
  EXPECT_OK(ioctl(s[0], SIOCSPGRP, &who));
  EXPECT_OK(ioctl(s[0], SIOCGPGRP, &got));
  EXPECT_EQ(who, got);
  who = INT32_MIN;
  EXPECT_ERRNO(ioctl(s[0], FIOSETOWN, &who), EINVAL);
  who = 4000000;
  EXPECT_ERRNO(ioctl(s[0], FIOSETOWN, &who), ESRCH);
  EXPECT_ERRNO(ioctl(s[0], FIOSETOWN, BadAddress()), EFAULT);
  EXPECT_ERRNO(ioctl(s[0], FIOASYNC, BadAddress()), EFAULT);
  who = getpid();
  EXPECT_OK(ioctl(s[0], FIOSETOWN, &who));
  EXPECT_OK(ioctl(s[0], FIOASYNC, &on));
  EXPECT_TRUE(fcntl(s[0], F_GETFL) & O_ASYNC);
  EXPECT_EQ(1, write(s[1], "x", 1));
  EXPECT_EQ(SIGIO, Take());
  on = 0;
  EXPECT_OK(ioctl(s[0], FIOASYNC, &on));
  EXPECT_FALSE(fcntl(s[0], F_GETFL) & O_ASYNC);
  EXPECT_EQ(1, write(s[1], "x", 1));
  EXPECT_EQ(0, Take());
  close(s[0]);
  close(s[1]);
  Ends p = Pipe();
  EXPECT_ERRNO(ioctl(p.read, FIOSETOWN, &who), ENOTTY);
  EXPECT_ERRNO(ioctl(p.read, SIOCGPGRP, &who), ENOTTY);
  on = 1;
  EXPECT_OK(ioctl(p.read, FIOASYNC, &on));
  EXPECT_TRUE(fcntl(p.read, F_GETFL) & O_ASYNC);
  Close(p);
}

TEST_F(Sigio, Owners) {
  Ends p = Pipe();
  f_owner_ex owner{F_OWNER_PID, -7};
  EXPECT_OK(fcntl(p.read, F_GETOWN_EX, &owner));
  EXPECT_EQ(F_OWNER_TID, owner.type);
  EXPECT_EQ(0, owner.pid);
  EXPECT_EQ(0, fcntl(p.read, F_GETOWN));
  for (f_owner_ex set : {f_owner_ex{F_OWNER_TID, gettid()}, f_owner_ex{F_OWNER_PID, getpid()},
                         f_owner_ex{F_OWNER_PGRP, getpgrp()}}) {
    EXPECT_OK(fcntl(p.read, F_SETOWN_EX, &set));
    EXPECT_OK(fcntl(p.read, F_GETOWN_EX, &owner));
    EXPECT_EQ(set.type, owner.type);
    EXPECT_EQ(set.pid, owner.pid);
  }
  // The call itself returns the group's number, negative, which libc takes for an error if it is
  // low.
  long group = syscall(SYS_fcntl, p.read, F_GETOWN);
  EXPECT_EQ(-getpgrp(), group == -1 ? -errno : group);
  uint32_t uids[2] = {77, 77};
  if (fcntl(p.read, F_GETOWNER_UIDS, uids) == 0) {
    EXPECT_EQ(getuid(), uids[0]);
    EXPECT_EQ(geteuid(), uids[1]);
  }
  owner = {static_cast<__pid_type>(3), getpid()};
  EXPECT_ERRNO(fcntl(p.read, F_SETOWN_EX, &owner), EINVAL);
  owner = {F_OWNER_PID, 4000000};
  EXPECT_ERRNO(fcntl(p.read, F_SETOWN_EX, &owner), ESRCH);
  EXPECT_ERRNO(fcntl(p.read, F_SETOWN_EX, BadAddress()), EFAULT);
  EXPECT_ERRNO(fcntl(p.read, F_GETOWN_EX, BadAddress()), EFAULT);
  EXPECT_ERRNO(fcntl(p.read, F_SETOWN, INT32_MIN), EINVAL);
  EXPECT_ERRNO(fcntl(p.read, F_SETOWN, 4000000), ESRCH);
  EXPECT_OK(fcntl(p.read, F_SETOWN, 0));
  EXPECT_EQ(0, fcntl(p.read, F_GETOWN));
  // A process that has gone is nobody's owner.
  pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  EXPECT_OK(fcntl(p.read, F_SETOWN, child));
  EXPECT_EQ(child, fcntl(p.read, F_GETOWN));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(0, fcntl(p.read, F_GETOWN));
  Close(p);
}

TEST_F(Sigio, AThreadOrAGroup) {
  Ends p = Pipe();
  std::atomic<int> got{0}, tid{0};
  std::thread thread([&] {
    tid = gettid();
    siginfo_t info;
    got = Take(&info, 5000);
  });
  while (tid.load() == 0) SleepMs(1);
  f_owner_ex owner{F_OWNER_TID, tid.load()};
  EXPECT_OK(fcntl(p.read, F_SETOWN_EX, &owner));
  EXPECT_OK(fcntl(p.read, F_SETFL, O_ASYNC));
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(0, Take());  // not for this one
  thread.join();
  EXPECT_EQ(SIGIO, got.load());
  // A group: this process is one of it.
  EXPECT_OK(fcntl(p.read, F_SETOWN, -getpgrp()));
  signal(SIGIO, SIG_DFL);
  EXPECT_EQ(0, ExitStatus([&] {
              setpgid(0, 0);
              if (fcntl(p.read, F_SETOWN, -getpid()) != 0) return 1;
              if (write(p.write, "x", 1) != 1) return 2;
              return Take() == SIGIO ? 0 : 3;
            }));
  EXPECT_EQ(0, Take());
  Close(p);
}

TEST_F(Sigio, NotToStrangers) {
  if (geteuid() != 0) GTEST_SKIP();
  Ends p = Pipe();
  // Who names the owner must be allowed to signal it.
  EXPECT_EQ(0, ExitStatus([&] {
              if (setresuid(12345, 12345, 12345) != 0) return 1;
              return fcntl(p.read, F_SETOWN, getppid()) == 0 ? 0 : 2;
            }));
  EXPECT_OK(fcntl(p.read, F_SETFL, O_ASYNC));
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(0, Take());
  EXPECT_OK(fcntl(p.read, F_SETOWN, getpid()));
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(SIGIO, Take());
  Close(p);
}

TEST_F(Sigio, ClosedFilesTellNothing) {
  Ends p = Pipe();
  Arm(p.read);
  int other = dup(p.read);
  close(p.read);
  EXPECT_EQ(1, write(p.write, "x", 1));
  EXPECT_EQ(SIGIO, Take());
  close(other);
  Arm(p.write);
  EXPECT_EQ(0, Take());
  close(p.write);
}

TEST_F(Sigio, Dnotify) {
  TempDir dir;
  int fd = open(dir.path().c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_OK(fd);
  EXPECT_OK(fcntl(fd, F_SETSIG, SIGRTMIN));
  if (fcntl(fd, F_NOTIFY, DN_CREATE | DN_DELETE) != 0) {
    EXPECT_EQ(EINVAL, errno);
    GTEST_SKIP() << "no dnotify here";
  }
  EXPECT_EQ(getpid(), fcntl(fd, F_GETOWN));
  WriteFile(dir / "a", "");
  siginfo_t info;
  ASSERT_EQ(SIGRTMIN, Take(&info, 1000));
  EXPECT_EQ(fd, info.si_fd);
  EXPECT_EQ(POLL_MSG, info.si_code);
  EXPECT_EQ(POLLIN | POLLRDNORM | POLLMSG, info.si_band);
  unlink((dir / "a").c_str());
  EXPECT_EQ(0, Take());  // once only
  EXPECT_OK(fcntl(fd, F_NOTIFY, DN_MODIFY | DN_ATTRIB | DN_MULTISHOT));
  WriteFile(dir / "b", "x");
  EXPECT_EQ(SIGRTMIN, Take());
  while (Take() != 0) {
  }
  chmod((dir / "b").c_str(), 0600);
  EXPECT_EQ(SIGRTMIN, Take());
  EXPECT_OK(fcntl(fd, F_NOTIFY, 0));
  chmod((dir / "b").c_str(), 0644);
  EXPECT_EQ(0, Take());
  EXPECT_OK(fcntl(fd, F_NOTIFY, DN_ATTRIB | DN_MULTISHOT));
  close(dup(fd));  // any close of it ends it
  chmod((dir / "b").c_str(), 0600);
  EXPECT_EQ(0, Take());
  close(fd);
  Ends p = Pipe();
  EXPECT_ERRNO(fcntl(p.read, F_NOTIFY, DN_CREATE), ENOTDIR);
  Close(p);
}

}  // namespace
