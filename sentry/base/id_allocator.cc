#include "sentry/base/id_allocator.h"

#include <algorithm>
#include <bit>

namespace base {

bool Bitmap::Test(size_t i) const {
  return i / kBits < words_.size() && (words_[i / kBits] >> i % kBits & 1) != 0;
}

void Bitmap::Set(size_t i) {
  if (i / kBits >= words_.size()) words_.resize(i / kBits + 1);
  uint64_t& word = words_[i / kBits];
  const uint64_t bit = uint64_t{1} << i % kBits;
  if ((word & bit) == 0) ++count_;
  word |= bit;
}

void Bitmap::Clear(size_t i) {
  if (!Test(i)) return;
  words_[i / kBits] &= ~(uint64_t{1} << i % kBits);
  --count_;
}

size_t Bitmap::FirstClear(size_t from) const {
  for (size_t w = from / kBits; w < words_.size(); ++w) {
    uint64_t free = ~words_[w];
    if (w == from / kBits) free &= ~uint64_t{0} << from % kBits;
    if (free != 0) return w * kBits + std::countr_zero(free);
  }
  return std::max(from, words_.size() * kBits);
}

std::optional<size_t> Bitmap::FirstSet(size_t from) const {
  for (size_t w = from / kBits; w < words_.size(); ++w) {
    uint64_t set = words_[w];
    if (w == from / kBits) set &= ~uint64_t{0} << from % kBits;
    if (set != 0) return w * kBits + std::countr_zero(set);
  }
  return std::nullopt;
}

std::optional<uint32_t> IdAllocator::Take(uint32_t from) {
  if (from > last_) return std::nullopt;
  const size_t i = used_.FirstClear(from - first_);
  if (i > last_ - first_) return std::nullopt;
  used_.Set(i);
  return static_cast<uint32_t>(first_ + i);
}

std::optional<uint32_t> IdAllocator::AllocateLowest(uint32_t from) {
  return Take(std::max(from, first_));
}

std::optional<uint32_t> IdAllocator::AllocateCyclic(uint32_t wrap_to) {
  std::optional<uint32_t> id = Take(next_);
  if (!id) id = Take(std::max(wrap_to, first_));
  if (!id) return std::nullopt;
  next_ = *id == last_ ? std::max(wrap_to, first_) : *id + 1;
  return id;
}

bool IdAllocator::Reserve(uint32_t id) {
  if (id < first_ || id > last_ || used_.Test(id - first_)) return false;
  used_.Set(id - first_);
  return true;
}

void IdAllocator::Free(uint32_t id) { used_.Clear(id - first_); }

}  // namespace base
