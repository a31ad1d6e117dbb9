#include "sentry/fiber/fiber.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/sanitizer.h"
#include "sentry/base/time.h"
#include "sentry/fiber/blocking.h"
#include "sentry/fiber/fd_watch.h"
#include "sentry/fiber/futex.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/fiber/timer.h"
#include "sentry/fiber/wait_queue.h"

namespace fiber {
namespace {

using base::kNsPerMs;
using base::kNsPerUs;
using base::MonotonicNs;

class FiberTest : public ::testing::TestWithParam<int> {
 protected:
  FiberTest() : scheduler_({.workers = GetParam()}) {}
  ~FiberTest() override { scheduler_.WaitForAll(); }
  Scheduler scheduler_;
};
INSTANTIATE_TEST_SUITE_P(Workers, FiberTest, ::testing::Values(1, 2, 4));

TEST_P(FiberTest, RunsAndKnowsItself) {
  EXPECT_EQ(Current(), nullptr);
  int datum = 0;
  std::atomic<bool> ran{false};
  base::Ref<Fiber> f = Spawn(
      "me",
      [&] {
        EXPECT_EQ(Current()->name(), "me");
        EXPECT_EQ(Current()->user_data(), &datum);
        ran = true;
      },
      &datum);
  scheduler_.WaitForAll();
  EXPECT_TRUE(ran);
  EXPECT_TRUE(f->done());
  f->Unpark();  // harmless
  f->Interrupt();
}

TEST_P(FiberTest, PingPong) {
  constexpr int kRounds = 20000;
  std::atomic<int> turn{0};
  Fiber* fibers[2] = {};
  std::atomic<int> ready{0};
  for (int me = 0; me < 2; ++me) {
    Spawn("pp", [&, me] {
      fibers[me] = Current();
      ready++;
      while (ready < 2) Yield();
      for (int i = 0; i < kRounds; ++i) {
        while (turn.load() % 2 != me) Park();
        turn++;
        fibers[1 - me]->Unpark();
      }
      ready++;
      while (ready < 4) Yield();  // the other may still unpark this fiber
    });
  }
  scheduler_.WaitForAll();
  EXPECT_EQ(turn, 2 * kRounds);
}

TEST_P(FiberTest, UnparkBeforeParkIsKept) {
  Spawn("a", [] {
    Current()->Unpark();
    Current()->Unpark();
    EXPECT_EQ(Park(), WakeReason::kWoken);
    // One permit at most.
    EXPECT_EQ(Park({.deadline_ns = MonotonicNs() + kNsPerMs}), WakeReason::kTimeout);
    Current()->Unpark();
    EXPECT_EQ(Park({.deadline_ns = 0}), WakeReason::kWoken);
    EXPECT_EQ(Park({.deadline_ns = 0}), WakeReason::kTimeout);
  });
}

TEST_P(FiberTest, InterruptBeforePark) {
  Spawn("a", [] {
    Current()->Interrupt();
    EXPECT_TRUE(Current()->interrupted());
    // Not interruptible: does not care.
    EXPECT_EQ(Park({.deadline_ns = MonotonicNs() + kNsPerMs}), WakeReason::kTimeout);
    EXPECT_EQ(Park({.interruptible = true}), WakeReason::kInterrupted);
    EXPECT_EQ(Park({.interruptible = true}), WakeReason::kInterrupted);  // sticky
    Current()->ClearInterrupt();
    EXPECT_EQ(Park({.interruptible = true, .deadline_ns = MonotonicNs() + kNsPerMs}),
              WakeReason::kTimeout);
  });
}

TEST_P(FiberTest, InterruptWhileParked) {
  base::Ref<Fiber> f = Spawn("a", [] {
    EXPECT_EQ(Park({.interruptible = true}), WakeReason::kInterrupted);
    EXPECT_EQ(SleepUntil(MonotonicNs() + 5 * base::kNsPerSec), WakeReason::kInterrupted);
    EXPECT_EQ(SleepUntil(MonotonicNs() + kNsPerMs, false), WakeReason::kTimeout);
  });
  while (!f->parked()) std::this_thread::yield();
  f->Interrupt();
}

// Unpark, Interrupt and the deadline at about the same time, many times: each park ends, and once.
TEST_P(FiberTest, WakeRaces) {
  constexpr int kRounds = 2000;
  std::atomic<bool> stop{false};
  std::atomic<int> woken{0}, interrupted{0}, timeout{0};
  base::Ref<Fiber> f = Spawn("victim", [&] {
    for (int i = 0; i < kRounds; ++i) {
      switch (Park({.interruptible = true, .deadline_ns = MonotonicNs() + i % 50 * kNsPerUs})) {
        case WakeReason::kWoken:
          woken++;
          break;
        case WakeReason::kInterrupted:
          Current()->ClearInterrupt();
          interrupted++;
          break;
        case WakeReason::kTimeout:
          timeout++;
          break;
      }
    }
    stop = true;
  });
  std::thread a([&] {
    while (!stop) f->Unpark(), usleep(10);
  });
  std::thread b([&] {
    while (!stop) f->Interrupt(), usleep(7);
  });
  a.join();
  b.join();
  EXPECT_EQ(woken + interrupted + timeout, kRounds);
  EXPECT_GT(timeout, 0);
}

TEST_P(FiberTest, TenThousandFibers) {
#ifdef RUNSC_TSAN
  constexpr int kFibers = 200;  // each costs the sanitizer a megabyte
#else
  constexpr int kFibers = 10000;
#endif
  std::atomic<int> arrived{0}, left{0};
  std::vector<base::Ref<Fiber>> fibers;
  fibers.reserve(kFibers);
  std::atomic<bool> go{false};
  for (int i = 0; i < kFibers; ++i) {
    fibers.push_back(Spawn("many", [&] {
      arrived++;
      while (!go) Park();
      left++;
    }));
  }
  while (arrived < kFibers) usleep(100);
  go = true;
  for (auto& f : fibers) f->Unpark();
  scheduler_.WaitForAll();
  EXPECT_EQ(left, kFibers);
}

TEST_P(FiberTest, MutexExcludesAndIsFair) {
  constexpr int kFibers = 8, kRounds = 2000;
  Mutex mu;
  int64_t counter = 0;
  int finished[kFibers] = {};
  int order = 0;
  for (int i = 0; i < kFibers; ++i) {
    Spawn("m", [&, i] {
      for (int r = 0; r < kRounds; ++r) {
        MutexLock lock(&mu);
        const int64_t seen = counter;
        if (r % 64 == 0) Yield();  // held across a switch
        counter = seen + 1;
      }
      MutexLock lock(&mu);
      finished[i] = ++order;
    });
  }
  // Host threads take part too.
  std::thread host([&] {
    for (int r = 0; r < kRounds; ++r) {
      MutexLock lock(&mu);
      ++counter;
    }
  });
  host.join();
  scheduler_.WaitForAll();
  EXPECT_EQ(counter, (kFibers + 1) * kRounds);
  for (int f : finished) EXPECT_GT(f, 0);
}

TEST_P(FiberTest, MutexHandsOverInOrder) {
  Mutex mu;
  std::vector<int> order;
  mu.Lock();
  std::vector<base::Ref<Fiber>> fibers;
  for (int i = 0; i < 5; ++i) {
    fibers.push_back(Spawn("o", [&, i] {
      MutexLock lock(&mu);
      order.push_back(i);
    }));
    while (!fibers.back()->parked()) std::this_thread::yield();
  }
  EXPECT_FALSE(mu.TryLock());
  mu.Unlock();
  scheduler_.WaitForAll();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST_P(FiberTest, SharedMutex) {
  SharedMutex mu;
  int64_t value = 0;
  std::atomic<int> inside{0};
  for (int i = 0; i < 4; ++i) {
    Spawn("w", [&] {
      for (int r = 0; r < 500; ++r) {
        WriterLock lock(&mu);
        EXPECT_EQ(inside, 0);
        ++value;
        if (r % 50 == 0) Yield();
      }
    });
    Spawn("r", [&] {
      for (int r = 0; r < 500; ++r) {
        ReaderLock lock(&mu);
        inside++;
        const int64_t before = value;
        if (r % 50 == 0) Yield();
        EXPECT_EQ(value, before);
        inside--;
      }
    });
  }
  scheduler_.WaitForAll();
  EXPECT_EQ(value, 2000);
}

TEST_P(FiberTest, CondVar) {
  constexpr int kItems = 5000;
  Mutex mu;
  CondVar not_empty, not_full;
  std::deque<int> queue;
  int64_t sum = 0;
  for (int p = 0; p < 2; ++p) {
    Spawn("producer", [&] {
      for (int i = 1; i <= kItems; ++i) {
        MutexLock lock(&mu);
        while (queue.size() >= 4) not_full.Wait(&mu);
        queue.push_back(i);
        not_empty.Signal();
      }
    });
    Spawn("consumer", [&] {
      for (int i = 0; i < kItems; ++i) {
        MutexLock lock(&mu);
        while (queue.empty()) not_empty.Wait(&mu);
        sum += queue.front();
        queue.pop_front();
        not_full.Signal();
      }
    });
  }
  scheduler_.WaitForAll();
  EXPECT_EQ(sum, int64_t{kItems} * (kItems + 1));
  Spawn("timeout", [&] {
    MutexLock lock(&mu);
    EXPECT_EQ(not_empty.Wait(&mu, {.deadline_ns = MonotonicNs() + kNsPerMs}), WakeReason::kTimeout);
    Current()->Interrupt();
    EXPECT_EQ(not_empty.Wait(&mu, {.interruptible = true}), WakeReason::kInterrupted);
  });
  scheduler_.WaitForAll();
}

// Consumers of a counter wait exclusively; every item is consumed although some waits end early.
TEST_P(FiberTest, WaitQueueExclusiveLosesNothing) {
  constexpr int kItems = 3000, kConsumers = 6;
  WaitQueue queue;
  std::atomic<int> items{0}, consumed{0};
  std::atomic<bool> closed{false};
  std::vector<base::Ref<Fiber>> consumers;
  const auto take = [&] {
    int n = items.load();
    while (n > 0) {
      if (items.compare_exchange_weak(n, n - 1)) return true;
    }
    return false;
  };
  for (int i = 0; i < kConsumers; ++i) {
    consumers.push_back(Spawn("c", [&] {
      while (true) {
        bool got = false;
        const WakeReason reason = WaitUntil(
            queue, EPOLLIN, [&] { return (got = take()) || closed.load(); },
            {.interruptible = true}, /*exclusive=*/true);
        if (got) {
          consumed++;
        } else if (reason == WakeReason::kInterrupted) {
          Current()->ClearInterrupt();
        } else if (closed) {
          return;
        }
      }
    }));
  }
  for (int i = 0; i < kItems; ++i) {
    items++;
    queue.Wake(EPOLLIN);
    if (i % 7 == 0) consumers[i % kConsumers]->Interrupt();
    if (i % 64 == 0) usleep(50);
  }
  const int64_t deadline = MonotonicNs() + 20 * base::kNsPerSec;
  while (consumed < kItems && MonotonicNs() < deadline) usleep(100);
  EXPECT_EQ(consumed, kItems);
  closed = true;
  queue.WakeAll(EPOLLIN | EPOLLHUP);
  scheduler_.WaitForAll();
  EXPECT_FALSE(queue.HasWaiters());
}

TEST_P(FiberTest, WaitQueueMaskAndUnregister) {
  struct Recorder : Waiter {
    void OnEvent(uint32_t events) override { last = events, ++count; }
    uint32_t last = 0;
    int count = 0;
  };
  WaitQueue queue;
  Recorder in, out, one, two;
  queue.Register(&in, EPOLLIN);
  queue.Register(&out, EPOLLOUT);
  queue.Register(&one, EPOLLIN, true);
  queue.Register(&two, EPOLLIN, true);
  queue.Wake(EPOLLIN);
  EXPECT_EQ(in.count, 1);
  EXPECT_EQ(out.count, 0);
  EXPECT_EQ(one.count, 1);
  EXPECT_EQ(two.count, 0);
  queue.WakeAll(EPOLLHUP);
  EXPECT_EQ(out.last, static_cast<uint32_t>(EPOLLHUP));
  EXPECT_EQ(two.count, 1);
  queue.Unregister(&in);
  queue.Unregister(&in);  // left alone
  queue.Unregister(&one);
  queue.Unregister(&out);
  queue.Wake(EPOLLIN);
  EXPECT_EQ(in.count, 2);
  EXPECT_EQ(two.count, 2);
  queue.Unregister(&two);
}

TEST_P(FiberTest, WaitUntilTimesOut) {
  WaitQueue queue;
  Spawn("t", [&] {
    const int64_t deadline = MonotonicNs() + 2 * kNsPerMs;
    EXPECT_EQ(WaitUntil(queue, EPOLLIN, [] { return false; }, {.deadline_ns = deadline}),
              WakeReason::kTimeout);
    EXPECT_GE(MonotonicNs(), deadline);
  });
  scheduler_.WaitForAll();
}

TEST_P(FiberTest, TimersFireInOrder) {
  std::vector<int> fired;
  absl::Mutex mu;
  Timer timers[5];
  const int64_t now = MonotonicNs();
  const int delays[5] = {5, 1, 4, 2, 3};
  std::atomic<int> left{4};
  for (int i = 0; i < 5; ++i) {
    timers[i].Arm(now + delays[i] * 5 * kNsPerMs, [&, i] {
      absl::MutexLock lock(&mu);
      fired.push_back(delays[i]);
      left--;
    });
  }
  EXPECT_TRUE(timers[2].Cancel());
  EXPECT_FALSE(timers[2].Cancel());
  while (left > 0) usleep(100);
  absl::MutexLock lock(&mu);
  EXPECT_EQ(fired, (std::vector<int>{1, 2, 3, 5}));
}

TEST_P(FiberTest, PeriodicTimerAndCancelRaces) {
  struct Periodic {
    Timer timer;
    std::atomic<int> count{0};
    void Arm() {
      timer.Arm(MonotonicNs() + 20 * kNsPerUs, [this] { count++, Arm(); });
    }
  };
  for (int i = 0; i < 100; ++i) {
    auto p = std::make_unique<Periodic>();
    p->Arm();
    if (i % 10 == 0) {
      while (p->count < 5) usleep(10);
    }
    usleep(i);
    p->timer.Cancel();  // the callback may arm again while this waits for it
    const int count = p->count;
    usleep(50);
    EXPECT_EQ(p->count, count);
  }
}

TEST_P(FiberTest, SleepersWakeOnTime) {
  for (int i = 0; i < 100; ++i) {
    Spawn("sleeper", [i] {
      const int64_t deadline = MonotonicNs() + i % 10 * kNsPerMs;
      EXPECT_EQ(SleepUntil(deadline), WakeReason::kTimeout);
      EXPECT_GE(MonotonicNs(), deadline);
    });
  }
}

TEST_P(FiberTest, BlockingCalls) {
  std::atomic<int> sum{0}, most{0}, running{0};
  const int64_t start = MonotonicNs();
  for (int i = 0; i < 100; ++i) {
    Spawn("b", [&, i] {
      const int r = BlockingCall([&] {
        const int now = ++running;
        int seen = most;
        while (seen < now && !most.compare_exchange_weak(seen, now)) {
        }
        EXPECT_EQ(Current(), nullptr);
        usleep(20000);
        running--;
        return i;
      });
      EXPECT_EQ(r, i);
      BlockingCall([&] { sum += i; });
    });
  }
  scheduler_.WaitForAll();
  EXPECT_EQ(sum, 4950);
  EXPECT_LE(most, kMaxHelpers);
  EXPECT_GT(most, 10);
  if (!base::kSanitized) {
    EXPECT_LT(MonotonicNs() - start, 2 * base::kNsPerSec);
  }
  EXPECT_EQ(BlockingCall([] { return std::make_unique<int>(7); }).operator*(), 7);
}

TEST_P(FiberTest, WaitFdAndWatch) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  base::UniqueFd r(fds[0]), w(fds[1]);
  std::atomic<int> waiting{0};
  for (int i = 0; i < 3; ++i) {
    Spawn("reader", [&] {
      waiting++;
      EXPECT_EQ(WaitFd(r.get(), EPOLLIN), WakeReason::kWoken);
    });
  }
  Spawn("impatient", [&] {
    EXPECT_EQ(WaitFd(r.get(), EPOLLIN, {.deadline_ns = MonotonicNs() + kNsPerMs}),
              WakeReason::kTimeout);
    while (waiting < 3) Yield();
    EXPECT_EQ(write(w.get(), "x", 1), 1);
  });
  scheduler_.WaitForAll();

  std::atomic<int> calls{0};
  FdWatch watch;
  ASSERT_TRUE(watch
                  .Start(r.get(), EPOLLIN, FdWatch::Mode::kOneShot,
                         [&](uint32_t events) {
                           EXPECT_TRUE(events & EPOLLIN);
                           calls++;
                         })
                  .ok());
  while (calls < 1) usleep(100);
  usleep(1000);
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(watch.Rearm(EPOLLIN).ok());
  while (calls < 2) usleep(100);
  watch.Stop();
  EXPECT_FALSE(watch.started());
  EXPECT_FALSE(watch.Rearm(EPOLLIN).ok());
}

TEST_P(FiberTest, IdleUsesNoCpu) {
  Spawn("parked", [] { SleepUntil(MonotonicNs() + 400 * kNsPerMs); });
  usleep(150000);  // let spins and monitors calm down
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  usleep(200000);
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 5);
}

class ManyWorkersTest : public FiberTest {};
INSTANTIATE_TEST_SUITE_P(Workers, ManyWorkersTest, ::testing::Values(2, 4));

// A long run without a park does not keep what it makes runnable from running.
TEST_P(ManyWorkersTest, LongRunnersDoNotStarveOthers) {
  std::atomic<bool> other_ran{false};
  Spawn("long", [&] {
    Spawn("short", [&] { other_ran = true; });
    const int64_t deadline = MonotonicNs() + 5 * base::kNsPerSec;
    while (!other_ran && MonotonicNs() < deadline) {
    }
    EXPECT_TRUE(other_ran);
  });
  scheduler_.WaitForAll();
}

// A guest: a host thread that traps by setting its flag and waits for the answer.
class FakePlatform : public Poller {
 public:
  struct Guest {
    std::atomic<int> state{0};  // 1: trapped, 0: runs
    std::atomic<bool> trapped{false};
    base::Ref<Fiber> fiber;
  };
  explicit FakePlatform(int n) : guests(n) {}
  size_t Poll() override {
    size_t n = 0;
    for (Guest& g : guests) {
      if (g.state.load(std::memory_order_acquire) == 1) {
        g.state.store(2, std::memory_order_relaxed);
        g.trapped.store(true, std::memory_order_release);
        g.fiber->Unpark();
        ++n;
      }
    }
    return n;
  }
  bool ShouldSpin() override { return spin; }
  void Wait(int64_t deadline_ns) override {
    if (bell.exchange(0) == 0) FutexWait(&bell, 0, deadline_ns);
    bell.store(0);
    waits++;
  }
  void Wake() override {
    bell.store(1);
    FutexWake(&bell);
  }
  void Trap(Guest& g) {
    g.state.store(1, std::memory_order_seq_cst);
    Wake();
    while (g.state.load(std::memory_order_acquire) != 0) {
      if (spin) continue;
      std::this_thread::yield();
    }
  }
  std::vector<Guest> guests;
  std::atomic<uint32_t> bell{0};
  std::atomic<int> waits{0};
  bool spin = false;
};

class PollerTest : public ::testing::TestWithParam<std::tuple<int, int, bool>> {};
INSTANTIATE_TEST_SUITE_P(All, PollerTest,
                         ::testing::Combine(::testing::Values(1, 2, 3), ::testing::Values(1, 4),
                                            ::testing::Bool()));

TEST_P(PollerTest, GuestsTrapAndAreAnswered) {
  const auto [workers, guests, spin] = GetParam();
  constexpr int kTraps = 2000;
  FakePlatform platform(guests);
  platform.spin = spin;
  Scheduler scheduler({.workers = workers, .poller = &platform});
  std::atomic<int> answered{0};
  std::atomic<bool> go{false};
  for (int i = 0; i < guests; ++i) {
    FakePlatform::Guest& g = platform.guests[i];
    g.fiber = Spawn("task", [&, i] {
      while (!go) Yield();
      for (int n = 0; n < kTraps; ++n) {
        while (!g.trapped.load(std::memory_order_acquire)) Park({.in_guest = true});
        g.trapped = false;
        if (n % 200 == i) {  // a long call
          const int64_t until = MonotonicNs() + kNsPerMs;
          while (MonotonicNs() < until) {
          }
        }
        if (n % 500 == i) BlockingCall([] { usleep(100); });
        answered++;
        g.state.store(0, std::memory_order_release);
      }
    });
  }
  go = true;
  std::vector<std::thread> threads;
  for (int i = 0; i < guests; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < kTraps; ++n) platform.Trap(platform.guests[i]);
    });
  }
  for (auto& t : threads) t.join();
  scheduler.WaitForAll();
  EXPECT_EQ(answered, guests * kTraps);
  scheduler.Shutdown();
}

// While one fiber computes, another guest's trap is still answered.
TEST(Poller, TokenIsTakenFromLongRunner) {
  FakePlatform platform(2);
  Scheduler scheduler({.workers = 2, .poller = &platform});
  std::atomic<bool> second_answered{false};
  const auto serve = [&](int i, auto&& work) {
    FakePlatform::Guest& g = platform.guests[i];
    return [&g, work] {
      while (!g.trapped.load(std::memory_order_acquire)) Park({.in_guest = true});
      work();
      g.state.store(0, std::memory_order_release);
    };
  };
  platform.guests[0].fiber = Spawn("long", serve(0, [&] {
                                     const int64_t deadline = MonotonicNs() + 5 * base::kNsPerSec;
                                     while (!second_answered && MonotonicNs() < deadline) {
                                     }
                                     EXPECT_TRUE(second_answered);
                                   }));
  platform.guests[1].fiber = Spawn("short", serve(1, [&] { second_answered = true; }));
  while (!platform.guests[0].fiber->parked() || !platform.guests[1].fiber->parked()) usleep(100);
  usleep(100000);  // everybody sleeps, the monitor dozes
  std::thread a([&] { platform.Trap(platform.guests[0]); });
  usleep(1000);
  std::thread b([&] { platform.Trap(platform.guests[1]); });
  a.join();
  b.join();
  scheduler.WaitForAll();
}

}  // namespace
}  // namespace fiber
