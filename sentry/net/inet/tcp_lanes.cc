// TCP connections whose bytes are moved by lanes (sentry/lanes).
#include <sys/epoll.h>

#include "sentry/net/inet/tcp.h"

namespace sentry {

void TcpStream::LaneWritten() {
  connection->sides[static_cast<size_t>(side)].end->SentSome(*connection, side, /*urgent=*/false);
}

void TcpStream::LaneRead() {
  const int reader = connection->PeerOf(side);
  // Who has read has taken the wish back, though there may not be room enough yet.
  bytes.WantRoom();
  connection->sides[static_cast<size_t>(reader)].end->TellWriter(*connection, reader);
}

void TcpEndpoint::SetPatience(platform::LanePatience reader, platform::LanePatience writer) {
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return;
  c->sides[static_cast<size_t>(c->PeerOf(side))].out.bytes.SetPatience(/*reader=*/true, reader);
  c->sides[static_cast<size_t>(side)].out.bytes.SetPatience(/*reader=*/false, writer);
}

void TcpEndpoint::CloseLanes() {
  absl::MutexLock lock(&connection_mutex_);
  if (connection_ != nullptr) CloseLanes(*connection_);
}

void TcpEndpoint::LeaveLanes() {
  absl::MutexLock lock(&g_tcp_mutex);
  without_lanes_ = true;
  CloseLanes();
}

void TcpEndpoint::CloseLanes(TcpConnection& c) {
  for (TcpConnection::Side& side : c.sides) side.out.bytes.OpenLane(false);
}

bool TcpEndpoint::MayOpenLane(TcpConnection& c, int side) {
  if (c.self) return false;
  for (TcpConnection::Side& s : c.sides) {
    const TcpEndpoint& end = *s.end;
    if (s.gone.load() || end.state() != TCP_ESTABLISHED || end.shutdown_.load() != 0 ||
        end.error_.load() != 0 || end.deferred_.load() || end.without_lanes_.load() ||
        end.options().peek_offset.load() >= 0) {
      return false;
    }
  }
  TcpEndpoint& reader = *c.sides[static_cast<size_t>(c.PeerOf(side))].end;
  return reader.options().receive_low.load() <= 1 &&
         !c.sides[static_cast<size_t>(side)].out.urgent.load();
}

uint64_t TcpEndpoint::EnterLane(TcpConnection& c, int side, LaneArena& arena) {
  TcpStream& stream = c.sides[static_cast<size_t>(side)].out;
  // It has, and nobody is to look again.
  if (stream.bytes.lane_open()) return stream.bytes.InLaneOf(arena) ? stream.bytes.LaneName() : 0;
  bool wants_room, empty;
  {
    fiber::MutexLock write(&stream.write_mutex);
    fiber::MutexLock read(&stream.read_mutex);
    TcpEndpoint& writer = *c.sides[static_cast<size_t>(side)].end;
    if (!stream.bytes.in_lane() && writer.tcp_options_.cork.load() != 0) {
      stream.bytes.KeepTurn(true);
    }
    wants_room = stream.bytes.wants_room();
    empty = stream.bytes.Used() == 0;
    if (!stream.bytes.EnterLane(arena, c, stream)) return 0;
  }
  {
    absl::MutexLock lock(&g_tcp_mutex);
    if (!MayOpenLane(c, side)) return 0;
    stream.bytes.OpenLane(true);
  }
  // Who has begun to wait before it was in the lane looks again. Where nobody can have, there is no
  // edge.
  if (wants_room) {
    c.sides[static_cast<size_t>(side)].end->wait_queue().Wake(EPOLLOUT | EPOLLWRNORM);
  }
  if (empty) {
    c.sides[static_cast<size_t>(c.PeerOf(side))].end->wait_queue().Wake(EPOLLIN | EPOLLRDNORM);
  }
  return stream.bytes.LaneName();
}

bool TcpEndpoint::HasOpenLanes() {
  int side;
  Conn c = connection(&side);
  return c != nullptr && c->sides[0].out.bytes.lane_open() && c->sides[1].out.bytes.lane_open();
}

bool TcpEndpoint::IsInLanesOf(const LaneArena& arena) {
  int side;
  Conn c = connection(&side);
  return c != nullptr && c->sides[0].out.bytes.InLaneOf(arena) &&
         c->sides[1].out.bytes.InLaneOf(arena);
}

bool TcpEndpoint::MeetsEqual(uint64_t creds) {
  constexpr int kMeetings = 6;
  user_.store(creds);
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return true;
  return c->sides[static_cast<size_t>(c->PeerOf(side))].end->user_.load() == creds ||
         meetings_.fetch_add(1) >= kMeetings;
}

FileDescription::LaneNames TcpEndpoint::EnterLanes(LaneArena& arena) {
  int side;
  Conn c = connection(&side);
  if (c == nullptr || c->self) return {};
  {
    absl::MutexLock lock(&g_tcp_mutex);
    if (!MayOpenLane(*c, side) || !MayOpenLane(*c, c->PeerOf(side))) return {};
  }
  return {.in = EnterLane(*c, c->PeerOf(side), arena), .out = EnterLane(*c, side, arena)};
}

}  // namespace sentry
