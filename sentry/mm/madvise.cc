// madvise, msync, mincore. Follows Linux's mm/madvise.c, mm/msync.c and mm/mincore.c.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "sentry/mm/mm_impl.h"

#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace sentry {

namespace {

enum class Kind { kInvalid, kFlag, kDiscard, kRemove, kHuge, kPopulate, kIgnored };

Kind KindOf(int advice) {
  switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
      return Kind::kFlag;
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
      return Kind::kHuge;
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_FREE:
      return Kind::kDiscard;
    case MADV_REMOVE:
      return Kind::kRemove;
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
      return Kind::kPopulate;
    case MADV_WILLNEED:
    case MADV_COLD:
    case MADV_PAGEOUT:
      return Kind::kIgnored;
    default:
      return Kind::kInvalid;
  }
}

// The flags of `vma` after `advice`. EINVAL where Linux refuses it for this kind of mapping.
base::Result<uint32_t> NewFlags(const Vma& vma, int advice) {
  const uint32_t flags = vma.flags;
  switch (advice) {
    case MADV_NORMAL:
      return flags & ~(kVmaRandRead | kVmaSeqRead);
    case MADV_RANDOM:
      return (flags & ~kVmaSeqRead) | kVmaRandRead;
    case MADV_SEQUENTIAL:
      return (flags & ~kVmaRandRead) | kVmaSeqRead;
    case MADV_DONTFORK:
      return flags | kVmaDontFork;
    case MADV_DOFORK:
      return flags & ~kVmaDontFork;
    case MADV_WIPEONFORK:
      if (vma.file || vma.shared) return base::Error(EINVAL);
      return flags | kVmaWipeOnFork;
    case MADV_KEEPONFORK:
      return flags & ~kVmaWipeOnFork;
    case MADV_DONTDUMP:
      return flags | kVmaDontDump;
    case MADV_DODUMP:
      return flags & ~kVmaDontDump;
    case MADV_HUGEPAGE:
      return (flags & ~kVmaNoHugePage) | kVmaHugePage;
    case MADV_NOHUGEPAGE:
      return (flags & ~kVmaHugePage) | kVmaNoHugePage;
    default:
      return flags;
  }
}

// Would `advice` drop what sealed memory holds, which its owner could not write? (is_discard,
// is_ro_anon)
bool BreaksSeal(const Vma& vma, int advice) {
  if ((vma.flags & kVmaSealed) == 0 || vma.file || vma.shared || (vma.prot & PROT_WRITE) != 0) {
    return false;
  }
  switch (advice) {
    case MADV_FREE:
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
    case MADV_REMOVE:
    case MADV_DONTFORK:
    case MADV_WIPEONFORK:
      return true;
    default:
      return false;
  }
}

// One mapped piece of the range of a madvise.
struct Piece {
  uint64_t lo, hi;
};

}  // namespace

base::Status MemoryManager::Madvise(OrderRunner& runner, uint64_t addr, uint64_t length,
                                    int advice) {
  const Kind kind = KindOf(advice);
  if (kind == Kind::kInvalid || (addr & ~kPageMask)) return base::Error(EINVAL);
  const uint64_t bytes = PageUp(length);
  if (length != 0 && bytes == 0) return base::Error(EINVAL);
  const uint64_t end = addr + bytes;
  if (end < addr) return base::Error(EINVAL);
  if (end == addr) return base::Ok();

  Impl& impl = *impl_;
  std::vector<Vma> to_remove;
  int error = 0;
  {
    fiber::MutexLock lock(&impl.mutex);
    std::vector<Piece> pieces;
    uint64_t at = addr;
    for (auto it = impl.vmas.Find(addr); it != impl.vmas.end() && it->second.start < end; ++it) {
      if (it->second.start > at) error = ENOMEM;  // a hole: the rest is still advised
      pieces.push_back({std::max(it->second.start, addr), std::min(it->second.end, end)});
      at = it->second.end;
    }
    if (at < end) error = ENOMEM;
    if (kind == Kind::kPopulate && error != 0) return base::Error(error);

    Orders orders;
    Undo undo;
    for (const Piece& piece : pieces) {
      const Vma& vma = *impl.vmas.At(piece.lo);
      int failed = BreaksSeal(vma, advice) ? EPERM : 0;
      // can_madv_lru_vma()
      const bool ages = advice == MADV_COLD || advice == MADV_PAGEOUT;
      if (failed == 0 && ages && (vma.flags & kVmaLocked) != 0) failed = EINVAL;
      switch (failed == 0 ? kind : Kind::kIgnored) {
        case Kind::kFlag:
        case Kind::kHuge: {
          auto flags = NewFlags(vma, advice);
          if (!flags.ok()) {
            failed = flags.error().code();
          } else if (*flags != vma.flags) {
            if (impl.vmas.count() + impl.vmas.SplitsNeeded(piece.lo, piece.hi) > kMaxMapCount) {
              failed = ENOMEM;
              break;
            }
            if (kind == Kind::kHuge) Impl::AddMadviseOrder(orders, piece.lo, piece.hi, advice);
            undo.Add(piece.lo, piece.hi, impl.vmas.Copy(piece.lo, piece.hi));
            impl.vmas.Update(piece.lo, piece.hi, [value = *flags](Vma& v) { v.flags = value; });
          }
          break;
        }
        case Kind::kDiscard:
          if (((vma.flags & kVmaLocked) && advice != MADV_DONTNEED_LOCKED) ||
              (advice == MADV_FREE && (vma.file || vma.shared))) {
            failed = EINVAL;
          } else {
            Impl::AddMadviseOrder(orders, piece.lo, piece.hi,
                                  advice == MADV_FREE ? MADV_FREE : MADV_DONTNEED);
          }
          break;
        case Kind::kRemove:
          if ((vma.flags & kVmaLocked) || (!vma.file && !vma.host.file)) {
            failed = EINVAL;
          } else if (!vma.shared || !(vma.max_prot & PROT_WRITE)) {
            failed = EACCES;
          } else {
            to_remove.push_back(VmaSet::Cut(vma, piece.lo, piece.hi));
          }
          break;
        case Kind::kPopulate: {
          const int need = advice == MADV_POPULATE_WRITE ? PROT_WRITE : PROT_READ;
          const int have = vma.prot | ((vma.prot & PROT_WRITE) ? PROT_READ : 0);
          if (!(have & need)) {
            failed = EINVAL;
          } else {
            Impl::AddMadviseOrder(orders, piece.lo, piece.hi, advice);
          }
          break;
        }
        default:
          break;
      }
      if (failed != 0) {
        error = failed;
        break;
      }
    }
    TRY(impl.Commit(runner, std::move(orders), std::move(undo)));
  }
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  for (const Vma& vma : to_remove) {
    if (vma.file) {
      TRY(vma.file->Allocate(kPunch, vma.offset, vma.size()));
    } else if (fallocate(vma.host.file->get(), kPunch, static_cast<off_t>(vma.host.offset),
                         static_cast<off_t>(vma.size())) != 0) {
      return base::LastError();
    }
  }
  return error == 0 ? base::Ok() : base::Status(base::Error(error));
}

base::Status MemoryManager::Msync(uint64_t addr, uint64_t length, int flags) {
  if (flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC)) return base::Error(EINVAL);
  if (addr & ~kPageMask) return base::Error(EINVAL);
  if ((flags & MS_ASYNC) && (flags & MS_SYNC)) return base::Error(EINVAL);
  const uint64_t end = addr + PageUp(length);
  if (end < addr) return base::Error(ENOMEM);
  if (end == addr) return base::Ok();
  std::vector<base::Ref<FileDescription>> files;
  int error = 0;
  {
    Impl& impl = *impl_;
    fiber::MutexLock lock(&impl.mutex);
    uint64_t at = addr;
    for (auto it = impl.vmas.Find(addr); it != impl.vmas.end() && it->second.start < end; ++it) {
      const Vma& vma = it->second;
      if (vma.start > at) error = ENOMEM;
      if ((flags & MS_INVALIDATE) && (vma.flags & kVmaLocked)) {
        error = EBUSY;
        at = end;
        break;
      }
      if ((flags & MS_SYNC) && vma.file && vma.shared &&
          (files.empty() || !(files.back() == vma.file))) {
        files.push_back(vma.file);
      }
      at = vma.end;
    }
    if (at < end) error = ENOMEM;
  }
  for (const auto& file : files) TRY(file->Sync(/*data_only=*/false));
  return error == 0 ? base::Ok() : base::Status(base::Error(error));
}

base::Result<std::vector<uint8_t>> MemoryManager::Mincore(uint64_t addr, uint64_t length) {
  if (addr & ~kPageMask) return base::Error(EINVAL);
  const uint64_t end = addr + PageUp(length);
  if (end < addr || end - addr < length || end > impl_->max_addr) return base::Error(ENOMEM);
  if (!IsMapped(addr, end - addr)) return base::Error(ENOMEM);
  return std::vector<uint8_t>((end - addr) / kPageSize, 1);
}

bool MemoryManager::IsMapped(uint64_t addr, uint64_t length) {
  const uint64_t start = PageDown(addr), end = PageUp(addr + length);
  if (end < start) return false;
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  return impl.vmas.MappedBytes(start, end) == end - start;
}

bool MemoryManager::IsWritableAnonymous(uint64_t addr, uint64_t length) {
  const uint64_t end = addr + length;
  if (end < addr) return false;
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  for (auto it = impl.vmas.Find(addr); it != impl.vmas.end(); ++it) {
    const Vma& vma = it->second;
    if (vma.start > addr || (vma.prot & PROT_WRITE) == 0 || vma.file) return false;
    addr = vma.end;
    if (addr >= end) return true;
  }
  return false;
}

bool MemoryManager::IsAnyMapped(uint64_t addr, uint64_t length) {
  Impl& impl = *impl_;
  fiber::MutexLock lock(&impl.mutex);
  return impl.vmas.Overlaps(PageDown(addr), PageUp(addr + length));
}

}  // namespace sentry
