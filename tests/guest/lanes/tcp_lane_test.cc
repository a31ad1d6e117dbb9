// Connections that are used so much that a kernel may find shorter ways for their bytes: whatever
// way they take, all else about them stays as it is.
#include <sys/prctl.h>
#include <sys/uio.h>

#include <atomic>
#include <thread>
#include <vector>

#include "lanes/lane_util.h"

namespace {

constexpr int kManyTimes = 100;

TEST(TcpLane, BothFamilies) {
  for (int family : {AF_INET, AF_INET6}) {
    BusyPair p(family);
    EXPECT_EQ(0, Poll(p.server, POLLIN));
    EXPECT_EQ(POLLOUT, Poll(p.server, POLLIN | POLLOUT));
  }
}

TEST(TcpLane, EveryWayOfReadingAndWriting) {
  BusyPair p;
  char a[4], b[8];
  iovec parts[2] = {{const_cast<char*>("abc"), 3}, {const_cast<char*>("defg"), 4}};
  ASSERT_EQ(7, writev(p.client, parts, 2));
  iovec into[2] = {{a, 4}, {b, 8}};
  ASSERT_EQ(7, readv(p.server, into, 2));
  EXPECT_EQ("abcd", std::string(a, 4));
  EXPECT_EQ("efg", std::string(b, 3));
  ASSERT_EQ(5, send(p.client, "hello", 5, MSG_NOSIGNAL));
  ASSERT_EQ(2, recv(p.server, b, 2, MSG_PEEK));
  ASSERT_EQ(5, recv(p.server, b, 8, MSG_DONTWAIT));
  EXPECT_EQ("hello", std::string(b, 5));
  EXPECT_ERRNO(recv(p.server, b, 8, MSG_DONTWAIT), EAGAIN);
  ASSERT_EQ(5, write(p.client, "there", 5));
  int n;
  ASSERT_OK(ioctl(p.server, FIONREAD, &n));
  EXPECT_EQ(5, n);
  ASSERT_EQ(2, recv(p.server, b, 2, MSG_WAITALL));
  msghdr message{};
  iovec one{b, 8};
  message.msg_iov = &one;
  message.msg_iovlen = 1;
  ASSERT_EQ(3, recvmsg(p.server, &message, 0));
  EXPECT_EQ("ere", std::string(b, 3));
  ASSERT_EQ(0, write(p.client, "", 0));
  ASSERT_EQ(0, read(p.server, b, 0));
}

TEST(TcpLane, BadBuffers) {
  BusyPair p;
  char* page = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(page + 4096, 4096);
  char* edge = page + 4096 - 4;
  memcpy(edge, "wxyz", 4);
  EXPECT_ERRNO(write(p.client, nullptr, 5), EFAULT);
  EXPECT_ERRNO(write(p.client, page + 4096, 5), EFAULT);
  ASSERT_EQ(4, write(p.client, edge, 4));
  EXPECT_EQ("wxyz", ReadAll(p.server, 4));
  write(p.client, "lost?", 5);
  EXPECT_ERRNO(read(p.server, page + 4096, 5), EFAULT);
  EXPECT_ERRNO(writev(p.client, reinterpret_cast<iovec*>(page + 4096), 1), EFAULT);
  munmap(page, 4096);
}

TEST(TcpLane, LongStreamsKeepTheirOrder) {
  BusyPair p;
  constexpr size_t kTotal = 20'000'000;
  std::thread writer([&] {
    std::vector<char> part(100'000);
    size_t sent = 0;
    for (size_t size = 1; sent < kTotal; size = size * 7 % 99'991 + 1) {
      size_t n = std::min(size, kTotal - sent);
      for (size_t i = 0; i < n; ++i) part[i] = static_cast<char>((sent + i) * 31 >> 4);
      for (size_t done = 0; done < n;) {
        ssize_t w = write(p.client, part.data() + done, n - done);
        if (w <= 0) return;
        done += static_cast<size_t>(w);
      }
      sent += n;
    }
    shutdown(p.client, SHUT_WR);
  });
  std::vector<char> part(77'777);
  size_t received = 0;
  bool right = true;
  while (true) {
    ssize_t n = read(p.server, part.data(), 1 + received % part.size());
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i, ++received) {
      right &= part[static_cast<size_t>(i)] == static_cast<char>(received * 31 >> 4);
    }
  }
  writer.join();
  EXPECT_TRUE(right);
  EXPECT_EQ(kTotal, received);
}

TEST(TcpLane, FullAndEmpty) {
  BusyPair p;
  fcntl(p.client, F_SETFL, O_NONBLOCK);
  std::string block(1000, 'x');
  size_t sent = 0;
  ssize_t n;
  while ((n = write(p.client, block.data(), block.size())) > 0) sent += static_cast<size_t>(n);
  EXPECT_EQ(EAGAIN, errno);
  EXPECT_EQ(0, Poll(p.client, POLLOUT));
  std::thread reader([&] { EXPECT_EQ(sent, ReadAll(p.server, sent).size()); });
  EXPECT_EQ(POLLOUT, Poll(p.client, POLLOUT, 10'000));
  reader.join();
  fcntl(p.server, F_SETFL, O_NONBLOCK);
  char c;
  EXPECT_ERRNO(read(p.server, &c, 1), EAGAIN);
}

TEST(TcpLane, WhoeverWaitsIsWoken) {
  BusyPair p;
  for (int way = 0; way < 4; ++way) {
    for (int i = 0; i < 50; ++i) {
      std::thread writer([&] {
        if (i % 2) SleepMs(1);
        write(p.client, "x", 1);
      });
      char c = 0;
      if (way == 1) ASSERT_EQ(POLLIN, Poll(p.server, POLLIN, 10'000));
      if (way == 2) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(p.server, &set);
        ASSERT_EQ(1, select(p.server + 1, &set, nullptr, nullptr, nullptr));
      }
      if (way == 3) {
        int epoll = epoll_create1(0);
        epoll_event event{EPOLLIN, {}};
        epoll_ctl(epoll, EPOLL_CTL_ADD, p.server, &event);
        ASSERT_EQ(1, epoll_wait(epoll, &event, 1, 10'000));
        close(epoll);
      }
      ASSERT_EQ(1, read(p.server, &c, 1));
      writer.join();
    }
  }
}

TEST(TcpLane, EpollByLevel) {
  BusyPair p;
  int epoll = epoll_create1(0);
  epoll_event event{EPOLLIN, {}}, got[4];
  ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, p.server, &event));
  for (int i = 0; i < kManyTimes; ++i) {
    ASSERT_EQ(0, epoll_wait(epoll, got, 4, 0));
    write(p.client, "ab", 2);
    ASSERT_EQ(1, epoll_wait(epoll, got, 4, 1000));
    ReadAll(p.server, 1);
    ASSERT_EQ(1, epoll_wait(epoll, got, 4, 0));
    ReadAll(p.server, 1);
  }
  close(epoll);
}

TEST(TcpLane, EpollByEdge) {
  BusyPair p;
  int epoll = epoll_create1(0), outer = epoll_create1(0);
  epoll_event event{EPOLLIN | EPOLLET, {}}, got[4];
  ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, p.server, &event));
  ASSERT_OK(epoll_ctl(outer, EPOLL_CTL_ADD, epoll, &event));
  for (int i = 0; i < kManyTimes; ++i) {
    write(p.client, "a", 1);
    ASSERT_EQ(1, epoll_wait(outer, got, 4, 1000)) << i;
    ASSERT_EQ(1, epoll_wait(epoll, got, 4, 1000)) << i;
    ASSERT_EQ(0, epoll_wait(epoll, got, 4, 0)) << i;
    // What comes behind what is unread is an edge too.
    write(p.client, "b", 1);
    ASSERT_EQ(1, epoll_wait(epoll, got, 4, 1000)) << i;
    ASSERT_EQ(0, epoll_wait(epoll, got, 4, 0)) << i;
    if (i % 3 == 0) ASSERT_EQ(2u, ReadAll(p.server, 2).size());
  }
  close(epoll);
  close(outer);
}

TEST(TcpLane, EpollOnce) {
  BusyPair p;
  int epoll = epoll_create1(0);
  epoll_event event{EPOLLIN | EPOLLONESHOT, {}}, got[4];
  ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, p.server, &event));
  for (int i = 0; i < kManyTimes; ++i) {
    write(p.client, "a", 1);
    ASSERT_EQ(1, epoll_wait(epoll, got, 4, 1000));
    write(p.client, "b", 1);
    ASSERT_EQ(0, epoll_wait(epoll, got, 4, 0));
    if (i % 2) ReadAll(p.server, 2);
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_MOD, p.server, &event));
    ASSERT_EQ(i % 2 ? 0 : 1, epoll_wait(epoll, got, 4, 0));
    if (i % 2 == 0) {
      ReadAll(p.server, 2);
      ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_MOD, p.server, &event));
    }
  }
  close(epoll);
}

TEST(TcpLane, TheEnd) {
  {
    BusyPair p;
    write(p.client, "last", 4);
    ASSERT_OK(shutdown(p.client, SHUT_WR));
    EXPECT_EQ("last", ReadAll(p.server, 100));
    char c;
    EXPECT_EQ(0, read(p.server, &c, 1));
    // The other direction is still there.
    EXPECT_EQ(5, write(p.server, "still", 5));
    EXPECT_EQ("still", ReadAll(p.client, 5));
    EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), EPIPE);
  }
  {
    BusyPair p;
    write(p.client, "last", 4);
    p.CloseClient();
    EXPECT_EQ("last", ReadAll(p.server, 100));
    EXPECT_EQ(1, send(p.server, "x", 1, MSG_NOSIGNAL));
    EXPECT_TRUE(Poll(p.server, POLLHUP, 10'000) & POLLHUP);
    EXPECT_ERRNO(send(p.server, "x", 1, MSG_NOSIGNAL), EPIPE);
  }
  {
    BusyPair p;
    write(p.server, "unread", 6);
    ASSERT_EQ(POLLIN, Poll(p.client, POLLIN, 10'000));
    p.CloseClient();
    EXPECT_TRUE(Poll(p.server, POLLHUP, 10'000) & POLLHUP);
    char c;
    EXPECT_ERRNO(read(p.server, &c, 1), ECONNRESET);
  }
  {
    BusyPair p;
    ASSERT_OK(shutdown(p.server, SHUT_RD));
    char c;
    EXPECT_EQ(0, read(p.server, &c, 1));
  }
}

TEST(TcpLane, UrgentByte) {
  BusyPair p;
  write(p.client, "abc", 3);
  ASSERT_EQ(1, send(p.client, "!", 1, MSG_OOB));
  write(p.client, "def", 3);
  char buffer[16];
  EXPECT_EQ(3, read(p.server, buffer, sizeof buffer));
  int at_mark = 0;
  ASSERT_OK(ioctl(p.server, SIOCATMARK, &at_mark));
  EXPECT_EQ(1, at_mark);
  ASSERT_EQ(1, recv(p.server, buffer, 1, MSG_OOB));
  EXPECT_EQ('!', buffer[0]);
  EXPECT_EQ(3, read(p.server, buffer, sizeof buffer));
  EXPECT_EQ("def", std::string(buffer, 3));
  Exchange(p.client, p.server);
}

TEST(TcpLane, LowWaterMark) {
  BusyPair p;
  ASSERT_OK(SetInt(p.server, SOL_SOCKET, SO_RCVLOWAT, 4));
  write(p.client, "abc", 3);
  EXPECT_EQ(0, Poll(p.server, POLLIN));
  write(p.client, "d", 1);
  EXPECT_EQ(POLLIN, Poll(p.server, POLLIN, 10'000));
  EXPECT_EQ("abcd", ReadAll(p.server, 4));
  ASSERT_OK(SetInt(p.server, SOL_SOCKET, SO_RCVLOWAT, 1));
  Exchange(p.client, p.server);
}

TEST(TcpLane, DescriptorsMeanOtherFiles) {
  BusyPair p, other;
  int copy = dup(p.client);
  Exchange(copy, p.server);
  // The number of a busy connection becomes that of another, of a file, and of nothing.
  ASSERT_OK(dup2(other.client, p.client));
  write(p.client, "other", 5);
  EXPECT_EQ("other", ReadAll(other.server, 5));
  EXPECT_EQ(0, Poll(p.server, POLLIN));
  int null = open("/dev/null", O_RDWR);
  ASSERT_OK(dup2(null, p.client));
  char c;
  EXPECT_EQ(0, read(p.client, &c, 1));
  close(p.client);
  EXPECT_ERRNO(write(p.client, "x", 1), EBADF);
  p.client = copy;
  Exchange(p.client, p.server);
  close(null);
}

TEST(TcpLane, SharedByProcesses) {
  BusyPair p;
  EXPECT_EQ(0, ExitStatus([&] {
              Exchange(p.client, p.server);
              return ::testing::Test::HasFailure() ? 1 : 0;
            }));
  Exchange(p.client, p.server);
  // A writer that is killed at any moment leaves a connection that works.
  for (int i = 0; i < 20; ++i) {
    pid_t child = fork();
    if (child == 0) {
      while (write(p.client, "0123456789", 10) == 10) {
      }
      _exit(0);
    }
    size_t total = 0;
    while (total < 10'000) total += ReadAll(p.server, 10).size();
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    char rest[4096];
    while (recv(p.server, rest, sizeof rest, MSG_DONTWAIT) > 0) {
    }
    write(p.client, "!", 1);
    char c = 0;
    while (c != '!') ASSERT_EQ(1, read(p.server, &c, 1));
    Exchange(p.client, p.server, 3);
  }
}

TEST(TcpLane, ManyThreads) {
  BusyPair p;
  std::atomic<size_t> sent{0}, received{0};
  std::atomic<bool> right{true};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 3000; ++i) {
        if (write(p.client, "abcdefgh", 8) == 8) sent += 8;
      }
    });
    threads.emplace_back([&] {
      char c[8];
      while (received < 3 * 3000 * 8) {
        ssize_t n = recv(p.server, c, 8, MSG_DONTWAIT);
        if (n > 0) {
          received += static_cast<size_t>(n);
          right = right && n == 8 && memcmp(c, "abcdefgh", 8) == 0;
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_TRUE(right);
  EXPECT_EQ(sent, received);
}

TEST(TcpLane, WhoHasFewerRightsKeepsItsConnections) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  BusyPair p;
  EXPECT_EQ(0, ExitStatus([&] {
              if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) {
                return 2;
              }
              Exchange(p.client, p.server);
              prctl(PR_SET_DUMPABLE, 1);
              Exchange(p.client, p.server);
              return ::testing::Test::HasFailure() ? 1 : 0;
            }));
  Exchange(p.client, p.server);
}

TEST(TcpLane, ThreadsWithOtherDescriptors) {
  BusyPair p, other;
  std::thread([&] {
    ASSERT_OK(unshare(CLONE_FILES));
    ASSERT_OK(dup2(other.client, p.client));
    for (int i = 0; i < kManyTimes; ++i) {
      write(p.client, "o", 1);
      ASSERT_EQ("o", ReadAll(other.server, 1));
    }
  }).join();
  EXPECT_EQ(0, Poll(p.server, POLLIN));
  Exchange(p.client, p.server);
}

}  // namespace
