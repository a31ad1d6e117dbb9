// VmaSet: the interval map of an address space, with Linux's merging and its searches for gaps.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "sentry/mm/memory_manager.h"

namespace sentry {

inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t kPageMask = ~(kPageSize - 1);
inline constexpr uint64_t kHugePageSize = 2 << 20;
inline constexpr uint64_t kStackGuardGap = 256 * kPageSize;  // Linux: stack_guard_gap
inline constexpr size_t kMaxMapCount = 65530;                // vm.max_map_count

constexpr uint64_t PageDown(uint64_t v) { return v & kPageMask; }
// 0 on overflow, as PAGE_ALIGN.
constexpr uint64_t PageUp(uint64_t v) { return (v + kPageSize - 1) & kPageMask; }

// Not thread-safe. Keyed by the end of a VMA, so that the first one above an address is one lookup
// and a stack grows in place. Every change keeps the byte counts.
class VmaSet {
 public:
  using Map = std::map<uint64_t, Vma>;
  using iterator = Map::iterator;
  using const_iterator = Map::const_iterator;

  iterator begin() { return map_.begin(); }
  iterator end() { return map_.end(); }
  const_iterator begin() const { return map_.begin(); }
  const_iterator end() const { return map_.end(); }
  size_t count() const { return map_.size(); }

  // The first VMA that ends above `addr` (Linux: find_vma); end() if none.
  iterator Find(uint64_t addr) { return map_.upper_bound(addr); }
  const_iterator Find(uint64_t addr) const { return map_.upper_bound(addr); }
  // The VMA that contains `addr`, or null.
  Vma* At(uint64_t addr);
  bool Overlaps(uint64_t lo, uint64_t hi) const;
  // Bytes of [lo, hi) that are mapped.
  uint64_t MappedBytes(uint64_t lo, uint64_t hi) const;

  // Adds a VMA where nothing is; merges it with its neighbours.
  void Insert(Vma vma);
  // Takes out [lo, hi); VMAs across the borders are split.
  std::vector<Vma> Remove(uint64_t lo, uint64_t hi);
  // Copies of what is in [lo, hi), cut to it.
  std::vector<Vma> Copy(uint64_t lo, uint64_t hi) const;
  // Applies `f` to each VMA of [lo, hi), split at the borders, then merges. `f` does not change the
  // extent, except `start` downwards of the first.
  void Update(uint64_t lo, uint64_t hi, const std::function<void(Vma&)>& f);
  // How many VMAs splitting at lo and hi would add.
  size_t SplitsNeeded(uint64_t lo, uint64_t hi) const;

  // Highest place for `length` bytes in [low, high), a multiple of `align`; below a mapping that
  // grows down the guard gap is kept free (Linux: vm_unmapped_area, top-down). `usual` tells that
  // `high` is where most searches begin, for which what was learnt is kept.
  std::optional<uint64_t> FindTopDown(uint64_t length, uint64_t low, uint64_t high, uint64_t align,
                                      bool usual = true);
  // Lowest place.
  std::optional<uint64_t> FindBottomUp(uint64_t length, uint64_t low, uint64_t high,
                                       uint64_t align) const;
  // True if [addr, addr + length) is free, the guard gap of what follows included.
  bool IsFree(uint64_t addr, uint64_t length) const;

  const MmStats& stats() const { return stats_; }

  // Start of `vma` less the guard gap below it (Linux: vm_start_gap).
  static uint64_t StartGap(const Vma& vma);
  // The part [lo, hi) of `vma`.
  static Vma Cut(const Vma& vma, uint64_t lo, uint64_t hi);

 private:
  void Account(const Vma& vma, bool add);
  void SplitAt(uint64_t addr);
  // Merges neighbours from the VMA that ends at `lo` to the one that starts at `hi`.
  void Merge(uint64_t lo, uint64_t hi);
  static bool CanMerge(const Vma& a, const Vma& b);

  Map map_;
  MmStats stats_;
  // All gaps above `from` and below the default `high` are at most `largest`.
  struct {
    uint64_t high = 0, from = 0, largest = 0;
  } gap_cache_;
};

// Is `vma` counted as data, as RLIMIT_DATA sees it (Linux: is_data_mapping)?
inline bool IsDataMapping(int prot, bool shared, uint32_t flags) {
  return (prot & 2) && !shared && !(flags & kVmaGrowsDown);
}

}  // namespace sentry
