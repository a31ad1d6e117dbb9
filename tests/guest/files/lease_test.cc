// fcntl(F_SETLEASE) and F_GETLEASE: who has a lease is told of others who open the file.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <functional>
#include <string>

#include "guest_util.h"

namespace {

constexpr int kSetSignal = 10;  // F_SETSIG

class Lease : public ::testing::Test {
 protected:
  void SetUp() override {
    name_ = "/tmp/lease-" + std::to_string(getpid());
    unlink(name_.c_str());
    WriteFile(name_, "hello");
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, &before_);
    while (Take(nullptr, 0) != 0) {
    }
  }
  void TearDown() override {
    while (Take(nullptr, 0) != 0) {
    }
    sigprocmask(SIG_SETMASK, &before_, nullptr);
    unlink(name_.c_str());
  }
  static int Take(siginfo_t* info, int ms) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    sigaddset(&set, SIGUSR1);
    const timespec wait{ms / 1000, ms % 1000 * 1000000L};
    siginfo_t own;
    const int r = sigtimedwait(&set, info != nullptr ? info : &own, &wait);
    return r < 0 ? 0 : r;
  }
  int Open(int flags) {
    const int fd = open(name_.c_str(), flags);
    EXPECT_OK(fd);
    return fd;
  }
  // In a child: the errno of `call`, or 0.
  static pid_t Start(const std::function<int()>& call) {
    const pid_t pid = fork();
    if (pid == 0) {
      errno = 0;
      _exit(call() < 0 ? errno : 0);
    }
    return pid;
  }
  static int Result(pid_t pid) {
    int status = -1;
    EXPECT_EQ(pid, waitpid(pid, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  static bool Runs(pid_t pid) {
    usleep(30000);
    return waitpid(pid, nullptr, WNOHANG) == 0;
  }

  std::string name_;
  sigset_t before_;
};

TEST_F(Lease, SetAndGet) {
  int fd = Open(O_RDONLY);
  EXPECT_EQ(F_UNLCK, fcntl(fd, F_GETLEASE));
  EXPECT_ERRNO(fcntl(fd, F_SETLEASE, F_UNLCK), EAGAIN);
  EXPECT_ERRNO(fcntl(fd, F_SETLEASE, 77), EINVAL);
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_RDLCK));
  EXPECT_EQ(F_RDLCK, fcntl(fd, F_GETLEASE));
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  EXPECT_EQ(F_WRLCK, fcntl(fd, F_GETLEASE));
  EXPECT_EQ(getpid(), fcntl(fd, F_GETOWN));
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_UNLCK));
  EXPECT_EQ(F_UNLCK, fcntl(fd, F_GETLEASE));
  EXPECT_EQ(0, fcntl(fd, F_GETOWN));
  close(fd);
  // Of a description: a copy of the descriptor has it too, and the last one ends it.
  fd = Open(O_RDWR);
  EXPECT_ERRNO(fcntl(fd, F_SETLEASE, F_RDLCK), EAGAIN);  // it is open for writing
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  const int copy = dup(fd);
  EXPECT_EQ(F_WRLCK, fcntl(copy, F_GETLEASE));
  close(fd);
  EXPECT_EQ(0, Result(Start([&] { return fcntl(copy, F_GETLEASE) == F_WRLCK ? 0 : -1; })));
  EXPECT_EQ(EWOULDBLOCK, Result(Start([&] { return open(name_.c_str(), O_RDONLY | O_NONBLOCK); })));
  close(copy);
  EXPECT_EQ(0, Result(Start([&] { return open(name_.c_str(), O_RDONLY | O_NONBLOCK); })));
}

TEST_F(Lease, OthersWhoHaveItOpen) {
  const int a = Open(O_RDONLY), b = Open(O_RDONLY);
  EXPECT_ERRNO(fcntl(a, F_SETLEASE, F_WRLCK), EAGAIN);
  EXPECT_OK(fcntl(a, F_SETLEASE, F_RDLCK));
  EXPECT_OK(fcntl(b, F_SETLEASE, F_RDLCK));
  EXPECT_ERRNO(fcntl(a, F_SETLEASE, F_WRLCK), EAGAIN);
  EXPECT_OK(fcntl(a, F_SETLEASE, F_UNLCK));
  EXPECT_EQ(F_RDLCK, fcntl(b, F_GETLEASE));
  close(b);
  const int w = Open(O_WRONLY);
  EXPECT_ERRNO(fcntl(a, F_SETLEASE, F_RDLCK), EAGAIN);
  EXPECT_ERRNO(fcntl(w, F_SETLEASE, F_WRLCK), EAGAIN);
  close(a);
  EXPECT_OK(fcntl(w, F_SETLEASE, F_WRLCK));
  close(w);
  int p[2];
  ASSERT_OK(pipe(p));
  EXPECT_ERRNO(fcntl(p[0], F_SETLEASE, F_RDLCK), EINVAL);
  close(p[0]);
  close(p[1]);
  const int dir = open("/tmp", O_RDONLY);
  EXPECT_ERRNO(fcntl(dir, F_SETLEASE, F_RDLCK), EINVAL);
  close(dir);
}

TEST_F(Lease, AReaderWaitsForAWriteLease) {
  const int fd = Open(O_RDWR);
  ASSERT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  const pid_t pid = Start([&] { return open(name_.c_str(), O_RDONLY); });
  siginfo_t info{};
  EXPECT_EQ(SIGIO, Take(&info, 5000));
  EXPECT_TRUE(Runs(pid));
  EXPECT_EQ(F_RDLCK, fcntl(fd, F_GETLEASE));  // what it will be
  // Told once.
  EXPECT_EQ(EWOULDBLOCK, Result(Start([&] { return open(name_.c_str(), O_RDONLY | O_NONBLOCK); })));
  EXPECT_EQ(0, Take(nullptr, 0));
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_UNLCK));
  EXPECT_EQ(0, Result(pid));
  close(fd);
}

TEST_F(Lease, DowngradedItLetsReadersIn) {
  const int fd = Open(O_RDONLY);
  ASSERT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  const pid_t pid = Start([&] { return open(name_.c_str(), O_RDONLY); });
  EXPECT_EQ(SIGIO, Take(nullptr, 5000));
  EXPECT_OK(fcntl(fd, F_SETLEASE, F_RDLCK));
  EXPECT_EQ(0, Result(pid));
  EXPECT_EQ(F_RDLCK, fcntl(fd, F_GETLEASE));
  close(fd);
}

TEST_F(Lease, WritersAndTruncationBreakReadLeases) {
  const int fd = Open(O_RDONLY);
  ASSERT_OK(fcntl(fd, kSetSignal, SIGUSR1));
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(fcntl(fd, F_SETLEASE, F_RDLCK));
    ASSERT_OK(fcntl(fd, kSetSignal, SIGUSR1));
    EXPECT_EQ(0, Result(Start([&] { return open(name_.c_str(), O_RDONLY); })));
    EXPECT_EQ(0, Take(nullptr, 0));
    const pid_t pid = Start([&] {
      if (i == 0) return open(name_.c_str(), O_WRONLY);
      return i == 1 ? truncate(name_.c_str(), 2) : open(name_.c_str(), O_RDWR | O_TRUNC);
    });
    siginfo_t info{};
    EXPECT_EQ(SIGUSR1, Take(&info, 5000));
    EXPECT_EQ(POLL_MSG, info.si_code);
    EXPECT_EQ(fd, info.si_fd);
    EXPECT_TRUE(Runs(pid));
    EXPECT_EQ(F_UNLCK, fcntl(fd, F_GETLEASE));
    EXPECT_OK(fcntl(fd, F_SETLEASE, F_UNLCK));
    EXPECT_EQ(0, Result(pid));
  }
  close(fd);
}

TEST_F(Lease, CloseAndSignalsEndTheWait) {
  int fd = Open(O_RDWR);
  ASSERT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  pid_t pid = Start([&] {
    close(fd);
    return open(name_.c_str(), O_RDONLY);
  });
  EXPECT_EQ(SIGIO, Take(nullptr, 5000));
  close(fd);
  EXPECT_EQ(0, Result(pid));
  fd = Open(O_RDWR);
  ASSERT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  pid = Start([&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    ualarm(30000, 30000);  // the first may come before the open
    return open(name_.c_str(), O_RDONLY);
  });
  EXPECT_EQ(EINTR, Result(pid));
  close(fd);
}

TEST_F(Lease, TimeRunsOut) {
  constexpr char kTime[] = "/proc/sys/fs/lease-break-time";
  const std::string before = ReadFile(kTime);
  EXPECT_EQ("45\n", before);
  const int control = open(kTime, O_WRONLY);
  if (control < 0) GTEST_SKIP() << "may not be changed here";
  ASSERT_EQ(1, write(control, "1", 1));
  const int fd = Open(O_RDWR);
  ASSERT_OK(fcntl(fd, F_SETLEASE, F_WRLCK));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(0, Result(Start([&] { return open(name_.c_str(), O_RDWR); })));
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, std::chrono::milliseconds(900));
  EXPECT_LT(took, std::chrono::seconds(20));
  EXPECT_EQ(F_UNLCK, fcntl(fd, F_GETLEASE));
  EXPECT_ERRNO(fcntl(fd, F_SETLEASE, F_UNLCK), EAGAIN);
  EXPECT_EQ(static_cast<ssize_t>(before.size()), pwrite(control, before.data(), before.size(), 0));
  close(control);
  close(fd);
}

TEST_F(Lease, OnlyOwnersMay) {
  if (geteuid() != 0) GTEST_SKIP() << "needs to be root";
  const int fd = Open(O_RDONLY);
  EXPECT_EQ(EACCES, Result(Start([&] {
              if (setresuid(1234, 1234, 1234) != 0) return 0;
              return fcntl(fd, F_SETLEASE, F_RDLCK);
            })));
  ASSERT_OK(chown(name_.c_str(), 1234, 0));
  EXPECT_EQ(0, Result(Start([&] {
              if (setresuid(1234, 1234, 1234) != 0) return -1;
              return fcntl(fd, F_SETLEASE, F_RDLCK);
            })));
  close(fd);
}

}  // namespace
