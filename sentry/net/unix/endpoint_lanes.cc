// AF_UNIX streams whose bytes are moved by lanes (sentry/lanes).
#include <sys/epoll.h>

#include <algorithm>

#include "sentry/net/unix/endpoint.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;

}  // namespace

bool UnixEndpoint::HasBytes(platform::LaneWish wish) {
  if (!plain_.load()) return false;
  if (bytes_.Used() > 0) return true;
  bytes_.WantData(wish);
  return bytes_.Used() > 0;
}

bool UnixEndpoint::WritableTo(UnixEndpoint& to, platform::LaneWish wish) {
  if (!to.plain_.load()) return Writable();
  if (to.bytes_.Writable()) return true;
  to.bytes_.WantRoom(wish);
  return to.bytes_.Writable();
}

void UnixEndpoint::LaneWritten() { queue_.Wake(kIn); }

void UnixEndpoint::LaneRead() {
  base::Ref<UnixEndpoint> from = peer();
  // Who has read has taken the wish back, though there may not be room enough yet.
  if (from != nullptr && from->WritableTo(*this, platform::kWish)) from->queue_.Wake(kOut);
}

Result<size_t> UnixEndpoint::FillPlain(IoSource& src, size_t keep) {
  ByteStream::WriterTurn turn(bytes_);
  // Whoever finds none is told when there is room, also by an edge.
  if (bytes_.Room() == 0) bytes_.WantRoom();
  const size_t room = bytes_.Room();
  if (room == 0) return size_t{0};
  const size_t n = TRY(bytes_.Fill(src, std::min(room, src.remaining() - keep)));
  if (n == 0) return Error(EFAULT);
  bytes_.Produced(n);
  return n;
}

Result<size_t> UnixEndpoint::TakePlain(IoDest& dst, size_t skip, bool peek) {
  size_t n;
  {
    ByteStream::ReaderTurn turn(bytes_);
    const uint64_t from = bytes_.read() + skip;
    const size_t want = std::min(bytes_.UsedFrom(from), dst.remaining());
    n = TRY(bytes_.Copy(from, want, dst));
    if (n < want) return Error(EFAULT);
    if (peek || n == 0) return n;
    bytes_.ConsumedTo(from + n);
    bytes_.Rewind();
  }
  base::Ref<UnixEndpoint> sender = peer();
  if (sender != nullptr && bytes_.Writable()) sender->queue_.Wake(kOut);
  return n;
}

bool UnixEndpoint::MakePlain(LaneArena& arena) {
  base::Ref<UnixEndpoint> from = peer();
  if (from == nullptr) return false;
  absl::MutexLock lock(&mutex_);
  for (const UnixRecord& r : records_) {
    if (!r.files.empty() || r.mark || r.from != from) return false;
  }
  if (!bytes_.EnterLane(arena, *this, *this)) return false;
  bytes_.set_limit(std::min<size_t>(static_cast<size_t>(from->send_buffer()), ByteStream::kSize));
  for (const UnixRecord& r : records_) from->charged_.fetch_sub(r.charge);
  records_.clear();
  queued_.store(0);
  plain_.store(true);
  return true;
}

void UnixEndpoint::MakeRecords(UnixEndpoint& from) {
  if (!plain_.load()) return;
  bytes_.OpenLane(false);
  ByteStream::WriterTurn write(bytes_);
  ByteStream::ReaderTurn read(bytes_);
  const uint64_t at = bytes_.read();
  const size_t used = bytes_.UsedFrom(at);
  bytes_.ConsumedTo(at);
  bytes_.set_limit(ByteStream::kSize);
  absl::MutexLock lock(&mutex_);
  plain_.store(false);
  queued_.store(used);
  if (used == 0) return;
  UnixRecord record;
  record.length = record.charge = used;
  record.creds = SenderCreds();  // nobody's: Linux has not looked at the sender either
  record.from = base::Ref<UnixEndpoint>(&from);
  from.charged_.fetch_add(used);
  records_.push_back(std::move(record));
}

bool UnixEndpoint::MayHaveLanes() {
  auto may = [](UnixEndpoint& end) {
    absl::MutexLock lock(&end.mutex_);
    return end.state_ == State::kConnected && end.shutdown_ == 0 && end.error_ == 0 && !end.dead_ &&
           !end.embryo_ && !end.without_lanes_.load();
  };
  base::Ref<UnixEndpoint> other = peer();
  return stream() && other != nullptr && may(*this) && may(*other);
}

uint64_t UnixEndpoint::EnterLane(LaneArena& arena) {
  fiber::MutexLock io(&io_mutex_);
  if (!MayHaveLanes()) return 0;
  if (plain_.load() ? !bytes_.InLaneOf(arena) : !MakePlain(arena)) return 0;
  bytes_.OpenLane(true);
  // Who has changed one of the ends since closes the lane, or is seen here.
  if (!MayHaveLanes()) bytes_.OpenLane(false);
  return bytes_.LaneName();
}

FileDescription::LaneNames UnixEndpoint::EnterLanes(LaneArena& arena) {
  base::Ref<UnixEndpoint> to = peer();
  if (!MayHaveLanes()) return {};
  return {.in = EnterLane(arena), .out = to->EnterLane(arena)};
}

bool UnixEndpoint::HasOpenLanes() const {
  base::Ref<UnixEndpoint> to = peer();
  return to != nullptr && bytes_.lane_open() && to->bytes_.lane_open();
}

void UnixEndpoint::SetPatience(platform::LanePatience reader, platform::LanePatience writer) {
  bytes_.SetPatience(/*reader=*/true, reader);
  if (base::Ref<UnixEndpoint> to = peer()) to->bytes_.SetPatience(/*reader=*/false, writer);
}

void UnixEndpoint::CloseLanes() {
  base::Ref<UnixEndpoint> other = peer();
  bytes_.OpenLane(false);
  if (other != nullptr) other->bytes_.OpenLane(false);
}

void UnixEndpoint::LeaveLanes() {
  without_lanes_.store(true);
  CloseLanes();
  base::Ref<UnixEndpoint> other = peer();
  if (other == nullptr || !stream()) return;
  {
    fiber::MutexLock io(&io_mutex_);
    MakeRecords(*other);
  }
  fiber::MutexLock io(&other->io_mutex_);
  other->MakeRecords(*this);
}

void UnixEndpoint::set_send_buffer(int bytes) {
  send_buffer_.store(bytes);
  base::Ref<UnixEndpoint> to = peer();
  if (to == nullptr || !to->plain_.load()) return;
  fiber::MutexLock io(&to->io_mutex_);
  if (!to->plain_.load()) return;
  to->bytes_.set_limit(std::min<size_t>(static_cast<size_t>(bytes), ByteStream::kSize));
}

}  // namespace sentry
