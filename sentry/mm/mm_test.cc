#include "sentry/mm/memory_manager.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <unistd.h>

#include <cinttypes>
#include <cstring>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "sentry/mm/mm_test_util.h"

namespace sentry {
namespace {

using test::FakeAddressSpace;
using test::FakeFile;
using test::FakeRunner;

constexpr uint64_t kPg = kPageSize;
constexpr int kRw = PROT_READ | PROT_WRITE;
constexpr int kAnon = MAP_PRIVATE | MAP_ANONYMOUS;
// Free in this process too, where the sanitizers have no shadow memory.
constexpr uint64_t kBase = 0x7e90'0000'0000;

class MmTest : public testing::Test {
 protected:
  MmTest() : as_(new FakeAddressSpace), runner_(as_) {
    mm_ = MemoryManager::NewOn(std::unique_ptr<platform::AddressSpace>(as_));
    mm_->InitLayout(8 << 20, ADDR_NO_RANDOMIZE);
  }
  base::Result<uint64_t> Map(uint64_t addr, uint64_t length, int prot = kRw, int flags = kAnon,
                             base::Ref<FileDescription> file = nullptr, uint64_t offset = 0) {
    return mm_->Mmap(runner_, {.addr = addr,
                               .length = length,
                               .prot = prot,
                               .flags = flags,
                               .file = std::move(file),
                               .offset = offset});
  }
  int MapError(uint64_t addr, uint64_t length, int prot, int flags,
               base::Ref<FileDescription> file = nullptr, uint64_t offset = 0) {
    auto r = Map(addr, length, prot, flags, std::move(file), offset);
    return r.ok() ? 0 : r.error().code();
  }
  std::vector<Vma> Vmas(uint64_t lo = 0, uint64_t hi = UINT64_MAX) {
    std::vector<Vma> vmas;
    mm_->ForEachVma([&](const Vma& v) {
      if (v.start < hi && v.end > lo) vmas.push_back(v);
    });
    return vmas;
  }
  // Each page of each VMA is in the model as the VMA says, and nothing else is.
  void CheckModel() {
    uint64_t mapped = 0;
    for (const Vma& v : Vmas()) {
      for (uint64_t at = v.host_start; at < v.end; at += kPg) {
        ++mapped;
        auto it = as_->pages.find(at);
        ASSERT_NE(it, as_->pages.end()) << std::hex << at;
        ASSERT_EQ(it->second.prot, v.prot) << std::hex << at;
        ASSERT_EQ(it->second.shared, v.shared);
        ASSERT_EQ(it->second.file, v.host.file.get());
        if (v.host.file && at >= v.start) {
          ASSERT_EQ(it->second.offset, v.host.offset + (at - v.start));
        }
      }
    }
    ASSERT_EQ(mapped, as_->pages.size());
  }
  FaultOutcome Fault(uint64_t addr, bool write, int signo = SIGSEGV) {
    platform::Trap trap{.kind = platform::TrapKind::kFault};
    trap.signo = signo;
    trap.si_code = signo == SIGBUS ? int{BUS_ADRERR} : int{SEGV_MAPERR};
    trap.fault_addr = addr;
    trap.trapno = 14;
    trap.error_code = write ? 6 : 4;
    return mm_->HandleFault(runner_, trap);
  }

  FakeAddressSpace* as_;
  FakeRunner runner_;
  base::Ref<MemoryManager> mm_;
};

base::Ref<base::HostFd> MemFile(uint64_t size) {
  const int fd = memfd_create("mm_test", MFD_CLOEXEC);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
  return base::MakeRef<base::HostFd>(fd);
}

TEST_F(MmTest, TopDownAndMerge) {
  const uint64_t a = *Map(0, kPg), b = *Map(0, 2 * kPg);
  EXPECT_EQ(b + 2 * kPg, a);
  EXPECT_EQ(Vmas().size(), 1u);
  EXPECT_TRUE(mm_->Munmap(runner_, b + kPg, kPg).ok());
  EXPECT_EQ(Vmas().size(), 2u);
  EXPECT_EQ(*Map(0, kPg), b + kPg);
  EXPECT_EQ(*Map(0, 100), b - kPg);
  EXPECT_EQ(mm_->stats().total_vm, 4 * kPg);
  CheckModel();
}

TEST_F(MmTest, HugeMappingsAreAligned) {
  ASSERT_TRUE(Map(0, kPg).ok());
  EXPECT_EQ(*Map(0, 4 << 20) % kHugePageSize, 0u);
  CheckModel();
}

TEST_F(MmTest, Hints) {
  EXPECT_EQ(*Map(kBase + 5, kPg), kBase);
  EXPECT_NE(*Map(kBase, kPg), kBase);
  EXPECT_EQ(MapError(kBase, kPg, kRw, kAnon | MAP_FIXED_NOREPLACE), EEXIST);
  EXPECT_EQ(*Map(kBase, kPg, PROT_READ, kAnon | MAP_FIXED), kBase);
  const uint64_t low = *Map(0, kPg, kRw, kAnon | MAP_32BIT);
  EXPECT_GE(low, 0x40000000u);
  EXPECT_LT(low, 0x80000000u);
  EXPECT_EQ(*Map(0x1001, kPg), 0x10000u);  // rounded up to mmap_min_addr
  CheckModel();
}

TEST_F(MmTest, ReservedRangesAreLeftAlone) {
  const uint64_t a = *Map(0, kPg);
  as_->reserved = {{a - 3 * kPg, a - 2 * kPg}};
  EXPECT_EQ(*Map(0, 2 * kPg), a - 2 * kPg);
  EXPECT_EQ(*Map(0, kPg), a - 4 * kPg);
  EXPECT_NE(*Map(a - 3 * kPg, kPg), a - 3 * kPg);
  EXPECT_EQ(*Map(a - 3 * kPg, kPg, kRw, kAnon | MAP_FIXED), a - 3 * kPg);
  CheckModel();
}

TEST_F(MmTest, MmapErrors) {
  EXPECT_EQ(MapError(0, 0, kRw, kAnon), EINVAL);
  EXPECT_EQ(MapError(0, UINT64_MAX, kRw, kAnon), ENOMEM);
  EXPECT_EQ(MapError(0, uint64_t{1} << 47, kRw, kAnon), ENOMEM);
  EXPECT_EQ(MapError(kBase + 1, kPg, kRw, kAnon | MAP_FIXED), EINVAL);
  EXPECT_EQ(MapError(0, kPg, kRw, kAnon | MAP_FIXED), EPERM);
  EXPECT_EQ(MapError(0x7fff'ffff'f000, kPg, kRw, kAnon | MAP_FIXED), ENOMEM);
  EXPECT_EQ(MapError(0, kPg, kRw, MAP_ANONYMOUS), EINVAL);
  EXPECT_EQ(MapError(0, kPg, kRw, MAP_ANONYMOUS | MAP_SHARED_VALIDATE), EINVAL);
  EXPECT_EQ(MapError(0, kPg, kRw, MAP_ANONYMOUS | MAP_SHARED | MAP_GROWSDOWN), EINVAL);
  EXPECT_EQ(MapError(0, kPg, kRw, kAnon | MAP_HUGETLB), ENOMEM);
  EXPECT_EQ(MapError(0, kPg, kRw, kAnon | MAP_HUGETLB | (16 << MAP_HUGE_SHIFT)), EINVAL);
  runner_.limits[RLIMIT_AS] = 10 * kPg;
  EXPECT_EQ(MapError(0, 11 * kPg, kRw, kAnon), ENOMEM);
  EXPECT_EQ(MapError(0, 10 * kPg, kRw, kAnon), 0);
  runner_.limits[RLIMIT_AS] = RLIM_INFINITY;
  runner_.limits[RLIMIT_DATA] = 12 * kPg;
  EXPECT_EQ(MapError(0, 3 * kPg, kRw, kAnon), ENOMEM);
  EXPECT_EQ(MapError(0, 3 * kPg, PROT_READ, kAnon), 0);
  runner_.limits[RLIMIT_MEMLOCK] = 0;
  EXPECT_EQ(MapError(0, kPg, kRw, kAnon | MAP_LOCKED), EPERM);
  runner_.limits[RLIMIT_MEMLOCK] = kPg;
  EXPECT_EQ(MapError(0, 2 * kPg, kRw, kAnon | MAP_LOCKED), EAGAIN);
  CheckModel();
}

TEST_F(MmTest, FileErrors) {
  auto host = MemFile(4 * kPg);
  auto ro = base::MakeRef<FakeFile>(host, O_RDONLY);
  auto wo = base::MakeRef<FakeFile>(host, O_WRONLY);
  EXPECT_EQ(MapError(0, kPg, kRw, MAP_SHARED, ro), EACCES);
  EXPECT_EQ(MapError(0, kPg, PROT_READ, MAP_PRIVATE, wo), EACCES);
  EXPECT_EQ(MapError(0, kPg, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, ro), EOPNOTSUPP);
  EXPECT_EQ(MapError(0, kPg, PROT_READ, MAP_PRIVATE, ro, -kPg), EOVERFLOW);
  EXPECT_EQ(MapError(0, kPg, PROT_READ, MAP_PRIVATE | MAP_GROWSDOWN, ro), EINVAL);
  EXPECT_EQ(MapError(0, kPg, PROT_READ, 0, ro), EINVAL);
  const uint64_t a = *Map(0, kPg, PROT_READ, MAP_SHARED, ro);
  EXPECT_EQ(mm_->Mprotect(runner_, a, kPg, kRw).error().code(), EACCES);
  const uint64_t b = *Map(0, kPg, PROT_READ, MAP_PRIVATE, ro);
  EXPECT_TRUE(mm_->Mprotect(runner_, b, kPg, kRw).ok());
  CheckModel();
}

TEST_F(MmTest, QueuedFailureIsTakenBack) {
  runner_.can_queue = true;
  const uint64_t a = *Map(0, 4 * kPg);
  EXPECT_EQ(runner_.Flush(), 0);
  ASSERT_TRUE(mm_->Munmap(runner_, a + kPg, kPg).ok());
  runner_.fail_next = ENOMEM;
  EXPECT_EQ(runner_.Flush(), -ENOMEM);
  EXPECT_EQ(Vmas().size(), 1u);
  ASSERT_TRUE(mm_->Mprotect(runner_, a, kPg, PROT_READ).ok());
  runner_.fail_next = ENOMEM;
  EXPECT_EQ(runner_.Flush(), -ENOMEM);
  EXPECT_EQ(Vmas().size(), 1u);
  ASSERT_TRUE(Map(0, kPg).ok());
  runner_.fail_next = EAGAIN;
  EXPECT_EQ(runner_.Flush(), -EAGAIN);
  EXPECT_EQ(mm_->stats().total_vm, 4 * kPg);
  CheckModel();
}

TEST_F(MmTest, Brk) {
  MmLayout layout;
  layout.start_brk = layout.brk = kBase;
  mm_->SetLayout(layout);
  EXPECT_EQ(*mm_->Brk(runner_, 0), kBase);
  EXPECT_EQ(*mm_->Brk(runner_, kBase + 10), kBase + 10);
  EXPECT_EQ(*mm_->Brk(runner_, kBase + 5 * kPg), kBase + 5 * kPg);
  ASSERT_EQ(Vmas().size(), 1u);
  EXPECT_EQ(Vmas()[0].name, "[heap]");
  EXPECT_EQ(*mm_->Brk(runner_, kBase + kPg + 1), kBase + kPg + 1);
  EXPECT_EQ(Vmas()[0].end, kBase + 2 * kPg);
  ASSERT_TRUE(Map(kBase + 3 * kPg, kPg, kRw, kAnon | MAP_FIXED).ok());
  EXPECT_EQ(*mm_->Brk(runner_, kBase + 3 * kPg), kBase + kPg + 1);
  runner_.can_queue = true;
  EXPECT_EQ(*mm_->Brk(runner_, kBase), kBase);
  runner_.fail_next = ENOMEM;
  EXPECT_EQ(runner_.Flush(), static_cast<int64_t>(kBase + kPg + 1));
  EXPECT_EQ(mm_->layout().brk, kBase + kPg + 1);
  CheckModel();
}

TEST_F(MmTest, StackGrowsToTheLimitAndNoFurther) {
  const uint64_t top = mm_->StackTop();
  ASSERT_TRUE(mm_->MapStack(runner_, top - 33 * kPg, top, top - 64 * kPg, kRw).ok());
  CheckModel();
  EXPECT_EQ(Fault(top - 34 * kPg, true).retry, true);
  EXPECT_EQ(Vmas().back().start, top - 34 * kPg);
  for (uint64_t at = top - 34 * kPg; at > top - (8 << 20); at -= kPg) {
    if (as_->pages.contains(at - kPg)) continue;
    ASSERT_TRUE(Fault(at - kPg, true).retry) << (top - at) / kPg;
  }
  CheckModel();
  const FaultOutcome beyond = Fault(top - (8 << 20) - 1, true);
  EXPECT_FALSE(beyond.retry);
  EXPECT_EQ(beyond.signo, SIGSEGV);
  EXPECT_EQ(beyond.si_code, SEGV_MAPERR);
  EXPECT_EQ(Vmas().back().host_start, top - (8 << 20));
}

TEST_F(MmTest, GrowsDownKeepsTheGuardGap) {
  ASSERT_TRUE(Map(kBase, kPg, kRw, kAnon | MAP_FIXED).ok());
  const uint64_t stack = kBase + kStackGuardGap + 10 * kPg;
  ASSERT_TRUE(Map(stack, kPg, kRw, kAnon | MAP_FIXED | MAP_GROWSDOWN).ok());
  EXPECT_TRUE(Fault(stack - 9 * kPg, true).retry);
  EXPECT_FALSE(Fault(stack - 10 * kPg, true).retry);
  EXPECT_EQ(Fault(stack - 11 * kPg, true).si_code, SEGV_MAPERR);
  CheckModel();
}

TEST_F(MmTest, MappingOverReadyStackMemory) {
  const uint64_t top = mm_->StackTop();
  ASSERT_TRUE(mm_->MapStack(runner_, top - 10 * kPg, top, top - 100 * kPg, kRw).ok());
  ASSERT_TRUE(Map(top - 50 * kPg, kPg, PROT_READ, kAnon | MAP_FIXED).ok());
  CheckModel();
  EXPECT_TRUE(
      mm_->Mprotect(runner_, top - kPg, kPg, PROT_READ | PROT_WRITE | PROT_EXEC | PROT_GROWSDOWN)
          .ok());
  CheckModel();
  EXPECT_TRUE(mm_->Munmap(runner_, top - 10 * kPg, 5 * kPg).ok());
  CheckModel();
}

TEST_F(MmTest, Faults) {
  const uint64_t a = *Map(0, kPg, PROT_READ);
  EXPECT_EQ(Fault(a, true).si_code, SEGV_ACCERR);
  EXPECT_EQ(Fault(a + kPg, true).si_code, SEGV_MAPERR);
  EXPECT_TRUE(Fault(a, false).retry);
  // The host lost it: it is mapped again.
  as_->pages.erase(a);
  EXPECT_TRUE(Fault(a, false).retry);
  EXPECT_TRUE(as_->pages.contains(a));
  // Refused for good: the guest gets the host's signal.
  while (Fault(a, false).retry) continue;
  const FaultOutcome bus = Fault(a, false, SIGBUS);
  EXPECT_EQ(bus.signo, SIGBUS);
  EXPECT_EQ(bus.si_code, BUS_ADRERR);
  platform::Trap trap{.kind = platform::TrapKind::kFault};
  trap.signo = SIGFPE;
  trap.si_code = FPE_INTDIV;
  EXPECT_EQ(mm_->HandleFault(runner_, trap).signo, SIGFPE);
}

TEST_F(MmTest, MremapForms) {
  const uint64_t a = *Map(kBase, 4 * kPg, kRw, kAnon | MAP_FIXED);
  EXPECT_EQ(*mm_->Mremap(runner_, a, 4 * kPg, 8 * kPg, 0, 0), a);
  EXPECT_EQ(Vmas().size(), 1u);
  EXPECT_EQ(*mm_->Mremap(runner_, a, 8 * kPg, 2 * kPg, 0, 0), a);
  ASSERT_TRUE(Map(a + 2 * kPg, kPg, PROT_READ, kAnon | MAP_FIXED).ok());
  EXPECT_EQ(mm_->Mremap(runner_, a, 2 * kPg, 3 * kPg, 0, 0).error().code(), ENOMEM);
  const uint64_t b = *mm_->Mremap(runner_, a, 2 * kPg, 3 * kPg, MREMAP_MAYMOVE, 0);
  EXPECT_NE(b, a);
  CheckModel();
  const uint64_t c = kBase + (1 << 20);
  EXPECT_EQ(*mm_->Mremap(runner_, b, 3 * kPg, 2 * kPg, MREMAP_MAYMOVE | MREMAP_FIXED, c), c);
  CheckModel();
  EXPECT_EQ(*mm_->Mremap(runner_, c, 2 * kPg, 2 * kPg,
                         MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, c + 8 * kPg),
            c + 8 * kPg);
  CheckModel();
  EXPECT_EQ(Vmas(c, c + kPg).size(), 1u);
  const uint64_t s = *Map(0, 2 * kPg, kRw, MAP_SHARED | MAP_ANONYMOUS);
  const uint64_t s2 = *mm_->Mremap(runner_, s, 0, 2 * kPg, MREMAP_MAYMOVE, 0);
  EXPECT_EQ(as_->pages[s].file, as_->pages[s2].file);
  EXPECT_EQ(as_->pages[s].offset, as_->pages[s2].offset);
  CheckModel();
  EXPECT_EQ(mm_->Mremap(runner_, c, 0, kPg, MREMAP_MAYMOVE, 0).error().code(), EINVAL);
  EXPECT_EQ(mm_->Mremap(runner_, 0x20000, kPg, kPg, 0, 0).error().code(), EFAULT);
}

TEST_F(MmTest, Fork) {
  const uint64_t a = *Map(kBase, 4 * kPg, kRw, kAnon | MAP_FIXED);
  ASSERT_TRUE(mm_->Madvise(runner_, a, kPg, MADV_DONTFORK).ok());
  ASSERT_TRUE(mm_->Madvise(runner_, a + kPg, kPg, MADV_WIPEONFORK).ok());
  base::Ref<MemoryManager> child = *mm_->Fork(runner_);
  EXPECT_TRUE(std::holds_alternative<platform::order::Fork>(runner_.all.back()));
  const auto pending = child->TakePendingOrders();
  ASSERT_EQ(pending.size(), 2u);
  EXPECT_EQ(std::get<platform::order::Munmap>(pending[0]).addr, a);
  EXPECT_EQ(std::get<platform::order::Mmap>(pending[1]).addr, a + kPg);
  EXPECT_EQ(child->stats().total_vm, 3 * kPg);
}

TEST_F(MmTest, Mlock) {
  const uint64_t a = *Map(kBase, 4 * kPg, kRw, kAnon | MAP_FIXED);
  runner_.limits[RLIMIT_MEMLOCK] = 2 * kPg;
  EXPECT_EQ(mm_->Mlock(runner_, a, 3 * kPg, false).error().code(), ENOMEM);
  EXPECT_TRUE(mm_->Mlock(runner_, a + 1, 2 * kPg - 1, false).ok());
  EXPECT_TRUE(mm_->Mlock(runner_, a, 2 * kPg, false).ok());
  EXPECT_EQ(mm_->stats().locked_vm, 2 * kPg);
  EXPECT_EQ(mm_->Madvise(runner_, a, kPg, MADV_DONTNEED).error().code(), EINVAL);
  EXPECT_TRUE(mm_->Munlock(a, 4 * kPg).ok());
  EXPECT_EQ(Vmas().size(), 1u);
}

// --- the same calls on this process's own memory and on the MemoryManager ---

struct MapsLine {
  uint64_t start, end, offset;
  std::string perms;
  friend bool operator==(const MapsLine&, const MapsLine&) = default;
  friend std::ostream& operator<<(std::ostream& os, const MapsLine& l) {
    return os << std::hex << l.start << "-" << l.end << " " << l.perms << " " << l.offset;
  }
};

std::vector<MapsLine> HostMaps(uint64_t lo, uint64_t hi) {
  std::vector<MapsLine> lines;
  FILE* f = fopen("/proc/self/maps", "r");
  char buffer[512], perms[8];
  uint64_t start, end, offset;
  while (fgets(buffer, sizeof(buffer), f)) {
    if (sscanf(buffer, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64, &start, &end, perms, &offset) == 4 &&
        start < hi && end > lo) {
      lines.push_back({start, end, offset, perms});
    }
  }
  fclose(f);
  return lines;
}

// Results as the raw calls have them: a value or -errno.
int64_t Host(void* r) { return r == MAP_FAILED ? -errno : reinterpret_cast<int64_t>(r); }
int64_t Host(int r) { return r < 0 ? -errno : r; }
int64_t Ours(const base::Result<uint64_t>& r) {
  return r.ok() ? static_cast<int64_t>(*r) : -r.error().code();
}
int64_t Ours(const base::Status& s) { return s.ok() ? 0 : -s.error().code(); }

class HostComparison : public MmTest, public testing::WithParamInterface<int> {
 protected:
  static constexpr uint64_t kPages = 48;
  struct Call {
    std::string what;
    int64_t ours = 0, theirs = 0;
    uint64_t addr = 0, length = 0;
    int prot = 0;
  };

  HostComparison() : host_rw_(MemFile(kPages * kPg)), rng_(GetParam()) {
    const std::string path = "/proc/self/fd/" + std::to_string(host_rw_->get());
    host_ro_ = base::MakeRef<base::HostFd>(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    file_rw_ = base::MakeRef<FakeFile>(host_rw_, O_RDWR);
    file_ro_ = base::MakeRef<FakeFile>(host_ro_, O_RDONLY);
  }
  ~HostComparison() override { munmap(reinterpret_cast<void*>(lo_), hi_ - lo_); }

  std::vector<MapsLine> OurMaps() {
    std::vector<MapsLine> lines;
    for (const Vma& v : Vmas(lo_, hi_)) {
      std::string perms;
      perms += (v.prot & PROT_READ) ? 'r' : '-';
      perms += (v.prot & PROT_WRITE) ? 'w' : '-';
      perms += (v.prot & PROT_EXEC) ? 'x' : '-';
      perms += v.shared ? 's' : 'p';
      lines.push_back({v.start, v.end, v.offset, perms});
    }
    return lines;
  }
  int Random(int n) { return static_cast<int>(rng_() % n); }
  uint64_t RandomLength(uint64_t addr) {
    return std::min<uint64_t>((1 + Random(8)) * kPg, hi_ - addr);
  }

  void MapAnonymous(Call& c) {
    const int flags = (Random(3) == 2 ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_FIXED |
                      (Random(4) == 0 ? MAP_NORESERVE : 0);
    c.what = "mmap anonymous";
    c.theirs = Host(mmap(reinterpret_cast<void*>(c.addr), c.length, c.prot, flags, -1, 0));
    c.ours = Ours(Map(c.addr, c.length, c.prot, flags));
  }
  void MapFile(Call& c) {
    const bool ro = Random(2);
    const int flags = (Random(2) ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;
    const uint64_t offset = Random(3) == 0 ? Random(kPages) * kPg : c.addr - lo_;
    c.what = "mmap file";
    c.theirs = Host(mmap(reinterpret_cast<void*>(c.addr), c.length, c.prot, flags,
                         (ro ? host_ro_ : host_rw_)->get(), static_cast<off_t>(offset)));
    c.ours = Ours(Map(c.addr, c.length, c.prot, flags, ro ? file_ro_ : file_rw_, offset));
  }
  void Remap(Call& c) {
    void* const at = reinterpret_cast<void*>(c.addr);
    if (Random(2)) {
      const uint64_t new_length = RandomLength(c.addr);
      c.what = "mremap in place";
      c.theirs = Host(mremap(at, c.length, new_length, 0));
      c.ours = Ours(mm_->Mremap(runner_, c.addr, c.length, new_length, 0, 0));
      return;
    }
    // Moves of several mappings at once are newer than what we follow.
    const std::vector<Vma> around = Vmas(c.addr, c.addr + 1);
    if (!around.empty() && c.addr + c.length > around[0].end) return;
    const uint64_t to = lo_ + Random(kPages) * kPg, new_length = RandomLength(to);
    constexpr int kFlags = MREMAP_MAYMOVE | MREMAP_FIXED;
    c.what = "mremap";
    c.theirs = Host(mremap(at, c.length, new_length, kFlags, reinterpret_cast<void*>(to)));
    c.ours = Ours(mm_->Mremap(runner_, c.addr, c.length, new_length, kFlags, to));
  }
  void Advise(Call& c) {
    const int advices[] = {MADV_DONTFORK, MADV_DOFORK,     MADV_WIPEONFORK, MADV_KEEPONFORK,
                           MADV_DONTDUMP, MADV_DODUMP,     MADV_DONTNEED,   MADV_NORMAL,
                           MADV_FREE,     MADV_SEQUENTIAL, MADV_WILLNEED};
    const int advice = advices[Random(std::size(advices))];
    c.what = "madvise " + std::to_string(advice);
    c.theirs = Host(madvise(reinterpret_cast<void*>(c.addr), c.length, advice));
    c.ours = Ours(mm_->Madvise(runner_, c.addr, c.length, advice));
  }
  Call RandomCall() {
    const int prots[] = {PROT_NONE, PROT_READ, kRw, kRw, PROT_READ | PROT_EXEC};
    Call c;
    c.addr = lo_ + Random(kPages) * kPg;
    c.length = RandomLength(c.addr);
    c.prot = prots[Random(5)];
    void* const at = reinterpret_cast<void*>(c.addr);
    switch (Random(9)) {
      case 0:
      case 1:
        MapAnonymous(c);
        break;
      case 2:
        MapFile(c);
        break;
      case 3:
        c.what = "munmap";
        c.theirs = Host(munmap(at, c.length));
        c.ours = Ours(mm_->Munmap(runner_, c.addr, c.length));
        break;
      case 4:
      case 5:
        c.what = "mprotect";
        c.theirs = Host(mprotect(at, c.length, c.prot));
        c.ours = Ours(mm_->Mprotect(runner_, c.addr, c.length, c.prot));
        break;
      case 6:
      case 7:
        Remap(c);
        break;
      case 8:
        Advise(c);
        break;
    }
    return c;
  }

  const uint64_t lo_ = kBase + uint64_t{0x1000000} * GetParam(), hi_ = lo_ + kPages * kPg;
  base::Ref<base::HostFd> host_rw_, host_ro_;
  base::Ref<FileDescription> file_rw_, file_ro_;
  std::mt19937 rng_;
};

TEST_P(HostComparison, RandomCalls) {
  runner_.can_queue = GetParam() % 2;
  for (int step = 0; step < 400; ++step) {
    const Call c = RandomCall();
    runner_.Flush();
    SCOPED_TRACE(testing::Message() << c.what << " step " << step << std::hex << " addr " << c.addr
                                    << " length " << c.length << " prot " << c.prot);
    ASSERT_EQ(c.ours, c.theirs);
    ASSERT_EQ(OurMaps(), HostMaps(lo_, hi_));
    CheckModel();
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, HostComparison, testing::Range(0, 24));

}  // namespace
}  // namespace sentry
