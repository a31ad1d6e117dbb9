// FUTEX_WAKE of private words: whoever waits is found, however it came to wait there, and nobody
// else.
#include <linux/futex.h>
#include <signal.h>

#include <atomic>
#include <thread>

#include "guest_util.h"

namespace {

long Futex(void* word, int op, uint32_t value, const timespec* timeout = nullptr,
           void* other = nullptr, uint32_t value3 = 0) {
  return syscall(SYS_futex, word, op, value, timeout, other, value3);
}
long Wait(std::atomic<uint32_t>* word, uint32_t value) {
  return Futex(word, FUTEX_WAIT_PRIVATE, value);
}
long Wake(std::atomic<uint32_t>* word, int count = 1) {
  return Futex(word, FUTEX_WAKE_PRIVATE, static_cast<uint32_t>(count));
}

// Wakes until so many have been woken in all: who sleeps may not have come to the queue yet. Never
// more than `count` at once.
void WakeThem(std::atomic<uint32_t>* word, int all, int count, int op = FUTEX_WAKE_PRIVATE) {
  for (int woken = 0; woken < all;) {
    const long now = Futex(word, op, static_cast<uint32_t>(count));
    ASSERT_LE(0, now);
    ASSERT_GE(count, now);
    woken += static_cast<int>(now);
    if (now == 0) sched_yield();
    ASSERT_GE(all, woken);
  }
}

// A thread that waits for a word that holds 0, with `op`.
class Waiter {
 public:
  explicit Waiter(std::atomic<uint32_t>* word, int op = FUTEX_WAIT_PRIVATE)
      : thread_([this, word, op] {
          tid_ = static_cast<pid_t>(syscall(SYS_gettid));
          result_ = Futex(word, op, 0, nullptr, nullptr, FUTEX_BITSET_MATCH_ANY);
        }) {
    while (tid_ == 0) sched_yield();
    WaitUntilAsleep(tid_);
  }
  ~Waiter() { thread_.join(); }
  pid_t tid() const { return tid_; }
  long Join() {
    thread_.join();
    thread_ = std::thread([] {});
    return result_;
  }

 private:
  std::atomic<pid_t> tid_{0};
  long result_ = -1;
  std::thread thread_;
};

TEST(FutexWake, Errors) {
  alignas(8) uint32_t words[2] = {0, 0};
  char* middle = reinterpret_cast<char*>(words) + 1;
  EXPECT_ERRNO(Futex(middle, FUTEX_WAKE_PRIVATE, 1), EINVAL);
  EXPECT_ERRNO(Futex(reinterpret_cast<void*>(0xffff800000000000), FUTEX_WAKE_PRIVATE, 1), EFAULT);
  EXPECT_ERRNO(Futex(words, FUTEX_WAKE_PRIVATE | FUTEX_CLOCK_REALTIME, 1), ENOSYS);
  EXPECT_ERRNO(Futex(words, FUTEX_WAKE_BITSET_PRIVATE, 1), EINVAL);
  // A private word is known by its address alone.
  EXPECT_EQ(0, Futex(BadAddress(), FUTEX_WAKE_PRIVATE, 1));
  EXPECT_ERRNO(Futex(BadAddress(), FUTEX_WAKE, 1), EFAULT);
  EXPECT_EQ(0, Futex(words, FUTEX_WAKE_PRIVATE, 1));
  EXPECT_EQ(0, Futex(words, FUTEX_WAKE_PRIVATE, static_cast<uint32_t>(-1)));
}

TEST(FutexWake, FindsOneOrAll) {
  std::atomic<uint32_t> word{0}, other{0};
  EXPECT_EQ(0, Wake(&word));
  Waiter a(&word), b(&word), c(&word, FUTEX_WAIT_BITSET_PRIVATE);
  EXPECT_EQ(0, Wake(&other));
  WakeThem(&word, 1, 1);
  WakeThem(&word, 2, INT32_MAX);
  EXPECT_EQ(0, Wake(&word));
  EXPECT_EQ(0, a.Join());
  EXPECT_EQ(0, b.Join());
  EXPECT_EQ(0, c.Join());
}

TEST(FutexWake, PrivateAndSharedAreApart) {
  std::atomic<uint32_t> word{0};
  Waiter shared(&word, FUTEX_WAIT);
  EXPECT_EQ(0, Wake(&word));
  {
    Waiter own(&word);
    WakeThem(&word, 1, INT32_MAX, FUTEX_WAKE);
    WakeThem(&word, 1, INT32_MAX);
  }
}

TEST(FutexWake, FindsThoseThatWereMoved) {
  std::atomic<uint32_t> word{0}, target{0};
  for (int i = 0; i < 5; i++) {
    Waiter waiter(&word);
    const timespec* one = reinterpret_cast<const timespec*>(1);  // how many are moved
    long moved = 0;
    while ((moved = Futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 0, one, &target, 0)) == 0) {
      sched_yield();
    }
    ASSERT_EQ(1, moved);
    EXPECT_EQ(0, Wake(&word));
    EXPECT_EQ(1, Wake(&target));
    EXPECT_EQ(0, waiter.Join());
  }
}

void Nothing(int) {}

TEST(FutexWake, FindsWhoWasInterrupted) {
  struct sigaction restarted = {}, old;
  restarted.sa_handler = Nothing;
  restarted.sa_flags = SA_RESTART;
  ASSERT_OK(sigaction(SIGUSR1, &restarted, &old));
  std::atomic<uint32_t> word{0};
  Waiter waiter(&word);
  for (int i = 0; i < 20; i++) {
    ASSERT_OK(syscall(SYS_tgkill, getpid(), waiter.tid(), SIGUSR1));
    WaitUntilAsleep(waiter.tid());
  }
  WakeThem(&word, 1, 1);
  EXPECT_EQ(0, waiter.Join());
  ASSERT_OK(sigaction(SIGUSR1, &old, nullptr));
}

TEST(FutexWake, ProcessesHaveTheirOwn) {
  std::atomic<uint32_t> word{0};
  Waiter waiter(&word);
  EXPECT_EQ(0, ExitStatus([&] {
              if (Wake(&word) != 0) return 1;
              Waiter mine(&word);
              WakeThem(&word, 1, INT32_MAX);
              return mine.Join() == 0 ? 0 : 3;
            }));
  WakeThem(&word, 1, INT32_MAX);
}

// Two threads that take turns, each waiting or just not waiting any more when the other wakes it.
TEST(FutexWake, NoneIsLost) {
  constexpr uint32_t kTurns = 40'000;
  std::atomic<uint32_t> turn{0};
  auto play = [&turn](uint32_t first) {
    for (uint32_t i = first; i < kTurns; i += 2) {
      for (uint32_t k = 0; k < i % 400 && turn != i; k++) __asm__ volatile("pause");
      for (uint32_t now = turn; now != i; now = turn) Wait(&turn, now);
      turn = i + 1;
      Wake(&turn);
    }
  };
  std::thread other([&] { play(1); });
  play(0);
  other.join();
  EXPECT_EQ(kTurns, turn.load());
}

}  // namespace
