// Host threads that serve for one guest thread after the other.
#include "platform/parked_thread.h"

#include <gtest/gtest.h>
#include <time.h>
#include <unistd.h>

#include <set>

#include "platform/test_guest.h"
#include "platform/test_platform.h"

namespace platform {
namespace {

using test::Guest;
using test::RunGuest;
using test::Thread;

constexpr uint64_t kFlag = test::kData + 256, kOut = test::kData + 512;

class ParkedThreadTest : public test::PlatformTest {
 protected:
  void SetUp() override {
    test::PlatformTest::SetUp();
    if (HasFatalFailure()) return;
    ASSERT_TRUE(guest_.Load(*platform_, true));
  }
  // A new thread of the guest at `entry`, resumed; `*again`: in a host thread that was there.
  void Begin(Thread& t, const char* entry, bool* again) {
    t.context = std::move(*guest_.space->PrepareThread());
    t.context->set_listener(&t);
    Regs& r = t.context->regs();
    r = Regs{};
    r.rip = test::GuestAddr(entry);
    r.rsp = test::kStack + 0x8000;
    r.rdi = 1;
    r.r14 = kOut;
    Context& main = *guest_.main.context;
    auto* parked = dynamic_cast<ParkedThread*>(t.context.get());
    *again = parked != nullptr && parked->WakenBy(main);
    if (*again) t.context->Resume(ResumeMode::kGuest);  // in either order
    main.QueueOrder(order::CloneThread{*again ? &main : t.context.get()});
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    if (!*again) t.context->Resume(ResumeMode::kGuest);
  }
  // Runs the thread until it calls exit(2), and ends it.
  void End(Thread& t) {
    for (;;) {
      const Trap& trap = test::Await(*platform_, t);
      ASSERT_EQ(trap.kind, TrapKind::kSyscall) << trap.signo;
      if (t.context->regs().orig_rax == 60) break;
      t.context->regs().rax = 0;
      t.trapped = false;
      t.context->Resume(ResumeMode::kGuest);
    }
    t.context->Exit();
  }

  Guest guest_;
};

TEST_F(ParkedThreadTest, ServesAgain) {
  std::set<int> ids;
  int served = 0;
  for (int i = 0; served < 100; i++) {
    ASSERT_LT(i, 5000) << served;
    Thread t;
    bool again = false;
    Begin(t, guest_counter, &again);
    if (again) {
      served++;
      EXPECT_TRUE(ids.contains(t.context->host_tid()));
    } else if (i > 10) {
      usleep(1000);  // the last one is still on its way
    }
    End(t);
    ids.insert(t.context->host_tid());
  }
}

TEST_F(ParkedThreadTest, HasTheFpuStateOfItsMaker) {
  if (!__builtin_cpu_supports("avx")) GTEST_SKIP();
  std::vector<std::byte> pattern(64), zeros(128), want(128), got(128);
  const uint32_t set = 1;
  ASSERT_TRUE(guest_.space->Write(kFlag, std::as_bytes(std::span(&set, 1))).ok());
  for (int served = 0, i = 0; served < 20; i++) {
    ASSERT_LT(i, 5000) << served;
    for (size_t b = 0; b < pattern.size(); b++) pattern[b] = std::byte(b * 7 + i);
    ASSERT_TRUE(guest_.space->Write(test::kData, pattern).ok());
    guest_.SetEntry(guest_avx);
    Regs& r = guest_.main.context->regs();
    r.rdi = test::kData;
    r.rsi = kFlag;
    r.rdx = kOut;
    do {
      ASSERT_EQ(RunGuest(*platform_, guest_.main).kind, TrapKind::kSyscall);
    } while (guest_.main.context->regs().orig_rax != 60);
    ASSERT_TRUE(guest_.space->Read(kOut, want).ok());
    ASSERT_TRUE(guest_.space->Write(kOut, zeros).ok());
    Thread t;
    bool again = false;
    Begin(t, guest_avx_store, &again);
    served += again;
    if (!again && i > 10) usleep(1000);
    End(t);
    ASSERT_TRUE(guest_.space->Read(kOut, got).ok());
    EXPECT_EQ(got, want);
  }
}

// Told to end before its maker has let it go on.
TEST_F(ParkedThreadTest, MayEndBeforeItBegins) {
  for (int served = 0, i = 0; served < 20; i++) {
    ASSERT_LT(i, 5000) << served;
    {
      Thread t;
      bool again = false;
      Begin(t, guest_counter, &again);
      End(t);
    }
    Thread t;
    t.context = std::move(*guest_.space->PrepareThread());
    t.context->set_listener(&t);
    auto* parked = dynamic_cast<ParkedThread*>(t.context.get());
    if (parked == nullptr || !parked->WakenBy(*guest_.main.context)) {
      usleep(1000);
      continue;
    }
    served++;
    t.context->Exit();
    t.context.reset();
    guest_.main.context->QueueOrder(order::CloneThread{guest_.main.context.get()});
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
  }
}

// Interrupted before its maker has let it go on, it does not run.
TEST_F(ParkedThreadTest, MayBeInterruptedBeforeItBegins) {
  for (int served = 0, i = 0; served < 20; i++) {
    ASSERT_LT(i, 5000) << served;
    Thread t;
    t.context = std::move(*guest_.space->PrepareThread());
    t.context->set_listener(&t);
    t.context->regs().rip = test::GuestAddr(guest_counter);
    t.context->regs().rdi = 1;
    Context& main = *guest_.main.context;
    auto* parked = dynamic_cast<ParkedThread*>(t.context.get());
    const bool again = parked != nullptr && parked->WakenBy(main);
    if (again) {
      served++;
      t.context->Resume(ResumeMode::kGuest);
      t.context->Interrupt();
    } else if (i > 10) {
      usleep(1000);
    }
    main.QueueOrder(order::CloneThread{again ? &main : t.context.get()});
    ASSERT_EQ(RunGuest(*platform_, guest_.main, ResumeMode::kOrdersOnly).kind,
              TrapKind::kOrdersDone);
    if (again) {
      ASSERT_EQ(test::Await(*platform_, t).kind, TrapKind::kInterrupt);
      EXPECT_EQ(t.context->regs().rip, test::GuestAddr(guest_counter));
      t.trapped = false;
    }
    t.context->Resume(ResumeMode::kGuest);
    End(t);
  }
}

}  // namespace
}  // namespace platform
