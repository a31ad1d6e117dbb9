#include "sentry/net/ring_buffer.h"

#include <utility>

#include "sentry/base/kernel_memory.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

Status RingBuffer::Ensure() {
  if (ring_.valid()) {
    // What is left of the sentry's memory is not for queues to grow.
    if (base::KernelMemory::Full() && Used() > 0) return Error(ENOBUFS);
    return base::Ok();
  }
  // Few are ever filled: it counts as far as it is (Produced).
  auto memory =
      base::RingMemory::New(base::ByteRing::kHeaderSize + kSize, base::ByteRing::kHeaderSize);
  if (!memory.ok()) return Error(ENOBUFS);
  memory_ = *std::move(memory);
  ring_ = base::ByteRing(memory_->data(), kSize);
  ring_.Reset();
  return base::Ok();
}

void RingBuffer::Produced(size_t n) {
  ring_.Produced(n);
  memory_->Touch(base::ByteRing::kHeaderSize + ring_.Reached());
}

void RingBuffer::Drop() {
  ring_ = base::ByteRing();
  memory_.reset();
}

size_t RingBuffer::Used() const {
  if (!ring_.valid()) return 0;
  bool broken = false;
  return ring_.Used(&broken);
}

size_t RingBuffer::Room() const {
  bool broken = false;
  size_t used = ring_.Used(&broken);
  return broken ? 0 : kSize - used;
}

Result<size_t> RingBuffer::Fill(IoSource& src, size_t n) {
  size_t total = 0;
  for (std::span<std::byte> part : ring_.Free(n)) {
    if (part.empty()) continue;
    Result<size_t> got = src.Get(part);
    if (!got.ok()) return total > 0 ? Result<size_t>(total) : got;
    total += *got;
    if (*got < part.size()) break;
  }
  return total;
}

Result<size_t> RingBuffer::Copy(size_t skip, size_t n, IoDest& dst) const {
  size_t total = 0;
  if (n == 0) return total;
  for (std::span<std::byte> part : ring_.Content(skip, n)) {
    if (part.empty()) continue;
    Result<size_t> put = dst.Put(part);
    if (!put.ok()) return total > 0 ? Result<size_t>(total) : put;
    total += *put;
    if (*put < part.size()) break;
  }
  return total;
}

}  // namespace sentry
