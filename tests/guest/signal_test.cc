// Signals: delivery, masks, queues, alternate stacks, restart, default actions, faults.
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>

#include "guest_util.h"

namespace {
volatile sig_atomic_t g_count;
siginfo_t g_info;
uintptr_t g_stack_in_handler;

void Count(int) { g_count = g_count + 1; }
void Info(int, siginfo_t* info, void*) {
  g_info = *info;
  g_count = g_count + 1;
  g_stack_in_handler = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
}
void Install(int signo, void (*handler)(int), int flags = 0) {
  struct sigaction sa {};
  sa.sa_handler = handler;
  sa.sa_flags = flags;
  ASSERT_EQ(0, sigaction(signo, &sa, nullptr));
}
void InstallInfo(int signo, int flags = 0) {
  struct sigaction sa {};
  sa.sa_sigaction = Info;
  sa.sa_flags = SA_SIGINFO | flags;
  ASSERT_EQ(0, sigaction(signo, &sa, nullptr));
}
sigjmp_buf g_jump;
}  // namespace

TEST(Signal, RaiseRunsHandler) {
  g_count = 0;
  Install(SIGUSR1, Count);
  raise(SIGUSR1);
  EXPECT_EQ(1, g_count);
}

TEST(Signal, KillSetsSiginfo) {
  g_count = 0;
  InstallInfo(SIGUSR1);
  kill(getpid(), SIGUSR1);
  EXPECT_EQ(1, g_count);
  EXPECT_EQ(SI_USER, g_info.si_code);
  EXPECT_EQ(getpid(), g_info.si_pid);
  EXPECT_EQ(getuid(), g_info.si_uid);
}

TEST(Signal, QueueCarriesValue) {
  g_count = 0;
  InstallInfo(SIGRTMIN);
  sigval value;
  value.sival_int = 1234;
  ASSERT_OK(sigqueue(getpid(), SIGRTMIN, value));
  EXPECT_EQ(1, g_count);
  EXPECT_EQ(SI_QUEUE, g_info.si_code);
  EXPECT_EQ(1234, g_info.si_value.sival_int);
}

TEST(Signal, BlockedIsPendingUntilUnblocked) {
  g_count = 0;
  Install(SIGUSR1, Count);
  sigset_t set, old, pending;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, &old);
  raise(SIGUSR1);
  raise(SIGUSR1);
  EXPECT_EQ(0, g_count);
  sigpending(&pending);
  EXPECT_TRUE(sigismember(&pending, SIGUSR1));
  sigprocmask(SIG_SETMASK, &old, nullptr);
  EXPECT_EQ(1, g_count);  // a standard signal is pending once
}

TEST(Signal, RealTimeQueuesInOrder) {
  g_count = 0;
  static std::atomic<int> order[4];
  struct sigaction sa {};
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    order[g_count] = info->si_value.sival_int;
    g_count = g_count + 1;
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGRTMIN + 1, &sa, nullptr);
  sigaction(SIGRTMIN + 2, &sa, nullptr);
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  sigaddset(&set, SIGRTMIN + 2);
  sigprocmask(SIG_BLOCK, &set, &old);
  for (int i = 0; i < 2; i++) {
    sigval v;
    v.sival_int = 20 + i;
    sigqueue(getpid(), SIGRTMIN + 2, v);
    v.sival_int = 10 + i;
    sigqueue(getpid(), SIGRTMIN + 1, v);
  }
  sigset_t wait_set = set;
  siginfo_t info;
  EXPECT_EQ(SIGRTMIN + 1, sigwaitinfo(&wait_set, &info));
  EXPECT_EQ(10, info.si_value.sival_int);
  sigprocmask(SIG_SETMASK, &old, nullptr);
  ASSERT_EQ(3, g_count);
}

TEST(Signal, TimedWaitTimesOut) {
  sigset_t set, old;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, &old);
  timespec t{0, 20000000};
  int64_t start = NowNs();
  EXPECT_ERRNO(sigtimedwait(&set, nullptr, &t), EAGAIN);
  EXPECT_GE(NowNs() - start, 20000000);
  sigprocmask(SIG_SETMASK, &old, nullptr);
}

TEST(Signal, MaskInHandlerAndNodefer) {
  static int depth, max_depth;
  static bool raised;
  depth = max_depth = 0;
  raised = false;
  auto handler = [](int) {
    depth++;
    if (depth > max_depth) max_depth = depth;
    if (!raised) {
      raised = true;
      raise(SIGUSR1);
    }
    depth--;
  };
  Install(SIGUSR1, handler);
  raise(SIGUSR1);
  EXPECT_EQ(1, max_depth);
  max_depth = 0;
  raised = false;
  Install(SIGUSR1, handler, SA_NODEFER);
  raise(SIGUSR1);
  EXPECT_EQ(2, max_depth);
}

TEST(Signal, ResetHand) {
  Install(SIGUSR1, Count, SA_RESETHAND);
  raise(SIGUSR1);
  struct sigaction sa;
  sigaction(SIGUSR1, nullptr, &sa);
  EXPECT_EQ(SIG_DFL, sa.sa_handler);
}

TEST(Signal, InvalidNumbers) {
  struct sigaction sa {};
  EXPECT_ERRNO(syscall(SYS_rt_sigaction, 65, &sa, nullptr, 8), EINVAL);
  EXPECT_ERRNO(syscall(SYS_rt_sigaction, SIGKILL, &sa, nullptr, 8), EINVAL);
  EXPECT_ERRNO(syscall(SYS_rt_sigaction, SIGUSR1, &sa, nullptr, 4), EINVAL);
  EXPECT_ERRNO(kill(getpid(), 65), EINVAL);
  EXPECT_ERRNO(kill(1 << 21, 0), ESRCH);
  EXPECT_EQ(0, kill(getpid(), 0));
  EXPECT_ERRNO(syscall(SYS_tgkill, getpid(), -1, 0), EINVAL);
  EXPECT_ERRNO(syscall(SYS_rt_sigprocmask, 77, BadAddress(), nullptr, 8), EFAULT);
}

TEST(Signal, AlternateStack) {
  static char stack[65536];
  stack_t ss{}, old{};
  ss.ss_sp = stack;
  ss.ss_size = sizeof stack;
  ASSERT_OK(sigaltstack(&ss, &old));
  InstallInfo(SIGUSR1, SA_ONSTACK);
  g_count = 0;
  raise(SIGUSR1);
  EXPECT_EQ(1, g_count);
  EXPECT_GE(g_stack_in_handler, reinterpret_cast<uintptr_t>(stack));
  EXPECT_LT(g_stack_in_handler, reinterpret_cast<uintptr_t>(stack + sizeof stack));
  ss.ss_size = 100;
  EXPECT_ERRNO(sigaltstack(&ss, nullptr), ENOMEM);
  ss.ss_flags = SS_DISABLE;
  ASSERT_OK(sigaltstack(&ss, nullptr));
}

TEST(Signal, SegvIsCaughtOnAlternateStackAndGoesOn) {
  static char stack[65536];
  stack_t ss{};
  ss.ss_sp = stack;
  ss.ss_size = sizeof stack;
  ASSERT_OK(sigaltstack(&ss, nullptr));
  struct sigaction sa {
  }, old;
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    g_info = *info;
    mprotect(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(info->si_addr) & ~4095ul), 4096,
             PROT_READ | PROT_WRITE);
  };
  sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &sa, &old);
  volatile char* page =
      static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < 10; i++) {
    mprotect(const_cast<char*>(page), 4096, PROT_READ);
    page[100] = static_cast<char>(i);
    EXPECT_EQ(i, page[100]);
    EXPECT_EQ(SEGV_ACCERR, g_info.si_code);
    EXPECT_EQ(page + 100, g_info.si_addr);
  }
  sigaction(SIGSEGV, &old, nullptr);
}

TEST(Signal, SegvMaperrAndDefaultKills) {
  struct sigaction sa {
  }, old;
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    g_info = *info;
    siglongjmp(g_jump, 1);
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &sa, &old);
  if (sigsetjmp(g_jump, 1) == 0) {
    *reinterpret_cast<volatile int*>(0x18) = 1;
    ADD_FAILURE();
  }
  EXPECT_EQ(SEGV_MAPERR, g_info.si_code);
  EXPECT_EQ(reinterpret_cast<void*>(0x18), g_info.si_addr);
  sigaction(SIGSEGV, &old, nullptr);
  int status = RunInChild([] {
    signal(SIGSEGV, SIG_DFL);
    *reinterpret_cast<volatile int*>(0x18) = 1;
    return 0;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(SIGSEGV, WTERMSIG(status));
}

TEST(Signal, DivideErrorIllAndTrap) {
  struct sigaction sa {};
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    g_info = *info;
    siglongjmp(g_jump, 1);
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGFPE, &sa, nullptr);
  sigaction(SIGILL, &sa, nullptr);
  sigaction(SIGTRAP, &sa, nullptr);
  if (sigsetjmp(g_jump, 1) == 0) {
    asm volatile("xor %%edx,%%edx; mov $1,%%eax; xor %%ecx,%%ecx; idiv %%ecx" ::
                     : "eax", "ecx", "edx");
  }
  EXPECT_EQ(SIGFPE, g_info.si_signo);
  EXPECT_EQ(FPE_INTDIV, g_info.si_code);
  if (sigsetjmp(g_jump, 1) == 0) asm volatile("ud2");
  EXPECT_EQ(SIGILL, g_info.si_signo);
  EXPECT_EQ(ILL_ILLOPN, g_info.si_code);
  if (sigsetjmp(g_jump, 1) == 0) asm volatile("int3");
  EXPECT_EQ(SIGTRAP, g_info.si_signo);
}

TEST(Signal, BusErrorPastEndOfFile) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_OK(ftruncate(fd, 4096));
  volatile char* p = static_cast<char*>(mmap(nullptr, 8192, PROT_READ, MAP_SHARED, fd, 0));
  struct sigaction sa {};
  sa.sa_sigaction = [](int, siginfo_t* info, void*) {
    g_info = *info;
    siglongjmp(g_jump, 1);
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &sa, nullptr);
  EXPECT_EQ(0, p[0]);
  if (sigsetjmp(g_jump, 1) == 0) {
    [[maybe_unused]] char c = p[4096];
    ADD_FAILURE();
  }
  EXPECT_EQ(SIGBUS, g_info.si_signo);
  EXPECT_EQ(BUS_ADRERR, g_info.si_code);
  close(fd);
}

TEST(Signal, HandlerMayChangeRegisters) {
  struct sigaction sa {};
  sa.sa_sigaction = [](int, siginfo_t*, void* context) {
    ucontext_t* uc = static_cast<ucontext_t*>(context);
    uc->uc_mcontext.gregs[REG_RBX] = 0x1234;
    uc->uc_mcontext.gregs[REG_RIP] += 2;  // over ud2
  };
  sa.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &sa, nullptr);
  uint64_t value = 0;
  asm volatile("ud2; mov %%rbx,%0" : "=r"(value)::"rbx");
  EXPECT_EQ(0x1234u, value);
}

TEST(Signal, InterruptsReadWithEintrAndRestarts) {
  for (bool restart : {false, true}) {
    int fds[2];
    ASSERT_OK(pipe(fds));
    g_count = 0;
    Install(SIGUSR1, Count, restart ? SA_RESTART : 0);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
      WaitUntilAsleep(parent);
      kill(parent, SIGUSR1);
      SleepMs(50);
      if (write(fds[1], "x", 1) != 1) _exit(1);
      _exit(0);
    }
    char c = 0;
    ssize_t n = read(fds[0], &c, 1);
    if (restart) {
      EXPECT_EQ(1, n);
      EXPECT_EQ('x', c);
    } else {
      EXPECT_EQ(-1, n);
      EXPECT_EQ(EINTR, errno);
    }
    EXPECT_EQ(1, g_count);
    waitpid(pid, nullptr, 0);
    close(fds[0]);
    close(fds[1]);
  }
}

TEST(Signal, NanosleepReportsTheRest) {
  Install(SIGALRM, Count);
  g_count = 0;
  constexpr int64_t kMinute = 60'000'000'000;
  timespec t{60, 0}, left{};
  // Again and again, since the first may come before the call that it is to end.
  itimerval timer{{0, 50000}, {0, 50000}};
  const int64_t start = NowNs();
  setitimer(ITIMER_REAL, &timer, nullptr);
  EXPECT_ERRNO(nanosleep(&t, &left), EINTR);
  const int64_t passed = NowNs() - start;
  timer = {};
  setitimer(ITIMER_REAL, &timer, nullptr);
  EXPECT_LE(1, g_count);
  const int64_t slept = kMinute - (left.tv_sec * 1'000'000'000 + left.tv_nsec);
  EXPECT_LT(0, slept);
  EXPECT_LE(slept, passed);
}

TEST(Signal, Sigsuspend) {
  g_count = 0;
  Install(SIGUSR1, Count);
  sigset_t block, old, empty;
  sigemptyset(&block);
  sigaddset(&block, SIGUSR1);
  sigprocmask(SIG_BLOCK, &block, &old);
  raise(SIGUSR1);
  sigemptyset(&empty);
  EXPECT_ERRNO(sigsuspend(&empty), EINTR);
  EXPECT_EQ(1, g_count);
  sigset_t now;
  sigprocmask(SIG_SETMASK, nullptr, &now);
  EXPECT_TRUE(sigismember(&now, SIGUSR1));
  sigprocmask(SIG_SETMASK, &old, nullptr);
}

TEST(Signal, IgnoredAndDefaultIgnoredDoNothing) {
  signal(SIGUSR1, SIG_IGN);
  raise(SIGUSR1);
  signal(SIGCHLD, SIG_DFL);
  raise(SIGCHLD);
  raise(SIGWINCH);
  raise(SIGURG);
}

TEST(Signal, NocldwaitReapsByItself) {
  struct sigaction sa {
  }, old;
  sa.sa_handler = SIG_DFL;
  sa.sa_flags = SA_NOCLDWAIT;
  sigaction(SIGCHLD, &sa, &old);
  pid_t pid = fork();
  if (pid == 0) _exit(1);
  EXPECT_ERRNO(waitpid(pid, nullptr, 0), ECHILD);
  sigaction(SIGCHLD, &old, nullptr);
}

TEST(Signal, ChildSendsSigchldWithStatus) {
  g_count = 0;
  InstallInfo(SIGCHLD);
  pid_t pid = fork();
  if (pid == 0) _exit(33);
  while (waitpid(pid, nullptr, 0) < 0) {
  }
  EXPECT_EQ(1, g_count);
  EXPECT_EQ(pid, g_info.si_pid);
  EXPECT_EQ(CLD_EXITED, g_info.si_code);
  EXPECT_EQ(33, g_info.si_status);
  signal(SIGCHLD, SIG_DFL);
}

TEST(Signal, ManyFromAnotherProcessAreNotLost) {
  g_count = 0;
  Install(SIGRTMIN + 3, Count);
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    for (int i = 0; i < 500; i++) {
      sigval v;
      v.sival_int = i;
      while (sigqueue(parent, SIGRTMIN + 3, v) < 0) sched_yield();
    }
    _exit(0);
  }
  int status;
  while (waitpid(pid, &status, 0) < 0) {
  }
  EXPECT_EQ(0, status);
  EXPECT_EQ(500, g_count);
}

TEST(Signal, FpuStateSurvivesHandlers) {
  struct sigaction sa {};
  sa.sa_handler = [](int) {
    double zero[4] = {0, 0, 0, 0};
    asm volatile("movups %0,%%xmm5; movups %0,%%xmm6" ::"m"(zero) : "xmm5", "xmm6");
    g_count = g_count + 1;
  };
  sigaction(SIGALRM, &sa, nullptr);
  g_count = 0;
  itimerval timer{{0, 1000}, {0, 1000}};
  setitimer(ITIMER_REAL, &timer, nullptr);
  alignas(16) uint64_t in[2] = {0x1122334455667788, 0x99aabbccddeeff00}, out[2];
  // On a busy machine it takes a while until the timer has interrupted often enough.
  int64_t end = NowNs() + 300'000'000, latest = end + 20'000'000'000;
  bool same = true;
  while (same && (NowNs() < end || (g_count <= 10 && NowNs() < latest))) {
    asm volatile("movaps %1,%%xmm5\n mov $20000,%%ecx\n 1: dec %%ecx\n jnz 1b\n movaps %%xmm5,%0"
                 : "=m"(out)
                 : "m"(in)
                 : "ecx", "xmm5");
    same = memcmp(in, out, sizeof in) == 0;
  }
  timer = {};
  setitimer(ITIMER_REAL, &timer, nullptr);
  EXPECT_TRUE(same);
  EXPECT_GT(g_count, 10);
}

TEST(Signal, StackOverflowOnAltStack) {
  int status = ExitStatus([] {
    static char stack[65536];
    stack_t ss{};
    ss.ss_sp = stack;
    ss.ss_size = sizeof stack;
    sigaltstack(&ss, nullptr);
    struct sigaction sa {};
    sa.sa_handler = [](int) { _exit(77); };
    sa.sa_flags = SA_ONSTACK;
    sigaction(SIGSEGV, &sa, nullptr);
    std::function<int(int)> recurse = [&](int n) -> int {
      volatile char frame[4096];
      frame[0] = static_cast<char>(n);
      return recurse(n + 1) + frame[0];
    };
    return recurse(0);
  });
  EXPECT_EQ(77, status);
}
