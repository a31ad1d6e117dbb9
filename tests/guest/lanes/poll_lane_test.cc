// poll(2) and ppoll(2) of connections that are used so much that a kernel may find shorter ways to
// wait for them.
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <atomic>
#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

struct BusyPipe {
  int reader, writer;
  BusyPipe() {
    int fds[2];
    EXPECT_OK(pipe(fds));
    reader = fds[0];
    writer = fds[1];
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(1, write(writer, "x", 1));
      EXPECT_EQ("x", ReadAll(reader, 1));
    }
  }
  ~BusyPipe() {
    close(reader);
    close(writer);
  }
};

// Waits until a thread of this process is blocked in poll(2).
bool WaitsInPoll(pid_t tid) {
  const std::string path = "/proc/self/task/" + std::to_string(tid) + "/syscall";
  const int64_t end = NowNs() + 10'000'000'000;
  while (NowNs() < end) {
    const std::string text = ReadFile(path);
    if (!text.empty() && text.front() >= '0' && text.front() <= '9' &&
        std::stol(text) == SYS_poll) {
      return true;
    }
    SleepMs(1);
  }
  return false;
}

// A thread that polls one descriptor without a limit of time.
struct Poller {
  std::atomic<pid_t> tid{0};
  std::atomic<int> revents{-1};
  std::thread thread;
  Poller(int fd, short events)
      : thread([this, fd, events] {
          tid = static_cast<pid_t>(syscall(SYS_gettid));
          pollfd p{fd, events, 0};
          const int n = poll(&p, 1, -1);
          revents = n == 1 ? p.revents : -2;
        }) {
    while (tid == 0) SleepMs(1);
  }
  int Join() {
    thread.join();
    return revents;
  }
};

TEST(PollLane, FindsWhatIsThere) {
  BusyPair a, b;
  EXPECT_EQ(0, Poll(a.server, POLLIN));
  EXPECT_EQ(POLLOUT, Poll(a.server, POLLIN | POLLOUT));
  ASSERT_EQ(1, write(a.client, "x", 1));
  EXPECT_EQ(POLLIN | POLLRDNORM, Poll(a.server, POLLIN | POLLRDNORM, -1));
  // What is not asked about is not told; what was there before is gone.
  pollfd fds[] = {{a.server, 0, 77},        {-1, POLLIN, 77},           {b.server, POLLIN, 77},
                  {a.server, POLLIN, 77},   {b.client, POLLWRNORM, 77}, {b.server, POLLIN, 0},
                  {-b.client, POLLOUT, -1}, {a.client, POLLIN, 5}};
  ASSERT_EQ(2, poll(fds, std::size(fds), -1));
  const short expected[] = {0, 0, 0, POLLIN, POLLWRNORM, 0, 0, 0};
  for (size_t i = 0; i < std::size(fds); ++i) EXPECT_EQ(expected[i], fds[i].revents) << i;
  EXPECT_EQ("x", ReadAll(a.server, 1));
}

TEST(PollLane, OthersAreFoundToo) {
  BusyPair a;
  BusyPipe p;
  const int plain = open("/dev/null", O_RDWR);
  pollfd fds[] = {{a.server, POLLIN, 0}, {p.reader, POLLIN, 0}, {plain, POLLIN, 0}, {999, 0, 0}};
  EXPECT_EQ(2, poll(fds, 4, -1));
  EXPECT_EQ(POLLIN, fds[2].revents);
  EXPECT_EQ(POLLNVAL, fds[3].revents);
  ASSERT_EQ(1, write(p.writer, "x", 1));
  EXPECT_EQ(1, poll(fds, 2, -1));
  EXPECT_EQ(0, fds[0].revents);
  EXPECT_EQ(POLLIN, fds[1].revents);
  close(plain);
}

TEST(PollLane, BadArguments) {
  BusyPair a;
  pollfd p{a.server, POLLOUT, 0};
  EXPECT_ERRNO(syscall(SYS_poll, 8, 1, 0), EFAULT);
  EXPECT_ERRNO(syscall(SYS_poll, ~0ull - 8, 1, 0), EFAULT);
  timespec bad{0, 1'000'000'000};
  EXPECT_ERRNO(ppoll(&p, 1, &bad, nullptr), EINVAL);
  EXPECT_EQ(1, ppoll(&p, 1, nullptr, nullptr));
  timespec zero{};
  EXPECT_EQ(1, ppoll(&p, 1, &zero, nullptr));
  p.events = POLLIN;
  EXPECT_EQ(0, ppoll(&p, 1, &zero, nullptr));
}

TEST(PollLane, TimesOut) {
  BusyPair a;
  for (int ms : {1, 30, 250}) {
    const int64_t begin = NowNs();
    EXPECT_EQ(0, Poll(a.server, POLLIN, ms));
    EXPECT_GE(NowNs() - begin, int64_t{ms} * 1'000'000);
  }
}

// Whatever comes, and by whichever of them, ends the wait.
TEST(PollLane, WaitsForData) {
  BusyPair a, b;
  BusyPipe p;
  const int count = 3000;
  std::thread echo([&] {
    pollfd fds[] = {{a.server, POLLIN, 0}, {b.server, POLLIN, 0}};
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(1, poll(fds, 2, -1));
      for (const pollfd& f : fds) {
        if (f.revents == 0) continue;
        ASSERT_EQ(POLLIN, f.revents);
        char c;
        ASSERT_EQ(1, read(f.fd, &c, 1));
        ASSERT_EQ(1, write(c % 3 == 0 ? p.writer : f.fd, &c, 1));
      }
    }
  });
  pollfd fds[] = {{a.client, POLLIN, 0}, {b.client, POLLIN, 0}, {p.reader, POLLIN, 0}};
  for (int i = 0; i < count; ++i) {
    const char c = static_cast<char>(i % 100);
    const size_t by = i % 7 < 3 ? 0 : 1;
    ASSERT_EQ(1, write(fds[by].fd, &c, 1));
    ASSERT_EQ(1, poll(fds, 3, -1));
    const size_t at = c % 3 == 0 ? 2 : by;
    ASSERT_EQ(POLLIN, fds[at].revents);
    char back;
    ASSERT_EQ(1, read(fds[at].fd, &back, 1));
    ASSERT_EQ(c, back);
  }
  echo.join();
}

TEST(PollLane, WaitsForRoom) {
  BusyPair a;
  ASSERT_OK(fcntl(a.client, F_SETFL, O_NONBLOCK));
  const size_t total = 20'000'000;
  std::thread reader([&] { EXPECT_EQ(total, ReadAll(a.server, total).size()); });
  const std::string block(30'000, 'x');
  size_t sent = 0;
  while (sent < total) {
    const ssize_t n = write(a.client, block.data(), std::min(block.size(), total - sent));
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    ASSERT_EQ(EAGAIN, errno);
    ASSERT_EQ(POLLOUT, Poll(a.client, POLLOUT, -1));
  }
  reader.join();
}

TEST(PollLane, CountersToo) {
  const int there = eventfd(0, 0), back = eventfd(0, EFD_SEMAPHORE);
  std::thread echo([&] {
    for (int i = 0; i < 2000; ++i) {
      uint64_t n;
      ASSERT_EQ(POLLIN, Poll(there, POLLIN, -1));
      ASSERT_EQ(8, read(there, &n, 8));
      ASSERT_EQ(8, write(back, &n, 8));
    }
  });
  for (int i = 0; i < 2000; ++i) {
    uint64_t n = 1;
    ASSERT_EQ(8, write(there, &n, 8));
    ASSERT_EQ(POLLIN, Poll(back, POLLIN, -1));
    ASSERT_EQ(8, read(back, &n, 8));
  }
  echo.join();
  close(there);
  close(back);
}

TEST(PollLane, SeveralWaitForTheSame) {
  BusyPair a;
  std::vector<std::unique_ptr<Poller>> pollers;
  for (int i = 0; i < 4; ++i) pollers.push_back(std::make_unique<Poller>(a.server, POLLIN));
  const int epoll = epoll_create1(0);
  epoll_event event{.events = EPOLLIN, .data = {}};
  ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, a.server, &event));
  std::thread waiter([&] {
    epoll_event found;
    EXPECT_EQ(1, epoll_wait(epoll, &found, 1, -1));
  });
  for (const auto& p : pollers) ASSERT_TRUE(WaitsInPoll(p->tid));
  ASSERT_EQ(1, write(a.client, "x", 1));
  for (const auto& p : pollers) EXPECT_EQ(POLLIN, p->Join());
  waiter.join();
  close(epoll);
}

TEST(PollLane, EndsOfStreams) {
  for (int how : {0, 1, 2}) {
    BusyPair a;
    Poller p(a.server, POLLIN | POLLRDHUP);
    ASSERT_TRUE(WaitsInPoll(p.tid));
    const int64_t begin = NowNs();
    if (how == 0) {
      ASSERT_OK(shutdown(a.client, SHUT_WR));
      EXPECT_EQ(POLLIN | POLLRDHUP, p.Join());
    } else if (how == 1) {
      close(a.client);
      a.client = -1;
      EXPECT_EQ(POLLIN | POLLRDHUP, p.Join());
    } else {
      ASSERT_OK(shutdown(a.server, SHUT_RDWR));
      EXPECT_EQ(POLLIN | POLLRDHUP | POLLHUP, p.Join() | POLLHUP);
    }
    EXPECT_LT(NowNs() - begin, 5'000'000'000);
  }
}

// Linux looks the descriptor up again when something comes.
TEST(PollLane, TheDescriptorIsClosed) {
  BusyPair a;
  const int kept = dup(a.server);
  Poller p(a.server, POLLIN);
  ASSERT_TRUE(WaitsInPoll(p.tid));
  close(a.server);
  a.server = kept;
  ASSERT_EQ(1, write(a.client, "x", 1));
  EXPECT_EQ(POLLNVAL, p.Join());
}

std::atomic<int> g_signals;

TEST(PollLane, Signals) {
  struct sigaction action {};
  action.sa_handler = [](int) { ++g_signals; };
  action.sa_flags = SA_RESTART;  // poll(2) does not
  struct sigaction old;
  ASSERT_OK(sigaction(SIGALRM, &action, &old));
  BusyPair a;
  for (int i = 0; i < 5; ++i) {
    const int before = g_signals;
    // One that comes before the wait is followed by others.
    const itimerval often{.it_interval = {0, 3000}, .it_value = {0, 3000}}, never{};
    ASSERT_OK(setitimer(ITIMER_REAL, &often, nullptr));
    pollfd p{a.server, POLLIN, 0};
    EXPECT_ERRNO(i % 2 == 0 ? poll(&p, 1, -1) : ppoll(&p, 1, nullptr, nullptr), EINTR);
    ASSERT_OK(setitimer(ITIMER_REAL, &never, nullptr));
    EXPECT_LT(before, g_signals);
  }
  ASSERT_OK(sigaction(SIGALRM, &old, nullptr));
}

// The time that is left counts on after a stop.
TEST(PollLane, GoesOnAfterAStop) {
  BusyPair a;
  const pid_t pid = fork();
  if (pid == 0) {
    const int64_t begin = NowNs();
    const int n = Poll(a.server, POLLIN, 300);
    _exit(n == 0 && NowNs() - begin >= 300'000'000 ? 0 : 1);
  }
  SleepMs(10);
  int status;
  ASSERT_OK(kill(pid, SIGSTOP));
  ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
  ASSERT_OK(kill(pid, SIGCONT));
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
}

}  // namespace
