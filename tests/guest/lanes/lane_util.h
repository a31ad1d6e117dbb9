// What the tests of busy connections share.
#pragma once

#include <string>

#include "inet_util.h"

inline std::string ReadAll(int fd, size_t n) {
  std::string text(n, '\0');
  size_t got = 0;
  while (got < n) {
    ssize_t r = read(fd, text.data() + got, n - got);
    if (r <= 0) break;
    got += static_cast<size_t>(r);
  }
  text.resize(got);
  return text;
}

// Messages in both directions, `times` of them.
inline void Exchange(int a, int b, int times = 100) {
  for (int i = 0; i < times; ++i) {
    std::string message = "message " + std::to_string(i);
    ASSERT_EQ(static_cast<ssize_t>(message.size()), write(a, message.data(), message.size()));
    ASSERT_EQ(message, ReadAll(b, message.size()));
    ASSERT_EQ(static_cast<ssize_t>(message.size()), write(b, message.data(), message.size()));
    ASSERT_EQ(message, ReadAll(a, message.size()));
  }
}

// A connection that has been in use.
struct BusyPair : TcpPair {
  explicit BusyPair(int family = AF_INET) : TcpPair(family) {
    for (int fd : {client, server}) EXPECT_OK(SetInt(fd, IPPROTO_TCP, TCP_NODELAY, 1));
    Exchange(client, server);
  }
};
