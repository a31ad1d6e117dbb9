// Control of TCP: binding, connecting, accepting, ending. Data is in tcp_data.cc.
#include "sentry/net/inet/tcp.h"

#include <sys/epoll.h>

#include <algorithm>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

ABSL_CONST_INIT absl::Mutex g_tcp_mutex(absl::kConstInit);

namespace {

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM;
constexpr int64_t kSecond = 1'000'000'000;
// tcp_syn_retries 6: 1 + 2 + 4 + 8 + 16 + 32 + 64 seconds.
constexpr int64_t kConnectTimeoutNs = 127 * kSecond;

}  // namespace

void TcpOptions::CopyFrom(const TcpOptions& o) {
  const std::pair<std::atomic<int>*, const std::atomic<int>*> all[] = {
      {&nodelay, &o.nodelay},
      {&cork, &o.cork},
      {&keep_idle, &o.keep_idle},
      {&keep_interval, &o.keep_interval},
      {&keep_count, &o.keep_count},
      {&user_timeout_ms, &o.user_timeout_ms},
      {&max_segment, &o.max_segment},
      {&syn_count, &o.syn_count},
      {&linger2, &o.linger2},
      {&window_clamp, &o.window_clamp},
      {&not_sent_low, &o.not_sent_low},
      {&thin_linear, &o.thin_linear},
      {&fast_open_no_cookie, &o.fast_open_no_cookie},
      {&tell_unread, &o.tell_unread},
      {&longest_timeout_ms, &o.longest_timeout_ms}};
  for (auto [to, from] : all) to->store(from->load());
  reno = o.reno.load();
}

TcpEndpoint::TcpEndpoint(base::Ref<InetStack> stack, int family)
    : InetEndpoint(std::move(stack), family), bound_ip_(IpAddress::Any(family == AF_INET)) {
  local.ip = bound_ip_;
  options().receive_buffer = kDefaultReceive;
  options().send_buffer = kDefaultSend;
}

InetAddress TcpEndpoint::LocalName() {
  absl::MutexLock lock(&g_tcp_mutex);
  return local;
}

Result<InetAddress> TcpEndpoint::PeerName(bool accepted) {
  absl::MutexLock lock(&g_tcp_mutex);
  int now = state();
  if (remote.port == 0 || ((now == TCP_CLOSE || now == TCP_SYN_SENT) && !accepted)) {
    return Error(ENOTCONN);
  }
  return remote;
}

void TcpEndpoint::WakeAll() {
  wait_queue().WakeAll(kIn | kOut | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI);
}

TcpEndpoint* TcpEndpoint::Peer(int* side) {
  absl::MutexLock lock(&connection_mutex_);
  if (connection_ == nullptr) return nullptr;
  if (side != nullptr) *side = side_;
  return connection_->sides[static_cast<size_t>(connection_->PeerOf(side_))].end.get();
}

void TcpEndpoint::Join(Conn connection, int side) {
  absl::MutexLock lock(&connection_mutex_);
  connection_ = std::move(connection);
  side_ = side;
}

// --- names ---

Status TcpEndpoint::Bind(Task& t, const InetAddress& address) {
  TRY(CheckBind(t, address, /*stream=*/true));
  absl::MutexLock lock(&g_tcp_mutex);
  if (state() != TCP_CLOSE || local.port != 0) return Error(EINVAL);
  SetPortUser();
  local = address;
  chosen = true;
  Status status = table().Bind(*this, stack().port_range());
  if (!status.ok()) {
    local = InetAddress{.ip = bound_ip_};
    chosen = false;
    return status;
  }
  bound_ = true;
  bound_ip_ = address.ip;
  return base::Ok();
}

// --- connecting ---

Status TcpEndpoint::StartConnect(InetAddress to) {
  IpAddress source;
  TRY(Resolve(&to, &source));
  if (stack().IsBroadcast(to.ip)) return Error(ENETUNREACH);
  if (!bound_) SetPortUser();
  TRY(table().Connect(*this, source, to, stack().port_range()));
  stack().counters.tcp_active.fetch_add(1, std::memory_order_relaxed);
  SetState(TCP_SYN_SENT);
  socket_state_ = SocketState::kConnecting;
  shutdown_ = error_ = 0;
  done_ = false;
  base::Ref<PortUser> found = to.port != 0 ? table().Find(to, local) : nullptr;
  if (found != nullptr) {
    static_cast<TcpEndpoint&>(*found).Handshake(*this);
  } else if (to == local) {
    ConnectSelf();
  } else {
    FailConnect(ECONNREFUSED);
  }
  return base::Ok();
}

void TcpEndpoint::FailConnect(int error) {
  timer_.Disarm();
  stack().counters.tcp_failed.fetch_add(1, std::memory_order_relaxed);
  SetState(TCP_CLOSE);
  table().Disconnect(*this, bound_ip_);
  error_ = error;
  shutdown_ = kBothShut;
  WakeAll();
}

// Both of its packets cross: simultaneous open with itself.
void TcpEndpoint::ConnectSelf() {
  auto connection = base::MakeRef<TcpConnection>();
  connection->self = true;
  connection->sides[0].end = base::Ref<TcpEndpoint>(this);
  connection->sides[1].gone = true;
  connection->began_ns = Kernel::Get().MonotonicNs();
  Join(std::move(connection), 0);
  SetState(TCP_ESTABLISHED);
  UpdateLimits();
  WakeAll();
}

bool TcpEndpoint::Full() const {
  return accept_queue_.size() > backlog_ || deferring_.size() > std::max<size_t>(backlog_, 8);
}

void TcpEndpoint::Handshake(TcpEndpoint& client) {
  if (!Full()) {
    Establish(client);
    return;
  }
  // Linux drops the SYN, and the client sends it again until there is room.
  stack().counters.listen_overflows.fetch_add(1, std::memory_order_relaxed);
  base::Ref<TcpEndpoint> self(&client);
  client.asked_ = base::Ref<TcpEndpoint>(this);
  asking_.push_back(self);
  int user_timeout = client.tcp_options_.user_timeout_ms.load();
  int64_t timeout = user_timeout > 0 ? user_timeout * int64_t{1'000'000} : kConnectTimeoutNs;
  client.timer_.Arm(Kernel::Get().MonotonicNs() + timeout, [self] {
    Garbage garbage;
    absl::MutexLock lock(&g_tcp_mutex);
    if (self->state() != TCP_SYN_SENT) return;
    self->StopAsking(&garbage);
    self->FailConnect(ETIMEDOUT);
  });
}

void TcpEndpoint::StopAsking(Garbage* garbage) {
  timer_.Disarm();
  if (asked_ == nullptr) return;
  auto& queue = asked_->asking_;
  auto it = std::find(queue.begin(), queue.end(), base::Ref<TcpEndpoint>(this));
  if (it != queue.end()) {
    garbage->push_back(std::move(*it));
    queue.erase(it);
  }
  garbage->push_back(std::move(asked_));
}

void TcpEndpoint::Establish(TcpEndpoint& client) {
  auto child = base::MakeRef<TcpEndpoint>(stack_ref(), family());
  child->options().CopyFrom(options());
  child->ip().CopyFrom(ip());
  child->tcp_options_.CopyFrom(tcp_options_);
  child->local = client.remote;
  child->remote = client.local;
  child->reuse_address = reuse_address;
  child->reuse_port = reuse_port;
  child->v6only = v6only;
  child->uid = uid;
  table().AddAccepted(*child);
  auto connection = base::MakeRef<TcpConnection>();
  connection->sides[0].end = base::Ref<TcpEndpoint>(&client);
  connection->sides[1].end = child;
  connection->began_ns = Kernel::Get().MonotonicNs();
  client.Join(connection, 0);
  child->Join(connection, 1);
  child->socket_state_ = SocketState::kConnected;
  child->SetState(TCP_ESTABLISHED);
  client.SetState(TCP_ESTABLISHED);
  client.UpdateLimits();
  stack().counters.tcp_passive.fetch_add(1, std::memory_order_relaxed);
  client.wait_queue().WakeAll(kOut);
  int defer = tcp_options_.defer_accept.load();
  if (defer == 0) {
    accept_queue_.push_back(std::move(child));
    wait_queue().Wake(kIn);
    return;
  }
  child->deferred_ = true;
  child->asked_ = base::Ref<TcpEndpoint>(this);
  deferring_.push_back(child);
  child->timer_.Arm(connection->began_ns + defer * kSecond, [child] { child->EndDefer(); });
}

void TcpEndpoint::EndDefer() {
  Garbage garbage;
  absl::MutexLock lock(&g_tcp_mutex);
  if (!deferred_.exchange(false) || asked_ == nullptr) return;
  timer_.Disarm();
  TcpEndpoint& listener = *asked_;
  auto it = std::find(listener.deferring_.begin(), listener.deferring_.end(),
                      base::Ref<TcpEndpoint>(this));
  if (it != listener.deferring_.end()) {
    listener.accept_queue_.push_back(std::move(*it));
    listener.deferring_.erase(it);
    listener.wait_queue().Wake(kIn);
  }
  garbage.push_back(std::move(asked_));
}

Status TcpEndpoint::WaitForConnect(bool nonblock, int64_t deadline_ns, int would_block) {
  if (state() == TCP_SYN_SENT) {
    if (nonblock) return Error(would_block);
    auto reason =
        fiber::WaitUntil(wait_queue(), EPOLLOUT, [this] { return state() != TCP_SYN_SENT; },
                         {.interruptible = true, .deadline_ns = deadline_ns});
    if (reason == fiber::WakeReason::kTimeout) return Error(would_block);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
  return base::Ok();
}

// __inet_stream_connect().
Status TcpEndpoint::Connect(const SockAddr& address, bool nonblock, int64_t deadline_ns) {
  int would_block = EALREADY;
  {
    absl::MutexLock lock(&g_tcp_mutex);
    switch (socket_state_) {
      case SocketState::kConnected:
        return Error(EISCONN);
      case SocketState::kConnecting:
        break;
      case SocketState::kUnconnected:
        if (state() != TCP_CLOSE) return Error(EISCONN);
        TRY(StartConnect(TRY(ParseInetAddress(address, family()))));
        would_block = EINPROGRESS;
        // The answer comes at once, but a caller that does not wait is not told.
        if (nonblock) return Error(EINPROGRESS);
        break;
    }
  }
  TRY(WaitForConnect(nonblock, deadline_ns, would_block));
  absl::MutexLock lock(&g_tcp_mutex);
  if (state() == TCP_CLOSE) {
    int error = TakeError();
    socket_state_ = SocketState::kUnconnected;
    shutdown_ = 0;
    return Error(error != 0 ? error : ECONNABORTED);
  }
  socket_state_ = SocketState::kConnected;
  return base::Ok();
}

Status TcpEndpoint::Disconnect() {
  Garbage garbage;
  absl::MutexLock lock(&g_tcp_mutex);
  int now = state();
  if (now == TCP_LISTEN) {
    StopListening(&garbage);
  } else if (now == TCP_SYN_SENT) {
    StopAsking(&garbage);
  } else {
    Leave(/*reset=*/true, &garbage);
  }
  if (bound_) {
    table().Disconnect(*this, bound_ip_);
  } else {
    table().Release(*this);
    local = InetAddress{.ip = bound_ip_};
    remote = InetAddress();
    chosen = false;
  }
  SetState(TCP_CLOSE);
  socket_state_ = SocketState::kUnconnected;
  shutdown_ = 0;
  error_ = now == TCP_LISTEN || now == TCP_CLOSE ? 0 : ECONNRESET;
  done_ = false;
  WakeAll();
  return base::Ok();
}

// --- listening ---

Status TcpEndpoint::Listen(int backlog) {
  Garbage garbage;
  absl::MutexLock lock(&g_tcp_mutex);
  if (socket_state_ != SocketState::kUnconnected) return Error(EINVAL);
  if (state() != TCP_CLOSE && state() != TCP_LISTEN) return Error(EINVAL);
  auto most = static_cast<uint32_t>(stack().somaxconn.load());
  backlog_ = std::min(static_cast<uint32_t>(backlog), most);
  if (state() == TCP_LISTEN) {
    Admit(&garbage);
    return base::Ok();
  }
  if (local.port == 0) {
    SetPortUser();
    TRY(table().Bind(*this, stack().port_range()));
  }
  TRY(table().Listen(*this));
  SetState(TCP_LISTEN);
  return base::Ok();
}

void TcpEndpoint::Admit(Garbage* garbage) {
  while (!asking_.empty() && !Full()) {
    base::Ref<TcpEndpoint> client = std::move(asking_.front());
    asking_.pop_front();
    client->timer_.Disarm();
    garbage->push_back(std::move(client->asked_));
    if (client->state() == TCP_SYN_SENT) Establish(*client);
    garbage->push_back(std::move(client));
  }
}

Result<base::Ref<TcpEndpoint>> TcpEndpoint::Accept(bool nonblock, int64_t deadline_ns) {
  while (true) {
    {
      Garbage garbage;
      absl::MutexLock lock(&g_tcp_mutex);
      if (state() != TCP_LISTEN) return Error(EINVAL);
      if (!accept_queue_.empty()) {
        base::Ref<TcpEndpoint> found = std::move(accept_queue_.front());
        accept_queue_.pop_front();
        Admit(&garbage);
        return found;
      }
    }
    if (nonblock) return Error(EAGAIN);
    auto reason = fiber::WaitUntil(
        wait_queue(), EPOLLIN,
        [this] {
          absl::MutexLock lock(&g_tcp_mutex);
          return !accept_queue_.empty() || state() != TCP_LISTEN;
        },
        {.interruptible = true, .deadline_ns = deadline_ns}, /*exclusive=*/true);
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
}

void TcpEndpoint::StopListening(Garbage* garbage) {
  SetState(TCP_CLOSE);
  table().Unlisten(*this);
  for (auto& client : asking_) {
    client->timer_.Disarm();
    garbage->push_back(std::move(client->asked_));
    if (client->state() == TCP_SYN_SENT) client->FailConnect(ECONNREFUSED);
    garbage->push_back(std::move(client));
  }
  asking_.clear();
  for (auto& child : deferring_) {
    child->timer_.Disarm();
    garbage->push_back(std::move(child->asked_));
    accept_queue_.push_back(std::move(child));
  }
  deferring_.clear();
  for (auto& child : accept_queue_) {
    child->Leave(/*reset=*/true, garbage);
    garbage->push_back(std::move(child));
  }
  accept_queue_.clear();
  wait_queue().WakeAll(kIn | EPOLLHUP);
}

// --- ending ---

void TcpEndpoint::Done(bool time_wait) {
  SetState(TCP_CLOSE);
  shutdown_ = kBothShut;
  table().Release(*this, time_wait);
}

void TcpEndpoint::SendFin() {
  int now = state();
  TcpEndpoint* peer = Peer();
  if (peer == nullptr || (now != TCP_ESTABLISHED && now != TCP_CLOSE_WAIT)) return;
  base::Ref<TcpEndpoint> self(this);
  if (now == TCP_ESTABLISHED) {
    SetState(TCP_FIN_WAIT2);
    peer->ReceiveFin();
    return;
  }
  peer->ReceiveFin();
  Done(/*time_wait=*/false);
  WakeAll();
}

void TcpEndpoint::ReceiveFin() {
  done_ = true;
  shutdown_ |= kReceiveShut;
  if (state() == TCP_ESTABLISHED) {
    SetState(TCP_CLOSE_WAIT);
  } else if (state() == TCP_FIN_WAIT2) {
    Done(/*time_wait=*/true);
  }
  bool both = shutdown_.load() == kBothShut;
  wait_queue().WakeAll(kIn | EPOLLRDHUP | (both ? kOut | EPOLLHUP : 0));
}

void TcpEndpoint::ReceiveReset() {
  int now = state();
  if (now == TCP_CLOSE) return;
  error_ = now == TCP_CLOSE_WAIT ? EPIPE : ECONNRESET;
  stack().counters.tcp_resets.fetch_add(1, std::memory_order_relaxed);
  Done(/*time_wait=*/false);
  WakeAll();
}

void TcpEndpoint::Leave(bool reset, Garbage* garbage) {
  Conn connection;
  int side;
  {
    absl::MutexLock lock(&connection_mutex_);
    connection = std::move(connection_);
    side = side_;
  }
  if (connection == nullptr) return;
  TcpConnection::Side& mine = connection->sides[static_cast<size_t>(side)];
  TcpEndpoint& peer = *connection->sides[static_cast<size_t>(connection->PeerOf(side))].end;
  // A writer that does not see this has written before, and what it wrote is seen here.
  mine.gone.store(true, std::memory_order_seq_cst);
  CloseLanes(*connection);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  Count(mine.out);
  bool unread = in(*connection, side)->bytes.Used() > 0;
  int now = state();
  if (now != TCP_CLOSE) {
    if (reset || unread) {
      stack().counters.tcp_out_resets.fetch_add(1, std::memory_order_relaxed);
      Done(/*time_wait=*/false);
      if (&peer != this) peer.ReceiveReset();
    } else if (now == TCP_ESTABLISHED) {
      SetState(TCP_FIN_WAIT2);
      peer.ReceiveFin();
      table().Release(*this, /*time_wait=*/true);
    } else if (now == TCP_CLOSE_WAIT) {
      peer.ReceiveFin();
      Done(/*time_wait=*/false);
    } else {
      table().Release(*this, /*time_wait=*/true);
    }
  }
  garbage->push_back(std::move(connection));
}

void TcpEndpoint::End(Garbage* garbage) {
  if (state() == TCP_LISTEN) StopListening(garbage);
  if (state() == TCP_SYN_SENT) {
    StopAsking(garbage);
    SetState(TCP_CLOSE);
  }
  Leave(options().linger_seconds.load() == 0, garbage);
  table().Release(*this);
}

void TcpEndpoint::Release() {
  if (!EndsByReset()) PushHeld();
  Garbage garbage;
  absl::MutexLock lock(&g_tcp_mutex);
  End(&garbage);
}

Status TcpEndpoint::Shutdown(int how) {
  if (how < SHUT_RD || how > SHUT_RDWR) return Error(EINVAL);
  int mode = how + 1;
  if (mode & kSendShut) PushHeld();
  Garbage garbage;
  absl::MutexLock lock(&g_tcp_mutex);
  int now = state();
  if (socket_state_ == SocketState::kConnecting) {
    bool open = now != TCP_SYN_SENT && now != TCP_CLOSE;
    socket_state_ = open ? SocketState::kConnected : SocketState::kUnconnected;
  }
  Status status;
  if (now == TCP_LISTEN || now == TCP_SYN_SENT) {
    if (now == TCP_LISTEN && !(mode & kReceiveShut)) return base::Ok();
    if (now == TCP_LISTEN) {
      StopListening(&garbage);
    } else {
      StopAsking(&garbage);
      table().Disconnect(*this, bound_ip_);
      SetState(TCP_CLOSE);
    }
    socket_state_ = SocketState::kUnconnected;
  } else {
    if (now == TCP_CLOSE) status = Error(ENOTCONN);
    shutdown_ |= mode;
    CloseLanes();
    if (mode & kSendShut) SendFin();
  }
  WakeAll();
  return status;
}

}  // namespace sentry
