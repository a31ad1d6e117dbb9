// TCP without packets: two ends of one machine, with the states, errors and limits that packets
// would have led to (Linux: net/ipv4/tcp.c, af_inet.c).
#pragma once

#include <netinet/tcp.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/timer.h"
#include "sentry/net/inet/endpoint.h"
#include "sentry/vfs/byte_stream.h"

namespace sentry {

class TcpEndpoint;

// Guards the control state of all TCP endpoints: who listens, who is connected, which end has
// ended. Before port tables and wait queues; never held while bytes are copied.
extern absl::Mutex g_tcp_mutex;

class TcpConnection;

// One direction of a connection.
struct TcpStream final : public LaneUser {
  // Writers and readers; neither is held across a park.
  fiber::Mutex write_mutex, read_mutex;
  // Its limit is what the buffers of both ends allow; a writer that waits or polls wants room. What
  // TCP_CORK and MSG_MORE keep from the reader for a while is held by it.
  ByteStream bytes;
  std::unique_ptr<fiber::Timer> push_timer;       // of what is held; made by the first that is
  std::atomic<size_t> window{ByteStream::kSize};  // of the limit, what the receiver has taken
  std::atomic<uint64_t> counted{0};               // bytes that NetCounters know of
  // The urgent byte (MSG_OOB).
  std::atomic<bool> urgent{false};  // there is one ahead, or not yet read
  absl::Mutex urgent_mutex;         // leaf
  uint64_t urgent_at ABSL_GUARDED_BY(urgent_mutex) = 0;
  bool urgent_unread ABSL_GUARDED_BY(urgent_mutex) = false;
  std::byte urgent_byte ABSL_GUARDED_BY(urgent_mutex){};
  // Whose it is: constant.
  TcpConnection* connection = nullptr;
  int side = 0;  // that writes

  void LaneWritten() override;
  void LaneRead() override;

  // Of what has been filled in `n` bytes are the reader's now, and `held` stay for a while. In a
  // writer's turn, which is kept while the sender is corked.
  void Give(size_t n, size_t held, bool cork) ABSL_EXCLUSIVE_LOCKS_REQUIRED(write_mutex);

 private:
  void ArmPush(int64_t after_ns);
  void OnPushTimer();
};

// What two ends share. Ends are kept until both have given the connection up.
class TcpConnection : public base::RefCounted {
 public:
  TcpConnection() {
    for (size_t i = 0; i < 2; ++i) {
      sides[i].out.connection = this;
      sides[i].out.side = static_cast<int>(i);
    }
  }
  struct Side {
    base::Ref<TcpEndpoint> end;     // set before anybody sees the connection
    std::atomic<bool> gone{false};  // closed, reset, or connected to something else
    TcpStream out;
  };
  std::array<Side, 2> sides;
  bool self = false;  // connected to itself: there is only side 0
  int64_t began_ns = 0;

  int PeerOf(int side) const { return self ? side : 1 - side; }
};

// Options of IPPROTO_TCP that are kept; all are inherited by what is accepted.
struct TcpOptions {
  std::atomic<int> nodelay{0}, cork{0}, keep_idle{7200}, keep_interval{75}, keep_count{9};
  std::atomic<int> user_timeout_ms{0}, max_segment{0}, quick_ack{1}, defer_accept{0};
  std::atomic<int> syn_count{0}, linger2{0}, window_clamp{0}, fast_open{0}, fast_open_connect{0};
  std::atomic<int> not_sent_low{0}, thin_linear{0}, fast_open_no_cookie{0};
  std::atomic<int> tell_unread{0}, longest_timeout_ms{120000};
  std::atomic<bool> reno{false};  // congestion control: reno or cubic
  void CopyFrom(const TcpOptions& other);
};

// Thread-safe. Data moves without g_tcp_mutex.
class TcpEndpoint : public InetEndpoint {
 public:
  static constexpr int kDefaultReceive = 131072, kDefaultSend = 16384;  // tcp_rmem, tcp_wmem

  TcpEndpoint(base::Ref<InetStack> stack, int family);

  // --- control ---
  base::Status Bind(Task& t, const InetAddress& address);
  // The address is looked at only if the socket is not connected (connecting) yet.
  base::Status Connect(const SockAddr& address, bool nonblock, int64_t deadline_ns);
  base::Status Disconnect();
  base::Status Listen(int backlog);
  base::Result<base::Ref<TcpEndpoint>> Accept(bool nonblock, int64_t deadline_ns);
  base::Status Shutdown(int how);
  // The description was closed.
  void Release();
  // The address of the other side; EINVAL forms of ENOTCONN. `accepted`: also of one that ended.
  base::Result<InetAddress> PeerName(bool accepted);

  // --- data ---
  base::Result<size_t> Send(IoSource& src, const SendArgs& args, int64_t deadline_ns);
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args, int64_t deadline_ns);
  base::Result<size_t> ReceiveUrgent(IoDest& dst, RecvArgs* args);
  // `wish`: FileDescription::ReadinessFor.
  uint32_t Readiness(platform::LaneWish wish = platform::kWish);
  // FileDescription::WatchEdges, LaneCame.
  void WatchEdges(platform::LaneWish wish);
  uint64_t BytesCome();
  int TakeError() { return error_.exchange(0); }
  // SIOCINQ, SIOCOUTQ, SIOCATMARK; EINVAL of a listener.
  base::Result<int> BytesReadable();
  base::Result<int> BytesUnsent();
  bool AtMark();

  // --- lanes ---
  // FileDescription::EnterLanes: of an established connection without urgent data and the like.
  FileDescription::LaneNames EnterLanes(LaneArena& arena);
  bool HasOpenLanes();
  // LanePartner.
  bool IsInLanesOf(const LaneArena& arena);
  bool MeetsEqual(uint64_t creds);
  // What who finds nothing to read, or no room, does in its lanes.
  void SetPatience(platform::LanePatience reader, platform::LanePatience writer);
  // For good: its owner is to be told of each byte that comes.
  void LeaveLanes();

  // --- options and state ---
  TcpOptions& tcp_options() { return tcp_options_; }
  // TCP_CORK; what was held is sent when it ends.
  void SetCork(bool on);
  void PushHeld();
  void UpdateLimits();
  int state() const { return state_.load(std::memory_order_relaxed); }
  // RCV_SHUTDOWN and SEND_SHUTDOWN.
  int shut() const { return shutdown_.load(std::memory_order_relaxed); }
  bool listening() const { return state() == TCP_LISTEN; }
  // TCP_INFO: what headers know of, and what Linux has added since (<linux/tcp.h>). Connections
  // without packets count none.
  struct Information {
    tcp_info first;
    uint64_t pacing_rate, max_pacing_rate, bytes_acked, bytes_received;
    uint32_t segments[2], unsent, least_rtt_us, data_segments[2];
    uint64_t delivery_rate, busy_us, window_limited_us, buffer_limited_us;
    uint32_t delivered[2];
    uint64_t bytes_sent, bytes_sent_again;
    uint32_t duplicates, reordered, out_of_order, send_window, receive_window, rehashed;
    uint32_t timeouts[2], congestion[8];
  };
  static_assert(sizeof(Information) == 280);
  Information Info();
  // What a segment to the peer may hold: half of the first window that it offered
  // (tcp_bound_to_half_wnd), which is less to who connects.
  int SegmentSize();
  // For /proc/net/tcp.
  struct Row {
    InetAddress local, remote;
    int state;
    uint64_t sent, unread;
    uid_t uid;
    uint64_t ino;
  };
  Row Describe();

  PortTable& table() override { return stack().tcp(); }
  InetAddress LocalName() override;

 private:
  friend class TcpConnection;
  friend struct TcpStream;
  using Conn = base::Ref<TcpConnection>;
  static constexpr int kReceiveShut = 1, kSendShut = 2, kBothShut = 3;

  ~TcpEndpoint() override = default;

  // What may be destroyed once the lock has been given up.
  using Garbage = std::vector<base::Ref<base::RefCounted>>;

  // --- control ---
  base::Status StartConnect(InetAddress to) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void ConnectSelf() ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // Of a listener: `client` is connected, or waits for room in the backlog.
  void Handshake(TcpEndpoint& client) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void Establish(TcpEndpoint& client) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // Clients that wait, as long as there is room.
  void Admit(Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  bool Full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void Join(Conn connection, int side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void FailConnect(int error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void StopListening(Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // Of a client in SYN_SENT.
  void StopAsking(Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void SendFin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void ReceiveFin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void ReceiveReset() ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // The connection is over for this end.
  void Done(bool time_wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // Gives the connection up; `reset`: with an RST even if nothing is unread.
  void Leave(bool reset, Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  // Ends everything, as close(2) does.
  void End(Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  void SetState(int state) {
    state_.store(state, std::memory_order_release);
    if (state != TCP_ESTABLISHED) CloseLanes();
  }
  // What is read and written from now on is the sentry's business.
  void CloseLanes();
  static void CloseLanes(TcpConnection& c);
  // Whether others than the sentry may move the bytes that `side` writes.
  static bool MayOpenLane(TcpConnection& c, int side) ABSL_EXCLUSIVE_LOCKS_REQUIRED(g_tcp_mutex);
  static uint64_t EnterLane(TcpConnection& c, int side, LaneArena& arena);
  TcpEndpoint* Peer(int* side = nullptr);
  void WakeAll();
  base::Status WaitForConnect(bool nonblock, int64_t deadline_ns, int would_block);

  // --- data ---
  Conn connection(int* side);
  TcpStream* in(TcpConnection& c, int side) { return &c.sides[c.PeerOf(side)].out; }
  // Why nothing can be sent.
  base::Status CheckSend();
  // Writes what fits; 0: there is no room. `flags`: MSG_OOB, MSG_MORE.
  base::Result<size_t> SendSome(TcpConnection& c, int side, IoSource& src, int flags);
  // Whether closing it is a reset: what is held is not sent.
  bool EndsByReset();
  // What was written is the receiver's: it is counted, and told.
  void SentSome(TcpConnection& c, int side, bool urgent);
  void Count(TcpStream& stream);
  // One reader's progress over a stream.
  struct Reading {
    uint64_t position;  // of the next byte
    size_t left;        // bytes still wanted
    size_t total = 0;
    bool peek, discard, at_mark = false;
  };
  // Takes what is there, up to the urgent mark; 0: nothing.
  base::Result<size_t> ReceiveSome(TcpConnection& c, int side, IoDest& dst, Reading* r);
  // How many bytes may be read at once; skips an urgent byte that is not in line.
  size_t UpToMark(TcpStream& stream, Reading* r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(stream.read_mutex);
  // The receiver has made room.
  void TellWriter(TcpConnection& c, int side);
  // Without a connection: what a receive returns.
  base::Result<size_t> ReceiveNothing();
  base::Status WaitReceive(TcpStream& stream, const Reading& r, const RecvArgs& args,
                           int64_t deadline_ns);
  void TellUnread(const TcpStream& stream, RecvArgs* args) const;
  // Of a connection that a listener hands out once there is data (TCP_DEFER_ACCEPT).
  void EndDefer() ABSL_LOCKS_EXCLUDED(g_tcp_mutex);

  std::atomic<int> state_{TCP_CLOSE}, error_{0}, shutdown_{0};
  std::atomic<bool> done_{false};  // a FIN was received (SOCK_DONE)
  std::atomic<bool> deferred_{false};
  std::atomic<bool> without_lanes_{false};  // LeaveLanes
  std::atomic<uint64_t> user_{0};           // the number that MeetsEqual was told last
  std::atomic<int> meetings_{0};            // how often it has found no equal
  TcpOptions tcp_options_;
  enum class SocketState { kUnconnected, kConnecting, kConnected };  // SS_*
  SocketState socket_state_ ABSL_GUARDED_BY(g_tcp_mutex) = SocketState::kUnconnected;
  IpAddress bound_ip_ ABSL_GUARDED_BY(g_tcp_mutex);  // by bind(2)
  bool bound_ ABSL_GUARDED_BY(g_tcp_mutex) = false;  // by bind(2)
  size_t backlog_ ABSL_GUARDED_BY(g_tcp_mutex) = 0;
  std::deque<base::Ref<TcpEndpoint>> accept_queue_ ABSL_GUARDED_BY(g_tcp_mutex);
  // Of a listener: clients for whom there is no room, and connections that are accepted once they
  // have sent something. Of those: the listener.
  std::deque<base::Ref<TcpEndpoint>> asking_ ABSL_GUARDED_BY(g_tcp_mutex);
  std::vector<base::Ref<TcpEndpoint>> deferring_ ABSL_GUARDED_BY(g_tcp_mutex);
  base::Ref<TcpEndpoint> asked_ ABSL_GUARDED_BY(g_tcp_mutex);
  fiber::Timer timer_;  // of what asks or defers

  absl::Mutex connection_mutex_;  // leaf
  Conn connection_ ABSL_GUARDED_BY(connection_mutex_);
  int side_ ABSL_GUARDED_BY(connection_mutex_) = 0;
};

}  // namespace sentry
