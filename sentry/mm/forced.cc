// Access to memory against its protection (Linux: mm/memory.c, __access_remote_vm; mm/gup.c).
#include <sys/mman.h>

#include <algorithm>

#include "sentry/mm/mm_impl.h"

namespace sentry {

namespace {

// The part of [addr, addr + size) that lies in the page of `addr`.
size_t InPage(uint64_t addr, size_t size) {
  return std::min<uint64_t>(size, kPageSize - (addr & ~kPageMask));
}

// Linux: check_vma_flags with FOLL_FORCE.
bool MayForce(const Vma& vma, bool write) {
  return write ? !vma.shared : (vma.max_prot & PROT_READ) != 0;
}

}  // namespace

// Calls `access(offset, bytes)` for each page's part, first as the page is and then, if that fails
// and may be forced, with its protection lifted for the moment. Other threads that meet the page
// meanwhile fault and try again.
template <typename Access>
base::Result<size_t> MemoryManager::Impl::ForcedAccess(OrderRunner& runner, uint64_t addr,
                                                       size_t size, bool write, Access access) {
  size_t done = 0;
  while (done < size) {
    const uint64_t at = addr + done, page = PageDown(at);
    const size_t part = InPage(at, size - done);
    base::Result<size_t> n = access(done, part);
    if (!n.ok()) {
      const Vma* vma = vmas.At(at);
      if (vma == nullptr || !MayForce(*vma, write)) break;
      const int prot = vma->prot;
      Orders orders;
      AddMprotectOrder(orders, page, page + kPageSize,
                       prot | PROT_READ | (write ? PROT_WRITE : 0));
      if (!runner.RunOrders(std::move(orders)).ok()) break;
      n = access(done, part);
      Orders restore;
      AddMprotectOrder(restore, page, page + kPageSize, prot);
      if (!runner.RunOrders(std::move(restore)).ok()) break;
    }
    if (!n.ok() || *n == 0) break;
    done += *n;
  }
  if (done == 0 && size != 0) return base::Error(EFAULT);
  return done;
}

base::Result<size_t> MemoryManager::ForcedRead(OrderRunner& runner, uint64_t addr,
                                               std::span<std::byte> dst) {
  fiber::MutexLock lock(&impl_->mutex);
  return impl_->ForcedAccess(
      runner, addr, dst.size(), /*write=*/false,
      [&](size_t at, size_t n) { return as_->ReadPartial(addr + at, dst.subspan(at, n)); });
}

base::Result<size_t> MemoryManager::ForcedWrite(OrderRunner& runner, uint64_t addr,
                                                std::span<const std::byte> src) {
  fiber::MutexLock lock(&impl_->mutex);
  return impl_->ForcedAccess(
      runner, addr, src.size(), /*write=*/true,
      [&](size_t at, size_t n) { return as_->WritePartial(addr + at, src.subspan(at, n)); });
}

}  // namespace sentry
