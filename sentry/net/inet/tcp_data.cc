// How bytes move between the ends of a TCP connection: net/ipv4/tcp.c.
#include <sys/epoll.h>

#include <algorithm>
#include <limits>

#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/net/inet/tcp.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM;

Error Interrupted(int64_t deadline_ns) {
  return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
}

// What loopback's largest segment carries.
constexpr size_t kSegment = 32741;

// How many of `bytes` that were not sent yet stay back: tcp_nagle_test(). Under MSG_MORE alone
// the answer to a segment takes the rest along.
size_t HeldBack(size_t bytes, bool cork, bool more) {
  if (cork) return bytes % kSegment;
  return more && bytes < kSegment ? bytes : 0;
}

// Keeps the last byte that went through it: the urgent one.
class LastByte : public IoSource {
 public:
  explicit LastByte(IoSource& src) : src_(src) {}
  size_t remaining() const override { return src_.remaining(); }
  Result<size_t> Get(std::span<std::byte> dst) override {
    size_t n = TRY(src_.Get(dst));
    if (n > 0) last_ = dst[n - 1];
    return n;
  }
  std::byte last() const { return last_; }

 private:
  IoSource& src_;
  std::byte last_{};
};

}  // namespace

TcpEndpoint::Conn TcpEndpoint::connection(int* side) {
  absl::MutexLock lock(&connection_mutex_);
  *side = side_;
  return connection_;
}

// What is on its way is bounded by the buffers of both ends, where the application has set them.
void TcpEndpoint::UpdateLimits() {
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return;
  for (int i = 0; i < (c->self ? 1 : 2); ++i) {
    TcpStream& out = c->sides[static_cast<size_t>(i)].out;
    const SocketOptions& sender = c->sides[static_cast<size_t>(i)].end->options();
    const SocketOptions& receiver = c->sides[static_cast<size_t>(c->PeerOf(i))].end->options();
    size_t most = ByteStream::kSize;
    size_t window = receiver.receive_buffer_locked.load()
                        ? static_cast<size_t>(receiver.receive_buffer.load())
                        : most;
    size_t send =
        sender.send_buffer_locked.load() ? static_cast<size_t>(sender.send_buffer.load()) : most;
    out.window = std::min(window, most);
    out.bytes.set_limit(std::min(window + send, most));
    if (receiver.receive_low.load() > 1) out.bytes.OpenLane(false);
    if (out.bytes.Writable() && out.bytes.TakeWantRoom()) {
      c->sides[static_cast<size_t>(i)].end->wait_queue().Wake(kOut);
    }
  }
}

// --- sending ---

Status TcpEndpoint::CheckSend() {
  if (int error = TakeError()) return Error(error);
  int now = state();
  if ((shutdown_.load() & kSendShut) != 0 || now == TCP_CLOSE || now == TCP_LISTEN) {
    return Error(EPIPE);
  }
  return base::Ok();
}

Result<size_t> TcpEndpoint::SendSome(TcpConnection& c, int side, IoSource& src, int flags) {
  TcpStream& out = c.sides[static_cast<size_t>(side)].out;
  const bool cork = tcp_options_.cork.load() != 0;
  bool urgent = (flags & MSG_OOB) != 0;
  size_t n, given;  // by this call, and to the reader
  {
    fiber::MutexLock lock(&out.write_mutex);
    ByteStream::WriterTurn turn(out.bytes);
    TRY(out.bytes.Ensure());
    size_t room = std::min(out.bytes.Room(), src.remaining());
    LastByte last(src);
    n = room > 0 ? TRY(out.bytes.Fill(last, room)) : 0;
    if (n == 0 && room > 0) return Error(EFAULT);
    if (urgent && src.remaining() == 0) {
      // Who reads is to stop before it.
      out.bytes.OpenLane(false);
      absl::MutexLock mark(&out.urgent_mutex);
      out.urgent_at = out.bytes.written() + out.bytes.held() + n - 1;
      out.urgent_byte = last.last();
      out.urgent_unread = true;
      out.urgent.store(true, std::memory_order_release);
    } else {
      urgent = false;
    }
    const size_t all = out.bytes.held() + n;
    // Who waits for room, or has sent an urgent byte, holds nothing back.
    const bool push = urgent || src.remaining() > 0;
    const size_t held = push ? 0 : HeldBack(all, cork, (flags & MSG_MORE) != 0);
    given = all - held;
    out.Give(given, held, cork);
  }
  if (given > 0) SentSome(c, side, urgent);
  return n;
}

void TcpEndpoint::Count(TcpStream& stream) {
  const uint64_t now = stream.bytes.written();
  uint64_t before = stream.counted.load(std::memory_order_relaxed);
  while (before < now && !stream.counted.compare_exchange_weak(before, now)) {
  }
  if (before >= now) return;
  NetCounters& counters = stack().counters;
  counters.packets.fetch_add(1, std::memory_order_relaxed);
  counters.bytes.fetch_add(now - before, std::memory_order_relaxed);
}

void TcpEndpoint::SentSome(TcpConnection& c, int side, bool urgent) {
  TcpConnection::Side& theirs = c.sides[static_cast<size_t>(c.PeerOf(side))];
  TcpStream& out = c.sides[static_cast<size_t>(side)].out;
  TcpEndpoint& peer = *theirs.end;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  Count(out);
  if (theirs.gone.load(std::memory_order_seq_cst)) {
    // It answers with a reset; what was sent counts as sent.
    absl::MutexLock lock(&g_tcp_mutex);
    ReceiveReset();
    return;
  }
  if (peer.deferred_.load(std::memory_order_relaxed)) peer.EndDefer();
  int low = peer.options().receive_low.load(std::memory_order_relaxed);
  if (urgent) {
    peer.wait_queue().Wake(kIn | EPOLLPRI);
    peer.SendSigurg();
  } else if (low <= 1 || out.bytes.Used() >= static_cast<size_t>(low) || out.bytes.Room() == 0) {
    peer.wait_queue().Wake(kIn);
  }
}

Result<size_t> TcpEndpoint::Send(IoSource& src, const SendArgs& args, int64_t deadline_ns) {
  size_t total = 0;
  VainRounds vain;
  if (state() == TCP_SYN_SENT) {
    TRY(WaitForConnect(args.nonblock, deadline_ns, EAGAIN));
  }
  int side;
  Conn c = connection(&side);
  do {
    Status status = CheckSend();
    if (status.ok() && c == nullptr) status = Error(EPIPE);
    if (status.ok() && src.remaining() == 0) break;
    Result<size_t> n = status.ok() ? SendSome(*c, side, src, args.flags) : status.error();
    if (!n.ok()) return total > 0 ? Result<size_t>(total) : n;
    total += *n;
    if (*n > 0) continue;
    if (!vain.Note()) return total > 0 ? Result<size_t>(total) : Interrupted(deadline_ns);
    TcpStream& out = c->sides[static_cast<size_t>(side)].out;
    out.bytes.WantRoom();
    if (out.bytes.Room() > 0) continue;  // made meanwhile
    if (args.nonblock) return total > 0 ? Result<size_t>(total) : Error(EAGAIN);
    auto ready = [&] {
      if (out.bytes.Writable() || error_.load() != 0 || (shutdown_.load() & kSendShut)) return true;
      out.bytes.WantRoom();
      return out.bytes.Writable();
    };
    auto reason = fiber::WaitUntil(wait_queue(), EPOLLOUT, ready,
                                   {.interruptible = true, .deadline_ns = deadline_ns});
    if (reason == fiber::WakeReason::kTimeout) {
      return total > 0 ? Result<size_t>(total) : Error(EAGAIN);
    }
    if (reason == fiber::WakeReason::kInterrupted) {
      return total > 0 ? Result<size_t>(total) : Interrupted(deadline_ns);
    }
  } while (src.remaining() > 0);
  return total;
}

// --- receiving ---

void TcpEndpoint::TellWriter(TcpConnection& c, int side) {
  TcpStream& stream = *in(c, side);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!stream.bytes.wants_room() || !stream.bytes.Writable()) return;
  if (!stream.bytes.TakeWantRoom()) return;
  c.sides[static_cast<size_t>(c.PeerOf(side))].end->wait_queue().Wake(kOut);
}

size_t TcpEndpoint::UpToMark(TcpStream& stream, Reading* r) {
  auto available = [&] { return stream.bytes.UsedFrom(r->position); };
  if (available() == 0 || !stream.urgent.load(std::memory_order_acquire)) return available();
  bool in_line = options().flag(SO_OOBINLINE);
  absl::MutexLock lock(&stream.urgent_mutex);
  size_t n = available();
  if (stream.urgent_at > r->position) {
    return static_cast<size_t>(std::min<uint64_t>(n, stream.urgent_at - r->position));
  }
  if (stream.urgent_at < r->position) return n;
  if (r->total > 0) {
    r->at_mark = true;
    return 0;
  }
  if (!r->peek) {
    stream.urgent.store(false);
    stream.urgent_unread = false;
  }
  if (in_line) return n;
  ++r->position;
  if (!r->peek) {
    stream.bytes.ConsumedTo(r->position);
  }
  return n - 1;
}

Result<size_t> TcpEndpoint::ReceiveSome(TcpConnection& c, int side, IoDest& dst, Reading* r) {
  TcpStream& stream = *in(c, side);
  fiber::MutexLock lock(&stream.read_mutex);
  ByteStream::ReaderTurn turn(stream.bytes);
  uint64_t read = stream.bytes.read();
  // Another reader may have taken what was looked at.
  r->position = r->peek ? std::max(r->position, read) : read;
  size_t n = std::min(UpToMark(stream, r), r->left);
  if (n == 0) return n;
  if (!r->discard) {
    if (TRY(stream.bytes.Copy(r->position, n, dst)) < n) return Error(EFAULT);
  }
  r->position += n;
  r->total += n;
  r->left -= n;
  if (r->peek) return n;
  stream.bytes.ConsumedTo(r->position);
  // Back to the ring's beginning while it is empty: few pages are touched, and they stay cached.
  if (stream.bytes.Used() == 0 && stream.write_mutex.TryLock()) {
    stream.bytes.Rewind();
    stream.write_mutex.Unlock();
  }
  return n;
}

Result<size_t> TcpEndpoint::ReceiveNothing() {
  if (done_.load()) return size_t{0};
  if (int error = TakeError()) return Error(error);
  if (shutdown_.load() & kReceiveShut) return size_t{0};
  return Error(ENOTCONN);
}

Status TcpEndpoint::WaitReceive(TcpStream& stream, const Reading& r, const RecvArgs& args,
                                int64_t deadline_ns) {
  if (args.nonblock) return Error(EAGAIN);
  auto ready = [&] {
    if (stream.bytes.UsedFrom(r.position) > 0 || error_.load() != 0 ||
        (shutdown_.load() & kReceiveShut) != 0) {
      return true;
    }
    stream.bytes.WantData();
    return stream.bytes.UsedFrom(r.position) > 0;
  };
  auto reason = fiber::WaitUntil(wait_queue(), EPOLLIN, ready,
                                 {.interruptible = true, .deadline_ns = deadline_ns});
  if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
  if (reason == fiber::WakeReason::kInterrupted) return Interrupted(deadline_ns);
  return base::Ok();
}

// tcp_recvmsg_locked().
Result<size_t> TcpEndpoint::Receive(IoDest& dst, RecvArgs* args, int64_t deadline_ns) {
  if (args->flags & MSG_ERRQUEUE) return TakeZeroCopy(args);
  if (state() == TCP_LISTEN) return Error(ENOTCONN);
  if (args->flags & MSG_OOB) return ReceiveUrgent(dst, args);
  if (state() == TCP_SYN_SENT) TRY(WaitForConnect(args->nonblock, deadline_ns, EAGAIN));
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return ReceiveNothing();
  TcpStream& stream = *in(*c, side);
  Reading r{.position = stream.bytes.read() + options().PeekFrom(args->flags),
            .left = dst.remaining(),
            .peek = (args->flags & MSG_PEEK) != 0,
            .discard = (args->flags & MSG_TRUNC) != 0};
  size_t target = r.left;
  if (!(args->flags & MSG_WAITALL)) {
    target = std::min<size_t>(target, static_cast<size_t>(options().receive_low.load()));
  }
  target = std::max<size_t>(target, 1);  // sock_rcvlowat(): a receive of nothing waits as well
  Status status;
  VainRounds vain;
  do {
    bool over = state() == TCP_CLOSE || error_.load() != 0 || (shutdown_.load() & kReceiveShut);
    Result<size_t> n = ReceiveSome(*c, side, dst, &r);
    if (!n.ok()) {
      status = n.error();
      break;
    }
    if (*n > 0) {
      if (!r.peek) TellWriter(*c, side);
      continue;
    }
    if (r.at_mark || r.total >= target || (r.left == 0 && stream.bytes.Used() > 0)) break;
    if (over) {
      if (r.total > 0) break;
      const Result<size_t> nothing = ReceiveNothing();
      if (nothing.ok()) TellUnread(stream, args);
      return nothing;
    }
    status = vain.Note() ? WaitReceive(stream, r, *args, deadline_ns) : Interrupted(deadline_ns);
    if (!status.ok()) break;
  } while (r.left > 0 || r.total == 0);
  if (r.total == 0 && !status.ok()) return status.error();
  options().NoteReceived(args->flags, r.total);
  TellUnread(stream, args);
  return r.total;
}

// TCP_INQ; tcp_inq_hint(): 1 for nothing but an end that is known of.
void TcpEndpoint::TellUnread(const TcpStream& stream, RecvArgs* args) const {
  if (tcp_options_.tell_unread.load(std::memory_order_relaxed) == 0) return;
  auto left = static_cast<int>(std::min<size_t>(stream.bytes.Used(), INT_MAX));
  if (left == 0 && done_.load()) left = 1;
  args->control.push_back({IPPROTO_TCP, TCP_CM_INQ, OptionBytes(left)});
}

// tcp_recv_urg().
Result<size_t> TcpEndpoint::ReceiveUrgent(IoDest& dst, RecvArgs* args) {
  int side;
  Conn c = connection(&side);
  bool in_line = options().flag(SO_OOBINLINE);
  if (c == nullptr) return Error(in_line || state() != TCP_CLOSE ? EINVAL : ENOTCONN);
  TcpStream& stream = *in(*c, side);
  std::byte byte;
  {
    absl::MutexLock lock(&stream.urgent_mutex);
    if (in_line || !stream.urgent.load() || !stream.urgent_unread) {
      if (state() == TCP_CLOSE && !done_.load() && !in_line) return Error(ENOTCONN);
      return Error(EINVAL);
    }
    byte = stream.urgent_byte;
    if (!(args->flags & MSG_PEEK)) stream.urgent_unread = false;
  }
  args->out_flags |= MSG_OOB;
  if (dst.remaining() == 0) {
    args->out_flags |= MSG_TRUNC;
    return size_t{0};
  }
  if (args->flags & MSG_TRUNC) return size_t{1};
  return dst.Put(std::span(&byte, 1));
}

// --- looking ---

uint32_t TcpEndpoint::Readiness(platform::LaneWish wish) {
  int now = state();
  if (now == TCP_LISTEN) {
    absl::MutexLock lock(&g_tcp_mutex);
    return accept_queue_.empty() ? 0 : kIn;
  }
  uint32_t mask = 0;
  int shut = shutdown_.load();
  if (shut == kBothShut || now == TCP_CLOSE) mask |= EPOLLHUP;
  if (shut & kReceiveShut) mask |= kIn | EPOLLRDHUP;
  if (error_.load() != 0 || zero_copy_pending()) mask |= EPOLLERR;
  if (now == TCP_SYN_SENT) return mask;
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return mask | kOut;
  TcpStream& stream = *in(*c, side);
  auto target = static_cast<size_t>(options().receive_low.load());
  if (stream.urgent.load()) {
    absl::MutexLock lock(&stream.urgent_mutex);
    if (stream.urgent_unread) mask |= EPOLLPRI;
    if (stream.urgent_at == stream.bytes.read() && !options().flag(SO_OOBINLINE)) ++target;
  }
  auto readable = [&] {
    const size_t used = stream.bytes.Used();
    return used >= target || (stream.bytes.Room() == 0 && used > 0);
  };
  if (!readable()) stream.bytes.WantData(wish);
  if (readable()) mask |= kIn;
  TcpStream& out = c->sides[static_cast<size_t>(side)].out;
  if (shut & kSendShut || out.bytes.Writable()) return mask | kOut;
  out.bytes.WantRoom(wish);
  return out.bytes.Writable() ? mask | kOut : mask;
}

void TcpEndpoint::WatchEdges(platform::LaneWish wish) {
  int side;
  if (Conn c = connection(&side)) in(*c, side)->bytes.WantData(wish);
}

uint64_t TcpEndpoint::BytesCome() {
  int side;
  Conn c = connection(&side);
  return c != nullptr ? in(*c, side)->bytes.written() : 0;
}

Result<int> TcpEndpoint::BytesReadable() {
  if (state() == TCP_LISTEN) return Error(EINVAL);
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return 0;
  TcpStream& stream = *in(*c, side);
  size_t n = stream.bytes.Used();
  if (stream.urgent.load() && !options().flag(SO_OOBINLINE)) {
    absl::MutexLock lock(&stream.urgent_mutex);
    uint64_t read = stream.bytes.read();
    if (stream.urgent_at > read) {
      n = std::min<size_t>(n, stream.urgent_at - read);
    } else if (stream.urgent_at == read && n > 0) {
      --n;
    }
  }
  return static_cast<int>(n);
}

// What the receiver has not taken into its buffer, and what has not been sent.
Result<int> TcpEndpoint::BytesUnsent() {
  if (state() == TCP_LISTEN) return Error(EINVAL);
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return 0;
  TcpStream& out = c->sides[static_cast<size_t>(side)].out;
  size_t used = out.bytes.Used(), window = out.window.load();
  return static_cast<int>((used > window ? used - window : 0) + out.bytes.held());
}

bool TcpEndpoint::AtMark() {
  int side;
  Conn c = connection(&side);
  if (c == nullptr) return false;
  TcpStream& stream = *in(*c, side);
  if (!stream.urgent.load()) return false;
  absl::MutexLock lock(&stream.urgent_mutex);
  return stream.urgent_at == stream.bytes.read();
}

TcpEndpoint::Row TcpEndpoint::Describe() {
  Row row;
  {
    absl::MutexLock lock(&g_tcp_mutex);
    row = {local, remote, state(), 0, 0, uid, ino()};
    if (state() == TCP_LISTEN) {
      row.unread = accept_queue_.size();
      row.sent = backlog_;
      return row;
    }
  }
  int side;
  if (Conn c = connection(&side)) {
    row.unread = in(*c, side)->bytes.Used();
    row.sent = static_cast<uint64_t>(BytesUnsent().value_or(0));
  }
  return row;
}

int TcpEndpoint::SegmentSize() {
  constexpr int kConnected = 65483 / 2, kConnected6 = 65464 / 2, kAccepted = 65536 / 2;
  int side;
  if (connection(&side) && side == 1) return kAccepted;
  return LocalName().ip.v4() ? kConnected : kConnected6;
}

TcpEndpoint::Information TcpEndpoint::Info() {
  Information all{};
  tcp_info& info = all.first;
  info.tcpi_state = static_cast<uint8_t>(state());
  info.tcpi_options = TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE;
  info.tcpi_snd_wscale = 7;
  info.tcpi_rcv_wscale = 7;
  info.tcpi_snd_mss = static_cast<uint32_t>(SegmentSize());
  info.tcpi_rcv_mss = 536;
  info.tcpi_advmss = 65483;
  info.tcpi_pmtu = InetStack::kMtu;
  info.tcpi_rto = 200000;
  info.tcpi_ato = 40000;
  info.tcpi_rtt = 30;
  info.tcpi_rttvar = 15;
  info.tcpi_snd_cwnd = 10;
  info.tcpi_snd_ssthresh = std::numeric_limits<int>::max();
  if (state() == TCP_LISTEN) {
    absl::MutexLock lock(&g_tcp_mutex);
    info.tcpi_unacked = static_cast<uint32_t>(accept_queue_.size());
    info.tcpi_sacked = static_cast<uint32_t>(backlog_);
    return all;
  }
  int side;
  if (Conn c = connection(&side)) {
    const TcpStream &from = *in(*c, side), &to = c->sides[static_cast<size_t>(side)].out;
    info.tcpi_rcv_space = static_cast<uint32_t>(from.window.load());
    all.receive_window = info.tcpi_rcv_space;
    all.send_window = static_cast<uint32_t>(to.window.load());
    all.bytes_received = from.bytes.written();
    all.bytes_sent = all.bytes_acked = to.bytes.written();
    all.max_pacing_rate = options().max_pacing_rate.load();
    all.least_rtt_us = info.tcpi_rtt;
  }
  return all;
}

}  // namespace sentry
