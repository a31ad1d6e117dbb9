#include "sentry/fiber/stack.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/log.h"
#include "sentry/fiber/context.h"
#include "sentry/fiber/fiber.h"

namespace fiber {

namespace {

// Larger than the frames of library code that does not probe the stack.
constexpr size_t kGuard = 16384;
// Each holds a few touched pages; beyond this many, stacks are unmapped.
constexpr size_t kMaxPooled = 128;

absl::Mutex g_mu(absl::kConstInit);
Stack* g_pool ABSL_GUARDED_BY(g_mu) = nullptr;
size_t g_pooled ABSL_GUARDED_BY(g_mu) = 0;

}  // namespace

Stack* AcquireStack() {
  {
    absl::MutexLock lock(&g_mu);
    if (Stack* stack = g_pool) {
      g_pool = stack->next;
      --g_pooled;
      return stack;
    }
  }
  void* map = mmap(nullptr, kGuard + kStackSize, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (map == MAP_FAILED ||
      mprotect(static_cast<std::byte*>(map) + kGuard, kStackSize, PROT_READ | PROT_WRITE) != 0) {
    LOG_ERROR("no memory for a fiber's stack: %s", strerror(errno));
    abort();
  }
  return new Stack{static_cast<std::byte*>(map) + kGuard, kStackSize, nullptr};
}

void ReleaseStack(Stack* stack) {
  UnpoisonStack(stack->bottom, stack->size);
  {
    absl::MutexLock lock(&g_mu);
    if (g_pooled < kMaxPooled) {
      stack->next = g_pool;
      g_pool = stack;
      ++g_pooled;
      return;
    }
  }
  munmap(stack->bottom - kGuard, kGuard + stack->size);
  delete stack;
}

}  // namespace fiber
