// Reads of streams and counters into memory that takes a part, or nothing; writes of counters in
// parts.
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <string>

#include "guest_util.h"

namespace {

constexpr size_t kPage = 4096;

class BadBuffer : public ::testing::Test {
 protected:
  // Two pages, of which the second takes nothing.
  void SetUp() override {
    page_ = static_cast<char*>(
        mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(MAP_FAILED, page_);
    ASSERT_OK(mprotect(page_ + kPage, kPage, PROT_READ));
  }
  void TearDown() override { munmap(page_, 2 * kPage); }
  char* bad() const { return page_ + kPage; }
  // Where `n` bytes still fit.
  char* Short(size_t n) const { return bad() - n; }

  char* page_ = nullptr;
};

std::string Text(int fd, size_t n) {
  std::string text(n, '\0');
  const ssize_t r = read(fd, text.data(), n);
  text.resize(r < 0 ? 0 : static_cast<size_t>(r));
  return text;
}

// `rounds`: so often that the stream may have changed hands.
void Exchange(int out, int in, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    ASSERT_EQ(3, write(out, "abc", 3));
    ASSERT_EQ("abc", Text(in, 8));
  }
}

TEST_F(BadBuffer, APipeKeepsWhatCannotBeStored) {
  int p[2];
  ASSERT_OK(pipe(p));
  for (int rounds : {0, 100}) {
    Exchange(p[1], p[0], rounds);
    ASSERT_EQ(10, write(p[1], "0123456789", 10));
    EXPECT_ERRNO(read(p[0], bad(), 10), EFAULT);
    EXPECT_ERRNO(read(p[0], nullptr, 10), EFAULT);
    EXPECT_ERRNO(read(p[0], Short(4), 10), EFAULT);
    iovec v[2] = {{page_, 4}, {bad(), 4}};
    EXPECT_ERRNO(readv(p[0], v, 2), EFAULT);
    EXPECT_EQ("0123456789", Text(p[0], 20));
  }
  close(p[0]);
  close(p[1]);
}

TEST_F(BadBuffer, WholePagesOfAPipeCount) {
  int p[2];
  ASSERT_OK(pipe(p));
  const std::string two = std::string(kPage, 'a') + std::string(kPage, 'b');
  ASSERT_EQ(static_cast<ssize_t>(two.size()), write(p[1], two.data(), two.size()));
  EXPECT_EQ(static_cast<ssize_t>(kPage), read(p[0], page_, 2 * kPage));
  EXPECT_EQ('a', bad()[-1]);
  EXPECT_EQ(std::string(kPage, 'b'), Text(p[0], 2 * kPage));
  close(p[0]);
  close(p[1]);
}

void StreamKeeps(int out, int in, char* bad, char* part) {
  for (int rounds : {0, 100}) {
    Exchange(out, in, rounds);
    ASSERT_EQ(10, send(out, "0123456789", 10, 0));
    EXPECT_ERRNO(recv(in, bad, 10, 0), EFAULT);
    EXPECT_ERRNO(read(in, bad, 10), EFAULT);
    EXPECT_ERRNO(recv(in, part, 10, 0), EFAULT);
    iovec v[2] = {{part, 4}, {bad, 4}};
    msghdr m{};
    m.msg_iov = v;
    m.msg_iovlen = 2;
    EXPECT_ERRNO(recvmsg(in, &m, 0), EFAULT);
    EXPECT_EQ("0123456789", Text(in, 20));
  }
}

TEST_F(BadBuffer, AUnixStreamKeepsWhatCannotBeStored) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  StreamKeeps(s[0], s[1], bad(), Short(4));
  close(s[0]);
  close(s[1]);
}

TEST_F(BadBuffer, ATcpStreamKeepsWhatCannotBeStored) {
  const int l = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_OK(l);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(a);
  ASSERT_OK(bind(l, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
  ASSERT_OK(listen(l, 1));
  ASSERT_OK(getsockname(l, reinterpret_cast<sockaddr*>(&a), &length));
  const int c = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_OK(connect(c, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
  const int s = accept(l, nullptr, nullptr);
  ASSERT_OK(s);
  StreamKeeps(c, s, bad(), Short(4));
  for (int fd : {l, c, s}) close(fd);
}

TEST_F(BadBuffer, AMessageThatCannotBeStoredIsGone) {
  for (int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    int s[2];
    ASSERT_OK(socketpair(AF_UNIX, type, 0, s));
    ASSERT_EQ(10, send(s[0], "0123456789", 10, 0));
    EXPECT_ERRNO(recv(s[1], bad(), 10, MSG_PEEK), EFAULT);
    EXPECT_ERRNO(recv(s[1], Short(4), 10, 0), EFAULT);
    EXPECT_ERRNO(recv(s[1], page_, 10, MSG_DONTWAIT), EAGAIN);
    close(s[0]);
    close(s[1]);
  }
}

TEST_F(BadBuffer, ACounterThatCannotBeStoredIsGone) {
  const int e = eventfd(5, EFD_NONBLOCK);
  ASSERT_OK(e);
  EXPECT_ERRNO(read(e, bad(), 8), EFAULT);
  EXPECT_ERRNO(read(e, page_, 8), EAGAIN);
  close(e);
}

TEST_F(BadBuffer, EachPartOfAVectorIsAWriteOfACounter) {
  const int e = eventfd(0, EFD_NONBLOCK);
  ASSERT_OK(e);
  uint64_t one = 1, two = 2;
  iovec v[2] = {{&one, 8}, {&two, 8}};
  eventfd_t value = 0;
  EXPECT_EQ(16, writev(e, v, 2));
  EXPECT_OK(eventfd_read(e, &value));
  EXPECT_EQ(3u, value);
  v[1].iov_len = 4;
  EXPECT_EQ(8, writev(e, v, 2));
  v[0].iov_len = 4;
  EXPECT_ERRNO(writev(e, v, 2), EINVAL);
  const uint64_t both[2] = {1, 1};
  EXPECT_ERRNO(write(e, both, 16), EINVAL);
  EXPECT_OK(eventfd_read(e, &value));
  EXPECT_EQ(1u, value);
  // A read may be spread.
  EXPECT_OK(eventfd_write(e, 9));
  uint32_t low = 0, high = 7;
  iovec r[2] = {{&low, 4}, {&high, 4}};
  EXPECT_EQ(8, readv(e, r, 2));
  EXPECT_EQ(9u, low);
  EXPECT_EQ(0u, high);
  close(e);
}

}  // namespace
