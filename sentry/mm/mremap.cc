// mremap and remap_file_pages. Follows Linux's mm/mremap.c.
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>

#include "sentry/mm/mm_impl.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace sentry {

namespace {

constexpr uint64_t kTaskSize = 0x7ffffffff000;

base::Status CheckMremap(uint64_t old_addr, uint64_t old_length, uint64_t new_length, int flags,
                         uint64_t new_addr) {
  if (flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP)) return base::Error(EINVAL);
  if (old_addr & ~kPageMask) return base::Error(EINVAL);
  if (new_length == 0 || new_length > kTaskSize) return base::Error(EINVAL);
  if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))) return base::Ok();
  if (!(flags & MREMAP_MAYMOVE)) return base::Error(EINVAL);
  if ((flags & MREMAP_DONTUNMAP) && old_length != new_length) return base::Error(EINVAL);
  if (!(flags & MREMAP_FIXED)) return base::Ok();
  if (new_addr & ~kPageMask) return base::Error(EINVAL);
  if (new_addr > kTaskSize - new_length) return base::Error(EINVAL);
  if (old_addr + old_length > new_addr && new_addr + new_length > old_addr) {
    return base::Error(EINVAL);
  }
  return base::Ok();
}

// The part of `vma` from `at` on as it is at `new_addr` with `length` bytes.
Vma Moved(const Vma& vma, uint64_t at, uint64_t new_addr, uint64_t length) {
  Vma moved = VmaSet::Cut(vma, at, vma.end);
  moved.start = moved.host_start = new_addr;
  moved.end = new_addr + length;
  return moved;
}

}  // namespace

base::Result<uint64_t> MemoryManager::Mremap(OrderRunner& runner, uint64_t old_addr,
                                             uint64_t old_length, uint64_t new_length, int flags,
                                             uint64_t new_addr) {
  old_length = PageUp(old_length);
  new_length = PageUp(new_length);
  TRY(CheckMremap(old_addr, old_length, new_length, flags, new_addr));
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  const bool moves = (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0;
  if (moves && impl.vmas.count() + 2 >= kMaxMapCount - 3) return base::Error(ENOMEM);
  const Vma* found = impl.vmas.At(old_addr);
  if (found == nullptr) return base::Error(EFAULT);
  if (old_length == 0 && !found->shared) return base::Error(EINVAL);

  if (!moves && old_length >= new_length) {  // shrinks in place, or stays
    if (old_length > new_length) {
      TRY(impl.MunmapLocked(runner, old_addr + new_length, old_length - new_length));
    }
    return old_addr;
  }
  Orders orders;
  Undo undo;
  if (flags & MREMAP_FIXED) {
    if (new_addr < impl.min_addr) return base::Error(EPERM);
    if (new_length > impl.max_addr || new_addr > impl.max_addr - new_length) {
      return base::Error(ENOMEM);
    }
  }
  if (old_length > found->end - old_addr &&
      !(moves && old_length > new_length && new_length <= found->end - old_addr)) {
    return base::Error(EFAULT);
  }
  const uint64_t grow = new_length > old_length ? new_length - old_length : 0;
  if (grow > 0) {
    if (old_length != 0 && found->file &&
        found->offset + (old_addr - found->start) + new_length < found->offset) {
      return base::Error(EINVAL);
    }
    if ((found->flags & kVmaLocked) && !impl.MayLock(runner, grow)) return base::Error(EAGAIN);
  }
  const uint64_t added = (flags & MREMAP_DONTUNMAP) ? new_length : grow;
  if (added > 0 && !impl.MayExpand(runner, found->prot, found->shared, found->flags, added)) {
    return base::Error(ENOMEM);
  }

  // Grow in place.
  if (!moves && old_length == found->end - old_addr && old_length != 0 &&
      new_length <= impl.max_addr - old_addr &&
      !impl.vmas.Overlaps(found->end, found->end + grow)) {
    Vma more = *found;
    more.start = more.host_start = found->end;
    more.end = found->end + grow;
    if (found->file || found->host.file) more.offset = found->offset + found->size();
    if (found->host.file) more.host.offset = found->host.offset + found->size();
    const uint64_t lo = more.start, hi = more.end;
    impl.ClaimRange(orders, lo, hi);
    Impl::AddMapOrder(orders, more);
    impl.vmas.Insert(std::move(more));
    undo.Add(lo, hi, {});
    TRY(impl.Commit(runner, std::move(orders), std::move(undo)));
    return old_addr;
  }
  if (!(flags & MREMAP_MAYMOVE)) return base::Error(ENOMEM);

  // Move. What is at the new place goes, as does the tail of a mapping that shrinks.
  const Vma source = *found;
  if (flags & MREMAP_FIXED) {
    for (const Vma& old : impl.vmas.Remove(new_addr, new_addr + new_length)) {
      Impl::AddMunmapOrder(orders, old.host_start, old.end);
    }
  } else {
    const bool huge = !source.file && !source.shared && new_length % kHugePageSize == 0;
    auto at = impl.FindGap(new_length, huge ? kHugePageSize : kPageSize);
    new_addr = at.ok() ? *at : TRY(impl.FindGap(new_length, kPageSize));
  }
  impl.ClaimRange(orders, new_addr, new_addr + new_length);
  if (old_length > new_length) {
    undo.Add(old_addr + new_length, old_addr + old_length,
             impl.UnmapRange(orders, old_addr + new_length, old_addr + old_length));
    old_length = new_length;
  }
  Vma target = Moved(source, old_addr, new_addr, new_length);
  const bool keep_old = (flags & MREMAP_DONTUNMAP) != 0;
  if (keep_old) target.flags &= ~kVmaLocked;
  if (old_length == 0) {
    Impl::AddMapOrder(orders, target);  // a second view of the same object
  } else {
    orders.emplace_back(platform::order::Mremap{old_addr, old_length, new_addr, new_length});
    if (keep_old) {
      Vma left = VmaSet::Cut(source, old_addr, old_addr + old_length);
      left.host_start = left.start;
      Impl::AddMapOrder(orders, left);
    } else {
      std::vector<Vma> removed = impl.vmas.Remove(old_addr, old_addr + old_length);
      for (const Vma& old : removed) Impl::AddMunmapOrder(orders, old.host_start, old.start);
      undo.Add(old_addr, old_addr + old_length, std::move(removed));
    }
  }
  impl.vmas.Insert(std::move(target));
  undo.Add(new_addr, new_addr + new_length, {});
  TRY(impl.Commit(runner, std::move(orders), std::move(undo)));
  return new_addr;
}

base::Status MemoryManager::RemapFilePages(OrderRunner& runner, uint64_t addr, uint64_t length,
                                           int prot, uint64_t pgoff, int flags) {
  // Emulated by a shared mapping over the old one, as Linux does.
  if (prot != 0) return base::Error(EINVAL);
  const uint64_t start = PageDown(addr), size = PageDown(length);
  if (start + size <= start) return base::Error(EINVAL);
  if (pgoff + (size >> 12) < pgoff || pgoff > (UINT64_MAX >> 12)) return base::Error(EINVAL);
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  const Vma* found = impl.vmas.At(start);
  if (found == nullptr || !found->shared) return base::Error(EINVAL);
  // All of it must be the same object.
  uint64_t at = start;
  for (auto it = impl.vmas.Find(start); at < start + size; ++it) {
    if (it == impl.vmas.end() || it->second.start > at || !(it->second.file == found->file) ||
        !(it->second.host.file == found->host.file) || it->second.flags != found->flags) {
      return base::Error(EINVAL);
    }
    at = it->second.end;
  }
  Vma vma = *found;
  vma.start = vma.host_start = start;
  vma.end = start + size;
  vma.offset = pgoff << 12;
  if (vma.file) {
    vma.host = TRY(vma.file->Mmap(vma.offset, size, vma.prot, true));
  } else {
    vma.host.offset = vma.offset;
  }
  Orders orders;
  Undo undo;
  undo.Add(start, vma.end, impl.vmas.Remove(start, vma.end));
  Impl::AddMapOrder(orders, vma);
  impl.vmas.Insert(std::move(vma));
  return impl.Commit(runner, std::move(orders), std::move(undo));
}

}  // namespace sentry
