// Busy connections between processes of different users: a client that may do everything, and a
// server that may not.
#include <sys/prctl.h>

#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

constexpr int kTimes = 400;

// A process of another user that gives back what comes by each of `count` connections.
struct Server {
  pid_t pid = -1;
  std::vector<int> clients;

  explicit Server(int count, uid_t uid = 1000) {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    Loopback address(AF_INET);
    EXPECT_OK(address.Bind(listener));
    EXPECT_OK(listen(listener, count));
    pid = fork();
    if (pid == 0) {
      if (setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0) _exit(2);
      prctl(PR_SET_DUMPABLE, 1);
      Serve(listener, count);
    }
    Loopback name = NameOf(listener);
    close(listener);
    for (int i = 0; i < count; ++i) {
      clients.push_back(socket(AF_INET, SOCK_STREAM, 0));
      EXPECT_OK(name.Connect(clients.back()));
      EXPECT_OK(SetInt(clients.back(), IPPROTO_TCP, TCP_NODELAY, 1));
    }
  }
  ~Server() {
    for (int fd : clients) close(fd);
    if (pid > 0) End(0);
  }
  void End(int expected) {
    int status = -1;
    EXPECT_EQ(pid, waitpid(pid, &status, 0));
    EXPECT_EQ(expected, status);
    pid = -1;
  }
  [[noreturn]] static void Serve(int listener, int count) {
    const int epoll = epoll_create1(0);
    for (int i = 0; i < count; ++i) {
      const int fd = accept(listener, nullptr, nullptr);
      epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
      if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) _exit(3);
    }
    while (count > 0) {
      epoll_event event;
      if (epoll_wait(epoll, &event, 1, -1) != 1) _exit(4);
      char buffer[1000];
      const ssize_t n = read(event.data.fd, buffer, sizeof buffer);
      if (n < 0 || (n > 0 && write(event.data.fd, buffer, static_cast<size_t>(n)) != n)) _exit(5);
      if (n > 0) continue;
      close(event.data.fd);
      --count;
    }
    _exit(0);
  }
};

void Ask(int fd, int i) {
  const std::string message = "message " + std::to_string(i);
  ASSERT_EQ(static_cast<ssize_t>(message.size()), write(fd, message.data(), message.size()));
}
void Hear(int fd, int i) {
  const std::string message = "message " + std::to_string(i);
  ASSERT_EQ(message, ReadAll(fd, message.size()));
}

class LesserLane : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "may not become another user";
  }
};

TEST_F(LesserLane, ReadsAndWrites) {
  Server s(1);
  for (int i = 0; i < kTimes; ++i) {
    Ask(s.clients[0], i);
    Hear(s.clients[0], i);
  }
}

TEST_F(LesserLane, Poll) {
  Server s(3);
  std::vector<pollfd> fds;
  for (int fd : s.clients) fds.push_back({fd, POLLIN, 0});
  for (int i = 0; i < kTimes; ++i) {
    for (int fd : s.clients) Ask(fd, i);
    int heard = 0;
    for (pollfd& p : fds) p.events = POLLIN;
    while (heard < 3) {
      ASSERT_LT(0, poll(fds.data(), 3, -1));
      for (pollfd& p : fds) {
        if (p.revents == 0) continue;
        ASSERT_EQ(POLLIN, p.revents);
        Hear(p.fd, i);
        ++heard;
      }
    }
  }
}

TEST_F(LesserLane, EpollAndFilesOfItsOwn) {
  Server s(3);
  int own[2];
  ASSERT_OK(pipe(own));
  const int epoll = epoll_create1(0);
  for (int fd : {s.clients[0], s.clients[1], s.clients[2], own[0]}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
  }
  std::thread writer([&] {
    for (int i = 0; i < kTimes; ++i) ASSERT_EQ(1, write(own[1], "x", 1));
  });
  int asked = 0, heard = 0, own_heard = 0;
  for (int fd : s.clients) Ask(fd, 0);
  asked = 1;
  int left = 3;
  while (heard < kTimes || own_heard < kTimes) {
    epoll_event event;
    ASSERT_EQ(1, epoll_wait(epoll, &event, 1, -1));
    if (event.data.fd == own[0]) {
      ASSERT_EQ("x", ReadAll(own[0], 1));
      ++own_heard;
      continue;
    }
    Hear(event.data.fd, heard);
    if (--left > 0) continue;
    if (++heard == kTimes) continue;
    for (int fd : s.clients) Ask(fd, asked);
    ++asked;
    left = 3;
  }
  writer.join();
  for (int fd : {epoll, own[0], own[1]}) close(fd);
}

// Each thread has its own connections, to servers of two users.
TEST_F(LesserLane, SeveralUsers) {
  Server a(2, 1000), b(2, 1001);
  std::vector<std::thread> threads;
  for (int fd : {a.clients[0], b.clients[0], a.clients[1], b.clients[1]}) {
    threads.emplace_back([fd] {
      for (int i = 0; i < kTimes; ++i) {
        Ask(fd, i);
        Hear(fd, i);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST_F(LesserLane, ChildrenGoOnWithIt) {
  Server s(2);
  for (int i = 0; i < kTimes; ++i) {
    Ask(s.clients[0], i);
    Hear(s.clients[0], i);
  }
  const pid_t pid = fork();
  if (pid == 0) {
    // A pair of its own, beside what it has inherited.
    BusyPair own;
    for (int i = 0; i < kTimes; ++i) {
      Ask(s.clients[1], i);
      Hear(s.clients[1], i);
    }
    Exchange(own.client, own.server);
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  Ask(s.clients[1], 0);
  Hear(s.clients[1], 0);
}

TEST_F(LesserLane, TheServerIsKilled) {
  Server s(2);
  for (int i = 0; i < kTimes; ++i) {
    Ask(s.clients[0], i);
    Hear(s.clients[0], i);
    Ask(s.clients[1], i);
    Hear(s.clients[1], i);
  }
  std::thread waits([&] { EXPECT_EQ("", ReadAll(s.clients[0], 1)); });
  std::thread polls([&] { EXPECT_NE(0, Poll(s.clients[1], POLLIN, -1)); });
  ASSERT_OK(kill(s.pid, SIGKILL));
  waits.join();
  polls.join();
  s.End(SIGKILL);
}

// Who gives its rights up keeps its connections.
TEST_F(LesserLane, TheClientBecomesAnother) {
  Server s(1);
  const pid_t pid = fork();
  if (pid == 0) {
    for (int i = 0; i < kTimes; ++i) {
      if (i == kTimes / 2 &&
          (setresgid(1002, 1002, 1002) != 0 || setresuid(1002, 1002, 1002) != 0)) {
        _exit(2);
      }
      Ask(s.clients[0], i);
      Hear(s.clients[0], i);
    }
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
}

}  // namespace
