// Bytes on their way to a socket: a ring in a memory file (sentry/base/ring.h) that is filled from
// and copied to guest memory.
#pragma once

#include <cstddef>
#include <memory>

#include "sentry/base/result.h"
#include "sentry/base/ring.h"
#include "sentry/base/ring_memory.h"
#include "sentry/vfs/types.h"

namespace sentry {

// One writer and one reader at a time, each under a lock of the owner's; both may be at work at
// once. Reset and Drop need both locks.
class RingBuffer {
 public:
  static constexpr size_t kSize = 512 * 1024;

  bool valid() const { return ring_.valid(); }
  // Makes the ring if there is none. ENOBUFS.
  base::Status Ensure();
  // Gives the memory back.
  void Drop();
  void Reset() { ring_.Reset(); }

  // Bytes in it; 0 without a ring.
  size_t Used() const;
  // Bytes that fit. Precondition: valid().
  size_t Room() const;
  // Copies up to `n` bytes of `src` behind what it holds; they become a part of it by Produced.
  // Precondition: n <= Room(). Fewer at a fault, EFAULT if none.
  base::Result<size_t> Fill(IoSource& src, size_t n);
  void Produced(size_t n);
  // Copies `n` bytes, `skip` bytes after the first. Precondition: skip + n <= Used().
  base::Result<size_t> Copy(size_t skip, size_t n, IoDest& dst) const;
  void Consumed(size_t n) { ring_.Consumed(n); }

 private:
  std::unique_ptr<base::RingMemory> memory_;
  base::ByteRing ring_;
};

}  // namespace sentry
