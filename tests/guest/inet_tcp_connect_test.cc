// TCP: binding, listening, connecting, accepting.
#include "inet_util.h"

#include <thread>
#include <vector>

namespace {
const int kFamilies[] = {AF_INET, AF_INET6};
}

TEST(TcpConnect, ConnectsAndNames) {
  for (int family : kFamilies) {
    Listener listener(family);
    EXPECT_GT(listener.address.port(), 0);
    int c = listener.Client();
    Loopback peer(family);
    socklen_t length = sizeof peer.storage;
    int s = accept4(listener.fd, peer.get(), &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    ASSERT_OK(s);
    EXPECT_EQ(peer.length, length);
    EXPECT_EQ(FD_CLOEXEC, fcntl(s, F_GETFD));
    EXPECT_TRUE(fcntl(s, F_GETFL) & O_NONBLOCK);
    EXPECT_EQ(NameOf(c).port(), peer.port());
    EXPECT_EQ(PeerOf(c).port(), listener.address.port());
    EXPECT_EQ(NameOf(s).port(), listener.address.port());
    EXPECT_EQ(family == AF_INET ? "127.0.0.1" : "::1", peer.text());
    EXPECT_EQ(family, GetInt(c, SOL_SOCKET, SO_DOMAIN));
    EXPECT_EQ(SOCK_STREAM, GetInt(c, SOL_SOCKET, SO_TYPE));
    EXPECT_EQ(IPPROTO_TCP, GetInt(c, SOL_SOCKET, SO_PROTOCOL));
    EXPECT_EQ(1, GetInt(listener.fd, SOL_SOCKET, SO_ACCEPTCONN));
    EXPECT_EQ(0, GetInt(c, SOL_SOCKET, SO_ACCEPTCONN));
    EXPECT_ERRNO(listener.address.Connect(c), EISCONN);
    EXPECT_ERRNO(listen(c, 1), EINVAL);
    EXPECT_ERRNO(accept(c, nullptr, nullptr), EINVAL);
    close(c);
    close(s);
  }
}

TEST(TcpConnect, Refused) {
  for (int family : kFamilies) {
    Loopback free(family);
    {
      Listener gone(family);
      free = gone.address;
    }
    int c = socket(family, SOCK_STREAM, 0);
    EXPECT_ERRNO(free.Connect(c), ECONNREFUSED);
    EXPECT_ERRNO(free.Connect(c), ECONNREFUSED);  // it may be tried again
    Listener listener(family);
    EXPECT_OK(listener.address.Connect(c));
    close(c);
  }
}

TEST(TcpConnect, NonBlocking) {
  Listener listener;
  int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  EXPECT_ERRNO(listener.address.Connect(c), EINPROGRESS);
  EXPECT_EQ(POLLOUT, Poll(c, POLLOUT | POLLIN, 1000));
  EXPECT_EQ(0, TakeError(c));
  EXPECT_OK(listener.address.Connect(c));
  EXPECT_ERRNO(listener.address.Connect(c), EISCONN);
  close(c);

  Loopback free(AF_INET);
  {
    Listener gone;
    free = gone.address;
  }
  c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  EXPECT_ERRNO(free.Connect(c), EINPROGRESS);
  EXPECT_EQ(POLLOUT | POLLIN | POLLERR | POLLHUP | POLLRDHUP,
            Poll(c, POLLOUT | POLLIN | POLLRDHUP, 1000));
  EXPECT_EQ(ECONNREFUSED, TakeError(c));
  EXPECT_EQ(0, TakeError(c));
  EXPECT_ERRNO(free.Connect(c), ECONNABORTED);
  EXPECT_ERRNO(free.Connect(c), EINPROGRESS);
  EXPECT_ERRNO(free.Connect(c), ECONNREFUSED);
  close(c);
}

TEST(TcpConnect, FullBacklog) {
  Listener listener(AF_INET, 0);
  std::vector<int> clients;
  // One more than the backlog is taken.
  for (int i = 0; i < 2; i++) clients.push_back(listener.Client(SOCK_NONBLOCK));
  EXPECT_EQ(POLLOUT, Poll(clients[0], POLLOUT, 1000));
  EXPECT_EQ(0, Poll(clients[1], POLLOUT, 100));
  EXPECT_ERRNO(listener.address.Connect(clients[1]), EALREADY);
  EXPECT_ERRNO(send(clients[1], "x", 1, 0), EAGAIN);
  EXPECT_ERRNO(recv(clients[1], clients.data(), 1, 0), EAGAIN);
  Loopback none(AF_INET);
  EXPECT_ERRNO(getpeername(clients[1], none.get(), &none.length), ENOTCONN);
  close(listener.Accept());
  EXPECT_TRUE(Poll(clients[1], POLLOUT, 10000) & POLLOUT);
  EXPECT_EQ(POLLIN, Poll(listener.fd, POLLIN, 5000));
  close(listener.Accept());
  for (int c : clients) close(c);
}

TEST(TcpConnect, SendTimeoutLimitsConnect) {
  Listener listener(AF_INET, 0);
  int a = listener.Client(SOCK_NONBLOCK), b = listener.Client(SOCK_NONBLOCK);
  int c = socket(AF_INET, SOCK_STREAM, 0);
  timeval t{0, 50000};
  ASSERT_OK(setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
  EXPECT_ERRNO(listener.address.Connect(c), EINPROGRESS);
  EXPECT_ERRNO(listener.address.Connect(c), EALREADY);
  for (int fd : {a, b, c}) close(fd);
}

TEST(TcpConnect, SelfConnect) {
  int c = socket(AF_INET, SOCK_STREAM, 0);
  Loopback a(AF_INET);
  ASSERT_OK(a.Bind(c));
  a = NameOf(c);
  ASSERT_OK(a.Connect(c));
  EXPECT_EQ(a.port(), PeerOf(c).port());
  EXPECT_EQ(3, write(c, "abc", 3));
  char b[8];
  EXPECT_EQ(3, read(c, b, 8));
  ASSERT_OK(shutdown(c, SHUT_WR));
  EXPECT_EQ(0, read(c, b, 8));
  close(c);
}

TEST(TcpConnect, Disconnect) {
  Listener listener;
  int c = listener.Client(), s = listener.Accept();
  sockaddr unspec{};
  unspec.sa_family = AF_UNSPEC;
  ASSERT_OK(connect(c, &unspec, sizeof unspec));
  Loopback none(AF_INET);
  EXPECT_ERRNO(getpeername(c, none.get(), &none.length), ENOTCONN);
  char b;
  EXPECT_ERRNO(recv(s, &b, 1, 0), ECONNRESET);
  EXPECT_ERRNO(recv(c, &b, 1, 0), ECONNRESET);
  EXPECT_ERRNO(recv(c, &b, 1, 0), ENOTCONN);
  ASSERT_OK(listener.address.Connect(c));
  close(c);
  close(s);
}

TEST(TcpConnect, BadAddresses) {
  int c = socket(AF_INET, SOCK_STREAM, 0);
  Loopback a(AF_INET, 1);
  EXPECT_ERRNO(connect(c, a.get(), 1), EINVAL);
  EXPECT_ERRNO(connect(c, a.get(), 8), EINVAL);
  a.v4()->sin_family = AF_INET6;
  EXPECT_ERRNO(connect(c, a.get(), sizeof(sockaddr_in)), EAFNOSUPPORT);
  EXPECT_ERRNO(bind(c, a.get(), sizeof(sockaddr_in)), EAFNOSUPPORT);
  EXPECT_ERRNO(bind(c, a.get(), 3), EINVAL);
  EXPECT_ERRNO(connect(c, reinterpret_cast<sockaddr*>(BadAddress()), 16), EFAULT);
  a = Loopback::V4("127.255.255.255", 1);
  EXPECT_ERRNO(a.Connect(c), ENETUNREACH);
  a = Loopback::V4("192.0.2.77");
  EXPECT_ERRNO(a.Bind(c), EADDRNOTAVAIL);
  close(c);
  EXPECT_ERRNO(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP), EPROTONOSUPPORT);
  EXPECT_ERRNO(socket(AF_INET, SOCK_SEQPACKET, 0), ESOCKTNOSUPPORT);
  EXPECT_ERRNO(socket(AF_INET, SOCK_STREAM, 5000), EINVAL);
  int pair[2];
  EXPECT_ERRNO(socketpair(AF_INET, SOCK_STREAM, 0, pair), EOPNOTSUPP);
}

TEST(TcpBind, EphemeralPortsAndDoubleBind) {
  int a = socket(AF_INET, SOCK_STREAM, 0), b = socket(AF_INET, SOCK_STREAM, 0);
  Loopback address(AF_INET);
  ASSERT_OK(address.Bind(a));
  Loopback bound = NameOf(a);
  int low = 0, high = 0;
  sscanf(ReadFile("/proc/sys/net/ipv4/ip_local_port_range").c_str(), "%d %d", &low, &high);
  EXPECT_GE(bound.port(), low);
  EXPECT_LE(bound.port(), high);
  EXPECT_ERRNO(address.Bind(a), EINVAL);
  EXPECT_ERRNO(bound.Bind(b), EADDRINUSE);
  Loopback any = Loopback::V4("0.0.0.0", bound.port());
  EXPECT_ERRNO(any.Bind(b), EADDRINUSE);
  Loopback other = Loopback::V4("127.0.0.2", bound.port());
  ASSERT_OK(other.Bind(b));
  EXPECT_EQ("127.0.0.2", NameOf(b).text());
  close(a);
  close(b);
}

TEST(TcpBind, ReuseAddress) {
  int a = socket(AF_INET, SOCK_STREAM, 0), b = socket(AF_INET, SOCK_STREAM, 0);
  Loopback address(AF_INET);
  SetInt(a, SOL_SOCKET, SO_REUSEADDR, 1);
  SetInt(b, SOL_SOCKET, SO_REUSEADDR, 1);
  ASSERT_OK(address.Bind(a));
  address = NameOf(a);
  ASSERT_OK(address.Bind(b));  // nobody listens yet
  ASSERT_OK(listen(a, 1));
  EXPECT_ERRNO(listen(b, 1), EADDRINUSE);
  int c = socket(AF_INET, SOCK_STREAM, 0);
  SetInt(c, SOL_SOCKET, SO_REUSEADDR, 1);
  EXPECT_ERRNO(address.Bind(c), EADDRINUSE);
  for (int fd : {a, b, c}) close(fd);
}

TEST(TcpBind, TimeWaitHoldsThePort) {
  Loopback address(AF_INET);
  {
    Listener listener;
    address = listener.address;
    int c = listener.Client(), s = listener.Accept();
    close(s);  // the server ends first
    char b;
    EXPECT_EQ(0, read(c, &b, 1));
    close(c);
  }
  int a = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_ERRNO(address.Bind(a), EADDRINUSE);
  close(a);
  Listener again;
  SetInt(again.fd, SOL_SOCKET, SO_REUSEADDR, 1);
  address = again.address;
  int c = again.Client(), s = again.Accept();
  close(s);
  char b;
  EXPECT_EQ(0, read(c, &b, 1));
  close(c);
  close(again.fd);
  again.fd = -1;
  a = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_ERRNO(address.Bind(a), EADDRINUSE);
  SetInt(a, SOL_SOCKET, SO_REUSEADDR, 1);
  EXPECT_OK(address.Bind(a));
  EXPECT_OK(listen(a, 1));
  close(a);
}

TEST(TcpBind, ReusePortBalances) {
  Loopback address(AF_INET);
  int fds[4];
  for (int& fd : fds) {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    ASSERT_OK(SetInt(fd, SOL_SOCKET, SO_REUSEPORT, 1));
    ASSERT_OK(address.Bind(fd));
    ASSERT_OK(listen(fd, 64));
    address = NameOf(fd);
  }
  int lone = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_ERRNO(address.Bind(lone), EADDRINUSE);
  close(lone);
  std::vector<int> clients;
  for (int i = 0; i < 100; i++) {
    int c = socket(AF_INET, SOCK_STREAM, 0);
    ASSERT_OK(address.Connect(c));
    clients.push_back(c);
  }
  int total = 0;
  for (int fd : fds) {
    int n = 0;
    for (int s; (s = accept(fd, nullptr, nullptr)) >= 0; n++) close(s);
    EXPECT_GT(n, 5);
    total += n;
    close(fd);
  }
  EXPECT_EQ(100, total);
  for (int c : clients) close(c);
}

TEST(TcpBind, PrivilegedPorts) {
  int start = atoi(ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start").c_str());
  if (geteuid() != 0 || start < 100) GTEST_SKIP();
  EXPECT_EQ(0, ExitStatus([] {
              int a = socket(AF_INET, SOCK_STREAM, 0);
              int b = socket(AF_INET6, SOCK_STREAM, 0);
              Loopback address(AF_INET, 87), v6(AF_INET6, 87);
              if (address.Bind(a) != 0) return 1;
              if (setuid(1000) != 0) return 2;
              if (v6.Bind(b) == 0 || errno != EACCES) return 3;
              return 0;
            }));
}

TEST(TcpBind, MappedAddressesAndV6Only) {
  int six = socket(AF_INET6, SOCK_STREAM, 0), four = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(0, GetInt(six, IPPROTO_IPV6, IPV6_V6ONLY));
  Loopback any = Loopback::V6("::");
  ASSERT_OK(any.Bind(six));
  ASSERT_OK(listen(six, 4));
  int port = NameOf(six).port();
  Loopback v4(AF_INET, port);
  EXPECT_ERRNO(v4.Bind(four), EADDRINUSE);
  EXPECT_ERRNO(SetInt(six, IPPROTO_IPV6, IPV6_V6ONLY, 1), EINVAL);
  ASSERT_OK(v4.Connect(four));
  Loopback peer(AF_INET6);
  int s = accept(six, peer.get(), &peer.length);
  ASSERT_OK(s);
  EXPECT_EQ("::ffff:127.0.0.1", peer.text());
  EXPECT_EQ("::ffff:127.0.0.1", NameOf(s).text());
  close(s);
  close(four);
  // The other way round: an IPv6 socket to an IPv4 listener.
  Listener listener(AF_INET);
  int c = socket(AF_INET6, SOCK_STREAM, 0);
  Loopback mapped = Loopback::V6("::ffff:127.0.0.1", listener.address.port());
  ASSERT_OK(mapped.Connect(c));
  EXPECT_EQ("::ffff:127.0.0.1", NameOf(c).text());
  s = listener.Accept();
  EXPECT_EQ("127.0.0.1", PeerOf(s).text());
  close(c);
  close(s);
  close(six);

  six = socket(AF_INET6, SOCK_STREAM, 0);
  ASSERT_OK(SetInt(six, IPPROTO_IPV6, IPV6_V6ONLY, 1));
  ASSERT_OK(any.Bind(six));
  ASSERT_OK(listen(six, 4));
  port = NameOf(six).port();
  four = socket(AF_INET, SOCK_STREAM, 0);
  v4.set_port(port);
  EXPECT_ERRNO(v4.Connect(four), ECONNREFUSED);
  EXPECT_OK(v4.Bind(four));
  c = socket(AF_INET6, SOCK_STREAM, 0);
  ASSERT_OK(SetInt(c, IPPROTO_IPV6, IPV6_V6ONLY, 1));
  mapped.set_port(port);
  EXPECT_ERRNO(mapped.Connect(c), ENETUNREACH);
  EXPECT_ERRNO(mapped.Bind(c), EINVAL);
  for (int fd : {six, four, c}) close(fd);
}

TEST(TcpListen, ListenWithoutBindAndShutdown) {
  int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  ASSERT_OK(listen(l, 2));
  EXPECT_GT(NameOf(l).port(), 0);
  EXPECT_EQ("0.0.0.0", NameOf(l).text());
  EXPECT_ERRNO(accept(l, nullptr, nullptr), EAGAIN);
  EXPECT_ERRNO(send(l, "x", 1, MSG_NOSIGNAL), EPIPE);
  char b;
  EXPECT_ERRNO(recv(l, &b, 1, 0), ENOTCONN);
  fcntl(l, F_SETFL, 0);
  std::thread waiter([&] { EXPECT_ERRNO(accept(l, nullptr, nullptr), EINVAL); });
  SleepMs(50);
  ASSERT_OK(shutdown(l, SHUT_RDWR));
  waiter.join();
  EXPECT_ERRNO(accept(l, nullptr, nullptr), EINVAL);
  ASSERT_OK(listen(l, 2));
  close(l);
}

TEST(TcpListen, ClosingResetsWhatWaits) {
  int c;
  {
    Listener listener;
    c = listener.Client();
  }
  char b;
  EXPECT_ERRNO(recv(c, &b, 1, 0), ECONNRESET);
  close(c);
}

TEST(TcpListen, AcceptAfterTheClientHasGone) {
  Listener listener;
  int c = listener.Client();
  EXPECT_EQ(5, write(c, "hello", 5));
  close(c);
  c = listener.Client();
  linger l{1, 0};
  setsockopt(c, SOL_SOCKET, SO_LINGER, &l, sizeof l);
  close(c);
  int s = listener.Accept();
  char b[8];
  EXPECT_EQ(5, read(s, b, 8));
  EXPECT_EQ(0, read(s, b, 8));
  close(s);
  Loopback peer(AF_INET);
  s = accept(listener.fd, peer.get(), &peer.length);
  ASSERT_OK(s);
  EXPECT_EQ("127.0.0.1", peer.text());
  EXPECT_ERRNO(recv(s, b, 8, 0), ECONNRESET);
  close(s);
}

TEST(TcpListen, OptionsAreInherited) {
  Listener listener;
  SetInt(listener.fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  SetInt(listener.fd, IPPROTO_TCP, TCP_NODELAY, 1);
  SetInt(listener.fd, SOL_SOCKET, SO_RCVBUF, 20000);
  SetInt(listener.fd, IPPROTO_TCP, TCP_KEEPIDLE, 77);
  int c = listener.Client(), s = listener.Accept();
  EXPECT_EQ(1, GetInt(s, SOL_SOCKET, SO_KEEPALIVE));
  EXPECT_EQ(1, GetInt(s, IPPROTO_TCP, TCP_NODELAY));
  EXPECT_EQ(40000, GetInt(s, SOL_SOCKET, SO_RCVBUF));
  EXPECT_EQ(77, GetInt(s, IPPROTO_TCP, TCP_KEEPIDLE));
  EXPECT_EQ(0, GetInt(c, SOL_SOCKET, SO_KEEPALIVE));
  close(c);
  close(s);
}

TEST(TcpListen, DeferAccept) {
  Listener listener(AF_INET, 4, SOCK_NONBLOCK);
  ASSERT_OK(SetInt(listener.fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 10));
  int c = listener.Client();
  EXPECT_EQ(0, Poll(listener.fd, POLLIN, 100));
  EXPECT_EQ(1, write(c, "x", 1));
  EXPECT_EQ(POLLIN, Poll(listener.fd, POLLIN, 2000));
  close(listener.Accept());
  close(c);
}

TEST(TcpListen, ManyThreadsAccept) {
  Listener listener(AF_INET, 128);
  std::atomic<int> accepted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&] {
      while (true) {
        int s = accept(listener.fd, nullptr, nullptr);
        if (s < 0) break;
        char b;
        if (read(s, &b, 1) == 1) write(s, &b, 1);
        close(s);
        accepted++;
      }
    });
  }
  for (int i = 0; i < 200; i++) {
    int c = listener.Client();
    char b = 'q';
    ASSERT_EQ(1, write(c, &b, 1));
    ASSERT_EQ(1, read(c, &b, 1));
    close(c);
  }
  ASSERT_OK(shutdown(listener.fd, SHUT_RDWR));
  for (auto& t : threads) t.join();
  EXPECT_EQ(200, accepted.load());
}
