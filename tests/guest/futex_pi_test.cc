// Futexes with owners, ends of waits, membarrier and rseq.
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

#include "guest_util.h"

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

namespace {

long Futex(void* addr, int op, uint32_t value, const void* timeout = nullptr, void* addr2 = nullptr,
           uint32_t value3 = 0) {
  return syscall(SYS_futex, addr, op, value, timeout, addr2, value3);
}
uint32_t Gettid() { return static_cast<uint32_t>(syscall(SYS_gettid)); }

timespec At(clockid_t clock, int ms) {
  int64_t ns = NowNs(clock) + ms * 1000000LL;
  return {ns / 1000000000, ns % 1000000000};
}

using Word = std::atomic<uint32_t>;

void WaitForWaiters(Word& word) {
  while (!(word & FUTEX_WAITERS)) SleepMs(1);
  SleepMs(20);
}

TEST(FutexPi, LockUnlockWithoutWaiters) {
  Word word{0};
  EXPECT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
  EXPECT_EQ(Gettid(), word & FUTEX_TID_MASK);
  EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0), EDEADLK);
  EXPECT_ERRNO(Futex(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0), EDEADLK);
  EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
  EXPECT_EQ(0u, word);
  EXPECT_ERRNO(Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0), EPERM);
  EXPECT_EQ(0, Futex(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0));
  EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
}

TEST(FutexPi, BadArguments) {
  Word word{0};
  EXPECT_ERRNO(Futex(reinterpret_cast<char*>(&word) + 1, FUTEX_LOCK_PI_PRIVATE, 0), EINVAL);
  EXPECT_ERRNO(Futex(BadAddress(), FUTEX_LOCK_PI_PRIVATE, 0), EFAULT);
  EXPECT_ERRNO(Futex(BadAddress(), FUTEX_UNLOCK_PI_PRIVATE, 0), EFAULT);
  word = 0x3ffffffe;  // nobody's id
  EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0), ESRCH);
  EXPECT_ERRNO(Futex(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0), ESRCH);
  word = 0;
  timespec bad{0, 1000000000};
  EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0, &bad), EINVAL);
  EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0, BadAddress()), EFAULT);
  EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI | FUTEX_CLOCK_REALTIME, 0), ENOSYS);
}

TEST(FutexPi, HandsOverInTurn) {
  Word word{0};
  int order[3], next = 0;
  ASSERT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; i++) {
    threads.emplace_back([&, i] {
      EXPECT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
      EXPECT_EQ(Gettid(), word & FUTEX_TID_MASK);
      order[next++] = i;
      EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
    });
    WaitForWaiters(word);
  }
  EXPECT_ERRNO(Futex(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0), EDEADLK);
  std::thread([&] { EXPECT_ERRNO(Futex(&word, FUTEX_TRYLOCK_PI_PRIVATE, 0), EAGAIN); }).join();
  EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
  for (auto& t : threads) t.join();
  for (int i = 0; i < 3; i++) EXPECT_EQ(i, order[i]);
  EXPECT_EQ(0u, word & FUTEX_TID_MASK);
}

TEST(FutexPi, TimesOut) {
  Word word{0};
  ASSERT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
  std::thread([&] {
    timespec at = At(CLOCK_REALTIME, 30);
    int64_t start = NowNs();
    EXPECT_ERRNO(Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0, &at), ETIMEDOUT);
    EXPECT_GE(NowNs() - start, 25000000);
    at = At(CLOCK_MONOTONIC, 30);
    long r = Futex(&word, FUTEX_LOCK_PI2 | FUTEX_PRIVATE_FLAG, 0, &at);
    EXPECT_EQ(-1, r);
    EXPECT_EQ(ETIMEDOUT, errno);
  }).join();
  EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
}

TEST(FutexPi, SeesDeadlocksOfTwo) {
  Word a{0}, b{0};
  ASSERT_EQ(0, Futex(&a, FUTEX_LOCK_PI_PRIVATE, 0));
  std::thread other([&] {
    EXPECT_EQ(0, Futex(&b, FUTEX_LOCK_PI_PRIVATE, 0));
    EXPECT_EQ(0, Futex(&a, FUTEX_LOCK_PI_PRIVATE, 0));
    EXPECT_EQ(0, Futex(&a, FUTEX_UNLOCK_PI_PRIVATE, 0));
    EXPECT_EQ(0, Futex(&b, FUTEX_UNLOCK_PI_PRIVATE, 0));
  });
  WaitForWaiters(a);
  EXPECT_ERRNO(Futex(&b, FUTEX_LOCK_PI_PRIVATE, 0), EDEADLK);
  EXPECT_EQ(0, Futex(&a, FUTEX_UNLOCK_PI_PRIVATE, 0));
  other.join();
}

TEST(FutexPi, OwnerDies) {
  Word word{0};
  std::atomic<bool> go{false};
  std::thread owner([&] {
    EXPECT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
    while (!go) SleepMs(1);
  });
  while (word == 0) SleepMs(1);
  std::thread waiter([&] {
    EXPECT_EQ(0, Futex(&word, FUTEX_LOCK_PI_PRIVATE, 0));
    EXPECT_EQ(Gettid(), word & FUTEX_TID_MASK);
    EXPECT_TRUE(word & FUTEX_OWNER_DIED);
    EXPECT_EQ(0, Futex(&word, FUTEX_UNLOCK_PI_PRIVATE, 0));
  });
  WaitForWaiters(word);
  go = true;
  owner.join();
  waiter.join();
}

TEST(FutexPi, SharedBetweenProcesses) {
  auto* word = static_cast<Word*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(0, Futex(word, FUTEX_LOCK_PI, 0));
  pid_t child = fork();
  if (child == 0) {
    if (Futex(word, FUTEX_LOCK_PI, 0) != 0) _exit(1);
    if ((*word & FUTEX_TID_MASK) != Gettid()) _exit(2);
    _exit(Futex(word, FUTEX_UNLOCK_PI, 0) == 0 ? 0 : 3);
  }
  WaitForWaiters(*word);
  EXPECT_EQ(0, Futex(word, FUTEX_UNLOCK_PI, 0));
  int status;
  waitpid(child, &status, 0);
  EXPECT_EQ(0, status);
}

TEST(FutexPi, PthreadMutexes) {
  pthread_mutexattr_t attr;
  pthread_mutexattr_init(&attr);
  ASSERT_EQ(0, pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT));
  ASSERT_EQ(0, pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST));
  pthread_mutex_t mutex;
  ASSERT_EQ(0, pthread_mutex_init(&mutex, &attr));
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&] {
      for (int j = 0; j < 2000; j++) {
        EXPECT_EQ(0, pthread_mutex_lock(&mutex));
        count++;
        EXPECT_EQ(0, pthread_mutex_unlock(&mutex));
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(8000, count);
  std::thread([&] { pthread_mutex_lock(&mutex); }).join();
  EXPECT_EQ(EOWNERDEAD, pthread_mutex_lock(&mutex));
  EXPECT_EQ(0, pthread_mutex_consistent(&mutex));
  EXPECT_EQ(0, pthread_mutex_unlock(&mutex));
}

TEST(FutexPi, Requeue) {
  Word cond{0}, lock{0};
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; i++) {
    threads.emplace_back([&] {
      EXPECT_EQ(0, Futex(&cond, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, nullptr, &lock));
      EXPECT_EQ(Gettid(), lock & FUTEX_TID_MASK);
      done++;
      EXPECT_EQ(0, Futex(&lock, FUTEX_UNLOCK_PI_PRIVATE, 0));
    });
  }
  SleepMs(100);
  EXPECT_ERRNO(Futex(&cond, FUTEX_CMP_REQUEUE_PI_PRIVATE, 2, nullptr, &lock, 0), EINVAL);
  EXPECT_ERRNO(Futex(&cond, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, nullptr, &lock, 5), EAGAIN);
  EXPECT_ERRNO(Futex(&cond, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, nullptr, &cond, 0), EINVAL);
  ASSERT_EQ(0, Futex(&lock, FUTEX_LOCK_PI_PRIVATE, 0));
  EXPECT_EQ(3,
            Futex(&cond, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, reinterpret_cast<void*>(10), &lock, 0));
  SleepMs(30);
  EXPECT_EQ(0, done);
  EXPECT_EQ(0, Futex(&lock, FUTEX_UNLOCK_PI_PRIVATE, 0));
  for (auto& t : threads) t.join();
  EXPECT_EQ(3, done);
  timespec at = At(CLOCK_MONOTONIC, 20);
  EXPECT_ERRNO(Futex(&cond, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, &at, &lock), ETIMEDOUT);
  EXPECT_ERRNO(Futex(&cond, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 1, &at, &lock), EAGAIN);
}

volatile sig_atomic_t g_signals;

TEST(Futex, StopDoesNotRestartARelativeTimeout) {
  pid_t child = fork();
  if (child == 0) {
    Word word{0};
    timespec t{1, 0};
    long r = Futex(&word, FUTEX_WAIT_PRIVATE, 0, &t);
    _exit(r == -1 && errno == ETIMEDOUT ? 0 : 1);
  }
  int64_t start = NowNs();
  SleepMs(700);
  kill(child, SIGSTOP);
  int status;
  waitpid(child, &status, WUNTRACED);
  kill(child, SIGCONT);
  waitpid(child, &status, 0);
  EXPECT_EQ(0, status);
  int64_t ms = (NowNs() - start) / 1000000;
  EXPECT_GE(ms, 990);
  EXPECT_LT(ms, 1500);
}

TEST(Futex, HandlerEndsATimedWait) {
  struct sigaction action {};
  action.sa_handler = [](int) { g_signals = g_signals + 1; };
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  pthread_t self = pthread_self();
  std::thread sender([&] {
    WaitUntilAsleep(getpid());
    pthread_kill(self, SIGUSR1);
  });
  Word word{0};
  timespec t{5, 0};
  EXPECT_ERRNO(Futex(&word, FUTEX_WAIT_PRIVATE, 0, &t), EINTR);
  sender.join();
  EXPECT_EQ(1, g_signals);
}

long Membarrier(int command, unsigned flags = 0, int cpu = 0) {
  return syscall(SYS_membarrier, command, flags, cpu);
}

TEST(Membarrier, Commands) {
  EXPECT_ERRNO(Membarrier(MEMBARRIER_CMD_QUERY, 1), EINVAL);
  long mask = Membarrier(MEMBARRIER_CMD_QUERY);
  ASSERT_GT(mask, 0);
  EXPECT_ERRNO(Membarrier(MEMBARRIER_CMD_GLOBAL | MEMBARRIER_CMD_PRIVATE_EXPEDITED), EINVAL);
  EXPECT_ERRNO(Membarrier(1 << 20), EINVAL);
  if (mask & MEMBARRIER_CMD_GLOBAL) EXPECT_EQ(0, Membarrier(MEMBARRIER_CMD_GLOBAL));
  if (mask & MEMBARRIER_CMD_GLOBAL_EXPEDITED) {
    EXPECT_EQ(0, Membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED));
    EXPECT_EQ(0, Membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED));
  }
  ASSERT_TRUE(mask & MEMBARRIER_CMD_PRIVATE_EXPEDITED);
  EXPECT_EQ(0, ExitStatus([] {
              if (Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != -1 || errno != EPERM) return 1;
              if (Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0) return 2;
              for (int i = 0; i < 100; i++) {
                if (Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) != 0) return 3;
              }
              return 0;
            }));
}

// The store buffers of two threads: with a barrier by one of them both cannot read zero.
TEST(Membarrier, OrdersTheOtherThreads) {
  ASSERT_EQ(0, Membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
  for (int round = 0; round < 300; round++) {
    std::atomic<int> x{0}, y{0};
    int r1 = -1, r2 = -1;
    std::thread fast([&] {
      x.store(1, std::memory_order_relaxed);
      __asm__ volatile("" ::: "memory");
      r1 = y.load(std::memory_order_relaxed);
    });
    y.store(1, std::memory_order_relaxed);
    Membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    r2 = x.load(std::memory_order_relaxed);
    fast.join();
    EXPECT_FALSE(r1 == 0 && r2 == 0);
  }
}

struct alignas(32) Rseq {
  uint32_t cpu_id_start, cpu_id;
  uint64_t rseq_cs;
  uint32_t flags, node_id, mm_cid, pad;
};
static_assert(sizeof(Rseq) == 32);

constexpr uint32_t kSignature = 0x53053053;
long RseqCall(void* area, uint32_t length, int flags, uint32_t signature) {
  return syscall(SYS_rseq, area, length, flags, signature);
}

// glibc has registered for the first thread; a raw thread has nothing yet.
int RseqChild(void*) {
  static Rseq area;
  area.cpu_id = static_cast<uint32_t>(-1);
  if (RseqCall(&area, 31, 0, kSignature) != -1 || errno != EINVAL) return 1;
  if (RseqCall(&area, 32, 2, kSignature) != -1 || errno != EINVAL) return 2;
  if (RseqCall(reinterpret_cast<char*>(&area) + 8, 32, 0, kSignature) != -1) return 3;
  if (RseqCall(&area, 32, 1, kSignature) != -1 || errno != EINVAL) return 4;
  if (RseqCall(&area, 32, 0, kSignature) != 0) return 5;
  if (static_cast<int>(area.cpu_id) < 0) return 6;
  if (RseqCall(&area, 32, 0, kSignature) != -1 || errno != EBUSY) return 7;
  if (RseqCall(&area, 32, 0, 1) != -1 || errno != EPERM) return 8;
  cpu_set_t one;
  for (int cpu = 0; cpu < 2; cpu++) {
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) break;
  }
  if (RseqCall(&area, 32, 1, 1) != -1 || errno != EPERM) return 9;
  if (RseqCall(&area, 32, 1, kSignature) != 0) return 10;
  if (static_cast<int>(area.cpu_id) >= 0) return 11;
  return 0;
}

TEST(Rseq, Registration) {
  static char stack[65536] alignas(16);
  int pid = clone(RseqChild, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
  ASSERT_GT(pid, 0);
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status) << WEXITSTATUS(status);
}

// Counts with a restartable sequence and counts its aborts; signals must abort it.
struct Counter {
  uint64_t aborts, done;
};

struct RseqCs {
  uint32_t version, flags;
  uint64_t start, length, abort;
} __attribute__((aligned(32)));

int RseqSection(void* arg) {
  static Rseq area;
  static RseqCs cs;
  if (RseqCall(&area, 32, 0, kSignature) != 0) return 1;
  auto* ready = static_cast<std::atomic<int>*>(arg);
  uint64_t aborted = 0;
  __asm__ volatile(
      "lea 1f(%%rip), %%rax\n\t"
      "mov %%rax, 8(%[cs])\n\t"
      "lea 2f(%%rip), %%rcx\n\t"
      "sub %%rax, %%rcx\n\t"
      "mov %%rcx, 16(%[cs])\n\t"
      "lea 3f(%%rip), %%rcx\n\t"
      "mov %%rcx, 24(%[cs])\n\t"
      "mov %[cs], 8(%[area])\n\t"
      "movl $1, (%[ready])\n\t"
      "1: pause\n\t"  // until something aborts it
      "jmp 1b\n\t"
      "2:\n\t"
      "jmp 4f\n\t"
      ".long 0x53053053\n\t"
      "3: mov $1, %[aborted]\n\t"
      "4:\n\t"
      : [aborted] "+r"(aborted)
      : [cs] "r"(&cs), [area] "r"(&area), [ready] "r"(ready)
      : "rax", "rcx", "memory");
  return aborted == 1 && area.rseq_cs == 0 ? 0 : 2;
}

TEST(Rseq, CriticalSectionsAreAborted) {
  static char stack[65536] alignas(16);
  static std::atomic<int> ready{0};
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
  int pid = clone(RseqSection, stack + sizeof stack, CLONE_VM | SIGCHLD, &ready);
  ASSERT_GT(pid, 0);
  while (!ready) SleepMs(1);
  SleepMs(20);
  kill(pid, SIGUSR1);
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status) << WEXITSTATUS(status);
}

}  // namespace
