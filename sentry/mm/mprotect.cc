// mprotect, what stands against it, and the mlock family. Follows Linux's mm/mprotect.c and
// mm/mlock.c.
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>

#include "sentry/mm/mm_impl.h"

namespace sentry {

namespace {

constexpr int kProtSem = 0x8;  // PROT_SEM: accepted, means nothing

// The flags and protection of `vma` after mprotect to `prot`.
void Protect(Vma& vma, int prot) {
  vma.prot = prot;
  if (vma.shared) return;
  if (prot & PROT_WRITE) {
    if (!(vma.flags & kVmaNoReserve)) vma.flags |= kVmaAccount;
  } else if (!vma.file) {
    vma.flags &= ~kVmaAccount;  // as of memory that was never touched
  }
}

}  // namespace

base::Status MemoryManager::Mprotect(OrderRunner& runner, uint64_t addr, uint64_t length, int prot,
                                     bool read_implies_exec) {
  const int grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
  prot &= ~(PROT_GROWSDOWN | PROT_GROWSUP);
  if (grows == (PROT_GROWSDOWN | PROT_GROWSUP)) return base::Error(EINVAL);
  if (addr & ~kPageMask) return base::Error(EINVAL);
  if (length == 0) return base::Ok();
  const uint64_t end = addr + PageUp(length);
  if (end <= addr) return base::Error(ENOMEM);
  if (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | kProtSem)) return base::Error(EINVAL);
  prot &= ~kProtSem;

  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  uint64_t start = addr;
  auto it = impl.vmas.Find(addr);
  if (it == impl.vmas.end()) return base::Error(ENOMEM);
  if (grows & PROT_GROWSDOWN) {
    if (it->second.start >= end) return base::Error(ENOMEM);
    if (!(it->second.flags & kVmaGrowsDown)) return base::Error(EINVAL);
    start = it->second.start;
  } else {
    if (it->second.start > start) return base::Error(ENOMEM);
    if (grows & PROT_GROWSUP) return base::Error(EINVAL);  // nothing grows up on this machine
  }

  // As far as it goes: what comes before an error stays changed.
  Orders orders;
  Undo undo;
  int error = 0;
  uint64_t at = start;
  while (at < end) {
    it = impl.vmas.Find(at);
    if (it == impl.vmas.end() || it->second.start > at) {
      error = ENOMEM;
      break;
    }
    const Vma& vma = it->second;
    const uint64_t piece_end = std::min(end, vma.end);
    int new_prot = prot;
    if ((prot & PROT_READ) && read_implies_exec && (vma.max_prot & PROT_EXEC)) {
      new_prot |= PROT_EXEC;
    }
    if ((new_prot & ~vma.max_prot) != 0 || impl.DeniesExec(vma.prot, new_prot)) {
      error = EACCES;
      break;
    }
    if ((vma.flags & kVmaSealed) != 0) {
      error = EPERM;
      break;
    }
    if (new_prot != vma.prot) {
      const uint64_t bytes = piece_end - at;
      if ((new_prot & PROT_WRITE) &&
          !impl.MayExpand(runner, new_prot, vma.shared, vma.flags, bytes) &&
          impl.MayExpand(runner, vma.prot, vma.shared, vma.flags, bytes)) {
        error = ENOMEM;
        break;
      }
      if (impl.vmas.count() + impl.vmas.SplitsNeeded(at, piece_end) > kMaxMapCount) {
        error = ENOMEM;
        break;
      }
      // What is ready below a stack changes with its lowest part.
      const uint64_t host_lo = at == vma.start ? vma.host_start : at;
      undo.Add(at, piece_end, impl.vmas.Copy(at, piece_end));
      Impl::AddMprotectOrder(orders, host_lo, piece_end, new_prot);
      impl.vmas.Update(at, piece_end, [new_prot](Vma& piece) { Protect(piece, new_prot); });
    }
    at = piece_end;
  }
  TRY(impl.Commit(runner, std::move(orders), std::move(undo)));
  return error == 0 ? base::Ok() : base::Status(base::Error(error));
}

int MemoryManager::mdwe() const {
  fiber::MutexLock lock(&impl_->mutex);
  return impl_->mdwe;
}

base::Status MemoryManager::SetMdwe(int flags) {
  fiber::MutexLock lock(&impl_->mutex);
  if (impl_->mdwe != 0 && impl_->mdwe != flags) return base::Error(EPERM);
  impl_->mdwe = flags;
  return base::Ok();
}

bool MemoryManager::Impl::DeniesExec(int old_prot, int new_prot) const {
  if ((mdwe & kMdweRefuseExecGain) == 0 || (new_prot & PROT_EXEC) == 0) return false;
  return (new_prot & PROT_WRITE) != 0 || (old_prot & PROT_EXEC) == 0;
}

base::Status MemoryManager::Mlock(OrderRunner& runner, uint64_t addr, uint64_t length,
                                  bool on_fault) {
  const uint64_t limit = runner.Rlimit(RLIMIT_MEMLOCK);
  if (limit == 0 && !runner.MayLockMemory()) return base::Error(EPERM);
  const uint64_t start = PageDown(addr);
  const uint64_t bytes = PageUp(length + (addr - start));
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  uint64_t locked = impl.vmas.stats().locked_vm + bytes;
  const uint64_t end = start + bytes;
  if (locked > PageDown(limit) && !runner.MayLockMemory()) {
    for (const Vma& vma : impl.vmas.Copy(start, std::max(start, end))) {
      if (vma.flags & kVmaLocked) locked -= vma.size();
    }
    if (locked > PageDown(limit)) return base::Error(ENOMEM);
  }
  if (end < start) return base::Error(EINVAL);
  if (end == start) return base::Ok();
  if (impl.vmas.At(start) == nullptr) return base::Error(ENOMEM);
  // The mapped run from `start` on is locked, also if a hole then makes it an error.
  uint64_t run_end = start;
  for (auto it = impl.vmas.Find(start); it != impl.vmas.end() && run_end < end; ++it) {
    if (it->second.start > run_end) break;
    run_end = it->second.end;
  }
  run_end = std::min(run_end, end);
  if (impl.vmas.count() + impl.vmas.SplitsNeeded(start, run_end) > kMaxMapCount) {
    return base::Error(ENOMEM);
  }
  const uint32_t flags = kVmaLocked | (on_fault ? kVmaLockOnFault : 0);
  bool untouchable = false;  // what is to be locked now is touched (__mm_populate)
  impl.vmas.Update(start, run_end, [&](Vma& vma) {
    vma.flags = (vma.flags & ~(kVmaLocked | kVmaLockOnFault)) | flags;
    untouchable |= !on_fault && vma.prot == PROT_NONE;
  });
  return run_end == end && !untouchable ? base::Ok() : base::Status(base::Error(ENOMEM));
}

base::Status MemoryManager::Munlock(uint64_t addr, uint64_t length) {
  const uint64_t start = PageDown(addr);
  const uint64_t end = start + PageUp(length + (addr - start));
  if (end < start) return base::Error(EINVAL);
  if (end == start) return base::Ok();
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  if (impl.vmas.At(start) == nullptr) return base::Error(ENOMEM);
  const bool hole = impl.vmas.MappedBytes(start, end) != end - start;
  impl.vmas.Update(start, end, [](Vma& vma) { vma.flags &= ~(kVmaLocked | kVmaLockOnFault); });
  return hole ? base::Status(base::Error(ENOMEM)) : base::Ok();
}

base::Status MemoryManager::MlockAll(OrderRunner& runner, int flags) {
  if (flags == 0 || (flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)) || flags == MCL_ONFAULT) {
    return base::Error(EINVAL);
  }
  const uint64_t limit = runner.Rlimit(RLIMIT_MEMLOCK);
  if (limit == 0 && !runner.MayLockMemory()) return base::Error(EPERM);
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  if ((flags & MCL_CURRENT) && impl.vmas.stats().total_vm > PageDown(limit) &&
      !runner.MayLockMemory()) {
    return base::Error(ENOMEM);
  }
  const uint32_t lock_flags = kVmaLocked | ((flags & MCL_ONFAULT) ? kVmaLockOnFault : 0);
  impl.default_flags = (flags & MCL_FUTURE) ? lock_flags : 0;
  if (flags & MCL_CURRENT) {
    impl.vmas.Update(0, UINT64_MAX, [lock_flags](Vma& vma) {
      vma.flags = (vma.flags & ~(kVmaLocked | kVmaLockOnFault)) | lock_flags;
    });
  }
  return base::Ok();
}

void MemoryManager::MunlockAll() {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  impl.default_flags = 0;
  impl.vmas.Update(0, UINT64_MAX, [](Vma& vma) { vma.flags &= ~(kVmaLocked | kVmaLockOnFault); });
}

}  // namespace sentry
