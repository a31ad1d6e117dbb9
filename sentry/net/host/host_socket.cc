#include "sentry/net/host/host_socket.h"

#include <linux/capability.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "sentry/base/host_io.h"
#include "sentry/kernel/async/sigio.h"
#include "sentry/kernel/task.h"
#include "sentry/net/host/options.h"
#include "sentry/net/host/repeat.h"
#include "sentry/net/inet/address.h"
#include "sentry/net/inet/stack.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr uint32_t kWatched = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP;
// SO_RCVTIMEO and SO_SNDTIMEO with 64-bit times (asm-generic/socket.h); the same on amd64.
constexpr int kReceiveTimeoutNew = 66, kSendTimeoutNew = 67;

Status FromHost(int rc) { return rc == 0 ? Status() : Status(base::LastError()); }

uid_t CurrentUid() {
  Task* t = Task::Current();
  return t != nullptr ? t->creds().euid : 0;
}

const sockaddr* HostAddress(const SockAddr& a) {
  return reinterpret_cast<const sockaddr*>(a.bytes.data());
}

// getsockname and its kin.
template <typename F>
Result<SockAddr> AskName(F call) {
  SockAddr a;
  socklen_t length = a.bytes.size();
  if (call(reinterpret_cast<sockaddr*>(a.bytes.data()), &length) != 0) return base::LastError();
  a.length = std::min<uint32_t>(length, a.bytes.size());
  return a;
}

uint16_t PortOf(const SockAddr& a) {
  // At the same place in both families.
  if (a.length < offsetof(sockaddr_in, sin_port) + sizeof(in_port_t)) return 0;
  in_port_t port;
  memcpy(&port, a.bytes.data() + offsetof(sockaddr_in, sin_port), sizeof(port));
  return ntohs(port);
}

// Options that the sentry keeps: time limits, which its own waits have; what names the socket; what
// is about credentials; the imitation of zero copy.
bool IsLocalOption(int name) {
  switch (name) {
    case SO_TYPE:
    case SO_DOMAIN:
    case SO_PROTOCOL:
    case SO_RCVTIMEO:
    case SO_SNDTIMEO:
    case SO_SNDLOWAT:
    case SO_PASSCRED:
    case SO_PASSSEC:
    case SO_PEERCRED:
    case SO_DEBUG:
    case SO_COOKIE:
    case SO_ZEROCOPY:
      return true;
    default:
      return false;
  }
}

}  // namespace

HostSocket::HostSocket(Vfs& vfs, HostNetwork& network, base::UniqueFd fd, int domain, int type,
                       int protocol, uint32_t flags)
    : Socket(vfs, domain, type, protocol, flags),
      vfs_(vfs),
      network_(network),
      fd_(std::move(fd)),
      uid_(CurrentUid()) {
  network_.Add(this);
}

HostSocket::~HostSocket() {
  {
    absl::MutexLock lock(&watch_mutex_);
    watch_.Stop();
  }
  network_.Remove(this);
}

// --- readiness ---

uint32_t HostSocket::Readiness() {
  pollfd p = {fd(), POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLWRBAND,
              0};
  if (base::HostPoll(&p, 1, 0) < 0) return EPOLLERR;
  auto events = static_cast<uint32_t>(p.revents);
  if (pending_error_.load(std::memory_order_relaxed) != 0 || zero_copy_.pending()) {
    events |= EPOLLERR;
  }
  return events;
}

void HostSocket::OnEvents(uint32_t events) {
  // The host's first event tells what was there when the watch began, which whoever waits has seen;
  // for an edge-triggered epoll it would be one edge too many. Once something was taken since, it
  // may tell of what came after.
  const bool first = !std::exchange(had_event_, true);
  if (first && (events & ~at_start_) == 0 && !used_.load()) return;
  if ((events & EPOLLPRI) != 0) SendSigurg(async_owner());
  // An end or an error is for all who wait, a connection for one.
  queue_.Wake(events, (events & (EPOLLHUP | EPOLLERR)) != 0 ? INT32_MAX : 1);
}

fiber::WaitQueue* HostSocket::wait_queue() {
  if (watched_.load(std::memory_order_acquire)) return &queue_;
  absl::MutexLock lock(&watch_mutex_);
  if (!watch_.started()) {
    at_start_ = Readiness();
    Status started = watch_.Start(fd(), kWatched, fiber::FdWatch::Mode::kEdge,
                                  [this](uint32_t events) { OnEvents(events); });
    // Without memory for it in the host: what waits here is looked at only when it times out.
    if (!started.ok()) return &queue_;
  }
  watched_.store(true, std::memory_order_release);
  return &queue_;
}

void HostSocket::OnAsyncOwner() {
  // SIGURG has to be noticed though nobody waits.
  if (stream()) (void)wait_queue();
}

// --- names and connections ---

Status HostSocket::Bind(Task& t, const SockAddr& address) {
  const uint16_t port = PortOf(address);
  base::Ref<InetStack> stack = InetStack::Current(t);
  if (protocol() != IPPROTO_ICMP && protocol() != IPPROTO_ICMPV6 && port != 0 &&
      port < stack->unprivileged_port_start.load() && !stack->HasCap(t, CAP_NET_BIND_SERVICE)) {
    return Error(EACCES);
  }
  return FromHost(bind(fd(), HostAddress(address), address.length));
}

// A second connect(2) tells how the first one went, as it does for a program that does not wait.
Status HostSocket::Connect(Task&, const SockAddr& address, bool nonblock) {
  int in_progress = 0;
  auto attempt = [&]() -> Result<int> {
    if (connect(fd(), HostAddress(address), address.length) == 0) return 0;
    const int error = errno;
    if (nonblock || (error != EINPROGRESS && error != EALREADY)) return error;
    if (in_progress == 0) in_progress = error;
    return Error(EAGAIN);
  };
  Result<int> r = Repeat(EPOLLOUT, nonblock, SendDeadline(), /*exclusive=*/false, attempt);
  // The time limit of sending ends the wait, not the connecting.
  if (!r.ok()) return r.error().code() == EAGAIN ? Error(in_progress) : r.error();
  return *r == 0 ? base::Ok() : Status(Error(*r));
}

Status HostSocket::Listen(int backlog) { return FromHost(listen(fd(), backlog)); }

Result<base::Ref<FileDescription>> HostSocket::Accept(uint32_t flags, bool nonblock) {
  SockAddr peer;
  auto attempt = [&]() -> Result<int> {
    socklen_t length = peer.bytes.size();
    int made =
        accept4(fd(), reinterpret_cast<sockaddr*>(peer.bytes.data()), &length, kHostSocketFlags);
    if (made < 0) return errno == EMFILE ? Error(ENFILE) : base::LastError();
    peer.length = std::min<uint32_t>(length, peer.bytes.size());
    return made;
  };
  if (!network_.TakePlace()) return Error(ENFILE);
  Result<int> made = Repeat(EPOLLIN, nonblock, ReceiveDeadline(), /*exclusive=*/true, attempt);
  if (!made.ok()) {
    network_.DropPlace();
    return made.error();
  }
  // One edge may stand for several connections, and has woken one of those that wait.
  if (queue_.HasWaiters()) queue_.Wake(EPOLLIN);
  auto socket = base::MakeRef<HostSocket>(vfs_, network_, base::UniqueFd(*made), domain(), type(),
                                          protocol(), flags);
  socket->options().CopyFrom(options());
  socket->accepted_ = peer;
  return base::Ref<FileDescription>(std::move(socket));
}

Status HostSocket::Shutdown(int how) {
  Status status = FromHost(shutdown(fd(), how));
  // Datagram sockets without a peer are shut down too, though Linux complains. A receive that waits
  // gets the end then, one that does not goes on getting EAGAIN.
  if (!stream() && how != SHUT_WR && (status.ok() || status.error().code() == ENOTCONN)) {
    read_shut_ = true;
    queue_.WakeAll(EPOLLIN);
  }
  return status;
}

Result<SockAddr> HostSocket::LocalAddress() {
  return AskName([this](sockaddr* a, socklen_t* length) { return getsockname(fd(), a, length); });
}

Result<SockAddr> HostSocket::PeerAddress() {
  return AskName([this](sockaddr* a, socklen_t* length) { return getpeername(fd(), a, length); });
}

Result<SockAddr> HostSocket::AcceptedAddress() { return accepted_; }

// --- options ---

int HostSocket::TakeError() {
  if (int error = pending_error_.exchange(0)) return error;
  int error = 0;
  socklen_t length = sizeof(error);
  return getsockopt(fd(), SOL_SOCKET, SO_ERROR, &error, &length) == 0 ? error : errno;
}

Result<std::vector<std::byte>> HostSocket::GetOption(Task& t, int level, int name) {
  if (level == SOL_SOCKET) {
    if (IsLocalOption(name) || name == SO_ERROR || name == SO_LINGER) {
      return Socket::GetOption(t, level, name);
    }
    if (name == SO_MARK) return OptionBytes(0);  // see SetOption
  }
  if (!HostOptionAllowed(level, name, kHostGet)) {
    // As Linux has it for a level that the socket does not know.
    const bool known = level == SOL_SOCKET || level == IPPROTO_IP || level == protocol() ||
                       (level == IPPROTO_IPV6 && domain() == AF_INET6);
    return Error(known ? ENOPROTOOPT : EOPNOTSUPP);
  }
  std::vector<std::byte> value(kMaxHostOption);
  auto length = static_cast<socklen_t>(value.size());
  if (getsockopt(fd(), level, name, value.data(), &length) != 0) return base::LastError();
  value.resize(std::min<size_t>(length, value.size()));
  return value;
}

// A close(2) that lingers would hold the host thread that makes it: the host sends what is left in
// the background, and only the abort of time 0 is its affair.
Status HostSocket::SetLinger(std::span<const std::byte> value) {
  if (value.size() < sizeof(linger)) return Error(EINVAL);
  linger l;
  memcpy(&l, value.data(), sizeof(l));
  const bool abort = l.l_onoff != 0 && l.l_linger == 0;
  const linger host = {abort ? 1 : 0, 0};
  TRY(FromHost(setsockopt(fd(), SOL_SOCKET, SO_LINGER, &host, sizeof(host))));
  options().linger_seconds = l.l_onoff != 0 ? std::max(l.l_linger, 0) : -1;
  return base::Ok();
}

Status HostSocket::SetSocketLevel(Task& t, int name, std::span<const std::byte> value) {
  switch (name) {
    case SO_LINGER:
      return SetLinger(value);
    // Marks steer the host's routing and its filters.
    case SO_MARK:
      return Error(EPERM);
    case SO_SNDBUFFORCE:
    case SO_RCVBUFFORCE:
      // The host's limit stays.
      if (!t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      return SetOption(t, SOL_SOCKET, name == SO_SNDBUFFORCE ? SO_SNDBUF : SO_RCVBUF, value);
    case kReceiveTimeoutNew:
      return Socket::SetOption(t, SOL_SOCKET, SO_RCVTIMEO, value);
    case kSendTimeoutNew:
      return Socket::SetOption(t, SOL_SOCKET, SO_SNDTIMEO, value);
    default:
      return Socket::SetOption(t, SOL_SOCKET, name, value);
  }
}

Status HostSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  const bool own =
      level == SOL_SOCKET &&
      (IsLocalOption(name) || name == SO_LINGER || name == SO_MARK || name == SO_SNDBUFFORCE ||
       name == SO_RCVBUFFORCE || name == kReceiveTimeoutNew || name == kSendTimeoutNew);
  if (own) return SetSocketLevel(t, name, value);
  if (!HostOptionAllowed(level, name, kHostSet) || value.size() > kMaxHostOption) {
    return Error(ENOPROTOOPT);
  }
  TRY(FromHost(setsockopt(fd(), level, name, value.data(), static_cast<socklen_t>(value.size()))));
  if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
    return Socket::SetOption(t, level, name, value);  // for the sentry's waits
  }
  return base::Ok();
}

Result<uint64_t> HostSocket::Ioctl(const IoctlArgs& args) {
  const bool known = args.cmd == SIOCINQ || args.cmd == SIOCOUTQ ||
                     (stream() && (args.cmd == SIOCATMARK || args.cmd == SIOCOUTQNSD));
  if (!known) return Socket::Ioctl(args);
  int n = 0;
  TRY(FromHost(ioctl(fd(), args.cmd, &n)));
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, n));
  return uint64_t{0};
}

HostSocket::Row HostSocket::ToRow() {
  Row row;
  if (auto name = LocalAddress(); name.ok()) row.local = *name;
  auto peer = PeerAddress();
  if (peer.ok()) row.remote = *peer;
  row.state = peer.ok() ? TCP_ESTABLISHED : TCP_CLOSE;
  if (stream()) {
    tcp_info info{};
    socklen_t length = sizeof(info);
    if (getsockopt(fd(), IPPROTO_TCP, TCP_INFO, &info, &length) == 0) row.state = info.tcpi_state;
    if (row.state == TCP_LISTEN) row.unread = info.tcpi_unacked;
  }
  int n = 0;
  if (row.state != TCP_LISTEN) {
    if (ioctl(fd(), SIOCINQ, &n) == 0) row.unread = static_cast<uint32_t>(std::max(n, 0));
    if (ioctl(fd(), SIOCOUTQ, &n) == 0) row.sent = static_cast<uint32_t>(std::max(n, 0));
  }
  row.uid = uid_;
  row.ino = inode()->ino();
  return row;
}

// --- socket(2) ---

// inet_create(). What needs CAP_NET_RAW on the host is not made, whatever the guest's rights.
Result<base::Ref<FileDescription>> NewHostSocket(Task&, Vfs& vfs, HostNetwork& network, int domain,
                                                 int type, int protocol, uint32_t flags) {
  if (protocol < 0 || protocol >= IPPROTO_MAX) return Error(EINVAL);
  if (type == SOCK_RAW) return Error(protocol == IPPROTO_IP ? EPROTONOSUPPORT : EPERM);
  if (type != SOCK_STREAM && type != SOCK_DGRAM) return Error(ESOCKTNOSUPPORT);
  if (protocol == IPPROTO_IP) protocol = type == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP;
  const bool known = std::any_of(
      std::begin(kHostSocketKinds), std::end(kHostSocketKinds), [&](const HostSocketKind& k) {
        return k.family == domain && k.type == type && k.protocol == protocol;
      });
  if (!known) return Error(EPROTONOSUPPORT);
  // Echo sockets are for those whom net.ipv4.ping_group_range names, which the host decides.
  base::UniqueFd fd = TRY(network.NewSocket(domain, type, protocol));
  return base::Ref<FileDescription>(
      base::MakeRef<HostSocket>(vfs, network, std::move(fd), domain, type, protocol, flags));
}

}  // namespace sentry
