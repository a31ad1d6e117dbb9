// Inside of MemoryManager; for the files of this folder.
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>

#include <array>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/mutex.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/mm/shared_memory.h"
#include "sentry/mm/vma_set.h"

namespace sentry {

using Orders = std::vector<platform::Order>;

// How the bookkeeping of one call is taken back when the host refuses its orders: what the given
// ranges held before.
struct Undo {
  struct Range {
    uint64_t lo, hi;
    std::vector<Vma> saved;
  };
  std::vector<Range> ranges;
  std::function<void()> also;  // with the VMA lock held
  // The call's result when it was queued; unset: -errno.
  std::optional<int64_t> result;

  void Add(uint64_t lo, uint64_t hi, std::vector<Vma> saved) {
    ranges.push_back({lo, hi, std::move(saved)});
  }
};

struct MemoryManager::Impl {
  Impl(MemoryManager* owner, platform::AddressSpace* space);

  MemoryManager* const self;
  platform::AddressSpace* const as;
  const uint64_t min_addr, max_addr;  // of what may be mapped

  // Linux's mmap_lock. Held until orders are done or queued.
  mutable fiber::Mutex mutex;
  VmaSet vmas ABSL_GUARDED_BY(mutex);
  Orders pending ABSL_GUARDED_BY(mutex);
  uint64_t mmap_base ABSL_GUARDED_BY(mutex) = 0;    // mappings go below it
  uint64_t legacy_base ABSL_GUARDED_BY(mutex) = 0;  // bottom-up layout starts here
  bool bottom_up ABSL_GUARDED_BY(mutex) = false;
  bool randomize ABSL_GUARDED_BY(mutex) = true;
  uint32_t default_flags ABSL_GUARDED_BY(mutex) = 0;  // of mlockall(MCL_FUTURE)
  int mdwe ABSL_GUARDED_BY(mutex) = 0;                // kMdwe*
  // Counts changes of mappings; with it, how often an allowed access faulted since the last one.
  uint64_t changes ABSL_GUARDED_BY(mutex) = 0;
  struct Refault {
    uint64_t page = 0, changes = 0;
    int count = 0;
  };
  std::array<Refault, 16> refaults ABSL_GUARDED_BY(mutex);

  mutable absl::Mutex meta_mutex ABSL_ACQUIRED_AFTER(mutex);  // leaf
  MmLayout layout ABSL_GUARDED_BY(meta_mutex);
  base::Ref<FileDescription> executable ABSL_GUARDED_BY(meta_mutex);
  int dumpable ABSL_GUARDED_BY(meta_mutex) = 1;

  // --- orders (memory_manager.cc) ---
  // Has `orders` carried out now or on the way back to the guest; takes back the bookkeeping when
  // that fails.
  base::Status Commit(OrderRunner& runner, Orders orders, Undo undo)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  void TakeBack(Undo& undo) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Appends the order that maps `vma`.
  static void AddMapOrder(Orders& orders, const Vma& vma);
  static void AddMunmapOrder(Orders& orders, uint64_t lo, uint64_t hi);
  static void AddMprotectOrder(Orders& orders, uint64_t lo, uint64_t hi, int prot);
  static void AddMadviseOrder(Orders& orders, uint64_t lo, uint64_t hi, int advice);
  // Takes [lo, hi) out of the map and appends the orders that unmap it.
  std::vector<Vma> UnmapRange(Orders& orders, uint64_t lo, uint64_t hi)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // [lo, hi) is about to be mapped: host memory kept ready there for a stack is given up.
  void ClaimRange(Orders& orders, uint64_t lo, uint64_t hi) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Has the host fill the pages (MAP_POPULATE); that it cannot is no error. `on_failure` gives the
  // call's result then.
  static void Populate(OrderRunner& runner, uint64_t addr, uint64_t length, bool write,
                       std::function<int64_t(int)> on_failure);

  // --- limits (memory_manager.cc) ---
  // RLIMIT_AS and RLIMIT_DATA for `bytes` more (Linux: may_expand_vm).
  bool MayExpand(const OrderRunner& runner, int prot, bool shared, uint32_t flags,
                 uint64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // RLIMIT_MEMLOCK for `bytes` more (Linux: mlock_future_ok).
  bool MayLock(const OrderRunner& runner, uint64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // Does kMdweRefuseExecGain stand against a change from `old_prot` (of a new mapping: the same)
  // to `new_prot`? (map_deny_write_exec)
  bool DeniesExec(int old_prot, int new_prot) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // --- seals (mseal.cc) ---
  // May nothing of [lo, hi) be unmapped, moved or protected otherwise?
  bool AnySealed(uint64_t lo, uint64_t hi) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // --- addresses (mmap.cc) ---
  // Where a mapping of `length` goes (Linux: get_unmapped_area). EINVAL, ENOMEM, EPERM.
  base::Result<uint64_t> ChooseAddress(uint64_t hint, uint64_t length, int flags, bool anonymous)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  base::Result<uint64_t> FindGap(uint64_t length, uint64_t align)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Maps `vma` as mmap with `flags` does, over what is there.
  base::Status Place(OrderRunner& runner, Vma vma, int flags) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  base::Status MunmapLocked(OrderRunner& runner, uint64_t addr, uint64_t length)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // --- mremap (mremap.cc) ---
  struct MremapArgs {
    uint64_t old_addr, old_length, new_length;
    int flags;
    uint64_t new_addr;
  };
  // The checks that need the mapping at the old address, in Linux's order.
  base::Status CheckMremap(const OrderRunner& runner, const MremapArgs& args, const Vma& vma) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  base::Status GrowInPlace(OrderRunner& runner, const Vma& vma, uint64_t grow)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // `source`: a copy of the mapping at the old address.
  base::Result<uint64_t> Move(OrderRunner& runner, MremapArgs args, const Vma& source)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // --- against protection (forced.cc) ---
  template <typename Access>
  base::Result<size_t> ForcedAccess(OrderRunner& runner, uint64_t addr, size_t size, bool write,
                                    Access access) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // --- faults (fault.cc) ---
  // How far a stack that ends where `start` begins may grow down, for what is mapped below.
  uint64_t StackFloor(uint64_t start) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Makes host memory ready below a mapping that grows down, as far as RLIMIT_STACK allows, and
  // appends the order.
  void MakeReady(const OrderRunner& runner, Orders& orders, Vma& vma)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Grows the mapping above `addr` down to it. False if Linux would not.
  bool GrowDown(OrderRunner& runner, uint64_t addr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
};

}  // namespace sentry
