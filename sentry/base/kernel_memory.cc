#include "sentry/base/kernel_memory.h"

#include <malloc.h>

#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define RUNSC_SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RUNSC_SANITIZED 1
#endif

namespace base {
namespace {

// Threads count in shards, so that they do not share a cache line; a shard that has gathered this
// much moves it to the sum.
constexpr int64_t kGather = 32 * 1024;
constexpr size_t kShards = 64;

struct alignas(64) Shard {
  std::atomic<int64_t> bytes{0};
};
constinit Shard g_shards[kShards];
constinit std::atomic<uint32_t> g_next_shard{0};
constinit thread_local Shard* t_shard = nullptr;

}  // namespace

constinit std::atomic<uint64_t> KernelMemory::limit_{0};
constinit std::atomic<int64_t> KernelMemory::used_{0};

void KernelMemory::Add(int64_t bytes) {
  Shard* shard = t_shard;
  if (shard == nullptr) {
    shard = t_shard = &g_shards[g_next_shard.fetch_add(1, std::memory_order_relaxed) % kShards];
  }
  const int64_t gathered = shard->bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (gathered >= kGather || gathered <= -kGather) {
    used_.fetch_add(shard->bytes.exchange(0, std::memory_order_relaxed), std::memory_order_relaxed);
  }
}

// The heap's part, for the operators below.
struct HeapCount {
  static void* Allocated(void* p) {
    // The sentry does not go on without memory.
    if (p == nullptr) abort();
    KernelMemory::Charge(malloc_usable_size(p));
    return p;
  }
  static void Free(void* p) {
    if (p == nullptr) return;
    KernelMemory::Uncharge(malloc_usable_size(p));
    free(p);
  }
};

}  // namespace base

// The sanitizers have operators of their own; under them the heap is not counted.
#ifndef RUNSC_SANITIZED
// The forms that are not here (arrays, nothrow, sized) call these.
void* operator new(std::size_t size) { return base::HeapCount::Allocated(malloc(size)); }
void* operator new(std::size_t size, std::align_val_t align) {
  const auto alignment = static_cast<std::size_t>(align);
  return base::HeapCount::Allocated(
      aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment));
}
void operator delete(void* p) noexcept { base::HeapCount::Free(p); }
void operator delete(void* p, std::size_t) noexcept { base::HeapCount::Free(p); }
void operator delete(void* p, std::align_val_t) noexcept { base::HeapCount::Free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { base::HeapCount::Free(p); }
#endif
