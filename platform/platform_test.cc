// The systrap platform with real stubs and a small guest program.
#include "platform/platform.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "platform/test_guest.h"
#include "platform/test_platform.h"
#include "sentry/base/test_fds_in_flight.h"
#include "sentry/base/time.h"

namespace platform {
namespace {

using test::Anonymous;
using test::Await;
using test::Guest;
using test::RunGuest;
using test::Thread;

using PlatformTest = test::PlatformTest;

class NoPoolTest : public PlatformTest {
 protected:
  NoPoolTest() { starts_pool_ = false; }
  // Processes whose parent we are.
  static std::vector<int> ChildPids() {
    std::vector<int> children;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream file(task.path() / "children");
      for (int pid; file >> pid;) children.push_back(pid);
    }
    return children;
  }
  static int Children() { return static_cast<int>(ChildPids().size()); }
  static int SleepingChildren() {
    int sleeping = 0;
    for (int pid : ChildPids()) {
      std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
      std::string stat;
      std::getline(file, stat);
      sleeping += stat.find(") S ") != std::string::npos;
    }
    return sleeping;
  }
};

// An unprivileged process sends no descriptor while its user has more in flight than it may have
// open itself. Others of that user may have any number.
TEST(ZygoteTest, StartsWhileManyDescriptorsAreInFlight) {
  base::HundredFdsInFlight others;
  ASSERT_TRUE(others.sent());
  std::string why;
  auto platform = test::CreatePlatform(test::TestOptions(), &why);
  EXPECT_TRUE(platform.ok()) << why;
}

// What is cloned while this process changes its root may keep the old one.
TEST_F(NoPoolTest, NothingIsClonedBeforeItIsAskedFor) {
  if (access("/proc/thread-self/children", R_OK) != 0) GTEST_SKIP() << "the host lists no children";
  usleep(50'000);
  EXPECT_EQ(Children(), 1);  // the zygote
  platform_->StartPool();
  for (int i = 0; i < 1000 && Children() < 1 + options_.pool_size; i++) usleep(10'000);
  EXPECT_EQ(Children(), 1 + options_.pool_size);
}

TEST_F(NoPoolTest, AStubInThePoolWakesNobody) {
  if (access("/proc/thread-self/children", R_OK) != 0) GTEST_SKIP() << "the host lists no children";
  if (platform_->name() == std::string_view("ptrace"))
    GTEST_SKIP() << "the tracer wakes the poller";
  std::atomic<bool> stop{false};
  std::atomic<int> woken{0};
  std::thread poller([&] {
    while (!stop) {
      platform_->Wait(INT64_MAX);
      woken++;
    }
  });
  platform_->StartPool();
  const int all = 1 + options_.pool_size;
  for (int i = 0; i < 1000 && SleepingChildren() < all; i++) usleep(10'000);
  EXPECT_EQ(SleepingChildren(), all);
  EXPECT_EQ(woken, 0);
  stop = true;
  platform_->Wake();
  poller.join();
}

TEST_F(PlatformTest, SyscallRoundTrip) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_site);
  Regs& r = g.main.context->regs();
  r.rax = 140;
  r.rdi = 1;
  r.rsi = 2;
  r.rdx = 3;
  r.r10 = 4;
  r.r8 = 5;
  r.r9 = 6;
  r.rbx = 7;
  r.rbp = 8;
  r.r12 = 12;
  r.r13 = 13;
  r.r14 = 14;
  r.r15 = 15;
  const Trap& trap = RunGuest(*platform_, g.main);
  ASSERT_EQ(trap.kind, TrapKind::kSyscall);
  EXPECT_EQ(r.orig_rax, 140u);
  EXPECT_EQ(static_cast<int64_t>(r.rax), -ENOSYS);
  EXPECT_EQ(r.rdi, 1u);
  EXPECT_EQ(r.rsi, 2u);
  EXPECT_EQ(r.rdx, 3u);
  EXPECT_EQ(r.r10, 4u);
  EXPECT_EQ(r.r8, 5u);
  EXPECT_EQ(r.r9, 6u);
  EXPECT_EQ(r.rbx, 7u);
  EXPECT_EQ(r.rbp, 8u);
  EXPECT_EQ(r.r12, 12u);
  EXPECT_EQ(r.r15, 15u);
  EXPECT_EQ(r.rip, test::GuestAddr(guest_site) + 3);
  EXPECT_EQ(r.rsp, test::kStack + test::kStackSize - 64);
  r.rax = 20;
  const Trap& next = RunGuest(*platform_, g.main);
  ASSERT_EQ(next.kind, TrapKind::kFault);
  EXPECT_EQ(next.signo, SIGILL);
  EXPECT_EQ(r.rax, 20u);
  EXPECT_EQ(r.rip, test::GuestAddr(guest_site) + 3);
}

TEST_F(PlatformTest, ManyCalls) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_counter);
  Regs& r = g.main.context->regs();
  r.rdi = 20000;
  uint64_t calls = 0, sum = 0;
  for (;;) {
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
    if (r.orig_rax == 60) break;
    ASSERT_EQ(r.orig_rax, 140u);
    calls++;
    sum += calls * 3;
    r.rax = calls * 3;
  }
  EXPECT_EQ(calls, 20000u);
  EXPECT_EQ(r.rbx, 20000u);
  EXPECT_EQ(r.r12, sum);
}

TEST_F(PlatformTest, OrdersFailAsInTheHost) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  c.QueueOrder(Anonymous(0x2000000, 0x1000, PROT_READ));
  c.QueueOrder(order::Mprotect{0x3000000, 0x1000, PROT_READ});  // not mapped
  c.QueueOrder(Anonymous(0x2001000, 0x1000, PROT_READ));
  const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
  ASSERT_EQ(trap.kind, TrapKind::kOrderFailed);
  EXPECT_EQ(trap.order_index, 1u);
  EXPECT_EQ(trap.error, ENOMEM);
  uint32_t word;
  EXPECT_TRUE(g.space->Read(0x2000000, std::as_writable_bytes(std::span(&word, 1))).ok());
  EXPECT_FALSE(g.space->Read(0x2001000, std::as_writable_bytes(std::span(&word, 1))).ok());
}

TEST_F(PlatformTest, OrdersOutsideTheGuestAreRefused) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  uint64_t end = g.space->limits().max_address;
  c.QueueOrder(Anonymous(0x2000000, 0x1000, PROT_READ));
  c.QueueOrder(order::Munmap{end - 0x1000, 0x2000});
  const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
  ASSERT_EQ(trap.kind, TrapKind::kOrderFailed);
  EXPECT_EQ(trap.order_index, 1u);
  EXPECT_EQ(trap.error, EINVAL);
}

TEST_F(PlatformTest, ManyOrdersInOneBatch) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  for (uint64_t i = 0; i < 200; i++) {
    c.QueueOrder(Anonymous(0x10000000 + i * 0x2000, 0x1000, PROT_READ | PROT_WRITE));
    c.QueueOrder(order::Write{0x10000000 + i * 0x2000, std::vector<std::byte>(4096, std::byte(i))});
  }
  const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
  ASSERT_EQ(trap.kind, TrapKind::kOrdersDone);
  EXPECT_EQ(trap.results.size(), 400u);
  for (uint64_t i = 0; i < 200; i++) {
    unsigned char byte = 0;
    ASSERT_TRUE(
        g.space->Read(0x10000000 + i * 0x2000 + 4095, std::as_writable_bytes(std::span(&byte, 1)))
            .ok());
    EXPECT_EQ(byte, i % 256);
  }
}

TEST_F(PlatformTest, FilesAreMapped) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  for (int i = 0; i < 40; i++) {
    int fd = memfd_create("test", MFD_CLOEXEC);
    ASSERT_EQ(pwrite(fd, &i, sizeof(i), 4096), static_cast<ssize_t>(sizeof(i)));
    ASSERT_EQ(ftruncate(fd, 8192), 0);
    order::Mmap m = Anonymous(0x20000000 + i * 0x10000ull, 0x1000, PROT_READ);
    m.file = base::MakeRef<base::HostFd>(fd);
    m.offset = 4096;
    m.shared = i % 2;
    c.QueueOrder(m);
  }
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  for (int i = 0; i < 40; i++) {
    int value = -1;
    ASSERT_TRUE(
        g.space->Read(0x20000000 + i * 0x10000ull, std::as_writable_bytes(std::span(&value, 1)))
            .ok());
    EXPECT_EQ(value, i);
  }
}

TEST_F(PlatformTest, UserMemory) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Context& c = *g.main.context;
  std::vector<std::byte> buf(8192, std::byte{7});
  ASSERT_TRUE(c.Write(test::kData + 100, buf).ok());
  std::vector<std::byte> back(8192);
  ASSERT_TRUE(g.space->Read(test::kData + 100, back).ok());
  EXPECT_EQ(buf, back);
  // Up to the end of the mapping.
  auto n = c.ReadPartial(test::kData + test::kDataSize - 100, back);
  ASSERT_TRUE(n.ok());
  EXPECT_EQ(*n, 100u);
  EXPECT_EQ(c.ReadPartial(0x66000000, back).error().code(), EFAULT);
  // Code is not writable.
  EXPECT_EQ(c.WritePartial(test::kCode, buf).error().code(), EFAULT);
}

TEST_F(PlatformTest, Faults) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  Regs& r = g.main.context->regs();
  g.SetEntry(guest_fault);
  r.rdi = 0x7000008;
  const Trap& trap = RunGuest(*platform_, g.main);
  ASSERT_EQ(trap.kind, TrapKind::kFault);
  EXPECT_EQ(trap.signo, SIGSEGV);
  EXPECT_EQ(trap.si_code, SEGV_MAPERR);
  EXPECT_EQ(trap.fault_addr, 0x7000008u);
  EXPECT_EQ(trap.trapno, 14u);
  EXPECT_EQ(trap.error_code, 4u);
  EXPECT_EQ(r.rip, test::GuestAddr(guest_fault));
  // Mended by an order, the instruction is tried again.
  g.main.context->QueueOrder(Anonymous(0x7000000, 0x1000, PROT_READ));
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(r.orig_rax, 39u);

  g.SetEntry(guest_divide);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(trap.signo, SIGFPE);
  g.SetEntry(guest_trap);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(trap.signo, SIGTRAP);
  g.SetEntry(guest_int80);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(trap.signo, SIGSEGV);
  EXPECT_EQ(r.rip, test::GuestAddr(guest_int80) + 5);
  // An address that is not canonical.
  g.SetEntry(guest_site);
  r.rip = 0x8000000000000000;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(trap.signo, SIGSEGV);
}

TEST_F(PlatformTest, InterruptOfRunningGuest) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_spin);
  for (int i = 0; i < 100; i++) {
    g.main.trapped = false;
    g.main.context->Resume(ResumeMode::kGuest);
    if (i % 2) usleep(100);
    g.main.context->Interrupt();
    ASSERT_EQ(Await(*platform_, g.main).kind, TrapKind::kInterrupt);
  }
  EXPECT_GT(g.main.context->regs().rbx, 0u);
}

TEST_F(PlatformTest, InterruptOfStoppedContextIsKept) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_site);
  g.main.context->Interrupt();
  uint64_t rip = g.main.context->regs().rip;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kInterrupt);
  EXPECT_EQ(g.main.context->regs().rip, rip);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
}

TEST_F(PlatformTest, KilledStubIsGone) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_spin);
  g.main.trapped = false;
  g.main.context->Resume(ResumeMode::kGuest);
  usleep(1000);
  kill(g.space->host_pid(), SIGKILL);
  EXPECT_EQ(Await(*platform_, g.main).kind, TrapKind::kGone);
  EXPECT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kGone);
  // Others are not concerned.
  Guest other;
  ASSERT_TRUE(other.Load(*platform_));
}

TEST_F(PlatformTest, Threads) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  constexpr int kThreads = 40;
  std::vector<Thread> threads(kThreads);
  for (int i = 0; i < kThreads; i++) {
    auto made = g.space->PrepareThread();
    ASSERT_TRUE(made.ok());
    threads[i].context = std::move(*made);
    threads[i].context->set_listener(&threads[i]);
    Regs& r = threads[i].context->regs();
    r = Regs{};
    r.rip = test::GuestAddr(guest_counter);
    r.rsp = test::kStack + 0x1000 * (i + 1);
    r.rdi = 100 + i;
    r.fs_base = 0x1000 * i;
    g.main.context->QueueOrder(order::CloneThread{threads[i].context.get()});
  }
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  for (Thread& t : threads) t.context->Resume(ResumeMode::kGuest);
  int left = kThreads;
  std::vector<uint64_t> calls(kThreads);
  while (left > 0) {
    test::PollOnce(*platform_);
    for (int i = 0; i < kThreads; i++) {
      if (!threads[i].trapped) continue;
      threads[i].trapped = false;
      Regs& r = threads[i].context->regs();
      ASSERT_EQ(threads[i].context->trap().kind, TrapKind::kSyscall);
      EXPECT_EQ(r.fs_base, 0x1000u * i);
      if (r.orig_rax == 60) {
        EXPECT_EQ(calls[i], 100u + i);
        left--;
        threads[i].context->Exit();
        continue;
      }
      calls[i]++;
      r.rax = 0;
      threads[i].context->Resume(ResumeMode::kGuest);
    }
  }
  // The main thread still runs, and slots are used again.
  threads.clear();
  usleep(10000);
  for (int i = 0; i < 300; i++) {
    auto made = g.space->PrepareThread();
    ASSERT_TRUE(made.ok());
    Thread t;
    t.context = std::move(*made);
    t.context->set_listener(&t);
    t.context->regs().rip = test::GuestAddr(guest_site);
    t.context->regs().rax = 39;
    g.main.context->QueueOrder(order::CloneThread{t.context.get()});
    ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
    ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
    t.context->Exit();
  }
}

// A clone that a signal interrupts begins anew.
TEST_F(PlatformTest, InterruptsLoseNoClone) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  std::atomic<bool> done{false};
  std::thread storm([&] {
    while (!done.load()) {
      g.main.context->Interrupt();
      usleep(50);
    }
  });
  for (int i = 0; i < 200 && !HasFailure(); i++) {
    Thread made;
    std::unique_ptr<AddressSpace> child;
    if (i % 2 == 0) {
      made.context = std::move(*g.space->PrepareThread());
      g.main.context->QueueOrder(order::CloneThread{made.context.get()});
    } else {
      child = std::move(*g.space->PrepareFork());
      g.main.context->QueueOrder(order::Fork{child.get()});
    }
    const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
    EXPECT_EQ(trap.kind, TrapKind::kOrdersDone) << i << " error " << trap.error;
    if (HasFailure()) break;
    if (child) made.context = child->TakeMainContext();
    made.context->set_listener(&made);
    made.context->regs().rip = test::GuestAddr(guest_site);
    made.context->regs().rax = 39;
    EXPECT_EQ(RunGuest(*platform_, made).kind, TrapKind::kSyscall);
    made.context->Exit();
  }
  done.store(true);
  storm.join();
}

// What is put off until there is nothing better to do is done.
TEST_F(PlatformTest, TheProcessOfAnAddressSpaceEndsWithIt) {
  for (int i = 0; i < 20; i++) {
    auto space = platform_->NewAddressSpace();
    ASSERT_TRUE(space.ok());
    const int pid = (*space)->host_pid();
    ASSERT_GT(pid, 0);
    ASSERT_EQ(kill(pid, 0), 0);
    space->reset();
    bool ended = false;
    for (int wait = 0; wait < 500 && !ended; wait++) {
      platform_->Wait(base::MonotonicNs() + 10'000'000);
      ended = kill(pid, 0) != 0 && errno == ESRCH;
    }
    EXPECT_TRUE(ended) << i;
  }
}

TEST_F(PlatformTest, Fork) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  int value = 42;
  ASSERT_TRUE(g.space->Write(test::kData, std::as_bytes(std::span(&value, 1))).ok());
  for (int i = 0; i < 20; i++) {
    auto prepared = g.space->PrepareFork();
    ASSERT_TRUE(prepared.ok());
    std::unique_ptr<AddressSpace> child = std::move(*prepared);
    g.main.context->QueueOrder(order::Fork{child.get()});
    const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
    ASSERT_EQ(trap.kind, TrapKind::kOrdersDone) << trap.error;
    Thread t;
    t.context = child->TakeMainContext();
    ASSERT_TRUE(t.context);
    t.context->set_listener(&t);
    int seen = 0;
    ASSERT_TRUE(child->Read(test::kData, std::as_writable_bytes(std::span(&seen, 1))).ok());
    EXPECT_EQ(seen, 42);
    int other = 43 + i;
    ASSERT_TRUE(child->Write(test::kData, std::as_bytes(std::span(&other, 1))).ok());
    ASSERT_TRUE(g.space->Read(test::kData, std::as_writable_bytes(std::span(&seen, 1))).ok());
    EXPECT_EQ(seen, 42);
    t.context->regs() = Regs{};
    t.context->regs().rip = test::GuestAddr(guest_site);
    t.context->regs().rax = 57;
    ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
    EXPECT_EQ(t.context->regs().orig_rax, 57u);
    // And a grandchild.
    auto grand = child->PrepareFork();
    ASSERT_TRUE(grand.ok());
    t.context->QueueOrder(order::Fork{grand->get()});
    ASSERT_EQ(RunGuest(*platform_, t, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
    g.SetEntry(guest_site);
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  }
}

// SIGCONT has no handler: the host would go on with the futex call by restart_syscall, which a stub
// does not have.
TEST_F(PlatformTest, AStoppedStubGoesOn) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  timespec timeout{0, 300'000'000};
  ASSERT_TRUE(g.space->Write(test::kData + 64, std::as_bytes(std::span(&timeout, 1))).ok());
  g.SetEntry(guest_site);
  Regs& r = g.main.context->regs();
  r.rax = 202;
  r.rdi = test::kData;
  r.r10 = test::kData + 64;
  g.main.trapped = false;
  g.main.context->Resume(ResumeMode::kGuest);
  while (!g.main.context->WaitsInFutex()) test::PollOnce(*platform_, 1'000'000);
  usleep(50'000);
  kill(g.space->host_pid(), SIGSTOP);
  usleep(50'000);
  kill(g.space->host_pid(), SIGCONT);
  EXPECT_EQ(test::Await(*platform_, g.main).kind, TrapKind::kFault);
  EXPECT_EQ(static_cast<int64_t>(g.main.context->regs().rax), -ETIMEDOUT);
}

// Inside somebody else's sandbox that has a listener already. Strict mode does not start there.
TEST(SystrapTest, WithoutACallGate) {
  pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    sock_fprog program{1, &allow};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    long listener =
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0) _exit(2);
    std::string why;
    auto p = test::CreatePlatform(test::TestOptions(), &why);
    if (test::TestOptions().strict) _exit(p.ok() || why.find("listener") == why.npos ? 6 : 0);
    if (!p.ok()) _exit(3);
    Platform& platform = **p;
    Guest g;
    if (!g.Load(platform)) _exit(4);
    auto child = std::move(*g.space->PrepareFork());
    g.main.context->QueueOrder(order::Fork{child.get()});
    if (RunGuest(platform, g.main, ResumeMode::kOrdersOnly).kind != TrapKind::kOrdersDone) _exit(5);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(PlatformTest, AChildOutlivesItsParent) {
  Thread t;
  std::unique_ptr<AddressSpace> child;
  {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    child = std::move(*g.space->PrepareFork());
    g.main.context->QueueOrder(order::Fork{child.get()});
    ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
    t.context = child->TakeMainContext();
    t.context->set_listener(&t);
    g.space->Kill();
    EXPECT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kGone);
  }
  for (int i = 0; i < 20; i++) test::PollOnce(*platform_, 1'000'000);
  t.context->regs() = Regs{};
  t.context->regs().rip = test::GuestAddr(guest_site);
  t.context->regs().rax = 57;
  EXPECT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
}

// The 64 bytes that guest_avx loads, and what it stores of them: each 16 twice.
std::vector<std::byte> AvxPattern() {
  std::vector<std::byte> v(64);
  for (size_t i = 0; i < v.size(); i++) v[i] = std::byte(i * 7 + 1);
  return v;
}
void ExpectAvx(base::UserMemory& m, uint64_t addr) {
  std::vector<std::byte> got(128), in = AvxPattern(), want;
  for (int i = 0; i < 4; i++) {
    for (int k = 0; k < 2; k++)
      want.insert(want.end(), in.begin() + i * 16, in.begin() + i * 16 + 16);
  }
  ASSERT_TRUE(m.Read(addr, got).ok());
  EXPECT_EQ(got, want);
}
constexpr uint64_t kFlag = test::kData + 256, kOut = test::kData + 512, kImage = test::kData + 4096;

void StartAvx(Guest& g) {
  ASSERT_TRUE(g.space->Write(test::kData, AvxPattern()).ok());
  g.SetEntry(guest_avx);
  Regs& r = g.main.context->regs();
  r.rdi = test::kData;
  r.rsi = kFlag;
  r.rdx = kOut;
}

TEST_F(PlatformTest, FpuStateSurvives) {
  if (!__builtin_cpu_supports("avx")) GTEST_SKIP();
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  StartAvx(g);
  Context& c = *g.main.context;
  std::thread interrupter;
  std::atomic<bool> stop{false};
  interrupter = std::thread([&] {
    while (!stop) {
      c.Interrupt();
      usleep(20);
    }
  });
  int calls = 0, interrupts = 0;
  for (int i = 0; i < 5000; i++) {
    const Trap& trap = RunGuest(*platform_, g.main);
    if (trap.kind == TrapKind::kSyscall) calls++;
    if (trap.kind == TrapKind::kInterrupt) interrupts++;
    if (i % 3 == 0) {
      // As a guest signal's delivery and return do.
      c.QueueOrder(order::SaveFpu{kImage});
      c.QueueOrder(order::RestoreFpu{0});
      ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
      c.QueueOrder(order::RestoreFpu{kImage});
    }
  }
  stop = true;
  interrupter.join();
  EXPECT_GT(calls, 0);
  EXPECT_GT(interrupts, 0);
  uint32_t one = 1;
  ASSERT_TRUE(c.Write(kFlag, std::as_bytes(std::span(&one, 1))).ok());
  do {
    RunGuest(*platform_, g.main);
  } while (c.regs().orig_rax != 60);
  ExpectAvx(*g.space, kOut);
}

TEST_F(PlatformTest, ThreadsAndForksInheritFpuState) {
  if (!__builtin_cpu_supports("avx")) GTEST_SKIP();
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  StartAvx(g);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  Thread t;
  t.context = std::move(*g.space->PrepareThread());
  t.context->set_listener(&t);
  auto child = std::move(*g.space->PrepareFork());
  g.main.context->QueueOrder(order::CloneThread{t.context.get()});
  g.main.context->QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  Thread main;
  main.context = child->TakeMainContext();
  main.context->set_listener(&main);
  for (Thread* p : {&t, &main}) {
    // Direct mode: saved by XSAVE, lost, and loaded again.
    p->context->QueueOrder(order::SaveFpu{kImage});
    p->context->QueueOrder(order::RestoreFpu{0});
    p->context->QueueOrder(order::RestoreFpu{kImage});
    p->context->regs() = Regs{};
    p->context->regs().rip = test::GuestAddr(guest_avx_store);
    p->context->regs().r14 = kOut;
    ASSERT_EQ(RunGuest(*platform_, *p).kind, TrapKind::kSyscall);
    ExpectAvx(p->context->address_space(), kOut);
  }
  // The initial state is all zeros.
  t.context->QueueOrder(order::RestoreFpu{0});
  t.context->regs().rip = test::GuestAddr(guest_avx_store);
  ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
  std::vector<std::byte> got(128);
  ASSERT_TRUE(g.space->Read(kOut, got).ok());
  EXPECT_EQ(got, std::vector<std::byte>(128));
}

TEST_F(PlatformTest, BadFpuImagesDoNoHarm) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_site);
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  Context& c = *g.main.context;
  c.QueueOrder(order::SaveFpu{kImage});
  ASSERT_EQ(RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  std::vector<std::byte> good(c.fpu_frame_size());
  ASSERT_TRUE(g.space->Read(kImage, good).ok());
  uint64_t seed = 1;
  for (int i = 0; i < 300; i++) {
    std::vector<std::byte> bad = good;
    for (int k = 0; k < 20; k++) {
      seed = seed * 6364136223846793005ull + 1442695040888963407ull;
      bad[(seed >> 33) % std::min<size_t>(bad.size(), i % 2 ? 600 : bad.size())] =
          std::byte(seed >> 20);
    }
    ASSERT_TRUE(c.Write(kImage, bad).ok());
    c.QueueOrder(order::RestoreFpu{kImage});
    g.SetEntry(guest_site);
    c.regs().rax = 39;
    TrapKind kind = RunGuest(*platform_, g.main).kind;
    ASSERT_TRUE(kind == TrapKind::kSyscall || kind == TrapKind::kOrderFailed ||
                kind == TrapKind::kFault);
  }
  // One that cannot be read is an error.
  c.QueueOrder(order::RestoreFpu{0x66000000});
  const Trap& trap = RunGuest(*platform_, g.main, ResumeMode::kOrdersOnly);
  ASSERT_EQ(trap.kind, TrapKind::kOrderFailed);
  EXPECT_EQ(trap.error, EFAULT);
}

TEST_F(PlatformTest, GuestOwnsGs) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  uint64_t values[2] = {0x1111, 0x2222};
  ASSERT_TRUE(g.space->Write(test::kData, std::as_bytes(std::span(values))).ok());
  g.SetEntry(guest_set_gs);
  Regs& r = g.main.context->regs();
  r.rdi = test::kData;
  for (int i = 0; i < 2; i++) {
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
    EXPECT_EQ(r.gs_base, test::kData);
    r.rax = 0;
  }
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(r.orig_rax, 60u);
  EXPECT_EQ(r.rbx, 0x1111u);
  EXPECT_EQ(r.r12, 0x2222u);
  // Set by the kernel for the guest (arch_prctl), and given back.
  g.SetEntry(guest_site);
  r.gs_base = test::kData + 8;
  r.rax = 39;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(r.gs_base, test::kData + 8);
  g.SetEntry(guest_site);
  r.rax = 39;
  ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(r.gs_base, 0u);
}

TEST_F(PlatformTest, InterruptStormLosesNothing) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_counter);
  Context& c = *g.main.context;
  c.regs().rdi = 30000;
  std::atomic<bool> stop{false};
  std::thread interrupter([&] {
    for (uint32_t i = 0; !stop; i++) {
      c.Interrupt();
      if (i % 16 == 0) usleep(i % 50);
    }
  });
  uint64_t calls = 0, interrupts = 0;
  for (;;) {
    const Trap& trap = RunGuest(*platform_, g.main);
    if (trap.kind == TrapKind::kInterrupt) {
      interrupts++;
      continue;
    }
    ASSERT_EQ(trap.kind, TrapKind::kSyscall);
    if (c.regs().orig_rax == 60) break;
    calls++;
    c.regs().rax = 5;
  }
  stop = true;
  interrupter.join();
  EXPECT_EQ(calls, 30000u);
  EXPECT_EQ(c.regs().r12, calls * 5);
  EXPECT_GT(interrupts, 0u);
}

}  // namespace
}  // namespace platform
