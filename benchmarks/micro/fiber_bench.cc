// What fibers cost: a switch, a wake, and the trap round (poll, wake the task's fiber, run it,
// park).
#include <benchmark/benchmark.h>

#include <atomic>
#include <functional>

#include "sentry/fiber/blocking.h"
#include "sentry/fiber/context.h"
#include "sentry/fiber/fiber.h"
#include "sentry/fiber/futex.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/scheduler.h"
#include "sentry/fiber/stack.h"
#include "sentry/fiber/wait_queue.h"

namespace fiber {
namespace {

// Runs `body` on a fiber of a scheduler with one worker.
void OnFiber(const std::function<void()>& body) {
  Scheduler scheduler({.workers = 1});
  Spawn("bench", body);
  scheduler.WaitForAll();
}

void BM_RawSwitch(benchmark::State& state) {
  Stack* stack = AcquireStack();
  ContextHandle context = MakeContext(stack->bottom, stack->size, [](Transfer t) {
    while (true) t = SwitchContext(t.fctx, nullptr);
  });
  for (auto _ : state) context = SwitchContext(context, nullptr).fctx;
  ReleaseStack(stack);
  state.SetItemsProcessed(2 * state.iterations());  // switches
}
BENCHMARK(BM_RawSwitch);

void BM_ParkWithPermit(benchmark::State& state) {
  OnFiber([&] {
    Fiber* self = Current();
    for (auto _ : state) {
      self->Unpark();
      Park();
    }
  });
}
BENCHMARK(BM_ParkWithPermit);

// Two fibers wake each other; an iteration is a round of two wakes and four switches.
void BM_PingPong(benchmark::State& state) {
  OnFiber([&] {
    Fiber* self = Current();
    std::atomic<bool> stop{false};
    base::Ref<Fiber> other = Spawn("pong", [&] {
      while (!stop) {
        Park();
        self->Unpark();
      }
    });
    Yield();
    for (auto _ : state) {
      other->Unpark();
      Park();
    }
    stop = true;
    other->Unpark();
    while (!other->done()) Yield();
  });
}
BENCHMARK(BM_PingPong);

// A guest that traps again at once: an iteration is the scheduler's whole overhead of a trap.
class AlwaysTrapping : public Poller {
 public:
  size_t Poll() override {
    if (!resumed) return 0;
    resumed = false;
    fiber->Unpark();
    return 1;
  }
  bool ShouldSpin() override { return true; }
  void Wait(int64_t deadline_ns) override {
    if (word.load() == 0) FutexWait(&word, 0, deadline_ns);
    word.store(0);
  }
  void Wake() override {
    word.store(1);
    FutexWake(&word);
  }
  bool resumed = false;
  Fiber* fiber = nullptr;
  std::atomic<uint32_t> word{0};
};

void BM_TrapRound(benchmark::State& state) {
  AlwaysTrapping poller;
  Scheduler scheduler({.workers = static_cast<int>(state.range(0)), .poller = &poller});
  Spawn("task", [&] {
    poller.fiber = Current();
    for (auto _ : state) {
      poller.resumed = true;
      Park({.in_guest = true});
    }
  });
  scheduler.WaitForAll();
}
BENCHMARK(BM_TrapRound)->Arg(1)->Arg(2)->UseRealTime();

void BM_MutexUncontended(benchmark::State& state) {
  Mutex mu;
  for (auto _ : state) MutexLock lock(&mu);
}
BENCHMARK(BM_MutexUncontended);

void BM_WakeEmptyQueue(benchmark::State& state) {
  WaitQueue queue;
  for (auto _ : state) queue.Wake(EPOLLIN);
}
BENCHMARK(BM_WakeEmptyQueue);

void BM_SpawnAndEnd(benchmark::State& state) {
  OnFiber([&] {
    for (auto _ : state) {
      base::Ref<Fiber> f = Spawn("child", [] {});
      while (!f->done()) Yield();
    }
  });
}
BENCHMARK(BM_SpawnAndEnd);

void BM_BlockingCall(benchmark::State& state) {
  OnFiber([&] {
    for (auto _ : state) benchmark::DoNotOptimize(BlockingCall([] { return 1; }));
  });
}
BENCHMARK(BM_BlockingCall)->UseRealTime();

}  // namespace
}  // namespace fiber

BENCHMARK_MAIN();
