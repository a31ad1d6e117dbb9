// ptrace(2): system calls, steps, memory and registers of a tracee.
#include <asm/prctl.h>
#include <elf.h>
#include <linux/futex.h>
#include <sys/mman.h>

#include <thread>

#include "ptrace_util.h"

namespace {

constexpr uint64_t kTrapFlag = 0x100;

long Getpid() { return syscall(SYS_getpid); }
long Getppid() { return syscall(SYS_getppid); }

// Runs the tracee to its next system call stop.
int NextCall(Child& child) {
  EXPECT_EQ(0, Resume(PTRACE_SYSCALL, child));
  return child.Wait();
}
// To the entry of call `nr`.
bool EnterCall(Child& child, long nr) {
  for (int i = 0; i < 64; i++) {
    if (!WIFSTOPPED(NextCall(child))) return false;
    if (static_cast<long>(Regs(child).orig_rax) == nr) return true;
    if (!WIFSTOPPED(NextCall(child))) return false;
  }
  return false;
}

TEST(PtraceCall, EntryAndExit) {
  Child child = Child::Stopped([] { return Getppid() > 0 ? 7 : 8; });
  SetOptions(child, PTRACE_O_TRACESYSGOOD);
  // The end of the call that has sent the signal comes first, on its way out.
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  user_regs_struct regs = Regs(child);
  EXPECT_EQ(static_cast<uint64_t>(-ENOSYS), regs.rax);
  EXPECT_EQ(1u, Message(child));  // PTRACE_EVENTMSG_SYSCALL_ENTRY
  siginfo_t info = Siginfo(child);
  EXPECT_EQ(SIGTRAP, info.si_signo);
  EXPECT_EQ(SIGTRAP | 0x80, info.si_code);
  EXPECT_EQ(child.pid(), info.si_pid);
  ASSERT_EQ(Child::W(SIGTRAP | 0x80), NextCall(child));
  EXPECT_EQ(2u, Message(child));
  regs = Regs(child);
  EXPECT_EQ(static_cast<uint64_t>(getpid()), regs.rax);
  EXPECT_EQ(static_cast<uint64_t>(SYS_getppid), regs.orig_rax);
  EXPECT_EQ(0, Resume(PTRACE_CONT, child));
  EXPECT_EQ(Child::Exited(7), child.Wait());
}

TEST(PtraceCall, WithoutSysgood) {
  Child child = Child::Stopped([] { return Getppid() > 0 ? 7 : 8; });
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  EXPECT_EQ(SIGTRAP, Siginfo(child).si_code);
  EXPECT_EQ(0, Resume(PTRACE_CONT, child));
  EXPECT_EQ(Child::Exited(7), child.Wait());
}

// Calls that are quick elsewhere are seen all the same.
TEST(PtraceCall, SeesEveryCall) {
  Child child = Child::Stopped([] {
    for (int i = 0; i < 20; i++) Getpid();
    for (int i = 0; i < 20; i++) {
      timespec t;
      syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    }
    for (int i = 0; i < 20; i++) {
      uint64_t set = 0;
      syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, nullptr, 8);
    }
    return 0;
  });
  int pids = 0, clocks = 0, masks = 0;
  bool entry = true;
  while (WIFSTOPPED(NextCall(child))) {
    long nr = static_cast<long>(Regs(child).orig_rax);
    uint64_t message = Message(child);
    entry = message == 1;
    if (!entry) continue;
    pids += nr == SYS_getpid;
    clocks += nr == SYS_clock_gettime;
    masks += nr == SYS_rt_sigprocmask;
  }
  EXPECT_EQ(20, pids);
  EXPECT_EQ(20, clocks);
  EXPECT_LE(20, masks);
}

TEST(PtraceCall, ChangeNumber) {
  Child child = Child::Stopped([] { return Getppid() == getpid() ? 1 : 2; });
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  user_regs_struct regs = Regs(child);
  regs.orig_rax = SYS_getpid;
  SetRegs(child, regs);
  NextCall(child);
  EXPECT_EQ(static_cast<uint64_t>(child.pid()), Regs(child).rax);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(1), child.Wait());
}

TEST(PtraceCall, SkipCall) {
  Child child = Child::Stopped([] { return static_cast<int>(Getppid()); });
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  user_regs_struct regs = Regs(child);
  regs.orig_rax = ~0ull;
  SetRegs(child, regs);
  NextCall(child);
  regs = Regs(child);
  EXPECT_EQ(static_cast<uint64_t>(-ENOSYS), regs.rax);
  regs.rax = 42;
  SetRegs(child, regs);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(42), child.Wait());
}

TEST(PtraceCall, ChangeArguments) {
  static char text[] = "/no/such/file/here";
  Child child = Child::Stopped([] { return access(text, F_OK) == 0 ? 3 : 4; });
  ASSERT_TRUE(EnterCall(child, SYS_access));
  char other[16] = "/\0";
  uint64_t word;
  memcpy(&word, other, 8);
  EXPECT_EQ(0, Ptrace(PTRACE_POKEDATA, child, text, word));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(3), child.Wait());
}

TEST(PtraceCall, ChangeResult) {
  Child child = Child::Stopped([] { return static_cast<int>(Getppid()); });
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  NextCall(child);
  EXPECT_EQ(0, Ptrace(PTRACE_POKEUSR, child, reinterpret_cast<void*>(offsetof(user, regs.rax)), 9));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(9), child.Wait());
}

TEST(PtraceCall, ResultsInMemoryAreThere) {
  static uint64_t cell[2];
  Child child = Child::Stopped([] {
    int fds[2];
    pipe(fds);
    write(fds[1], "abcdefgh", 8);
    return read(fds[0], cell, 8) == 8 ? 0 : 1;
  });
  ASSERT_TRUE(EnterCall(child, SYS_read));
  EXPECT_EQ(0u, Peek(child, cell));
  NextCall(child);
  uint64_t want;
  memcpy(&want, "abcdefgh", 8);
  EXPECT_EQ(want, Peek(child, cell));
  uint64_t seen = 0;
  iovec local{&seen, 8}, remote{cell, 8};
  EXPECT_EQ(8, process_vm_readv(child, &local, 1, &remote, 1, 0));
  EXPECT_EQ(want, seen);
}

TEST(PtraceCall, SignalFromCallStop) {
  static volatile int got;
  Child child = Child::Stopped([] {
    signal(SIGUSR1, [](int s) { got = s; });
    Getppid();
    return got;
  });
  ASSERT_TRUE(EnterCall(child, SYS_getppid));
  ASSERT_EQ(0, Resume(PTRACE_SYSCALL, child, SIGUSR1));
  ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  // It is sent to the task, so it shows once more.
  ASSERT_EQ(0, Resume(PTRACE_CONT, child));
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  EXPECT_EQ(0, Resume(PTRACE_CONT, child, SIGUSR1));
  EXPECT_EQ(Child::Exited(SIGUSR1), child.Wait());
}

TEST(PtraceCall, InterruptedCallShowsRestart) {
  static int fds[2];
  pipe(fds);
  Child child = Child::Stopped([] {
    signal(SIGUSR1, [](int) {});
    char c;
    return read(fds[0], &c, 1) == 1 ? c : 100;
  });
  ASSERT_TRUE(EnterCall(child, SYS_read));
  Resume(PTRACE_SYSCALL, child);
  SleepMs(20);
  kill(child, SIGUSR1);
  ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  EXPECT_EQ(-512, static_cast<int64_t>(Regs(child).rax));  // ERESTARTSYS
  Resume(PTRACE_SYSCALL, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  EXPECT_EQ(-512, static_cast<int64_t>(Regs(child).rax));
  EXPECT_EQ(static_cast<uint64_t>(SYS_read), Regs(child).orig_rax);
  Resume(PTRACE_CONT, child, SIGUSR1);
  SleepMs(10);
  char c = 5;
  write(fds[1], &c, 1);
  EXPECT_EQ(Child::Exited(5), child.Wait());
}

// What a debugger does to call a function in a tracee that waits: the old call goes on afterwards.
TEST(PtraceCall, RestartIsTheTracersToSet) {
  static int fds[2];
  pipe(fds);
  Child child = Child::Stopped([] {
    char c;
    return read(fds[0], &c, 1) == 1 ? c : 100;
  });
  Resume(PTRACE_CONT, child);
  AwaitState(child, "S");
  kill(child, SIGSTOP);
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  user_regs_struct saved = Regs(child), regs = saved;
  EXPECT_EQ(-512, static_cast<int64_t>(saved.rax));
  regs.orig_rax = ~0ull;
  regs.rip = reinterpret_cast<uint64_t>(&Getpid);
  regs.rsp = ((regs.rsp - 1024) & ~15ull) - 8;
  Ptrace(PTRACE_POKEDATA, child, reinterpret_cast<void*>(regs.rsp), uint64_t{0});  // returns to 0
  SetRegs(child, regs);
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGSEGV), child.Wait());
  EXPECT_EQ(static_cast<uint64_t>(child.pid()), Regs(child).rax);
  SetRegs(child, saved);
  Resume(PTRACE_CONT, child);
  char c = 6;
  write(fds[1], &c, 1);
  EXPECT_EQ(Child::Exited(6), child.Wait());
}

TEST(PtraceCall, Sysemu) {
  Child child = Child::Stopped([] { return static_cast<int>(syscall(777, 1, 2, 3)); });
  int status = 0;
  for (int i = 0; i < 64; i++) {
    ASSERT_EQ(0, Resume(PTRACE_SYSEMU, child));
    status = child.Wait();
    if (WIFSTOPPED(status) && Regs(child).orig_rax == 777) break;
    // The others are made by hand: this once without emulation.
    user_regs_struct regs = Regs(child);
    if (static_cast<int64_t>(regs.rax) == -ENOSYS) {
      regs.rip -= 2;
      regs.rax = regs.orig_rax;
      SetRegs(child, regs);
      ASSERT_EQ(0, Resume(PTRACE_SINGLESTEP, child));
      ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
    }
  }
  user_regs_struct regs = Regs(child);
  EXPECT_EQ(2u, regs.rsi);
  regs.rax = 33;
  SetRegs(child, regs);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(33), child.Wait());
}

TEST(PtraceCall, GetSyscallInfo) {
  Child child = Child::Stopped([] { return close(-1) == -1 ? 0 : 1; });
  ptrace_syscall_info info{};
  // A signal's stop is none of a call.
  EXPECT_EQ(static_cast<long>(offsetof(ptrace_syscall_info, entry)),
            Ptrace(PTRACE_GET_SYSCALL_INFO, child, reinterpret_cast<void*>(sizeof info), &info));
  EXPECT_EQ(PTRACE_SYSCALL_INFO_NONE, info.op);
  EXPECT_EQ(0xc000003eu, info.arch);
  SetOptions(child, PTRACE_O_TRACESYSGOOD);
  ASSERT_TRUE(EnterCall(child, SYS_close));
  EXPECT_EQ(80,
            Ptrace(PTRACE_GET_SYSCALL_INFO, child, reinterpret_cast<void*>(sizeof info), &info));
  EXPECT_EQ(PTRACE_SYSCALL_INFO_ENTRY, info.op);
  EXPECT_EQ(static_cast<uint64_t>(SYS_close), info.entry.nr);
  EXPECT_EQ(0xffffffffu, info.entry.args[0] & 0xffffffff);
  EXPECT_EQ(Regs(child).rip, info.instruction_pointer);
  EXPECT_EQ(Regs(child).rsp, info.stack_pointer);
  NextCall(child);
  EXPECT_EQ(33,
            Ptrace(PTRACE_GET_SYSCALL_INFO, child, reinterpret_cast<void*>(sizeof info), &info));
  EXPECT_EQ(PTRACE_SYSCALL_INFO_EXIT, info.op);
  EXPECT_EQ(-EBADF, info.exit.rval);
  EXPECT_EQ(1, info.exit.is_error);
  // As much as there is room for.
  info.op = 77;
  EXPECT_EQ(33, Ptrace(PTRACE_GET_SYSCALL_INFO, child, nullptr, &info));
  EXPECT_EQ(77, info.op);
}

TEST(PtraceCall, FutexWaitHasEntryAndExit) {
  static uint32_t* word = static_cast<uint32_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  *word = 1;
  Child child = Child::Stopped([] {
    syscall(SYS_futex, word, FUTEX_WAIT, 1, nullptr);
    return *word == 2 ? 0 : 1;
  });
  ASSERT_TRUE(EnterCall(child, SYS_futex));
  Resume(PTRACE_SYSCALL, child);
  SleepMs(20);
  *word = 2;
  EXPECT_EQ(1, syscall(SYS_futex, word, FUTEX_WAKE, 1));
  ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  EXPECT_EQ(0u, Regs(child).rax);
  EXPECT_EQ(static_cast<uint64_t>(SYS_futex), Regs(child).orig_rax);
  EXPECT_EQ(2u, Message(child));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceCall, FutexWaitInterrupted) {
  static uint32_t word = 1;
  Child child = Child::Stopped([] {
    signal(SIGUSR1, [](int) { word = 3; });
    long r = syscall(SYS_futex, &word, FUTEX_WAIT, 1, nullptr);
    return r == -1 && errno == EINTR ? 0 : 1;
  });
  ASSERT_TRUE(EnterCall(child, SYS_futex));
  Resume(PTRACE_SYSCALL, child);
  SleepMs(20);
  kill(child, SIGUSR1);
  ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  EXPECT_EQ(2u, Message(child));
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  Resume(PTRACE_CONT, child, SIGUSR1);
  int status = child.Wait();
  EXPECT_TRUE(status == Child::Exited(0) || status == Child::Exited(1)) << status;
}

// --- steps ---

extern "C" const unsigned char step_code[], step_call[], step_after[], step_end[];
asm(".text\n"
    ".globl step_code, step_call, step_after, step_end\n"
    "step_code: nop\n"
    "nop\n"
    "mov $39, %eax\n"
    "step_call: syscall\n"
    "step_after: mov %rax, %rdi\n"
    "nop\n"
    "step_end: pushfq\n"
    "pop %rax\n"
    "ret\n");
uint64_t At(const unsigned char* p) { return reinterpret_cast<uint64_t>(p); }

TEST(PtraceStep, StepByStep) {
  Child child = Child::Stopped([] {
    for (int i = 0; i < 10; i++) reinterpret_cast<long (*)()>(&step_code)();
    return 0;
  });
  // To the code, by changing where it goes on.
  user_regs_struct regs = Regs(child);
  regs.rip = At(step_code);
  regs.orig_rax = ~0ull;
  SetRegs(child, regs);
  const uint64_t want[] = {At(step_code) + 1, At(step_code) + 2,  At(step_call),
                           At(step_after),    At(step_after) + 3, At(step_end)};
  for (uint64_t rip : want) {
    ASSERT_EQ(0, Resume(PTRACE_SINGLESTEP, child));
    ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
    regs = Regs(child);
    EXPECT_EQ(rip, regs.rip);
    EXPECT_EQ(0u, regs.eflags & kTrapFlag);
    // After a call it comes from the way out.
    EXPECT_EQ(rip == At(step_after) ? TRAP_BRKPT : TRAP_TRACE, Siginfo(child).si_code);
    if (rip == At(step_after)) {
      EXPECT_EQ(static_cast<uint64_t>(child.pid()), regs.rax);
    }
  }
}

TEST(PtraceStep, EveryCallOften) {
  Child child = Child::Stopped([] {
    for (int i = 0; i < 30; i++) reinterpret_cast<long (*)()>(&step_code)();
    return 5;
  });
  int calls = 0, steps = 0;
  int status = 0;
  for (; steps < 5000; steps++) {
    ASSERT_EQ(0, Resume(PTRACE_SINGLESTEP, child));
    status = child.Wait();
    if (!WIFSTOPPED(status)) break;
    ASSERT_EQ(Child::W(SIGTRAP), status);
    calls += Regs(child).rip == At(step_after);
  }
  EXPECT_EQ(Child::Exited(5), status);
  EXPECT_EQ(30, calls);
}

TEST(PtraceStep, IntoHandler) {
  static void (*handler)(int) = [](int) {};
  Child child = Child::Stopped([] {
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    return 0;
  });
  Resume(PTRACE_CONT, child);
  ASSERT_EQ(Child::W(SIGUSR1), child.Wait());
  ASSERT_EQ(0, Resume(PTRACE_SINGLESTEP, child, SIGUSR1));
  ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  EXPECT_EQ(reinterpret_cast<uint64_t>(handler), Regs(child).rip);
  EXPECT_EQ(0u, Regs(child).eflags & kTrapFlag);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceStep, OverAFault) {
  static char* page =
      static_cast<char*>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Child child = Child::Stopped([] {
    signal(SIGSEGV, [](int) { mprotect(page, 4096, PROT_READ | PROT_WRITE); });
    *page = 1;
    return *page;
  });
  int status = 0;
  bool faulted = false;
  for (int i = 0; i < 5000; i++) {
    int signo = WIFSTOPPED(status) && WSTOPSIG(status) == SIGSEGV ? SIGSEGV : 0;
    faulted |= signo != 0;
    ASSERT_EQ(0, Resume(PTRACE_SINGLESTEP, child, static_cast<uint64_t>(signo)));
    status = child.Wait();
    if (!WIFSTOPPED(status)) break;
  }
  EXPECT_TRUE(faulted);
  EXPECT_EQ(Child::Exited(1), status);
}

// --- breakpoints ---

__attribute__((noinline)) int Target(int x) {
  asm volatile("" : "+r"(x));
  return x + 1;
}

TEST(PtraceBreak, InText) {
  Child child = Child::Stopped([] {
    int sum = 0;
    for (int i = 0; i < 3; i++) sum += Target(i);
    return sum;
  });
  void* at = reinterpret_cast<void*>(&Target);
  const uint64_t original = Peek(child, at);
  EXPECT_EQ(0, memcmp(&original, at, 8));
  const uint64_t broken = (original & ~0xffull) | 0xcc;
  for (int i = 0; i < 3; i++) {
    ASSERT_EQ(0, Ptrace(PTRACE_POKETEXT, child, at, broken)) << strerror(errno);
    EXPECT_EQ(broken, Peek(child, at));
    Resume(PTRACE_CONT, child);
    ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
    EXPECT_EQ(SI_KERNEL, Siginfo(child).si_code);
    user_regs_struct regs = Regs(child);
    EXPECT_EQ(reinterpret_cast<uint64_t>(at) + 1, regs.rip);
    EXPECT_EQ(static_cast<uint64_t>(i), regs.rdi & 0xffffffff);
    ASSERT_EQ(0, Ptrace(PTRACE_POKETEXT, child, at, original));
    regs.rip--;
    SetRegs(child, regs);
    Resume(PTRACE_SINGLESTEP, child);
    ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
  }
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(6), child.Wait());
  uint64_t ours;  // nobody else sees it
  memcpy(&ours, at, 8);
  EXPECT_EQ(original, ours);
}

// On call sites that have been made often, so that whoever rewrites them has done it.
TEST(PtraceBreak, AtHotCall) {
  static int go[2];
  pipe(go);
  auto hot = [] {
    for (int i = 0; i < 2000; i++) {
      reinterpret_cast<long (*)()>(&step_code)();
      Getppid();
    }
  };
  hot();
  Child child([hot] {
    hot();
    char c;
    read(go[0], &c, 1);
    reinterpret_cast<long (*)()>(&step_code)();
    return 4;
  });
  SleepMs(20);
  ASSERT_EQ(0, Ptrace(PTRACE_ATTACH, child));
  ASSERT_EQ(Child::W(SIGSTOP), child.Wait());
  unsigned char seen[24];
  for (int i = 0; i < 3; i++) {
    uint64_t word = Peek(child, step_code + 8 * i);
    memcpy(seen + 8 * i, &word, 8);
  }
  const unsigned char want[] = {0x90, 0x90, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0xc7, 0x90};
  EXPECT_EQ(0, memcmp(want, seen, sizeof want));
  const unsigned char* places[] = {step_code + 2, step_call, step_after};
  for (const unsigned char* place : places) {
    uint64_t word = Peek(child, place);
    ASSERT_EQ(0, Ptrace(PTRACE_POKETEXT, child, place, (word & ~0xffull) | 0xcc));
  }
  Resume(PTRACE_CONT, child);
  write(go[1], "x", 1);
  for (const unsigned char* place : places) {
    ASSERT_EQ(Child::W(SIGTRAP), child.Wait());
    user_regs_struct regs = Regs(child);
    EXPECT_EQ(At(place) + 1, regs.rip);
    uint64_t word = Peek(child, place);
    uint64_t byte = want[place - step_code];
    ASSERT_EQ(0, Ptrace(PTRACE_POKETEXT, child, place, (word & ~0xffull) | byte));
    regs.rip--;
    SetRegs(child, regs);
    Resume(PTRACE_CONT, child);
  }
  EXPECT_EQ(Child::Exited(4), child.Wait());
}

// --- memory ---

TEST(PtraceMemory, ErrorsAndWords) {
  static uint64_t cell = 0x1122334455667788;
  Child child = Child::Stopped([] { return cell == 5 ? 0 : 1; });
  EXPECT_EQ(0x1122334455667788u, Peek(child, &cell));
  uint64_t word;
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, BadAddress(), &word), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKTEXT, child, reinterpret_cast<void*>(~0ull << 12), &word), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_POKEDATA, child, BadAddress(), uint64_t{1}), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKDATA, child, &cell, uint64_t{8}), EFAULT);
  EXPECT_EQ(0, Ptrace(PTRACE_POKEDATA, child, &cell, uint64_t{5}));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceMemory, AcrossPagesAndProtection) {
  static char* pages = static_cast<char*>(
      mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memset(pages, 'a', 8192);
  mprotect(pages, 4096, PROT_READ);
  mprotect(pages + 4096, 4096, PROT_NONE);
  Child child = Child::Stopped([] {
    mprotect(pages, 8192, PROT_READ);
    return memcmp(pages + 4092, "ABCDEFGH", 8) == 0 ? 0 : 1;
  });
  uint64_t word;
  memcpy(&word, "aaaaaaaa", 8);
  EXPECT_EQ(word, Peek(child, pages + 4092));
  memcpy(&word, "ABCDEFGH", 8);
  EXPECT_EQ(0, Ptrace(PTRACE_POKEDATA, child, pages + 4092, word));
  EXPECT_EQ(word, Peek(child, pages + 4092));
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceMemory, ReadOnlySharedIsNotWritten) {
  static char* page =
      static_cast<char*>(mmap(nullptr, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Child child = Child::Stopped([] { return 0; });
  EXPECT_EQ(0u, Peek(child, page));
  EXPECT_ERRNO(Ptrace(PTRACE_POKEDATA, child, page, uint64_t{1}), EIO);
}

TEST(PtraceMemory, ProcMem) {
  static const uint64_t constant[512] = {7};
  const volatile uint64_t* p = constant;
  Child child = Child::Stopped([p] { return static_cast<int>(*p); });
  std::string name = "/proc/" + std::to_string(child.pid()) + "/mem";
  int fd = open(name.c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  uint64_t word = 0;
  off_t at = reinterpret_cast<off_t>(p);
  EXPECT_EQ(8, pread(fd, &word, 8, at));
  EXPECT_EQ(7u, word);
  word = 9;
  EXPECT_EQ(8, pwrite(fd, &word, 8, at));  // read-only data
  EXPECT_ERRNO(pread(fd, &word, 8, 0x10), EIO);
  close(fd);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(9), child.Wait());
  EXPECT_EQ(7u, *p);
}

TEST(PtraceMemory, ProcSelfMemWritesText) {
  EXPECT_EQ(0, ExitStatus([] {
              int fd = open("/proc/self/mem", O_RDWR);
              const unsigned char code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3};  // mov $42,%eax; ret
              if (pwrite(fd, code, sizeof code, reinterpret_cast<off_t>(&Target)) != sizeof code)
                return 1;
              return Target(1) == 42 ? 0 : 2;
            }));
  EXPECT_EQ(2, Target(1));
}

// --- registers ---

TEST(PtraceRegs, User) {
  Child child = Child::Stopped([] { return 0; });
  user_regs_struct regs = Regs(child);
  auto peek = [&](size_t offset) {
    uint64_t word = 0;
    EXPECT_EQ(0, Ptrace(PTRACE_PEEKUSR, child, reinterpret_cast<void*>(offset), &word)) << offset;
    return word;
  };
  EXPECT_EQ(regs.rip, peek(offsetof(user, regs.rip)));
  EXPECT_EQ(regs.rsp, peek(offsetof(user, regs.rsp)));
  EXPECT_EQ(regs.fs_base, peek(offsetof(user, regs.fs_base)));
  EXPECT_EQ(0x33u, regs.cs);
  EXPECT_EQ(0x2bu, regs.ss);
  EXPECT_EQ(0u, peek(offsetof(user, u_debugreg[7])) & 0xff);
  uint64_t word;
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKUSR, child, reinterpret_cast<void*>(3), &word), EIO);
  EXPECT_ERRNO(Ptrace(PTRACE_PEEKUSR, child, reinterpret_cast<void*>(sizeof(user) + 16), &word),
               EIO);
  auto poke = [&](size_t offset, uint64_t value) {
    return Ptrace(PTRACE_POKEUSR, child, reinterpret_cast<void*>(offset), value);
  };
  EXPECT_EQ(0, poke(offsetof(user, regs.r15), 0x1234));
  EXPECT_EQ(0x1234u, Regs(child).r15);
  EXPECT_ERRNO(poke(offsetof(user, regs.fs_base), ~0ull), EIO);
  EXPECT_ERRNO(poke(offsetof(user, regs.cs), 0), EIO);
  EXPECT_ERRNO(poke(1, 0), EIO);
  EXPECT_EQ(0, poke(offsetof(user, u_debugreg[7]), 0));
  // Only some flags are for tracers to set.
  EXPECT_EQ(0, poke(offsetof(user, regs.eflags), regs.eflags | 1 | 0x3000));
  EXPECT_EQ((regs.eflags & ~0x3000ull) | 1, Regs(child).eflags | (regs.eflags & 1));
}

TEST(PtraceRegs, Regset) {
  Child child = Child::Stopped([] { return 0; });
  user_regs_struct regs{};
  iovec iov{&regs, sizeof regs + 100};
  EXPECT_EQ(0, Ptrace(PTRACE_GETREGSET, child, reinterpret_cast<void*>(NT_PRSTATUS), &iov) == 0 ? 0
               : errno == EINVAL                                                                ? 0
                                 : 1);
  iov = {&regs, sizeof regs};
  ASSERT_EQ(0, Ptrace(PTRACE_GETREGSET, child, reinterpret_cast<void*>(NT_PRSTATUS), &iov));
  EXPECT_EQ(sizeof regs, iov.iov_len);
  EXPECT_EQ(Regs(child).rip, regs.rip);
  iov = {&regs, 16};
  ASSERT_EQ(0, Ptrace(PTRACE_GETREGSET, child, reinterpret_cast<void*>(NT_PRSTATUS), &iov));
  EXPECT_EQ(16u, iov.iov_len);
  regs.r15 = 77;
  iov = {&regs, sizeof regs};
  ASSERT_EQ(0, Ptrace(PTRACE_SETREGSET, child, reinterpret_cast<void*>(NT_PRSTATUS), &iov));
  EXPECT_EQ(77u, Regs(child).r15);
  EXPECT_ERRNO(Ptrace(PTRACE_GETREGSET, child, reinterpret_cast<void*>(0x7777), &iov), EINVAL);
}

TEST(PtraceRegs, FloatingPoint) {
  static volatile double in = 1.5;
  static double out;
  Child child = Child::Stopped([] {
    double a = in;
    asm volatile(
        "movsd %1, %%xmm5\n\t"
        "mov $39, %%eax\n\t"
        "syscall\n\t"
        "movsd %%xmm5, %0"
        : "=m"(out)
        : "m"(a)
        : "rax", "rcx", "r11", "xmm5", "memory");
    return out == 2.5 ? 0 : 1;
  });
  ASSERT_TRUE(EnterCall(child, SYS_getpid));
  user_fpregs_struct fp{};
  ASSERT_EQ(0, Ptrace(PTRACE_GETFPREGS, child, nullptr, &fp));
  double value;
  memcpy(&value, fp.xmm_space + 5 * 4, 8);
  EXPECT_EQ(1.5, value);
  EXPECT_EQ(0x37f, fp.cwd);
  EXPECT_EQ(0x1f80u, fp.mxcsr);
  value = 3.5;
  memcpy(fp.xmm_space + 5 * 4, &value, 8);
  ASSERT_EQ(0, Ptrace(PTRACE_SETFPREGS, child, nullptr, &fp));
  // And by the extended state, which shows it and sets it again.
  std::vector<char> xstate(16384);
  iovec iov{xstate.data(), xstate.size()};
  ASSERT_EQ(0, Ptrace(PTRACE_GETREGSET, child, reinterpret_cast<void*>(NT_X86_XSTATE), &iov));
  EXPECT_LE(576u, iov.iov_len);
  uint64_t features;
  memcpy(&features, xstate.data() + 464, 8);
  EXPECT_EQ(3u, features & 3);
  memcpy(&value, xstate.data() + 160 + 5 * 16, 8);
  EXPECT_EQ(3.5, value);
  value = 2.5;
  memcpy(xstate.data() + 160 + 5 * 16, &value, 8);
  ASSERT_EQ(0, Ptrace(PTRACE_SETREGSET, child, reinterpret_cast<void*>(NT_X86_XSTATE), &iov));
  iov.iov_len = 576 - 8;
  EXPECT_ERRNO(Ptrace(PTRACE_SETREGSET, child, reinterpret_cast<void*>(NT_X86_XSTATE), &iov),
               EFAULT);
  Resume(PTRACE_CONT, child);
  EXPECT_EQ(Child::Exited(0), child.Wait());
}

TEST(PtraceRegs, ArchPrctl) {
  Child child = Child::Stopped([] { return 0; });
  uint64_t base = 0;
  EXPECT_EQ(0, Ptrace(30, child, &base, uint64_t{ARCH_GET_FS}));
  EXPECT_EQ(Regs(child).fs_base, base);
  EXPECT_EQ(0, Ptrace(30, child, reinterpret_cast<void*>(0x1000), uint64_t{ARCH_SET_GS}));
  EXPECT_EQ(0x1000u, Regs(child).gs_base);
}

}  // namespace
