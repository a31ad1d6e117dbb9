// Pipes whose bytes are moved by a lane (sentry/lanes).
#include <limits.h>
#include <sys/epoll.h>

#include <algorithm>
#include <span>

#include "sentry/fs/pipe/pipe.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

using base::SlotRing;

bool Pipe::WantContent(platform::LaneWish wish) {
  if (HasContent()) return true;
  if (!in_lane_.load()) return false;
  stream_.WantData(wish);
  return HasContent();
}

bool Pipe::WantSpace(platform::LaneWish wish) {
  if (!Full()) return true;
  if (!in_lane_.load()) return false;
  stream_.WantRoom(wish);
  return !Full();
}

// One waiter is woken, and the wish was that of all: another one's is left for the next bytes.
void Pipe::LaneWritten() {
  queue_.Wake(EPOLLIN | EPOLLRDNORM);
  if (waiting_readers_.load() <= 1) return;
  stream_.WantData();
  if (HasContent()) queue_.Wake(EPOLLIN | EPOLLRDNORM | kWakeQuietly);
}

void Pipe::LaneRead() {
  queue_.Wake(EPOLLOUT | EPOLLWRNORM);
  if (waiting_writers_.load() <= 1) return;
  stream_.WantRoom();
  if (!Full()) queue_.Wake(EPOLLOUT | EPOLLWRNORM | kWakeQuietly);
}

base::Result<size_t> Pipe::PeekLane(IoDest& dst) {
  ByteStream::ReaderTurn turn(stream_);
  const uint64_t from = stream_.read();
  return stream_.Copy(from, std::min(stream_.UsedFrom(from), dst.remaining()), dst);
}

base::Result<size_t> Pipe::ReadLane(IoDest& dst) {
  ByteStream::ReaderTurn turn(stream_);
  const uint64_t from = stream_.read();
  const size_t want = std::min(stream_.UsedFrom(from), dst.remaining());
  size_t n = TRY(stream_.Copy(from, want, dst));
  if (n < want) {
    // As of slots; how the bytes lie in pages nobody knows.
    n = n / kPageSize * kPageSize;
    if (n == 0) return base::Error(EFAULT);
  }
  stream_.ConsumedTo(from + n);
  stream_.Rewind();
  return n;
}

void Pipe::DiscardLane(size_t n) {
  ByteStream::ReaderTurn turn(stream_);
  const uint64_t from = stream_.read();
  stream_.ConsumedTo(from + std::min(n, stream_.UsedFrom(from)));
  stream_.Rewind();
}

// Up to PIPE_BUF bytes go in at once or not at all; of more, a page at least if not all.
base::Result<size_t> Pipe::WriteLane(IoSource& src) {
  ByteStream::WriterTurn turn(stream_);
  const size_t want = src.remaining();
  auto fits = [&](size_t room) { return want <= room || (want > PIPE_BUF && room >= kPageSize); };
  // Whoever finds none is told when there is room, also by an edge.
  if (!fits(stream_.Room())) stream_.WantRoom();
  const size_t room = stream_.Room();
  if (!fits(room)) return size_t{0};
  const size_t n = TRY(stream_.Fill(src, std::min(want, room)));
  if (n == 0) return base::Error(EFAULT);
  stream_.Produced(n);
  return n;
}

bool Pipe::MoveToLane(LaneArena& arena) {
  if (size() > ByteStream::kSize) return false;
  const uint32_t used = used_.load();
  const uint64_t tail = used > 0 ? ring_.tail() : 0;
  bool broken = false;
  for (uint32_t i = 0; i < used; ++i) {
    if (ring_.Get(tail + i, &broken).flags & SlotRing::kPacket) return false;
  }
  if (broken || !stream_.EnterLane(arena, *this, *this)) return false;
  stream_.set_limit(size());
  for (uint32_t i = 0; i < used; ++i) {
    ByteStream::WriterTurn turn(stream_);
    const SlotRing::View v = ring_.Get(tail + i, &broken);
    BufferSource src(std::span<const std::byte>(ring_.Page(tail + i) + v.offset, v.length));
    if (auto n = stream_.Fill(src, v.length); n.ok()) stream_.Produced(*n);
  }
  in_lane_.store(true);
  ring_ = SlotRing();
  memory_.reset();
  Publish();
  return true;
}

base::Status Pipe::MoveToSlots() {
  stream_.OpenLane(false);
  without_lanes_ = true;
  TRY(EnsureRing());
  ByteStream::WriterTurn write(stream_);
  ByteStream::ReaderTurn read(stream_);
  uint64_t from = stream_.read(), head = 0;
  size_t left = std::min<size_t>(stream_.UsedFrom(from), size());
  for (; left > 0; ++head) {
    const size_t n = std::min<size_t>(left, kPageSize);
    BufferDest dst(std::span(ring_.Page(head), n));
    TRY(stream_.Copy(from, n, dst));
    ring_.Set(head, {0, static_cast<uint32_t>(n), SlotRing::kMerge});
    from += n;
    left -= n;
  }
  ring_.SetHead(head);
  Publish();
  in_lane_.store(false);
  return base::Ok();
}

uint64_t Pipe::EnterLane(LaneArena& arena) {
  fiber::MutexLock lock(&mutex_);
  if (without_lanes_ || readers_.load() == 0 || writers_.load() == 0) return 0;
  if (in_lane_.load() ? !stream_.InLaneOf(arena) : !MoveToLane(arena)) return 0;
  stream_.OpenLane(true);
  return stream_.LaneName();
}

void Pipe::SetPatience(const FileDescription& file, bool reader, platform::LanePatience patience) {
  fiber::MutexLock lock(&mutex_);
  End& end = reader ? reader_end_ : writer_end_;
  if (end.file != nullptr && end.file != &file) end.shared = true;
  end.file = &file;
  stream_.SetPatience(reader, end.shared ? platform::kAsks : patience);
}

void Pipe::LeaveLanes() {
  fiber::MutexLock lock(&mutex_);
  without_lanes_ = true;
  stream_.OpenLane(false);
}

}  // namespace sentry
