// Threads, futexes, thread-local state, robust lists, exit of threads.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "guest_util.h"

namespace {
long Futex(void* addr, int op, uint32_t value, const timespec* timeout = nullptr,
           void* addr2 = nullptr, uint32_t value3 = 0) {
  return syscall(SYS_futex, addr, op, value, timeout, addr2, value3);
}
pid_t Gettid() { return static_cast<pid_t>(syscall(SYS_gettid)); }
}  // namespace

TEST(Thread, TwoHundredAtOnce) {
  std::atomic<int> sum{0};
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, 201);
  std::vector<std::thread> threads;
  for (int i = 0; i < 200; i++) {
    threads.emplace_back([&, i] {
      pthread_barrier_wait(&barrier);
      sum += i;
    });
  }
  pthread_barrier_wait(&barrier);
  for (auto& t : threads) t.join();
  EXPECT_EQ(19900, sum);
}

TEST(Thread, CreateAndJoinManyInTurn) {
  int count = 0;
  for (int i = 0; i < 500; i++) std::thread([&] { count++; }).join();
  EXPECT_EQ(500, count);
}

TEST(Thread, IdsAndThreadLocals) {
  static thread_local int local = 5;
  pid_t main_tid = Gettid(), other_tid = 0;
  EXPECT_EQ(getpid(), main_tid);
  std::thread([&] {
    local = 6;
    other_tid = Gettid();
    EXPECT_NE(getpid(), other_tid);
  }).join();
  EXPECT_NE(main_tid, other_tid);
  EXPECT_EQ(5, local);
}

TEST(Thread, MutexContention) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&] {
      for (int j = 0; j < 20000; j++) {
        pthread_mutex_lock(&mutex);
        count++;
        pthread_mutex_unlock(&mutex);
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(80000, count);
}

TEST(Thread, ConditionPingPong) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
  int turn = 0;
  auto play = [&](int me) {
    for (int i = 0; i < 1000; i++) {
      pthread_mutex_lock(&mutex);
      while (turn != me) pthread_cond_wait(&cond, &mutex);
      turn = 1 - me;
      pthread_cond_broadcast(&cond);
      pthread_mutex_unlock(&mutex);
    }
  };
  std::thread other(play, 1);
  play(0);
  other.join();
}

TEST(Futex, WaitErrors) {
  uint32_t word = 1;
  EXPECT_ERRNO(Futex(&word, FUTEX_WAIT_PRIVATE, 2), EAGAIN);
  timespec t{0, 30000000};
  int64_t start = NowNs();
  EXPECT_ERRNO(Futex(&word, FUTEX_WAIT_PRIVATE, 1, &t), ETIMEDOUT);
  EXPECT_GE(NowNs() - start, 30000000);
  t = {0, 2000000000};
  EXPECT_ERRNO(Futex(&word, FUTEX_WAIT_PRIVATE, 1, &t), EINVAL);
  EXPECT_ERRNO(Futex(reinterpret_cast<char*>(&word) + 1, FUTEX_WAIT_PRIVATE, 1), EINVAL);
  EXPECT_ERRNO(Futex(reinterpret_cast<void*>(0x1000), FUTEX_WAIT_PRIVATE, 1), EFAULT);
  EXPECT_EQ(0, Futex(&word, FUTEX_WAKE_PRIVATE, 1));
  EXPECT_ERRNO(Futex(&word, 99, 1), ENOSYS);
}

TEST(Futex, WakeCountsAndRequeue) {
  uint32_t a = 0, b = 0;
  std::vector<std::thread> threads;
  std::atomic<int> woken{0};
  std::atomic<pid_t> tids[4] = {};
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&, i] {
      tids[i] = static_cast<pid_t>(syscall(SYS_gettid));
      Futex(&a, FUTEX_WAIT_PRIVATE, 0);
      woken++;
    });
  }
  for (const std::atomic<pid_t>& tid : tids) {
    while (tid == 0) SleepMs(1);
    WaitUntilAsleep(tid);
  }
  EXPECT_EQ(1, Futex(&a, FUTEX_WAKE_PRIVATE, 1));
  EXPECT_EQ(3, Futex(&a, FUTEX_CMP_REQUEUE_PRIVATE, 1,
                     reinterpret_cast<timespec*>(static_cast<uintptr_t>(10)), &b, 0));
  SleepMs(30);
  EXPECT_EQ(2, woken);
  EXPECT_EQ(2, Futex(&b, FUTEX_WAKE_PRIVATE, 10));
  for (auto& t : threads) t.join();
  EXPECT_EQ(4, woken);
}

TEST(Futex, SharedBetweenProcesses) {
  uint32_t* word = static_cast<uint32_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t pid = fork();
  if (pid == 0) {
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == 0) Futex(word, FUTEX_WAIT, 0);
    _exit(4);
  }
  SleepMs(50);
  __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
  Futex(word, FUTEX_WAKE, 1);
  int status;
  waitpid(pid, &status, 0);
  EXPECT_EQ(4, WEXITSTATUS(status));
}

TEST(Futex, InterruptedBySignal) {
  struct sigaction sa {};
  sa.sa_handler = [](int) {};
  sigaction(SIGUSR1, &sa, nullptr);
  uint32_t word = 0;
  pthread_t self = pthread_self();
  std::thread killer([&] {
    WaitUntilAsleep(getpid());
    pthread_kill(self, SIGUSR1);
  });
  EXPECT_ERRNO(Futex(&word, FUTEX_WAIT_PRIVATE, 0), EINTR);
  killer.join();
}

TEST(Thread, SignalReachesTheChosenThread) {
  static std::atomic<pid_t> handled{0};
  struct sigaction sa {};
  sa.sa_handler = [](int) { handled = Gettid(); };
  sigaction(SIGUSR2, &sa, nullptr);
  std::atomic<bool> stop{false};
  std::atomic<pid_t> tid{0};
  std::thread busy([&] {
    tid = Gettid();
    while (!stop) {
    }
  });
  while (tid == 0) sched_yield();
  ASSERT_OK(syscall(SYS_tgkill, getpid(), tid.load(), SIGUSR2));
  int64_t end = NowNs() + 5000000000;
  while (handled == 0 && NowNs() < end) sched_yield();
  EXPECT_EQ(tid.load(), handled.load());
  stop = true;
  busy.join();
  // Who joins is woken a moment before the thread is gone.
  end = NowNs() + 5000000000;
  while (syscall(SYS_tgkill, getpid(), tid.load(), 0) == 0 && NowNs() < end) sched_yield();
  EXPECT_ERRNO(syscall(SYS_tgkill, getpid(), tid.load(), 0), ESRCH);
}

TEST(Thread, ProcessSignalGoesToAnUnblockedThread) {
  static std::atomic<pid_t> handled{0};
  handled = 0;
  struct sigaction sa {};
  sa.sa_handler = [](int) { handled = Gettid(); };
  sigaction(SIGUSR2, &sa, nullptr);
  std::atomic<bool> stop{false};
  std::atomic<pid_t> tid{0};
  std::thread waiter([&] {
    tid = Gettid();
    while (!stop) SleepMs(5);
  });
  while (tid == 0) sched_yield();
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &set, &old);
  kill(getpid(), SIGUSR2);
  int64_t end = NowNs() + 5000000000;
  while (handled == 0 && NowNs() < end) SleepMs(1);
  EXPECT_EQ(tid.load(), handled.load());
  stop = true;
  waiter.join();
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

TEST(Thread, RobustMutexOwnerDied) {
  pthread_mutexattr_t attr;
  pthread_mutexattr_init(&attr);
  pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
  auto* mutex = static_cast<pthread_mutex_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pthread_mutex_init(mutex, &attr);
  EXPECT_EQ(0, ExitStatus([&] { return pthread_mutex_lock(mutex); }));
  EXPECT_EQ(EOWNERDEAD, pthread_mutex_lock(mutex));
  EXPECT_EQ(0, pthread_mutex_consistent(mutex));
  EXPECT_EQ(0, pthread_mutex_unlock(mutex));
}

TEST(Thread, ForkFromAThreadLeavesOneThread) {
  int status = -1;
  std::thread([&] {
    pid_t pid = fork();
    if (pid == 0) _exit(Gettid() == getpid() ? 0 : 1);
    waitpid(pid, &status, 0);
  }).join();
  EXPECT_EQ(0, status);
}

TEST(Thread, ExecFromAThreadReplacesTheProcess) {
  pid_t pid = fork();
  if (pid == 0) {
    std::thread([] {
      execl("/bin/sh", "sh", "-c", "exit 21", nullptr);
      _exit(1);
    }).join();
    _exit(2);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(21, WEXITSTATUS(status));
}

TEST(Thread, LeaderMayExitFirst) {
  pid_t pid = fork();
  if (pid == 0) {
    std::thread([] {
      SleepMs(100);
      _exit(31);
    }).detach();
    syscall(SYS_exit, 0);
  }
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(31, WEXITSTATUS(status));
}

// What a thread begins with, however many have been before it.
TEST(Thread, EachBeginsAsNew) {
  static thread_local int local = 7;
  sigset_t usr1, old;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  pid_t before = 0;
  for (uint32_t i = 0; i < 200; i++) {
    // Rounding and masks of exceptions come from the maker, as all of the processor's state.
    const uint32_t mxcsr = 0x1f80 | (i % 4) << 13;
    const uint16_t control = static_cast<uint16_t>(0x37f & ~((i % 2) << 8));
    asm volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(mxcsr), "m"(control));
    pthread_sigmask(i % 3 == 0 ? SIG_BLOCK : SIG_UNBLOCK, &usr1, &old);
    bool good = false;
    std::thread([&] {
      uint32_t own_mxcsr;
      uint16_t own_control;
      asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(own_mxcsr), "=m"(own_control));
      EXPECT_EQ(mxcsr, own_mxcsr);
      EXPECT_EQ(control, own_control);
      sigset_t mask;
      pthread_sigmask(SIG_BLOCK, nullptr, &mask);
      EXPECT_EQ(i % 3 == 0 ? 1 : 0, sigismember(&mask, SIGUSR1));
      stack_t stack;
      EXPECT_EQ(0, sigaltstack(nullptr, &stack));
      EXPECT_EQ(SS_DISABLE, stack.ss_flags);
      EXPECT_EQ(7, std::exchange(local, 8));
      EXPECT_NE(before, Gettid());
      before = Gettid();
      static char own[64 << 10];
      stack = {own, 0, sizeof own};
      EXPECT_EQ(0, sigaltstack(&stack, nullptr));
      good = true;
    }).join();
    ASSERT_TRUE(good);
  }
  const uint32_t mxcsr = 0x1f80;
  const uint16_t control = 0x37f;
  asm volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(mxcsr), "m"(control));
  pthread_sigmask(SIG_UNBLOCK, &usr1, nullptr);
}

TEST(Thread, EachHasItsOwnCpuClock) {
  constexpr int64_t kWork = 30'000'000;
  for (int i = 0; i < 10; i++) {
    std::thread([&] {
      const int64_t begin = NowNs(CLOCK_THREAD_CPUTIME_ID);
      EXPECT_GE(begin, 0);
      EXPECT_LT(begin, kWork);
      while (NowNs(CLOCK_THREAD_CPUTIME_ID) < begin + kWork) {
      }
    }).join();
  }
}

// Threads that make threads, and are ended while they do.
void MakeThreads() {
  for (int i = 0; i < 2; i++) {
    std::thread([] {
      for (;;) std::thread([] {}).join();
    }).detach();
  }
}

TEST(Thread, MayEndWithTheProcessWhileTheyAreMade) {
  for (int i = 0; i < 10; i++) {
    EXPECT_EQ(11, ExitStatus([&] {
                MakeThreads();
                usleep(static_cast<useconds_t>(i * 500));
                _exit(11);
                return 0;
              }));
    EXPECT_EQ(21, ExitStatus([&] {
                MakeThreads();
                usleep(static_cast<useconds_t>(i * 500));
                execl("/bin/sh", "sh", "-c", "exit 21", nullptr);
                return 1;
              }));
  }
}

TEST(Thread, MayBeStoppedWhileTheyAreMade) {
  const pid_t pid = fork();
  if (pid == 0) {
    MakeThreads();
    for (;;) pause();
  }
  int status;
  for (int i = 0; i < 50; i++) {
    ASSERT_EQ(0, kill(pid, SIGSTOP));
    ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
    ASSERT_TRUE(WIFSTOPPED(status));
    ASSERT_EQ(0, kill(pid, SIGCONT));
    ASSERT_EQ(pid, waitpid(pid, &status, WCONTINUED));
    ASSERT_TRUE(WIFCONTINUED(status));
  }
  ASSERT_EQ(0, kill(pid, SIGKILL));
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(SIGKILL, WTERMSIG(status));
}

TEST(Thread, AvxStateAcrossSwitchesAndCalls) {
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "the machine lacks AVX2";
  std::atomic<bool> bad{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      alignas(32) uint64_t in[4], out[4];
      for (int i = 0; i < 4; i++) in[i] = 0x0101010101010101ull * (t + 1) + i;
      for (int i = 0; i < 20000 && !bad; i++) {
        asm volatile(
            "vmovdqa %1,%%ymm7\n"
            "mov $140,%%eax\n xor %%edi,%%edi\n xor %%esi,%%esi\n syscall\n"
            "vmovdqa %%ymm7,%0\n"
            : "=m"(out)
            : "m"(in)
            : "rax", "rdi", "rsi", "rcx", "r11", "xmm7", "memory");
        if (memcmp(in, out, sizeof in)) bad = true;
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_FALSE(bad);
}

TEST(Thread, RegistersSurviveSystemCalls) {
  for (int i = 0; i < 1000; i++) {
    uint64_t rbx = 1, r12 = 2, r13 = 3, r14 = 4, r15 = 5, r8 = 6, r9 = 7, r10 = 8, rdx = 9, flags;
    asm volatile(
        "mov %0,%%rbx\n mov %1,%%r12\n mov %2,%%r13\n mov %3,%%r14\n mov %4,%%r15\n"
        "mov %5,%%r8\n mov %6,%%r9\n mov %7,%%r10\n mov %8,%%rdx\n"
        "xor %%edi,%%edi\n xor %%esi,%%esi\n std\n stc\n mov $140,%%eax\n syscall\n"
        "pushfq\n pop %9\n cld\n"
        "mov %%rbx,%0\n mov %%r12,%1\n mov %%r13,%2\n mov %%r14,%3\n mov %%r15,%4\n"
        "mov %%r8,%5\n mov %%r9,%6\n mov %%r10,%7\n mov %%rdx,%8\n"
        : "+m"(rbx), "+m"(r12), "+m"(r13), "+m"(r14), "+m"(r15), "+m"(r8), "+m"(r9), "+m"(r10),
          "+m"(rdx), "=m"(flags)
        :
        : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
          "r15", "memory", "cc");
    ASSERT_EQ(1u, rbx);
    ASSERT_EQ(2u, r12);
    ASSERT_EQ(3u, r13);
    ASSERT_EQ(4u, r14);
    ASSERT_EQ(5u, r15);
    ASSERT_EQ(6u, r8);
    ASSERT_EQ(7u, r9);
    ASSERT_EQ(8u, r10);
    ASSERT_EQ(9u, rdx);
    ASSERT_EQ(0x401u, flags & 0x401u);
  }
}

TEST(Thread, RedZoneIsUntouched) {
  for (int i = 0; i < 1000; i++) {
    uint64_t value = 0;
    asm volatile(
        "movq $0x1234567,-64(%%rsp)\n movq $0x7654321,-128(%%rsp)\n"
        "xor %%edi,%%edi\n xor %%esi,%%esi\n mov $140,%%eax\n syscall\n"
        "mov -64(%%rsp),%0\n add -128(%%rsp),%0\n"
        : "=r"(value)
        :
        : "rax", "rcx", "rdi", "rsi", "r11", "memory");
    ASSERT_EQ(0x1234567u + 0x7654321u, value);
  }
}
