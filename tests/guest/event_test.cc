// Pipes, poll, select, epoll, eventfd, signalfd, timerfd.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include <thread>
#include <vector>

#include "guest_util.h"

namespace {
struct Pipe {
  int r = -1, w = -1;
  explicit Pipe(int flags = 0) {
    int fds[2];
    EXPECT_EQ(0, pipe2(fds, flags));
    r = fds[0];
    w = fds[1];
  }
  ~Pipe() {
    close(r);
    close(w);
  }
};
}  // namespace

TEST(PipeTest, ReadWriteEofAndEpipe) {
  int fds[2];
  ASSERT_OK(pipe(fds));
  char b[16];
  EXPECT_EQ(5, write(fds[1], "hello", 5));
  EXPECT_EQ(3, read(fds[0], b, 3));
  EXPECT_EQ(2, read(fds[0], b, 16));
  close(fds[1]);
  EXPECT_EQ(0, read(fds[0], b, 16));
  close(fds[0]);
  ASSERT_OK(pipe(fds));
  signal(SIGPIPE, SIG_IGN);
  close(fds[0]);
  EXPECT_ERRNO(write(fds[1], "x", 1), EPIPE);
  close(fds[1]);
  int status = RunInChild([] {
    signal(SIGPIPE, SIG_DFL);
    int p[2];
    pipe(p);
    close(p[0]);
    write(p[1], "x", 1);
    return 0;
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
  EXPECT_ERRNO(pipe2(fds, 0x1), EINVAL);
  EXPECT_ERRNO(pipe(reinterpret_cast<int*>(BadAddress())), EFAULT);
}

TEST(PipeTest, CapacityAndNonblock) {
  Pipe p(O_NONBLOCK);
  EXPECT_EQ(65536, fcntl(p.w, F_GETPIPE_SZ));
  std::string data(100000, 'x');
  EXPECT_EQ(65536, write(p.w, data.data(), data.size()));
  EXPECT_ERRNO(write(p.w, "x", 1), EAGAIN);
  int available = 0;
  ASSERT_OK(ioctl(p.r, FIONREAD, &available));
  EXPECT_EQ(65536, available);
  std::string back(100000, 0);
  EXPECT_EQ(65536, read(p.r, back.data(), back.size()));
  EXPECT_ERRNO(read(p.r, back.data(), 1), EAGAIN);
  EXPECT_EQ(131072, fcntl(p.w, F_SETPIPE_SZ, 100000));
}

TEST(PipeTest, BlockingTransferOfMuchData) {
  Pipe p;
  std::thread writer([&] {
    std::string data(1 << 20, 0);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i >> 4);
    EXPECT_EQ(static_cast<ssize_t>(data.size()), write(p.w, data.data(), data.size()));
  });
  size_t total = 0;
  char b[3000];
  while (total < 1 << 20) {
    ssize_t n = read(p.r, b, sizeof b);
    ASSERT_GT(n, 0);
    for (ssize_t i = 0; i < n; i++) ASSERT_EQ(static_cast<char>((total + i) >> 4), b[i]);
    total += n;
  }
  writer.join();
}

TEST(PipeTest, AtomicSmallWrites) {
  Pipe p;
  for (int k = 0; k < 3; k++) {
    if (fork() == 0) {
      std::string block(512, static_cast<char>('a' + k));
      for (int i = 0; i < 200; i++) write(p.w, block.data(), block.size());
      _exit(0);
    }
  }
  char b[512];
  for (int i = 0; i < 600; i++) {
    ASSERT_EQ(512, read(p.r, b, 512));
    for (char c : b) ASSERT_EQ(b[0], c);
  }
  while (wait(nullptr) > 0) {
  }
}

TEST(PipeTest, SpliceAndTee) {
  Pipe a, b;
  write(a.w, "hello", 5);
  EXPECT_EQ(5, tee(a.r, b.w, 100, 0));
  EXPECT_EQ(5, splice(a.r, nullptr, b.w, nullptr, 100, 0));
  char buffer[16];
  EXPECT_EQ(10, read(b.r, buffer, 16));
  EXPECT_EQ(0, memcmp(buffer, "hellohello", 10));
}

TEST(Poll, StatesAndTimeout) {
  Pipe p;
  pollfd fds[3] = {{p.r, POLLIN, 0}, {p.w, POLLOUT, 0}, {-1, POLLIN, 7}};
  EXPECT_EQ(1, poll(fds, 3, 0));
  EXPECT_EQ(0, fds[0].revents);
  EXPECT_EQ(POLLOUT, fds[1].revents);
  EXPECT_EQ(0, fds[2].revents);
  EXPECT_EQ(POLLIN, fds[0].events);
  write(p.w, "x", 1);
  EXPECT_EQ(2, poll(fds, 2, -1));
  fds[0].fd = 999;
  EXPECT_EQ(1, poll(fds, 1, 0));
  EXPECT_EQ(POLLNVAL, fds[0].revents);
  int64_t start = NowNs();
  EXPECT_EQ(0, poll(nullptr, 0, 30));
  EXPECT_GE(NowNs() - start, 30000000);
  Pipe q;
  close(q.w);
  q.w = -1;
  pollfd hup{q.r, POLLIN, 0};
  EXPECT_EQ(1, poll(&hup, 1, 0));
  EXPECT_EQ(POLLHUP, hup.revents);
}

TEST(Poll, WokenByWriter) {
  Pipe p;
  std::thread writer([&] {
    SleepMs(30);
    write(p.w, "x", 1);
  });
  pollfd fd{p.r, POLLIN, 0};
  EXPECT_EQ(1, poll(&fd, 1, 5000));
  writer.join();
}

TEST(Poll, PpollMaskAndEintr) {
  struct sigaction sa {};
  sa.sa_handler = [](int) {};
  sigaction(SIGUSR1, &sa, nullptr);
  sigset_t block, empty;
  sigemptyset(&block);
  sigemptyset(&empty);
  sigaddset(&block, SIGUSR1);
  sigprocmask(SIG_BLOCK, &block, nullptr);
  raise(SIGUSR1);
  timespec t{5, 0};
  EXPECT_ERRNO(ppoll(nullptr, 0, &t, &empty), EINTR);
  sigset_t now;
  sigprocmask(SIG_UNBLOCK, &block, &now);
  EXPECT_TRUE(sigismember(&now, SIGUSR1));
}

TEST(Select, SetsAndTimeout) {
  Pipe p;
  fd_set r, w;
  FD_ZERO(&r);
  FD_ZERO(&w);
  FD_SET(p.r, &r);
  FD_SET(p.w, &w);
  timeval t{0, 50000};
  EXPECT_EQ(1, select(p.w + 1, &r, &w, nullptr, &t));
  EXPECT_FALSE(FD_ISSET(p.r, &r));
  EXPECT_TRUE(FD_ISSET(p.w, &w));
  FD_SET(p.r, &r);
  t = {0, 20000};
  EXPECT_EQ(0, select(p.r + 1, &r, nullptr, nullptr, &t));
  EXPECT_EQ(0, t.tv_usec);
  FD_ZERO(&r);
  FD_SET(40, &r);
  EXPECT_ERRNO(select(41, &r, nullptr, nullptr, &t), EBADF);
  EXPECT_ERRNO(select(-1, &r, nullptr, nullptr, &t), EINVAL);
}

TEST(Epoll, LevelEdgeOneshot) {
  int ep = epoll_create1(EPOLL_CLOEXEC);
  ASSERT_OK(ep);
  Pipe p;
  epoll_event e{EPOLLIN, {.u64 = 77}}, out[4];
  ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_ADD, p.r, &e));
  EXPECT_ERRNO(epoll_ctl(ep, EPOLL_CTL_ADD, p.r, &e), EEXIST);
  EXPECT_EQ(0, epoll_wait(ep, out, 4, 0));
  write(p.w, "x", 1);
  EXPECT_EQ(1, epoll_wait(ep, out, 4, -1));
  EXPECT_EQ(77u, out[0].data.u64);
  EXPECT_EQ(1, epoll_wait(ep, out, 4, 0));  // level: still there
  e.events = EPOLLIN | EPOLLET;
  ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_MOD, p.r, &e));
  EXPECT_EQ(1, epoll_wait(ep, out, 4, 0));
  EXPECT_EQ(0, epoll_wait(ep, out, 4, 0));
  write(p.w, "y", 1);
  EXPECT_EQ(1, epoll_wait(ep, out, 4, 0));
  e.events = EPOLLIN | EPOLLONESHOT;
  ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_MOD, p.r, &e));
  EXPECT_EQ(1, epoll_wait(ep, out, 4, 0));
  write(p.w, "z", 1);
  EXPECT_EQ(0, epoll_wait(ep, out, 4, 0));
  ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_DEL, p.r, nullptr));
  EXPECT_ERRNO(epoll_ctl(ep, EPOLL_CTL_DEL, p.r, nullptr), ENOENT);
  EXPECT_ERRNO(epoll_ctl(ep, EPOLL_CTL_ADD, ep, &e), EINVAL);
  EXPECT_ERRNO(epoll_ctl(ep, EPOLL_CTL_ADD, 999, &e), EBADF);
  EXPECT_ERRNO(epoll_wait(ep, out, 0, 0), EINVAL);
  TempDir dir;
  int file = open((dir / "f").c_str(), O_CREAT | O_RDWR, 0600);
  EXPECT_ERRNO(epoll_ctl(ep, EPOLL_CTL_ADD, file, &e), EPERM);
  close(file);
  close(ep);
}

TEST(Epoll, NestedAndWokenByOtherThread) {
  int outer = epoll_create1(0), inner = epoll_create1(0);
  Pipe p;
  epoll_event e{EPOLLIN, {.u32 = 1}}, out;
  ASSERT_OK(epoll_ctl(inner, EPOLL_CTL_ADD, p.r, &e));
  ASSERT_OK(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &e));
  EXPECT_ERRNO(epoll_ctl(inner, EPOLL_CTL_ADD, outer, &e), ELOOP);
  std::thread writer([&] {
    SleepMs(30);
    write(p.w, "x", 1);
  });
  EXPECT_EQ(1, epoll_wait(outer, &out, 1, 5000));
  writer.join();
  close(outer);
  close(inner);
}

TEST(Epoll, ManyDescriptors) {
  int ep = epoll_create1(0);
  std::vector<int> fds;
  for (int i = 0; i < 300; i++) {
    int fd = eventfd(0, 0);
    ASSERT_OK(fd);
    fds.push_back(fd);
    epoll_event e{EPOLLIN, {.u32 = static_cast<uint32_t>(i)}};
    ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
  }
  uint64_t one = 1;
  write(fds[7], &one, 8);
  write(fds[250], &one, 8);
  epoll_event out[300];
  EXPECT_EQ(2, epoll_wait(ep, out, 300, 0));
  EXPECT_EQ(257u, out[0].data.u32 + out[1].data.u32);
  close(fds[7]);  // the only descriptor: leaves the set
  EXPECT_EQ(1, epoll_wait(ep, out, 300, 0));
  for (int fd : fds) close(fd);
  close(ep);
}

TEST(Eventfd, CounterAndSemaphore) {
  int fd = eventfd(3, EFD_NONBLOCK);
  uint64_t v;
  EXPECT_EQ(8, read(fd, &v, 8));
  EXPECT_EQ(3u, v);
  EXPECT_ERRNO(read(fd, &v, 8), EAGAIN);
  EXPECT_ERRNO(read(fd, &v, 4), EINVAL);
  v = ~0ull;
  EXPECT_ERRNO(write(fd, &v, 8), EINVAL);
  v = ~0ull - 1;
  EXPECT_EQ(8, write(fd, &v, 8));
  v = 1;
  EXPECT_ERRNO(write(fd, &v, 8), EAGAIN);
  close(fd);
  fd = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
  EXPECT_EQ(8, read(fd, &v, 8));
  EXPECT_EQ(1u, v);
  EXPECT_EQ(8, read(fd, &v, 8));
  EXPECT_ERRNO(read(fd, &v, 8), EAGAIN);
  close(fd);
}

TEST(Signalfd, ReadsPendingSignals) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  int fd = signalfd(-1, &set, SFD_NONBLOCK);
  ASSERT_OK(fd);
  signalfd_siginfo info;
  EXPECT_ERRNO(read(fd, &info, sizeof info), EAGAIN);
  kill(getpid(), SIGUSR1);
  pollfd p{fd, POLLIN, 0};
  EXPECT_EQ(1, poll(&p, 1, 1000));
  EXPECT_EQ(static_cast<ssize_t>(sizeof info), read(fd, &info, sizeof info));
  EXPECT_EQ(static_cast<uint32_t>(SIGUSR1), info.ssi_signo);
  EXPECT_EQ(static_cast<uint32_t>(getpid()), info.ssi_pid);
  close(fd);
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

TEST(Timerfd, OneShotAndInterval) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  ASSERT_OK(fd);
  itimerspec spec{{0, 10000000}, {0, 20000000}};
  ASSERT_OK(timerfd_settime(fd, 0, &spec, nullptr));
  uint64_t n;
  EXPECT_ERRNO(read(fd, &n, 8), EAGAIN);
  pollfd p{fd, POLLIN, 0};
  EXPECT_EQ(1, poll(&p, 1, 2000));
  EXPECT_EQ(8, read(fd, &n, 8));
  EXPECT_GE(n, 1u);
  SleepMs(60);
  EXPECT_EQ(8, read(fd, &n, 8));
  EXPECT_GE(n, 3u);
  itimerspec now;
  ASSERT_OK(timerfd_gettime(fd, &now));
  EXPECT_EQ(10000000, now.it_interval.tv_nsec);
  spec = {};
  ASSERT_OK(timerfd_settime(fd, 0, &spec, nullptr));
  EXPECT_ERRNO(timerfd_create(77, 0), EINVAL);
  close(fd);
}
