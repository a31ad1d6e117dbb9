// Ring buffers with a fixed layout in a memory file: the data of pipes and of sockets inside the
// sandbox. Freestanding and without locks of its own, so that the sentry and, one day, a stub that
// maps the same memory file use one implementation (lanes).
//
// Two roles, one writer and one reader at a time. An index in the shared memory is read once and
// checked: what cannot be true is reported as `broken`, and the owner treats the ring as one whose
// other end has closed. The geometry (slot count, capacity) is never read from shared memory.
#pragma once

#include <array>
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

// A ring of bytes.
class ByteRing {
 public:
  using Spans = std::array<std::span<std::byte>, 2>;
  static constexpr size_t kHeaderSize = 4096;

  ByteRing() = default;
  // `memory` holds kHeaderSize + capacity bytes; `capacity` is a power of two.
  ByteRing(std::byte* memory, size_t capacity)
      : header_(reinterpret_cast<RingHeader*>(memory)),
        data_(memory + kHeaderSize),
        capacity_(capacity) {}
  bool valid() const { return header_ != nullptr; }
  size_t capacity() const { return capacity_; }

  // Bytes in the ring; sets *broken if the positions make no sense.
  size_t Used(bool* broken) const {
    uint64_t used = header_->head.load(std::memory_order_acquire) -
                    header_->tail.load(std::memory_order_acquire);
    if (used <= capacity_) return used;
    *broken = true;
    return 0;
  }
  // Where the next `n` bytes go; `n` is at most the free space (checked by the caller by Used).
  Spans Free(size_t n) const { return Cut(header_->head.load(std::memory_order_relaxed), n); }
  void Produced(size_t n) {
    header_->head.store(header_->head.load(std::memory_order_relaxed) + n,
                        std::memory_order_release);
  }
  // `n` bytes of content, `skip` bytes after the first; skip + n is at most Used.
  Spans Content(size_t skip, size_t n) const {
    return Cut(header_->tail.load(std::memory_order_relaxed) + skip, n);
  }
  void Consumed(size_t n) {
    header_->tail.store(header_->tail.load(std::memory_order_relaxed) + n,
                        std::memory_order_release);
  }
  // Where the bytes end that have been written since the last Reset.
  size_t Reached() const {
    uint64_t head = header_->head.load(std::memory_order_relaxed);
    return head < capacity_ ? head : capacity_;
  }
  // Back to the first byte, so that a ring that is mostly empty stays in the cache and touches few
  // pages. Only while no other party uses the ring; drops what it holds.
  void Reset() {
    header_->head.store(0, std::memory_order_relaxed);
    header_->tail.store(0, std::memory_order_release);
  }

 private:
  Spans Cut(uint64_t position, size_t n) const {
    if (n > capacity_) n = capacity_;
    size_t at = position & (capacity_ - 1);
    size_t first = n < capacity_ - at ? n : capacity_ - at;
    return {std::span(data_ + at, first), std::span(data_, n - first)};
  }
  RingHeader* header_ = nullptr;
  std::byte* data_ = nullptr;
  size_t capacity_ = 0;
};

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
  // As ByteRing::Reset.
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
