// What the ptrace platform does by itself. The tests of both platforms are beside platform.h.
#include <errno.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <random>
#include <thread>

#include "platform/mailbox.h"
#include "platform/ptrace/call_filter.h"
#include "platform/systrap/filter.h"
#include "platform/test_guest.h"
#include "sentry/base/host_seccomp.h"
#include "sentry/base/sanitizer.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;

// A host process may not have seccomp(2), nor prctl(2)'s way to it, from now on.
void RefuseSeccomp() {
  const sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PR_SET_SECCOMP, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog f{std::size(program), const_cast<sock_filter*>(program)};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &f) != 0) _exit(100);
}

// Runs `f` in a child; what it returns.
int InChild(int (*f)()) {
  pid_t pid = fork();
  if (pid == 0) _exit(f());
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) return -1;
  return WEXITSTATUS(status);
}

int RunOneCall(Platform& platform) {
  Guest g;
  if (!g.Load(platform)) return 2;
  g.SetEntry(guest_site);
  g.main.context->regs().rax = 140;
  return RunGuest(platform, g.main).kind == TrapKind::kSyscall ? 0 : 3;
}

TEST(PtraceTest, NeedsNoSeccompOfTheHost) {
  EXPECT_EQ(0, InChild([] {
              RefuseSeccomp();
              std::string why;
              if (base::HostHasSeccomp()) return 4;
              if (CreateSystrap(Options{}, &why).ok() || why.empty()) return 5;
              why.clear();
              auto p = CreatePtrace(Options{}, &why);
              return p.ok() ? RunOneCall(**p) : 6;
            }));
}

TEST(PtraceTest, AutoTakesWhatTheHostCanDo) {
  std::string why;
  {
    auto p = Create("auto", Options{}, &why);
    ASSERT_TRUE(p.ok()) << why;
    EXPECT_STREQ((*p)->name(), "systrap");
    EXPECT_EQ(why, "");
  }
  EXPECT_EQ(0, InChild([] {
              RefuseSeccomp();
              std::string reason;
              auto other = Create("auto", Options{}, &reason);
              if (!other.ok() || std::string((*other)->name()) != "ptrace") return 4;
              return reason.starts_with("systrap: ") ? RunOneCall(**other) : 5;
            }));
  EXPECT_EQ(Create("kvm", Options{}, &why).error().code(), EINVAL);
}

TEST(PtraceTest, SaysThatTheHostLetsNobodyBeTraced) {
  EXPECT_EQ(0, InChild([] {
              const sock_filter program[] = {
                  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 1),
                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
              };
              const sock_fprog f{std::size(program), const_cast<sock_filter*>(program)};
              prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
              if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &f) != 0) return 100;
              std::string why;
              auto p = CreatePtrace(Options{}, &why);
              return !p.ok() && why.find("ptrace: Operation not permitted") != why.npos ? 0 : 1;
            }));
}

int TracerOf(int pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string word; status >> word;) {
    if (word == "TracerPid:" && status >> word) return std::stoi(word);
  }
  return -1;
}

TEST(PtraceTest, EveryStubIsTraced) {
  std::string why;
  auto p = CreatePtrace(Options{}, &why);
  ASSERT_TRUE(p.ok()) << why;
  Guest g;
  ASSERT_TRUE(g.Load(**p));
  auto child = std::move(*g.space->PrepareFork());
  g.main.context->QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(**p, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_GT(TracerOf(g.space->host_pid()), 0);
  EXPECT_GT(TracerOf(child->host_pid()), 0);
}

// They are gone with the process whose thread traces them, however it ends.
TEST(PtraceTest, StubsDieWithTheirTracer) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    std::string why;
    auto p = CreatePtrace(Options{}, &why);
    Guest g;
    if (!p.ok() || !g.Load(**p)) _exit(1);
    g.SetEntry(guest_spin);
    g.main.context->Resume(ResumeMode::kGuest);
    const int stub = g.space->host_pid();
    if (write(pipes[1], &stub, sizeof(stub)) != sizeof(stub)) _exit(2);
    for (;;) pause();
  }
  int stub = 0;
  ASSERT_EQ(read(pipes[0], &stub, sizeof(stub)), static_cast<ssize_t>(sizeof(stub)));
  ASSERT_GT(stub, 0);
  EXPECT_EQ(kill(stub, 0), 0);
  kill(pid, SIGKILL);
  ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
  for (int i = 0; i < 500 && TracerOf(stub) >= 0; i++) usleep(10'000);
  // Whoever reaps it may take a while.
  EXPECT_LE(TracerOf(stub), 0);
  close(pipes[0]);
  close(pipes[1]);
}

// A process that makes calls without end is one of many to the tracer.
TEST(PtraceTest, AStubThatStopsAllTheTimeKeepsNobodyWaiting) {
  std::string why;
  auto p = CreatePtrace(Options{.patch = false}, &why);
  ASSERT_TRUE(p.ok()) << why;
  Guest quiet;
  ASSERT_TRUE(quiet.Load(**p));
  std::vector<std::unique_ptr<Guest>> busy;
  for (int i = 0; i < 4; i++) {  // the host tells of these first
    busy.push_back(std::make_unique<Guest>());
    ASSERT_TRUE(busy.back()->Load(**p));
    busy.back()->SetEntry(guest_gettid_loop);
    busy.back()->main.context->Publish({.pid = 1, .tid = 1});
    busy.back()->main.context->Resume(ResumeMode::kGuest);
  }
  for (int i = 0; i < 200; i++) {
    quiet.SetEntry(guest_site);
    quiet.main.context->regs().rax = 140;
    ASSERT_EQ(RunGuest(**p, quiet.main).kind, TrapKind::kSyscall);
  }
}

// Whatever their number, with the registers that the instruction leaves.
TEST(PtraceTest, CallsOutsideTheStubAreTheGuests) {
  std::string why;
  auto p = CreatePtrace(Options{}, &why);
  ASSERT_TRUE(p.ok()) << why;
  Guest g;
  ASSERT_TRUE(g.Load(**p));
  for (uint64_t nr : {9ull, 56ull, 231ull, 0ull - 1, 0ull - 512, 0ull - 516}) {
    g.SetEntry(guest_site);
    g.main.context->regs().rax = nr;
    ASSERT_EQ(RunGuest(**p, g.main).kind, TrapKind::kSyscall) << nr;
    EXPECT_EQ(g.main.context->regs().orig_rax, nr);
    EXPECT_EQ(g.main.context->regs().rcx, g.main.context->regs().rip);
    EXPECT_EQ(g.main.context->regs().r11, g.main.context->regs().eflags);
  }
}

// The interpreter says what the host's seccomp does: the same program, calls at random.
TEST(CallFilterTest, AgreesWithTheHost) {
  if (base::kSanitized) GTEST_SKIP() << "sanitizers make host calls that the filter refuses";
  const std::vector<uint64_t> words = BuildZygoteFilter(true, Gated::kNothing);
  const CallFilter filter(words);
  for (int nr = 0; nr < 480; nr++) {
    if (nr == 335 || nr == 336 || nr == 15 || nr == 60) continue;
    seccomp_data call{};
    call.nr = nr;
    call.arch = AUDIT_ARCH_X86_64;
    call.args[0] = 1;
    const uint32_t action = filter.Action(call);
    pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      signal(SIGHUP, SIG_IGN);
      sock_fprog program{static_cast<unsigned short>(words.size()),
                         reinterpret_cast<sock_filter*>(const_cast<uint64_t*>(words.data()))};
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(2);
      syscall(nr, 1, -1, -1, -1, -1, -1);
      syscall(SYS_exit, 0);  // which is on the list
    }
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_EQ(action == SECCOMP_RET_ALLOW, WIFEXITED(status)) << nr;
  }
}

TEST(CallFilterTest, ArgumentsOfAStub) {
  const CallFilter filter(BuildStubFilter(true, false));
  auto action = [&](int nr, uint64_t a, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0,
                    uint64_t ip = kStubBase + 0x1000, uint32_t arch = AUDIT_ARCH_X86_64) {
    return filter.Action(seccomp_data{nr, arch, ip, {a, b, c, d, 0, 0}});
  };
  const uint32_t kAllow = SECCOMP_RET_ALLOW, kTrap = SECCOMP_RET_TRAP,
                 kEnd = SECCOMP_RET_KILL_PROCESS;
  EXPECT_EQ(action(SYS_exit, 0), kAllow);
  EXPECT_EQ(action(SYS_exit, 0, 0, 0, 0, 0x400000), kTrap);
  EXPECT_EQ(action(SYS_exit, 0, 0, 0, 0, kStubBase + kStubTextMax), kTrap);
  EXPECT_EQ(action(SYS_exit, 0, 0, 0, 0, kStubBase + 0x1000, AUDIT_ARCH_I386), kTrap);
  EXPECT_EQ(action(SYS_getpid, 0), kEnd);
  EXPECT_EQ(action(SYS_getpid, 0, 0, 0, 0, 0x400000), kTrap);
  EXPECT_EQ(action(SYS_restart_syscall, 0), SECCOMP_RET_ERRNO | uint32_t{EINTR});
  EXPECT_EQ(action(SYS_restart_syscall, 0, 0, 0, 0, 0x400000), kTrap);
  EXPECT_EQ(action(SYS_mremap, 0x1000, 0x1000, 0x1000, 3), kAllow);
  EXPECT_EQ(action(SYS_mremap, kRegionBase - 0x1000, 0xfff, 0x1000, 3), kAllow);
  EXPECT_EQ(action(SYS_mremap, kRegionBase - 0x1000, 0x1000, 0x1000, 3), kEnd);
  EXPECT_EQ(action(SYS_mremap, ~0ull, 0x2000, 0x1000, 3), kAllow);  // the host refuses it
  EXPECT_EQ(action(SYS_futex, kSharedBase, 0), kEnd);
  EXPECT_EQ(action(SYS_futex, kSharedBase, 1), kAllow);
  EXPECT_EQ(action(SYS_futex, kSharedBase + kSharedSize, 0), kAllow);
  // What is no program of ours admits nothing.
  const sock_filter odd[] = {BPF_STMT(BPF_LD | BPF_W | BPF_IMM, 1)};
  uint64_t word;
  memcpy(&word, odd, sizeof(word));
  EXPECT_EQ(CallFilter(std::span(&word, 1)).Action({}), SECCOMP_RET_KILL_PROCESS);
  EXPECT_EQ(CallFilter({}).Action({}), SECCOMP_RET_KILL_PROCESS);
}

}  // namespace
}  // namespace platform
