// AF_UNIX streams that are used so much that a kernel may find shorter ways for their bytes:
// whatever way they take, all else about them stays as it is.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <linux/sockios.h>

#include <thread>
#include <vector>

#include "lanes/lane_util.h"
#include "net/fd_util.h"

namespace {

// A pair that has been in use.
struct BusySockets {
  BusySockets() {
    int fds[2];
    EXPECT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
    a = fds[0];
    b = fds[1];
    Exchange(a, b, 200);
  }
  ~BusySockets() {
    Close(&a);
    Close(&b);
  }
  static void Close(int* fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
  int a, b;
};

void Put(int fd, const std::string& text) {
  ASSERT_EQ(static_cast<ssize_t>(text.size()), write(fd, text.data(), text.size()));
}

TEST(UnixLane, EveryWayOfReadingAndWriting) {
  BusySockets s;
  char text[16];
  ASSERT_EQ(5, send(s.a, "hello", 5, MSG_NOSIGNAL));
  ASSERT_EQ(2, recv(s.b, text, 2, MSG_PEEK));
  ASSERT_EQ(5, recv(s.b, text, 8, MSG_DONTWAIT));
  EXPECT_EQ("hello", std::string(text, 5));
  EXPECT_ERRNO(recv(s.b, text, 8, MSG_DONTWAIT), EAGAIN);
  iovec parts[2] = {{const_cast<char*>("abc"), 3}, {const_cast<char*>("defg"), 4}};
  ASSERT_EQ(7, writev(s.a, parts, 2));
  int n;
  ASSERT_OK(ioctl(s.b, FIONREAD, &n));
  EXPECT_EQ(7, n);
  EXPECT_EQ(POLLIN | POLLOUT, Poll(s.b, POLLIN | POLLOUT));
  ASSERT_EQ(7, recv(s.b, text, 7, MSG_WAITALL));
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  ASSERT_EQ(7, sendmsg(s.a, &message, 0));
  EXPECT_EQ("abcdefg", ReadAll(s.b, 7));
  EXPECT_ERRNO(write(s.a, BadAddress(), 5), EFAULT);
  Put(s.a, "there");
  EXPECT_ERRNO(read(s.b, BadAddress(), 5), EFAULT);
}

TEST(UnixLane, EndsAreSeen) {
  BusySockets s;
  Put(s.a, "left");
  ASSERT_OK(shutdown(s.a, SHUT_WR));
  EXPECT_ERRNO(send(s.a, "x", 1, MSG_NOSIGNAL), EPIPE);
  Put(s.b, "back");
  EXPECT_EQ("back", ReadAll(s.a, 4));
  EXPECT_EQ("left", ReadAll(s.b, 4));
  char c;
  EXPECT_EQ(0, read(s.b, &c, 1));
  BusySockets t;
  t.Close(&t.a);
  EXPECT_EQ(0, read(t.b, &c, 1));
  EXPECT_ERRNO(send(t.b, "x", 1, MSG_NOSIGNAL), EPIPE);
  BusySockets u;
  Put(u.b, "unread");
  u.Close(&u.a);
  EXPECT_ERRNO(read(u.b, &c, 1), ECONNRESET);
}

TEST(UnixLane, FillsAndEmpties) {
  BusySockets s;
  ASSERT_OK(fcntl(s.a, F_SETFL, O_NONBLOCK));
  const std::string block(10'000, 'x');
  size_t sent = 0;
  while (true) {
    const ssize_t n = write(s.a, block.data(), block.size());
    if (n < 0) break;
    sent += static_cast<size_t>(n);
  }
  EXPECT_EQ(EAGAIN, errno);
  EXPECT_GT(sent, 50'000u);
  EXPECT_EQ(0, Poll(s.a, POLLOUT));
  int unread;
  ASSERT_OK(ioctl(s.a, SIOCOUTQ, &unread));
  EXPECT_GE(unread, static_cast<int>(sent));
  EXPECT_EQ(sent, ReadAll(s.b, sent).size());
  EXPECT_EQ(POLLOUT, Poll(s.a, POLLOUT));
}

TEST(UnixLane, DescriptorsGoWithTheirBytes) {
  BusySockets s;
  for (int round = 0; round < 30; ++round) {
    Put(s.a, "before");
    int null = open("/dev/null", O_RDONLY);
    ASSERT_EQ(1, SendFd(s.a, null));
    close(null);
    Put(s.a, "after");
    ASSERT_EQ("before", ReadAll(s.b, 6));
    null = RecvFd(s.b);
    ASSERT_GE(null, 0);
    ASSERT_OK(close(null));
    ASSERT_EQ("after", ReadAll(s.b, 5));
    Exchange(s.a, s.b, 20);
  }
}

TEST(UnixLane, CredentialsAreKnownOnceAskedFor) {
  BusySockets s;
  ASSERT_OK(SetInt(s.b, SOL_SOCKET, SO_PASSCRED, 1));
  for (int round = 0; round < 40; ++round) {
    Put(s.a, "me");
    char text[16];
    iovec part{text, sizeof(text)};
    alignas(cmsghdr) char control[256] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    ASSERT_EQ(2, recvmsg(s.b, &message, 0));
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    ASSERT_NE(nullptr, c);
    ucred creds;
    memcpy(&creds, CMSG_DATA(c), sizeof(creds));
    ASSERT_EQ(getpid(), creds.pid);
    ASSERT_EQ(getuid(), creds.uid);
  }
}

TEST(UnixLane, LongStreamsKeepTheirOrder) {
  BusySockets s;
  constexpr size_t kTotal = 10'000'000;
  std::thread writer([&] {
    std::vector<char> part(100'000);
    size_t sent = 0;
    for (size_t size = 1; sent < kTotal; size = size * 7 % 99'991 + 1) {
      const size_t n = std::min(size, kTotal - sent);
      for (size_t i = 0; i < n; ++i) part[i] = static_cast<char>((sent + i) * 31 >> 4);
      ASSERT_EQ(static_cast<ssize_t>(n), write(s.a, part.data(), n));
      sent += n;
    }
    shutdown(s.a, SHUT_WR);
  });
  std::vector<char> buffer(70'000);
  size_t got = 0, size = 1;
  while (true) {
    const ssize_t n = read(s.b, buffer.data(), size);
    if (n <= 0) break;
    for (ssize_t i = 0; i < n; ++i, ++got) {
      ASSERT_EQ(static_cast<char>(got * 31 >> 4), buffer[static_cast<size_t>(i)]) << got;
    }
    size = size * 5 % 69'997 + 1;
  }
  writer.join();
  EXPECT_EQ(kTotal, got);
}

TEST(UnixLane, ProcessesTalkByName) {
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{AF_UNIX, {}};
  snprintf(address.sun_path + 1, 32, "unix-lane-%d", getpid());
  const socklen_t length = sizeof(sa_family_t) + 1 + strlen(address.sun_path + 1);
  ASSERT_OK(bind(listener, reinterpret_cast<sockaddr*>(&address), length));
  ASSERT_OK(listen(listener, 1));
  const pid_t child = fork();
  if (child == 0) {
    const int end = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(end, reinterpret_cast<sockaddr*>(&address), length) != 0) _exit(1);
    char c;
    while (read(end, &c, 1) == 1) {
      if (write(end, &c, 1) != 1) _exit(2);
    }
    _exit(0);
  }
  const int end = accept(listener, nullptr, nullptr);
  ASSERT_OK(end);
  for (int i = 0; i < 2000; ++i) {
    const char c = static_cast<char>(i);
    ASSERT_EQ(1, write(end, &c, 1));
    ASSERT_EQ(std::string(1, c), ReadAll(end, 1));
  }
  close(end);
  close(listener);
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
}

TEST(UnixLane, EpollAndSharedReaders) {
  BusySockets s;
  const int epoll = epoll_create1(0);
  epoll_event e{EPOLLIN | EPOLLOUT, {}};
  ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, s.b, &e));
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(1, epoll_wait(epoll, &e, 1, 0));
    ASSERT_EQ(uint32_t{EPOLLOUT}, e.events);
    Put(s.a, "x");
    ASSERT_EQ(1, epoll_wait(epoll, &e, 1, 0));
    ASSERT_EQ(uint32_t{EPOLLIN | EPOLLOUT}, e.events);
    ReadAll(s.b, 1);
  }
  close(epoll);
  for (int round = 0; round < 30; ++round) {
    std::vector<std::thread> readers;
    for (int t = 0; t < 4; ++t) {
      readers.emplace_back([&] {
        char c;
        EXPECT_EQ(1, read(s.b, &c, 1));
      });
    }
    if (round % 2 == 0) SleepMs(1);
    for (int t = 0; t < 4; ++t) Put(s.a, "x");
    for (auto& t : readers) t.join();
  }
}

}  // namespace
