// mseal. Follows Linux's mm/mseal.c.
#include <sys/mman.h>

#include "sentry/mm/mm_impl.h"

namespace sentry {

base::Status MemoryManager::Mseal(uint64_t addr, uint64_t length) {
  if (addr & ~kPageMask) return base::Error(EINVAL);
  const uint64_t bytes = PageUp(length);
  if (length != 0 && bytes == 0) return base::Error(EINVAL);
  const uint64_t end = addr + bytes;
  if (end < addr) return base::Error(EINVAL);
  if (end == addr) return base::Ok();
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  if (impl.vmas.MappedBytes(addr, end) != bytes) return base::Error(ENOMEM);
  if (impl.vmas.count() + impl.vmas.SplitsNeeded(addr, end) > kMaxMapCount) {
    return base::Error(ENOMEM);
  }
  impl.vmas.Update(addr, end, [](Vma& vma) { vma.flags |= kVmaSealed; });
  return base::Ok();
}

bool MemoryManager::Impl::AnySealed(uint64_t lo, uint64_t hi) const {
  for (auto it = vmas.Find(lo); it != vmas.end() && it->second.start < hi; ++it) {
    if ((it->second.flags & kVmaSealed) != 0) return true;
  }
  return false;
}

}  // namespace sentry
