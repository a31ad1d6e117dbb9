#include "sentry/mm/vma_set.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace sentry {

Vma* VmaSet::At(uint64_t addr) {
  auto it = Find(addr);
  return it != map_.end() && it->second.start <= addr ? &it->second : nullptr;
}

bool VmaSet::Overlaps(uint64_t lo, uint64_t hi) const {
  auto it = Find(lo);
  return it != map_.end() && it->second.start < hi;
}

uint64_t VmaSet::MappedBytes(uint64_t lo, uint64_t hi) const {
  uint64_t bytes = 0;
  for (auto it = Find(lo); it != map_.end() && it->second.start < hi; ++it) {
    bytes += std::min(it->second.end, hi) - std::max(it->second.start, lo);
  }
  return bytes;
}

void VmaSet::Account(const Vma& vma, bool add) {
  const uint64_t n = add ? vma.size() : -vma.size();
  stats_.total_vm += n;
  if (vma.shared) stats_.shared_vm += n;
  if (vma.flags & kVmaLocked) stats_.locked_vm += n;
  if (vma.flags & kVmaGrowsDown) {
    stats_.stack_vm += n;
  } else if ((vma.prot & PROT_EXEC) && !(vma.prot & PROT_WRITE)) {
    stats_.exec_vm += n;
  } else if (IsDataMapping(vma.prot, vma.shared, vma.flags)) {
    stats_.data_vm += n;
  }
  stats_.peak_vm = std::max(stats_.peak_vm, stats_.total_vm);
}

Vma VmaSet::Cut(const Vma& vma, uint64_t lo, uint64_t hi) {
  Vma piece = vma;
  const uint64_t skip = lo - vma.start;
  piece.start = lo;
  piece.end = hi;
  if (skip > 0) {
    if (vma.file || vma.host.file) piece.offset += skip;
    if (vma.host.file) piece.host.offset += skip;
    piece.host_start = lo;
  }
  return piece;
}

void VmaSet::SplitAt(uint64_t addr) {
  auto it = Find(addr);
  if (it == map_.end() || it->second.start >= addr) return;
  Vma lower = Cut(it->second, it->second.start, addr);
  it->second = Cut(it->second, addr, it->second.end);
  map_.emplace_hint(it, addr, std::move(lower));
}

bool VmaSet::CanMerge(const Vma& a, const Vma& b) {
  if (a.end != b.start || a.prot != b.prot || a.flags != b.flags || a.shared != b.shared ||
      a.max_prot != b.max_prot || !(a.file == b.file) || !(a.host.file == b.host.file) ||
      a.shm_id != b.shm_id || b.host_start != b.start || a.name != b.name) {
    return false;
  }
  if ((a.file || a.host.file) && a.offset + a.size() != b.offset) return false;
  return !a.host.file || a.host.offset + a.size() == b.host.offset;
}

void VmaSet::Merge(uint64_t lo, uint64_t hi) {
  auto it = map_.lower_bound(lo);  // the one that ends at lo, if any
  while (it != map_.end() && it->second.start <= hi) {
    auto next = std::next(it);
    if (next == map_.end() || next->second.start > hi) break;
    if (CanMerge(it->second, next->second)) {
      next->second.start = it->second.start;
      next->second.offset = it->second.offset;
      next->second.host.offset = it->second.host.offset;
      next->second.host_start = it->second.host_start;
      map_.erase(it);
    }
    it = next;
  }
}

void VmaSet::Insert(Vma vma) {
  const uint64_t lo = vma.start, hi = vma.end;
  Account(vma, true);
  map_.emplace_hint(Find(lo), hi, std::move(vma));
  Merge(lo, hi);
}

std::vector<Vma> VmaSet::Remove(uint64_t lo, uint64_t hi) {
  std::vector<Vma> removed;
  if (!Overlaps(lo, hi)) return removed;
  SplitAt(lo);
  SplitAt(hi);
  auto it = Find(lo);
  while (it != map_.end() && it->second.start < hi) {
    Account(it->second, false);
    removed.push_back(std::move(it->second));
    it = map_.erase(it);
  }
  // The gap that is there now may be larger than any the cache knows of.
  const uint64_t gap_end = it == map_.end() ? UINT64_MAX : it->second.start;
  gap_cache_.from = std::min(std::max(gap_cache_.from, gap_end), gap_cache_.high);
  return removed;
}

std::vector<Vma> VmaSet::Copy(uint64_t lo, uint64_t hi) const {
  std::vector<Vma> copies;
  for (auto it = Find(lo); it != map_.end() && it->second.start < hi; ++it) {
    copies.push_back(Cut(it->second, std::max(lo, it->second.start), std::min(hi, it->second.end)));
  }
  return copies;
}

void VmaSet::Update(uint64_t lo, uint64_t hi, const std::function<void(Vma&)>& f) {
  SplitAt(lo);
  SplitAt(hi);
  for (auto it = Find(lo); it != map_.end() && it->second.start < hi; ++it) {
    Account(it->second, false);
    f(it->second);
    Account(it->second, true);
  }
  Merge(lo, hi);
}

size_t VmaSet::SplitsNeeded(uint64_t lo, uint64_t hi) const {
  size_t n = 0;
  for (uint64_t border : {lo, hi}) {
    auto it = Find(border);
    if (it != map_.end() && it->second.start < border) ++n;
  }
  return n;
}

uint64_t VmaSet::StartGap(const Vma& vma) {
  if (!(vma.flags & kVmaGrowsDown)) return vma.start;
  return vma.start > kStackGuardGap ? vma.start - kStackGuardGap : 0;
}

std::optional<uint64_t> VmaSet::FindTopDown(uint64_t length, uint64_t low, uint64_t high,
                                            uint64_t align, bool usual) {
  if (length == 0 || high < low || high - low < length) return std::nullopt;
  uint64_t limit = high;  // upper end of the gap that is looked at
  uint64_t largest = 0;
  const bool cached = usual && gap_cache_.high == high;
  if (cached && length > gap_cache_.largest && gap_cache_.from < high) {
    limit = gap_cache_.from;
    largest = gap_cache_.largest;
  }
  auto it = limit == 0 ? map_.begin() : Find(limit - 1);
  if (it != map_.end()) limit = std::min(limit, StartGap(it->second));
  for (;;) {
    const uint64_t below = it == map_.begin() ? 0 : std::prev(it)->second.end;
    const uint64_t gap_low = std::max(below, low);
    if (limit > gap_low && limit - gap_low >= length) {
      const uint64_t addr = (limit - length) & ~(align - 1);
      if (addr >= gap_low) {
        if (usual) gap_cache_ = {high, addr + length, std::max(largest, limit - addr - length)};
        return addr;
      }
    }
    if (limit > gap_low) largest = std::max(largest, limit - gap_low);
    if (below <= low || it == map_.begin()) return std::nullopt;
    --it;
    limit = std::min(limit, StartGap(it->second));
  }
}

std::optional<uint64_t> VmaSet::FindBottomUp(uint64_t length, uint64_t low, uint64_t high,
                                             uint64_t align) const {
  uint64_t addr = low;
  for (auto it = Find(low);; ++it) {
    const uint64_t limit = it == map_.end() ? high : std::min(high, StartGap(it->second));
    const uint64_t at = (addr + align - 1) & ~(align - 1);
    if (at >= addr && limit > at && limit - at >= length) return at;
    if (it == map_.end() || it->second.end >= high) return std::nullopt;
    addr = std::max(addr, it->second.end);
  }
}

bool VmaSet::IsFree(uint64_t addr, uint64_t length) const {
  auto it = Find(addr);
  return it == map_.end() || addr + length <= StartGap(it->second);
}

}  // namespace sentry
