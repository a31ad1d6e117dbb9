// Helpers of the tests of IPv4 and IPv6 sockets.
#pragma once

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <string>

#include "guest_util.h"

// An address of the loopback device, of either family.
struct Loopback {
  sockaddr_storage storage{};
  socklen_t length = sizeof(sockaddr_storage);
  explicit Loopback(int family, int port = 0) {
    storage.ss_family = family;
    if (family == AF_INET) {
      v4()->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      length = sizeof(sockaddr_in);
    } else {
      v6()->sin6_addr = in6addr_loopback;
      length = sizeof(sockaddr_in6);
    }
    set_port(port);
  }
  static Loopback V4(const char* text, int port = 0) {
    Loopback a(AF_INET, port);
    inet_pton(AF_INET, text, &a.v4()->sin_addr);
    return a;
  }
  static Loopback V6(const char* text, int port = 0) {
    Loopback a(AF_INET6, port);
    inet_pton(AF_INET6, text, &a.v6()->sin6_addr);
    return a;
  }
  sockaddr_in* v4() { return reinterpret_cast<sockaddr_in*>(&storage); }
  sockaddr_in6* v6() { return reinterpret_cast<sockaddr_in6*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  int port() { return ntohs(storage.ss_family == AF_INET ? v4()->sin_port : v6()->sin6_port); }
  void set_port(int port) {
    (storage.ss_family == AF_INET ? v4()->sin_port : v6()->sin6_port) = htons(port);
  }
  std::string text() {
    char buffer[64];
    if (storage.ss_family == AF_INET) {
      return inet_ntop(AF_INET, &v4()->sin_addr, buffer, sizeof buffer);
    }
    return inet_ntop(AF_INET6, &v6()->sin6_addr, buffer, sizeof buffer);
  }
  int Bind(int fd) { return bind(fd, get(), length); }
  int Connect(int fd) { return connect(fd, get(), length); }
};

inline Loopback NameOf(int fd) {
  Loopback a(AF_INET);
  a.length = sizeof a.storage;
  EXPECT_OK(getsockname(fd, a.get(), &a.length));
  return a;
}
inline Loopback PeerOf(int fd) {
  Loopback a(AF_INET);
  a.length = sizeof a.storage;
  EXPECT_OK(getpeername(fd, a.get(), &a.length));
  return a;
}

inline int SetInt(int fd, int level, int name, int value) {
  return setsockopt(fd, level, name, &value, sizeof value);
}
inline int GetInt(int fd, int level, int name) {
  int value = -12345;
  socklen_t length = sizeof value;
  if (getsockopt(fd, level, name, &value, &length) != 0) return -errno;
  return value;
}
inline int TakeError(int fd) { return GetInt(fd, SOL_SOCKET, SO_ERROR); }
inline int Poll(int fd, int events, int timeout_ms = 0) {
  pollfd p{fd, static_cast<short>(events), 0};
  poll(&p, 1, timeout_ms);
  return p.revents;
}

// A listener on a port of its own, and connections to it.
class Listener {
 public:
  explicit Listener(int family = AF_INET, int backlog = 16, int flags = 0) : address(family) {
    fd = socket(family, SOCK_STREAM | flags, 0);
    EXPECT_OK(fd);
    EXPECT_OK(address.Bind(fd));
    EXPECT_OK(listen(fd, backlog));
    address = NameOf(fd);
  }
  ~Listener() { close(fd); }
  int Client(int flags = 0) {
    int c = socket(address.storage.ss_family, SOCK_STREAM | flags, 0);
    EXPECT_OK(c);
    int r = address.Connect(c);
    if (!(flags & SOCK_NONBLOCK)) EXPECT_OK(r);
    return c;
  }
  int Accept(int flags = 0) {
    int s = accept4(fd, nullptr, nullptr, flags);
    EXPECT_OK(s);
    return s;
  }
  Loopback address;
  int fd;
};

// Two connected ends.
struct TcpPair {
  explicit TcpPair(int family = AF_INET) {
    Listener listener(family);
    client = listener.Client();
    server = listener.Accept();
  }
  ~TcpPair() {
    if (client >= 0) close(client);
    if (server >= 0) close(server);
  }
  void CloseClient() {
    close(client);
    client = -1;
  }
  void CloseServer() {
    close(server);
    server = -1;
  }
  int client, server;
};

// Runs `body` in a child with a network namespace of its own; its result is the exit status.
inline int InNewNetwork(const std::function<int()>& body) {
  return ExitStatus([&] {
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 99;
    int r = body();
    return ::testing::Test::HasFailure() ? 98 : r;
  });
}
// Brings the loopback device up or down.
inline int SetLoopbackUp(bool up) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq r{};
  strcpy(r.ifr_name, "lo");
  if (ioctl(fd, SIOCGIFFLAGS, &r) != 0) return -1;
  r.ifr_flags = static_cast<short>(up ? r.ifr_flags | IFF_UP : r.ifr_flags & ~IFF_UP);
  int result = ioctl(fd, SIOCSIFFLAGS, &r);
  close(fd);
  return result;
}
