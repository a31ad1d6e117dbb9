// Sets of small numbers: descriptors, process ids, pty numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace base {

// A set of numbers from 0, one bit each; grows as needed. Not thread-safe.
class Bitmap {
 public:
  bool Test(size_t i) const;
  void Set(size_t i);
  void Clear(size_t i);
  // The lowest number >= from that is not in the set (always exists; Set makes room for it).
  size_t FirstClear(size_t from = 0) const;
  // The lowest number >= from that is in the set.
  std::optional<size_t> FirstSet(size_t from = 0) const;
  size_t count() const { return count_; }

 private:
  static constexpr size_t kBits = 64;
  std::vector<uint64_t> words_;
  size_t count_ = 0;
};

// Hands out numbers of [first, last]. Not thread-safe.
class IdAllocator {
 public:
  IdAllocator(uint32_t first, uint32_t last) : first_(first), last_(last), next_(first) {}

  // The lowest free number >= from (descriptors, ptys). Nothing if there is none.
  std::optional<uint32_t> AllocateLowest(uint32_t from = 0);
  // The next free number after the one given last, starting over at `wrap_to` when it reaches
  // the end, as Linux gives out process ids (idr_alloc_cyclic; RESERVED_PIDS).
  std::optional<uint32_t> AllocateCyclic(uint32_t wrap_to = 0);
  // Takes a certain number; false if it is taken or out of range.
  bool Reserve(uint32_t id);
  // Precondition: `id` is taken.
  void Free(uint32_t id);
  bool InUse(uint32_t id) const { return id >= first_ && id <= last_ && used_.Test(id - first_); }
  size_t count() const { return used_.count(); }

 private:
  std::optional<uint32_t> Take(uint32_t from);

  const uint32_t first_, last_;
  uint32_t next_;
  Bitmap used_;
};

}  // namespace base
