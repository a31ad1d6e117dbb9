// mmap, munmap, brk and the choice of addresses. Follows Linux's mm/mmap.c and
// arch/x86/kernel/sys_x86_64.c, with their order of checks.
#include <linux/mman.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "sentry/mm/mm_impl.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/mount.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace sentry {

namespace {

constexpr uint64_t kTaskSize = 0x7ffffffff000;  // Linux: TASK_SIZE_MAX
constexpr int kProtMask = PROT_READ | PROT_WRITE | PROT_EXEC;
// Linux: LEGACY_MAP_MASK, and MAP_SYNC which no file here supports.
constexpr int kLegacyFlags = MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE |
                             MAP_EXECUTABLE | MAP_UNINITIALIZED | MAP_GROWSDOWN | MAP_LOCKED |
                             MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB |
                             MAP_32BIT;

// Shared anonymous objects are descriptors of the sentry, so their number is bounded.
std::atomic<int64_t> live_shared_objects{0};

class SharedMemoryFd : public base::HostFd {
 public:
  using HostFd::HostFd;
  ~SharedMemoryFd() override { live_shared_objects.fetch_sub(1, std::memory_order_relaxed); }
};

int64_t MaxSharedObjects() {
  static const int64_t max = [] {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return int64_t{256};
    return static_cast<int64_t>(std::min<uint64_t>(limit.rlim_cur / 2, 1 << 20));
  }();
  return max;
}

// MAP_HUGETLB as on a machine that has no huge pages reserved.
int HugeTlbError(int flags) {
  const int log2 = (flags >> MAP_HUGE_SHIFT) & MAP_HUGE_MASK;
  return log2 == 0 || log2 == 21 || log2 == 30 ? ENOMEM : EINVAL;
}

using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;

// A range that shares pages with [lo, hi), widened to pages.
std::optional<std::pair<uint64_t, uint64_t>> FirstOverlap(const Ranges& ranges, uint64_t lo,
                                                          uint64_t hi) {
  for (const auto& [begin, end] : ranges) {
    if (PageDown(begin) < hi && PageUp(end) > lo) return std::pair(PageDown(begin), PageUp(end));
  }
  return std::nullopt;
}

bool OnNoExecMount(const FileDescription& file) {
  return file.path().mount && (file.path().mount->flags() & MS_NOEXEC);
}

// Checks `args` against the file, as do_mmap does; fills what the mapping may become.
base::Status CheckFile(const MmapArgs& args, uint64_t length, int prot, Vma* vma) {
  FileDescription& file = *args.file;
  const bool regular = file.inode() != nullptr && file.inode()->IsReg();
  const uint64_t max = regular ? kMaxFileSize : UINT64_MAX;
  if (length > max || PageUp(args.offset) > max - length) return base::Error(EOVERFLOW);
  int flags = args.flags;
  const int type = flags & MAP_TYPE;
  if (type == MAP_SHARED || type == MAP_SHARED_VALIDATE) {
    if (type == MAP_SHARED) flags &= kLegacyFlags;
    if (flags & ~(kLegacyFlags | MAP_SHARED_VALIDATE)) return base::Error(EOPNOTSUPP);
    if ((prot & PROT_WRITE) && !file.writable()) return base::Error(EACCES);
    vma->shared = true;
    if (!file.writable()) vma->max_prot &= ~PROT_WRITE;
  } else if (type != MAP_PRIVATE) {
    return base::Error(EINVAL);
  }
  if (!file.readable()) return base::Error(EACCES);
  if (OnNoExecMount(file)) {
    if (prot & PROT_EXEC) return base::Error(EPERM);
    vma->max_prot &= ~PROT_EXEC;
  }
  return base::Ok();
}

// What `vma`, whose extent and protection are set, is a mapping of.
base::Status SetKind(const MmapArgs& args, Vma* vma) {
  const bool grows_down = (args.flags & MAP_GROWSDOWN) != 0;
  if (args.file) {
    TRY(CheckFile(args, vma->size(), vma->prot, vma));
    vma->file = args.file;
    vma->offset = args.offset;
    vma->host = TRY(args.file->Mmap(args.offset, vma->size(), vma->prot, vma->shared));
    return grows_down ? base::Status(base::Error(EINVAL)) : base::Ok();
  }
  switch (args.flags & MAP_TYPE) {
    case MAP_SHARED:
      if (grows_down) return base::Error(EINVAL);
      vma->shared = true;
      return base::Ok();
    case MAP_PRIVATE:
      return base::Ok();
    default:
      return base::Error(EINVAL);
  }
}

}  // namespace

base::Result<SharedMemory> NewSharedMemory(uint64_t length) {
  static std::atomic<uint64_t> next_id{1};
  if (live_shared_objects.load(std::memory_order_relaxed) >= MaxSharedObjects()) {
    return base::Error(ENOMEM);
  }
  const int fd = memfd_create("shared", MFD_CLOEXEC);
  if (fd < 0) return base::Error(errno == EMFILE ? ENFILE : errno);
  live_shared_objects.fetch_add(1, std::memory_order_relaxed);
  base::Ref<base::HostFd> file = base::MakeRef<SharedMemoryFd>(fd);
  if (length > static_cast<uint64_t>(INT64_MAX)) return base::Error(ENOMEM);
  if (ftruncate(fd, static_cast<off_t>(length)) != 0) return base::LastError();
  return SharedMemory{std::move(file), next_id.fetch_add(1, std::memory_order_relaxed)};
}

// --- addresses ---

void MemoryManager::InitLayout(uint64_t stack_limit, uint32_t personality) {
  // Linux: arch_pick_mmap_layout, mmap_base.
  constexpr uint64_t kGapMin = 128 << 20;
  constexpr uint64_t kStackRandom = uint64_t{0x3fffff} << 12;
  constexpr uint64_t kMmapRandomBits = 28;
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  impl.randomize = !(personality & ADDR_NO_RANDOMIZE);
  uint64_t random = 0;
  if (impl.randomize) {
    if (getrandom(&random, sizeof(random), 0) != sizeof(random)) random = 0;
    random = (random & ((uint64_t{1} << kMmapRandomBits) - 1)) * kPageSize;
  }
  uint64_t gap = stack_limit;
  const uint64_t pad = (impl.randomize ? kStackRandom : 0) + kStackGuardGap;
  if (gap + pad > gap) gap += pad;
  gap = std::clamp(gap, kGapMin, impl.max_addr / 6 * 5);
  impl.mmap_base = PageDown(impl.max_addr - gap - random);
  impl.legacy_base = PageUp(impl.max_addr / 3) + random;
  impl.bottom_up = (personality & ADDR_COMPAT_LAYOUT) != 0;
}

uint64_t MemoryManager::StackTop() const { return impl_->max_addr; }

base::Result<uint64_t> MemoryManager::FindUnmapped(uint64_t length, uint64_t align) {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  return impl.FindGap(PageUp(length), align);
}

base::Result<uint64_t> MemoryManager::Impl::FindGap(uint64_t length, uint64_t align) {
  if (length == 0 || length > max_addr) return base::Error(ENOMEM);
  const Ranges reserved = as->ReservedRanges();
  if (!bottom_up) {
    for (uint64_t high = mmap_base;;) {
      auto addr = vmas.FindTopDown(length, min_addr, high, align, /*usual=*/high == mmap_base);
      if (!addr) break;
      auto taken = FirstOverlap(reserved, *addr, *addr + length);
      if (!taken) return *addr;
      high = taken->first;
    }
  }
  // Also the last resort of the top-down layout.
  for (uint64_t low = legacy_base;;) {
    auto addr = vmas.FindBottomUp(length, low, max_addr, align);
    if (!addr) return base::Error(ENOMEM);
    auto taken = FirstOverlap(reserved, *addr, *addr + length);
    if (!taken) return *addr;
    low = taken->second;
  }
}

base::Result<uint64_t> MemoryManager::Impl::ChooseAddress(uint64_t hint, uint64_t length, int flags,
                                                          bool anonymous) {
  if (length > kTaskSize) return base::Error(ENOMEM);
  uint64_t addr = 0;
  if ((flags & MAP_FIXED) ||
      (hint != 0 && length <= max_addr && hint <= max_addr - length && vmas.IsFree(hint, length) &&
       !FirstOverlap(as->ReservedRanges(), hint, hint + length))) {
    addr = hint;
  } else if (flags & MAP_32BIT) {
    uint64_t low = 0x40000000;
    uint64_t random = 0;
    if (randomize && getrandom(&random, sizeof(random), 0) == sizeof(random)) {
      low += PageDown(random % 0x02000000);
    }
    auto found = vmas.FindBottomUp(length, low, 0x80000000, kPageSize);
    if (!found) return base::Error(ENOMEM);
    addr = *found;
  } else if (anonymous && hint == 0 && length % kHugePageSize == 0) {
    // So that huge pages fit (Linux: thp_get_unmapped_area).
    auto found = FindGap(length, kHugePageSize);
    addr = found.ok() ? *found : TRY(FindGap(length, kPageSize));
  } else {
    addr = TRY(FindGap(length, kPageSize));
  }
  if (length > max_addr || addr > max_addr - length) return base::Error(ENOMEM);
  if (addr & ~kPageMask) return base::Error(EINVAL);
  if (addr < min_addr) return base::Error(EPERM);
  return addr;
}

// --- mmap ---

base::Result<uint64_t> MemoryManager::Mmap(OrderRunner& runner, const MmapArgs& args) {
  int flags = args.flags;
  if (args.length == 0) return base::Error(EINVAL);
  if (flags & MAP_HUGETLB) {
    return base::Error(args.file ? EINVAL : HugeTlbError(flags));
  }
  int prot = args.prot & kProtMask;
  if ((prot & PROT_READ) && args.read_implies_exec && !(args.file && OnNoExecMount(*args.file))) {
    prot |= PROT_EXEC;
  }
  if (flags & MAP_FIXED_NOREPLACE) flags |= MAP_FIXED;
  uint64_t hint = args.addr;
  if (!(flags & MAP_FIXED)) {
    hint = PageDown(hint);
    if (hint != 0 && hint < impl_->min_addr) hint = impl_->min_addr;
  }
  const uint64_t length = PageUp(args.length);
  if (length == 0) return base::Error(ENOMEM);
  if (args.offset + length < args.offset) return base::Error(EOVERFLOW);

  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  if (impl.vmas.count() > kMaxMapCount) return base::Error(ENOMEM);
  Vma vma;
  const uint64_t addr = TRY(impl.ChooseAddress(hint, length, flags, !args.file));
  if ((flags & MAP_FIXED_NOREPLACE) && impl.vmas.Overlaps(addr, addr + length)) {
    return base::Error(EEXIST);
  }
  vma.flags = impl.default_flags;
  if (flags & MAP_LOCKED) {
    if (!runner.MayLockMemory() && runner.Rlimit(RLIMIT_MEMLOCK) == 0) return base::Error(EPERM);
    vma.flags |= kVmaLocked;
  }
  if ((vma.flags & kVmaLocked) && !impl.MayLock(runner, length)) return base::Error(EAGAIN);

  vma.start = vma.host_start = addr;
  vma.end = addr + length;
  vma.prot = prot;
  if (flags & MAP_GROWSDOWN) vma.flags |= kVmaGrowsDown;
  if (flags & MAP_NORESERVE) vma.flags |= kVmaNoReserve;
  TRY(SetKind(args, &vma));
  if (impl.DeniesExec(prot, prot)) return base::Error(EACCES);
  if (impl.AnySealed(addr, addr + length)) return base::Error(EPERM);
  if (!impl.MayExpand(runner, prot, vma.shared, vma.flags, length)) {
    const uint64_t replaced = impl.vmas.MappedBytes(addr, addr + length);
    if (!impl.MayExpand(runner, prot, vma.shared, vma.flags, length - replaced)) {
      return base::Error(ENOMEM);
    }
  }
  if (impl.vmas.count() + impl.vmas.SplitsNeeded(addr, addr + length) > kMaxMapCount) {
    return base::Error(ENOMEM);
  }
  if (vma.shared && !vma.host.file) {
    SharedMemory memory = TRY(NewSharedMemory(length));
    vma.host = {std::move(memory.file), 0};
    vma.shm_id = memory.id;
    vma.offset = 0;
    if (!vma.file) vma.name = "/dev/zero (deleted)";
  }
  if (!vma.shared && (prot & PROT_WRITE) && !(vma.flags & kVmaNoReserve)) vma.flags |= kVmaAccount;

  TRY(impl.Place(runner, std::move(vma), flags));
  return addr;
}

base::Status MemoryManager::Impl::Place(OrderRunner& runner, Vma vma, int flags) {
  const uint64_t addr = vma.start, end = vma.end;
  const int prot = vma.prot;
  const bool write = (prot & PROT_WRITE) && !vma.shared;
  Orders orders;
  if (flags & MAP_FIXED) {
    // What is replaced is gone even if the new mapping fails, as in Linux; of its host memory only
    // what a stack kept ready below has to be unmapped.
    for (const Vma& old : vmas.Remove(addr, end)) {
      AddMunmapOrder(orders, old.host_start, std::min(old.start, addr));
    }
  }
  ClaimRange(orders, addr, end);
  AddMapOrder(orders, vma);
  if (vma.flags & kVmaGrowsDown) MakeReady(runner, orders, vma);
  vmas.Insert(std::move(vma));
  Undo undo;
  undo.Add(addr, end, {});
  const bool populate =
      (flags & MAP_LOCKED) || (flags & (MAP_POPULATE | MAP_NONBLOCK)) == MAP_POPULATE;
  if (!populate || prot == PROT_NONE) return Commit(runner, std::move(orders), std::move(undo));
  auto failed = std::make_shared<bool>(false);
  undo.also = [failed] { *failed = true; };
  TRY(Commit(runner, std::move(orders), std::move(undo)));
  Populate(runner, addr, end - addr, write, [failed, addr](int /*error*/) {
    return *failed ? int64_t{-ENOMEM} : static_cast<int64_t>(addr);
  });
  return base::Ok();
}

void MemoryManager::Impl::Populate(OrderRunner& runner, uint64_t addr, uint64_t length, bool write,
                                   std::function<int64_t(int)> on_failure) {
  Orders orders;
  AddMadviseOrder(orders, addr, addr + length, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  if (runner.CanQueue()) {
    runner.QueueOrders(std::move(orders), std::move(on_failure));
  } else {
    (void)runner.RunOrders(std::move(orders));
  }
}

base::Status MemoryManager::MapStack(OrderRunner& runner, uint64_t low, uint64_t top,
                                     uint64_t host_low, int prot) {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  if (low >= top || host_low > low || host_low < impl.min_addr || top > impl.max_addr ||
      impl.vmas.Overlaps(host_low, top)) {
    return base::Error(ENOMEM);
  }
  Vma vma;
  vma.start = low;
  vma.end = top;
  vma.host_start = host_low;
  vma.prot = prot;
  vma.flags = kVmaGrowsDown | kVmaAccount;
  if (!impl.MayExpand(runner, prot, false, vma.flags, vma.size())) return base::Error(ENOMEM);
  Orders orders;
  orders.emplace_back(platform::order::Mmap{.addr = host_low,
                                            .length = top - host_low,
                                            .prot = prot,
                                            .shared = false,
                                            .noreserve = true});
  impl.vmas.Insert(std::move(vma));
  Undo undo;
  undo.Add(low, top, {});
  return impl.Commit(runner, std::move(orders), std::move(undo));
}

// --- munmap, brk ---

base::Status MemoryManager::Munmap(OrderRunner& runner, uint64_t addr, uint64_t length) {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  return impl.MunmapLocked(runner, addr, length);
}

base::Status MemoryManager::Impl::MunmapLocked(OrderRunner& runner, uint64_t addr,
                                               uint64_t length) {
  if ((addr & ~kPageMask) || addr > kTaskSize || length > kTaskSize - addr) {
    return base::Error(EINVAL);
  }
  const uint64_t end = addr + PageUp(length);
  if (end == addr) return base::Error(EINVAL);
  if (!vmas.Overlaps(addr, end)) return base::Ok();
  // A hole in the middle of one VMA makes one more of them.
  const Vma* first = vmas.At(addr);
  if (first != nullptr && first->start < addr && end < first->end && vmas.count() >= kMaxMapCount) {
    return base::Error(ENOMEM);
  }
  if (AnySealed(addr, end)) return base::Error(EPERM);
  Orders orders;
  Undo undo;
  undo.Add(addr, end, UnmapRange(orders, addr, end));
  return Commit(runner, std::move(orders), std::move(undo));
}

base::Result<uint64_t> MemoryManager::Brk(OrderRunner& runner, uint64_t brk) {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  const MmLayout layout = this->layout();
  const uint64_t old = layout.brk;
  auto set_brk = [&impl](uint64_t value) {
    absl::MutexLock meta(&impl.meta_mutex);
    impl.layout.brk = value;
  };
  if (brk < layout.start_brk || brk > impl.max_addr) return old;
  const uint64_t data_limit = runner.Rlimit(RLIMIT_DATA);
  if (data_limit != RLIM_INFINITY &&
      (brk - layout.start_brk) + (layout.end_data - layout.start_data) > data_limit) {
    return old;
  }
  const uint64_t new_end = PageUp(brk), old_end = PageUp(old);
  if (new_end == old_end) {
    set_brk(brk);
    return brk;
  }
  Undo undo;
  undo.also = [set_brk, old] { set_brk(old); };
  undo.result = static_cast<int64_t>(old);
  Orders orders;
  if (brk <= old) {
    if (impl.AnySealed(new_end, old_end)) return old;
    undo.Add(new_end, old_end, impl.UnmapRange(orders, new_end, old_end));
  } else {
    const uint64_t length = new_end - old_end;
    const int prot = PROT_READ | PROT_WRITE;
    if (!impl.vmas.IsFree(old_end, length + kPageSize)) return old;
    Vma vma;
    vma.start = vma.host_start = old_end;
    vma.end = new_end;
    vma.prot = prot;
    vma.flags = impl.default_flags | kVmaAccount;
    if ((vma.flags & kVmaLocked) && !impl.MayLock(runner, length)) return old;
    if (!impl.MayExpand(runner, prot, false, vma.flags, length) ||
        impl.vmas.count() > kMaxMapCount) {
      return old;
    }
    impl.ClaimRange(orders, old_end, new_end);
    Impl::AddMapOrder(orders, vma);
    impl.vmas.Insert(std::move(vma));
    undo.Add(old_end, new_end, {});
  }
  set_brk(brk);
  if (!impl.Commit(runner, std::move(orders), std::move(undo)).ok()) return old;
  return brk;
}

}  // namespace sentry
