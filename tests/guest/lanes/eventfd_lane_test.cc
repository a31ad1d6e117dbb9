// Event counters that are used much: whatever way a kernel finds to be quick about them.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

constexpr uint64_t kMost = ~uint64_t{0} - 1;

void Add(int fd, uint64_t n) { ASSERT_EQ(8, write(fd, &n, 8)); }
uint64_t Take(int fd) {
  uint64_t n = 0;
  EXPECT_EQ(8, read(fd, &n, 8));
  return n;
}
int Poll(int fd, short events) {
  pollfd p{fd, events, 0};
  EXPECT_OK(poll(&p, 1, 0));
  return p.revents;
}

// One that has been in use.
int Busy(int flags) {
  const int fd = eventfd(0, flags);
  EXPECT_OK(fd);
  for (int i = 0; i < 100; ++i) {
    Add(fd, 1);
    EXPECT_EQ(1u, Take(fd));
  }
  return fd;
}

TEST(EventfdLane, CountsAndEmpties) {
  const int fd = Busy(EFD_NONBLOCK);
  uint64_t n;
  EXPECT_EQ(POLLOUT, Poll(fd, POLLIN | POLLOUT));
  EXPECT_ERRNO(read(fd, &n, 8), EAGAIN);
  Add(fd, 2);
  Add(fd, 40);
  Add(fd, 0);
  EXPECT_EQ(POLLIN | POLLOUT, Poll(fd, POLLIN | POLLOUT));
  EXPECT_EQ(42u, Take(fd));
  Add(fd, kMost);
  EXPECT_EQ(POLLIN, Poll(fd, POLLIN | POLLOUT));
  n = 1;
  EXPECT_ERRNO(write(fd, &n, 8), EAGAIN);
  EXPECT_EQ(kMost, Take(fd));
  n = ~uint64_t{0};
  EXPECT_ERRNO(write(fd, &n, 8), EINVAL);
  EXPECT_ERRNO(write(fd, &n, 7), EINVAL);
  EXPECT_ERRNO(read(fd, &n, 7), EINVAL);
  EXPECT_ERRNO(write(fd, BadAddress(), 8), EFAULT);
  close(fd);
}

TEST(EventfdLane, ABadAddressLosesTheCount) {
  const int fd = Busy(EFD_NONBLOCK);
  Add(fd, 5);
  EXPECT_ERRNO(read(fd, BadAddress(), 8), EFAULT);
  uint64_t n;
  EXPECT_ERRNO(read(fd, &n, 8), EAGAIN);
  close(fd);
}

TEST(EventfdLane, LongerBuffersAndVectors) {
  const int fd = Busy(EFD_NONBLOCK);
  uint64_t value = 7;
  iovec part{&value, 8};
  EXPECT_EQ(8, writev(fd, &part, 1));
  char bytes[16];
  EXPECT_EQ(8, read(fd, bytes, 16));
  memcpy(&value, bytes, 8);
  EXPECT_EQ(7u, value);
  close(fd);
}

TEST(EventfdLane, Semaphore) {
  const int fd = Busy(EFD_SEMAPHORE | EFD_NONBLOCK);
  Add(fd, 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(1u, Take(fd));
  uint64_t n;
  EXPECT_ERRNO(read(fd, &n, 8), EAGAIN);
  EXPECT_NE(std::string::npos,
            ReadFile("/proc/self/fdinfo/" + std::to_string(fd)).find("eventfd-count:"));
  close(fd);
}

TEST(EventfdLane, WhoWaitsIsWoken) {
  const int there = Busy(0), back = Busy(0);
  const pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 2000; ++i) Add(back, Take(there));
    _exit(0);
  }
  for (uint64_t i = 1; i <= 2000; ++i) {
    Add(there, i);
    ASSERT_EQ(i, Take(back));
  }
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  close(there);
  close(back);
}

TEST(EventfdLane, EachOfManyWaitersIsWoken) {
  const int fd = Busy(EFD_SEMAPHORE);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::thread> takers;
    for (int t = 0; t < 4; ++t) takers.emplace_back([&] { EXPECT_EQ(1u, Take(fd)); });
    if (round % 2 == 0) SleepMs(1);
    for (int t = 0; t < 4; ++t) Add(fd, 1);
    for (auto& t : takers) t.join();
  }
  close(fd);
}

TEST(EventfdLane, WhoWaitsForRoomIsWoken) {
  const int fd = Busy(0);
  for (int round = 0; round < 50; ++round) {
    Add(fd, kMost);
    std::thread adder([&] { Add(fd, 7); });
    if (round % 2 == 0) SleepMs(1);
    EXPECT_EQ(kMost, Take(fd));
    adder.join();
    EXPECT_EQ(7u, Take(fd));
  }
  close(fd);
}

TEST(EventfdLane, NothingIsLostBetweenMany) {
  const int fd = Busy(EFD_NONBLOCK);
  std::atomic<int> adding{3};
  uint64_t sum = 0;
  std::vector<std::thread> adders;
  for (int t = 0; t < 3; ++t) {
    adders.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) Add(fd, 1);
      --adding;
    });
  }
  uint64_t n;
  while (adding.load() > 0) {
    if (read(fd, &n, 8) == 8) sum += n;
  }
  for (auto& t : adders) t.join();
  if (read(fd, &n, 8) == 8) sum += n;
  EXPECT_EQ(60'000u, sum);
  close(fd);
}

TEST(EventfdLane, EpollTellsLevelsAndEdges) {
  for (uint32_t how : {0u, uint32_t{EPOLLET}}) {
    const int fd = Busy(EFD_NONBLOCK), epoll = epoll_create1(0);
    epoll_event e{EPOLLIN | how, {}};
    ASSERT_OK(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e));
    auto wait = [&] {
      epoll_event event{};
      return epoll_wait(epoll, &event, 1, 0) == 1 ? event.events : 0u;
    };
    for (int i = 0; i < 200; ++i) {
      ASSERT_EQ(0u, wait()) << i;
      Add(fd, 1);
      ASSERT_EQ(uint32_t{EPOLLIN}, wait()) << i;
      ASSERT_EQ(how != 0 ? 0u : uint32_t{EPOLLIN}, wait()) << i;
      Add(fd, 1);
      ASSERT_EQ(uint32_t{EPOLLIN}, wait()) << i;
      ASSERT_EQ(2u, Take(fd));
    }
    close(epoll);
    close(fd);
  }
}

}  // namespace
