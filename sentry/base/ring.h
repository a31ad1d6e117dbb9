// A ring buffer with a fixed layout in a memory file: the data of pipes that are in no lane.
// Without locks of its own.
//
// Two roles, one writer and one reader at a time. An index in the memory is read once and checked:
// what cannot be true is reported as `broken`. The slot count is never read from there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace base {

// Free-running positions, one cache line each: [tail, head) is what the ring holds.
struct RingHeader {
  alignas(64) std::atomic<uint64_t> head;  // advanced by the writer
  alignas(64) std::atomic<uint64_t> tail;  // advanced by the reader
};
static_assert(sizeof(RingHeader) == 128);

// A ring of page slots with Linux's rules for pipes (fs/pipe.c): each slot holds a run of bytes in
// a page of its own; a slot marked as a packet keeps its boundary.
class SlotRing {
 public:
  static constexpr uint32_t kPageSize = 4096;
  struct Slot {
    std::atomic<uint32_t> offset, length, flags, reserved;
  };
  static constexpr uint32_t kMerge = 1;   // later bytes may be added to this slot
  static constexpr uint32_t kPacket = 2;  // a packet: what one read does not take is lost
  // A checked copy of a slot.
  struct View {
    uint32_t offset, length, flags;
  };

  static constexpr size_t HeaderSize(uint32_t slots) {
    return (sizeof(RingHeader) + slots * sizeof(Slot) + kPageSize - 1) / kPageSize * kPageSize;
  }
  static constexpr size_t MemorySize(uint32_t slots) {
    return HeaderSize(slots) + size_t{slots} * kPageSize;
  }

  SlotRing() = default;
  // `memory` holds MemorySize(slots) bytes; `slots` is a power of two.
  SlotRing(std::byte* memory, uint32_t slots)
      : header_(reinterpret_cast<RingHeader*>(memory)),
        slot_(reinterpret_cast<Slot*>(memory + sizeof(RingHeader))),
        data_(memory + HeaderSize(slots)),
        slots_(slots) {}
  bool valid() const { return header_ != nullptr; }
  uint32_t slots() const { return slots_; }
  uint64_t head() const { return header_->head.load(std::memory_order_acquire); }
  uint64_t tail() const { return header_->tail.load(std::memory_order_acquire); }

  // Slots in use.
  uint32_t Used(bool* broken) const {
    uint64_t used = head() - tail();
    if (used <= slots_) return static_cast<uint32_t>(used);
    *broken = true;
    return 0;
  }
  // A run that leaves its page is cut to nothing and reported.
  View Get(uint64_t index, bool* broken) const {
    const Slot& s = At(index);
    View v{s.offset.load(std::memory_order_relaxed), s.length.load(std::memory_order_relaxed),
           s.flags.load(std::memory_order_relaxed)};
    if (v.offset > kPageSize || v.length > kPageSize - v.offset) {
      *broken = true;
      return {0, 0, 0};
    }
    return v;
  }
  void Set(uint64_t index, View v) {
    Slot& s = At(index);
    s.offset.store(v.offset, std::memory_order_relaxed);
    s.length.store(v.length, std::memory_order_relaxed);
    s.flags.store(v.flags, std::memory_order_relaxed);
  }
  std::byte* Page(uint64_t index) const { return data_ + (index & (slots_ - 1)) * kPageSize; }
  // True if the page after that of `index` is that of `index` + 1.
  bool Adjacent(uint64_t index) const { return ((index + 1) & (slots_ - 1)) != 0; }
  void SetHead(uint64_t head) { header_->head.store(head, std::memory_order_release); }
  void SetTail(uint64_t tail) { header_->tail.store(tail, std::memory_order_release); }
  // Back to the first page, so that a ring that is mostly empty stays in the cache and touches few.
  // Drops what it holds.
  void Reset() {
    header_->head.store(0, std::memory_order_relaxed);
    header_->tail.store(0, std::memory_order_release);
  }

 private:
  Slot& At(uint64_t index) const { return slot_[index & (slots_ - 1)]; }
  RingHeader* header_ = nullptr;
  Slot* slot_ = nullptr;
  std::byte* data_ = nullptr;
  uint32_t slots_ = 0;
};

}  // namespace base
