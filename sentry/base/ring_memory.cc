#include "sentry/base/ring_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/kernel_memory.h"

namespace base {
namespace {

// Each is a mapping of the sentry, which may have 65530 (vm.max_map_count).
constexpr int kMaxRings = 32 * 1024;
std::atomic<int> g_rings{0};
constexpr size_t kTouchStep = 32 * 1024;

// Larger rings are rare and would hold much memory in the pool.
constexpr size_t kMaxPooledSize = 512 * 1024 + 4096;
constexpr size_t kMaxPooled = 32;

struct Pooled {
  Ref<HostFd> file;
  std::byte* data;
  size_t size, charge;
};

struct Pool {
  absl::Mutex mutex;
  std::vector<Pooled> entries ABSL_GUARDED_BY(mutex);
};

Pool& ThePool() {
  static Pool* pool = new Pool;
  return *pool;
}

}  // namespace

Result<std::unique_ptr<RingMemory>> RingMemory::New(size_t size, size_t charge) {
  {
    Pool& pool = ThePool();
    absl::MutexLock lock(&pool.mutex);
    for (size_t i = pool.entries.size(); i-- > 0;) {
      if (pool.entries[i].size != size) continue;
      Pooled p = std::move(pool.entries[i]);
      pool.entries.erase(pool.entries.begin() + static_cast<ptrdiff_t>(i));
      return std::unique_ptr<RingMemory>(
          new RingMemory(std::move(p.file), p.data, p.size, p.charge));
    }
  }
  if (KernelMemory::Full() || g_rings.load(std::memory_order_relaxed) >= kMaxRings) {
    return Error(ENOMEM);
  }
  int fd = memfd_create("ring", MFD_CLOEXEC);
  if (fd < 0) return LastError();
  auto file = MakeRef<HostFd>(fd);
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) return LastError();
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return LastError();
  KernelMemory::Charge(charge);
  g_rings.fetch_add(1, std::memory_order_relaxed);
  return std::unique_ptr<RingMemory>(
      new RingMemory(std::move(file), static_cast<std::byte*>(data), size, charge));
}

void RingMemory::Grow(size_t end) {
  const size_t charge = std::min((end + kTouchStep - 1) / kTouchStep * kTouchStep, size_);
  KernelMemory::Charge(charge - charge_);
  charge_ = charge;
}

RingMemory::~RingMemory() {
  if (size_ <= kMaxPooledSize) {
    Pool& pool = ThePool();
    absl::MutexLock lock(&pool.mutex);
    if (pool.entries.size() < kMaxPooled) {
      pool.entries.push_back({std::move(file_), data_, size_, charge_});
      return;
    }
  }
  munmap(data_, size_);
  KernelMemory::Uncharge(charge_);
  g_rings.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace base
