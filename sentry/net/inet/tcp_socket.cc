#include "sentry/net/inet/tcp_socket.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr int kMaxSeconds = 32767;  // MAX_TCP_KEEPIDLE and its kin
constexpr int kSynRetries = 6;      // net.ipv4.tcp_syn_retries
constexpr char kCubic[] = "cubic", kReno[] = "reno";
constexpr size_t kCongestionName = 16;  // TCP_CA_NAME_MAX
constexpr int kMaxReceive = 6291456;    // net.ipv4.tcp_rmem
constexpr int kMinWindowClamp = 1152;   // SOCK_MIN_RCVBUF / 2
constexpr int kMaxFastOpen = 4096;      // net.core.somaxconn
// Of Linux versions that the headers may not know.
constexpr int kIsMptcp = 43, kLongestTimeout = 44;  // TCP_IS_MPTCP, TCP_RTO_MAX_MS

// The options that are an int with bounds.
struct IntOption {
  int name;
  std::atomic<int> TcpOptions::*value;
  int low, high;
  bool on_off = false;
};
constexpr IntOption kInts[] = {
    {TCP_NODELAY, &TcpOptions::nodelay, 0, 0, true},
    {TCP_CORK, &TcpOptions::cork, 0, 0, true},  // set by SetCork
    {TCP_KEEPIDLE, &TcpOptions::keep_idle, 1, kMaxSeconds},
    {TCP_KEEPINTVL, &TcpOptions::keep_interval, 1, kMaxSeconds},
    {TCP_KEEPCNT, &TcpOptions::keep_count, 1, 127},
    {TCP_SYNCNT, &TcpOptions::syn_count, 1, 127},
    {TCP_USER_TIMEOUT, &TcpOptions::user_timeout_ms, 0, INT32_MAX},
    {TCP_QUICKACK, &TcpOptions::quick_ack, 0, 0, true},
    {TCP_FASTOPEN, &TcpOptions::fast_open, 0, INT32_MAX},
    {TCP_FASTOPEN_CONNECT, &TcpOptions::fast_open_connect, 0, 1},
    {TCP_FASTOPEN_NO_COOKIE, &TcpOptions::fast_open_no_cookie, 0, 1},
    {TCP_NOTSENT_LOWAT, &TcpOptions::not_sent_low, INT32_MIN, INT32_MAX},
    {TCP_THIN_LINEAR_TIMEOUTS, &TcpOptions::thin_linear, 0, 1},
    {TCP_INQ, &TcpOptions::tell_unread, 0, 1},
    {kLongestTimeout, &TcpOptions::longest_timeout_ms, 1000, 120000},
};

// How long a listener waits for data is a number of times that it answers (secs_to_retrans and
// retrans_to_secs): 1 s, 2 s and so on to 120 s, at most 255 times.
int DeferSeconds(int seconds) {
  constexpr int kLongest = 120, kMostTimes = 255;
  if (seconds <= 0) return 0;
  int wait = 1, period = 1;
  for (int times = 1; period < seconds && times < kMostTimes; ++times) {
    wait = std::min(2 * wait, kLongest);
    period += wait;
  }
  return period;
}

const IntOption* FindInt(int name) {
  const auto* it =
      std::find_if(std::begin(kInts), std::end(kInts), [&](auto& o) { return o.name == name; });
  return it == std::end(kInts) ? nullptr : it;
}

}  // namespace

Status TcpSocket::Bind(Task& t, const SockAddr& address) {
  return endpoint_->Bind(t, TRY(ParseBindAddress(address, domain())));
}

Status TcpSocket::Connect(Task& t, const SockAddr& address, bool nonblock) {
  if (address.length < sizeof(sa_family_t)) return Error(EINVAL);
  if (address.family() == AF_UNSPEC) return endpoint_->Disconnect();
  endpoint_->MeetsEqual(NumberOf(t.creds()));
  return endpoint_->Connect(address, nonblock, SendDeadline());
}

Result<base::Ref<FileDescription>> TcpSocket::Accept(uint32_t flags, bool nonblock) {
  base::Ref<TcpEndpoint> end = TRY(endpoint_->Accept(nonblock, ReceiveDeadline()));
  if (const Task* t = Task::Current()) end->MeetsEqual(NumberOf(t->creds()));
  return base::Ref<FileDescription>(base::MakeRef<TcpSocket>(vfs(), std::move(end), flags));
}

Result<SockAddr> TcpSocket::PeerAddress() {
  return TRY(endpoint_->PeerName(/*accepted=*/false)).ToSockAddr(domain());
}

Result<SockAddr> TcpSocket::AcceptedAddress() {
  return TRY(endpoint_->PeerName(/*accepted=*/true)).ToSockAddr(domain());
}

Result<size_t> TcpSocket::Send(IoSource& src, SendArgs args) {
  Task* t = Task::Current();
  if ((args.flags & MSG_FASTOPEN) != 0 && t != nullptr && endpoint_->state() == TCP_CLOSE) {
    if (args.to.length == 0) return Error(EINVAL);
    TRY(Connect(*t, args.to, args.nonblock));
  }
  Result<size_t> n = endpoint_->Send(src, args, SendDeadline());
  if (n.ok()) AfterSend(args, *n);
  if (!n.ok() && n.error().code() == EPIPE && !(args.flags & MSG_NOSIGNAL)) RaiseSocketSigpipe();
  return n;
}

Socket::Queued TcpSocket::queued() {
  const Result<int> in = endpoint_->BytesReadable(), out = endpoint_->BytesUnsent();
  return {.in = in.ok() ? static_cast<uint64_t>(*in) : 0,
          .out = out.ok() ? static_cast<uint64_t>(*out) : 0};
}

Result<size_t> TcpSocket::Receive(IoDest& dst, RecvArgs* args) {
  return endpoint_->Receive(dst, args, ReceiveDeadline());
}

// --- options ---

Result<std::vector<std::byte>> TcpSocket::GetOption(Task& t, int level, int name) {
  return level == IPPROTO_TCP ? GetTcpOption(name) : InetSocket::GetOption(t, level, name);
}

Status TcpSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  if (level == IPPROTO_TCP) return SetTcpOption(name, value);
  if (level != SOL_SOCKET) return InetSocket::SetOption(t, level, name, value);
  int number = 0;
  if (name == SO_RCVLOWAT && value.size() >= sizeof(number)) {  // tcp_set_rcvlowat()
    memcpy(&number, value.data(), sizeof(number));
    const int most =
        options().receive_buffer_locked.load() ? options().receive_buffer.load() : kMaxReceive;
    number = std::min(number < 0 ? INT32_MAX : number, most / 2);
    return InetSocket::SetOption(t, level, name, std::as_bytes(std::span(&number, 1)));
  }
  TRY(InetSocket::SetOption(t, level, name, value));
  // What is read from now on is counted.
  if (name == SO_PEEK_OFF && options().peek_offset.load() >= 0) endpoint_->LeaveLanes();
  return base::Ok();
}

Result<std::vector<std::byte>> TcpSocket::GetTcpOption(int name) {
  TcpOptions& o = endpoint_->tcp_options();
  if (const IntOption* option = FindInt(name)) {
    const int value = (o.*option->value).load();
    return OptionBytes(name == TCP_SYNCNT && value == 0 ? kSynRetries : value);
  }
  switch (name) {
    case TCP_MAXSEG: {
      int set = o.max_segment.load();
      int now = endpoint_->state();
      if (now == TCP_CLOSE || now == TCP_LISTEN) return OptionBytes(set != 0 ? set : 536);
      const int size = endpoint_->SegmentSize();
      return OptionBytes(set != 0 ? std::min(set, size) : size);
    }
    case TCP_LINGER2:
      return OptionBytes(o.linger2.load() < 0 ? -1 : o.linger2.load() > 0 ? o.linger2.load() : 60);
    case TCP_DEFER_ACCEPT:
      return OptionBytes(o.defer_accept.load());
    case TCP_WINDOW_CLAMP:
      return OptionBytes(o.window_clamp.load());
    case TCP_INFO:
      return OptionBytes(endpoint_->Info());
    case TCP_CONGESTION: {
      char text[kCongestionName] = {};
      strncpy(text, o.reno.load() ? kReno : kCubic, sizeof(text) - 1);
      return OptionBytes(text);
    }
    case TCP_THIN_DUPACK:
    case kIsMptcp:
      return OptionBytes(0);
    case TCP_TIMESTAMP: {  // in milliseconds, from wherever
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      return OptionBytes(static_cast<uint32_t>(now.tv_sec * 1000 + now.tv_nsec / 1'000'000));
    }
    case TCP_ULP:      // there is none
    case TCP_CC_INFO:  // neither algorithm tells anything
      return std::vector<std::byte>();
    default:
      return Error(ENOPROTOOPT);
  }
}

// The options about fast open are for sockets that are not connected yet, or listen.
Status TcpSocket::CheckFastOpen(int name) const {
  const bool connects = name == TCP_FASTOPEN_CONNECT;
  if (!connects && name != TCP_FASTOPEN && name != TCP_FASTOPEN_NO_COOKIE) return base::Ok();
  const int now = endpoint_->state();
  if (now == TCP_CLOSE || (now == TCP_LISTEN && !connects)) return base::Ok();
  return Error(EINVAL);
}

Status TcpSocket::SetTcpOption(int name, std::span<const std::byte> value) {
  TcpOptions& o = endpoint_->tcp_options();
  if (name == TCP_CONGESTION) {
    if (value.empty()) return Error(EINVAL);
    std::string_view text(reinterpret_cast<const char*>(value.data()),
                          std::min(value.size(), kCongestionName - 1));
    text = text.substr(0, text.find('\0'));
    if (text != kCubic && text != kReno) return Error(ENOENT);
    o.reno = text == kReno;
    return base::Ok();
  }
  if (name == TCP_ULP) return Error(value.empty() ? EINVAL : ENOENT);
  int number = TRY(OptionInt(value));
  if (const IntOption* option = FindInt(name)) {
    if (option->on_off) {
      number = number != 0 ? 1 : 0;
    } else if (number < option->low || number > option->high) {
      return Error(EINVAL);
    }
    TRY(CheckFastOpen(name));
    if (name == TCP_FASTOPEN) number = std::min(number, kMaxFastOpen);
    if (name == TCP_CORK) {
      endpoint_->SetCork(number != 0);
      return base::Ok();
    }
    (o.*option->value).store(number);
    if (name == TCP_NODELAY && number != 0) endpoint_->PushHeld();
    return base::Ok();
  }
  switch (name) {
    case TCP_THIN_DUPACK:  // without effect since Linux 4.14
      return number == 0 || number == 1 ? base::Ok() : Status(Error(EINVAL));
    case TCP_MAXSEG:
      if (number != 0 && (number < 88 || number > 32767)) return Error(EINVAL);
      o.max_segment = number;
      return base::Ok();
    case TCP_LINGER2:
      o.linger2 = std::min(number, 120);
      return base::Ok();
    case TCP_DEFER_ACCEPT:
      o.defer_accept = DeferSeconds(number);
      return base::Ok();
    case TCP_WINDOW_CLAMP:
      if (number == 0 && endpoint_->state() != TCP_CLOSE) return Error(EINVAL);
      o.window_clamp = number == 0 ? 0 : std::max(number, kMinWindowClamp);
      return base::Ok();
    case TCP_TIMESTAMP:  // but of connections that are being repaired
      return Error(EPERM);
    default:
      return Error(ENOPROTOOPT);
  }
}

Result<uint64_t> TcpSocket::Ioctl(const IoctlArgs& args) {
  int n;
  switch (args.cmd) {
    case SIOCINQ:
      n = TRY(endpoint_->BytesReadable());
      break;
    case SIOCOUTQ:
    case SIOCOUTQNSD:
      n = TRY(endpoint_->BytesUnsent());
      break;
    case SIOCATMARK:
      n = endpoint_->AtMark() ? 1 : 0;
      break;
    default:
      return InetSocket::Ioctl(args);
  }
  TRY(base::UserPtr<int>(args.arg).CopyOut(args.memory, n));
  return uint64_t{0};
}

}  // namespace sentry
