// Epoll instances that watch busy connections: whatever way a kernel finds to be quick about them,
// each call has its effect when it returns.
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

constexpr int kPairs = 8;

class EpollLane : public testing::Test {
 protected:
  void SetUp() override {
    epoll_ = epoll_create1(0);
    for (int i = 0; i < kPairs; ++i) {
      pairs_.push_back(std::make_unique<BusyPair>());
      ASSERT_OK(Control(EPOLL_CTL_ADD, i, EPOLLIN));
    }
    // Many calls, as a server makes them.
    for (int round = 0; round < 60; ++round) {
      const int i = round % kPairs;
      write(client(i), "x", 1);
      ASSERT_EQ((std::map<int, uint32_t>{{i, EPOLLIN}}), Wait(1000));
      ReadAll(server(i), 1);
    }
  }
  void TearDown() override { close(epoll_); }

  int client(int i) { return pairs_[static_cast<size_t>(i)]->client; }
  int server(int i) { return pairs_[static_cast<size_t>(i)]->server; }
  // A byte that has arrived: a busy host delivers later than it returns.
  void Send(int i) {
    ASSERT_EQ(1, write(client(i), "x", 1));
    ASSERT_EQ(POLLIN, Poll(server(i), POLLIN, 10'000));
  }
  int Control(int op, int i, uint32_t events) {
    epoll_event e{events, {.u32 = static_cast<uint32_t>(i)}};
    return epoll_ctl(epoll_, op, server(i), &e);
  }
  // What is ready, by number.
  std::map<int, uint32_t> Wait(int timeout_ms, int epoll = -1, int most = 64) {
    epoll_event events[64];
    std::map<int, uint32_t> ready;
    int n = epoll_wait(epoll >= 0 ? epoll : epoll_, events, most, timeout_ms);
    EXPECT_OK(n);
    for (int i = 0; i < n; ++i) ready[static_cast<int>(events[i].data.u32)] = events[i].events;
    return ready;
  }
  using Ready = std::map<int, uint32_t>;

  int epoll_;
  std::vector<std::unique_ptr<BusyPair>> pairs_;
};

TEST_F(EpollLane, EachChangeCountsAtOnce) {
  for (int round = 0; round < 50; ++round) {
    ASSERT_EQ(Ready{}, Wait(0));
    ASSERT_OK(Control(EPOLL_CTL_MOD, 1, EPOLLOUT));
    ASSERT_EQ((Ready{{1, EPOLLOUT}}), Wait(0));
    Send(1);
    ASSERT_EQ((Ready{{1, EPOLLOUT}}), Wait(0));
    ASSERT_OK(Control(EPOLL_CTL_MOD, 1, EPOLLIN | EPOLLOUT));
    ASSERT_EQ((Ready{{1, EPOLLIN | EPOLLOUT}}), Wait(0));
    ASSERT_OK(Control(EPOLL_CTL_MOD, 1, 0));
    ASSERT_EQ(Ready{}, Wait(0));
    ASSERT_OK(Control(EPOLL_CTL_DEL, 1, 0));
    ASSERT_EQ(Ready{}, Wait(0));
    EXPECT_ERRNO(Control(EPOLL_CTL_DEL, 1, 0), ENOENT);
    EXPECT_ERRNO(Control(EPOLL_CTL_MOD, 1, EPOLLIN), ENOENT);
    ASSERT_OK(Control(EPOLL_CTL_ADD, 1, EPOLLIN));
    EXPECT_ERRNO(Control(EPOLL_CTL_ADD, 1, EPOLLIN), EEXIST);
    ASSERT_EQ((Ready{{1, EPOLLIN}}), Wait(0));
    ReadAll(server(1), 1);
  }
}

TEST_F(EpollLane, BadArguments) {
  epoll_event event{EPOLLIN, {}};
  EXPECT_ERRNO(epoll_ctl(epoll_, 77, server(0), &event), EINVAL);
  EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_MOD, server(0), nullptr), EFAULT);
  EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_ADD, epoll_, &event), EINVAL);
  EXPECT_ERRNO(epoll_ctl(server(0), EPOLL_CTL_ADD, server(1), &event), EINVAL);
  EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_ADD, 9999, &event), EBADF);
  EXPECT_ERRNO(epoll_wait(epoll_, &event, 0, 0), EINVAL);
  EXPECT_ERRNO(epoll_wait(epoll_, &event, -1, 0), EINVAL);
  Send(0);
  EXPECT_ERRNO(epoll_wait(epoll_, nullptr, 1, 0), EFAULT);
  EXPECT_EQ((Ready{{0, EPOLLIN}}), Wait(0));
}

TEST_F(EpollLane, AllAreServedInTurn) {
  for (int i = 0; i < kPairs; ++i) Send(i);
  EXPECT_EQ(static_cast<size_t>(kPairs), Wait(0).size());
  Ready seen;
  for (int i = 0; i < 3 * kPairs; ++i) {
    for (auto& entry : Wait(0, -1, 1)) seen.insert(entry);
  }
  EXPECT_EQ(static_cast<size_t>(kPairs), seen.size());
}

TEST_F(EpollLane, WhoWaitsIsWokenByEach) {
  for (int round = 0; round < 100; ++round) {
    const int i = round % kPairs;
    std::thread writer([&] {
      if (round % 3 != 0) SleepMs(1);
      write(client(i), "x", 1);
    });
    ASSERT_EQ((Ready{{i, EPOLLIN}}), Wait(10'000));
    writer.join();
    ReadAll(server(i), 1);
  }
}

TEST_F(EpollLane, AnotherProcessWrites) {
  fflush(nullptr);
  pid_t child = fork();
  if (child == 0) {
    for (int round = 0; round < 400; ++round) {
      const int i = round % kPairs;
      write(client(i), "ping", 4);
      if (ReadAll(client(i), 4) != "pong") _exit(1);
    }
    _exit(0);
  }
  int served = 0;
  while (served < 400) {
    Ready ready = Wait(10'000);
    ASSERT_FALSE(ready.empty());
    for (auto [i, events] : ready) {
      ASSERT_EQ("ping", ReadAll(server(i), 4));
      write(server(i), "pong", 4);
      ++served;
    }
  }
  int status;
  waitpid(child, &status, 0);
  EXPECT_EQ(0, status);
}

TEST_F(EpollLane, OtherFilesToo) {
  int event = eventfd(0, EFD_NONBLOCK);
  epoll_event e{EPOLLIN, {.u32 = 100}};
  ASSERT_OK(epoll_ctl(epoll_, EPOLL_CTL_ADD, event, &e));
  const uint64_t one = 1;
  uint64_t value;
  for (int round = 0; round < 50; ++round) {
    ASSERT_EQ(Ready{}, Wait(0));
    write(event, &one, sizeof one);
    ASSERT_EQ((Ready{{100, EPOLLIN}}), Wait(1000));
    Send(2);
    ASSERT_EQ((Ready{{2, EPOLLIN}, {100, EPOLLIN}}), Wait(1000));
    read(event, &value, sizeof value);
    ASSERT_EQ((Ready{{2, EPOLLIN}}), Wait(1000));
    ReadAll(server(2), 1);
    std::thread writer([&] {
      SleepMs(1);
      write(event, &one, sizeof one);
    });
    ASSERT_EQ((Ready{{100, EPOLLIN}}), Wait(10'000));
    writer.join();
    read(event, &value, sizeof value);
  }
  close(event);
}

TEST_F(EpollLane, ClosedDescriptors) {
  Send(3);
  ASSERT_OK(Control(EPOLL_CTL_MOD, 4, EPOLLIN | EPOLLOUT));
  int number = server(3);
  pairs_[3]->CloseServer();
  pairs_[4]->CloseServer();
  EXPECT_EQ(Ready{}, Wait(0));
  // The number is another file's now, which nobody watches.
  int null = open("/dev/null", O_RDONLY);
  ASSERT_OK(dup2(null, number));
  EXPECT_EQ(Ready{}, Wait(0));
  epoll_event e{EPOLLIN, {}};
  EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_MOD, number, &e), EPERM);
  EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_ADD, number, &e), EPERM);
  close(null);
  close(number);
}

TEST_F(EpollLane, TheOtherEndGoes) {
  pairs_[5]->CloseClient();
  EXPECT_EQ((Ready{{5, EPOLLIN}}), Wait(1000));
  ASSERT_OK(Control(EPOLL_CTL_MOD, 5, EPOLLIN | EPOLLRDHUP));
  EXPECT_EQ((Ready{{5, EPOLLIN | EPOLLRDHUP}}), Wait(1000));
  ASSERT_OK(Control(EPOLL_CTL_DEL, 5, 0));
  EXPECT_EQ(Ready{}, Wait(0));
  Send(6);
  EXPECT_EQ((Ready{{6, EPOLLIN}}), Wait(1000));
}

TEST_F(EpollLane, SharedByProcesses) {
  // What was changed before the fork is known in the child, and what the child changes, here.
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLOUT));
  ASSERT_OK(Control(EPOLL_CTL_DEL, 1, 0));
  EXPECT_EQ(0, ExitStatus([&] {
              if (Wait(0) != Ready{{0, EPOLLOUT}}) return 1;
              if (Control(EPOLL_CTL_MOD, 0, EPOLLIN) != 0) return 2;
              if (Control(EPOLL_CTL_ADD, 1, EPOLLOUT) != 0) return 3;
              return 0;
            }));
  EXPECT_EQ((Ready{{1, EPOLLOUT}}), Wait(0));
  ASSERT_OK(Control(EPOLL_CTL_MOD, 1, EPOLLIN));
  Send(0);
  EXPECT_EQ((Ready{{0, EPOLLIN}}), Wait(0));
}

TEST_F(EpollLane, WatchedItself) {
  int outer = epoll_create1(0);
  epoll_event e{EPOLLIN, {.u32 = 7}};
  ASSERT_OK(epoll_ctl(outer, EPOLL_CTL_ADD, epoll_, &e));
  for (int round = 0; round < 40; ++round) {
    ASSERT_EQ(Ready{}, Wait(0, outer));
    Send(2);
    ASSERT_EQ((Ready{{7, EPOLLIN}}), Wait(1000, outer));
    ASSERT_EQ(POLLIN, Poll(epoll_, POLLIN));
    ReadAll(server(2), 1);
  }
  close(outer);
}

TEST_F(EpollLane, ThreadsThatWaitAndChange) {
  ASSERT_OK(Control(EPOLL_CTL_DEL, 2, 0));
  Send(2);
  for (int round = 0; round < 30; ++round) {
    std::thread waiter([&] { ASSERT_EQ((Ready{{2, EPOLLIN}}), Wait(10'000)); });
    if (round % 2) SleepMs(2);
    ASSERT_OK(Control(EPOLL_CTL_ADD, 2, EPOLLIN));
    waiter.join();
    ASSERT_OK(Control(EPOLL_CTL_DEL, 2, 0));
  }
}

TEST_F(EpollLane, EdgesAmongLevels) {
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLET));
  for (int round = 0; round < 40; ++round) {
    Send(0);
    ASSERT_EQ((Ready{{0, EPOLLIN}}), Wait(1000)) << round;
    ASSERT_EQ(Ready{}, Wait(0)) << round;
    Send(1);
    ASSERT_EQ((Ready{{1, EPOLLIN}}), Wait(1000)) << round;
    ReadAll(server(1), 1);
    if (round % 2) ReadAll(server(0), 2);
  }
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLONESHOT));
  Send(0);
  EXPECT_EQ((Ready{{0, EPOLLIN}}), Wait(1000));
  EXPECT_EQ(Ready{}, Wait(0));
}

TEST_F(EpollLane, EachEdgeIsToldOnce) {
  ASSERT_OK(Control(EPOLL_CTL_DEL, 0, 0));
  ASSERT_OK(Control(EPOLL_CTL_ADD, 0, EPOLLIN | EPOLLOUT | EPOLLET));
  ASSERT_EQ((Ready{{0, EPOLLOUT}}), Wait(0));
  ASSERT_EQ(Ready{}, Wait(0));
  for (int round = 0; round < 100; ++round) {
    ASSERT_EQ(2, write(client(0), "xy", 2));
    ASSERT_EQ((Ready{{0, EPOLLIN | EPOLLOUT}}), Wait(1000)) << round;
    ASSERT_EQ(Ready{}, Wait(0)) << round;
    if (round % 3 == 0) {
      std::thread writer([&] {
        if (round % 2 == 0) SleepMs(1);
        write(client(0), "z", 1);
      });
      ASSERT_EQ((Ready{{0, EPOLLIN | EPOLLOUT}}), Wait(10'000)) << round;
      writer.join();
      ASSERT_EQ(Ready{}, Wait(0)) << round;
      ReadAll(server(0), 1);
    }
    ReadAll(server(0), 2);
    // What is changed is looked at anew.
    if (round % 10 == 0) {
      ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLOUT | EPOLLET));
      ASSERT_EQ((Ready{{0, EPOLLOUT}}), Wait(0)) << round;
      ASSERT_EQ(Ready{}, Wait(0)) << round;
    }
  }
}

TEST_F(EpollLane, WhatComesIsNoEdgeOfRoom) {
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLOUT | EPOLLET));
  ASSERT_EQ((Ready{{0, EPOLLOUT}}), Wait(0));
  for (int round = 0; round < 50; ++round) {
    Send(0);
    ASSERT_EQ(Ready{}, Wait(round % 8 == 0 ? 1 : 0)) << round;
    ReadAll(server(0), 1);
  }
}

// A writer of which no kernel knows yet that it writes much.
TEST(EpollOfOthers, EachEdgeIsToldOnce) {
  int pipe_fds[2], pair[2];
  ASSERT_OK(pipe(pipe_fds));
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  const int counter = eventfd(0, 0);
  const std::pair<int, int> ends[] = {
      {pipe_fds[0], pipe_fds[1]}, {pair[0], pair[1]}, {counter, counter}};
  const int epoll = epoll_create1(0);
  for (auto [reader, writer] : ends) {
    epoll_event event{EPOLLIN | EPOLLET, {.fd = reader}};
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, reader, &event));
    for (uint64_t round = 0; round < 200; ++round) {
      const uint64_t one = 1;
      std::thread thread;
      if (round % 2 == 0) {
        ASSERT_EQ(8, write(writer, &one, sizeof(one)));
      } else {
        thread = std::thread([&] { EXPECT_EQ(8, write(writer, &one, sizeof(one))); });
      }
      epoll_event events[4];
      ASSERT_EQ(1, epoll_wait(epoll, events, 4, 10'000)) << reader << " " << round;
      if (thread.joinable()) thread.join();
      ASSERT_EQ(0, epoll_wait(epoll, events, 4, 0)) << reader << " " << round;
      uint64_t value;
      if (round % 5 == 0) continue;  // more comes to what is there
      ASSERT_EQ(8, read(reader, &value, sizeof(value)));
    }
  }
  for (int fd : {pipe_fds[0], pipe_fds[1], pair[0], pair[1], counter, epoll}) close(fd);
}

TEST_F(EpollLane, RoomIsAnEdgeOfItsOwn) {
  ASSERT_OK(fcntl(server(0), F_SETFL, O_NONBLOCK));
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLOUT | EPOLLET));
  ASSERT_EQ((Ready{{0, EPOLLOUT}}), Wait(0));
  std::vector<char> block(60'000);
  for (int round = 0; round < 10; ++round) {
    size_t sent = 0;
    for (ssize_t n; (n = write(server(0), block.data(), block.size())) > 0;) {
      sent += static_cast<size_t>(n);
    }
    ASSERT_EQ(Ready{}, Wait(0));
    std::thread reader([&] { ASSERT_EQ(sent, ReadAll(client(0), sent).size()); });
    ASSERT_EQ((Ready{{0, EPOLLOUT}}), Wait(10'000)) << round;
    reader.join();
    while (!Wait(0).empty()) continue;
  }
}

TEST_F(EpollLane, OneShotsAreArmedAgain) {
  for (uint32_t how : {0u, uint32_t{EPOLLET}}) {
    for (int round = 0; round < 50; ++round) {
      ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLONESHOT | how));
      ASSERT_EQ(Ready{}, Wait(0));
      Send(0);
      ASSERT_EQ((Ready{{0, EPOLLIN}}), Wait(0));
      ASSERT_EQ(Ready{}, Wait(0));
      Send(0);
      ASSERT_EQ(Ready{}, Wait(round % 8 == 0 ? 1 : 0));
      ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLONESHOT | how));
      ASSERT_EQ((Ready{{0, EPOLLIN}}), Wait(0));
      ReadAll(server(0), 2);
    }
  }
}

TEST_F(EpollLane, OneShotIsForOneThread) {
  std::atomic<int> told{0};
  std::atomic<bool> over{false};
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLONESHOT));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      while (!over.load()) {
        if (!Wait(t == 0 ? 1 : 0).empty()) ++told;
      }
    });
  }
  for (int round = 1; round <= 300; ++round) {
    ASSERT_EQ(1, write(client(0), "x", 1));
    const int64_t end = NowNs() + 10'000'000'000;
    while (told.load() < round && NowNs() < end) sched_yield();
    ASSERT_EQ(round, told.load());
    ReadAll(server(0), 1);
    ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLIN | EPOLLONESHOT));
  }
  over = true;
  for (auto& t : threads) t.join();
}

std::string FdInfoOf(int fd) {
  std::string path = "/proc/self/fdinfo/" + std::to_string(fd), text(8192, '\0');
  int info = open(path.c_str(), O_RDONLY);
  EXPECT_OK(info);
  text.resize(static_cast<size_t>(read(info, text.data(), text.size())));
  close(info);
  return text;
}

TEST_F(EpollLane, FdInfoKnowsEach) {
  ASSERT_OK(Control(EPOLL_CTL_MOD, 0, EPOLLOUT | EPOLLRDHUP));
  ASSERT_OK(Control(EPOLL_CTL_DEL, 1, 0));
  const std::string text = FdInfoOf(epoll_);
  char first[64], second[64];
  snprintf(first, sizeof first, "tfd: %8d events: %8x", server(0),
           EPOLLOUT | EPOLLRDHUP | EPOLLERR | EPOLLHUP);
  snprintf(second, sizeof second, "tfd: %8d ", server(1));
  EXPECT_NE(std::string::npos, text.find(first)) << text;
  EXPECT_EQ(std::string::npos, text.find(second)) << text;
}

TEST_F(EpollLane, ChangedRightBeforeAWait) {
  for (int i = 0; i < kPairs; ++i) {
    ASSERT_OK(Control(EPOLL_CTL_MOD, i, 0));
    FdInfoOf(epoll_);  // from here on every kernel knows that nothing is wanted
    ASSERT_OK(Control(EPOLL_CTL_MOD, i, EPOLLIN | EPOLLRDHUP));
    std::thread other([&] {
      SleepMs(i % 3);
      shutdown(client(i), SHUT_WR);
    });
    EXPECT_EQ((Ready{{i, EPOLLIN | EPOLLRDHUP}}), Wait(10'000)) << i;
    other.join();
    ASSERT_OK(Control(EPOLL_CTL_MOD, i, 0));
    ASSERT_EQ(Ready{}, Wait(1));
    ASSERT_OK(Control(EPOLL_CTL_DEL, i, 0));
  }
}

TEST_F(EpollLane, BothSidesInTurn) {
  for (int round = 0; round < 200; ++round) {
    const int i = round % kPairs;
    ASSERT_OK(Control(EPOLL_CTL_MOD, i, EPOLLOUT));
    ASSERT_EQ((Ready{{i, EPOLLOUT}}), Wait(10'000));
    ASSERT_EQ(1, write(server(i), "?", 1));
    ASSERT_OK(Control(EPOLL_CTL_MOD, i, EPOLLIN));
    std::thread other([&] {
      ReadAll(client(i), 1);
      write(client(i), "!", 1);
    });
    ASSERT_EQ((Ready{{i, EPOLLIN}}), Wait(10'000));
    other.join();
    ReadAll(server(i), 1);
  }
}

TEST_F(EpollLane, TheNextFileOfADescriptorIsNotWatched) {
  for (int i : {0, 1}) {
    const int number = server(i);
    BusyPair next;
    if (i == 0) {
      ASSERT_OK(Control(EPOLL_CTL_MOD, i, EPOLLIN | EPOLLOUT));
    } else {
      ASSERT_OK(Control(EPOLL_CTL_DEL, i, 0));
      ASSERT_OK(Control(EPOLL_CTL_ADD, i, EPOLLIN | EPOLLOUT));
    }
    pairs_[static_cast<size_t>(i)]->CloseServer();
    ASSERT_EQ(number, dup2(next.server, number));
    Exchange(next.client, number);
    ASSERT_EQ(1, write(next.client, "x", 1));
    ASSERT_EQ(POLLIN, Poll(number, POLLIN, 10'000));
    EXPECT_EQ(Ready{}, Wait(0)) << i;
    epoll_event e{EPOLLIN, {.u32 = 50}};
    EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_MOD, number, &e), ENOENT);
    EXPECT_ERRNO(epoll_ctl(epoll_, EPOLL_CTL_DEL, number, &e), ENOENT);
    EXPECT_OK(epoll_ctl(epoll_, EPOLL_CTL_ADD, number, &e));
    EXPECT_EQ((Ready{{50, EPOLLIN}}), Wait(0)) << i;
    EXPECT_OK(epoll_ctl(epoll_, EPOLL_CTL_DEL, number, &e));
    close(number);
  }
}

TEST(EpollOfOthers, OneOfMany) {
  const int epoll = epoll_create1(0);
  std::vector<int> fds;
  for (uint32_t i = 0; i < 500; ++i) {
    fds.push_back(eventfd(0, EFD_NONBLOCK));
    epoll_event event{EPOLLIN, {.u32 = i}};
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds.back(), &event));
  }
  epoll_event events[4];
  for (uint32_t i = 0; i < 500; i += 37) {
    uint64_t value = 1;
    ASSERT_EQ(8, write(fds[i], &value, sizeof(value)));
    for (int look = 0; look < 60; ++look) {
      ASSERT_EQ(1, epoll_wait(epoll, events, 4, -1));
      ASSERT_EQ(i, events[0].data.u32);
      ASSERT_EQ(uint32_t{EPOLLIN}, events[0].events);
    }
    ASSERT_EQ(8, read(fds[i], &value, sizeof(value)));
    ASSERT_EQ(0, epoll_wait(epoll, events, 4, 0));
  }
  for (int fd : fds) close(fd);
  close(epoll);
}

}  // namespace
