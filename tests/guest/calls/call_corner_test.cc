// Corners of calls that each have few: found by the Linux Test Project's programs.
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include <thread>

#include "guest_util.h"

namespace {

TEST(CallCorner, PositionsOfStreams) {
  int fds[2];
  ASSERT_EQ(0, pipe(fds));
  char c = 'x';
  iovec iov = {&c, 1};
  // That a pipe has no positions comes before that this end is not open for it.
  EXPECT_ERRNO(pwrite(fds[0], &c, 1, 0), ESPIPE);
  EXPECT_ERRNO(pread(fds[1], &c, 1, 0), ESPIPE);
  EXPECT_ERRNO(pwritev(fds[0], &iov, 1, 0), ESPIPE);
  EXPECT_ERRNO(pwritev2(fds[0], &iov, 1, 0, 0), ESPIPE);
  EXPECT_ERRNO(preadv2(fds[1], &iov, 1, 0, 0), ESPIPE);
  EXPECT_ERRNO(pwritev2(fds[0], &iov, 1, -1, 0), EBADF);
  int null = open("/dev/null", O_WRONLY);
  EXPECT_ERRNO(pread(null, &c, 1, 0), EBADF);
  for (int fd : {fds[0], fds[1], null}) close(fd);
}

TEST(CallCorner, VmspliceTakesWhatFits) {
  int fds[2];
  ASSERT_EQ(0, pipe(fds));
  std::string data(256 * 1024, 'v');
  iovec iov = {data.data(), data.size()};
  // It waits for room, and there is some: not for all.
  const ssize_t n = vmsplice(fds[1], &iov, 1, 0);
  EXPECT_GT(n, 0);
  EXPECT_LT(n, static_cast<ssize_t>(data.size()));
  EXPECT_ERRNO(vmsplice(fds[1], &iov, 1, SPLICE_F_NONBLOCK), EAGAIN);
  std::string got(static_cast<size_t>(n), 0);
  EXPECT_EQ(n, read(fds[0], got.data(), got.size()));
  EXPECT_EQ(got, data.substr(0, got.size()));
  close(fds[0]);
  EXPECT_ERRNO((signal(SIGPIPE, SIG_IGN), vmsplice(fds[1], &iov, 1, 0)), EPIPE);
  close(fds[1]);
}

TEST(CallCorner, ThreadsInheritTheirTimerSlack) {
  EXPECT_EQ(0, ExitStatus([] {
              prctl(PR_SET_TIMERSLACK, 70'000);
              if (prctl(PR_GET_TIMERSLACK) != 70'000) return 1;
              const int child = ExitStatus([] {
                if (prctl(PR_GET_TIMERSLACK) != 70'000) return 1;
                prctl(PR_SET_TIMERSLACK, 90'000);
                // Back to what it was made with.
                prctl(PR_SET_TIMERSLACK, 0);
                return prctl(PR_GET_TIMERSLACK) == 70'000 ? 0 : 2;
              });
              if (child != 0) return 10 + child;
              prctl(PR_SET_TIMERSLACK, 0);
              return prctl(PR_GET_TIMERSLACK) == 50'000 ? 0 : 2;
            }));
}

TEST(CallCorner, ClocksOfSleep) {
  const timespec t = {0, 1000};
  EXPECT_ERRNO(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &t, nullptr), EOPNOTSUPP);
  EXPECT_ERRNO(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_RAW, 0, &t, nullptr), EOPNOTSUPP);
}

TEST(CallCorner, QueueingToAThreadMeansItsProcess) {
  EXPECT_EQ(0, ExitStatus([] {
              sigset_t set;
              sigemptyset(&set);
              sigaddset(&set, SIGUSR1);
              pthread_sigmask(SIG_BLOCK, &set, nullptr);
              std::atomic<int> tid{0};
              std::atomic<bool> stop{false};
              std::thread other([&] {
                tid = static_cast<int>(syscall(SYS_gettid));
                while (!stop) SleepMs(1);
              });
              while (tid == 0) SleepMs(1);
              siginfo_t info{};
              info.si_code = SI_QUEUE;
              info.si_value.sival_int = 777;
              const long r = syscall(SYS_rt_sigqueueinfo, tid.load(), SIGUSR1, &info);
              siginfo_t got{};
              const timespec wait = {5, 0};
              const int signo = r == 0 ? sigtimedwait(&set, &got, &wait) : -1;
              stop = true;
              other.join();
              return signo == SIGUSR1 && got.si_value.sival_int == 777 ? 0 : 1;
            }));
}

TEST(CallCorner, PairsOfWhatThereIs) {
  int fds[2];
  EXPECT_ERRNO(socketpair(AF_INET, SOCK_DGRAM, 17, fds), EOPNOTSUPP);
  EXPECT_ERRNO(socketpair(AF_INET, SOCK_DGRAM, 6, fds), EPROTONOSUPPORT);
  EXPECT_ERRNO(socketpair(AF_INET, SOCK_STREAM, 1, fds), EPROTONOSUPPORT);
  EXPECT_ERRNO(socketpair(AF_INET, SOCK_RAW, 0, fds), EPROTONOSUPPORT);
  EXPECT_ERRNO(socketpair(0, SOCK_STREAM, 0, fds), EAFNOSUPPORT);
}

TEST(CallCorner, TimeoutsThatStick) {
  EXPECT_EQ(0, ExitStatus([] {
              timeval tv = {0, 10'000};
              select(0, nullptr, nullptr, nullptr, &tv);
              if (tv.tv_usec != 0) return 1;
              if (personality(STICKY_TIMEOUTS) < 0) return 2;
              tv = {0, 10'000};
              select(0, nullptr, nullptr, nullptr, &tv);
              return tv.tv_usec == 10'000 ? 0 : 3;
            }));
}

TEST(CallCorner, AFileWithoutNameIsStillWatched) {
  TempDir dir;
  for (const bool exclude : {false, true}) {
    WriteFile(dir / "f", "x");
    const int notify = inotify_init1(IN_NONBLOCK);
    ASSERT_OK(notify);
    ASSERT_OK(inotify_add_watch(notify, dir.path().c_str(),
                                IN_MODIFY | (exclude ? uint32_t{IN_EXCL_UNLINK} : 0)));
    const int fd = open((dir / "f").c_str(), O_RDWR);
    ASSERT_EQ(0, unlink((dir / "f").c_str()));
    ASSERT_EQ(1, write(fd, "y", 1));
    alignas(inotify_event) char buffer[4096];
    const ssize_t n = read(notify, buffer, sizeof buffer);
    if (exclude) {
      EXPECT_EQ(-1, n);
    } else {
      ASSERT_GT(n, 0);
      const auto* event = reinterpret_cast<const inotify_event*>(buffer);
      EXPECT_EQ(uint32_t{IN_MODIFY}, event->mask);
      EXPECT_STREQ("f", event->name);
    }
    close(fd);
    close(notify);
  }
}

TEST(CallCorner, WhatProcessesShare) {
  const pid_t self = getpid();
  EXPECT_EQ(0, syscall(SYS_kcmp, self, self, KCMP_SYSVSEM, 0, 0));
  constexpr int kWhoProcess = 1;  // IOPRIO_WHO_PROCESS
  if (syscall(SYS_ioprio_get, kWhoProcess, 0) == 0) {
    EXPECT_EQ(0, ExitStatus([self] {
                // Nobody has set an I/O priority, so nobody has a context for it.
                return static_cast<int>(syscall(SYS_kcmp, self, getpid(), KCMP_IO, 0, 0));
              }));
  }
  EXPECT_ERRNO(syscall(SYS_kcmp, self, self, 99, 0, 0), EINVAL);
}

TEST(CallCorner, AuxiliaryVectorAndDispatch) {
  constexpr int kGetAuxv = 0x41555856, kDispatch = 59;
  const std::string file = ReadFile("/proc/self/auxv");
  unsigned long v[128] = {};
  const long n = prctl(kGetAuxv, v, sizeof v, 0, 0);
  if (n < 0 && errno == EINVAL) GTEST_SKIP() << "not in this kernel";
  ASSERT_GE(n, static_cast<long>(file.size()));
  EXPECT_EQ(0, memcmp(v, file.data(), file.size()));
  unsigned long few[2] = {~0ul, ~0ul};
  EXPECT_EQ(n, prctl(kGetAuxv, few, sizeof few[0], 0, 0));
  EXPECT_EQ(v[0], few[0]);
  EXPECT_EQ(~0ul, few[1]);
  EXPECT_ERRNO(prctl(kGetAuxv, v, sizeof v, 0, 1), EINVAL);
  EXPECT_ERRNO(prctl(kGetAuxv, BadAddress(), 8, 0, 0), EFAULT);
  EXPECT_EQ(0, prctl(kDispatch, 0, 0, 0, 0));
  EXPECT_ERRNO(prctl(kDispatch, 0, 1, 0, 0), EINVAL);
}

TEST(CallCorner, WhoHasMadeTheFile) {
  constexpr int kCreatedQuery = 1028;
  TempDir dir;
  const std::string name = dir / "f";
  const int made = open(name.c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_OK(made);
  const int answer = fcntl(made, kCreatedQuery, 0);
  if (answer < 0 && errno == EINVAL) GTEST_SKIP() << "not in this kernel";
  EXPECT_EQ(1, answer);
  EXPECT_EQ(0, fcntl(made, F_GETFL) & O_CREAT);
  EXPECT_OK(fcntl(made, F_SETFL, O_APPEND));
  const int copy = dup(made), again = open(name.c_str(), O_CREAT | O_RDWR, 0600);
  const int path = open(name.c_str(), O_PATH), nameless = open("/tmp", O_TMPFILE | O_RDWR, 0600);
  EXPECT_EQ(1, fcntl(copy, kCreatedQuery, 0));
  for (int fd : {again, path, nameless}) EXPECT_EQ(0, fcntl(fd, kCreatedQuery, 0));
  const std::string info = ReadFile("/proc/self/fdinfo/" + std::to_string(made));
  EXPECT_NE(std::string::npos, info.find("flags:\t0102002\n")) << info;
  for (int fd : {made, copy, again, path, nameless}) close(fd);
}

// The line of VmFlags of the mapping at `at`.
std::string FlagsOf(const void* at) {
  const std::string smaps = ReadFile("/proc/self/smaps");
  char begin[32];
  snprintf(begin, sizeof begin, "\n%lx-", reinterpret_cast<unsigned long>(at));
  size_t from = smaps.find(begin);
  if (from != std::string::npos) from = smaps.find("VmFlags:", from);
  if (from == std::string::npos) return "";
  return smaps.substr(from, smaps.find('\n', from) - from);
}

TEST(CallCorner, LocksNowOrOnFault) {
  constexpr size_t kLength = 4 * 4096;
  void* at = mmap(nullptr, 3 * kLength, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* mine = static_cast<char*>(at) + kLength;
  ASSERT_OK(mprotect(mine, kLength, PROT_READ | PROT_WRITE));
  ASSERT_OK(syscall(SYS_mlock2, mine, kLength, 1 /* MLOCK_ONFAULT */));
  EXPECT_NE(std::string::npos, FlagsOf(mine).find(" lo lf ac")) << FlagsOf(mine);
  ASSERT_OK(mlock(mine, kLength));
  EXPECT_NE(std::string::npos, FlagsOf(mine).find(" lo ac")) << FlagsOf(mine);
  // What cannot be touched is locked all the same, but not without a word.
  EXPECT_ERRNO(mlock(at, kLength), ENOMEM);
  EXPECT_NE(std::string::npos, FlagsOf(at).find(" lo")) << FlagsOf(at);
  EXPECT_OK(syscall(SYS_mlock2, at, kLength, 1));
  EXPECT_NE(std::string::npos, FlagsOf(at).find(" lo lf")) << FlagsOf(at);
  EXPECT_OK(munlock(at, 3 * kLength));
  EXPECT_EQ(std::string::npos, FlagsOf(mine).find(" l")) << FlagsOf(mine);
  munmap(at, 3 * kLength);
}

}  // namespace
