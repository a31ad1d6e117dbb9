// Rows of memory, processes, threads and signals.
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csetjmp>
#include <cstring>

#include "benchmarks/micro/guest/row.h"

namespace micro {
namespace {

constexpr size_t kPage = 4096;

char* Map(size_t size, int prot = PROT_READ | PROT_WRITE) {
  void* p = mmap(nullptr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<char*>(p);
}

void Touch(char* p, size_t size) {
  for (size_t at = 0; at < size; at += kPage) static_cast<volatile char*>(p)[at] = 1;
}

void MapTouchUnmap(benchmark::State& state, size_t size) {
  for (auto _ : state) {
    char* p = Map(size);
    if (!p) {
      Fail(state, "mmap");
      break;
    }
    Touch(p, size);
    munmap(p, size);
  }
}
void Mmap64K(benchmark::State& state) { MapTouchUnmap(state, 64 << 10); }
void Mmap64M(benchmark::State& state) { MapTouchUnmap(state, 64 << 20); }
ROW("mmap_touch_munmap_64k", Mmap64K);
ROW("mmap_touch_munmap_64m", Mmap64M);

// An iteration is one call; the page is made read-only and writable in turn.
void MprotectPage(benchmark::State& state) {
  char* p = Map(16 * kPage);
  if (!p) return Fail(state, "mmap");
  Touch(p, 16 * kPage);
  int prot = PROT_READ;
  for (auto _ : state) {
    if (mprotect(p + 8 * kPage, kPage, prot) != 0) {
      Fail(state, "mprotect");
      break;
    }
    prot ^= PROT_WRITE;
  }
  munmap(p, 16 * kPage);
}
ROW("mprotect_page", MprotectPage);

constexpr size_t kFaultSize = 8 << 20;
constexpr double kFaults = static_cast<double>(kFaultSize / kPage);

// The time of one fault, in a fresh mapping without huge pages.
void PageFault(benchmark::State& state) {
  for (auto _ : state) {
    char* p = Map(kFaultSize);
    if (!p) {
      Fail(state, "mmap");
      break;
    }
    madvise(p, kFaultSize, MADV_NOHUGEPAGE);
    double start = NowNs();
    Touch(p, kFaultSize);
    state.SetIterationTime((NowNs() - start) / 1e9 / kFaults);
    munmap(p, kFaultSize);
  }
}
ROW_MANUAL("page_fault", PageFault)->Iterations(8);

// The time of one fault on a page shared with a child since fork.
void CowFault(benchmark::State& state) {
  char* p = Map(kFaultSize);
  if (!p) return Fail(state, "mmap");
  madvise(p, kFaultSize, MADV_NOHUGEPAGE);
  Touch(p, kFaultSize);
  for (auto _ : state) {
    int hold[2];
    if (pipe(hold) != 0) return Fail(state, "pipe");
    pid_t child = fork();
    if (child < 0) return Fail(state, "fork");
    if (child == 0) {
      close(hold[1]);
      char c;
      if (read(hold[0], &c, 1) < 0) _exit(1);
      _exit(0);
    }
    double start = NowNs();
    Touch(p, kFaultSize);
    state.SetIterationTime((NowNs() - start) / 1e9 / kFaults);
    close(hold[0]);
    close(hold[1]);
    waitpid(child, nullptr, 0);
  }
  munmap(p, kFaultSize);
}
ROW_MANUAL("cow_fault", CowFault)->Iterations(8);

void ForkExitWait(benchmark::State& state) {
  for (auto _ : state) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    if (child < 0 || waitpid(child, nullptr, 0) != child) {
      Fail(state, "fork");
      break;
    }
  }
}
ROW("fork_exit_wait", ForkExitWait);

void PosixSpawnTrue(benchmark::State& state) {
  char path[] = "/bin/true";
  char* argv[] = {path, nullptr};
  char* envp[] = {nullptr};
  for (auto _ : state) {
    pid_t child;
    errno = posix_spawn(&child, path, nullptr, nullptr, argv, envp);
    int status = 1;
    if (errno != 0 || waitpid(child, &status, 0) != child || status != 0) {
      Fail(state, "posix_spawn");
      break;
    }
  }
}
ROW("posix_spawn_true", PosixSpawnTrue);

void PthreadCreateJoin(benchmark::State& state) {
  for (auto _ : state) {
    pthread_t thread;
    errno = pthread_create(
        &thread, nullptr, [](void* p) { return p; }, nullptr);
    if (errno != 0) {
      Fail(state, "pthread_create");
      break;
    }
    pthread_join(thread, nullptr);
  }
}
ROW("pthread_create_join", PthreadCreateJoin);

volatile sig_atomic_t signals = 0;

// kill() of the own process; the handler has run when it returns.
void KillHandler(benchmark::State& state) {
  struct sigaction action = {}, old;
  action.sa_handler = [](int) { signals = signals + 1; };
  sigaction(SIGUSR1, &action, &old);
  pid_t self = getpid();
  for (auto _ : state) kill(self, SIGUSR1);
  sigaction(SIGUSR1, &old, nullptr);
}
ROW("kill_handler", KillHandler);

// A write to a read-only page; the handler skips the instruction, whose length is known.
void SegvHandler(benchmark::State& state) {
  struct sigaction action = {}, old;
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int, siginfo_t*, void* context) {
    static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] += 3;
  };
  sigaction(SIGSEGV, &action, &old);
  char* p = Map(kPage, PROT_READ);
  if (!p) return Fail(state, "mmap");
  for (auto _ : state) {
    asm volatile("movb $1, (%0)" : : "a"(p) : "memory");  // c6 00 01
  }
  munmap(p, kPage);
  sigaction(SIGSEGV, &old, nullptr);
}
ROW("sigsegv_handler", SegvHandler);

}  // namespace
}  // namespace micro
