#include "sentry/fs/pipe/pipe.h"

#include <sys/epoll.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

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

base::Status Pipe::WaitReadable(VainRounds& rounds) {
  mutex_.Unlock();
  waiting_readers_.fetch_add(1);
  auto reason = fiber::WaitUntil(
      queue_, EPOLLIN | EPOLLHUP,
      [this] { return writers_.load() == 0 || WantContent(platform::kWish); },
      {.interruptible = true}, /*exclusive=*/true);
  waiting_readers_.fetch_sub(1);
  const bool woken = reason == fiber::WakeReason::kWoken && rounds.Note();
  mutex_.Lock();
  if (!woken) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

base::Status Pipe::WaitWritable(VainRounds& rounds) {
  mutex_.Unlock();
  waiting_writers_.fetch_add(1);
  auto reason = fiber::WaitUntil(
      queue_, EPOLLOUT | EPOLLERR,
      [this] { return readers_.load() == 0 || WantSpace(platform::kWish); },
      {.interruptible = true}, /*exclusive=*/true);
  waiting_writers_.fetch_sub(1);
  const bool woken = reason == fiber::WakeReason::kWoken && rounds.Note();
  mutex_.Lock();
  if (!woken) return base::Error(base::kERESTARTSYS);
  return base::Ok();
}

base::Result<size_t> Pipe::ReadStep(IoDest& dst, bool* last) {
  if (in_lane_.load()) {
    *last = true;
    return ReadLane(dst);
  }
  bool packet;
  std::span<std::byte> run = NextRun(ring_.tail(), dst.remaining(), &packet);
  size_t n = TRY(dst.Put(run));
  *last = packet || n < run.size();
  if (n < run.size()) {
    // Of a page that cannot be stored as a whole nothing is taken.
    bool broken = false;
    const size_t first = std::min<size_t>(ring_.Get(ring_.tail(), &broken).length, run.size());
    n = n < first ? 0 : first + (n - first) / kPageSize * kPageSize;
    if (n == 0) return base::Error(EFAULT);
  }
  if (n > 0 || run.empty()) Take(n);
  return n;
}

base::Result<size_t> Pipe::Read(IoDest& dst, bool nonblock) {
  if (dst.remaining() == 0) return size_t{0};
  size_t total = 0;
  base::Status error;
  bool was_full = false, waited = false;
  VainRounds rounds;
  mutex_.Lock();
  while (true) {
    if (HasContent()) {
      was_full = was_full || Full();
      bool last = false;
      base::Result<size_t> n = ReadStep(dst, &last);
      if (!n.ok()) error = n.error();
      if (n.ok()) total += *n;
      // Of a lane, others may have taken what was there.
      const bool taken = n.ok() && in_lane_.load() && total == 0;
      if (!taken && (!n.ok() || last || dst.remaining() == 0)) break;
      if (!taken) continue;
    } else if (writers_.load() == 0 || total > 0) {
      break;
    }
    if (nonblock) {
      error = base::Error(EAGAIN);
      break;
    }
    waited = true;
    error = WaitReadable(rounds);
    if (!error.ok()) break;
  }
  bool more = waited && HasContent();
  mutex_.Unlock();
  if (was_full) queue_.Wake(EPOLLOUT | EPOLLWRNORM);
  if (more) queue_.Wake(EPOLLIN | EPOLLRDNORM | kWakeQuietly);  // for the next reader
  if (total > 0 || error.ok()) return total;
  return error.error();
}

base::Result<size_t> Pipe::PeekSlots(IoDest& dst) {
  size_t total = 0;
  for (uint64_t i = ring_.tail(); i != ring_.head() && dst.remaining() > 0; ++i) {
    bool broken = false;
    SlotRing::View v = ring_.Get(i, &broken);
    size_t want = std::min<size_t>(v.length, dst.remaining());
    base::Result<size_t> n = dst.Put(std::span(ring_.Page(i) + v.offset, want));
    if (!n.ok()) return total > 0 ? base::Result<size_t>(total) : n;
    total += *n;
    if (*n < want) break;
  }
  return total;
}

base::Result<size_t> Pipe::Peek(IoDest& dst, bool nonblock) {
  VainRounds rounds;
  fiber::MutexLock lock(&mutex_);
  while (!HasContent() && writers_.load() != 0) {
    if (nonblock) return base::Error(EAGAIN);
    TRY(WaitReadable(rounds));
  }
  if (!HasContent()) return size_t{0};
  return in_lane_.load() ? PeekLane(dst) : PeekSlots(dst);
}

void Pipe::Discard(size_t n) {
  {
    fiber::MutexLock lock(&mutex_);
    if (!HasContent()) return;
    in_lane_.load() ? DiscardLane(n) : Take(n);
  }
  queue_.Wake(EPOLLOUT | EPOLLWRNORM);
}

base::Result<size_t> Pipe::WaitForRoom(bool nonblock) {
  VainRounds rounds;
  fiber::MutexLock lock(&mutex_);
  while (true) {
    if (readers_.load() == 0) return base::Error(EPIPE);
    if (!Full() && in_lane_.load()) {
      return std::max<size_t>(stream_.Room() / kPageSize, 1) * kPageSize;
    }
    if (!Full()) return size_t{slots_.load() - used_.load()} * kPageSize;
    if (nonblock) return base::Error(EAGAIN);
    TRY(WaitWritable(rounds));
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

base::Result<size_t> Pipe::WriteStep(IoSource& src, bool packet, bool first) {
  if (packet && in_lane_.load()) TRY(MoveToSlots());
  if (in_lane_.load()) return WriteLane(src);
  TRY(EnsureRing());
  size_t merged = 0;
  if (first) merged = TRY(MergeIntoLast(src));
  if (merged > 0 || Full()) return merged;
  const size_t n = TRY(FillSlots(src, packet));
  if (n == 0) return base::Error(EFAULT);
  return n;
}

base::Result<size_t> Pipe::Write(IoSource& src, bool nonblock, bool packet, bool* broken) {
  *broken = false;
  if (src.remaining() == 0) return size_t{0};
  size_t total = 0;
  base::Status error;
  mutex_.Lock();
  bool first = true, waited = false;
  VainRounds rounds;
  while (true) {
    if (readers_.load() == 0) {
      *broken = true;
      error = base::Error(EPIPE);
      break;
    }
    base::Result<size_t> n = WriteStep(src, packet, std::exchange(first, false));
    if (!n.ok()) {
      error = n.error();
      break;
    }
    total += *n;
    if (src.remaining() == 0) break;
    if (*n > 0) {
      rounds = VainRounds();
      continue;
    }
    if (nonblock) {
      error = base::Error(EAGAIN);
      break;
    }
    if (total > 0) queue_.Wake(EPOLLIN | EPOLLRDNORM);
    waited = true;
    error = WaitWritable(rounds);
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
  if (in_lane_.load()) return stream_.Used();
  if (used_.load() == 0) return 0;
  size_t n = 0;
  bool broken = false;
  for (uint64_t i = ring_.tail(); i != ring_.head() && !broken; ++i) {
    n += ring_.Get(i, &broken).length;
  }
  return n;
}

base::Status Pipe::ResizeRing(uint32_t pages) {
  const uint32_t used = used_.load();
  if (used > pages) return base::Error(EBUSY);
  if (!ring_.valid()) return base::Ok();
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
  return base::Ok();
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
  if (in_lane_.load() && uint64_t{pages} * kPageSize > ByteStream::kSize) TRY(MoveToSlots());
  if (in_lane_.load()) {
    if (stream_.Used() > uint64_t{pages} * kPageSize) return base::Error(EBUSY);
    stream_.set_limit(size_t{pages} * kPageSize);
  } else {
    TRY(ResizeRing(pages));
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
    // Only the sentry knows of ends.
    if (readers_.load() == 0 || writers_.load() == 0) stream_.OpenLane(false);
  }
  if ((readers_.load() == 0) != (writers_.load() == 0)) {
    queue_.WakeAll(EPOLLIN | EPOLLOUT | EPOLLRDNORM | EPOLLWRNORM | EPOLLERR | EPOLLHUP);
  }
}

uint32_t Pipe::Readiness(bool read, bool write, uint32_t writers_seen, platform::LaneWish wish) {
  uint32_t mask = 0;
  if (read) {
    if (WantContent(wish)) mask |= EPOLLIN | EPOLLRDNORM;
    if (writers_.load() == 0 && writer_opens_.load() != writers_seen) mask |= EPOLLHUP;
  }
  if (write) {
    if (WantSpace(wish)) mask |= EPOLLOUT | EPOLLWRNORM;
    if (readers_.load() == 0) mask |= EPOLLERR;
  }
  return mask;
}

}  // namespace sentry
