// TCP: data, its end and its errors.
#include "inet_util.h"

// After <time.h>, which it needs.
#include <linux/errqueue.h>

#include <sys/sendfile.h>

#include <thread>
#include <vector>

TEST(TcpData, BothWaysAndPeek) {
  for (int family : {AF_INET, AF_INET6}) {
    TcpPair p(family);
    EXPECT_EQ(5, write(p.client, "hello", 5));
    EXPECT_EQ(3, send(p.client, "abc", 3, 0));
    char b[16] = {};
    EXPECT_EQ(8, recv(p.server, b, 16, MSG_PEEK));
    EXPECT_EQ(2, recv(p.server, b, 2, MSG_PEEK | MSG_WAITALL));
    int n = 0;
    EXPECT_OK(ioctl(p.server, FIONREAD, &n));
    EXPECT_EQ(8, n);
    EXPECT_OK(ioctl(p.client, TIOCOUTQ, &n));
    EXPECT_EQ(0, n);
    EXPECT_EQ(8, read(p.server, b, 16));
    EXPECT_STREQ("helloabc", b);
    EXPECT_ERRNO(recv(p.server, b, 1, MSG_DONTWAIT), EAGAIN);
    EXPECT_EQ(4, write(p.server, "back", 4));
    EXPECT_EQ(4, read(p.client, b, 16));
    EXPECT_ERRNO(recv(p.client, b, 0, MSG_DONTWAIT), EAGAIN);
    EXPECT_EQ(0, send(p.client, b, 0, 0));
    EXPECT_EQ(1, write(p.server, "z", 1));
    EXPECT_EQ(0, recv(p.client, b, 0, 0));
  }
}

TEST(TcpData, TruncDiscards) {
  TcpPair p;
  EXPECT_EQ(10, write(p.client, "0123456789", 10));
  char b[16] = "zzzz";
  EXPECT_EQ(4, recv(p.server, b, 4, MSG_TRUNC));
  EXPECT_STREQ("zzzz", b);
  EXPECT_EQ(6, read(p.server, b, 16));
  EXPECT_EQ(0, memcmp(b, "456789", 6));
}

TEST(TcpData, WaitAllAndLowWater) {
  TcpPair p;
  std::thread writer([&] {
    for (int i = 0; i < 5; i++) {
      SleepMs(10);
      write(p.client, "ab", 2);
    }
  });
  char b[10];
  EXPECT_EQ(10, recv(p.server, b, 10, MSG_WAITALL));
  writer.join();
  ASSERT_OK(SetInt(p.server, SOL_SOCKET, SO_RCVLOWAT, 4));
  EXPECT_EQ(4, GetInt(p.server, SOL_SOCKET, SO_RCVLOWAT));
  EXPECT_EQ(2, write(p.client, "ab", 2));
  EXPECT_EQ(0, Poll(p.server, POLLIN, 50));
  EXPECT_EQ(2, write(p.client, "cd", 2));
  EXPECT_EQ(POLLIN, Poll(p.server, POLLIN, 1000));
  EXPECT_EQ(4, read(p.server, b, 10));
}

TEST(TcpData, BackpressureAndWritability) {
  TcpPair p;
  fcntl(p.client, F_SETFL, O_NONBLOCK);
  std::vector<char> block(65536);
  for (size_t i = 0; i < block.size(); i++) block[i] = static_cast<char>(i % 251);
  size_t total = 0;
  ssize_t n;
  while ((n = write(p.client, block.data(), block.size())) > 0) {
    total += n;
    if (n < static_cast<ssize_t>(block.size())) break;
  }
  while ((n = write(p.client, block.data(), 1)) > 0) total += n;
  EXPECT_ERRNO(write(p.client, "x", 1), EAGAIN);
  EXPECT_GT(total, 100000u);
  EXPECT_EQ(0, Poll(p.client, POLLOUT));
  std::vector<char> sink(total);
  EXPECT_EQ(static_cast<ssize_t>(total), recv(p.server, sink.data(), total, MSG_WAITALL));
  EXPECT_EQ(POLLOUT, Poll(p.client, POLLOUT, 1000));
  size_t wrong = 0;
  for (size_t i = 0; i < total && i < block.size(); i++) wrong += sink[i] != block[i];
  EXPECT_EQ(0u, wrong);
}

TEST(TcpData, SmallBuffers) {
  TcpPair p;
  ASSERT_OK(SetInt(p.client, SOL_SOCKET, SO_SNDBUF, 4096));
  EXPECT_EQ(8192, GetInt(p.client, SOL_SOCKET, SO_SNDBUF));
  ASSERT_OK(SetInt(p.server, SOL_SOCKET, SO_RCVBUF, 4096));
  EXPECT_EQ(8192, GetInt(p.server, SOL_SOCKET, SO_RCVBUF));
  std::thread writer([&] {
    std::string data(200000, 'q');
    EXPECT_EQ(200000, send(p.client, data.data(), data.size(), 0));
    shutdown(p.client, SHUT_WR);
  });
  size_t total = 0;
  char b[1000];
  for (ssize_t n; (n = read(p.server, b, sizeof b)) > 0;) total += n;
  EXPECT_EQ(200000u, total);
  writer.join();
}

TEST(TcpData, LargeTransferBetweenProcesses) {
  Listener listener(AF_INET6);
  pid_t pid = fork();
  if (pid == 0) {
    int c = listener.Client();
    std::string data(8 << 20, 0);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i % 251);
    size_t done = 0;
    while (done < data.size()) {
      ssize_t n = write(c, data.data() + done, std::min<size_t>(data.size() - done, 123457));
      if (n <= 0) _exit(1);
      done += n;
    }
    _exit(0);
  }
  int s = listener.Accept();
  size_t total = 0, wrong = 0;
  static char b[70001];
  for (ssize_t n; (n = read(s, b, sizeof b)) > 0; total += n) {
    for (ssize_t i = 0; i < n; i++) wrong += static_cast<char>((total + i) % 251) != b[i];
  }
  EXPECT_EQ(8u << 20, total);
  EXPECT_EQ(0u, wrong);
  waitpid(pid, nullptr, 0);
  close(s);
}

TEST(TcpEnd, HalfClose) {
  TcpPair p;
  EXPECT_EQ(3, write(p.client, "end", 3));
  ASSERT_OK(shutdown(p.client, SHUT_WR));
  EXPECT_EQ(POLLIN | POLLRDHUP, Poll(p.server, POLLIN | POLLRDHUP, 1000));
  EXPECT_EQ(POLLOUT, Poll(p.client, POLLOUT | POLLIN | POLLRDHUP));
  char b[8];
  EXPECT_EQ(3, read(p.server, b, 8));
  EXPECT_EQ(0, read(p.server, b, 8));
  EXPECT_EQ(4, write(p.server, "last", 4));
  EXPECT_EQ(4, read(p.client, b, 8));
  EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), EPIPE);
  ASSERT_OK(shutdown(p.server, SHUT_WR));
  EXPECT_EQ(POLLIN | POLLOUT | POLLHUP | POLLRDHUP,
            Poll(p.client, POLLOUT | POLLIN | POLLRDHUP, 1000));
  EXPECT_EQ(0, read(p.client, b, 8));
  EXPECT_ERRNO(shutdown(p.client, SHUT_WR), ENOTCONN);
  EXPECT_ERRNO(shutdown(p.client, 7), EINVAL);
}

TEST(TcpEnd, ShutdownReading) {
  TcpPair p;
  ASSERT_OK(shutdown(p.server, SHUT_RD));
  char b[8];
  EXPECT_EQ(0, read(p.server, b, 8));
  EXPECT_EQ(POLLIN | POLLRDHUP, Poll(p.server, POLLIN | POLLRDHUP, 0));
  EXPECT_EQ(3, write(p.client, "abc", 3));
  EXPECT_EQ(3, read(p.server, b, 8));
  EXPECT_EQ(0, read(p.server, b, 8));
}

TEST(TcpEnd, WriteAfterPeerClosed) {
  TcpPair p;
  p.CloseServer();
  EXPECT_EQ(POLLIN | POLLOUT | POLLRDHUP, Poll(p.client, POLLIN | POLLOUT | POLLRDHUP, 1000));
  char b;
  EXPECT_EQ(0, read(p.client, &b, 1));
  EXPECT_EQ(1, send(p.client, "x", 1, MSG_NOSIGNAL));  // answered with a reset
  EXPECT_EQ(POLLIN | POLLOUT | POLLRDHUP | POLLERR | POLLHUP,
            Poll(p.client, POLLIN | POLLOUT | POLLRDHUP, 1000));
  EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), EPIPE);
  EXPECT_EQ(0, read(p.client, &b, 1));
}

TEST(TcpEnd, SigpipeIsRaised) {
  EXPECT_EQ(-SIGPIPE, ExitStatus([] {
    signal(SIGPIPE, SIG_DFL);
    TcpPair p;
    shutdown(p.client, SHUT_WR);
    write(p.client, "x", 1);
    return 0;
  }));
}

TEST(TcpEnd, CloseWithUnreadDataResets) {
  TcpPair p;
  EXPECT_EQ(5, write(p.server, "reply", 5));
  EXPECT_EQ(6, write(p.client, "unread", 6));
  p.CloseServer();
  EXPECT_EQ(POLLIN | POLLOUT | POLLRDHUP | POLLERR | POLLHUP,
            Poll(p.client, POLLIN | POLLOUT | POLLRDHUP, 1000));
  char b[8];
  EXPECT_EQ(5, read(p.client, b, 8));  // what had come stays
  EXPECT_ERRNO(read(p.client, b, 8), ECONNRESET);
  EXPECT_EQ(0, read(p.client, b, 8));
  EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), EPIPE);
  Loopback none(AF_INET);
  EXPECT_ERRNO(getpeername(p.client, none.get(), &none.length), ENOTCONN);
}

TEST(TcpEnd, LingerZeroResets) {
  TcpPair p;
  linger l{1, 0}, back{};
  ASSERT_OK(setsockopt(p.server, SOL_SOCKET, SO_LINGER, &l, sizeof l));
  socklen_t length = sizeof back;
  ASSERT_OK(getsockopt(p.server, SOL_SOCKET, SO_LINGER, &back, &length));
  EXPECT_EQ(1, back.l_onoff);
  p.CloseServer();
  EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), ECONNRESET);
  EXPECT_ERRNO(send(p.client, "x", 1, MSG_NOSIGNAL), EPIPE);
}

TEST(TcpEnd, BlockedReaderIsWoken) {
  TcpPair p;
  std::thread reader([&] {
    char b;
    EXPECT_EQ(0, read(p.client, &b, 1));
  });
  SleepMs(30);
  ASSERT_OK(shutdown(p.client, SHUT_RDWR));
  reader.join();
  TcpPair q;
  std::thread writer([&] {
    std::string data(16 << 20, 'x');
    size_t done = 0;
    ssize_t n;
    while ((n = send(q.client, data.data(), data.size(), MSG_NOSIGNAL)) > 0) done += n;
    EXPECT_TRUE(errno == ECONNRESET || errno == EPIPE) << errno;
  });
  SleepMs(30);
  q.CloseServer();
  writer.join();
}

TEST(TcpEnd, UnconnectedSocket) {
  int s = socket(AF_INET, SOCK_STREAM, 0);
  char b;
  EXPECT_EQ(POLLOUT | POLLHUP, Poll(s, POLLIN | POLLOUT | POLLRDHUP));
  EXPECT_ERRNO(recv(s, &b, 1, 0), ENOTCONN);
  EXPECT_ERRNO(send(s, &b, 1, MSG_NOSIGNAL), EPIPE);
  EXPECT_ERRNO(shutdown(s, SHUT_RD), ENOTCONN);
  close(s);
}

TEST(TcpUrgent, ByteOutOfLine) {
  TcpPair p;
  char b[16] = {};
  EXPECT_ERRNO(recv(p.server, b, 1, MSG_OOB), EINVAL);
  EXPECT_EQ(3, send(p.client, "abc", 3, 0));
  EXPECT_EQ(2, send(p.client, "12", 2, MSG_OOB));
  EXPECT_EQ(2, send(p.client, "xy", 2, 0));
  EXPECT_EQ(POLLIN | POLLPRI, Poll(p.server, POLLIN | POLLPRI, 1000));
  int mark = -1;
  EXPECT_OK(ioctl(p.server, SIOCATMARK, &mark));
  EXPECT_EQ(0, mark);
  EXPECT_EQ(1, recv(p.server, b, 4, MSG_OOB | MSG_PEEK));
  EXPECT_EQ(1, recv(p.server, b, 4, MSG_OOB));
  EXPECT_EQ('2', b[0]);
  EXPECT_ERRNO(recv(p.server, b, 1, MSG_OOB), EINVAL);
  EXPECT_EQ(4, read(p.server, b, 16));  // up to the mark
  EXPECT_EQ(0, memcmp(b, "abc1", 4));
  EXPECT_OK(ioctl(p.server, SIOCATMARK, &mark));
  EXPECT_EQ(1, mark);
  EXPECT_EQ(2, read(p.server, b, 16));
  EXPECT_EQ(0, memcmp(b, "xy", 2));
  EXPECT_OK(ioctl(p.server, SIOCATMARK, &mark));
  EXPECT_EQ(0, mark);
}

TEST(TcpUrgent, InLine) {
  TcpPair p;
  ASSERT_OK(SetInt(p.server, SOL_SOCKET, SO_OOBINLINE, 1));
  EXPECT_EQ(3, send(p.client, "abc", 3, MSG_OOB));
  char b[16] = {};
  EXPECT_ERRNO(recv(p.server, b, 1, MSG_OOB), EINVAL);
  EXPECT_EQ(2, read(p.server, b, 16));
  EXPECT_EQ(1, read(p.server, b, 16));
  EXPECT_EQ('c', b[0]);
}

namespace {
volatile sig_atomic_t got_sigurg;
}
TEST(TcpUrgent, Sigurg) {
  TcpPair p;
  got_sigurg = 0;
  signal(SIGURG, [](int) { got_sigurg = 1; });
  ASSERT_OK(fcntl(p.server, F_SETOWN, getpid()));
  EXPECT_EQ(1, send(p.client, "!", 1, MSG_OOB));
  for (int i = 0; i < 100 && !got_sigurg; i++) SleepMs(5);
  EXPECT_EQ(1, got_sigurg);
  signal(SIGURG, SIG_DFL);
}

TEST(TcpTimeout, Receive) {
  TcpPair p;
  timeval t{0, 40000};
  ASSERT_OK(setsockopt(p.server, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
  char b;
  int64_t start = NowNs();
  EXPECT_ERRNO(recv(p.server, &b, 1, 0), EAGAIN);
  EXPECT_GE(NowNs() - start, 35000000);
}

TEST(TcpEpoll, EdgeTriggered) {
  TcpPair p;
  int ep = epoll_create1(0);
  epoll_event e{EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, {}}, got{};
  ASSERT_OK(epoll_ctl(ep, EPOLL_CTL_ADD, p.server, &e));
  EXPECT_EQ(1, epoll_wait(ep, &got, 1, 0));
  EXPECT_EQ(static_cast<uint32_t>(EPOLLOUT), got.events);
  EXPECT_EQ(0, epoll_wait(ep, &got, 1, 20));
  write(p.client, "a", 1);
  EXPECT_EQ(1, epoll_wait(ep, &got, 1, 1000));
  EXPECT_EQ(static_cast<uint32_t>(EPOLLIN | EPOLLOUT), got.events);
  EXPECT_EQ(0, epoll_wait(ep, &got, 1, 20));  // nothing new
  write(p.client, "b", 1);
  EXPECT_EQ(1, epoll_wait(ep, &got, 1, 1000));
  char b[4];
  EXPECT_EQ(2, read(p.server, b, 4));
  EXPECT_EQ(0, epoll_wait(ep, &got, 1, 20));
  p.CloseClient();
  EXPECT_EQ(1, epoll_wait(ep, &got, 1, 1000));
  EXPECT_EQ(static_cast<uint32_t>(EPOLLIN | EPOLLOUT | EPOLLRDHUP), got.events);
  close(ep);
}

TEST(TcpOptions, StoredValues) {
  int s = socket(AF_INET, SOCK_STREAM, 0);
  struct {
    int level, name, value;
  } options[] = {{IPPROTO_TCP, TCP_NODELAY, 1},   {IPPROTO_TCP, TCP_CORK, 1},
                 {IPPROTO_TCP, TCP_KEEPIDLE, 30}, {IPPROTO_TCP, TCP_KEEPINTVL, 5},
                 {IPPROTO_TCP, TCP_KEEPCNT, 3},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 1234},
                 {IPPROTO_TCP, TCP_MAXSEG, 1000}, {IPPROTO_IP, IP_TTL, 33},
                 {IPPROTO_IP, IP_TOS, 0x10},      {SOL_SOCKET, SO_KEEPALIVE, 1},
                 {SOL_SOCKET, SO_PRIORITY, 3},    {SOL_SOCKET, SO_OOBINLINE, 1},
                 {SOL_SOCKET, SO_REUSEADDR, 1},   {SOL_SOCKET, SO_REUSEPORT, 1},
                 {IPPROTO_TCP, TCP_FASTOPEN, 5},  {IPPROTO_TCP, TCP_SYNCNT, 4}};
  for (auto& o : options) {
    EXPECT_OK(SetInt(s, o.level, o.name, o.value)) << o.name;
    if (o.name != TCP_MAXSEG) EXPECT_EQ(o.value, GetInt(s, o.level, o.name)) << o.name;
  }
  EXPECT_ERRNO(SetInt(s, IPPROTO_TCP, TCP_KEEPIDLE, 0), EINVAL);
  EXPECT_ERRNO(SetInt(s, IPPROTO_IP, IP_TTL, 256), EINVAL);
  EXPECT_ERRNO(SetInt(s, IPPROTO_TCP, 9999, 1), ENOPROTOOPT);
  EXPECT_ERRNO(SetInt(s, IPPROTO_IPV6, IPV6_V6ONLY, 1), ENOPROTOOPT);
  char name[16] = {};
  socklen_t length = sizeof name;
  ASSERT_OK(getsockopt(s, IPPROTO_TCP, TCP_CONGESTION, name, &length));
  EXPECT_EQ(16u, length);
  ASSERT_OK(setsockopt(s, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
  ASSERT_OK(getsockopt(s, IPPROTO_TCP, TCP_CONGESTION, name, &length));
  EXPECT_STREQ("reno", name);
  EXPECT_ERRNO(setsockopt(s, IPPROTO_TCP, TCP_CONGESTION, "nope", 4), ENOENT);
  close(s);
}

TEST(TcpOptions, BindToDevice) {
  int s = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_ERRNO(setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, "nothere0", 8), ENODEV);
  ASSERT_OK(setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2));
  char name[IFNAMSIZ] = {};
  socklen_t length = sizeof name;
  ASSERT_OK(getsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
  EXPECT_STREQ("lo", name);
  EXPECT_EQ(3u, length);
  Listener listener;
  EXPECT_OK(listener.address.Connect(s));
  close(s);
}

TEST(TcpOptions, ZeroCopyCompletes) {
  TcpPair p;
  char data[4096] = {}, control[128];
  EXPECT_EQ(4096, send(p.client, data, sizeof data, MSG_ZEROCOPY));  // without the option: nothing
  ASSERT_OK(SetInt(p.client, SOL_SOCKET, SO_ZEROCOPY, 1));
  for (int i = 0; i < 3; i++) EXPECT_EQ(4096, send(p.client, data, sizeof data, MSG_ZEROCOPY));
  EXPECT_EQ(4096, recv(p.server, data, sizeof data, MSG_WAITALL));
  for (int i = 0; i < 3; i++) EXPECT_EQ(4096, recv(p.server, data, sizeof data, MSG_WAITALL));
  uint32_t next = 0;
  for (int tries = 0; tries < 100 && next < 3; tries++) {
    EXPECT_TRUE(Poll(p.client, 0, 1000) & POLLERR);
    msghdr m{};
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    if (recvmsg(p.client, &m, MSG_ERRQUEUE) < 0) continue;
    EXPECT_TRUE(m.msg_flags & MSG_ERRQUEUE);
    cmsghdr* c = CMSG_FIRSTHDR(&m);
    ASSERT_NE(nullptr, c);
    EXPECT_EQ(IPPROTO_IP, c->cmsg_level);
    EXPECT_EQ(IP_RECVERR, c->cmsg_type);
    sock_extended_err e;
    memcpy(&e, CMSG_DATA(c), sizeof e);
    EXPECT_EQ(SO_EE_ORIGIN_ZEROCOPY, e.ee_origin);
    EXPECT_EQ(0u, e.ee_errno);
    EXPECT_EQ(next, e.ee_info);
    next = e.ee_data + 1;
  }
  EXPECT_EQ(3u, next);
  int u = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_ERRNO(SetInt(u, SOL_SOCKET, SO_ZEROCOPY, 1), EOPNOTSUPP);
  close(u);
}

TEST(TcpOptions, InfoTellsTheState) {
  TcpPair p;
  auto state = [](int fd) {
    tcp_info info{};
    socklen_t length = sizeof info;
    EXPECT_OK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
    return static_cast<int>(info.tcpi_state);
  };
  EXPECT_EQ(TCP_ESTABLISHED, state(p.client));
  shutdown(p.client, SHUT_WR);
  int now = state(p.client);  // FIN_WAIT1 until the acknowledgement comes
  EXPECT_TRUE(now == TCP_FIN_WAIT1 || now == TCP_FIN_WAIT2) << now;
  EXPECT_EQ(TCP_CLOSE_WAIT, state(p.server));
  shutdown(p.server, SHUT_WR);
  EXPECT_EQ(TCP_CLOSE, state(p.client));
  EXPECT_EQ(TCP_CLOSE, state(p.server));
}

TEST(TcpData, MmsgAndSendfile) {
  TcpPair p;
  char a[] = "one", b[] = "two";
  iovec iov[2] = {{a, 3}, {b, 3}};
  mmsghdr m[2] = {};
  for (int i = 0; i < 2; i++) {
    m[i].msg_hdr.msg_iov = &iov[i];
    m[i].msg_hdr.msg_iovlen = 1;
  }
  EXPECT_EQ(2, sendmmsg(p.client, m, 2, 0));
  EXPECT_EQ(3u, m[1].msg_len);
  char got[8] = {};
  EXPECT_EQ(6, recv(p.server, got, 8, MSG_WAITALL | MSG_DONTWAIT));
  EXPECT_STREQ("onetwo", got);
  TempDir dir;
  WriteFile(dir / "f", "file content");
  int fd = open((dir / "f").c_str(), O_RDONLY);
  EXPECT_EQ(12, sendfile(p.client, fd, nullptr, 100));
  char text[16] = {};
  EXPECT_EQ(12, read(p.server, text, 16));
  EXPECT_STREQ("file content", text);
  close(fd);
  int pipes[2];
  ASSERT_OK(pipe(pipes));
  EXPECT_EQ(5, write(pipes[1], "piped", 5));
  EXPECT_EQ(5, splice(pipes[0], nullptr, p.client, nullptr, 100, 0));
  EXPECT_EQ(5, splice(p.server, nullptr, pipes[1], nullptr, 100, 0));
  memset(text, 0, sizeof text);
  EXPECT_EQ(5, read(pipes[0], text, 16));
  EXPECT_STREQ("piped", text);
  close(pipes[0]);
  close(pipes[1]);
}
