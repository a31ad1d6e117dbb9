// Rows of calls that concern nobody else, and of each way that a trap can take.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "benchmarks/micro/guest/row.h"

namespace micro {
namespace {

template <long kNumber>
void Call(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(syscall(kNumber));
}
ROW("getpid", Call<SYS_getpid>);
ROW("gettid", Call<SYS_gettid>);
ROW("getuid", Call<SYS_getuid>);
ROW("getppid", Call<SYS_getppid>);
ROW("sched_yield", Call<SYS_sched_yield>);

void Sigprocmask(benchmark::State& state) {
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  for (auto _ : state) {
    sigprocmask(SIG_BLOCK, &set, &old);
    sigprocmask(SIG_SETMASK, &old, nullptr);
  }
}
ROW("rt_sigprocmask", Sigprocmask);

void ClockGettime(benchmark::State& state) {
  timespec t;
  for (auto _ : state) {
    clock_gettime(CLOCK_MONOTONIC, &t);
    benchmark::DoNotOptimize(t);
  }
}
ROW("clock_gettime", ClockGettime);

void Gettimeofday(benchmark::State& state) {
  timeval t;
  for (auto _ : state) {
    gettimeofday(&t, nullptr);
    benchmark::DoNotOptimize(t);
  }
}
ROW("gettimeofday", Gettimeofday);

void Time(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(time(nullptr));
}
ROW("time", Time);

void Getcpu(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(sched_getcpu());
}
ROW("getcpu", Getcpu);

void GetrandomBytes(benchmark::State& state) {
  char bytes[16];
  for (auto _ : state) {
    benchmark::DoNotOptimize(getrandom(bytes, sizeof(bytes), 0));
  }
}
ROW("getrandom_16", GetrandomBytes);

// A call that the sentry answers at once: one hand-off, nothing else.
long HandOff() { return syscall(SYS_getpriority, PRIO_PROCESS, 0); }

void Getpriority(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(HandOff());
}
ROW("getpriority", Getpriority);

// The floor of a hand-off: the caller's registers go to shared memory, another core that spins sees
// the request and answers. No system call and no kernel take part.
struct alignas(64) Mailbox {
  alignas(64) std::atomic<uint32_t> request{0};
  uint64_t regs[16];
  alignas(64) std::atomic<uint32_t> answer{0};
};

__attribute__((noinline)) void SpinHandOff(Mailbox& box, uint32_t round) {
  // Saves and restores all that a call may not lose, as a patched site has to.
  asm volatile(
      "mov %%rax, 0(%0)\n\tmov %%rbx, 8(%0)\n\tmov %%rcx, 16(%0)\n\tmov %%rdx, 24(%0)\n\t"
      "mov %%rsi, 32(%0)\n\tmov %%rdi, 40(%0)\n\tmov %%rbp, 48(%0)\n\tmov %%rsp, 56(%0)\n\t"
      "mov %%r8, 64(%0)\n\tmov %%r9, 72(%0)\n\tmov %%r10, 80(%0)\n\tmov %%r12, 88(%0)\n\t"
      "mov %%r13, 96(%0)\n\tmov %%r14, 104(%0)\n\tmov %%r15, 112(%0)"
      :
      : "r"(box.regs)
      : "memory");
  box.request.store(round);
  while (box.answer.load(std::memory_order_acquire) != round) __builtin_ia32_pause();
  asm volatile(
      "mov 16(%0), %%rcx\n\tmov 24(%0), %%rdx\n\tmov 32(%0), %%rsi\n\tmov 40(%0), %%rdi\n\t"
      "mov 64(%0), %%r8\n\tmov 72(%0), %%r9\n\tmov 80(%0), %%r10"
      :
      : "a"(box.regs)
      : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "memory");
}

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

void SpinHandOffRow(benchmark::State& state) {
  if (CpuCount() < 2) return state.SkipWithError("unsupported needs two cores");
  cpu_set_t before;
  sched_getaffinity(0, sizeof(before), &before);
  static Mailbox box;
  box.request = box.answer = 0;
  std::thread sentry([] {
    PinTo(1);
    for (uint32_t last = 0;;) {
      uint32_t request = box.request.load(std::memory_order_acquire);
      if (request == UINT32_MAX) return;
      if (request == last) {
        __builtin_ia32_pause();
        continue;
      }
      last = request;
      box.regs[0] = 20;
      box.answer.store(last);
    }
  });
  PinTo(0);
  uint32_t round = 0;
  for (auto _ : state) SpinHandOff(box, ++round);
  box.request = UINT32_MAX;
  sentry.join();
  sched_setaffinity(0, sizeof(before), &before);
}
ROW("spin_hand_off", SpinHandOffRow);

// As many busy threads as cores: this one calls, `call` says whether the others do too.
void Busy(benchmark::State& state, bool call) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 1; i < CpuCount(); ++i) {
    others.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
        if (call) HandOff();
      }
    });
  }
  for (auto _ : state) benchmark::DoNotOptimize(HandOff());
  stop = true;
  for (std::thread& t : others) t.join();
}
void GetpriorityBusy(benchmark::State& state) { Busy(state, false); }
void GetpriorityAllCall(benchmark::State& state) { Busy(state, true); }
ROW("getpriority_busy", GetpriorityBusy);
ROW("getpriority_all_call", GetpriorityAllCall);

// After a rest that is longer than anybody spins, so that both sides sleep.
void GetpriorityAfterSleep(benchmark::State& state) {
  for (auto _ : state) {
    usleep(2000);
    double start = NowNs();
    benchmark::DoNotOptimize(HandOff());
    state.SetIterationTime((NowNs() - start) / 1e9);
  }
}
ROW_MANUAL("getpriority_after_sleep", GetpriorityAfterSleep)->Iterations(20);

// The first call of a site, by sites of our own making in memory that is neither a file's nor
// known: mov $nr,%eax; syscall; ret. Each is used once.
void GetpriorityFirst(benchmark::State& state) {
  static constexpr unsigned char kSite[16] = {0xb8, SYS_getpriority, 0, 0, 0, 0x0f, 0x05, 0xc3};
  constexpr size_t kSize = 64 << 10;
  auto* code = static_cast<unsigned char*>(
      mmap(nullptr, kSize, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (code == MAP_FAILED) return Fail(state, "mmap");
  size_t at = kSize;
  for (auto _ : state) {
    if (at == kSize) {
      state.PauseTiming();
      for (at = 0; at < kSize; at += sizeof(kSite)) memcpy(code + at, kSite, sizeof(kSite));
      mprotect(code, kSize, PROT_READ | PROT_EXEC);
      mprotect(code, kSize, PROT_READ | PROT_WRITE | PROT_EXEC);
      at = 0;
      state.ResumeTiming();
    }
    auto call = reinterpret_cast<long (*)(int, int)>(code + at);
    benchmark::DoNotOptimize(call(PRIO_PROCESS, 0));
    at += sizeof(kSite);
  }
  munmap(code, kSize);
}
ROW("getpriority_first", GetpriorityFirst);

// A bare syscall instruction that no mov of its number precedes and no comparison follows: it can
// not be patched by its shape.
long BareCall(long number, long a, long b) {
  asm volatile("nop\n\tsyscall\n\tnop" : "+a"(number) : "D"(a), "S"(b) : "rcx", "r11", "memory");
  return number;
}
void GetpriorityBare(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(BareCall(SYS_getpriority, PRIO_PROCESS, 0));
}
ROW("getpriority_bare", GetpriorityBare);

// The common shape, mov of the number and syscall, in the program's own text.
void GetpriorityMov(benchmark::State& state) {
  for (auto _ : state) {
    long result;
    asm volatile("mov %1, %%eax\n\tsyscall"
                 : "=a"(result)
                 : "i"(SYS_getpriority), "D"(PRIO_PROCESS), "S"(0)
                 : "rcx", "r11", "memory");
    benchmark::DoNotOptimize(result);
  }
}
ROW("getpriority_mov", GetpriorityMov);

}  // namespace
}  // namespace micro
