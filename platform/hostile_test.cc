// Guests that attack: through the mailbox, and by making the stub's own host calls.
#include <dirent.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "platform/mailbox.h"
#include "platform/systrap/filter.h"
#include "platform/test_guest.h"
#include "platform/test_platform.h"
#include "sentry/base/sanitizer.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;
using test::Thread;

class HostileTest : public test::PlatformTest {
 protected:
  int64_t NowNs() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
  }
  // Runs for at most `ms`; whether it trapped.
  bool RunFor(Thread& t, int ms) {
    t.trapped = false;
    t.context->Resume(ResumeMode::kGuest);
    return TrapsWithin(t, ms);
  }
  bool TrapsWithin(const Thread& t, int ms) {
    int64_t end = NowNs() + ms * 1'000'000ll;
    while (!t.trapped && NowNs() < end) {
      if (platform_->Poll() == 0) platform_->Wait(std::min(end, NowNs() + 1'000'000));
    }
    return t.trapped;
  }
  // A neighbour that must not be concerned.
  void ExpectAlive() {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    g.SetEntry(guest_site);
    g.main.context->regs().rax = 140;
    EXPECT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall);
  }
};

std::set<std::string> OpenFds(int pid) {
  std::set<std::string> fds;
  DIR* dir = opendir(("/proc/" + std::to_string(pid) + "/fd").c_str());
  if (!dir) return fds;
  while (dirent* e = readdir(dir)) {
    if (e->d_name[0] == '.') continue;
    char target[256] = {};
    if (readlinkat(dirfd(dir), e->d_name, target, sizeof(target) - 1) > 0) fds.insert(target);
  }
  closedir(dir);
  return fds;
}

TEST_F(HostileTest, RandomMailboxes) {
  std::mt19937_64 random(1);
  Guest neighbour;
  ASSERT_TRUE(neighbour.Load(*platform_));
  neighbour.SetEntry(guest_counter);
  neighbour.main.context->regs().rdi = 1 << 30;
  for (int round = 0; round < 60; round++) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_, true));
    g.SetEntry(guest_counter);
    g.main.context->regs().rdi = 1 << 30;
    std::atomic<bool> stop{false};
    std::thread scribbler([&] {
      std::mt19937_64 r(static_cast<uint64_t>(round));
      while (!stop) {
        uint64_t bytes[8];
        for (uint64_t& b : bytes) b = r() % 3 ? r() : r() % 16;
        size_t size = 4 + r() % 60;
        uint64_t where = r() % 4 == 0 ? kMailboxBase + r() % 4096
                                      : SlotAddress(0) + r() % (round % 2 ? 1024 : 65536);
        static_cast<void>(
            g.space->WritePartial(where, std::as_bytes(std::span(bytes)).first(size)));
      }
    });
    for (int i = 0; i < 30; i++) {
      if (RunFor(g.main, 10)) {
        Context& c = *g.main.context;
        if (c.trap().kind == TrapKind::kGone) break;
        // What the kernel would do with such a trap.
        std::byte buffer[64];
        static_cast<void>(c.ReadPartial(c.regs().rdi, buffer));
        static_cast<void>(c.ReadString(c.regs().rsi, 4096));
        static_cast<void>(c.WritePartial(c.regs().rdx, buffer));
        c.regs().rax = 1;
        if (i % 5 == 0) {
          c.QueueOrder(test::Anonymous(0x40000000, 0x1000, PROT_READ));
          c.QueueOrder(order::SaveFpu{test::kData});
        }
      } else {
        g.main.context->Interrupt();
        break;
      }
    }
    stop = true;
    scribbler.join();
    for (int i = 0; i < 20; i++) {
      ASSERT_TRUE(RunFor(neighbour.main, 2000));
      ASSERT_EQ(neighbour.main.context->trap().kind, TrapKind::kSyscall);
      neighbour.main.context->regs().rax = 0;
    }
  }
}

// Addresses of the syscall instructions in the stub's text.
std::vector<uint64_t> StubSyscalls(AddressSpace& space) {
  std::vector<uint64_t> found;
  std::vector<std::byte> page(kPageSize);
  for (uint64_t a = kStubBase; a < kStubBase + kStubTextMax; a += kPageSize) {
    if (!space.Read(a, page).ok()) continue;
    for (size_t i = 0; i + 1 < page.size(); i++) {
      if (page[i] == std::byte{0x0f} && page[i + 1] == std::byte{0x05}) found.push_back(a + i);
    }
  }
  return found;
}

// Where the stub has the instructions syscall; pop %rbx; ret.
uint64_t CallGadget(AddressSpace& space) {
  const std::vector<unsigned char> gadget = {0x0f, 0x05, 0x5b, 0xc3};
  std::vector<unsigned char> text(kStubTextMax);
  for (uint64_t a = 0; a < kStubTextMax; a += kPageSize) {
    std::span page(text.data() + a, kPageSize);
    static_cast<void>(space.Read(kStubBase + a, std::as_writable_bytes(page)));
  }
  auto found = std::search(text.begin(), text.end(), gadget.begin(), gadget.end());
  EXPECT_NE(found, text.end());
  return kStubBase + static_cast<uint64_t>(found - text.begin());
}

// What the stubs' filter lets through in some form; see architecture.md.
const std::set<uint64_t> kListed = {3, 9, 10, 11, 15, 24, 25, 28, 47, 56, 60, 202, 228, 324, 334};
constexpr uint64_t kRestartSyscall = 219;  // gets an error

// The zygote has nothing beyond that but its answers, and what makes a stub of its child.
TEST(ZygoteFilterTest, LetsThroughWhatStubsNeed) {
  if (base::kSanitized) GTEST_SKIP() << "sanitizers make host calls that the filter refuses";
  std::vector<uint64_t> words = BuildZygoteFilter(true, Gated::kNothing);
  std::set<uint64_t> expected = kListed;
  expected.insert({46, 157, kRestartSyscall, 317});
  for (uint64_t nr = 0; nr < 480; nr++) {
    if (nr == 335 || nr == 336) continue;  // as below
    // Those would not return; rt_sigreturn dies of what it finds on the stack.
    if (nr == 15 || nr == 60) continue;
    pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      signal(SIGHUP, SIG_IGN);  // clone(1, ...) makes a child whose end is told so
      sock_fprog program{static_cast<unsigned short>(words.size()),
                         reinterpret_cast<sock_filter*>(words.data())};
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(2);
      syscall(static_cast<long>(nr), 1, -1, -1, -1, -1, -1);
      syscall(60, 0);  // exit(2) of a thread, which is on the list
    }
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    if (expected.contains(nr)) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << nr << " " << status;
    } else {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) << nr << " " << status;
    }
  }
}

// A call from the stub's text that is not on its list: never made, and the end of that stub.
TEST_F(HostileTest, StubsCallsWithAnyNumber) {
  // What the filter lets through in some form; see architecture.md.
  const uint64_t patterns[][6] = {
      {0, 0, 0, 0, 0, 0},
      {1, 2, 3, 4, 5, 6},
      {~0ull, ~0ull, ~0ull, ~0ull, ~0ull, ~0ull},
      {test::kData, test::kData, 4096, 7, 0, 0},
      {0x10000, 0x1000, 7, 0x8032, ~0ull, 0},
  };
  for (uint64_t nr = 0; nr < 480; nr++) {
    if (nr == kRestartSyscall) continue;
    if (kListed.contains(nr) && !(nr == 47 && test::TestOptions().strict)) continue;
    // uretprobe and uprobe pass by seccomp in the host itself, which ends them with SIGILL unless
    // its own trampoline has made them.
    if (nr == 335 || nr == 336) continue;
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    ASSERT_EQ(OpenFds(g.space->host_pid()).size(), test::TestOptions().strict ? 0u : 1u);
    std::vector<uint64_t> calls = StubSyscalls(*g.space);
    ASSERT_GT(calls.size(), 10u);
    const auto& p = patterns[nr % std::size(patterns)];
    Regs& r = g.main.context->regs();
    r = Regs{};
    r.rip = calls[nr % calls.size()];
    r.rsp = test::kStack + 0x8000;
    r.rax = nr;
    r.rdi = p[0];
    r.rsi = p[1];
    r.rdx = p[2];
    r.r10 = p[3];
    r.r8 = p[4];
    r.r9 = p[5];
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kGone) << nr;
  }
  ExpectAlive();
}

// A thread that waits in futex(2) at a call of the stub's own, with a flag of its own for the stub
// to look at, takes no interrupt. Its process can be ended.
TEST_F(HostileTest, AStubThatDoesNotComeBackIsEnded) {
  const std::vector<unsigned char> syscall = {0x0f, 0x05};
  std::vector<uint64_t> sites;
  {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    std::vector<unsigned char> page(kPageSize);
    for (uint64_t a = kStubBase; a < kStubBase + kStubTextMax; a += kPageSize) {
      if (!g.space->Read(a, std::as_writable_bytes(std::span(page))).ok()) continue;
      for (auto at = page.begin();; ++at) {
        at = std::search(at, page.end(), syscall.begin(), syscall.end());
        if (at == page.end()) break;
        sites.push_back(a + static_cast<uint64_t>(at - page.begin()));
      }
    }
  }
  // Where the code looks for the flag, or for the word that it waits for, is the compiler's choice.
  uint64_t Regs::*const pointers[] = {&Regs::rbx, &Regs::rbp, &Regs::r12,
                                      &Regs::r13, &Regs::r14, &Regs::r15};
  int stayed = 0;
  for (size_t i = 0; i < sites.size() * std::size(pointers) && stayed == 0; i++) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    Regs& r = g.main.context->regs();
    r = Regs{};
    r.rip = sites[i / std::size(pointers)];
    r.rax = SYS_futex;
    r.rdi = r.*pointers[i % std::size(pointers)] = test::kData;
    if (RunFor(g.main, 50)) continue;
    g.main.context->Interrupt();
    if (TrapsWithin(g.main, 50)) continue;
    g.space->Kill();
    // On a busy machine it may have come back just before.
    if (test::Await(*platform_, g.main).kind == TrapKind::kGone) stayed++;
    // What is resumed later is gone at once.
    EXPECT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kGone);
  }
  EXPECT_GE(stayed, 1);
  ExpectAlive();
}

TEST_F(HostileTest, OutsideTheStubNothingIsLetThrough) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  for (uint64_t nr : {3ull, 9ull, 10ull, 11ull, 15ull, 25ull, 28ull, 47ull, 56ull, 60ull, 131ull,
                      157ull, 0x40000000ull, 0x40000000ull + 202, 0xffffffffull}) {
    g.SetEntry(guest_site);
    g.main.context->regs().rax = nr;
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kSyscall) << nr;
    EXPECT_EQ(g.main.context->regs().orig_rax, nr);
  }
}

TEST_F(HostileTest, ListedCallsWithBadArguments) {
  const uint64_t clone_flags[] = {0, 17, 0x100, 0x10f00, 0x7e020011, 0x20000 | 17, ~0ull};
  auto expect_ended = [&](uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    uint64_t call = StubSyscalls(*g.space)[0];
    Regs& r = g.main.context->regs();
    r = Regs{};
    r.rip = call;
    r.rax = nr;
    r.rdi = a;
    r.rsi = b;
    r.rdx = c;
    r.r10 = d;
    ASSERT_EQ(RunGuest(*platform_, g.main).kind, TrapKind::kGone) << nr << " " << a;
  };
  for (uint64_t flags : clone_flags) expect_ended(56, flags, 0, 0, 0);
  expect_ended(56, kZygoteCloneFlags, 0, 0, 0);
  for (uint64_t flags :
       {0x22ull, 0x21ull, 0x8032ull, 0x40032ull, 0x100032ull, 0x31ull, 0x2032ull}) {
    expect_ended(9, 0x10000, 0x1000, 3, flags);  // no MAP_FIXED, populated, huge, locked ...
  }
  expect_ended(9, 0x10000, 0x1000, 0x1000003, 0x32);  // PROT_GROWSDOWN
  expect_ended(28, test::kData, 4096, 9, 0);          // MADV_REMOVE
  expect_ended(25, test::kData, 4096, 4096, 1);       // mremap to anywhere
  expect_ended(157, 4, 1, 0, 0);                      // PR_SET_DUMPABLE
  expect_ended(157, 1, 0, 0, 0);                      // PR_SET_PDEATHSIG, no signal
  expect_ended(25, kSharedBase, 4096, 4096, 3);       // the doorbell elsewhere
  expect_ended(25, kRegionBase - 0x100000, 0x2000000, 0x2000000, 3);
  expect_ended(25, 0x10000, ~0ull >> 1, 4096, 3);
  expect_ended(202, kSharedBase, 0, 0, 0);  // waiting where the sentry does
  expect_ended(202, kSharedBase + 64, 9, 0, 0);
  for (uint64_t op : {6ull, 7ull, 8ull, 11ull, 12ull, 2ull, 3ull, 4ull})
    expect_ended(202, test::kData, op, 0, 0);
  expect_ended(228, 2, test::kData, 0, 0);      // CPU time of the process
  expect_ended(228, ~5ull, test::kData, 0, 0);  // CPU time of another's thread
  for (uint64_t command : {0ull, 1ull, 2ull, 4ull, 512ull}) expect_ended(324, command, 0, 0, 0);
}

// The stub's own flags, but nobody has ordered it: the sentry refuses.
TEST_F(HostileTest, UnorderedClonesAreRefused) {
  for (uint64_t flags : {kForkCloneFlags, kThreadCloneFlags}) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    Regs& r = g.main.context->regs();
    // The instruction of the stub's that is followed by a return into our code.
    r = Regs{};
    uint64_t stack = test::kStack + 0x8000;
    std::vector<uint64_t> words(64, test::GuestAddr(guest_site) + 3);  // ud2
    ASSERT_TRUE(g.space->Write(stack, std::as_bytes(std::span(words))).ok());
    r.rip = StubSyscalls(*g.space)[0];
    r.rax = 56;
    r.rdi = flags;
    r.rsp = stack;
    RunFor(g.main, 200);
    ASSERT_TRUE(g.main.trapped);
    int pid = g.space->host_pid();
    int threads = 0;
    if (DIR* dir = opendir(("/proc/" + std::to_string(pid) + "/task").c_str())) {
      while (dirent* e = readdir(dir)) threads += e->d_name[0] != '.';
      closedir(dir);
    }
    EXPECT_EQ(threads, 1);
    ExpectAlive();
  }
}

// What guest_forger knows of a slot.
static_assert(offsetof(Slot, request.seq) == 128 && offsetof(Slot, request.kind) == 132 &&
              offsetof(Slot, order_index) == 240 && offsetof(Slot, order_error) == 244 &&
              offsetof(Slot, answer_seq) == 256 && offsetof(Slot, host_tid) == 392 &&
              offsetof(Slot, orders[0].result) == 4096 + 48);

// A stub that forks when it is ordered to, and lies about it. What it made does not stay.
class ForgerTest : public HostileTest {
 protected:
  static constexpr uint64_t kOwnNumber = ~0ull;
  // Has the guest fork, and report as told. Returns what the clone returned.
  int ForkAndReport(RequestKind kind, uint64_t pretended) {
    OrderFork(kind, pretended, true);
    int64_t end = NowNs() + 2'000'000'000;
    int pid = 0;
    while (pid == 0 && NowNs() < end) {
      test::PollOnce(*platform_, 1'000'000);
      static_cast<void>(
          guest_.space->Read(test::kData, std::as_writable_bytes(std::span(&pid, 1))));
    }
    return pid;
  }
  // Orders a fork of a guest that may carry it out or not.
  void OrderFork(RequestKind kind, uint64_t pretended, bool fork) {
    EXPECT_TRUE(guest_.Load(*platform_));
    if (pretended == kOwnNumber) pretended = static_cast<uint64_t>(guest_.space->host_pid());
    uint64_t words[] = {0, static_cast<uint64_t>(kind), pretended, !fork};
    EXPECT_TRUE(guest_.space->Write(test::kData, std::as_bytes(std::span(words))).ok());
    guest_.SetEntry(guest_forger);
    Regs& r = guest_.main.context->regs();
    r.rdi = SlotAddress(0);
    r.r14 = test::kData;
    r.r15 = CallGadget(*guest_.space);
    EXPECT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kInterrupt);
    auto child = guest_.space->PrepareFork();
    EXPECT_TRUE(child.ok());
    child_ = std::move(*child);
    guest_.main.trapped = false;
    guest_.main.context->QueueOrder(order::Fork{child_.get()});
    guest_.main.context->Resume(ResumeMode::kOrdersOnly);
  }
  bool Exists(int pid) { return pid > 0 && kill(pid, 0) == 0; }
  // Polls until the process is gone and reaped.
  void ExpectGone(int pid) {
    ASSERT_GT(pid, 0);                       // as an error, it would name other processes than ours
    int64_t end = NowNs() + 30'000'000'000;  // two seconds, and a busy machine
    while (Exists(pid) && NowNs() < end) test::PollOnce(*platform_, 1'000'000);
    EXPECT_FALSE(Exists(pid));
    if (Exists(pid)) kill(pid, SIGKILL);
  }

  Guest guest_;
  std::unique_ptr<AddressSpace> child_;
};

TEST_F(ForgerTest, AForkThatIsSaidToHaveFailed) {
  int pid = ForkAndReport(RequestKind::kOrderFailed, 0);
  ASSERT_GT(pid, 0);
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  EXPECT_TRUE(Exists(pid));
  ExpectGone(pid);
  EXPECT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kGone);
  ExpectAlive();
}

TEST_F(ForgerTest, AForkThatHasFailedIsNobodysFault) {
  OrderFork(RequestKind::kOrderFailed, 0, false);
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  int64_t end = NowNs() + 2'500'000'000;
  while (NowNs() < end) test::PollOnce(*platform_, 10'000'000);
  EXPECT_TRUE(Exists(guest_.space->host_pid()));
  EXPECT_EQ(getpgid(guest_.space->host_pid()), guest_.space->host_pid());
}

TEST_F(ForgerTest, FewAreMadeBeforeTheyAreFound) {
  std::set<int> made{ForkAndReport(RequestKind::kOrderFailed, 0)};
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  for (int i = 0; i < 100; i++) {
    // A busy machine: at any time it may have been found already.
    auto prepared = guest_.space->PrepareFork();
    if (!prepared.ok()) break;
    child_ = std::move(*prepared);
    guest_.main.context->QueueOrder(order::Fork{child_.get()});
    const Trap& trap = RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly);
    if (trap.kind == TrapKind::kGone) break;
    ASSERT_EQ(trap.kind, TrapKind::kOrderFailed);
    EXPECT_EQ(trap.error, EAGAIN);
    int pid = 0;
    (void)guest_.space->Read(test::kData, std::as_writable_bytes(std::span(&pid, 1)));
    if (pid != 0) made.insert(pid);
  }
  EXPECT_LE(made.size(), 32u);
  for (int pid : made) ExpectGone(pid);
}

TEST_F(ForgerTest, AForkThatIsReportedAsAnotherProcess) {
  Guest neighbour;
  ASSERT_TRUE(neighbour.Load(*platform_));
  uint64_t pretended = static_cast<uint64_t>(neighbour.space->host_pid());
  int pid = ForkAndReport(RequestKind::kOrdersDone, pretended);
  ASSERT_GT(pid, 0);
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  ExpectGone(pid);
  neighbour.SetEntry(guest_site);
  EXPECT_EQ(RunGuest(*platform_, neighbour.main).kind, TrapKind::kSyscall);
}

TEST_F(ForgerTest, AForkThatIsReportedAsItsParent) {
  int pid = ForkAndReport(RequestKind::kOrdersDone, kOwnNumber);
  ASSERT_GT(pid, 0);
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  ExpectGone(pid);
  ExpectAlive();
}

TEST_F(ForgerTest, AForkThatIsReportedAsTheSentry) {
  int pid = ForkAndReport(RequestKind::kOrdersDone, static_cast<uint64_t>(getpid()));
  ASSERT_GT(pid, 0);
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrderFailed);
  ExpectGone(pid);
  ExpectAlive();
}

TEST_F(ForgerTest, AForkThatIsNotReportedEndsWithItsParent) {
  int pid = ForkAndReport(RequestKind{}, 0);
  ASSERT_GT(pid, 0);
  EXPECT_TRUE(Exists(pid));
  guest_.space->Kill();
  ExpectGone(pid);
  ExpectAlive();
}

// The child that is reported is as good as any, but does not say that it is ready.
TEST_F(ForgerTest, AChildThatDoesNotReportEndsWithItsAddressSpace) {
  int pid = ForkAndReport(RequestKind::kOrdersDone, 0);
  ASSERT_GT(pid, 0);
  // Its parent goes on, and what it is asked to do waits.
  EXPECT_EQ(test::Await(*platform_, guest_.main).kind, TrapKind::kOrdersDone);
  std::unique_ptr<Context> context = child_->TakeMainContext();
  ASSERT_TRUE(context);
  context->Resume(ResumeMode::kOrdersOnly);
  context->Interrupt();
  for (int i = 0; i < 20; i++) test::PollOnce(*platform_, 1'000'000);
  EXPECT_TRUE(Exists(pid));
  guest_.space->Kill();
  EXPECT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kGone);
  EXPECT_TRUE(Exists(pid));
  context.reset();
  guest_.main.context.reset();
  child_.reset();
  ExpectGone(pid);
  ExpectAlive();
}

TEST_F(ForgerTest, TheEndOfThePlatformLeavesNothing) {
  int pid = ForkAndReport(RequestKind{}, 0);
  ASSERT_GT(pid, 0);
  guest_.space->Kill();
  test::Await(*platform_, guest_.main);
  guest_.main.context.reset();
  guest_.space.reset();
  child_.reset();
  platform_.reset();
  EXPECT_FALSE(Exists(pid));
}

TEST_F(HostileTest, ListedCallsHarmOnlyTheCaller) {
  for (uint64_t nr :
       {3ull, 9ull, 10ull, 11ull, 15ull, 25ull, 28ull, 47ull, 60ull, 131ull, 324ull, 334ull}) {
    Guest g;
    ASSERT_TRUE(g.Load(*platform_));
    Regs& r = g.main.context->regs();
    r.rip = StubSyscalls(*g.space)[0];
    r.rax = nr;
    switch (nr) {
      case 9:
        r.rdi = kStubBase;
        r.rsi = kStubTextMax;
        r.rdx = 3;
        r.r10 = 0x32;
        r.r8 = ~0ull;
        break;
      case 10:
      case 11:
        r.rdi = kRegionBase;
        r.rsi = kRegionEnd - kRegionBase;
        break;
      case 25:
        r.rdi = kStubBase;
        r.rsi = r.rdx = 0x1000;
        r.r10 = 3;
        r.r8 = 0x10000;
        break;
      case 28:
        r.rdi = kMailboxBase;
        r.rsi = kMailboxSize;
        r.rdx = 4;
        break;
      case 324:  // PRIVATE_EXPEDITED_RSEQ on a processor that is not there
        r.rdi = 128;
        r.rsi = 1;
        r.rdx = 1 << 20;
        break;
      case 334:  // the host is to write into the stub's own text
        r.rdi = kStubBase + 0x1000;
        r.rsi = 32;
        break;
      default:
        break;
    }
    RunFor(g.main, 50);
    ExpectAlive();
  }
}

TEST_F(HostileTest, IdlePlatformUsesNoCpu) {
  Guest g;
  ASSERT_TRUE(g.Load(*platform_));
  g.SetEntry(guest_site);
  Regs& r = g.main.context->regs();
  r.rax = 202;  // waits natively for ever
  r.rdi = test::kData;
  g.main.trapped = false;
  g.main.context->Resume(ResumeMode::kGuest);
  rusage before{}, after{};
  int64_t end = NowNs() + 500'000'000;
  for (int i = 0; i < 100; i++) test::PollOnce(*platform_, 1'000'000);
  getrusage(RUSAGE_SELF, &before);
  while (NowNs() < end) test::PollOnce(*platform_, 500'000'000);
  getrusage(RUSAGE_SELF, &after);
  int64_t us = (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1'000'000 +
               after.ru_utime.tv_usec - before.ru_utime.tv_usec;
  EXPECT_LT(us, 20'000);
  EXPECT_LT(g.main.context->CpuTimeNs(), 20'000'000);
}

}  // namespace
}  // namespace platform
