// What a guest's system call costs by the way it takes, beside the host's own call in the same run.
// The sentry here is a loop that answers getpriority at once: the trap path without a kernel.
//
//   trap_path_bench                      all ways, with a spare core
//   trap_path_bench --benchmark_filter=OneCore   guest and sentry share one core
#include <benchmark/benchmark.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "absl/synchronization/mutex.h"
#include "platform/test_guest.h"
#include "sentry/trace/times/call_times.h"

namespace platform {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// A platform with one guest. Affinity is the calling thread's: stubs inherit it.
struct Bench {
  std::unique_ptr<Platform> platform;
  test::Guest guest;

  Bench(const Options& options, bool from_file) {
    std::string why;
    auto p = test::CreatePlatform(options, &why);
    if (!p.ok()) {
      fprintf(stderr, "no platform: %s\n", why.c_str());
      exit(1);
    }
    platform = std::move(*p);
    platform->StartPool();
    if (!guest.Load(*platform, from_file)) exit(1);
  }
  // One call of the guest's endless loop.
  void Call() {
    const Trap& trap = test::RunGuest(*platform, guest.main);
    if (trap.kind != TrapKind::kSyscall) exit(1);
    guest.main.context->SetResult(20);
  }
};

void HostGetppid(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(syscall(SYS_getppid));
}
BENCHMARK(HostGetppid);

void HostGetpriority(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(syscall(SYS_getpriority, PRIO_PROCESS, 0));
}
BENCHMARK(HostGetpriority);

void RoundTrips(benchmark::State& state, Bench& b, const char* entry) {
  b.guest.SetEntry(entry);
  for (int i = 0; i < 1000; i++) b.Call();
  for (auto _ : state) b.Call();
}

void PatchedSpin(benchmark::State& state) {
  Bench b(Options{}, true);
  RoundTrips(state, b, guest_syscall_loop);
}
BENCHMARK(PatchedSpin)->UseRealTime();

// The same, counted and measured as the dispatch does it; and that work by itself, which may cost
// no more than a fiftieth of the round.
void PatchedSpinMeasured(benchmark::State& state) {
  Bench b(Options{}, true);
  sentry::trace::CallTimes times;
  b.guest.SetEntry(guest_syscall_loop);
  for (int i = 0; i < 1000; i++) b.Call();
  for (auto _ : state) {
    times.Begin(*b.guest.main.context, SYS_getpriority);
    times.End(*b.guest.main.context);
    b.Call();
  }
}
BENCHMARK(PatchedSpinMeasured)->UseRealTime();

void MeasuringAlone(benchmark::State& state) {
  Bench b(Options{}, true);
  sentry::trace::CallTimes times;
  b.guest.SetEntry(guest_syscall_loop);
  b.Call();
  for (auto _ : state) {
    times.Begin(*b.guest.main.context, SYS_getpriority);
    times.End(*b.guest.main.context);
  }
}
BENCHMARK(MeasuringAlone);

void PatchedSleep(benchmark::State& state) {
  Bench b(Options{.spin_ns = 0}, true);
  RoundTrips(state, b, guest_syscall_loop);
}
BENCHMARK(PatchedSleep)->UseRealTime();

void SigsysSpin(benchmark::State& state) {
  Bench b(Options{.patch = false}, true);
  RoundTrips(state, b, guest_syscall_loop);
}
BENCHMARK(SigsysSpin)->UseRealTime();

void AnsweredInStub(benchmark::State& state) {
  Bench b(Options{}, true);
  b.guest.main.context->Publish({.pid = 1, .tid = 1});
  constexpr uint64_t kCalls = 1'000'000;
  for (auto _ : state) {
    b.guest.SetEntry(guest_gettid_loop);
    b.guest.main.context->regs().rdi = kCalls;
    auto start = Clock::now();
    test::RunGuest(*b.platform, b.guest.main);
    state.SetIterationTime(Seconds(start) / kCalls);
  }
}
BENCHMARK(AnsweredInStub)->UseManualTime()->Iterations(5);

// Everything on one core, as on a machine whose cores are all busy.
void PatchedOneCore(benchmark::State& state) {
  cpu_set_t old, one;
  sched_getaffinity(0, sizeof(old), &old);
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  sched_setaffinity(0, sizeof(one), &one);
  {
    Bench b(Options{}, true);
    RoundTrips(state, b, guest_syscall_loop);
  }
  sched_setaffinity(0, sizeof(old), &old);
}
BENCHMARK(PatchedOneCore)->UseRealTime();

// A thread of the guest from its order to its first call, and its end.
void CloneThread(benchmark::State& state) {
  Bench b(Options{}, true);
  for (auto _ : state) {
    test::Thread t;
    t.context = std::move(*b.guest.space->PrepareThread());
    t.context->set_listener(&t);
    t.context->regs().rip = test::GuestAddr(guest_syscall_loop);
    b.guest.main.context->QueueOrder(order::CloneThread{t.context.get()});
    test::RunGuest(*b.platform, b.guest.main, ResumeMode::kOrdersOnly);
    test::RunGuest(*b.platform, t);
    t.context->Exit();
  }
}
BENCHMARK(CloneThread)->UseRealTime();

void Fork(benchmark::State& state) {
  Bench b(Options{}, true);
  for (auto _ : state) {
    auto child = std::move(*b.guest.space->PrepareFork());
    b.guest.main.context->QueueOrder(order::Fork{child.get()});
    test::RunGuest(*b.platform, b.guest.main, ResumeMode::kOrdersOnly);
  }
}
BENCHMARK(Fork)->UseRealTime();

void NewAddressSpace(benchmark::State& state) {
  Bench b(Options{}, true);
  for (auto _ : state) benchmark::DoNotOptimize(b.platform->NewAddressSpace());
}
BENCHMARK(NewAddressSpace)->UseRealTime();

}  // namespace
}  // namespace platform

int main(int argc, char** argv) {
  // Debian's Abseil checks the order of locks unless told not to; runsc tells it too.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
