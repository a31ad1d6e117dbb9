#include "sentry/fs/pipe/pipe.h"

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "sentry/vfs/file_description.h"

namespace sentry {

std::atomic<uint32_t> g_pipe_max_size{1024 * 1024};

using base::SlotRing;

base::Status Pipe::EnsureRing() {
  if (ring_.valid()) return base::Ok();
  uint32_t slots = slots_.load();
  auto memory = base::RingMemory::New(SlotRing::MemorySize(slots));
  if (!memory.ok()) return base::Error(ENOMEM);
  memory_ = *std::move(memory);
  ring_ = SlotRing(memory_->data(), slots);
  ring_.Reset();
  return base::Ok();
}

void Pipe::Publish() {
  bool broken = false;
  uint32_t used = ring_.valid() ? ring_.Used(&broken) : 0;
  used_.store(used, std::memory_order_release);
}

std::span<std::byte> Pipe::NextRun(uint64_t index, size_t want, bool* packet) {
  bool broken = false;
  uint64_t head = ring_.head();
  SlotRing::View v = ring_.Get(index, &broken);
  std::byte* start = ring_.Page(index) + v.offset;
  size_t length = v.length;
  *packet = (v.flags & SlotRing::kPacket) != 0;
  // Full pages that follow one another in memory are one piece.
  while (!*packet && !broken && length < want && index + 1 != head && ring_.Adjacent(index) &&
         v.offset + v.length == kPageSize) {
    v = ring_.Get(++index, &broken);
    if (v.offset != 0 || (v.flags & SlotRing::kPacket)) break;
    length += v.length;
  }
  return std::span(start, std::min(length, want));
}

// Drops `n` bytes of content; a packet that is touched goes whole.
void Pipe::Take(size_t n) {
  bool broken = false;
  uint64_t tail = ring_.tail();
  while (tail != ring_.head()) {
    SlotRing::View v = ring_.Get(tail, &broken);
    size_t part = std::min<size_t>(n, v.length);
    n -= part;
    v.offset += static_cast<uint32_t>(part);
    v.length -= static_cast<uint32_t>(part);
    if (v.length != 0 && !(v.flags & SlotRing::kPacket)) {
      ring_.Set(tail, v);
      break;
    }
    ++tail;
    if (n == 0) break;
  }
  if (tail == ring_.head()) {
    ring_.Reset();
  } else {
    ring_.SetTail(tail);
  }
  Publish();
}

base::Status Pipe::WaitReadable() {
  mutex_.Unlock();
  auto reason = fiber::WaitUntil(
      queue_, EPOLLIN | EPOLLHUP, [this] { return used_.load() > 0 || writers_.load() == 0; },
      {.interruptible = true}, /*exclusive=*/true);
  mutex_.Lock();
  if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

base::Status Pipe::WaitWritable() {
  mutex_.Unlock();
  auto reason = fiber::WaitUntil(
      queue_, EPOLLOUT | EPOLLERR, [this] { return !Full() || readers_.load() == 0; },
      {.interruptible = true}, /*exclusive=*/true);
  mutex_.Lock();
  if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

base::Result<size_t> Pipe::Read(IoDest& dst, bool nonblock) {
  if (dst.remaining() == 0) return size_t{0};
  size_t total = 0;
  base::Status error;
  bool was_full = false, waited = false;
  mutex_.Lock();
  while (true) {
    if (used_.load() > 0) {
      was_full = was_full || Full();
      bool packet;
      std::span<std::byte> run = NextRun(ring_.tail(), dst.remaining(), &packet);
      base::Result<size_t> n = dst.Put(run);
      if (!n.ok() || (*n == 0 && !run.empty())) {
        if (!n.ok()) error = n.error();
        break;
      }
      total += *n;
      Take(*n);
      if (packet || *n < run.size() || dst.remaining() == 0) break;
      continue;
    }
    if (writers_.load() == 0 || total > 0) break;
    if (nonblock) {
      error = base::Error(EAGAIN);
      break;
    }
    waited = true;
    error = WaitReadable();
    if (!error.ok()) break;
  }
  bool more = waited && used_.load() > 0;
  mutex_.Unlock();
  if (was_full) queue_.Wake(EPOLLOUT | EPOLLWRNORM);
  if (more) queue_.Wake(EPOLLIN | EPOLLRDNORM | kWakeQuietly);  // for the next reader
  if (total > 0 || error.ok()) return total;
  return error.error();
}

base::Result<size_t> Pipe::Peek(IoDest& dst, bool nonblock) {
  size_t total = 0;
  base::Status error;
  mutex_.Lock();
  while (used_.load() == 0 && writers_.load() != 0 && error.ok()) {
    error = nonblock ? base::Error(EAGAIN) : WaitReadable();
  }
  if (error.ok() && used_.load() > 0) {
    for (uint64_t i = ring_.tail(); i != ring_.head() && dst.remaining() > 0; ++i) {
      bool broken = false;
      SlotRing::View v = ring_.Get(i, &broken);
      size_t want = std::min<size_t>(v.length, dst.remaining());
      base::Result<size_t> n = dst.Put(std::span(ring_.Page(i) + v.offset, want));
      if (!n.ok()) {
        error = n.error();
        break;
      }
      total += *n;
      if (*n < want) break;
    }
  }
  mutex_.Unlock();
  if (total > 0 || error.ok()) return total;
  return error.error();
}

void Pipe::Discard(size_t n) {
  {
    fiber::MutexLock lock(&mutex_);
    if (used_.load() == 0) return;
    Take(n);
  }
  queue_.Wake(EPOLLOUT | EPOLLWRNORM);
}

base::Result<size_t> Pipe::WaitForRoom(bool nonblock) {
  fiber::MutexLock lock(&mutex_);
  while (true) {
    if (readers_.load() == 0) return base::Error(EPIPE);
    if (!Full()) return size_t{slots_.load() - used_.load()} * kPageSize;
    if (nonblock) return base::Error(EAGAIN);
    TRY(WaitWritable());
  }
}

// The last bytes of a write go behind what the last slot holds if they fit there.
base::Result<size_t> Pipe::MergeIntoLast(IoSource& src) {
  size_t part = src.remaining() & (kPageSize - 1);
  if (part == 0 || used_.load() == 0) return size_t{0};
  bool broken = false;
  uint64_t last = ring_.head() - 1;
  SlotRing::View v = ring_.Get(last, &broken);
  uint32_t end = v.offset + v.length;
  if (broken || !(v.flags & SlotRing::kMerge) || end + part > kPageSize) return size_t{0};
  size_t n = TRY(src.Get(std::span(ring_.Page(last) + end, part)));
  v.length += static_cast<uint32_t>(n);
  ring_.Set(last, v);
  return n;
}

base::Result<size_t> Pipe::FillSlots(IoSource& src, bool packet) {
  uint64_t head = ring_.head();
  uint32_t slots = ring_.slots();
  size_t free = slots - used_.load();
  size_t to_wrap = slots - (head & (slots - 1));
  size_t room = std::min(free, to_wrap) * kPageSize;
  size_t n = TRY(src.Get(std::span(ring_.Page(head), std::min(room, src.remaining()))));
  uint32_t flags = packet ? SlotRing::kPacket : SlotRing::kMerge;
  for (size_t done = 0; done < n; done += kPageSize) {
    ring_.Set(head++, {0, static_cast<uint32_t>(std::min<size_t>(n - done, kPageSize)), flags});
  }
  ring_.SetHead(head);
  Publish();
  return n;
}

base::Result<size_t> Pipe::Write(IoSource& src, bool nonblock, bool packet, bool* broken) {
  *broken = false;
  if (src.remaining() == 0) return size_t{0};
  size_t total = 0;
  base::Status error;
  mutex_.Lock();
  bool first = true, waited = false;
  while (true) {
    if (readers_.load() == 0) {
      *broken = true;
      error = base::Error(EPIPE);
      break;
    }
    if (error = EnsureRing(); !error.ok()) break;
    base::Result<size_t> n = size_t{0};
    if (first) {
      first = false;
      n = MergeIntoLast(src);
      if (n.ok() && *n > 0) {
        total += *n;
        if (src.remaining() == 0) break;
      }
    }
    if (n.ok() && !Full()) {
      n = FillSlots(src, packet);
      if (n.ok() && *n == 0) n = base::Error(EFAULT);
      if (n.ok()) {
        total += *n;
        if (src.remaining() == 0) break;
        continue;
      }
    }
    if (!n.ok()) {
      error = n.error();
      break;
    }
    if (nonblock) {
      error = base::Error(EAGAIN);
      break;
    }
    if (total > 0) queue_.Wake(EPOLLIN | EPOLLRDNORM);
    waited = true;
    error = WaitWritable();
    if (!error.ok()) break;
  }
  bool room = waited && !Full();
  mutex_.Unlock();
  if (total > 0) queue_.Wake(EPOLLIN | EPOLLRDNORM);
  if (room) queue_.Wake(EPOLLOUT | EPOLLWRNORM | kWakeQuietly);  // for the next writer
  if (total > 0) return total;
  return error.error();
}

size_t Pipe::BytesReadable() {
  fiber::MutexLock lock(&mutex_);
  if (used_.load() == 0) return 0;
  size_t n = 0;
  bool broken = false;
  for (uint64_t i = ring_.tail(); i != ring_.head() && !broken; ++i) {
    n += ring_.Get(i, &broken).length;
  }
  return n;
}

base::Result<uint32_t> Pipe::SetSize(uint64_t size, bool privileged) {
  if (size > (uint64_t{1} << 31)) return base::Error(EINVAL);
  uint32_t pages = std::bit_ceil(
      static_cast<uint32_t>(std::max<uint64_t>((size + kPageSize - 1) / kPageSize, 1)));
  fiber::MutexLock lock(&mutex_);
  if (uint64_t{pages} * kPageSize > g_pipe_max_size.load() && pages > slots_.load() &&
      !privileged) {
    return base::Error(EPERM);
  }
  if (pages == slots_.load()) return pages * kPageSize;
  uint32_t used = used_.load();
  if (used > pages) return base::Error(EBUSY);
  if (ring_.valid()) {
    auto memory = base::RingMemory::New(SlotRing::MemorySize(pages));
    if (!memory.ok()) return base::Error(ENOMEM);
    SlotRing ring((*memory)->data(), pages);
    ring.Reset();
    bool broken = false;
    for (uint32_t i = 0; i < used; ++i) {
      SlotRing::View v = ring_.Get(ring_.tail() + i, &broken);
      std::copy_n(ring_.Page(ring_.tail() + i), kPageSize, ring.Page(i));
      ring.Set(i, v);
    }
    ring.SetHead(used);
    memory_ = *std::move(memory);
    ring_ = ring;
  }
  slots_.store(pages);
  Publish();
  queue_.WakeAll(EPOLLOUT | EPOLLWRNORM);
  return pages * kPageSize;
}

base::Status Pipe::WaitPartner(std::atomic<uint32_t>& opened) {
  uint32_t before = opened.load();
  mutex_.Unlock();
  auto reason = fiber::WaitUntil(queue_, kOpened, [&] { return opened.load() != before; },
                                 {.interruptible = true});
  mutex_.Lock();
  if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

base::Status Pipe::Open(bool read, bool write, bool fifo, bool nonblock, uint32_t* writers_seen) {
  fiber::MutexLock lock(&mutex_);
  *writers_seen = std::numeric_limits<uint32_t>::max();
  if (write && !read && fifo && nonblock && readers_.load() == 0) return base::Error(ENXIO);
  if (read) {
    reader_opens_.fetch_add(1);
    readers_.fetch_add(1);
  }
  if (write) {
    writer_opens_.fetch_add(1);
    writers_.fetch_add(1);
  }
  queue_.WakeAll(kOpened);
  if (!fifo) return base::Ok();
  base::Status status;
  if (read && !write && writers_.load() == 0) {
    if (nonblock) {
      *writers_seen = writer_opens_.load();
    } else {
      status = WaitPartner(writer_opens_);
    }
  } else if (write && !read && readers_.load() == 0) {
    status = WaitPartner(reader_opens_);
  }
  if (!status.ok()) {
    if (read && readers_.fetch_sub(1) == 1) queue_.WakeAll(EPOLLOUT | EPOLLERR);
    if (write && writers_.fetch_sub(1) == 1) queue_.WakeAll(EPOLLIN | EPOLLHUP);
  }
  return status;
}

void Pipe::Close(bool read, bool write) {
  {
    fiber::MutexLock lock(&mutex_);
    if (read) readers_.fetch_sub(1);
    if (write) writers_.fetch_sub(1);
    if (readers_.load() == 0 && writers_.load() == 0) {
      ring_ = SlotRing();
      memory_.reset();
      slots_.store(kDefaultSlots);
      Publish();
    }
  }
  if ((readers_.load() == 0) != (writers_.load() == 0)) {
    queue_.WakeAll(EPOLLIN | EPOLLOUT | EPOLLRDNORM | EPOLLWRNORM | EPOLLERR | EPOLLHUP);
  }
}

uint32_t Pipe::Readiness(bool read, bool write, uint32_t writers_seen) const {
  uint32_t mask = 0;
  if (read) {
    if (used_.load(std::memory_order_acquire) > 0) mask |= EPOLLIN | EPOLLRDNORM;
    if (writers_.load() == 0 && writer_opens_.load() != writers_seen) mask |= EPOLLHUP;
  }
  if (write) {
    if (!Full()) mask |= EPOLLOUT | EPOLLWRNORM;
    if (readers_.load() == 0) mask |= EPOLLERR;
  }
  return mask;
}

}  // namespace sentry
