// MemoryManager: a guest address space as Linux's mm_struct: its VMAs, limits and layout. The pages
// themselves are the host's; see platform/platform.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/arena.h"
#include "sentry/lanes/binding.h"
#include "sentry/lanes/fd_places.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// Host memory kept ready below a stack, at most: calls may copy to it before the guest has touched
// it.
inline constexpr uint64_t kStackReadyMax = 64 << 20;

// How MemoryManager has its orders carried out by the thread whose system call or fault it serves.
// Implemented by Task.
class OrderRunner {
 public:
  virtual ~OrderRunner() = default;
  // Carries the orders out now and parks until they are done. The host's errno on failure.
  virtual base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) = 0;
  // Leaves the orders to be carried out on the way back to the guest, when this thread is the only
  // one of its address space: a failure then calls `on_failure(errno)` on the fiber before the
  // guest runs (it undoes the bookkeeping; its result becomes the system call's).
  virtual void QueueOrders(std::vector<platform::Order> orders,
                           std::function<int64_t(int error)> on_failure) = 0;
  // True if QueueOrders may be used.
  virtual bool CanQueue() const = 0;
  // RLIMIT_* soft limit.
  virtual uint64_t Rlimit(int resource) const = 0;
  // CAP_IPC_LOCK: RLIMIT_MEMLOCK does not bind.
  virtual bool MayLockMemory() const { return false; }
};

// One mapping. [start, end) page-aligned.
struct Vma {
  uint64_t start = 0, end = 0;
  int prot = 0;  // PROT_*
  int max_prot = 7;
  bool shared = false;              // MAP_SHARED
  uint32_t flags = 0;               // kVma* bits below
  base::Ref<FileDescription> file;  // null: anonymous
  uint64_t offset = 0;              // of `start` in the file
  HostMapping host;                 // what the stub maps; shared anonymous memory has a memory file
  // "[stack]", "[heap]", "[vdso]", "/dev/zero (deleted)", "" ... The first two are filled in by
  // ForEachVma alone.
  std::string name;
  // A mapping that grows down has host memory ready from here on, at or below `start`.
  uint64_t host_start = 0;
  uint64_t shm_id = 0;  // of a shared anonymous object: its inode number in maps

  uint64_t size() const { return end - start; }
};
inline constexpr uint32_t kVmaGrowsDown = 1, kVmaLocked = 2, kVmaNoReserve = 4, kVmaDontFork = 8,
                          kVmaWipeOnFork = 16, kVmaDontDump = 32, kVmaStack = 64, kVmaHeap = 128,
                          kVmaHugePage = 256, kVmaNoHugePage = 512, kVmaLockOnFault = 1024,
                          kVmaSeqRead = 2048, kVmaRandRead = 4096,
                          kVmaAccount = 16384,  // counted as committed memory (VM_ACCOUNT)
    kVmaSealed = 32768;                         // mseal(2)

struct MmapArgs {
  uint64_t addr = 0, length = 0;
  int prot = 0;
  int flags = 0;                    // MAP_*
  base::Ref<FileDescription> file;  // null with MAP_ANONYMOUS
  uint64_t offset = 0;
  bool read_implies_exec = false;  // personality(2)
};

// PR_MDWE_REFUSE_EXEC_GAIN and PR_MDWE_NO_INHERIT, which headers may not have.
inline constexpr int kMdweRefuseExecGain = 1, kMdweNoInherit = 2;
// Those of a child's memory, or of a new program's.
inline int InheritedMdwe(int flags) { return (flags & kMdweNoInherit) != 0 ? 0 : flags; }

// What a fault turned out to be.
struct FaultOutcome {
  bool retry = false;  // the guest goes on; orders are queued
  int signo = 0;       // else: the signal, with its code
  int si_code = 0;
};

// Addresses that /proc/PID and prctl(PR_SET_MM) show; written by the loader.
struct MmLayout {
  uint64_t start_code = 0, end_code = 0, start_data = 0, end_data = 0, start_brk = 0, brk = 0,
           start_stack = 0, arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  std::vector<uint64_t> auxv;
};

struct MmStats {
  uint64_t total_vm = 0, shared_vm = 0, exec_vm = 0, stack_vm = 0, data_vm = 0,
           locked_vm = 0;  // bytes
  uint64_t peak_vm = 0;
};

// Collects orders instead of carrying them out, so that a whole exec is one batch.
class OrderBatch : public OrderRunner {
 public:
  // Limits and capabilities are those of `limits`, which must outlive this.
  explicit OrderBatch(const OrderRunner& limits) : limits_(limits) {}
  base::Result<std::vector<uint64_t>> RunOrders(std::vector<platform::Order> orders) override;
  void QueueOrders(std::vector<platform::Order> orders,
                   std::function<int64_t(int error)> on_failure) override;
  bool CanQueue() const override { return true; }
  uint64_t Rlimit(int resource) const override { return limits_.Rlimit(resource); }
  bool MayLockMemory() const override { return limits_.MayLockMemory(); }
  std::vector<platform::Order>& orders() { return orders_; }

 private:
  const OrderRunner& limits_;
  std::vector<platform::Order> orders_;
};

// Thread-safe. Methods with an OrderRunner run on the fiber of a task of this address space and
// may park; they hold the VMA lock (a fiber::Mutex) until the orders are done or queued. The other
// methods may park for that lock, so they too are called from fibers (or from threads that may
// block) with no absl::Mutex held.
class MemoryManager : public base::RefCounted {
 public:
  // An empty address space on a fresh stub.
  static base::Result<base::Ref<MemoryManager>> New(platform::Platform& platform);
  // The same on an address space that the caller made.
  static base::Ref<MemoryManager> NewOn(std::unique_ptr<platform::AddressSpace> as);
  // The copy for fork (Linux: dup_mmap). Carries out order::Fork itself (by RunOrders, with the VMA
  // lock held, so that no other thread's change falls between), so the child's main context can be
  // taken when it returns. The caller gives the orders of TakePendingOrders() of the child to that
  // context before its first Resume.
  base::Result<base::Ref<MemoryManager>> Fork(OrderRunner& runner);
  // What MADV_DONTFORK and MADV_WIPEONFORK want done in a new child. Once.
  std::vector<platform::Order> TakePendingOrders();

  platform::AddressSpace& address_space() { return *as_; }

  // The system calls, with Linux's checks and errors.
  base::Result<uint64_t> Mmap(OrderRunner& runner, const MmapArgs& args);
  base::Status Munmap(OrderRunner& runner, uint64_t addr, uint64_t length);
  base::Status Mprotect(OrderRunner& runner, uint64_t addr, uint64_t length, int prot,
                        bool read_implies_exec = false);
  base::Result<uint64_t> Mremap(OrderRunner& runner, uint64_t old_addr, uint64_t old_length,
                                uint64_t new_length, int flags, uint64_t new_addr);
  base::Result<uint64_t> Brk(OrderRunner& runner, uint64_t brk);
  base::Status Madvise(OrderRunner& runner, uint64_t addr, uint64_t length, int advice);
  base::Status Msync(uint64_t addr, uint64_t length, int flags);
  // One byte for each page. What is resident only the host knows, which nobody asks: all of what is
  // mapped counts as resident.
  base::Result<std::vector<uint8_t>> Mincore(uint64_t addr, uint64_t length);
  base::Status Mlock(OrderRunner& runner, uint64_t addr, uint64_t length, bool on_fault);
  base::Status Munlock(uint64_t addr, uint64_t length);
  base::Status MlockAll(OrderRunner& runner, int flags);
  void MunlockAll();
  // mseal(2). ENOMEM if not all of it is mapped.
  base::Status Mseal(uint64_t addr, uint64_t length);
  base::Status RemapFilePages(OrderRunner& runner, uint64_t addr, uint64_t length, int prot,
                              uint64_t pgoff);
  // True if all of [addr, addr + length) is mapped (for calls that only check: mbind, move_pages).
  bool IsMapped(uint64_t addr, uint64_t length);
  // True if all of it is mapped, writable, and no file's.
  bool IsWritableAnonymous(uint64_t addr, uint64_t length);
  // True if any of it is mapped.
  bool IsAnyMapped(uint64_t addr, uint64_t length);

  // RLIMIT_STACK was changed: host memory is made ready below the main stack as far as it goes now.
  void ReadyMainStack(OrderRunner& runner);

  // Decides about a kFault trap.
  FaultOutcome HandleFault(OrderRunner& runner, const platform::Trap& trap);

  // What the protection forbids to the guest itself too: reads all that is mapped, and writes to
  // private mappings, whose pages become copies (Linux: access_remote_vm with FOLL_FORCE). The
  // bytes done; EFAULT if there are none.
  base::Result<size_t> ForcedRead(OrderRunner& runner, uint64_t addr, std::span<std::byte> dst);
  base::Result<size_t> ForcedWrite(OrderRunner& runner, uint64_t addr,
                                   std::span<const std::byte> src);

  // Calls `f` for each VMA in address order; `f` must not park. "[vdso]" is among them.
  void ForEachVma(const std::function<void(const Vma&)>& f) const;
  MmStats stats() const;
  int64_t ResidentBytes() const;

  MmLayout layout() const;
  void SetLayout(const MmLayout& layout);
  // The executable (/proc/PID/exe). It cannot be opened for writing while it is set (ETXTBSY).
  base::Ref<FileDescription> executable() const;
  base::Status SetExecutable(base::Ref<FileDescription> file);
  int dumpable() const;
  void SetDumpable(int value);
  // prctl(PR_SET_MDWE): kMdwe*. What is set cannot be set otherwise: EPERM.
  int mdwe() const;
  base::Status SetMdwe(int flags);

  // --- stream lanes (sentry/lanes) ---
  // Those of a process of this domain; made if there are none. Null: there is no memory for them.
  base::Ref<LaneBinding> BindLanes(const std::string& domain);
  base::Ref<LaneBinding> lanes();  // null: it has none
  // With which number its threads lock lanes.
  uint32_t lane_owner() const { return lane_owner_.number(); }
  // Where its descriptors stand in tables of paths.
  const base::Ref<FdPlaces>& fd_places() const { return fd_places_; }
  // The program is over: no descriptor leads to a lane any more, or to a place.
  void UnbindLanes();
  // The process is no longer the equal of others that have lanes, and gives its own up.
  void DropLanes();
  // The same for the table of paths: what the process finds is no longer what others do.
  void DropPaths() { as_->DropPaths(); }

  // --- for the loader, on a fresh address space ---
  // Chooses where mappings go (Linux: arch_pick_mmap_layout): `stack_limit` is RLIMIT_STACK,
  // `personality` that of the new program.
  void InitLayout(uint64_t stack_limit, uint32_t personality);
  // Highest address of a stack (Linux: STACK_TOP), one past the last usable byte.
  uint64_t StackTop() const;
  // The main stack's mapping [low, top), with host memory down to `host_low`, where it may grow to
  // without asking; `top` as from StackTop less the randomisation.
  base::Status MapStack(OrderRunner& runner, uint64_t low, uint64_t top, uint64_t host_low,
                        int prot);
  // Where an mmap of `length` bytes without a hint would go, to an address that is a multiple of
  // `align` (a power of two, at least a page). ENOMEM.
  base::Result<uint64_t> FindUnmapped(uint64_t length, uint64_t align);

 private:
  struct Impl;
  explicit MemoryManager(std::unique_ptr<platform::AddressSpace> as);
  ~MemoryManager() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  base::Ref<LaneBinding> TakeLanes();
  std::unique_ptr<platform::AddressSpace> as_;
  std::unique_ptr<Impl> impl_;
  LaneOwner lane_owner_;
  const base::Ref<FdPlaces> fd_places_;
  absl::Mutex lanes_mutex_;
  base::Ref<LaneBinding> lanes_ ABSL_GUARDED_BY(lanes_mutex_);
};

}  // namespace sentry
