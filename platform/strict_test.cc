// Strict mode against a guest that makes its stub's host calls itself: only what was ordered of
// that very thread is done, and only once.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "platform/mailbox.h"
#include "platform/test_guest.h"

namespace platform {
namespace {

using test::Anonymous;
using test::Guest;
using test::RunGuest;
using test::Thread;

static_assert(static_cast<int>(RequestKind::kInterrupt) == 4 &&
              static_cast<int>(RequestKind::kOrdersDone) == 5);

constexpr uint64_t kPlace = 0x4000'0000;
constexpr uint64_t kPrivateFixed = MAP_PRIVATE | MAP_FIXED;
constexpr uint64_t kAnonymousFixed = kPrivateFixed | MAP_ANONYMOUS;
constexpr uint64_t kNoFd = ~0ull;
constexpr uint64_t kReadWrite = PROT_READ | PROT_WRITE;

// What guest_caller finds at r14.
struct HostCall {
  uint64_t nr;
  std::array<uint64_t, 6> args{};
  int64_t result = 0x5eed;
};
struct Script {
  uint64_t count = 0, silent = 0, pad[6] = {};
  HostCall calls[8];
};
static_assert(offsetof(Script, calls) == 64 && sizeof(HostCall) == 64);

HostCall Map(uint64_t addr, uint64_t length, uint64_t prot, uint64_t flags, uint64_t fd = kNoFd,
             uint64_t offset = 0) {
  return {SYS_mmap, {addr, length, prot, flags, fd, offset}};
}

class StrictTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    Options options;
    options.strict = true;
    auto p = CreateSystrap(options, &why);
    ASSERT_TRUE(p.ok()) << why;
    platform_ = std::move(*p);
    platform_->StartPool();
    ASSERT_TRUE(guest_.Load(*platform_));
    gadget_ = FindGadget();
    TakeOver(guest_.main, 0, test::kData);
  }
  // syscall; pop %rbx; ret in the stub.
  uint64_t FindGadget() {
    const std::vector<unsigned char> gadget = {0x0f, 0x05, 0x5b, 0xc3};
    std::vector<unsigned char> page(kPageSize);
    for (uint64_t a = kStubBase; a < kStubBase + kStubTextMax; a += kPageSize) {
      if (!guest_.space->Read(a, std::as_writable_bytes(std::span(page))).ok()) continue;
      auto found = std::search(page.begin(), page.end(), gadget.begin(), gadget.end());
      if (found != page.end()) return a + static_cast<uint64_t>(found - page.begin());
    }
    ADD_FAILURE() << "no gadget";
    return 0;
  }
  // Has the thread in `slot` run guest_caller with the script at `script`.
  void TakeOver(Thread& t, uint32_t slot, uint64_t script) {
    Regs& r = t.context->regs();
    r = Regs{};
    r.rip = test::GuestAddr(guest_caller);
    r.rsp = test::kStack + test::kStackSize - 64 - slot * 0x4000;
    r.rdi = SlotAddress(slot);
    r.r14 = script;
    r.r15 = gadget_;
    ASSERT_EQ(RunGuest(*platform_, t).kind, TrapKind::kInterrupt);
  }
  void Write(uint64_t script, const std::vector<HostCall>& calls, bool silent) {
    Write(guest_, script, calls, silent);
  }
  void Write(Guest& guest, uint64_t script, const std::vector<HostCall>& calls, bool silent) {
    Script s;
    s.count = calls.size();
    s.silent = silent;
    std::copy(calls.begin(), calls.end(), s.calls);
    ASSERT_TRUE(guest.space->Write(script, std::as_bytes(std::span(&s, 1))).ok());
  }
  std::vector<int64_t> Results(uint64_t script) { return Results(guest_, script); }
  std::vector<int64_t> Results(Guest& guest, uint64_t script) {
    Script s;
    EXPECT_TRUE(guest.space->Read(script, std::as_writable_bytes(std::span(&s, 1))).ok());
    std::vector<int64_t> results;
    for (uint64_t i = 0; i < s.count; i++) results.push_back(s.calls[i].result);
    return results;
  }
  // Gives the guest's main thread its orders, and it makes these calls instead.
  std::vector<int64_t> Try(std::vector<Order> orders, const std::vector<HostCall>& calls) {
    Write(test::kData, calls, false);
    for (Order& order : orders) guest_.main.context->QueueOrder(std::move(order));
    EXPECT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    return Results(test::kData);
  }
  bool Readable(uint64_t addr) {
    std::byte b;
    return guest_.space->Read(addr, std::span(&b, 1)).ok();
  }
  base::Ref<base::HostFd> File(char fill) {
    int fd = memfd_create("strict", MFD_CLOEXEC);
    std::string page(kPageSize, fill);
    EXPECT_EQ(write(fd, page.data(), page.size()), static_cast<ssize_t>(page.size()));
    return base::MakeRef<base::HostFd>(fd);
  }
  order::Mmap MapOf(const base::Ref<base::HostFd>& file) {
    order::Mmap map = Anonymous(kPlace, kPageSize, PROT_READ);
    map.file = file;
    return map;
  }

  std::unique_ptr<Platform> platform_;
  Guest guest_;
  uint64_t gadget_ = 0;
};

constexpr int64_t kRefused = -EPERM;

TEST_F(StrictTest, WhatNobodyHasOrderedIsRefused) {
  std::vector<int64_t> results =
      Try({order::FutexWake{test::kData, 0, true}},
          {Map(kPlace, kPageSize, kReadWrite, kAnonymousFixed),
           {SYS_munmap, {test::kStack, kPageSize}},
           {SYS_mprotect, {test::kData + kPageSize, kPageSize, PROT_READ}},
           {SYS_madvise, {test::kStack, kPageSize, MADV_DONTNEED}},
           {SYS_mremap, {test::kStack, kPageSize, kPageSize, 3, kPlace}},
           {SYS_mprotect, {kStubBase, kStubTextMax, PROT_READ | PROT_WRITE | PROT_EXEC}},
           {SYS_clone, {kForkCloneFlags}},
           {SYS_clone, {kThreadCloneFlags, test::kStack + 0x1000}}});
  EXPECT_EQ(results, std::vector<int64_t>(8, kRefused));
  EXPECT_FALSE(Readable(kPlace));
  EXPECT_TRUE(Readable(test::kStack));
}

TEST_F(StrictTest, WhatWasOrderedIsDoneOnceAndExactly) {
  std::vector<int64_t> results =
      Try({Anonymous(kPlace, 2 * kPageSize, PROT_READ)},
          {Map(kPlace, kPageSize, PROT_READ, kAnonymousFixed),
           Map(kPlace + kPageSize, 2 * kPageSize, PROT_READ, kAnonymousFixed),
           Map(kPlace, 2 * kPageSize, kReadWrite, kAnonymousFixed),
           Map(kPlace, 2 * kPageSize, PROT_READ, kAnonymousFixed | MAP_NORESERVE),
           {SYS_munmap, {kPlace, 2 * kPageSize}},
           Map(kPlace, 2 * kPageSize, PROT_READ, kAnonymousFixed),
           Map(kPlace, 2 * kPageSize, PROT_READ, kAnonymousFixed)});
  EXPECT_EQ(results, (std::vector<int64_t>{kRefused, kRefused, kRefused, kRefused, kRefused, kPlace,
                                           kRefused}));
  EXPECT_TRUE(Readable(kPlace + kPageSize));
  // Not after the round either.
  results = Try({order::Munmap{kPlace, kPageSize}},
                {Map(kPlace, 2 * kPageSize, PROT_READ, kAnonymousFixed),
                 {SYS_munmap, {kPlace, 2 * kPageSize}},
                 {SYS_munmap, {kPlace, kPageSize}},
                 {SYS_munmap, {kPlace, kPageSize}}});
  EXPECT_EQ(results, (std::vector<int64_t>{kRefused, kRefused, 0, kRefused}));
  EXPECT_FALSE(Readable(kPlace));
  EXPECT_TRUE(Readable(kPlace + kPageSize));
}

TEST_F(StrictTest, OrdersAreNotTurnedAround) {
  std::vector<int64_t> results =
      Try({order::Mprotect{test::kStack, kPageSize, PROT_NONE},
           order::Mprotect{test::kStack, kPageSize, PROT_READ | PROT_WRITE},
           order::Madvise{test::kStack, kPageSize, MADV_DONTNEED}},
          {{SYS_mprotect, {test::kStack, kPageSize, kReadWrite}},
           {SYS_mprotect, {test::kStack, kPageSize, PROT_NONE}},
           {SYS_madvise, {test::kStack, kPageSize, MADV_FREE}},
           {SYS_madvise, {test::kStack, kPageSize, MADV_DONTNEED}}});
  EXPECT_EQ(results, (std::vector<int64_t>{0, kRefused, kRefused, 0}));
}

TEST_F(StrictTest, AFileIsMappedAsOrdered) {
  const uint64_t fd = static_cast<uint64_t>(OrderedFd(0));
  base::Ref<base::HostFd> file = File('a'), other = File('b');
  std::vector<int64_t> results =
      Try({MapOf(file)}, {Map(kPlace, kPageSize, kReadWrite, MAP_SHARED | MAP_FIXED, fd),
                          Map(kPlace, kPageSize, PROT_READ, kPrivateFixed, fd, kPageSize),
                          Map(kPlace, kPageSize, PROT_READ, kPrivateFixed, fd + 1),
                          Map(kPlace, kPageSize, PROT_READ, kPrivateFixed, fd),
                          Map(kPlace, kPageSize, kReadWrite, MAP_SHARED | MAP_FIXED, fd)});
  EXPECT_EQ(results, (std::vector<int64_t>{kRefused, kRefused, kRefused, kPlace, kRefused}));
  // The descriptor is still open: what is mapped next is the next file nevertheless.
  EXPECT_EQ(Try({MapOf(other)}, {Map(kPlace, kPageSize, PROT_READ, kPrivateFixed, fd)}),
            std::vector<int64_t>{kPlace});
  char seen = 0;
  ASSERT_TRUE(guest_.space->Read(kPlace, std::as_writable_bytes(std::span(&seen, 1))).ok());
  EXPECT_EQ(seen, 'b');
}

TEST_F(StrictTest, AThreadIsMadeAsOrdered) {
  Thread second;
  second.context = std::move(*guest_.space->PrepareThread());
  const uint64_t place = SlotAddress(1) + offsetof(Slot, host_tid);
  std::vector<int64_t> results =
      Try({order::FutexWake{test::kData, 0, true}, order::Munmap{kPlace, kPageSize}},
          {{SYS_clone, {kThreadCloneFlags, SlotAddress(1) + kSlotStackEnd, 0, place}}});
  EXPECT_EQ(results, std::vector<int64_t>{kRefused});
  Write(test::kData,
        {{SYS_clone, {kThreadCloneFlags, SlotAddress(2) + kSlotStackEnd, 0, place}},
         {SYS_clone, {kThreadCloneFlags, SlotAddress(1) + kSlotStackEnd, 0, test::kData}},
         {SYS_clone, {kForkCloneFlags, 0, 0, place}}},
        false);
  guest_.main.context->QueueOrder(order::CloneThread{second.context.get()});
  // It reports a thread, and has none.
  EXPECT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind, TrapKind::kGone);
}

TEST_F(StrictTest, AnotherThreadsOrderIsNotItsOwn) {
  Guest two;
  ASSERT_TRUE(two.Load(*platform_));
  Thread second;
  second.context = std::move(*two.space->PrepareThread());
  second.context->set_listener(&second);
  two.main.context->QueueOrder(order::CloneThread{second.context.get()});
  ASSERT_EQ(RunGuest(*platform_, two.main, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  const uint64_t script = test::kData + kPageSize;
  TakeOver(two.main, 0, test::kData);
  TakeOver(second, 1, script);
  // The first keeps its order open, and the second asks for it.
  Write(two, test::kData, {}, true);
  two.main.trapped = false;
  two.main.context->QueueOrder(Anonymous(kPlace, kPageSize, PROT_READ));
  two.main.context->Resume(ResumeMode::kOrdersOnly);
  Write(two, script, {Map(kPlace, kPageSize, PROT_READ, kAnonymousFixed)}, false);
  EXPECT_EQ(RunGuest(*platform_, second, ResumeMode::kOrdersOnly).kind, TrapKind::kOrdersDone);
  EXPECT_EQ(Results(two, script), std::vector<int64_t>{kRefused});
  EXPECT_FALSE(two.main.trapped);
}

// A child may map the mailbox that was made for it, once; its parent may not.
TEST_F(StrictTest, AForkIsOrderedWithItsMailbox) {
  auto child = std::move(*guest_.space->PrepareFork());
  const uint64_t fd = static_cast<uint64_t>(OrderedFd(0));
  HostCall mailbox = Map(kMailboxBase, kMailboxSize, kReadWrite, MAP_SHARED | MAP_FIXED, fd);
  Write(test::kData,
        {mailbox,
         {SYS_clone, {kForkCloneFlags, 0, 0, SlotAddress(0) + offsetof(Slot, host_tid)}},
         mailbox,
         mailbox,
         Map(kPlace, kPageSize, PROT_READ, kAnonymousFixed)},
        true);
  guest_.main.context->QueueOrder(order::Fork{child.get()});
  guest_.main.trapped = false;
  guest_.main.context->Resume(ResumeMode::kOrdersOnly);
  timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  Script seen{};
  do {
    test::PollOnce(*platform_, 1'000'000);
    pid_t pid = static_cast<pid_t>(Results(test::kData)[1]);
    iovec local{&seen, sizeof(seen)};
    iovec remote{reinterpret_cast<void*>(test::kData), sizeof(seen)};
    if (pid > 0) static_cast<void>(process_vm_readv(pid, &local, 1, &remote, 1, 0));
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (
      (Results(test::kData)[4] == 0x5eed || seen.count == 0 || seen.calls[4].result == 0x5eed) &&
      now.tv_sec - start.tv_sec < 20);
  std::vector<int64_t> parents = Results(test::kData);
  EXPECT_EQ(parents[0], kRefused);
  EXPECT_GT(parents[1], 0);
  for (int i = 2; i < 5; i++) EXPECT_EQ(parents[static_cast<size_t>(i)], kRefused) << i;
  EXPECT_EQ(seen.calls[1].result, 0);
  EXPECT_EQ(seen.calls[2].result, static_cast<int64_t>(kMailboxBase));
  EXPECT_EQ(seen.calls[3].result, kRefused);
  EXPECT_EQ(seen.calls[4].result, kRefused);
}

}  // namespace
}  // namespace platform
