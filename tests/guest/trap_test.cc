// What a program can see of how its system calls are trapped: single steps and signals at every
// instruction, registers, code that reads itself, and calls that only tell about the caller.
#include <sched.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <ucontext.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

#include "guest_util.h"

// Two calls, one with its number right before it, the other with a comparison behind it, and two of
// the same forms that only ask who the caller is, with marked registers around them. Returns the
// number of registers that are not what they were.
extern "C" long guest_calls(long fd, void* buffer);
extern "C" const char guest_calls_begin[], guest_calls_end[];
// read(fd, buf, 1) as libc makes it: 1 if it fails, else 0.
extern "C" long guest_read(long fd, void* buffer);
extern "C" const char guest_read_compare[];
__asm__(R"(
  .text
  .balign 4096
  .fill 256, 1, 0x90
guest_calls_begin:
guest_calls:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rdi, %r12
  mov %rsi, %r13
  mov $0x1111, %ebx
  mov $0x2222, %ebp
  mov $0x3333, %r8d
  mov $0x4444, %r9d
  mov $0x5555, %r10d
  mov $0x6666, %r14d
  mov $0x7777, %r15d
  xor %edi, %edi
  xor %esi, %esi
  mov $8, %edx
  stc
  mov $140, %eax
  syscall
  jnc 9f
  cmp $1, %rax
  jl 9f
  mov %r12, %rdi
  mov %r13, %rsi
  mov $1, %edx
  xor %eax, %eax
  syscall
  cmp $-4095, %rax
  jae 9f
  stc
  mov $186, %eax
  syscall
  jnc 9f
  test %eax, %eax
  jle 9f
  push %rax
  mov $186, %eax
  nop
  syscall
  cmp $-4096, %rax
  pop %rdx
  ja 9f
  cmp %rax, %rdx
  jne 9f
  mov $1, %edx
  xor %eax, %eax
  cmp $0x1111, %rbx
  setne %al
  cmp $0x2222, %rbp
  jne 9f
  cmp $0x3333, %r8
  jne 9f
  cmp $0x4444, %r9
  jne 9f
  cmp $0x5555, %r10
  jne 9f
  cmp $0x6666, %r14
  jne 9f
  cmp $0x7777, %r15
  jne 9f
  cmp %r12, %rdi
  jne 9f
  cmp %r13, %rsi
  jne 9f
  cmp $1, %rdx
  je 8f
9: mov $1, %eax
8: pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
guest_calls_end:

  .balign 64
guest_read:
  mov $1, %edx
  xor %eax, %eax
  syscall
guest_read_compare:
  cmp $-4095, %rax
  jae 1f
  xor %eax, %eax
  ret
1: mov $1, %eax
  ret
)");

namespace {

int ZeroFd() {
  static int fd = open("/dev/zero", O_RDONLY);
  return fd;
}

// So many calls that a site is patched, if sites are patched at all; what has to be looked at first
// gets time for it.
void Warm() {
  char byte;
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 40; i++) {
      ASSERT_EQ(0, guest_calls(ZeroFd(), &byte));
      ASSERT_EQ(0, guest_read(ZeroFd(), &byte));
    }
    SleepMs(15);
  }
}

// ---- Single steps ----

std::vector<uint64_t> g_steps;
void OnStep(int, siginfo_t*, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  if (g_steps.size() < g_steps.capacity()) g_steps.push_back(uc->uc_mcontext.gregs[REG_RIP]);
}

TEST(Trap, SingleStepsThroughCalls) {
  Warm();
  struct sigaction sa = {}, old;
  sa.sa_sigaction = OnStep;
  sa.sa_flags = SA_SIGINFO;
  ASSERT_OK(sigaction(SIGTRAP, &sa, &old));
  char byte = 1;
  for (int i = 0; i < 20; i++) {
    g_steps.clear();
    g_steps.reserve(1000);
    long wrong = 0;
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq" ::: "memory", "cc");
    wrong = guest_calls(ZeroFd(), &byte);
    __asm__ volatile("pushfq; andq $~0x100, (%%rsp); popfq" ::: "memory", "cc");
    EXPECT_EQ(0, wrong);
    // Each step ends at an instruction of ours.
    size_t inside = 0;
    for (uint64_t rip : g_steps) {
      if (rip >= reinterpret_cast<uint64_t>(guest_calls_begin) &&
          rip < reinterpret_cast<uint64_t>(guest_calls_end)) {
        inside++;
      }
      EXPECT_LT(rip, uint64_t{1} << 32) << "a step outside of the program";
    }
    EXPECT_GE(inside, 65u);
    EXPECT_LE(inside, 86u);
  }
  ASSERT_OK(sigaction(SIGTRAP, &old, nullptr));
}

// ---- Signals ----

std::atomic<int> g_alarms{0};
void OnAlarm(int, siginfo_t*, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  if (static_cast<uint64_t>(uc->uc_mcontext.gregs[REG_RIP]) < uint64_t{1} << 47) g_alarms++;
}

TEST(Trap, SignalsAtEveryInstruction) {
  Warm();
  struct sigaction sa = {}, old;
  sa.sa_sigaction = OnAlarm;
  sa.sa_flags = SA_SIGINFO | SA_RESTART;
  ASSERT_OK(sigaction(SIGUSR1, &sa, &old));
  std::atomic<bool> stop{false};
  std::atomic<bool> ready{false};
  std::atomic<pid_t> target{0};
  std::atomic<long> wrong{0};
  std::thread worker([&] {
    target = static_cast<pid_t>(syscall(SYS_gettid));
    char byte = 1;
    ready = true;
    while (!stop) wrong += guest_calls(ZeroFd(), &byte);
  });
  while (!ready) sched_yield();
  int64_t end = NowNs() + 1'000'000'000;
  int sent = 0;
  while (NowNs() < end) {
    ASSERT_OK(syscall(SYS_tgkill, getpid(), target.load(), SIGUSR1));
    for (int i = 0; i < sent % 200; i++) __asm__ volatile("pause");
    sent++;
  }
  stop = true;
  worker.join();
  EXPECT_EQ(0, wrong.load());
  EXPECT_GT(g_alarms.load(), 10);
  ASSERT_OK(sigaction(SIGUSR1, &old, nullptr));
}

// A handler that goes on where it was interrupted by a jump of its own, as threads of user space
// and unwinders do, finds the instruction that the kernel has told it.
uint64_t g_seen_rip;
void JumpBack(int, siginfo_t*, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  const greg_t* r = uc->uc_mcontext.gregs;
  g_seen_rip = r[REG_RIP];
  uint64_t state[4] = {static_cast<uint64_t>(r[REG_RSP]), static_cast<uint64_t>(r[REG_EFL]),
                       static_cast<uint64_t>(r[REG_RAX]), static_cast<uint64_t>(r[REG_RIP])};
  static uint64_t saved[4];
  memcpy(saved, state, sizeof saved);
  __asm__ volatile(
      "mov %c[rbp](%%rdx), %%rbp\n\t"
      "mov %c[rbx](%%rdx), %%rbx\n\t"
      "mov %c[r12](%%rdx), %%r12\n\t"
      "mov %c[r13](%%rdx), %%r13\n\t"
      "mov %c[r14](%%rdx), %%r14\n\t"
      "mov %c[r15](%%rdx), %%r15\n\t"
      "mov 0(%%rcx), %%rsp\n\t"
      "mov 16(%%rcx), %%rax\n\t"
      "pushq 8(%%rcx)\n\t"
      "popfq\n\t"
      "jmp *24(%%rcx)"
      :
      : "c"(saved), "d"(r), [rbp] "i"(REG_RBP * 8), [rbx] "i"(REG_RBX * 8), [r12] "i"(REG_R12 * 8),
        [r13] "i"(REG_R13 * 8), [r14] "i"(REG_R14 * 8), [r15] "i"(REG_R15 * 8)
      : "memory");
  __builtin_unreachable();
}

// Interrupted `kTimes` while it waits for a pipe, in `state`, which counts those that it was.
constexpr int kTimes = 5;
int JumpsBack(std::atomic<int>* state) {
  struct sigaction sa = {};
  sa.sa_sigaction = JumpBack;
  sa.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGUSR1, &sa, nullptr) != 0) return 1;
  int p[2];
  if (pipe(p) != 0) return 2;
  for (int i = 0; i < kTimes; i++) {
    ++*state;
    char byte;
    if (guest_read(p[0], &byte) != 1) return 3;  // EINTR
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
  }
  uint64_t compare = reinterpret_cast<uint64_t>(guest_read_compare);
  return g_seen_rip >= compare && g_seen_rip <= compare + 6 ? 0 : 4;
}

TEST(Trap, JumpToWhereACallWasInterrupted) {
  Warm();
  void* shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, shared);
  auto* state = new (shared) std::atomic<int>(0);
  // In a child, whose state may be odd afterwards.
  pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const int result = JumpsBack(state);
    *state = kTimes;
    _exit(result);
  }
  for (int i = 1; i <= kTimes; i++) {
    while (*state < i) sched_yield();
    WaitUntilAsleep(child);
    ASSERT_OK(kill(child, SIGUSR1));
  }
  int status;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  ASSERT_OK(munmap(shared, 4096));
}

// ---- The text itself ----

TEST(Trap, WritableTextReadsAsTheFileDoes) {
  Warm();
  auto* page = reinterpret_cast<char*>(reinterpret_cast<uint64_t>(guest_calls_begin) & ~4095ull);
  EXPECT_EQ(0, ExitStatus([page] {
              char byte;
              if (mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) return 1;
              const auto* code = reinterpret_cast<const unsigned char*>(guest_read);
              const unsigned char want[] = {0xba, 1,    0,    0, 0,    0x31, 0xc0, 0x0f,
                                            0x05, 0x48, 0x3d, 1, 0xf0, 0xff, 0xff};
              if (memcmp(code, want, sizeof want) != 0) return 2;
              if (guest_calls(ZeroFd(), &byte) != 0 || guest_read(ZeroFd(), &byte) != 0) return 3;
              if (mprotect(page, 8192, PROT_READ | PROT_EXEC) != 0) return 4;
              for (int i = 0; i < 100; i++) {
                if (guest_calls(ZeroFd(), &byte) != 0 || guest_read(ZeroFd(), &byte) != 0) return 5;
              }
              return 0;
            }));
}

TEST(Trap, DiscardedTextGoesOn) {
  Warm();
  auto* page = reinterpret_cast<char*>(reinterpret_cast<uint64_t>(guest_calls_begin) & ~4095ull);
  char byte;
  for (int i = 0; i < 10; i++) {
    ASSERT_OK(madvise(page, 4096, MADV_DONTNEED));
    ASSERT_OK(msync(page, 4096, MS_ASYNC));
    EXPECT_EQ(0, guest_calls(ZeroFd(), &byte));
    EXPECT_EQ(0, guest_read(ZeroFd(), &byte));
  }
}

TEST(Trap, MapsNameTheFile) {
  Warm();
  struct stat st;
  ASSERT_OK(stat("/proc/self/exe", &st));
  char exe[4096] = {};
  ASSERT_OK(readlink("/proc/self/exe", exe, sizeof exe - 1));
  std::string maps = ReadFile("/proc/self/maps");
  uint64_t text = reinterpret_cast<uint64_t>(guest_calls_begin);
  bool found = false;
  for (size_t at = 0; at < maps.size();) {
    std::string line = maps.substr(at, maps.find('\n', at) - at);
    at += line.size() + 1;
    unsigned long lo, hi, offset, inode;
    char prot[8], dev[32], path[4096] = {};
    int n = sscanf(line.c_str(), "%lx-%lx %7s %lx %31s %lu %4095s", &lo, &hi, prot, &offset, dev,
                   &inode, path);
    if (n < 6 || text < lo || text >= hi) continue;
    found = true;
    EXPECT_EQ(st.st_ino, inode);
    EXPECT_STREQ(exe, path);
    EXPECT_STREQ("r-xp", prot);
  }
  EXPECT_TRUE(found);
}

// ---- Calls that only tell about the caller ----

TEST(Trap, ClocksByCallAgreeWithTheVdso) {
  for (clockid_t clock : {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW,
                          CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME}) {
    timespec before, by_call, after;
    clock_gettime(clock, &before);
    ASSERT_OK(syscall(SYS_clock_gettime, clock, &by_call));
    clock_gettime(clock, &after);
    auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000l + t.tv_nsec; };
    EXPECT_LE(ns(before), ns(by_call)) << clock;
    EXPECT_LE(ns(by_call), ns(after)) << clock;
    EXPECT_ERRNO(syscall(SYS_clock_gettime, clock, BadAddress()), EFAULT);
  }
  EXPECT_ERRNO(syscall(SYS_clock_gettime, 99, BadAddress()), EINVAL);
  timeval tv = {}, tv2;
  ASSERT_OK(syscall(SYS_gettimeofday, &tv, nullptr));
  gettimeofday(&tv2, nullptr);
  EXPECT_LE(tv2.tv_sec - tv.tv_sec, 1);
  EXPECT_ERRNO(syscall(SYS_gettimeofday, BadAddress(), nullptr), EFAULT);
  EXPECT_OK(syscall(SYS_gettimeofday, nullptr, nullptr));
  time_t t = 0;
  EXPECT_EQ(syscall(SYS_time, &t), t);
  EXPECT_LE(labs(t - tv2.tv_sec), 1);
  EXPECT_ERRNO(syscall(SYS_time, BadAddress()), EFAULT);
  unsigned cpu = 9999, node = 9999;
  ASSERT_OK(syscall(SYS_getcpu, &cpu, &node, nullptr));
  EXPECT_LT(cpu, static_cast<unsigned>(sysconf(_SC_NPROCESSORS_CONF)));
  EXPECT_LT(node, 64u);
  EXPECT_OK(syscall(SYS_getcpu, nullptr, nullptr, nullptr));
  EXPECT_ERRNO(syscall(SYS_getcpu, BadAddress(), nullptr, nullptr), EFAULT);
}

TEST(Trap, ParentIsToldWhenItChanges) {
  int p[2], looked[2];
  ASSERT_OK(pipe(p));
  ASSERT_OK(pipe(looked));
  ASSERT_OK(prctl(PR_SET_CHILD_SUBREAPER, 1));
  pid_t middle = fork();
  if (middle == 0) {
    pid_t self = getpid();
    if (fork() == 0) {
      for (int i = 0; i < 10; i++) {
        if (getppid() != self) _exit(1);
      }
      if (write(looked[1], "x", 1) != 1) _exit(3);
      while (getppid() == self) {
      }
      pid_t parent = getppid();
      _exit(write(p[1], &parent, sizeof parent) == sizeof parent ? 0 : 2);
    }
    char byte;
    _exit(read(looked[0], &byte, 1) == 1 ? 0 : 1);
  }
  pid_t parent = 0;
  ASSERT_EQ(static_cast<ssize_t>(sizeof parent), read(p[0], &parent, sizeof parent));
  EXPECT_EQ(getpid(), parent);
  while (wait(nullptr) > 0) {
  }
  ASSERT_OK(prctl(PR_SET_CHILD_SUBREAPER, 0));
}

long Mask(int how, const void* set, void* old, size_t size = 8) {
  return syscall(SYS_rt_sigprocmask, how, set, old, size);
}

TEST(Trap, SigprocmaskErrors) {
  uint64_t none = 0, usr1 = 1ull << (SIGUSR1 - 1), old = 77;
  ASSERT_OK(Mask(SIG_SETMASK, &none, nullptr));
  EXPECT_ERRNO(Mask(SIG_BLOCK, BadAddress(), nullptr), EFAULT);
  EXPECT_ERRNO(Mask(99, &usr1, nullptr), EINVAL);
  EXPECT_ERRNO(Mask(99, BadAddress(), nullptr), EFAULT);
  EXPECT_OK(Mask(99, nullptr, &old));
  EXPECT_EQ(0u, old);
  EXPECT_ERRNO(Mask(SIG_BLOCK, &usr1, nullptr, 4), EINVAL);
  // The mask is set before the old one cannot be told.
  EXPECT_ERRNO(Mask(SIG_BLOCK, &usr1, BadAddress()), EFAULT);
  EXPECT_OK(Mask(SIG_BLOCK, nullptr, &old));
  EXPECT_EQ(usr1, old);
  uint64_t all = ~0ull;
  EXPECT_OK(Mask(SIG_SETMASK, &all, nullptr));
  EXPECT_OK(Mask(SIG_UNBLOCK, &usr1, &old));
  EXPECT_EQ(~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)), old);
  EXPECT_OK(Mask(SIG_SETMASK, &none, &old));
  EXPECT_EQ(~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1) | usr1), old);
}

long Action(int signo, const void* action, void* old, size_t size = 8) {
  return syscall(SYS_rt_sigaction, signo, action, old, size);
}
struct KernelAction {
  uint64_t handler, flags, restorer, mask;
};

TEST(Trap, SigactionErrorsAndValues) {
  KernelAction set = {1, ~0ull, 0x1234, ~0ull}, old = {}, first = {};
  ASSERT_OK(Action(SIGUSR1, nullptr, &first));
  for (int i = 0; i < 3; i++) {
    EXPECT_ERRNO(Action(SIGUSR1, BadAddress(), nullptr), EFAULT);
    EXPECT_ERRNO(Action(0, &set, nullptr), EINVAL);
    EXPECT_ERRNO(Action(65, nullptr, &old), EINVAL);
    EXPECT_ERRNO(Action(-1, BadAddress(), nullptr), EFAULT);
    EXPECT_ERRNO(Action(SIGKILL, &set, nullptr), EINVAL);
    EXPECT_OK(Action(SIGKILL, nullptr, &old));
    EXPECT_EQ(0u, old.handler);
    EXPECT_ERRNO(Action(SIGUSR1, &set, nullptr, 4), EINVAL);
    EXPECT_OK(Action(SIGUSR1, &set, &old));
    // It is set before the old one cannot be told.
    EXPECT_ERRNO(Action(SIGUSR1, &set, BadAddress()), EFAULT);
    EXPECT_OK(Action(SIGUSR1, nullptr, &old));
    EXPECT_EQ(1u, old.handler);
    EXPECT_EQ(0x1234u, old.restorer);
    EXPECT_EQ(0xdc000000u, old.flags & 0xfc000000u);
    EXPECT_EQ(0u, old.flags >> 32);
    EXPECT_EQ(~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)), old.mask);
    EXPECT_OK(Action(64, nullptr, &old));
  }
  ASSERT_OK(Action(SIGUSR1, &first, nullptr));
}

int g_which = 0;
void FirstHandler(int) { g_which = 1; }
void SecondHandler(int) { g_which = 2; }

// What a process has set is what counts, however it was set, for others' signals too and for a
// child.
TEST(Trap, SigactionHoldsForOthers) {
  for (int i = 0; i < 50; i++) {
    for (auto handler : {FirstHandler, SecondHandler}) {
      struct sigaction sa = {}, old;
      sa.sa_handler = handler;
      sa.sa_flags = SA_RESTART;
      ASSERT_OK(sigaction(SIGUSR1, &sa, nullptr));
      ASSERT_OK(sigaction(SIGUSR1, nullptr, &old));
      EXPECT_TRUE(old.sa_handler == handler);
      g_which = 0;
      pid_t self = getpid();
      ASSERT_EQ(0, ExitStatus([self, handler] {
                  struct sigaction inherited;
                  sigaction(SIGUSR1, nullptr, &inherited);
                  if (inherited.sa_handler != handler) return 1;
                  return kill(self, SIGUSR1) == 0 ? 0 : 2;
                }));
      EXPECT_EQ(handler == FirstHandler ? 1 : 2, g_which);
    }
  }
  // Ignored, in a process that asks for nothing else before it is sent: dropped.
  signal(SIGUSR1, SIG_IGN);
  g_which = 0;
  ASSERT_OK(kill(getpid(), SIGUSR1));
  EXPECT_EQ(0, g_which);
  // Ignoring throws away what is pending.
  signal(SIGUSR1, FirstHandler);
  uint64_t usr1 = 1ull << (SIGUSR1 - 1), none = 0;
  ASSERT_OK(Mask(SIG_BLOCK, &usr1, nullptr));
  ASSERT_OK(kill(getpid(), SIGUSR1));
  signal(SIGUSR1, SIG_IGN);
  signal(SIGUSR1, FirstHandler);
  ASSERT_OK(Mask(SIG_SETMASK, &none, nullptr));
  EXPECT_EQ(0, g_which);
  // Children of a process that ignores SIGCHLD reap themselves.
  struct sigaction sa = {}, old;
  ASSERT_OK(sigaction(SIGCHLD, nullptr, &old));
  signal(SIGCHLD, SIG_IGN);
  pid_t child = fork();
  if (child == 0) _exit(0);
  EXPECT_ERRNO(waitpid(child, nullptr, 0), ECHILD);
  ASSERT_OK(sigaction(SIGCHLD, &old, nullptr));
  // A thread's change is the process's.
  std::thread([] { signal(SIGUSR1, SecondHandler); }).join();
  ASSERT_OK(sigaction(SIGUSR1, nullptr, &sa));
  EXPECT_TRUE(sa.sa_handler == SecondHandler);
  std::thread([] { signal(SIGUSR1, SIG_DFL); }).join();
  ASSERT_OK(sigaction(SIGUSR1, nullptr, &sa));
  EXPECT_TRUE(sa.sa_handler == SIG_DFL);
}

std::atomic<int> g_taken{0};
std::atomic<bool> g_blocked{false}, g_early{false};
void OnCounted(int) {
  g_taken++;
  if (g_blocked) g_early = true;
}

// Signals come from another process while this one blocks and unblocks them all the time: none is
// lost, and none comes while it is blocked.
TEST(Trap, NoSignalIsLostWhileTheMaskChanges) {
  signal(SIGUSR2, OnCounted);
  g_taken = 0;
  int p[2];
  ASSERT_OK(pipe(p));
  pid_t parent = getpid();
  constexpr int kSignals = 500;
  pid_t child = fork();
  if (child == 0) {
    char byte;
    for (int i = 0; i < kSignals; i++) {
      kill(parent, SIGUSR2);
      if (read(p[0], &byte, 1) != 1) _exit(1);
    }
    _exit(0);
  }
  uint64_t usr2 = 1ull << (SIGUSR2 - 1), none = 0, old;
  int64_t deadline = NowNs() + 60'000'000'000;
  for (int seen = 0; seen < kSignals && NowNs() < deadline;) {
    ASSERT_OK(Mask(SIG_BLOCK, &usr2, nullptr));
    g_blocked = true;
    for (int i = 0; i < 3; i++) ASSERT_OK(Mask(SIG_BLOCK, nullptr, &old));
    ASSERT_EQ(usr2, old);
    g_blocked = false;
    ASSERT_OK(Mask(SIG_SETMASK, &none, &old));
    ASSERT_EQ(usr2, old);
    if (g_taken > seen) {
      seen++;
      ASSERT_EQ(seen, g_taken);
      ASSERT_EQ(1, write(p[1], "x", 1));
    }
  }
  int status;
  kill(child, SIGKILL);
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(kSignals, g_taken.load());
  EXPECT_FALSE(g_early.load());
}

// A signal to the process goes to the thread that does not block it, whoever has changed its mask
// last.
TEST(Trap, ProcessSignalFindsTheOpenThread) {
  signal(SIGUSR2, OnCounted);
  uint64_t usr2 = 1ull << (SIGUSR2 - 1), none = 0;
  for (int i = 0; i < 50; i++) {
    g_taken = 0;
    g_blocked = false;
    ASSERT_OK(Mask(SIG_BLOCK, &usr2, nullptr));
    std::atomic<int> stage{0};
    std::thread other([&] {
      Mask(SIG_SETMASK, &none, nullptr);
      stage = 1;
      int64_t end = NowNs() + 5'000'000'000;
      while (g_taken == 0 && NowNs() < end) {
      }
    });
    while (stage == 0) {
    }
    ASSERT_OK(kill(getpid(), SIGUSR2));
    other.join();
    EXPECT_EQ(1, g_taken.load());
    ASSERT_OK(Mask(SIG_SETMASK, &none, nullptr));
    EXPECT_EQ(1, g_taken.load());
  }
}

// ---- All of it again in processes that come later ----

TEST(Trap, LaterProcesses) {
  // Long enough after this program was written that what is known of it may be kept.
  struct stat st;
  ASSERT_OK(stat("/proc/self/exe", &st));
  while (NowNs(CLOCK_REALTIME) - (st.st_ctim.tv_sec * 1'000'000'000l + st.st_ctim.tv_nsec) <
         2'500'000'000) {
    SleepMs(50);
  }
  for (int i = 0; i < 2; i++) {
    pid_t pid = fork();
    if (pid == 0) {
      if (dup2(STDERR_FILENO, STDOUT_FILENO) < 0) _exit(126);
      execl("/proc/self/exe", "trap", "--gtest_brief=1", "--gtest_filter=-*LaterProcesses",
            nullptr);
      _exit(127);
    }
    int status = -1;
    ASSERT_EQ(pid, waitpid(pid, &status, 0));
    EXPECT_EQ(0, status) << "run " << i;
    SleepMs(100);
  }
}

}  // namespace
