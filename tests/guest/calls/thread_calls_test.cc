// Calls that concern the calling thread alone: the return from a handler, set_tid_address,
// set_robust_list, the segment bases; and actions of signals over fork and exec.
#include <asm/prctl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unwind.h>

#include <atomic>
#include <thread>

#include "guest_util.h"

namespace {

using Handler = void (*)(int, siginfo_t*, void*);
constexpr int kTimes = 20;

void Install(int signo, Handler handler, int flags = 0) {
  struct sigaction sa {};
  sa.sa_sigaction = handler;
  sa.sa_flags = SA_SIGINFO | flags;
  ASSERT_EQ(0, sigaction(signo, &sa, nullptr));
}

sigset_t Mask() {
  sigset_t mask;
  sigprocmask(SIG_BLOCK, nullptr, &mask);
  return mask;
}

volatile sig_atomic_t g_first, g_second, g_nested;

// --- the return from a handler ---

struct Registers {
  uint64_t rbx, r12, r13, r14, r15, r9, r10, flags;
  uint64_t xmm[2];
};

// Makes a call with known values in the registers, at whose end a signal is delivered, and stores
// what they are afterwards.
long CallAndStore(long nr, long a, long b, Registers* r) {
  long ret;
  register Registers* out asm("r8") = r;
  asm volatile(
      "mov $0x1111, %%rbx\n\tmov $0x2222, %%r12\n\tmov $0x3333, %%r13\n\tmov $0x4444, %%r14\n\t"
      "mov $0x5555, %%r15\n\tmov $0x6666, %%r9\n\tmov $0x7777, %%r10\n\t"
      "mov $0x0123456789abcdef, %%rcx\n\tmovq %%rcx, %%xmm7\n\tpunpcklqdq %%xmm7, %%xmm7\n\t"
      "stc\n\t"
      "syscall\n\t"
      "pushfq\n\tpop %%rcx\n\t"
      "mov %%rbx, (%%r8)\n\tmov %%r12, 8(%%r8)\n\tmov %%r13, 16(%%r8)\n\tmov %%r14, 24(%%r8)\n\t"
      "mov %%r15, 32(%%r8)\n\tmov %%r9, 40(%%r8)\n\tmov %%r10, 48(%%r8)\n\tmov %%rcx, 56(%%r8)\n\t"
      "movdqu %%xmm7, 64(%%r8)\n\t"
      : "=a"(ret)
      : "a"(nr), "D"(a), "S"(b), "r"(out)
      : "rcx", "r11", "rbx", "r9", "r10", "r12", "r13", "r14", "r15", "xmm7", "memory", "cc");
  return ret;
}

void Spoil(int, siginfo_t*, void*) {
  asm volatile(
      "pxor %%xmm7, %%xmm7\n\txor %%ebx, %%ebx\n\txor %%r12d, %%r12d\n\txor %%r13d, %%r13d\n\t"
      "xor %%r14d, %%r14d\n\txor %%r15d, %%r15d\n\txor %%r9d, %%r9d\n\txor %%r10d, %%r10d\n\tclc" ::
          : "xmm7", "rbx", "r9", "r10", "r12", "r13", "r14", "r15", "cc");
  g_first = g_first + 1;
}

TEST(SigReturn, RestoresTheRegisters) {
  Install(SIGUSR1, Spoil);
  g_first = 0;
  for (int i = 1; i <= kTimes; i++) {
    Registers r{};
    ASSERT_EQ(0, CallAndStore(SYS_kill, getpid(), SIGUSR1, &r));
    ASSERT_EQ(i, g_first);
    EXPECT_EQ(0x1111u, r.rbx);
    EXPECT_EQ(0x2222u, r.r12);
    EXPECT_EQ(0x3333u, r.r13);
    EXPECT_EQ(0x4444u, r.r14);
    EXPECT_EQ(0x5555u, r.r15);
    EXPECT_EQ(0x6666u, r.r9);
    EXPECT_EQ(0x7777u, r.r10);
    EXPECT_EQ(1u, r.flags & 1);
    EXPECT_EQ(0x0123456789abcdefu, r.xmm[0]);
    EXPECT_EQ(0x0123456789abcdefu, r.xmm[1]);
  }
}

TEST(SigReturn, TakesWhatTheHandlerHasChanged) {
  Install(SIGUSR1, [](int, siginfo_t*, void* context) {
    auto* uc = static_cast<ucontext_t*>(context);
    uc->uc_mcontext.gregs[REG_RAX] = 0x77;
    uc->uc_mcontext.gregs[REG_R12] = 0x88;
    uc->uc_mcontext.gregs[REG_EFL] &= ~1;
    uc->uc_mcontext.fpregs->_xmm[7].element[0] = 0x99;
  });
  for (int i = 0; i < kTimes; i++) {
    Registers r{};
    ASSERT_EQ(0x77, CallAndStore(SYS_kill, getpid(), SIGUSR1, &r));
    EXPECT_EQ(0x1111u, r.rbx);
    EXPECT_EQ(0x88u, r.r12);
    EXPECT_EQ(0u, r.flags & 1);
    EXPECT_EQ(0x0123456700000099u, r.xmm[0]);
  }
}

TEST(SigReturn, GivesTheMaskBack) {
  Install(SIGUSR1, [](int, siginfo_t*, void*) {
    const sigset_t mask = Mask();
    g_first = sigismember(&mask, SIGUSR1) == 1;
  });
  for (int i = 0; i < kTimes; i++) {
    g_first = 0;
    raise(SIGUSR1);
    EXPECT_EQ(1, g_first);
    const sigset_t mask = Mask();
    EXPECT_EQ(0, sigismember(&mask, SIGUSR1));
  }
}

TEST(SigReturn, TheFramesMaskHolds) {
  Install(SIGUSR1, [](int, siginfo_t*, void* context) {
    sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, SIGUSR2);
    sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, SIGKILL);
  });
  Install(SIGUSR2, [](int, siginfo_t*, void*) { g_second = g_second + 1; });
  for (int i = 0; i < kTimes; i++) {
    g_second = 0;
    raise(SIGUSR1);
    sigset_t mask = Mask();
    EXPECT_EQ(1, sigismember(&mask, SIGUSR2));
    EXPECT_EQ(0, sigismember(&mask, SIGKILL));
    raise(SIGUSR2);
    EXPECT_EQ(0, g_second);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_UNBLOCK, &mask, nullptr);
    EXPECT_EQ(1, g_second);
  }
}

TEST(SigReturn, WhatBecomesDeliverableIsDelivered) {
  Install(SIGUSR2, [](int, siginfo_t*, void*) { g_second = g_second + 1; });
  Install(SIGUSR1, [](int, siginfo_t*, void* context) {
    raise(SIGUSR2);
    g_first = g_second;  // blocked so far
    sigdelset(&static_cast<ucontext_t*>(context)->uc_sigmask, SIGUSR2);
  });
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  for (int i = 0; i < kTimes; i++) {
    g_second = 0;
    g_first = -1;
    sigprocmask(SIG_BLOCK, &mask, nullptr);
    raise(SIGUSR1);
    EXPECT_EQ(0, g_first);
    EXPECT_EQ(1, g_second);
    sigprocmask(SIG_UNBLOCK, &mask, nullptr);
  }
}

TEST(SigReturn, OfNestedHandlers) {
  Install(SIGUSR2, [](int, siginfo_t*, void*) { g_nested = g_nested + 1; });
  Install(SIGUSR1, [](int, siginfo_t*, void*) {
    raise(SIGUSR2);
    g_first = g_nested;
  });
  g_nested = 0;
  for (int i = 1; i <= kTimes; i++) {
    raise(SIGUSR1);
    EXPECT_EQ(i, g_first);
  }
}

alignas(16) char g_stack[2][64 << 10];
volatile uintptr_t g_at;

TEST(SigReturn, KeepsTheSignalStack) {
  stack_t stack{};
  stack.ss_sp = g_stack[0];
  stack.ss_size = sizeof g_stack[0];
  ASSERT_OK(sigaltstack(&stack, nullptr));
  Install(
      SIGUSR1,
      [](int, siginfo_t*, void*) {
        g_at = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
        stack_t now{};
        sigaltstack(nullptr, &now);
        g_first = now.ss_flags;
      },
      SA_ONSTACK);
  for (int i = 0; i < kTimes; i++) {
    g_at = 0;
    raise(SIGUSR1);
    EXPECT_GE(g_at, reinterpret_cast<uintptr_t>(g_stack[0]));
    EXPECT_LT(g_at, reinterpret_cast<uintptr_t>(g_stack[0] + sizeof g_stack[0]));
    EXPECT_EQ(SS_ONSTACK, g_first);
    stack_t now{};
    ASSERT_OK(sigaltstack(nullptr, &now));
    EXPECT_EQ(0, now.ss_flags);
    EXPECT_EQ(g_stack[0], now.ss_sp);
  }
  stack.ss_flags = SS_DISABLE;
  ASSERT_OK(sigaltstack(&stack, nullptr));
}

TEST(SigReturn, TheFramesSignalStackHolds) {
  Install(SIGUSR1, [](int, siginfo_t*, void* context) {
    stack_t& stack = static_cast<ucontext_t*>(context)->uc_stack;
    stack.ss_sp = g_stack[1];
    stack.ss_size = sizeof g_stack[1];
    stack.ss_flags = 0;
  });
  raise(SIGUSR1);  // one before, as many do
  for (int i = 0; i < kTimes; i++) {
    stack_t stack{};
    stack.ss_flags = SS_DISABLE;
    ASSERT_OK(sigaltstack(&stack, nullptr));
    raise(SIGUSR1);
    ASSERT_OK(sigaltstack(nullptr, &stack));
    EXPECT_EQ(0, stack.ss_flags);
    EXPECT_EQ(g_stack[1], stack.ss_sp);
    EXPECT_EQ(sizeof g_stack[1], stack.ss_size);
  }
  stack_t stack{};
  stack.ss_flags = SS_DISABLE;
  ASSERT_OK(sigaltstack(&stack, nullptr));
}

TEST(SigReturn, WithoutAFrameItKills) {
  for (bool before : {false, true}) {
    const int status = ExitStatus([before] {
      Install(SIGUSR1, [](int, siginfo_t*, void*) {});
      if (before) raise(SIGUSR1);
      asm volatile("mov $0x10, %%rsp\n\tmov $15, %%eax\n\tsyscall" ::: "rax", "memory");
      return 1;
    });
    EXPECT_EQ(-SIGSEGV, status);
  }
}

// A call as libc makes those whose number is no constant: a comparison follows at once. Returns 0
// or a negative error.
asm(R"(
  .type CallAndCompare, @function
CallAndCompare:
  mov %rdi, %rax
  mov %rsi, %rdi
  mov %rdx, %rsi
  syscall
  cmp $-4095, %rax
  jae 1f
  xor %eax, %eax
1: ret
  .size CallAndCompare, . - CallAndCompare
)");
extern "C" long CallAndCompare(long nr, long a, long b);

// Whoever makes calls quicker by changing their code does so in the handler, and the call that it
// has interrupted is in the middle of that code.
void InterruptOften() {
  Install(SIGALRM, [](int, siginfo_t*, void*) {
    for (int i = 0; i < 20; i++) CallAndCompare(SYS_getpriority, PRIO_PROCESS, 0);
    g_first = g_first + 1;
  });
  g_first = 0;
  itimerval timer{{0, 2'000}, {0, 2'000}};
  ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, nullptr));
  for (int i = 0; i < kTimes; i++) ASSERT_EQ(-EINTR, CallAndCompare(SYS_pause, 0, 0));
  timer = {};
  ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, nullptr));
  EXPECT_LE(kTimes, g_first);
}

// In one program after the other: of what is known of the code from earlier ones too.
TEST(SigReturn, ToACallThatTheHandlerMakesOften) {
  constexpr char kChild[] = "SIGRETURN_CHILD";
  if (getenv(kChild) != nullptr) return InterruptOften();
  for (int i = 0; i < 2 * kTimes; i++) {
    EXPECT_EQ(0, ExitStatus([&] {
                setenv(kChild, "1", 1);
                execl("/proc/self/exe", "test", "--gtest_brief=1",
                      "--gtest_filter=SigReturn.ToACallThatTheHandlerMakesOften", nullptr);
                return errno;
              }));
  }
}

// Unwinders know a signal's frame by what it returns to, however often that has been done.
bool g_unwound;
__attribute__((noinline)) void RaiseHere() {
  raise(SIGUSR1);
  asm volatile("");
}
TEST(SigReturn, AHandlersFrameCanBeUnwound) {
  Install(SIGUSR1, [](int, siginfo_t*, void*) {
    auto look = [](_Unwind_Context* context, void*) {
      void* function =
          _Unwind_FindEnclosingFunction(reinterpret_cast<void*>(_Unwind_GetIP(context)));
      if (function == reinterpret_cast<void*>(&RaiseHere)) g_unwound = true;
      return _URC_NO_REASON;
    };
    _Unwind_Backtrace(look, nullptr);
  });
  for (int i = 0; i < 3000; i++) {
    g_unwound = false;
    RaiseHere();
    ASSERT_TRUE(g_unwound) << i;
  }
}

TEST(SigReturn, WhileOthersSendSignals) {
  static std::atomic<uint64_t> count;
  count = 0;
  Install(SIGUSR1, [](int, siginfo_t*, void*) { count++; });
  std::atomic<bool> stop{false};
  const pid_t me = static_cast<pid_t>(syscall(SYS_gettid));
  std::thread sender([&] {
    while (!stop) syscall(SYS_tgkill, getpid(), me, SIGUSR1);
  });
  const int64_t end = NowNs() + 200'000'000;
  uint64_t sum = 0;
  while (NowNs() < end || count < 10) {
    uint64_t a = 3, b = 5;
    asm volatile(
        "movq %0, %%xmm6\n\tmov $2000, %%ecx\n\t1: paddq %%xmm6, %%xmm6\n\tmovq %0, %%xmm6\n\t"
        "add $1, %1\n\tdec %%ecx\n\tjnz 1b\n\tmovq %%xmm6, %0"
        : "+r"(a), "+r"(b)
        :
        : "xmm6", "rcx", "cc");
    ASSERT_EQ(3u, a);
    ASSERT_EQ(2005u, b);
    sum += b;
  }
  stop = true;
  sender.join();
  EXPECT_GT(sum, 0u);
  const sigset_t mask = Mask();
  EXPECT_EQ(0, sigismember(&mask, SIGUSR1));
}

// --- what a thread registers ---

TEST(SetTidAddress, IsClearedAtTheEnd) {
  static std::atomic<int> word;
  alignas(16) static char stack[64 << 10];
  word = 1;
  const int pid = clone(
      [](void*) {
        const long tid = syscall(SYS_set_tid_address, &word);
        return tid == syscall(SYS_gettid) ? 0 : 1;
      },
      stack + sizeof stack, CLONE_VM | SIGCHLD, nullptr);
  ASSERT_OK(pid);
  int status;
  ASSERT_EQ(pid, waitpid(pid, &status, 0));
  EXPECT_EQ(0, status);
  EXPECT_EQ(0, word);
}

TEST(SetTidAddress, CanBeAskedFor) {
  EXPECT_EQ(0, ExitStatus([] {
              static int word;
              if (syscall(SYS_set_tid_address, &word) != getpid()) return 1;
              int* seen = nullptr;
              if (prctl(PR_GET_TID_ADDRESS, &seen, 0, 0, 0) != 0) return errno == EINVAL ? 0 : 2;
              return seen == &word ? 0 : 3;
            }));
}

struct RobustHead {
  void* next;
  long offset;
  void* pending;
};

TEST(SetRobustList, IsSeenByOthers) {
  static RobustHead head;
  head = {&head, 0, nullptr};
  std::atomic<int> tid{0};
  std::atomic<bool> stop{false};
  void* before = nullptr;
  std::thread thread([&] {
    size_t n = 0;
    syscall(SYS_get_robust_list, 0, &before, &n);
    EXPECT_ERRNO(syscall(SYS_set_robust_list, &head, 23), EINVAL);
    EXPECT_OK(syscall(SYS_set_robust_list, &head, sizeof head));
    tid = static_cast<int>(syscall(SYS_gettid));
    while (!stop) sched_yield();
    EXPECT_OK(syscall(SYS_set_robust_list, before, sizeof head));
  });
  while (tid == 0) sched_yield();
  void* seen = nullptr;
  size_t size = 0;
  EXPECT_OK(syscall(SYS_get_robust_list, tid.load(), &seen, &size));
  EXPECT_EQ(&head, seen);
  EXPECT_EQ(sizeof head, size);
  stop = true;
  thread.join();
}

TEST(SetRobustList, IsWalkedAtTheEnd) {
  struct Node {
    void* next;
    std::atomic<uint32_t> word;
  };
  auto* node = static_cast<Node*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(MAP_FAILED, static_cast<void*>(node));
  EXPECT_EQ(0, ExitStatus([node] {
              static RobustHead head;
              head = {node, offsetof(Node, word), nullptr};
              node->next = &head;
              node->word = static_cast<uint32_t>(getpid());
              return syscall(SYS_set_robust_list, &head, sizeof head) == 0 ? 0 : 1;
            }));
  EXPECT_EQ(static_cast<uint32_t>(FUTEX_OWNER_DIED), node->word & FUTEX_OWNER_DIED);
  // A child begins without a list.
  EXPECT_EQ(0, ExitStatus([] {
              void* list = nullptr;
              size_t n = 0;
              const pid_t pid = static_cast<pid_t>(syscall(SYS_fork));
              if (pid == 0) {
                if (syscall(SYS_get_robust_list, 0, &list, &n) != 0) _exit(1);
                _exit(list == nullptr ? 0 : 2);
              }
              int status = -1;
              waitpid(pid, &status, 0);
              return WEXITSTATUS(status);
            }));
  munmap(node, 4096);
}

TEST(ArchPrctl, BaseOfFs) {
  uint64_t fs = 0;
  ASSERT_OK(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs));
  EXPECT_EQ(reinterpret_cast<uint64_t>(__builtin_thread_pointer()), fs);
  EXPECT_ERRNO(syscall(SYS_arch_prctl, ARCH_GET_FS, BadAddress()), EFAULT);
  EXPECT_ERRNO(syscall(SYS_arch_prctl, ARCH_SET_FS, 1ul << 63), EPERM);
  static uint64_t block[2] = {0x1234, 0x5678};
  uint64_t seen = 0, other = 0;
  long set = -1, back = -1;
  auto* where = &block[1];
  // Between the two calls nothing may use thread-local variables.
  asm volatile(
      "mov $158, %%eax\n\tmov $0x1002, %%edi\n\tmov %[where], %%rsi\n\tsyscall\n\tmov %%rax, "
      "%[set]\n\t"
      "mov %%fs:0, %%rax\n\tmov %%rax, %[seen]\n\t"
      "mov $39, %%eax\n\tsyscall\n\tmov %%fs:-8, %%rax\n\tmov %%rax, %[other]\n\t"
      "mov $158, %%eax\n\tmov $0x1002, %%edi\n\tmov %[fs], %%rsi\n\tsyscall\n\tmov %%rax, "
      "%[back]\n\t"
      : [set] "=&m"(set), [seen] "=&m"(seen), [other] "=&m"(other), [back] "=&m"(back)
      : [where] "r"(where), [fs] "r"(fs)
      : "rax", "rcx", "r11", "rdi", "rsi", "memory");
  EXPECT_EQ(0, set);
  EXPECT_EQ(0x5678u, seen);
  EXPECT_EQ(0x1234u, other);
  EXPECT_EQ(0, back);
}

TEST(ThreadCalls, AreAskedAboutByAFilter) {
  EXPECT_EQ(0, ExitStatus([] {
              sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_set_robust_list, 0, 1),
                                    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOLINK),
                                    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
              sock_fprog program{4, code};
              if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 1;
              if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 2;
              static RobustHead head;
              if (syscall(SYS_set_robust_list, &head, sizeof head) != -1) return 3;
              return errno == ENOLINK ? 0 : 4;
            }));
}

// --- actions over fork ---

TEST(Actions, AChildChangesItsOwn) {
  Install(SIGUSR1, [](int, siginfo_t*, void*) { g_first = g_first + 1; });
  for (int i = 0; i < kTimes; i++) {
    Install(SIGUSR2, [](int, siginfo_t*, void*) { g_second = g_second + 1; });
    g_first = 0;
    g_second = 0;
    EXPECT_EQ(0, ExitStatus([] {
                raise(SIGUSR1);
                if (g_first != 1) return 1;
                signal(SIGUSR1, SIG_IGN);
                raise(SIGUSR1);
                if (g_first != 1) return 2;
                struct sigaction old {};
                sigaction(SIGUSR2, nullptr, &old);
                return old.sa_sigaction != nullptr && (old.sa_flags & SA_SIGINFO) ? 0 : 3;
              }));
    struct sigaction mine {};
    ASSERT_OK(sigaction(SIGUSR1, nullptr, &mine));
    EXPECT_TRUE(mine.sa_flags & SA_SIGINFO);
    raise(SIGUSR1);
    raise(SIGUSR2);
    EXPECT_EQ(1, g_first);
    EXPECT_EQ(1, g_second);
    signal(SIGUSR2, SIG_DFL);
  }
}

TEST(Actions, OfAProcessWhoseChildrenEnd) {
  static std::atomic<int> ends;
  ends = 0;
  for (int i = 1; i <= kTimes; i++) {
    Install(SIGCHLD, [](int, siginfo_t*, void*) { ends++; });
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    signal(SIGINT, SIG_IGN);
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    for (int wait = 0; ends < i && wait < 1000; wait++) SleepMs(1);
    EXPECT_EQ(i, ends);
    EXPECT_EQ(SIG_IGN, signal(SIGINT, SIG_DFL));
  }
}

TEST(Actions, ThreadsShareThem) {
  for (int i = 0; i < kTimes; i++) {
    signal(SIGUSR2, SIG_DFL);
    std::thread([] { signal(SIGUSR2, SIG_IGN); }).join();
    EXPECT_EQ(SIG_IGN, signal(SIGUSR2, SIG_DFL));
  }
}

}  // namespace
