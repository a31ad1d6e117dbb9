// TCP_CORK and MSG_MORE: what the reader sees when.
#include "inet_util.h"

#include <linux/sockios.h>

#include <chrono>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

// Longer than this, and time alone (200 ms) may have sent what was held back.
constexpr auto kSoon = std::chrono::milliseconds(150);

// What `look` sees if it was quick enough to see it.
template <typename F>
auto Soon(F look) {
  auto seen = look();
  for (int i = 0; i < 100; i++) {
    auto begin = Clock::now();
    seen = look();
    if (Clock::now() - begin < kSoon) break;
  }
  return seen;
}

int Readable(int fd) {
  int n = -1;
  EXPECT_OK(ioctl(fd, FIONREAD, &n));
  return n;
}
int Unsent(int fd, unsigned long request = SIOCOUTQNSD) {
  int n = -1;
  EXPECT_OK(ioctl(fd, request, &n));
  return n;
}
// Waits a little for `n` bytes, which are on their way.
int ReadableOf(int fd, int n) {
  auto end = Clock::now() + kSoon;
  while (Readable(fd) < n && Clock::now() < end) {
  }
  return Readable(fd);
}
void Cork(int fd, int on) { EXPECT_OK(SetInt(fd, IPPROTO_TCP, TCP_CORK, on)); }

using Ints = std::vector<int>;

const char kBytes[70000] = {};

}  // namespace

TEST(TcpCork, MoreWaitsForTheRest) {
  for (int family : {AF_INET, AF_INET6}) {
    EXPECT_EQ((Ints{0, 2, 2, 0, 3}), Soon([&] {
                TcpPair p(family);
                EXPECT_EQ(2, send(p.client, "ab", 2, MSG_MORE));
                Ints seen{Poll(p.server, POLLIN), Unsent(p.client), Unsent(p.client, SIOCOUTQ)};
                char b[8];
                seen.push_back(recv(p.server, b, 8, MSG_DONTWAIT) > 0);
                EXPECT_EQ(1, send(p.client, "c", 1, 0));
                seen.push_back(ReadableOf(p.server, 3));
                return seen;
              }));
  }
}

TEST(TcpCork, AnEmptySendIsNotTheRest) {
  EXPECT_EQ((Ints{0, 100}), Soon([] {
              TcpPair p;
              send(p.client, kBytes, 100, MSG_MORE);
              EXPECT_EQ(0, send(p.client, kBytes, 0, 0));
              return Ints{Readable(p.server), Unsent(p.client)};
            }));
}

TEST(TcpCork, SendsWhenItEnds) {
  EXPECT_EQ((Ints{0, 7, 7}), Soon([] {
              TcpPair p;
              Cork(p.client, 1);
              EXPECT_EQ(3, write(p.client, "abc", 3));
              EXPECT_EQ(4, write(p.client, "defg", 4));
              Ints seen{Poll(p.server, POLLIN), Unsent(p.client)};
              EXPECT_EQ(1, GetInt(p.client, IPPROTO_TCP, TCP_CORK));
              Cork(p.client, 0);
              seen.push_back(ReadableOf(p.server, 7));
              return seen;
            }));
}

TEST(TcpCork, WholeSegmentsAreSent) {
  auto held = Soon([] {
    TcpPair p;
    Cork(p.client, 1);
    EXPECT_EQ(40000, write(p.client, kBytes, 40000));
    int readable = ReadableOf(p.server, 32000);
    return Ints{readable, readable + Unsent(p.client)};
  });
  EXPECT_GT(held[0], 32000);
  EXPECT_LT(held[0], 40000);
  EXPECT_EQ(40000, held[1]);
}

TEST(TcpCork, EndOfTheCorkSendsWhatMoreHeld) {
  EXPECT_EQ((Ints{0, 100}), Soon([] {
              TcpPair p;
              send(p.client, kBytes, 100, MSG_MORE);
              Ints seen{Readable(p.server)};
              Cork(p.client, 0);
              seen.push_back(ReadableOf(p.server, 100));
              return seen;
            }));
}

TEST(TcpCork, NoDelaySendsOnce) {
  EXPECT_EQ((Ints{0, 100, 100, 100}), Soon([] {
              TcpPair p;
              Cork(p.client, 1);
              send(p.client, kBytes, 100, 0);
              EXPECT_OK(SetInt(p.client, IPPROTO_TCP, TCP_NODELAY, 0));
              Ints seen{Readable(p.server)};
              EXPECT_OK(SetInt(p.client, IPPROTO_TCP, TCP_NODELAY, 1));
              seen.push_back(ReadableOf(p.server, 100));
              send(p.client, kBytes, 100, 0);
              seen.push_back(Readable(p.server));
              seen.push_back(Unsent(p.client));
              return seen;
            }));
}

TEST(TcpCork, UrgentBytesAreSent) {
  TcpPair p;
  Cork(p.client, 1);
  send(p.client, "ab", 2, 0);
  EXPECT_EQ(1, send(p.client, "u", 1, MSG_OOB));
  EXPECT_EQ(POLLPRI, Poll(p.server, POLLPRI, 5000) & POLLPRI);
  char b[4] = {};
  EXPECT_EQ(2, recv(p.server, b, 4, 0));
  EXPECT_STREQ("ab", b);
  EXPECT_EQ(1, recv(p.server, b, 1, MSG_OOB));
  EXPECT_EQ('u', b[0]);
}

TEST(TcpCork, TheEndOfTheStreamTakesTheRestAlong) {
  for (bool by_close : {false, true}) {
    TcpPair p;
    Cork(p.client, 1);
    send(p.client, "abc", 3, MSG_MORE);
    if (by_close) {
      p.CloseClient();
    } else {
      EXPECT_OK(shutdown(p.client, SHUT_WR));
    }
    char b[8];
    EXPECT_EQ(3, recv(p.server, b, 8, MSG_WAITALL));
    EXPECT_EQ(0, recv(p.server, b, 8, 0));
  }
}

TEST(TcpCork, AResetDoesNot) {
  EXPECT_EQ((Ints{-1, ECONNRESET}), Soon([] {
              TcpPair p;
              send(p.client, "abc", 3, MSG_MORE);
              linger l{.l_onoff = 1, .l_linger = 0};
              EXPECT_OK(setsockopt(p.client, SOL_SOCKET, SO_LINGER, &l, sizeof l));
              p.CloseClient();
              char b[8];
              int n = static_cast<int>(recv(p.server, b, 8, 0));
              return Ints{n, errno};
            }));
}

TEST(TcpCork, TimeSendsTheRest) {
  for (bool more : {false, true}) {
    TcpPair p;
    if (!more) Cork(p.client, 1);
    auto begin = Clock::now();
    send(p.client, "abc", 3, more ? MSG_MORE : 0);
    EXPECT_EQ(POLLIN, Poll(p.server, POLLIN, 10000));
    EXPECT_GE(Clock::now() - begin, std::chrono::milliseconds(195));
    EXPECT_EQ(3, Readable(p.server));
    // And again, while it is corked.
    char b[8];
    EXPECT_EQ(3, read(p.server, b, 8));
    send(p.client, "de", 2, more ? MSG_MORE : 0);
    EXPECT_EQ(POLLIN, Poll(p.server, POLLIN, 10000));
    EXPECT_EQ(2, read(p.server, b, 8));
  }
}

TEST(TcpCork, IsInherited) {
  Listener listener;
  Cork(listener.fd, 1);
  int client = listener.Client(), server = listener.Accept();
  EXPECT_EQ(1, GetInt(server, IPPROTO_TCP, TCP_CORK));
  send(server, "abc", 3, 0);
  Cork(server, 0);
  EXPECT_EQ(POLLIN, Poll(client, POLLIN, 5000));
  close(client);
  close(server);
}

// Full buffers are sent, whatever is to come, and every byte arrives in order.
TEST(TcpCork, ManyBytes) {
  for (bool cork : {false, true}) {
    TcpPair p;
    if (cork) Cork(p.client, 1);
    constexpr size_t kTotal = 3'000'000;
    std::thread writer([&] {
      std::vector<unsigned char> block(70000);
      size_t sent = 0;
      for (size_t size = 1; sent < kTotal; size = size * 7 % 70001) {
        size = std::min(size, kTotal - sent);
        for (size_t i = 0; i < size; i++) block[i] = static_cast<unsigned char>((sent + i) % 251);
        ssize_t n = send(p.client, block.data(), size, sent % 3 != 0 ? MSG_MORE : 0);
        ASSERT_GT(n, 0);
        sent += static_cast<size_t>(n);
      }
      if (cork) Cork(p.client, 0);
      EXPECT_OK(shutdown(p.client, SHUT_WR));
    });
    std::vector<unsigned char> b(50000);
    size_t got = 0, wrong = 0;
    for (ssize_t n; (n = read(p.server, b.data(), b.size())) > 0; got += static_cast<size_t>(n)) {
      for (ssize_t i = 0; i < n; i++) wrong += b[i] != (got + static_cast<size_t>(i)) % 251;
    }
    EXPECT_EQ(kTotal, got);
    EXPECT_EQ(0u, wrong);
    writer.join();
  }
}

// Of connections that were used much before, which the sandbox moves elsewhere.
TEST(TcpCork, AfterManyMessages) {
  EXPECT_EQ((Ints{0, 2, 0, 3, 5}), Soon([] {
              TcpPair p;
              char b[8];
              auto chat = [&] {
                for (int i = 0; i < 60; i++) {
                  write(p.client, "x", 1);
                  read(p.server, b, 1);
                  write(p.server, "y", 1);
                  read(p.client, b, 1);
                }
              };
              chat();
              Cork(p.client, 1);
              write(p.client, "ab", 2);
              Ints seen{Readable(p.server)};
              Cork(p.client, 0);
              seen.push_back(ReadableOf(p.server, 2));
              read(p.server, b, 2);
              chat();
              send(p.client, "abc", 3, MSG_MORE);
              seen.push_back(Readable(p.server));
              seen.push_back(Unsent(p.client));
              write(p.client, "de", 2);
              seen.push_back(ReadableOf(p.server, 5));
              EXPECT_EQ(5, read(p.server, b, 8));
              EXPECT_EQ(0, memcmp(b, "abcde", 5));
              chat();
              return seen;
            }));
}

TEST(TcpCork, SplicedWithMoreToCome) {
  EXPECT_EQ((Ints{0, 3, 5}), Soon([] {
              TcpPair p;
              int pipes[2];
              EXPECT_OK(pipe(pipes));
              write(pipes[1], "abcde", 5);
              EXPECT_EQ(3, splice(pipes[0], nullptr, p.client, nullptr, 3, SPLICE_F_MORE));
              Ints seen{Readable(p.server), Unsent(p.client)};
              EXPECT_EQ(2, splice(pipes[0], nullptr, p.client, nullptr, 2, 0));
              seen.push_back(ReadableOf(p.server, 5));
              close(pipes[0]);
              close(pipes[1]);
              return seen;
            }));
}
