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

base::Status CheckArguments(uint64_t old_addr, uint64_t old_length, uint64_t new_length, int flags,
                            uint64_t new_addr) {
  if (flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP)) return base::Error(EINVAL);
  if (old_addr & ~kPageMask) return base::Error(EINVAL);
  if (new_length == 0 || new_length > kTaskSize) return base::Error(EINVAL);
  if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))) return base::Ok();
  if (!(flags & MREMAP_MAYMOVE)) return base::Error(EINVAL);
  if ((flags & MREMAP_DONTUNMAP) && old_length != new_length) return base::Error(EINVAL);
  if (flags & MREMAP_FIXED) {
    if (new_addr & ~kPageMask) return base::Error(EINVAL);
    if (new_addr > kTaskSize - new_length) return base::Error(EINVAL);
  }
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

base::Status MemoryManager::Impl::CheckMremap(const OrderRunner& runner, const MremapArgs& args,
                                              const Vma& vma) const {
  const bool moves = (args.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0;
  if (args.flags & MREMAP_FIXED) {
    if (args.new_addr < min_addr) return base::Error(EPERM);
    if (args.new_length > max_addr || args.new_addr > max_addr - args.new_length) {
      return base::Error(ENOMEM);
    }
  }
  const uint64_t room = vma.end - args.old_addr;
  const bool shrinks = moves && args.old_length > args.new_length && args.new_length <= room;
  if (args.old_length > room && !shrinks) return base::Error(EFAULT);
  const uint64_t grow = args.new_length > args.old_length ? args.new_length - args.old_length : 0;
  if (grow > 0) {
    const uint64_t offset = vma.offset + (args.old_addr - vma.start);
    if (args.old_length != 0 && vma.file && offset + args.new_length < vma.offset) {
      return base::Error(EINVAL);
    }
    if ((vma.flags & kVmaLocked) && !MayLock(runner, grow)) return base::Error(EAGAIN);
  }
  const uint64_t added = (args.flags & MREMAP_DONTUNMAP) ? args.new_length : grow;
  if (added > 0 && !MayExpand(runner, vma.prot, vma.shared, vma.flags, added)) {
    return base::Error(ENOMEM);
  }
  return base::Ok();
}

base::Status MemoryManager::Impl::GrowInPlace(OrderRunner& runner, const Vma& vma, uint64_t grow) {
  Vma more = vma;
  more.start = more.host_start = vma.end;
  more.end = vma.end + grow;
  if (vma.file || vma.host.file) more.offset = vma.offset + vma.size();
  if (vma.host.file) more.host.offset = vma.host.offset + vma.size();
  const uint64_t lo = more.start, hi = more.end;
  Orders orders;
  ClaimRange(orders, lo, hi);
  if (vma.host.file) {
    AddMapOrder(orders, more);
  } else {
    // Anonymous pages that have moved do not become one mapping of the host's with others behind
    // them, and it moves no more than one at once. So the one that is there grows.
    const uint64_t last = lo - kPageSize;
    orders.emplace_back(platform::order::Mremap{last, kPageSize, last, kPageSize + grow});
  }
  vmas.Insert(std::move(more));
  Undo undo;
  undo.Add(lo, hi, {});
  return Commit(runner, std::move(orders), std::move(undo));
}

base::Result<uint64_t> MemoryManager::Impl::Move(OrderRunner& runner, MremapArgs args,
                                                 const Vma& source) {
  const uint64_t old_addr = args.old_addr, new_length = args.new_length;
  Orders orders;
  Undo undo;
  // What is at the new place goes, as does the tail of a mapping that shrinks.
  if (args.flags & MREMAP_FIXED) {
    if (AnySealed(args.new_addr, args.new_addr + new_length) ||
        AnySealed(old_addr + std::min(new_length, args.old_length), old_addr + args.old_length)) {
      return base::Error(EPERM);
    }
    for (const Vma& old : vmas.Remove(args.new_addr, args.new_addr + new_length)) {
      AddMunmapOrder(orders, old.host_start, old.end);
    }
  } else {
    const bool huge = !source.file && !source.shared && new_length % kHugePageSize == 0;
    auto at = FindGap(new_length, huge ? kHugePageSize : kPageSize);
    args.new_addr = at.ok() ? *at : TRY(FindGap(new_length, kPageSize));
  }
  const uint64_t new_addr = args.new_addr;
  ClaimRange(orders, new_addr, new_addr + new_length);
  if (args.old_length > new_length) {
    const uint64_t lo = old_addr + new_length, hi = old_addr + args.old_length;
    undo.Add(lo, hi, UnmapRange(orders, lo, hi));
    args.old_length = new_length;
  }
  const uint64_t old_end = old_addr + args.old_length;
  Vma target = Moved(source, old_addr, new_addr, new_length);
  if (args.flags & MREMAP_DONTUNMAP) target.flags &= ~kVmaLocked;
  if (args.old_length == 0) {
    AddMapOrder(orders, target);  // a second view of the same object
  } else {
    orders.emplace_back(platform::order::Mremap{old_addr, args.old_length, new_addr, new_length});
    if (args.flags & MREMAP_DONTUNMAP) {
      Vma left = VmaSet::Cut(source, old_addr, old_end);
      left.host_start = left.start;
      AddMapOrder(orders, left);
    } else {
      std::vector<Vma> removed = vmas.Remove(old_addr, old_end);
      for (const Vma& old : removed) AddMunmapOrder(orders, old.host_start, old.start);
      undo.Add(old_addr, old_end, std::move(removed));
    }
  }
  vmas.Insert(std::move(target));
  undo.Add(new_addr, new_addr + new_length, {});
  TRY(Commit(runner, std::move(orders), std::move(undo)));
  return new_addr;
}

base::Result<uint64_t> MemoryManager::Mremap(OrderRunner& runner, uint64_t old_addr,
                                             uint64_t old_length, uint64_t new_length, int flags,
                                             uint64_t new_addr) {
  const Impl::MremapArgs args{old_addr, PageUp(old_length), PageUp(new_length), flags, new_addr};
  TRY(CheckArguments(args.old_addr, args.old_length, args.new_length, flags, new_addr));
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  const bool moves = (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0;
  if (moves && impl.vmas.count() + 2 >= kMaxMapCount - 3) return base::Error(ENOMEM);
  const Vma* found = impl.vmas.At(old_addr);
  if (found == nullptr) return base::Error(EFAULT);
  if ((found->flags & kVmaSealed) != 0) return base::Error(EPERM);
  if (args.old_length == 0 && !found->shared) return base::Error(EINVAL);
  if (!moves && args.old_length >= args.new_length) {  // shrinks in place, or stays
    if (args.old_length > args.new_length) {
      TRY(impl.MunmapLocked(runner, old_addr + args.new_length, args.old_length - args.new_length));
    }
    return old_addr;
  }
  TRY(impl.CheckMremap(runner, args, *found));
  const uint64_t grow = args.new_length - std::min(args.new_length, args.old_length);
  if (!moves && args.old_length == found->end - old_addr && args.old_length != 0 &&
      args.new_length <= impl.max_addr - old_addr &&
      !impl.vmas.Overlaps(found->end, found->end + grow)) {
    TRY(impl.GrowInPlace(runner, *found, grow));
    return old_addr;
  }
  if (!(flags & MREMAP_MAYMOVE)) return base::Error(ENOMEM);
  const Vma source = *found;
  return impl.Move(runner, args, source);
}

base::Status MemoryManager::RemapFilePages(OrderRunner& runner, uint64_t addr, uint64_t length,
                                           int prot, uint64_t pgoff) {
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
  if (impl.AnySealed(start, vma.end)) return base::Error(EPERM);
  undo.Add(start, vma.end, impl.vmas.Remove(start, vma.end));
  Impl::AddMapOrder(orders, vma);
  impl.vmas.Insert(std::move(vma));
  return impl.Commit(runner, std::move(orders), std::move(undo));
}

}  // namespace sentry
