// futex_wake, futex_wait, futex_requeue: futex2.
#include <linux/futex.h>
#include <poll.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

namespace {

constexpr int kWake = 454, kWait = 455, kRequeue = 456;
constexpr unsigned kSize32 = 2, kPrivate = 128;  // FUTEX2_SIZE_U32, FUTEX2_PRIVATE

struct WaitV {
  uint64_t value, word;
  uint32_t flags, reserved;
};

long Wake(void* word, unsigned long mask, int count, unsigned flags) {
  return syscall(kWake, word, mask, count, flags);
}
long Wait(void* word, unsigned long value, unsigned long mask, unsigned flags,
          const timespec* timeout = nullptr, int clock = CLOCK_MONOTONIC) {
  return syscall(kWait, word, value, mask, flags, timeout, clock);
}
long Requeue(const WaitV* words, int wake, int requeue, unsigned flags = 0) {
  return syscall(kRequeue, words, flags, wake, requeue);
}
timespec In(clockid_t clock, int64_t ms) {
  int64_t at = NowNs(clock) + ms * 1000000;
  return {at / 1000000000, at % 1000000000};
}

#define REQUIRE_FUTEX2() \
  if (Wake(BadAddress(), 1, 1, 0) != 0 && errno == ENOSYS) GTEST_SKIP() << "not in this kernel"

}  // namespace

TEST(Futex2, Errors) {
  REQUIRE_FUTEX2();
  uint32_t word = 5;
  for (unsigned flags : {0u, 1u, 3u, 4u, kSize32 | 0x1000}) {
    EXPECT_ERRNO(Wake(&word, ~0u, 1, flags), EINVAL);
    EXPECT_ERRNO(Wait(&word, 5, ~0u, flags), EINVAL);
  }
  for (unsigned flags : {kSize32, kSize32 | kPrivate}) {
    EXPECT_ERRNO(Wake(&word, 0, 1, flags), EINVAL);
    EXPECT_ERRNO(Wake(&word, 1ul << 32, 1, flags), EINVAL);
    EXPECT_ERRNO(Wait(&word, 5, 0, flags), EINVAL);
    EXPECT_ERRNO(Wait(&word, 1ul << 32, 1, flags), EINVAL);
    EXPECT_ERRNO(Wait(&word, 5, 1ul << 32, flags), EINVAL);
    EXPECT_ERRNO(Wait(&word, 4, ~0u, flags), EAGAIN);
    EXPECT_ERRNO(Wait(reinterpret_cast<char*>(&word) + 1, 5, ~0u, flags), EINVAL);
    EXPECT_ERRNO(Wait(BadAddress(), 5, ~0u, flags), EFAULT);
    EXPECT_EQ(0, Wake(&word, ~0u, 1, flags));
    timespec t = In(CLOCK_MONOTONIC, 10000);
    EXPECT_ERRNO(Wait(&word, 5, ~0u, flags, &t, CLOCK_BOOTTIME), EINVAL);
    EXPECT_ERRNO(Wait(&word, 5, ~0u, flags, reinterpret_cast<timespec*>(BadAddress())), EFAULT);
    t.tv_nsec = 1000000000;
    EXPECT_ERRNO(Wait(&word, 5, ~0u, flags, &t), EINVAL);
    WaitV w[2] = {{5, reinterpret_cast<uint64_t>(&word), flags, 0},
                  {0, reinterpret_cast<uint64_t>(&word), flags, 0}};
    EXPECT_ERRNO(Requeue(w, 1, 1, 1), EINVAL);
    EXPECT_ERRNO(Requeue(nullptr, 1, 1), EINVAL);
    EXPECT_ERRNO(Requeue(reinterpret_cast<WaitV*>(BadAddress()), 1, 1), EFAULT);
    EXPECT_ERRNO(Requeue(w, -1, 1), EINVAL);
    EXPECT_EQ(0, Requeue(w, 1, 1));
    w[0].value = 4;
    EXPECT_ERRNO(Requeue(w, 1, 1), EAGAIN);
    w[1].reserved = 1;
    EXPECT_ERRNO(Requeue(w, 1, 1), EINVAL);
    w[1].reserved = 0;
    w[1].flags = 0;
    EXPECT_ERRNO(Requeue(w, 1, 1), EINVAL);
  }
}

TEST(Futex2, TimesOut) {
  REQUIRE_FUTEX2();
  uint32_t word = 0;
  for (clockid_t clock : {CLOCK_MONOTONIC, CLOCK_REALTIME}) {
    int64_t begin = NowNs();
    timespec t = In(clock, 30);
    EXPECT_ERRNO(Wait(&word, 0, ~0u, kSize32 | kPrivate, &t, clock), ETIMEDOUT);
    EXPECT_GE(NowNs() - begin, 25 * 1000000);
    EXPECT_ERRNO(Wait(&word, 0, ~0u, kSize32, &t, clock), ETIMEDOUT);
  }
}

TEST(Futex2, WakesByMask) {
  REQUIRE_FUTEX2();
  for (unsigned flags : {kSize32, kSize32 | kPrivate}) {
    uint32_t word = 0;
    std::atomic<int> woken{0};
    auto waiter = [&](unsigned long mask) {
      return std::thread([&, mask] {
        EXPECT_EQ(0, Wait(&word, 0, mask, flags));
        woken++;
      });
    };
    std::thread one = waiter(1), two = waiter(2);
    EXPECT_EQ(0, Wake(&word, 4, 10, flags));
    EXPECT_EQ(0, Wake(&word, 3, 0, flags));
    while (Wake(&word, 1, 10, flags) == 0) SleepMs(1);
    one.join();
    EXPECT_EQ(1, woken);
    while (Wake(&word, 2, 10, flags) == 0) SleepMs(1);
    two.join();
  }
}

// futex(2) and futex2 are about the same words.
TEST(Futex2, WakesAndIsWokenByFutex) {
  REQUIRE_FUTEX2();
  uint32_t word = 0;
  std::thread one([&] { EXPECT_EQ(0, Wait(&word, 0, ~0u, kSize32 | kPrivate)); });
  while (syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr) == 0) SleepMs(1);
  one.join();
  std::thread two([&] { EXPECT_EQ(0, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, nullptr)); });
  while (Wake(&word, ~0u, 1, kSize32 | kPrivate) == 0) SleepMs(1);
  two.join();
}

TEST(Futex2, Requeues) {
  REQUIRE_FUTEX2();
  for (unsigned flags : {kSize32 | kPrivate, kSize32}) {
    uint32_t from = 0;
    std::atomic<uint32_t> to{0};
    std::atomic<bool> done{false};
    // Whoever is woken waits for `to` to change, as who was moved does.
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) {
      threads.emplace_back([&] {
        EXPECT_EQ(0, Wait(&from, 0, ~0u, flags));
        while (to == 0) Wait(&to, 0, ~0u, flags);
      });
    }
    WaitV w[2] = {{0, reinterpret_cast<uint64_t>(&from), flags, 0},
                  {0, reinterpret_cast<uint64_t>(&to), flags, 0}};
    int moved = 0;
    while (moved < 3) {
      long n = Requeue(w, 1, 10);
      ASSERT_GE(n, 0);
      moved += static_cast<int>(n);
      if (n == 0) SleepMs(1);
    }
    EXPECT_EQ(3, moved);
    to = 1;
    std::thread waker([&] {
      while (!done) {
        Wake(&to, ~0u, 10, flags);
        SleepMs(1);
      }
    });
    for (std::thread& t : threads) t.join();
    done = true;
    waker.join();
  }
}

TEST(Futex2, SharedBetweenProcesses) {
  REQUIRE_FUTEX2();
  auto* word = static_cast<uint32_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t pid = fork();
  if (pid == 0) _exit(Wait(word, 0, ~0u, kSize32) == 0 ? 0 : 1);
  while (Wake(word, ~0u, 1, kSize32) == 0) SleepMs(1);
  int status;
  EXPECT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  munmap(word, 4096);
}

TEST(Futex2, SignalsInterruptOrRestart) {
  REQUIRE_FUTEX2();
  static std::atomic<int> handled;
  for (bool restart : {false, true}) {
    handled = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { handled++; };
    action.sa_flags = restart ? SA_RESTART : 0;
    ASSERT_OK(sigaction(SIGUSR1, &action, nullptr));
    uint32_t word = 0;
    std::atomic<bool> done{false};
    std::thread waiter([&] {
      long r = Wait(&word, 0, ~0u, kSize32 | kPrivate);
      int error = errno;
      done = true;
      if (restart) {
        EXPECT_EQ(0, r);
      } else {
        EXPECT_EQ(-1, r);
        EXPECT_EQ(EINTR, error);
      }
    });
    pthread_t thread = waiter.native_handle();
    while (restart ? handled < 3 : !done) {
      pthread_kill(thread, SIGUSR1);
      SleepMs(1);
    }
    while (!done) {
      Wake(&word, ~0u, 1, kSize32 | kPrivate);
      SleepMs(1);
    }
    waiter.join();
  }
  signal(SIGUSR1, SIG_DFL);
}
