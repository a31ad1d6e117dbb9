// MSG_OOB of AF_UNIX streams: the urgent byte, its mark, and what tells of it.
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <string>
#include <thread>

#include "guest_util.h"

namespace {

class UnixUrgent : public ::testing::Test {
 protected:
  void SetUp() override { Renew(); }
  void TearDown() override { Close(); }
  void Renew(bool in_line = false) {
    Close();
    int s[2];
    ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    a_ = s[0];
    b_ = s[1];
    const int on = 1;
    if (in_line) ASSERT_OK(setsockopt(b_, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on)));
  }
  void Close() {
    if (a_ >= 0) close(a_);
    if (b_ >= 0) close(b_);
    a_ = b_ = -1;
  }
  void Send(const std::string& text) {
    EXPECT_EQ(text.size(), static_cast<size_t>(send(a_, text.data(), text.size(), 0)));
  }
  void Urge(const std::string& text) {
    EXPECT_EQ(text.size(), static_cast<size_t>(send(a_, text.data(), text.size(), MSG_OOB)));
  }
  // What is received without waiting; "!" and the error.
  std::string Get(size_t n, int flags = 0) {
    char buffer[64];
    const ssize_t r = recv(b_, buffer, n, flags | MSG_DONTWAIT);
    return r < 0 ? "!" + std::to_string(errno) : std::string(buffer, static_cast<size_t>(r));
  }
  int Mark() {
    int mark = -1;
    EXPECT_OK(ioctl(b_, SIOCATMARK, &mark));
    return mark;
  }
  int Waiting() {
    int n = -1;
    EXPECT_OK(ioctl(b_, SIOCINQ, &n));
    return n;
  }
  int Events() {
    pollfd p{b_, POLLIN | POLLPRI, 0};
    EXPECT_GE(poll(&p, 1, 0), 0);
    return p.revents;
  }

  const std::string again_ = "!" + std::to_string(EAGAIN), none_ = "!" + std::to_string(EINVAL);
  int a_ = -1, b_ = -1;
};

TEST_F(UnixUrgent, AReceiveStopsAtTheMark) {
  Urge("hello");
  EXPECT_EQ(5, Waiting());
  EXPECT_EQ(0, Mark());
  EXPECT_EQ(POLLIN | POLLPRI, Events());
  EXPECT_EQ("hell", Get(10));
  EXPECT_EQ(1, Waiting());
  EXPECT_EQ(1, Mark());
  EXPECT_EQ(POLLIN | POLLPRI, Events());
  EXPECT_EQ("o", Get(10, MSG_OOB));
  EXPECT_EQ(0, Waiting());
  EXPECT_EQ(1, Mark());
  EXPECT_EQ(POLLIN, Events());
  EXPECT_EQ(again_, Get(10));
  EXPECT_EQ(0, Mark());
  EXPECT_EQ(0, Events());
}

TEST_F(UnixUrgent, ItCanBeTakenOutOfTheMiddle) {
  Urge("hello");
  Send("wd");
  EXPECT_EQ(7, Waiting());
  EXPECT_EQ("o", Get(1, MSG_OOB));
  EXPECT_EQ(none_, Get(1, MSG_OOB));
  EXPECT_EQ(6, Waiting());
  EXPECT_EQ(POLLIN, Events());
  EXPECT_EQ("hell", Get(10));
  EXPECT_EQ(1, Mark());
  EXPECT_EQ("wd", Get(10));
  EXPECT_EQ(again_, Get(10));
}

TEST_F(UnixUrgent, WhoReadsOnLosesIt) {
  Urge("hello");
  Send("wd");
  EXPECT_EQ("hell", Get(10));
  EXPECT_EQ("wd", Get(10));
  EXPECT_EQ(none_, Get(1, MSG_OOB));
  EXPECT_EQ(0, Events());
}

TEST_F(UnixUrgent, PeekingTakesNothing) {
  Urge("hello");
  Send("wd");
  EXPECT_EQ("hell", Get(10, MSG_PEEK));
  EXPECT_EQ("o", Get(10, MSG_PEEK | MSG_OOB));
  EXPECT_EQ("he", Get(2));
  EXPECT_EQ("ll", Get(10, MSG_PEEK));
  EXPECT_EQ("ll", Get(10));
  EXPECT_EQ("wd", Get(10, MSG_PEEK));
  EXPECT_EQ("o", Get(10, MSG_PEEK | MSG_OOB));
  EXPECT_EQ("wd", Get(10));
  Renew();
  Urge("b");
  EXPECT_EQ(again_, Get(10, MSG_PEEK));
  EXPECT_EQ("b", Get(1, MSG_OOB));
  EXPECT_EQ(again_, Get(10, MSG_PEEK));
  EXPECT_EQ(1, Mark());
  Send("x");
  EXPECT_EQ("x", Get(10, MSG_PEEK));
  EXPECT_EQ("x", Get(10));
}

TEST_F(UnixUrgent, ASecondOneMakesTheFirstOrdinary) {
  Urge("ab");
  Urge("cd");
  EXPECT_EQ("d", Get(10, MSG_OOB));
  EXPECT_EQ("abc", Get(10));
  EXPECT_EQ(again_, Get(10));
  Renew();
  Urge("ab");
  EXPECT_EQ("b", Get(1, MSG_OOB));
  Urge("d");
  EXPECT_EQ("d", Get(1, MSG_OOB));
  Send("ef");
  EXPECT_EQ(3, Waiting());
  EXPECT_EQ("a", Get(1));
  EXPECT_EQ(1, Mark());
  EXPECT_EQ("ef", Get(9));
  Renew();
  Urge("ab");
  EXPECT_EQ("b", Get(1, MSG_OOB));
  Urge("cd");
  EXPECT_EQ("ac", Get(10));
  EXPECT_EQ(1, Mark());
}

TEST_F(UnixUrgent, InLineItIsAnOrdinaryByteBehindAMark) {
  Renew(true);
  Urge("hello");
  Send("wd");
  EXPECT_EQ(none_, Get(1, MSG_OOB));
  EXPECT_EQ("hell", Get(10, MSG_PEEK));
  EXPECT_EQ("hell", Get(10));
  EXPECT_EQ(1, Mark());
  EXPECT_EQ(POLLIN | POLLPRI, Events());
  EXPECT_EQ("owd", Get(10, MSG_PEEK));
  EXPECT_EQ("owd", Get(10));
  EXPECT_EQ(0, Events());
  Urge("ab");
  Urge("cd");
  EXPECT_EQ("abc", Get(10));
  EXPECT_EQ("d", Get(10));
}

TEST_F(UnixUrgent, Errors) {
  EXPECT_ERRNO(send(a_, "", 0, MSG_OOB), EOPNOTSUPP);
  EXPECT_EQ(none_, Get(1, MSG_OOB));
  // It is gone even if there is no room for it.
  Urge("x");
  EXPECT_EQ(1, recv(b_, nullptr, 0, MSG_OOB));
  EXPECT_EQ(none_, Get(1, MSG_OOB));
  EXPECT_EQ(again_, Get(1));
  // In a message's flags.
  Urge("y");
  char c = 0;
  iovec v{&c, 1};
  msghdr m{};
  m.msg_iov = &v;
  m.msg_iovlen = 1;
  EXPECT_EQ(1, recvmsg(b_, &m, MSG_OOB));
  EXPECT_EQ(MSG_OOB, m.msg_flags & MSG_OOB);
  EXPECT_EQ('y', c);
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
  EXPECT_ERRNO(send(s[0], "x", 1, MSG_OOB), EOPNOTSUPP);
  EXPECT_ERRNO(recv(s[1], &c, 1, MSG_OOB | MSG_DONTWAIT), EOPNOTSUPP);
  close(s[0]);
  close(s[1]);
}

TEST_F(UnixUrgent, AnEndWithWhatWasTakenIsNoReset) {
  char c;
  Urge("b");
  EXPECT_EQ("b", Get(1, MSG_OOB));
  close(b_);
  b_ = -1;
  EXPECT_EQ(0, recv(a_, &c, 1, 0));
  Renew();
  Urge("b");
  close(b_);
  b_ = -1;
  EXPECT_ERRNO(recv(a_, &c, 1, 0), ECONNRESET);
}

TEST_F(UnixUrgent, TheOwnerGetsASignal) {
  sigset_t set, before;
  sigemptyset(&set);
  sigaddset(&set, SIGURG);
  sigprocmask(SIG_BLOCK, &set, &before);
  const timespec now{};
  Urge("x");
  EXPECT_ERRNO(sigtimedwait(&set, nullptr, &now), EAGAIN);
  EXPECT_OK(fcntl(b_, F_SETOWN, getpid()));
  Send("x");
  EXPECT_ERRNO(sigtimedwait(&set, nullptr, &now), EAGAIN);
  Urge("y");
  EXPECT_EQ(SIGURG, sigtimedwait(&set, nullptr, &now));
  sigprocmask(SIG_SETMASK, &before, nullptr);
}

TEST_F(UnixUrgent, AnEpollInstanceTells) {
  const int e = epoll_create1(0);
  epoll_event event{.events = EPOLLPRI, .data = {}};
  ASSERT_OK(epoll_ctl(e, EPOLL_CTL_ADD, b_, &event));
  Send("x");
  EXPECT_EQ(0, epoll_wait(e, &event, 1, 0));
  std::thread sender([&] {
    usleep(20000);
    Urge("z");
  });
  ASSERT_EQ(1, epoll_wait(e, &event, 1, 5000));
  EXPECT_EQ(EPOLLPRI, event.events);
  sender.join();
  EXPECT_EQ("z", Get(1, MSG_OOB));
  EXPECT_EQ(0, epoll_wait(e, &event, 1, 0));
  close(e);
}

// Many small messages, which may be moved by others than the kernel; and urgent ones between them.
TEST_F(UnixUrgent, ABusyStreamCanBeUrgent) {
  char buffer[8];
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 200; ++i) {
      ASSERT_EQ(4, write(a_, "abcd", 4));
      ASSERT_EQ(4, read(b_, buffer, sizeof(buffer)));
    }
    Send("12");
    Urge("3!");
    Send("45");
    EXPECT_EQ("!", Get(1, MSG_OOB));
    EXPECT_EQ("123", Get(8));
    EXPECT_EQ("45", Get(8));
  }
  // A blocked reader is woken by an urgent byte, which is not for it.
  std::thread sender([&] {
    usleep(20000);
    Urge("u");
    usleep(20000);
    Send("v");
  });
  EXPECT_EQ(1, read(b_, buffer, sizeof(buffer)));
  EXPECT_EQ('v', buffer[0]);
  sender.join();
}

}  // namespace
