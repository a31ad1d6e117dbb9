// getrandom(2) of few bytes again and again: nobody gets what somebody has got.
#include <sys/random.h>

#include <array>
#include <set>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

using Bytes = std::array<unsigned char, 16>;

Bytes Draw() {
  Bytes b{};
  EXPECT_EQ(static_cast<ssize_t>(b.size()), getrandom(b.data(), b.size(), 0));
  return b;
}
std::vector<Bytes> DrawMany(int count) {
  std::vector<Bytes> all;
  for (int i = 0; i < count; i++) all.push_back(Draw());
  return all;
}

TEST(GetRandom, NoValueComesAgain) {
  constexpr int kDraws = 5000;
  std::set<Bytes> seen;
  int64_t ones = 0;
  for (const Bytes& b : DrawMany(kDraws)) {
    EXPECT_TRUE(seen.insert(b).second);
    for (unsigned char c : b) ones += __builtin_popcount(c);
  }
  // Half of 640,000 bits, with a standard deviation of 400.
  EXPECT_NEAR(kDraws * 64, ones, 4000);
}

TEST(GetRandom, AllSizes) {
  unsigned char buffer[700];
  for (size_t n = 0; n <= 600; n++) {
    memset(buffer, 0, sizeof buffer);
    ASSERT_EQ(static_cast<ssize_t>(n), getrandom(buffer, n, n % 2 ? GRND_NONBLOCK : 0));
    for (size_t i = n; i < sizeof buffer; i++) ASSERT_EQ(0, buffer[i]) << n;
    if (n >= 64) {
      size_t zeros = 0;
      for (size_t i = 0; i < n; i++) zeros += buffer[i] == 0;
      EXPECT_LT(zeros, n / 4);
    }
  }
}

TEST(GetRandom, Errors) {
  Bytes b{};
  for (int i = 0; i < 40; i++) {
    EXPECT_ERRNO(getrandom(b.data(), b.size(), 0x100), EINVAL);
    EXPECT_ERRNO(getrandom(b.data(), b.size(), GRND_RANDOM | GRND_INSECURE), EINVAL);
    EXPECT_ERRNO(getrandom(BadAddress(), 16, 0), EFAULT);
    EXPECT_ERRNO(getrandom(reinterpret_cast<void*>(0xffff800000000000), 16, 0), EFAULT);
    EXPECT_EQ(0, getrandom(BadAddress(), 0, 0));
    EXPECT_EQ(16, getrandom(b.data(), b.size(), GRND_RANDOM));
    EXPECT_EQ(16, getrandom(b.data(), b.size(), GRND_INSECURE));
  }
}

TEST(GetRandom, ReadOnlyMemory) {
  DrawMany(20);
  void* page = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, page);
  EXPECT_ERRNO(getrandom(page, 16, 0), EFAULT);
  ASSERT_OK(munmap(page, 4096));
}

TEST(GetRandom, AChildDrawsItsOwn) {
  DrawMany(20);  // so that some may have been drawn ahead
  int p[2];
  ASSERT_OK(pipe(p));
  constexpr int kDraws = 40;
  pid_t child = fork();
  if (child == 0) {
    const std::vector<Bytes> mine = DrawMany(kDraws);
    const size_t size = mine.size() * sizeof(Bytes);
    _exit(write(p[1], mine.data(), size) == static_cast<ssize_t>(size) ? 0 : 1);
  }
  const std::vector<Bytes> mine = DrawMany(kDraws);
  std::vector<Bytes> its(kDraws);
  ASSERT_EQ(static_cast<ssize_t>(kDraws * sizeof(Bytes)),
            read(p[0], its.data(), kDraws * sizeof(Bytes)));
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  std::set<Bytes> seen(mine.begin(), mine.end());
  for (const Bytes& b : its) EXPECT_TRUE(seen.insert(b).second);
}

TEST(GetRandom, ThreadsDrawTheirOwn) {
  std::vector<Bytes> drawn[4];
  for (int round = 0; round < 3; round++) {  // threads that come later too
    std::vector<std::thread> threads;
    for (std::vector<Bytes>& to : drawn) {
      threads.emplace_back([&to] {
        for (const Bytes& b : DrawMany(100)) to.push_back(b);
      });
    }
    for (std::thread& t : threads) t.join();
  }
  std::set<Bytes> seen;
  for (const std::vector<Bytes>& of : drawn) {
    for (const Bytes& b : of) EXPECT_TRUE(seen.insert(b).second);
  }
}

}  // namespace
