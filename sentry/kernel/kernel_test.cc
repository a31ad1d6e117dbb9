// Parts of the kernel that need no guest: ids, signal queues, iovecs, limits.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/signal.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/kernel/user_io.h"

namespace sentry {
namespace {

base::Ref<PidNamespace> NewNs(base::Ref<PidNamespace> parent = nullptr) {
  return base::MakeRef<PidNamespace>(std::move(parent), UserNamespace::NewRoot());
}

TEST(PidNamespaceTest, NumbersGoUpAndAreFreedWithThePid) {
  base::Ref<PidNamespace> ns = NewNs();
  base::Ref<Pid> first = *ns->Allocate();
  base::Ref<Pid> second = *ns->Allocate();
  EXPECT_EQ(1, first->number());
  EXPECT_EQ(2, second->number());
  EXPECT_EQ(second, ns->Find(2));
  second.reset();
  EXPECT_EQ(nullptr, ns->Find(2));
  // Not used again before the numbers have wrapped.
  EXPECT_EQ(3, (*ns->Allocate())->number());
  EXPECT_EQ((std::vector<int>{1}), ns->Numbers());
}

TEST(PidNamespaceTest, ANestedPidHasANumberInEachLevel) {
  base::Ref<PidNamespace> root = NewNs();
  base::Ref<Pid> outer = *root->Allocate();
  base::Ref<PidNamespace> inner = NewNs(root);
  base::Ref<Pid> pid = *inner->Allocate();
  EXPECT_EQ(1, pid->NumberIn(*inner));
  EXPECT_EQ(2, pid->NumberIn(*root));
  EXPECT_EQ(0, outer->NumberIn(*inner));
  EXPECT_TRUE(root->IsAncestorOf(*inner));
  EXPECT_FALSE(inner->IsAncestorOf(*root));
  base::Ref<PidNamespace> other = NewNs(root);
  EXPECT_EQ(0, pid->NumberIn(*other));
}

TEST(PidNamespaceTest, WantedNumbersAndClosedNamespaces) {
  base::Ref<PidNamespace> ns = NewNs();
  EXPECT_EQ(EINVAL, ns->Allocate({5}).error().code());  // before init
  base::Ref<Pid> init = *ns->Allocate();
  base::Ref<Pid> five = *ns->Allocate({5});
  EXPECT_EQ(5, five->number());
  EXPECT_EQ(EEXIST, ns->Allocate({5}).error().code());
  EXPECT_EQ(EINVAL, ns->Allocate({7, 8}).error().code());
  ns->Close();
  EXPECT_EQ(ENOMEM, ns->Allocate().error().code());
}

siginfo_t Value(int signo, int value) {
  siginfo_t info = MakeSiginfo(signo, SI_QUEUE);
  info.si_value.sival_int = value;
  return info;
}

TEST(PendingSignalsTest, StandardSignalsAreKeptOnceRealTimeOnesQueue) {
  PendingSignals pending;
  auto user = base::MakeRef<UserCount>();
  EXPECT_TRUE(pending.Add(Value(SIGUSR1, 1), user));
  EXPECT_FALSE(pending.Add(Value(SIGUSR1, 2), user));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(pending.Add(Value(SIGRTMIN, i), user));
  EXPECT_EQ(4, user->pending_signals.load());
  EXPECT_EQ(SIGUSR1, pending.Take(~SigSet{0})->si_signo);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(i, pending.Take(~SigSet{0})->si_value.sival_int);
  EXPECT_FALSE(pending.Take(~SigSet{0}).has_value());
  EXPECT_EQ(0, user->pending_signals.load());
}

TEST(PendingSignalsTest, SynchronousFirstThenTheLowestAndOnlyWhatIsAllowed) {
  PendingSignals pending;
  for (int signo : {SIGTERM, SIGHUP, SIGSEGV}) pending.Add(MakeSiginfo(signo, SI_USER), nullptr);
  EXPECT_EQ(SIGSEGV, pending.Take(~SigSet{0})->si_signo);
  EXPECT_FALSE(pending.Take(SigBit(SIGINT)).has_value());
  EXPECT_EQ(SIGHUP, pending.Take(~SigSet{0})->si_signo);
  pending.Flush(SigBit(SIGTERM));
  EXPECT_EQ(0u, pending.set());
}

TEST(PendingSignalsTest, OverrunsOfATimer) {
  PendingSignals pending;
  EXPECT_FALSE(pending.AddOverrun(3, 1));
  siginfo_t info = MakeSiginfo(SIGALRM, SI_TIMER);
  info.si_timerid = 3;
  pending.Add(info, nullptr);
  EXPECT_TRUE(pending.AddOverrun(3, 5));
  EXPECT_EQ(5, pending.Take(~SigSet{0})->si_overrun);
}

TEST(SignalHandlersTest, ExecKeepsIgnoredSignalsAlone) {
  auto handlers = base::MakeRef<SignalHandlers>();
  handlers->Set(SIGINT, {.handler = kSigIgn, .flags = SA_RESTART});
  handlers->Set(SIGTERM, {.handler = 0x1234, .mask = 1});
  handlers->ResetForExec();
  EXPECT_EQ(kSigIgn, handlers->Get(SIGINT).handler);
  EXPECT_EQ(0u, handlers->Get(SIGINT).flags);
  EXPECT_EQ(kSigDfl, handlers->Get(SIGTERM).handler);
  EXPECT_TRUE(handlers->IsIgnored(SIGCHLD));
  EXPECT_FALSE(handlers->IsIgnored(SIGTERM));
}

// Guest memory that ends at kEnd.
class FakeMemory : public base::UserMemory {
 public:
  static constexpr uint64_t kBase = 0x1000, kEnd = 0x2000;
  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override {
    size_t n = Room(addr, dst.size());
    if (n == 0 && !dst.empty()) return base::Error(EFAULT);
    memcpy(dst.data(), &bytes[addr - kBase], n);
    return n;
  }
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override {
    size_t n = Room(addr, src.size());
    if (n == 0 && !src.empty()) return base::Error(EFAULT);
    memcpy(&bytes[addr - kBase], src.data(), n);
    return n;
  }
  std::array<std::byte, kEnd - kBase> bytes{};

 private:
  static size_t Room(uint64_t addr, size_t n) {
    if (addr < kBase || addr >= kEnd) return 0;
    return std::min<uint64_t>(n, kEnd - addr);
  }
};

TEST(UserIoTest, IovecsAreGatheredAndStopAtAFault) {
  FakeMemory memory;
  iovec iov[] = {{reinterpret_cast<void*>(0x1100), 4},
                 {reinterpret_cast<void*>(0x1200), 0},
                 {reinterpret_cast<void*>(0x1ffe), 8}};
  memcpy(&memory.bytes[0x800], iov, sizeof(iov));
  UserIovec imported = *ImportIovec(memory, 0x1800, 3);
  EXPECT_EQ(12u, imported.total);
  UserIoDest dest(memory, imported);
  std::byte data[12];
  for (int i = 0; i < 12; ++i) data[i] = std::byte(i + 1);
  EXPECT_EQ(6u, *dest.Put(data));
  EXPECT_EQ(std::byte(4), memory.bytes[0x103]);
  EXPECT_EQ(std::byte(6), memory.bytes[0xfff]);
  EXPECT_EQ(EFAULT, dest.Put(data).error().code());
}

TEST(UserIoTest, Checks) {
  FakeMemory memory;
  EXPECT_EQ(EINVAL, ImportIovec(memory, 0x1800, kIovMax + 1).error().code());
  iovec iov{reinterpret_cast<void*>(0x1100), static_cast<size_t>(-1)};
  memcpy(&memory.bytes[0], &iov, sizeof(iov));
  EXPECT_EQ(EINVAL, ImportIovec(memory, 0x1000, 1).error().code());
  EXPECT_EQ(EFAULT, ImportIovec(memory, 0x3000, 1).error().code());
  EXPECT_EQ(EFAULT, ImportRange(kUserAddressEnd - 1, 2).error().code());
  EXPECT_EQ(kMaxRwCount, ImportRange(0x1000, uint64_t{1} << 40)->total);
}

TEST(RlimitsTest, Defaults) {
  Rlimits limits;
  EXPECT_EQ(uint64_t{8} << 20, limits.Soft(RLIMIT_STACK));
  limits.Set(RLIMIT_NOFILE, {10, 20});
  Rlimits copy;
  copy.CopyFrom(limits);
  EXPECT_EQ(20u, copy.Get(RLIMIT_NOFILE).hard);
}

}  // namespace
}  // namespace sentry
