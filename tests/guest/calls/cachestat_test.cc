// cachestat: how much of a file is in memory.
#include "guest_util.h"

namespace {

constexpr int kCachestat = 451;

struct Range {
  uint64_t offset, length;
};
struct Stat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
long Cachestat(int fd, const Range& range, Stat* out, unsigned flags = 0) {
  return syscall(kCachestat, fd, &range, out, flags);
}

TEST(Cachestat, OfWhatWasWritten) {
  TempDir dir;
  const int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_OK(fd);
  Stat s{};
  if (Cachestat(fd, {0, 0}, &s) != 0 && errno == ENOSYS) {
    GTEST_SKIP() << "the host has no cachestat";
  }
  EXPECT_EQ(0u, s.cached);
  const std::string text(10 * 4096 - 5, 'x');
  ASSERT_EQ(static_cast<ssize_t>(text.size()), write(fd, text.data(), text.size()));
  ASSERT_OK(Cachestat(fd, {0, 0}, &s));
  EXPECT_EQ(10u, s.cached);
  EXPECT_LE(s.dirty, 10u);
  EXPECT_EQ(0u, s.evicted);
  ASSERT_OK(Cachestat(fd, {4095, 2}, &s));  // on both sides of a border
  EXPECT_EQ(2u, s.cached);
  ASSERT_OK(Cachestat(fd, {9 * 4096, 100000}, &s));
  EXPECT_EQ(1u, s.cached);
  ASSERT_OK(Cachestat(fd, {10 * 4096, 0}, &s));
  EXPECT_EQ(0u, s.cached);
}

TEST(Cachestat, Errors) {
  TempDir dir;
  const int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0644);
  Stat s{};
  const Range all{0, 0};
  if (Cachestat(fd, all, &s) != 0 && errno == ENOSYS) {
    GTEST_SKIP() << "the host has no cachestat";
  }
  EXPECT_ERRNO(Cachestat(-1, all, &s), EBADF);
  EXPECT_ERRNO(syscall(kCachestat, fd, BadAddress(), &s, 1), EFAULT);
  EXPECT_ERRNO(Cachestat(fd, all, &s, 1), EINVAL);
  EXPECT_ERRNO(Cachestat(fd, all, reinterpret_cast<Stat*>(BadAddress())), EFAULT);
  EXPECT_ERRNO(Cachestat(open(dir.path().c_str(), O_PATH), all, &s), EBADF);
  int p[2];
  ASSERT_OK(pipe(p));
  s.cached = 5;
  ASSERT_OK(Cachestat(p[0], all, &s));
  EXPECT_EQ(0u, s.cached);
}

}  // namespace
