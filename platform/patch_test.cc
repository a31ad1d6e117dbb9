// Patched sites, the express lane, and what goes through the mailbox instead of process_vm_*.
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "platform/host_calls.h"
#include "platform/systrap/platform.h"
#include "platform/test_guest.h"
#include "platform/test_platform.h"

namespace platform {
namespace {

using test::Anonymous;
using test::Await;
using test::Guest;
using test::RunGuest;
using test::Thread;

class PatchTest : public test::PlatformTest {
 protected:
  // Runs until exit(2), answering every call with `answer`; returns how many there were.
  uint64_t RunToExit(Thread& t, uint64_t answer) {
    uint64_t calls = 0;
    for (;;) {
      const Trap& trap = RunGuest(*platform_, t);
      if (trap.kind == TrapKind::kInterrupt) continue;
      if (trap.kind != TrapKind::kSyscall) {
        ADD_FAILURE() << "trap " << static_cast<int>(trap.kind) << " signal " << trap.signo
                      << " at " << t.context->regs().rip;
        return calls;
      }
      if (t.context->regs().orig_rax == 60) return calls;
      calls++;
      t.context->regs().rax = answer;
    }
  }
  // Has the site of guest_compare looked at, without which it is not patched.
  void LearnCompare(Guest& g) {
    g.SetEntry(guest_compare);
    g.main.context->regs().rdi = 2;
    g.main.context->regs().r14 = 140;
    RunToExit(g.main, 0);
    static_cast<SystrapPlatform&>(*platform_).texts().WaitUntilBuilt();
  }
  // Whether the instruction of the first call of `symbol` has become a jump.
  bool Patched(AddressSpace& space, uint64_t addr) {
    unsigned char byte = 0;
    EXPECT_TRUE(space.Read(addr, std::as_writable_bytes(std::span(&byte, 1))).ok());
    return byte == 0xff;
  }
};

constexpr uint64_t kMovSite = 5;  // of guest_counter: behind two xor of 2 and 3 bytes

TEST_F(PatchTest, MovForm) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  g.SetEntry(guest_counter);
  Regs& r = g.main.context->regs();
  r.rdi = 5000;
  r.rbp = 77;
  r.r13 = 13;
  r.fs_base = 0x12340;
  EXPECT_EQ(RunToExit(g.main, 3), 5000u);
  EXPECT_EQ(r.rbx, 5000u);
  EXPECT_EQ(r.r12, 15000u);
  EXPECT_EQ(r.rbp, 77u);
  EXPECT_EQ(r.r13, 13u);
  EXPECT_EQ(r.fs_base, 0x12340u);
  EXPECT_TRUE(Patched(*g.space, test::GuestAddr(guest_counter) + kMovSite));
}

TEST_F(PatchTest, CompareForm) {
  for (int64_t answer : {0l, 7l, -1l, -4094l, -4095l, -4096l, -4097l}) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_, true));
    LearnCompare(g);
    g.SetEntry(guest_compare);
    Regs& r = g.main.context->regs();
    r.rdi = 1000;
    r.r14 = 140;
    EXPECT_EQ(RunToExit(g.main, static_cast<uint64_t>(answer)), 1000u);
    EXPECT_EQ(r.r12, static_cast<uint64_t>(answer * 1000));
    EXPECT_EQ(r.r15, answer < 0 && answer >= -4095 ? 1000u : 0u) << answer;
    EXPECT_TRUE(Patched(*g.space, test::GuestAddr(guest_compare) + 11));
  }
}

TEST_F(PatchTest, FlagsSurvive) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  g.SetEntry(guest_flags);
  g.main.context->regs().rdi = 500;
  RunToExit(g.main, 0);
  EXPECT_EQ(g.main.context->regs().rbx, 0u);
  EXPECT_EQ(g.main.context->regs().r12, 500u);
}

TEST_F(PatchTest, InterruptStorm) {
  for (const char* entry : {guest_counter, guest_compare}) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_, true));
    LearnCompare(g);
    g.SetEntry(entry);
    Context& c = *g.main.context;
    c.regs().rdi = 100000;
    c.regs().r14 = 140;
    std::atomic<bool> stop{false};
    std::thread interrupter([&] {
      for (uint32_t i = 0; !stop; i++) {
        c.Interrupt();
        if (i % 4 == 0) usleep(i % 30);
      }
    });
    EXPECT_EQ(RunToExit(g.main, 5), 100000u);
    stop = true;
    interrupter.join();
    EXPECT_EQ(c.regs().r12, 500000u);
    EXPECT_EQ(c.regs().r15, 0u);
  }
}

TEST_F(PatchTest, RegistersChangedByTheKernel) {
  // As a signal's delivery and return do it at a patched site.
  for (const char* entry : {guest_counter, guest_compare}) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_, true));
    LearnCompare(g);
    g.SetEntry(entry);
    auto regs = [&]() -> Regs& { return g.main.context->regs(); };
    regs().rdi = 300;
    regs().r14 = 140;
    for (int i = 0; i < 100; i++) {
      ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
      regs().rax = 2;
      const Regs saved = regs();
      g.SetEntry(guest_site);
      regs().rax = 39;
      ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
      EXPECT_EQ(regs().orig_rax, 39u);
      regs() = saved;
      if (i % 3 == 0) {  // restarted
        regs().rip -= 2;
        regs().rax = 140;
        ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
        regs().rax = 2;
      }
    }
    RunToExit(g.main, 2);
    EXPECT_EQ(regs().rbx, 300u);
    EXPECT_EQ(regs().r12, 600u);
    EXPECT_EQ(regs().r15, 0u);
  }
}

// The frame of a signal that came at a call whose site is patched by the time of the return: where
// the call ends there is the middle of an instruction now, and the kernel knows how to go on.
TEST_F(PatchTest, ReturnFromASignalIntoASitePatchedMeanwhile) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  LearnCompare(g);
  Context& c = *g.main.context;
  auto begin = [&](uint64_t calls) {
    g.SetEntry(guest_compare);
    c.regs().rdi = calls;
    c.regs().r14 = 140;
  };
  begin(2);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  const uint64_t call_end = c.regs().rip;
  ASSERT_FALSE(Patched(*g.space, call_end - 2));
  auto put_frame = [&](uint64_t rip) {
    ucontext_t frame{};
    frame.uc_stack.ss_flags = SS_DISABLE;
    frame.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(rip);
    frame.uc_mcontext.gregs[REG_RSP] = test::kStack + 0x8000;
    frame.uc_mcontext.gregs[REG_RAX] = 39;
    ASSERT_TRUE(g.space->Write(test::kData, std::as_bytes(std::span(&frame, 1))).ok());
  };
  auto sigreturn = [&] {
    g.SetEntry(guest_site);
    c.regs().rax = 15;
    c.regs().rsp = test::kData;
    c.SetThreadCalls(true);
    c.OpenSignalMask(0, {});
  };
  // While the call is as it was, its frame and any other are returned from without the kernel, but
  // for some that tell it of the place.
  put_frame(test::GuestAddr(guest_site));
  uint64_t nr = 15;
  for (int i = 0; i < 100 && nr == 15; i++) {
    sigreturn();
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
    nr = c.regs().orig_rax;
  }
  EXPECT_EQ(nr, 39u);
  begin(1000);
  RunToExit(g.main, 0);
  ASSERT_TRUE(Patched(*g.space, call_end - 2));
  put_frame(call_end);
  for (int i = 0; i < 10; i++) {
    sigreturn();
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
    ASSERT_EQ(c.regs().orig_rax, 15u);
  }
}

TEST_F(PatchTest, WritableTextIsUnpatched) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  g.SetEntry(guest_counter);
  g.main.context->regs().rdi = 100;
  RunToExit(g.main, 0);
  ASSERT_TRUE(Patched(*g.space, test::GuestAddr(guest_counter) + kMovSite));
  Context& c = *g.main.context;
  c.QueueOrder(order::Mprotect{test::kCode, 0x1000, PROT_READ | PROT_WRITE | PROT_EXEC});
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  std::vector<std::byte> code = test::GuestCode(), now(code.size());
  ASSERT_TRUE(g.space->Read(test::kCode, now).ok());
  EXPECT_EQ(code, now);
  g.SetEntry(guest_counter);
  c.regs().rdi = 100;
  EXPECT_EQ(RunToExit(g.main, 1), 100u);
  EXPECT_EQ(c.regs().r12, 100u);
}

TEST_F(PatchTest, GuestMayHaveThePlaceOfTheTable) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  auto reserved = g.space->ReservedRanges();
  ASSERT_EQ(reserved.size(), 1u);
  g.SetEntry(guest_counter);
  g.main.context->regs().rdi = 100;
  RunToExit(g.main, 0);
  Context& c = *g.main.context;
  c.QueueOrder(Anonymous(reserved[0].first, 0x1000, PROT_READ | PROT_WRITE));
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_TRUE(g.space->ReservedRanges().empty());
  EXPECT_FALSE(Patched(*g.space, test::GuestAddr(guest_counter) + kMovSite));
  g.SetEntry(guest_counter);
  c.regs().rdi = 100;
  EXPECT_EQ(RunToExit(g.main, 1), 100u);
}

TEST_F(PatchTest, ForkedChildHasPatchedText) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  g.SetEntry(guest_counter);
  g.main.context->regs().rdi = 100;
  RunToExit(g.main, 0);
  auto child = std::move(*g.space->PrepareFork());
  g.main.context->QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  Thread t;
  t.context = child->TakeMainContext();
  t.context->set_listener(&t);
  for (const char* entry : {guest_counter, guest_compare}) {
    t.context->regs() = Regs{};
    t.context->regs().rip = test::GuestAddr(entry);
    t.context->regs().rsp = test::kStack + 0x8000;
    t.context->regs().rdi = 1000;
    t.context->regs().r14 = 140;
    EXPECT_EQ(RunToExit(t, 1), 1000u);
    EXPECT_EQ(t.context->regs().r12, 1000u);
  }
}

TEST_F(PatchTest, ForeignGsAtAPatchedSite) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  LearnCompare(g);
  for (const char* entry : {guest_counter, guest_compare}) {
    g.SetEntry(entry);
    Regs& r = g.main.context->regs();
    r.rdi = 100;
    r.r14 = 140;
    RunToExit(g.main, 0);
    g.SetEntry(entry);
    r.gs_base = test::kData;
    r.rdi = 100;
    r.r14 = 140;
    EXPECT_EQ(RunToExit(g.main, 4), 100u);
    EXPECT_EQ(r.r12, 400u);
    EXPECT_EQ(r.gs_base, test::kData);
  }
}

TEST_F(PatchTest, ManyThreadsAtOneSite) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  constexpr int kThreads = 8;
  std::vector<Thread> threads(kThreads);
  for (Thread& t : threads) {
    t.context = std::move(*g.space->PrepareThread());
    t.context->set_listener(&t);
    t.context->regs().rip = test::GuestAddr(guest_counter);
    t.context->regs().rdi = 3000;
    g.main.context->QueueOrder(order::CloneThread{t.context.get()});
  }
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  for (Thread& t : threads) t.context->Resume(ResumeMode::kGuest);
  int left = kThreads;
  while (left > 0) {
    test::PollOnce(*platform_);
    for (Thread& t : threads) {
      if (!t.trapped) continue;
      t.trapped = false;
      Regs& r = t.context->regs();
      ASSERT_EQ(t.context->trap().kind, TrapKind::kSyscall) << t.context->trap().signo;
      if (r.orig_rax == 60) {
        EXPECT_EQ(r.r12, 6000u);
        left--;
        t.context->Exit();
        continue;
      }
      r.rax = 2;
      t.context->Resume(ResumeMode::kGuest);
    }
  }
}

TEST_F(PatchTest, IdentityIsAnsweredInTheStub) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_, true));
  Context& c = *g.main.context;
  c.Publish({.pid = 41, .tid = 42, .ppid = 1, .uid = 7, .euid = 8, .gid = 9, .egid = 10});
  for (int i = 0; i < 10; i++) {
    g.SetEntry(guest_getpid);
    EXPECT_EQ(RunToExit(g.main, 0), 0u);
    EXPECT_EQ(c.regs().rbx, 41u);
    EXPECT_EQ(c.regs().r12, 42u);
  }
  EXPECT_TRUE(Patched(*g.space, test::GuestAddr(guest_getpid)));
  c.SetLanes(Context::Lanes::kFutex);
  g.SetEntry(guest_getpid);
  EXPECT_EQ(RunToExit(g.main, 5), 2u);
  EXPECT_EQ(c.regs().rbx, 5u);
}

// futex(2) of the main thread with these arguments.
void SetFutex(Guest& g, uint64_t op, uint64_t value, uint64_t timeout) {
  g.SetEntry(guest_site);
  Regs& r = g.main.context->regs();
  r.rax = 202;
  r.rdi = test::kData;
  r.rsi = op;
  r.rdx = value;
  r.r10 = timeout;
}

TEST_F(PatchTest, FutexRunsNatively) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Regs& r = g.main.context->regs();
  // Not the value: EAGAIN without a hand-off; ud2 follows.
  SetFutex(g, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, 0);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EAGAIN);
  // A timeout.
  timespec t{0, 2'000'000};
  ASSERT_TRUE(g.space->Write(test::kData + 64, std::as_bytes(std::span(&t, 1))).ok());
  SetFutex(g, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, test::kData + 64);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -ETIMEDOUT);
  // A bad timeout, one that cannot be read, a bad address.
  t = {0, 2'000'000'000};
  ASSERT_TRUE(g.space->Write(test::kData + 64, std::as_bytes(std::span(&t, 1))).ok());
  SetFutex(g, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, test::kData + 64);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EINVAL);
  SetFutex(g, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, 0x66000000);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EFAULT);
  SetFutex(g, FUTEX_WAKE, 1, 0);
  r.rdi = 0x66000000;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -EFAULT);
  // Priority inheritance is the kernel's.
  SetFutex(g, FUTEX_LOCK_PI, 0, 0);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
}

TEST_F(PatchTest, FutexWakesAnotherThread) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Thread waker;
  waker.context = std::move(*g.space->PrepareThread());
  waker.context->set_listener(&waker);
  g.main.context->QueueOrder(order::CloneThread{waker.context.get()});
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  SetFutex(g, FUTEX_WAIT, 0, 0);
  g.main.trapped = false;
  g.main.context->Resume(ResumeMode::kGuest);
  while (!g.main.context->WaitsInFutex()) usleep(100);
  waker.context->regs().rip = test::GuestAddr(guest_futex_wake);
  waker.context->regs().rdi = test::kData;
  waker.context->Resume(ResumeMode::kGuest);
  ASSERT_EQ(Await(*platform_, waker).kind, TrapKind::kSyscall);
  EXPECT_EQ(waker.context->regs().orig_rax, 60u);
  ASSERT_EQ(Await(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(g.main.context->regs().rax, 0u);
}

TEST_F(PatchTest, InterruptedFutexWaitIsReported) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  for (int i = 0; i < 200; i++) {
    timespec t{100, 0};
    ASSERT_TRUE(g.space->Write(test::kData + 64, std::as_bytes(std::span(&t, 1))).ok());
    SetFutex(g, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, i % 2 ? test::kData + 64 : 0);
    g.main.trapped = false;
    g.main.context->Resume(ResumeMode::kGuest);
    if (i % 4 < 2) usleep(i);
    g.main.context->Interrupt();
    const Trap& trap = Await(*platform_, g.main);
    if (trap.kind == TrapKind::kInterrupt) continue;  // before the call
    ASSERT_EQ(trap.kind, TrapKind::kSyscall);
    EXPECT_TRUE(trap.futex_interrupted);
    if (i % 2) {
      EXPECT_GT(trap.remaining_ns, 90'000'000'000);
    } else {
      EXPECT_EQ(trap.remaining_ns, -1);
    }
  }
}

TEST_F(PatchTest, ArgumentsAreCopiedIn) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  const char path[] = "/etc/passwd";
  ASSERT_TRUE(g.space->Write(test::kData, std::as_bytes(std::span(path))).ok());
  // A string that ends with the mapping, without a NUL.
  ASSERT_TRUE(
      g.space->Write(test::kData + test::kDataSize - 4, std::as_bytes(std::span("abcd", 4))).ok());
  g.SetEntry(guest_site);
  c.regs().rax = 257;
  c.regs().rsi = test::kData;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  // Changed behind the kernel's back: the value is read once, before.
  ASSERT_TRUE(g.space->Write(test::kData, std::as_bytes(std::span("XXXX", 4))).ok());
  EXPECT_EQ(*c.ReadString(test::kData, 4096), path);
  EXPECT_EQ(*c.ReadString(test::kData + 5, 4096), path + 5);
  // The kernel's own write shows.
  ASSERT_TRUE(c.Write(test::kData, std::as_bytes(std::span("/tmp", 5))).ok());
  EXPECT_EQ(*c.ReadString(test::kData, 4096), "/tmp");
  g.SetEntry(guest_site);
  c.regs().rax = 257;
  c.regs().rsi = test::kData + test::kDataSize - 4;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(c.ReadString(c.regs().rsi, 4096).error().code(), EFAULT);
}

TEST_F(PatchTest, WritesAreCopiedOut) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  g.SetEntry(guest_site);
  c.regs().rax = 5;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  uint64_t value = 0x1234, seen = 0;
  ASSERT_TRUE(c.Write(test::kData, std::as_bytes(std::span(&value, 1))).ok());
  ASSERT_TRUE(c.Read(test::kData, std::as_writable_bytes(std::span(&seen, 1))).ok());
  EXPECT_EQ(seen, value);
  value = 0x5678;
  ASSERT_TRUE(c.Write(test::kData + 8, std::as_bytes(std::span(&value, 1))).ok());
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  ASSERT_TRUE(g.space->Read(test::kData + 8, std::as_writable_bytes(std::span(&seen, 1))).ok());
  EXPECT_EQ(seen, value);
  // Where nothing is, it is known when the stub gets there.
  g.SetEntry(guest_site);
  c.regs().rax = 5;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  ASSERT_TRUE(c.Write(0x66000000, std::as_bytes(std::span(&value, 1))).ok());
  const Trap& trap = RunGuest(*platform_, g.main);
  ASSERT_EQ(trap.kind, TrapKind::kOrderFailed);
  EXPECT_EQ(trap.order_index, SIZE_MAX);
  EXPECT_EQ(trap.error, EFAULT);
  c.regs().rax = static_cast<uint64_t>(-EFAULT);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(c.regs().rax), -EFAULT);
}

TEST(HostCallsTest, RulesAreAccepted) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
  ASSERT_TRUE(filter);
  EXPECT_EQ(AllowHostCalls(filter, test::TestsPtrace()), 0);
  seccomp_release(filter);
}

}  // namespace
}  // namespace platform
