// MemoryManager: a guest address space as Linux's mm_struct: its VMAs, limits and layout. The pages
// themselves are the host's; see platform/platform.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "platform/platform.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

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
};

// One mapping. [start, end) page-aligned.
struct Vma {
  uint64_t start = 0, end = 0;
  int prot = 0;          // PROT_*
  int max_prot = 7;
  bool shared = false;   // MAP_SHARED
  uint32_t flags = 0;    // kVma* bits below
  base::Ref<FileDescription> file;  // null: anonymous
  uint64_t offset = 0;              // of `start` in the file
  HostMapping host;                 // what the stub maps; shared anonymous memory has a memory file
  std::string name;                 // "[stack]", "[heap]", "[vdso]", "" ...
};
inline constexpr uint32_t kVmaGrowsDown = 1, kVmaLocked = 2, kVmaNoReserve = 4, kVmaDontFork = 8,
                          kVmaWipeOnFork = 16, kVmaDontDump = 32, kVmaStack = 64, kVmaHeap = 128;

struct MmapArgs {
  uint64_t addr = 0, length = 0;
  int prot = 0;
  int flags = 0;                    // MAP_*
  base::Ref<FileDescription> file;  // null with MAP_ANONYMOUS
  uint64_t offset = 0;
};

// What a fault turned out to be.
struct FaultOutcome {
  bool retry = false;  // the guest goes on; orders are queued
  int signo = 0;       // else: the signal, with its code
  int si_code = 0;
};

// Addresses that /proc/PID and prctl(PR_SET_MM) show; written by the loader.
struct MmLayout {
  uint64_t start_code = 0, end_code = 0, start_data = 0, end_data = 0, start_brk = 0,
           start_stack = 0, arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
  std::vector<uint64_t> auxv;
};

struct MmStats {
  uint64_t total_vm = 0, shared_vm = 0, exec_vm = 0, stack_vm = 0, data_vm = 0, locked_vm = 0;  // bytes
  uint64_t peak_vm = 0;
};

// Thread-safe. Methods with an OrderRunner run on the fiber of a task of this address space and
// may park; they hold the VMA lock (a fiber::Mutex) until the orders are done or queued.
class MemoryManager : public base::RefCounted {
 public:
  // An empty address space on a fresh stub.
  static base::Result<base::Ref<MemoryManager>> New(platform::Platform& platform);
  // The copy for fork: prepares the child address space; the caller's thread runs order::Fork.
  base::Result<base::Ref<MemoryManager>> Fork(OrderRunner& runner);

  platform::AddressSpace& address_space() { return *as_; }

  // The system calls, with Linux's checks and errors.
  base::Result<uint64_t> Mmap(OrderRunner& runner, const MmapArgs& args);
  base::Status Munmap(OrderRunner& runner, uint64_t addr, uint64_t length);
  base::Status Mprotect(OrderRunner& runner, uint64_t addr, uint64_t length, int prot);
  base::Result<uint64_t> Mremap(OrderRunner& runner, uint64_t old_addr, uint64_t old_length,
                                uint64_t new_length, int flags, uint64_t new_addr);
  base::Result<uint64_t> Brk(OrderRunner& runner, uint64_t brk);
  base::Status Madvise(OrderRunner& runner, uint64_t addr, uint64_t length, int advice);
  base::Status Msync(OrderRunner& runner, uint64_t addr, uint64_t length, int flags);
  base::Result<std::vector<uint8_t>> Mincore(uint64_t addr, uint64_t length);
  base::Status Mlock(OrderRunner& runner, uint64_t addr, uint64_t length, bool on_fault);
  base::Status Munlock(uint64_t addr, uint64_t length);
  base::Status MlockAll(OrderRunner& runner, int flags);
  void MunlockAll();

  // Decides about a kFault trap.
  FaultOutcome HandleFault(OrderRunner& runner, const platform::Trap& trap);

  // Calls `f` for each VMA in address order; `f` must not park.
  void ForEachVma(const std::function<void(const Vma&)>& f) const;
  MmStats stats() const;
  int64_t ResidentBytes() const;

  MmLayout layout() const;
  void SetLayout(const MmLayout& layout);
  // The executable (/proc/PID/exe).
  base::Ref<FileDescription> executable() const;
  void SetExecutable(base::Ref<FileDescription> file);
  int dumpable() const;
  void SetDumpable(int value);

 private:
  struct Impl;
  MemoryManager();
  ~MemoryManager() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  std::unique_ptr<platform::AddressSpace> as_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sentry
