#include "sentry/net/ring_buffer.h"

#include <utility>

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

// What one counts for: few sockets fill more of their ring.
constexpr size_t kRingCharge = 128 * 1024;

}  // namespace

Status RingBuffer::Ensure() {
  if (ring_.valid()) return base::Ok();
  auto memory = base::RingMemory::New(base::ByteRing::kHeaderSize + kSize, kRingCharge);
  if (!memory.ok()) return Error(ENOBUFS);
  memory_ = *std::move(memory);
  ring_ = base::ByteRing(memory_->data(), kSize);
  ring_.Reset();
  return base::Ok();
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
