// Waiting for what is used so much that a kernel may find shorter ways to wait for it: whoever
// waits, in whatever way, is woken, and by all that is to wake it.
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

// Two descriptors: what is written to the one is read from the other. They have been in use.
struct Channel {
  int reader = -1, writer = -1;
  bool socket = false;
  Channel(const Channel&) = delete;
  explicit Channel(bool of_sockets = false) : socket(of_sockets) {
    int fds[2];
    if (socket) {
      EXPECT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
      Exchange(fds[0], fds[1], 300);
    } else {
      EXPECT_OK(pipe(fds));
    }
    reader = fds[0];
    writer = fds[1];
    Use();
  }
  ~Channel() {
    for (int* fd : {&reader, &writer}) Close(fd);
  }
  static void Close(int* fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
  void Use() const {
    for (int i = 0; i < 300; ++i) {
      Put("used");
      EXPECT_EQ("used", ReadAll(reader, 4));
    }
  }
  void Put(const std::string& text) const {
    EXPECT_EQ(static_cast<ssize_t>(text.size()), write(writer, text.data(), text.size()));
  }
  // 0: the end; else the byte; -1: an error.
  int Take() const {
    char c;
    const ssize_t n = read(reader, &c, 1);
    return n == 1 ? c : static_cast<int>(n);
  }
};

constexpr int kSoonMs = 20;  // by then who is to wait does

// Waits until the task is blocked in a call of this number.
bool WaitsIn(pid_t tid, long nr) {
  const std::string path = "/proc/" + std::to_string(tid) + "/syscall";
  const int64_t end = NowNs() + 5'000'000'000;
  while (NowNs() < end) {
    const std::string text = ReadFile(path);
    if (!text.empty() && text.front() >= '0' && text.front() <= '9' && std::stol(text) == nr) {
      return true;
    }
    SleepMs(1);
  }
  return false;
}

char StateOf(pid_t pid) {
  const std::string text = ReadFile("/proc/" + std::to_string(pid) + "/stat");
  const size_t at = text.rfind(')');
  return at == std::string::npos ? '?' : text[at + 2];
}

// A process that takes bytes of `c` and gives each back through `back`, until there are no more.
struct Echo {
  Channel there, back;
  pid_t pid;
  explicit Echo(bool of_sockets = false) : there(of_sockets), back(of_sockets), pid(fork()) {
    if (pid == 0) {
      Channel::Close(&there.writer);
      Channel::Close(&back.reader);
      int c;
      while ((c = there.Take()) > 0) back.Put(std::string(1, static_cast<char>(c)));
      _exit(c == 0 ? 0 : 1);
    }
    Channel::Close(&there.reader);
    Channel::Close(&back.writer);
    Talk(300);
  }
  ~Echo() {
    if (pid > 0) End(0);
  }
  void Talk(int times) const {
    for (int i = 0; i < times; ++i) {
      const char c = static_cast<char>('a' + i % 26);
      there.Put(std::string(1, c));
      ASSERT_EQ(c, back.Take());
    }
  }
  void End(int expected) {
    Channel::Close(&there.writer);
    int status = -1;
    EXPECT_EQ(pid, waitpid(pid, &status, 0));
    EXPECT_EQ(expected, status);
    pid = -1;
  }
};

std::atomic<int> g_signals;
const Channel* g_signalled;
void Count(int) { ++g_signals; }
void CountAndPut(int) {
  ++g_signals;
  write(g_signalled->writer, "s", 1);
}

void Handle(int signo, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  EXPECT_OK(sigaction(signo, &action, nullptr));
}

void AlarmInMs(int ms) {
  itimerval timer{{0, 0}, {0, ms * 1000}};
  EXPECT_OK(setitimer(ITIMER_REAL, &timer, nullptr));
}

// Again and again, since the first may come before the call that it is to end.
class Alarms {
 public:
  Alarms() { Every(10'000); }
  ~Alarms() { Every(0); }

 private:
  static void Every(int us) {
    itimerval timer{{0, us}, {0, us}};
    EXPECT_OK(setitimer(ITIMER_REAL, &timer, nullptr));
  }
};

class LaneWaits : public testing::TestWithParam<bool> {};

TEST_P(LaneWaits, ASignalEndsTheCall) {
  Channel c(GetParam());
  Handle(SIGALRM, Count, 0);
  for (int i = 0; i < 10; ++i) {
    g_signals = 0;
    {
      const Alarms alarms;
      char byte;
      EXPECT_ERRNO(read(c.reader, &byte, 1), EINTR);
      EXPECT_LE(1, g_signals.load());
    }
    c.Put("x");
    EXPECT_EQ('x', c.Take());
  }
}

TEST_P(LaneWaits, ACallIsRestarted) {
  Channel c(GetParam());
  g_signalled = &c;
  Handle(SIGALRM, CountAndPut, SA_RESTART);
  for (int i = 0; i < 10; ++i) {
    g_signals = 0;
    AlarmInMs(10);
    EXPECT_EQ('s', c.Take());
    EXPECT_EQ(1, g_signals.load());
  }
}

TEST_P(LaneWaits, ManySignalsWhileTalking) {
  Echo e(GetParam());
  Handle(SIGALRM, Count, SA_RESTART);
  itimerval timer{{0, 300}, {0, 300}};
  ASSERT_OK(setitimer(ITIMER_REAL, &timer, nullptr));
  e.Talk(5000);
  timer = {};
  ASSERT_OK(setitimer(ITIMER_REAL, &timer, nullptr));
}

TEST_P(LaneWaits, TheWaiterIsSeen) {
  Echo e(GetParam());
  ASSERT_TRUE(WaitsIn(e.pid, SYS_read));
  EXPECT_EQ('S', StateOf(e.pid));
  e.Talk(10);
}

TEST_P(LaneWaits, TheWaiterIsKilled) {
  Channel c(GetParam());
  for (int i = 0; i < 5; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      c.Use();
      c.Take();
      _exit(1);
    }
    SleepMs(kSoonMs);
    ASSERT_OK(kill(child, SIGKILL));
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    ASSERT_EQ(SIGKILL, WTERMSIG(status));
    while (recv(c.reader, &status, 1, MSG_DONTWAIT) == 1) {
    }
    int unread = 0;
    ASSERT_OK(ioctl(c.reader, FIONREAD, &unread));
    ReadAll(c.reader, static_cast<size_t>(unread));
    c.Put("x");
    ASSERT_EQ('x', c.Take());
  }
}

// What was written before is read, and then the end.
TEST_P(LaneWaits, TheWriterIsKilled) {
  for (int i = 0; i < 10; ++i) {
    Channel c(GetParam());
    const pid_t child = fork();
    if (child == 0) {
      Channel::Close(&c.reader);
      while (true) write(c.writer, "0123456789", 10);
    }
    Channel::Close(&c.writer);
    std::thread killer([&] {
      SleepMs(5);
      kill(child, SIGKILL);
    });
    size_t got = 0;
    for (std::string part; !(part = ReadAll(c.reader, 10)).empty();) got += part.size();
    if (!GetParam()) EXPECT_EQ(0u, got % 10);
    killer.join();
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
  }
}

TEST_P(LaneWaits, TheLastWriterCloses) {
  Echo e(GetParam());
  ASSERT_TRUE(WaitsIn(e.pid, SYS_read));
  e.End(0);
}

TEST_P(LaneWaits, TheWaiterIsStopped) {
  Echo e(GetParam());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(WaitsIn(e.pid, SYS_read));
    ASSERT_OK(kill(e.pid, SIGSTOP));
    int status;
    ASSERT_EQ(e.pid, waitpid(e.pid, &status, WUNTRACED));
    ASSERT_TRUE(WIFSTOPPED(status));
    EXPECT_EQ('T', StateOf(e.pid));
    if (i % 2 == 0) e.there.Put("x");
    ASSERT_OK(kill(e.pid, SIGCONT));
    if (i % 2 != 0) e.there.Put("x");
    ASSERT_EQ('x', e.back.Take());
    e.Talk(100);
  }
}

TEST_P(LaneWaits, TheWaiterIsTraced) {
  Echo e(GetParam());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(WaitsIn(e.pid, SYS_read));
    ASSERT_OK(ptrace(PTRACE_ATTACH, e.pid, 0, 0));
    int status;
    ASSERT_EQ(e.pid, waitpid(e.pid, &status, 0));
    ASSERT_TRUE(WIFSTOPPED(status));
    ASSERT_OK(ptrace(PTRACE_DETACH, e.pid, 0, 0));
    e.Talk(100);
  }
}

// Another waits in another way, and others still ask whether there is something.
TEST_P(LaneWaits, WaitersOfAllKindsAtOnce) {
  Channel c(GetParam());
  constexpr int kTimes = 2000;
  std::atomic<int> taken{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (c.Take() == 'x') ++taken;
    });
  }
  threads.emplace_back([&] {
    while (!over) {
      pollfd p{c.reader, POLLIN, 0};
      poll(&p, 1, 50);
    }
  });
  threads.emplace_back([&] {
    const int epoll = epoll_create1(0);
    epoll_event event{EPOLLIN, {}};
    EXPECT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, c.reader, &event));
    while (!over) epoll_wait(epoll, &event, 1, 50);
    close(epoll);
  });
  for (int i = 0; i < kTimes; ++i) {
    c.Put("x");
    if (i % 100 == 0) SleepMs(1);
  }
  const int64_t end = NowNs() + 10'000'000'000;
  while (taken < kTimes && NowNs() < end) SleepMs(1);
  EXPECT_EQ(kTimes, taken.load());
  over = true;
  c.Put("oo");
  for (auto& t : threads) t.join();
}

TEST_P(LaneWaits, ManyProcessesWait) {
  Channel c(GetParam()), back(GetParam());
  constexpr int kProcesses = 6, kTimes = 300;
  std::vector<pid_t> children;
  for (int i = 0; i < kProcesses; ++i) {
    children.push_back(fork());
    if (children.back() == 0) {
      int byte;
      while ((byte = c.Take()) == 'x') back.Put("y");
      _exit(byte == 'e' ? 0 : 1);
    }
  }
  for (int i = 0; i < kTimes; ++i) {
    const size_t n = static_cast<size_t>(1 + i % kProcesses);
    if (i % 2 == 0) {
      c.Put(std::string(n, 'x'));
    } else {
      for (size_t k = 0; k < n; ++k) c.Put("x");
    }
    ASSERT_EQ(std::string(n, 'y'), ReadAll(back.reader, n));
  }
  c.Put(std::string(kProcesses, 'e'));
  for (pid_t child : children) {
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
    EXPECT_EQ(0, status);
  }
}

// Who reads goes on with what the descriptor was when the call began.
TEST_P(LaneWaits, TheDescriptorIsClosedMeanwhile) {
  for (int round = 0; round < 6; ++round) {
    Channel c(GetParam()), other(GetParam());
    std::atomic<pid_t> tid{0};
    int got = -2;
    std::thread waiter([&] {
      c.Use();
      tid = gettid();
      got = c.Take();
    });
    while (tid == 0) SleepMs(1);
    ASSERT_TRUE(WaitsIn(tid, SYS_read));
    if (round % 2 == 0) {
      other.Put("o");
      ASSERT_OK(dup2(other.reader, c.reader));
    } else {
      ASSERT_OK(close(c.reader));
    }
    SleepMs(kSoonMs);
    EXPECT_EQ(-2, got);
    ASSERT_EQ(1, write(c.writer, "x", 1));
    waiter.join();
    EXPECT_EQ('x', got);
    if (round % 2 != 0) c.reader = -1;
  }
}

TEST_P(LaneWaits, TheProcessEndsMeanwhile) {
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(7, ExitStatus([] {
                Channel c(GetParam());
                std::vector<std::thread> waiters;
                for (int k = 0; k < 3; ++k) {
                  waiters.emplace_back([&] {
                    for (int n = 0; n < 200; ++n) c.Put("u");
                    while (true) c.Take();
                  });
                }
                SleepMs(kSoonMs);
                _exit(7);
                return 0;
              }));
  }
}

TEST_P(LaneWaits, ForksWhileAnotherWaits) {
  Channel c(GetParam());
  for (int i = 0; i < 20; ++i) {
    int got = 0;
    std::thread waiter([&] { got = c.Take(); });
    SleepMs(1);
    const pid_t child = fork();
    if (child == 0) {
      write(c.writer, "f", 1);
      _exit(0);
    }
    waiter.join();
    EXPECT_EQ('f', got);
    int status;
    ASSERT_EQ(child, waitpid(child, &status, 0));
  }
}

// The one is no longer the other's equal, but they go on.
TEST_P(LaneWaits, TheOtherBecomesSomebodyElse) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  Channel there(GetParam()), back(GetParam());
  const pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 600; ++i) {
      const int c = there.Take();
      if (i == 300 && setresuid(1000, 1000, 1000) != 0) _exit(2);
      SleepMs(i == 300 ? kSoonMs : 0);
      back.Put(std::string(1, static_cast<char>(c)));
    }
    _exit(0);
  }
  for (int i = 0; i < 600; ++i) {
    const char c = static_cast<char>('a' + i % 26);
    there.Put(std::string(1, c));
    ASSERT_EQ(c, back.Take()) << i;
  }
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

// Another process that has the same description says that nobody is to wait any more.
TEST_P(LaneWaits, ItIsToBeLeftAtOnce) {
  Channel c(GetParam());
  EXPECT_EQ(0, ExitStatus([&] { return fcntl(c.reader, F_SETFL, O_NONBLOCK); }));
  char byte;
  for (int i = 0; i < 3; ++i) EXPECT_ERRNO(read(c.reader, &byte, 1), EAGAIN);
  EXPECT_EQ(0, ExitStatus([&] { return fcntl(c.reader, F_SETFL, 0); }));
  Handle(SIGALRM, Count, 0);
  const Alarms alarms;
  EXPECT_ERRNO(read(c.reader, &byte, 1), EINTR);
}

TEST_P(LaneWaits, WhoWritesWaitsForRoom) {
  Channel c(GetParam());
  if (GetParam()) ASSERT_OK(SetInt(c.writer, SOL_SOCKET, SO_SNDBUF, 16384));
  constexpr size_t kTotal = 3'000'000;
  for (size_t size : {size_t{1000}, size_t{4096}, size_t{30'000}}) {
    std::thread writer([&] {
      const std::string part(size, 'w');
      for (size_t sent = 0; sent < kTotal; sent += size) c.Put(part);
    });
    const size_t total = (kTotal + size - 1) / size * size;
    size_t got = 0;
    for (int i = 0; got < total; ++i) {
      if (i % 64 == 0) SleepMs(1);
      got += ReadAll(c.reader, std::min<size_t>(total - got, 5000)).size();
    }
    writer.join();
    EXPECT_EQ(total, got);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, LaneWaits, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Sockets" : "Pipes"; });

TEST(LaneWaitsOfSockets, EachShutdownWakes) {
  for (int how : {SHUT_RD, SHUT_WR}) {
    for (bool tcp : {false, true}) {
      int fds[2];
      BusyPair pair;
      fds[0] = pair.client;
      fds[1] = pair.server;
      if (!tcp) {
        ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
        Exchange(fds[0], fds[1]);
      }
      std::thread other([&] {
        SleepMs(kSoonMs);
        EXPECT_OK(shutdown(how == SHUT_RD ? fds[0] : fds[1], how));
      });
      char byte;
      EXPECT_EQ(0, recv(fds[0], &byte, 1, 0));
      other.join();
      if (!tcp) {
        close(fds[0]);
        close(fds[1]);
      }
    }
  }
}

TEST(LaneWaitsOfSockets, TimeLimitsHold) {
  BusyPair pair;
  for (int i = 0; i < 3; ++i) {
    timeval limit{0, 30'000};
    ASSERT_OK(setsockopt(pair.client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
    const int64_t begin = NowNs();
    char byte;
    EXPECT_ERRNO(recv(pair.client, &byte, 1, 0), EAGAIN);
    EXPECT_GE(NowNs() - begin, 29'000'000);
    EXPECT_ERRNO(recv(pair.client, &byte, 1, MSG_DONTWAIT), EAGAIN);
    limit = {0, 0};
    ASSERT_OK(setsockopt(pair.client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)));
    std::thread other([&] {
      SleepMs(kSoonMs);
      write(pair.server, "x", 1);
    });
    EXPECT_EQ(1, recv(pair.client, &byte, 1, 0));
    other.join();
  }
}

TEST(LaneWaitsOfCounters, EachValueIsTakenOnce) {
  const int counter = eventfd(0, EFD_SEMAPHORE), back = eventfd(0, 0);
  auto add = [](int fd, uint64_t n) { EXPECT_EQ(8, write(fd, &n, 8)); };
  auto take = [](int fd) {
    uint64_t n = 0;
    EXPECT_EQ(8, read(fd, &n, 8));
    return n;
  };
  for (int i = 0; i < 100; ++i) {
    add(counter, 1);
    add(back, take(counter));
    take(back);
  }
  constexpr int kThreads = 4, kTimes = 1000;
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < kTimes; ++k) {
        EXPECT_EQ(1u, take(counter));
        ++taken;
        add(back, 1);
      }
    });
  }
  for (uint64_t left = kThreads * kTimes; left > 0;) {
    const uint64_t n = std::min<uint64_t>(left, 1 + left % 5);
    add(counter, n);
    left -= n;
    for (uint64_t got = 0; got < n;) got += take(back);
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(kThreads * kTimes, taken.load());
  // Room for more comes when somebody reads.
  add(back, 0xfffffffffffffffe);
  std::thread reader([&] {
    SleepMs(kSoonMs);
    EXPECT_EQ(0xfffffffffffffffe, take(back));
  });
  add(back, 5);
  reader.join();
  EXPECT_EQ(5u, take(back));
  close(counter);
  close(back);
}

// --- epoll ---

struct Watcher {
  int fd = epoll_create1(0);
  ~Watcher() {
    if (fd >= 0) close(fd);
  }
  void Watch(int target, uint32_t events = EPOLLIN, int op = EPOLL_CTL_ADD) const {
    epoll_event e{events, {.fd = target}};
    ASSERT_OK(epoll_ctl(fd, op, target, &e));
  }
  // The descriptor that is ready; -1: an error, 0: none in time.
  int Wait(int timeout_ms = -1) const {
    epoll_event e;
    const int n = epoll_wait(fd, &e, 1, timeout_ms);
    return n == 1 ? e.data.fd : n;
  }
  void Use(const Channel& c) const {
    for (int i = 0; i < 300; ++i) {
      c.Put("u");
      ASSERT_EQ(c.reader, Wait());
      ASSERT_EQ('u', c.Take());
      ASSERT_EQ(0, Wait(0));
    }
  }
};

TEST(LaneWaitsOfEpoll, AProcessAnswers) {
  Echo e;
  Watcher w;
  w.Watch(e.back.reader);
  for (int i = 0; i < 1000; ++i) {
    e.there.Put("x");
    ASSERT_EQ(e.back.reader, w.Wait());
    ASSERT_EQ('x', e.back.Take());
  }
  e.there.Put("x");
  ASSERT_EQ(e.back.reader, w.Wait(5000));
  ASSERT_EQ('x', e.back.Take());
  e.End(0);
  ASSERT_EQ(e.back.reader, w.Wait());
  EXPECT_EQ(0, e.back.Take());
}

TEST(LaneWaitsOfEpoll, TimePasses) {
  Channel c;
  Watcher w;
  w.Watch(c.reader);
  w.Use(c);
  for (int i = 0; i < 5; ++i) {
    const int64_t begin = NowNs();
    EXPECT_EQ(0, w.Wait(30));
    EXPECT_GE(NowNs() - begin, 29'000'000);
    EXPECT_LE(NowNs() - begin, 2'000'000'000);
  }
}

// What is watched besides has no short way.
TEST(LaneWaitsOfEpoll, OtherFilesWake) {
  Channel c;
  Watcher w;
  w.Watch(c.reader);
  Listener listener;
  w.Watch(listener.fd);
  w.Use(c);
  for (int i = 0; i < 3; ++i) {
    int client = -1;
    std::thread other([&] {
      SleepMs(kSoonMs);
      client = listener.Client();
    });
    EXPECT_EQ(listener.fd, w.Wait());
    other.join();
    close(listener.Accept());
    close(client);
    w.Use(c);
  }
}

TEST(LaneWaitsOfEpoll, AWatchIsAddedMeanwhile) {
  Channel c, d;
  Watcher w;
  w.Watch(c.reader);
  w.Use(c);
  for (int i = 0; i < 5; ++i) {
    d.Put("d");
    std::thread other([&] {
      SleepMs(kSoonMs);
      w.Watch(d.reader);
    });
    EXPECT_EQ(d.reader, w.Wait());
    other.join();
    EXPECT_EQ('d', d.Take());
    // And of one that is ready later.
    std::thread third([&] {
      SleepMs(kSoonMs);
      d.Put("e");
    });
    EXPECT_EQ(d.reader, w.Wait());
    third.join();
    EXPECT_EQ('e', d.Take());
    ASSERT_OK(epoll_ctl(w.fd, EPOLL_CTL_DEL, d.reader, nullptr));
  }
}

TEST(LaneWaitsOfEpoll, SignalsEndIt) {
  Channel c;
  Watcher w;
  w.Watch(c.reader);
  w.Use(c);
  for (int flags : {0, SA_RESTART}) {
    Handle(SIGALRM, Count, flags);
    g_signals = 0;
    const Alarms alarms;
    EXPECT_ERRNO(w.Wait(), EINTR);
    EXPECT_LE(1, g_signals.load());
  }
}

TEST(LaneWaitsOfEpoll, TheInstanceIsClosedMeanwhile) {
  for (int i = 0; i < 3; ++i) {
    Channel c;
    Watcher w;
    w.Watch(c.reader);
    w.Use(c);
    std::atomic<pid_t> tid{0};
    std::atomic<int> got{-2};
    std::thread waiter([&] {
      w.Use(c);
      tid = gettid();
      got = w.Wait();
    });
    while (tid == 0) SleepMs(1);
    ASSERT_TRUE(WaitsIn(tid, SYS_epoll_wait));
    ASSERT_OK(close(w.fd));
    w.fd = -1;
    SleepMs(kSoonMs);
    EXPECT_EQ(-2, got.load());
    c.Put("x");
    waiter.join();
    EXPECT_EQ(c.reader, got.load());
  }
}

TEST(LaneWaitsOfEpoll, SomeWaitTogether) {
  Channel c, back;
  Watcher w;
  w.Watch(c.reader);
  w.Use(c);
  constexpr int kThreads = 3, kTimes = 500;
  std::vector<std::thread> threads;
  ASSERT_OK(fcntl(c.reader, F_SETFL, O_NONBLOCK));
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      while (w.Wait() == c.reader) {
        char byte;
        if (read(c.reader, &byte, 1) != 1) continue;
        if (byte == 'e') break;
        back.Put("y");
      }
    });
  }
  for (int i = 0; i < kTimes; ++i) {
    c.Put("x");
    ASSERT_EQ('y', back.Take());
  }
  for (int i = 0; i < kThreads; ++i) c.Put("e");
  for (auto& t : threads) t.join();
}

TEST(LaneWaitsOfEpoll, EdgesWake) {
  Echo e;
  Watcher w;
  w.Watch(e.back.reader, EPOLLIN | EPOLLET);
  for (int i = 0; i < 500; ++i) {
    e.there.Put("xy");
    ASSERT_EQ(e.back.reader, w.Wait());
    ASSERT_EQ("xy", ReadAll(e.back.reader, 2));
  }
}

TEST(LaneWaitsOfEpoll, RoomWakes) {
  Channel c;
  Watcher w;
  w.Watch(c.reader);
  w.Use(c);
  ASSERT_OK(fcntl(c.writer, F_SETFL, O_NONBLOCK));
  w.Watch(c.writer, EPOLLOUT);
  w.Watch(c.reader, 0, EPOLL_CTL_MOD);
  const std::string page(4096, 'p');
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(c.writer, w.Wait());
    while (write(c.writer, page.data(), page.size()) > 0) {
    }
    std::thread other([&] {
      SleepMs(i % 3);
      EXPECT_EQ(65536u, ReadAll(c.reader, 65536).size());
    });
    ASSERT_EQ(c.writer, w.Wait());
    other.join();
  }
}

}  // namespace
