// Programs that are executed in the host process of the one before, and mailboxes that serve again:
// when that is done, and that nothing of the one before is left.
#include "platform/exec_in_place.h"

#include <gtest/gtest.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "platform/mailbox.h"
#include "platform/systrap/fds.h"
#include "platform/systrap/stub_shell.h"
#include "platform/test_guest.h"
#include "platform/test_platform.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;
using test::Thread;

class ExecInPlaceTest : public test::PlatformTest {
 protected:
  void SetUp() override {
    test::PlatformTest::SetUp();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(guest_.Load(*platform_));
    guest_.SetEntry(guest_site);
    ASSERT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kSyscall);
  }
  static std::unique_ptr<AddressSpace> Prepare(AddressSpace& space) {
    auto* able = dynamic_cast<ExecInPlace*>(&space);
    return able ? able->PrepareExec() : nullptr;
  }
  // Moves guest_ to a new address space, which is cleared by its next round.
  std::unique_ptr<AddressSpace> Move() {
    std::unique_ptr<AddressSpace> old = std::move(guest_.space);
    guest_.space = Prepare(*old);
    if (!guest_.space) return nullptr;
    dynamic_cast<ExecInPlace&>(*guest_.space).TakeThread(*guest_.main.context);
    uint64_t begin = old->limits().min_address;
    for (auto [from, to] : guest_.space->ReservedRanges()) {
      guest_.main.context->QueueOrder(order::Munmap{begin, from - begin});
      begin = to;
    }
    guest_.main.context->QueueOrder(order::Munmap{begin, old->limits().max_address - begin});
    guest_.main.context->QueueOrder(order::RestoreFpu{0});
    return old;
  }
  bool strict() const { return test::TestOptions().strict; }

  Guest guest_;
};

TEST_F(ExecInPlaceTest, NothingOfTheOldProgramIsLeft) {
  if (strict()) GTEST_SKIP();
  const int pid = guest_.space->host_pid();
  int value = 42;
  for (int i = 0; i < 5; i++) {
    ASSERT_TRUE(guest_.space->Write(test::kData, std::as_bytes(std::span(&value, 1))).ok());
    std::unique_ptr<AddressSpace> old = Move();
    ASSERT_TRUE(old);
    EXPECT_FALSE(old->Read(test::kData, std::as_writable_bytes(std::span(&value, 1))).ok());
    for (uint64_t area : {offsetof(Slot, in_area), offsetof(Slot, out_area)}) {
      uint64_t left = 1;
      ASSERT_TRUE(
          guest_.space->Read(SlotAddress(0) + area, std::as_writable_bytes(std::span(&left, 1)))
              .ok());
      EXPECT_EQ(0u, left);
    }
    EXPECT_FALSE(old->Write(test::kData, std::as_bytes(std::span(&value, 1))).ok());
    old->Kill();  // is about a process that it has no more
    old.reset();
    Context& c = *guest_.main.context;
    EXPECT_EQ(&c.address_space(), guest_.space.get());
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    for (uint64_t addr : {test::kCode, test::kStack, test::kData}) {
      EXPECT_FALSE(guest_.space->Read(addr, std::as_writable_bytes(std::span(&value, 1))).ok());
    }
    c.QueueOrder(test::CodeFile());
    c.QueueOrder(test::Anonymous(test::kData, test::kDataSize, PROT_READ | PROT_WRITE));
    guest_.SetEntry(guest_site);
    c.regs().rax = 100 + i;
    ASSERT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kSyscall);
    EXPECT_EQ(c.call().nr, 100u + i);
    EXPECT_EQ(guest_.space->host_pid(), pid);
    int seen = -1;
    ASSERT_TRUE(guest_.space->Read(test::kData, std::as_writable_bytes(std::span(&seen, 1))).ok());
    EXPECT_EQ(seen, 0);
    value = 42;
  }
}

TEST_F(ExecInPlaceTest, AForkOfAProgramInPlace) {
  if (strict()) GTEST_SKIP();
  ASSERT_TRUE(Move());
  Context& c = *guest_.main.context;
  c.QueueOrder(test::CodeFile());
  std::unique_ptr<AddressSpace> child = *guest_.space->PrepareFork();
  c.QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  Thread t;
  t.context = child->TakeMainContext();
  t.context->set_listener(&t);
  t.context->regs() = Regs{};
  t.context->regs().rip = test::GuestAddr(guest_site);
  t.context->regs().rax = 7;
  ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
  EXPECT_EQ(t.context->call().nr, 7u);
  EXPECT_TRUE(Prepare(*child));
}

TEST_F(ExecInPlaceTest, NeverInStrictMode) {
  EXPECT_EQ(Prepare(*guest_.space) == nullptr, strict());
}

TEST_F(ExecInPlaceTest, NotOnceThereWereOtherThreads) {
  { auto thread = guest_.space->PrepareThread(); }
  EXPECT_FALSE(Prepare(*guest_.space));
}

// Nor in what it forks, into whose mailbox it can reach.
TEST_F(ExecInPlaceTest, NotOnceThereWereOtherCredentials) {
  guest_.space->DropFileWindows();
  EXPECT_FALSE(Prepare(*guest_.space));
  std::unique_ptr<AddressSpace> child = *guest_.space->PrepareFork();
  guest_.main.context->QueueOrder(order::Fork{child.get()});
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_FALSE(Prepare(*child));
}

TEST_F(ExecInPlaceTest, NotWhenTheTextWasGivenUp) {
  guest_.main.context->QueueOrder(order::LeaveText{});
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_FALSE(Prepare(*guest_.space));
}

TEST_F(ExecInPlaceTest, NotWhenTheGuestHasTheJumpTablesPlace) {
  guest_.main.context->QueueOrder(test::Anonymous(kJumpTable, kPageSize, PROT_READ));
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_FALSE(Prepare(*guest_.space));
}

TEST_F(ExecInPlaceTest, NotWhenTheHostRemembersBarriers) {
  guest_.main.context->QueueOrder(
      order::Membarrier{MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0});
  ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_FALSE(Prepare(*guest_.space));
}

TEST_F(ExecInPlaceTest, AnAddressSpaceThatIsNotTakenChangesNothing) {
  const int pid = guest_.space->host_pid();
  for (int i = 0; i < 3; i++) Prepare(*guest_.space);
  guest_.SetEntry(guest_site);
  ASSERT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kSyscall);
  EXPECT_EQ(guest_.space->host_pid(), pid);
}

// ---- Shells ----

TEST(StubShellTest, WhatAStubHasLeftIsGone) {
  StubShell shell = *StubShell::Create();
  EXPECT_FALSE(shell.used());
  auto* header = reinterpret_cast<MailboxHeader*>(shell.mailbox());
  memset(header, 0xaa, offsetof(MailboxHeader, sites));
  for (uint32_t i = 0; i < 2; i++) memset(shell.mailbox() + SlotOffset(i), 0xaa, sizeof(Slot) / 4);
  char byte = 0;
  int fds[] = {shell.socket()};
  for (int i = 0; i < 3; i++) ASSERT_TRUE(SendWithFds(shell.socket(), &byte, 1, fds).ok());
  shell.UseFileBegin(2);
  memset(header->file_begins[2], 0xaa, kFileBeginSize);
  ASSERT_TRUE(shell.Clean(2));
  EXPECT_TRUE(shell.used());
  EXPECT_EQ(std::ranges::count(header->file_begins[2], 0), kFileBeginSize);
  const std::vector<unsigned char> zeros(kPageSize);
  EXPECT_EQ(memcmp(header, zeros.data(), offsetof(MailboxHeader, sites)), 0);
  for (uint32_t i = 0; i < 2; i++) {
    EXPECT_EQ(memcmp(shell.mailbox() + SlotOffset(i), zeros.data(), kPageSize), 0);
  }
  EXPECT_LT(recv(shell.stub_socket(), &byte, 1, MSG_DONTWAIT), 0);
}

TEST(StubShellTest, OnesThatHoldMuchAreGivenBack) {
  StubShell many = *StubShell::Create();
  EXPECT_FALSE(many.Clean(100));
  StubShell large = *StubShell::Create();
  memset(large.mailbox() + SlotOffset(10), 1, 1 << 20);
  EXPECT_FALSE(large.Clean(1));
  StubShell closed = *StubShell::Create();
  closed.CloseStubsPart();
  EXPECT_FALSE(closed.Clean(1));
}

TEST(StubShellTest, AFewAreKeptUntilTheMakerEnds) {
  auto spares = base::MakeRef<SpareShells>();
  size_t kept = 0;
  for (int i = 0; i < 10; i++) {
    StubShell shell = *StubShell::Create();
    kept += spares->Put(&shell);
  }
  EXPECT_GT(kept, 0u);
  EXPECT_LT(kept, 10u);
  std::optional<StubShell> taken = spares->Take();
  ASSERT_TRUE(taken);
  EXPECT_EQ(spares->Close().size(), kept - 1);
  EXPECT_FALSE(spares->Put(&*taken));
  EXPECT_FALSE(spares->Take());
}

// A child writes all over its own mailbox and ends; its maker's next one starts as any.
TEST_F(ExecInPlaceTest, TheNextChildDoesNotMeetWhatTheLastHasLeft) {
  for (int i = 0; i < 10; i++) {
    std::unique_ptr<AddressSpace> child = *guest_.space->PrepareFork();
    guest_.main.context->QueueOrder(order::Fork{child.get()});
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    Thread t;
    t.context = child->TakeMainContext();
    t.context->set_listener(&t);
    t.context->regs() = Regs{};
    t.context->regs().rip = test::GuestAddr(guest_site);
    t.context->regs().rax = 50 + i;
    ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kSyscall);
    EXPECT_EQ(t.context->call().nr, 50u + i);
    // The ready words and more of the slot than its own thread has used, behind its back.
    std::vector<std::byte> noise(256, std::byte{0x5a});
    ASSERT_TRUE(child->Write(SlotAddress(1), noise).ok());
    ASSERT_TRUE(child->Write(SlotAddress(0) + offsetof(Slot, lane_hits), noise).ok());
    const int pid = child->host_pid();
    t.context.reset();
    child.reset();
    for (int k = 0; k < 2000 && kill(pid, 0) == 0; k++) test::PollOnce(*platform_, 1'000'000);
    EXPECT_NE(kill(pid, 0), 0);
  }
}

}  // namespace
}  // namespace platform
