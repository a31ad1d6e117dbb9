// Options of SOL_SOCKET (Linux: net/core/sock.c, sk_getsockopt and sk_setsockopt).
#include <asm/socket.h>
#include <linux/net_tstamp.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <sys/time.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string_view>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/net/socket.h"
#include "sentry/vfs/lanes/lane_ends.h"

// Of Linux versions that the headers may not know.
#ifndef SO_TXREHASH
#define SO_TXREHASH 74
#endif
#ifndef SO_RCVMARK
#define SO_RCVMARK 75
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef SO_RCVPRIORITY
#define SO_RCVPRIORITY 82
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::Status;

constexpr int kBufferMax = 212992;  // net.core.{r,w}mem_max
constexpr int kMinSendBuffer = 4608, kMinReceiveBuffer = 2304;
constexpr int64_t kSecond = 1'000'000'000;
constexpr int kSendLock = 1, kReceiveLock = 2;  // SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK
constexpr int kBpfExtensions = 64;              // SKF_AD_MAX
constexpr int kKnownTimestamping = (1 << 18) - 1;
constexpr char kLoopbackName[] = "lo";
constexpr int kLoopbackIndex = 1;
constexpr int kMaxBudget = 0xffff;  // of SO_BUSY_POLL_BUDGET

template <typename T>
Result<T> ValueFrom(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(T)) return Error(EINVAL);
  T value;
  memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// sock_set_timeout(): a negative time is none, and one that is gone at once.
Result<int64_t> TimeoutFrom(std::span<const std::byte> value) {
  timeval tv = TRY(ValueFrom<timeval>(value));
  if (tv.tv_usec < 0 || tv.tv_usec >= 1'000'000) return Error(EDOM);
  if (tv.tv_sec < 0 || tv.tv_sec > std::numeric_limits<int64_t>::max() / kSecond - 1)
    return int64_t{0};
  return tv.tv_sec * kSecond + tv.tv_usec * 1000;
}

timeval ToTimeval(int64_t ns) { return {ns / kSecond, ns % kSecond / 1000}; }

constexpr int kTimestamps[] = {SO_TIMESTAMP_OLD, SO_TIMESTAMPNS_OLD, SO_TIMESTAMP_NEW,
                               SO_TIMESTAMPNS_NEW};

bool IsInet(int domain) { return domain == AF_INET || domain == AF_INET6; }

}  // namespace

int SocketOptions::Bit(int name) {
  constexpr int kNames[] = {SO_DEBUG,         SO_REUSEADDR,       SO_DONTROUTE,
                            SO_BROADCAST,     SO_KEEPALIVE,       SO_OOBINLINE,
                            SO_NO_CHECK,      SO_REUSEPORT,       SO_PASSSEC,
                            SO_PASSCRED,      SO_TIMESTAMP_OLD,   SO_TIMESTAMPNS_OLD,
                            SO_ZEROCOPY,      SO_RXQ_OVFL,        SO_SELECT_ERR_QUEUE,
                            SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW, SO_WIFI_STATUS,
                            SO_NOFCS,         SO_LOCK_FILTER,     SO_PREFER_BUSY_POLL,
                            SO_RCVMARK,       SO_RCVPRIORITY,     SO_PASSPIDFD};
  const int* it = std::find(std::begin(kNames), std::end(kNames), name);
  return it == std::end(kNames) ? -1 : static_cast<int>(it - kNames);
}

void SocketOptions::SetFlag(int name, bool on) {
  const uint64_t bit = uint64_t{1} << Bit(name);
  if (on) {
    flags.fetch_or(bit);
  } else {
    flags.fetch_and(~bit);
  }
}

void SocketOptions::MovePeek(int recv_flags, size_t n) {
  int from = peek_offset.load();
  while (from >= 0) {
    const auto at = static_cast<int64_t>(from), by = static_cast<int64_t>(n);
    const int64_t to = (recv_flags & MSG_PEEK) != 0 ? at + by : std::max<int64_t>(at - by, 0);
    const auto next = static_cast<int>(std::min<int64_t>(to, std::numeric_limits<int>::max()));
    if (peek_offset.compare_exchange_weak(from, next)) return;
  }
}

void SocketOptions::CopyFrom(const SocketOptions& other) {
  flags = other.flags.load();
  receive_timeout_ns = other.receive_timeout_ns.load();
  send_timeout_ns = other.send_timeout_ns.load();
  receive_buffer = other.receive_buffer.load();
  send_buffer = other.send_buffer.load();
  receive_buffer_locked = other.receive_buffer_locked.load();
  send_buffer_locked = other.send_buffer_locked.load();
  receive_low = other.receive_low.load();
  priority = other.priority.load();
  device = other.device.load();
  mark = other.mark.load();
  linger_seconds = other.linger_seconds.load();
  busy_poll_us = other.busy_poll_us.load();
  incoming_cpu = other.incoming_cpu.load();
  transmit_rehash = other.transmit_rehash.load();
  max_pacing_rate = other.max_pacing_rate.load();
  timestamping = other.timestamping.load();
  peek_offset = other.peek_offset.load();
  busy_poll_budget = other.busy_poll_budget.load();
  transmit_time = other.transmit_time.load();
  SetFilter(other.filter());
}

base::Ref<const SocketFilter> SocketOptions::filter() const {
  absl::MutexLock lock(&filter_mutex_);
  return filter_;
}

void SocketOptions::SetFilter(base::Ref<const SocketFilter> filter) {
  absl::MutexLock lock(&filter_mutex_);
  std::swap(filter_, filter);
  has_filter_.store(filter_ != nullptr);
}

bool Socket::pass_pidfd() const { return options_->flag(SO_PASSPIDFD); }

// sk_may_scm_recv() and the family's operations.
bool Socket::Lacks(int name) const {
  switch (name) {
    case SO_PASSCRED:
    case SO_PASSSEC:
      return domain_ != AF_UNIX && domain_ != AF_NETLINK;
    case SO_PASSPIDFD:
      return domain_ != AF_UNIX;
    case SO_PEEK_OFF:
      return !has_peek_offset();
    default:
      return false;
  }
}

// sk_get_meminfo().
std::array<uint32_t, SK_MEMINFO_VARS> Socket::MemoryInfo() {
  const Queued now = queued();
  std::array<uint32_t, SK_MEMINFO_VARS> info{};
  info[SK_MEMINFO_RMEM_ALLOC] = static_cast<uint32_t>(now.in);
  info[SK_MEMINFO_RCVBUF] = static_cast<uint32_t>(options_->receive_buffer.load());
  info[SK_MEMINFO_WMEM_ALLOC] = static_cast<uint32_t>(now.out);
  info[SK_MEMINFO_SNDBUF] = static_cast<uint32_t>(send_buffer());
  info[SK_MEMINFO_WMEM_QUEUED] = type_ == SOCK_STREAM ? static_cast<uint32_t>(now.out) : 0;
  return info;
}

Result<std::vector<std::byte>> Socket::GetSocketOption(Task& t, int name) {
  const SocketOptions& o = *options_;
  if (Lacks(name)) return Error(EOPNOTSUPP);
  if (SocketOptions::Bit(name) >= 0) return OptionBytes<int>(o.flag(name) ? 1 : 0);
  switch (name) {
    case SO_TYPE:
      return OptionBytes(type_);
    case SO_DOMAIN:
      return OptionBytes(domain_);
    case SO_PROTOCOL:
      return OptionBytes(protocol_);
    case SO_ERROR:
      return OptionBytes(TakeError());
    case SO_ACCEPTCONN:
      return OptionBytes<int>(listening() ? 1 : 0);
    case SO_SNDBUF:
      return OptionBytes(send_buffer());
    case SO_RCVBUF:
      return OptionBytes(o.receive_buffer.load());
    case SO_BUF_LOCK:
      return OptionBytes((o.send_buffer_locked ? kSendLock : 0) |
                         (o.receive_buffer_locked ? kReceiveLock : 0));
    case SO_RCVTIMEO_OLD:
    case SO_RCVTIMEO_NEW:
      return OptionBytes(ToTimeval(o.receive_timeout_ns.load()));
    case SO_SNDTIMEO_OLD:
    case SO_SNDTIMEO_NEW:
      return OptionBytes(ToTimeval(o.send_timeout_ns.load()));
    case SO_RCVLOWAT:
      return OptionBytes(o.receive_low.load());
    case SO_SNDLOWAT:
      return OptionBytes(1);
    case SO_PRIORITY:
      return OptionBytes(o.priority.load());
    case SO_MARK:
      return OptionBytes(o.mark.load());
    case SO_LINGER: {
      int seconds = o.linger_seconds.load();
      return OptionBytes(linger{seconds >= 0 ? 1 : 0, std::max(seconds, 0)});
    }
    case SO_COOKIE:
      return OptionBytes(inode()->ino());
    case SO_BSDCOMPAT:
    case SO_INCOMING_NAPI_ID:
    case SO_RESERVE_MEM:
      return OptionBytes(0);
    case SO_BUSY_POLL:
      return OptionBytes(o.busy_poll_us.load());
    case SO_INCOMING_CPU:
      return OptionBytes(o.incoming_cpu.load());
    case SO_BPF_EXTENSIONS:
      return OptionBytes(kBpfExtensions);
    case SO_MAX_PACING_RATE:
      return OptionBytes(o.max_pacing_rate.load());
    case SO_TXREHASH:
      if (type_ != SOCK_STREAM || !IsInet(domain_)) return Error(EOPNOTSUPP);
      return OptionBytes(o.transmit_rehash.load());
    case SO_TIMESTAMPING_OLD:
    case SO_TIMESTAMPING_NEW:
      return OptionBytes(o.timestamping.load());
    case SO_PEEK_OFF:
      return OptionBytes(o.peek_offset.load());
    case SO_MEMINFO:
      return OptionBytes(MemoryInfo());
    case SO_TXTIME:
      return OptionBytes(o.transmit_time.load());
    case SO_BINDTODEVICE:
    case SO_BINDTOIFINDEX:
      return BoundDevice(name);
    case SO_NETNS_COOKIE:
      return OptionBytes(t.net_namespace_ref()->id());
    default:
      return GetPeerOption(t, name);
  }
}

// About the other end of a socket that has one on this machine.
Result<std::vector<std::byte>> Socket::GetPeerOption(Task& t, int name) {
  const std::optional<SenderCreds> peer = peer_creds();
  switch (name) {
    case SO_PEERCRED: {
      ucred c = {0, static_cast<uid_t>(-1), static_cast<gid_t>(-1)};
      if (peer) {
        c.pid = peer->pid != nullptr ? peer->pid->NumberIn(t.pid_namespace()) : 0;
        c.uid = t.user_ns().MapUidOut(peer->uid);
        c.gid = t.user_ns().MapGidOut(peer->gid);
      }
      return OptionBytes(c);
    }
    case SO_PEERGROUPS: {
      if (!peer || peer->all == nullptr) return Error(ENODATA);
      std::vector<std::byte> out;
      for (gid_t group : peer->all->groups) {
        const auto bytes = OptionBytes(t.user_ns().MapGidOut(group));
        out.insert(out.end(), bytes.begin(), bytes.end());
      }
      return out;
    }
    case SO_PEERPIDFD: {
      if (!peer || peer->pid == nullptr) return Error(ENODATA);
      return OptionBytes(TRY(t.InstallFile(NewPidFd(t.kernel(), peer->pid, 0), /*cloexec=*/true)));
    }
    case SO_PEERNAME: {
      const Result<SockAddr> peer_name = PeerAddress();
      if (!peer_name.ok()) return Error(ENOTCONN);
      const SockAddr name = *peer_name;
      return std::vector<std::byte>(name.data().begin(), name.data().end());
    }
    default:
      return Error(ENOPROTOOPT);
  }
}

Status Socket::SetBuffer(Task& t, int name, int number) {
  bool force = name == SO_SNDBUFFORCE || name == SO_RCVBUFFORCE;
  if (force && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
  // Doubled for bookkeeping, as Linux does. Who may go beyond the limit has no other one here; what
  // is negative is a large number to the others.
  if (number < 0) number = force ? 0 : kBufferMax;
  int size = std::min(number, kBufferMax) * 2;
  if (name == SO_SNDBUF || name == SO_SNDBUFFORCE) {
    set_send_buffer(std::max(size, kMinSendBuffer));
    options_->send_buffer_locked = true;
  } else {
    options_->receive_buffer = std::max(size, kMinReceiveBuffer);
    options_->receive_buffer_locked = true;
  }
  OnOptionChange();
  return base::Ok();
}

Status Socket::SetFlagOption(Task& t, int name, int number) {
  SocketOptions& o = *options_;
  const bool on = number != 0, inet = IsInet(domain_);
  switch (name) {
    case SO_DEBUG:
      if (on && !t.HasCap(CAP_NET_ADMIN)) return Error(EACCES);
      break;
    case SO_REUSEPORT:
      if (on && !inet) return Error(EOPNOTSUPP);
      break;
    case SO_ZEROCOPY:
      if (!inet || type_ == SOCK_RAW) return Error(EOPNOTSUPP);
      if (number != 0 && number != 1) return Error(EINVAL);
      break;
    case SO_LOCK_FILTER:
      if (o.flag(name) && !on) return Error(EPERM);
      break;
    case SO_PREFER_BUSY_POLL:
      if (on && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      break;
    case SO_RCVMARK:
      if (!t.HasCap(CAP_NET_RAW) && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      break;
    case SO_TIMESTAMP_OLD:
    case SO_TIMESTAMPNS_OLD:
    case SO_TIMESTAMP_NEW:
    case SO_TIMESTAMPNS_NEW:  // one of them at a time
      for (int other : kTimestamps) o.SetFlag(other, false);
      break;
    default:
      break;
  }
  o.SetFlag(name, on);
  return base::Ok();
}

// sock_set_timestamping().
Status Socket::SetTimestamping(std::span<const std::byte> value) {
  SocketOptions::Timestamping wanted;
  if (value.size() >= sizeof(wanted)) {
    wanted = TRY(ValueFrom<SocketOptions::Timestamping>(value));
  } else {
    wanted.flags = TRY(ValueFrom<int>(value));
  }
  if ((wanted.flags & ~kKnownTimestamping) != 0) return Error(EINVAL);
  const bool tcp = type_ == SOCK_STREAM && IsInet(domain_);
  if ((wanted.flags & SOF_TIMESTAMPING_OPT_ID) != 0 && tcp) return Error(EINVAL);
  if ((wanted.flags & SOF_TIMESTAMPING_OPT_STATS) != 0 &&
      (wanted.flags & SOF_TIMESTAMPING_OPT_TSONLY) == 0) {
    return Error(EINVAL);
  }
  // No interface has a clock of its own.
  if ((wanted.flags & SOF_TIMESTAMPING_BIND_PHC) != 0) {
    return Error(options_->device.load() != 0 ? EINVAL : EOPNOTSUPP);
  }
  options_->timestamping = wanted;
  return base::Ok();
}

Status Socket::SetFilterOption(Task& t, int name, std::span<const std::byte> value) {
  const bool locked = options_->flag(SO_LOCK_FILTER);
  if (name == SO_DETACH_FILTER) {
    if (locked) return Error(EPERM);
    if (!options_->has_filter()) return Error(ENOENT);
    options_->SetFilter(nullptr);
    return base::Ok();
  }
  struct Program {
    uint16_t length;
    uint64_t code;
  };
  if (value.size() != sizeof(Program)) return Error(EINVAL);
  const auto program = TRY(ValueFrom<Program>(value));
  if (locked) return Error(EPERM);
  if (program.length == 0 || program.length > BPF_MAXINSNS || program.code == 0) {
    return Error(EINVAL);
  }
  std::vector<sock_filter> code(program.length);
  TRY(t.memory().Read(program.code, std::as_writable_bytes(std::span(code))));
  options_->SetFilter(TRY(SocketFilter::New(std::move(code))));
  return base::Ok();
}

std::vector<std::byte> Socket::BoundDevice(int name) const {
  const int device = options_->device.load();
  if (name == SO_BINDTOIFINDEX) return OptionBytes(device);
  return device != 0 ? OptionBytes(std::to_array(kLoopbackName)) : std::vector<std::byte>();
}

// sock_setbindtodevice().
Status Socket::BindToDevice(int name, std::span<const std::byte> value, bool privileged) {
  int device = 0;
  if (name == SO_BINDTOIFINDEX) {
    device = TRY(ValueFrom<int>(value));
    if (device < 0) return Error(EINVAL);
    if (device > kLoopbackIndex) {  // kept as it is: nothing is reached through it
      options_->device = device;
      return base::Ok();
    }
  } else {
    std::string_view text(reinterpret_cast<const char*>(value.data()),
                          std::min<size_t>(value.size(), IFNAMSIZ - 1));
    text = text.substr(0, text.find('\0'));
    if (!text.empty()) device = text == kLoopbackName ? kLoopbackIndex : -1;
  }
  if (options_->device.load() != 0 && !privileged) return Error(EPERM);
  if (device != 0 && device != kLoopbackIndex) return Error(ENODEV);
  options_->device = device;
  return base::Ok();
}

// Nothing here queues what is sent by its time.
Status Socket::SetTransmitTime(Task& t, std::span<const std::byte> value) {
  if (value.size() != sizeof(SocketOptions::TransmitTime)) return Error(EINVAL);
  const auto wanted = TRY(ValueFrom<SocketOptions::TransmitTime>(value));
  if ((wanted.flags & ~uint32_t{SOF_TXTIME_FLAGS_MASK}) != 0) return Error(EINVAL);
  if (wanted.clock != CLOCK_MONOTONIC && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
  options_->transmit_time = wanted;
  return base::Ok();
}

Status Socket::SetBusyPoll(Task& t, int name, int number) {
  std::atomic<int>& value =
      name == SO_BUSY_POLL ? options_->busy_poll_us : options_->busy_poll_budget;
  if (name == SO_BUSY_POLL && number < 0) return Error(EINVAL);
  if (number > value.load() && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
  if (number < 0 || (name == SO_BUSY_POLL_BUDGET && number > kMaxBudget)) return Error(EINVAL);
  value = number;
  return base::Ok();
}

Status Socket::SetSocketOption(Task& t, int name, std::span<const std::byte> value) {
  SocketOptions& o = *options_;
  if (name == SO_BINDTODEVICE) return BindToDevice(name, value, t.HasCap(CAP_NET_RAW));
  int number = TRY(ValueFrom<int>(value));
  if (Lacks(name)) return Error(EOPNOTSUPP);
  if (SocketOptions::Bit(name) >= 0) return SetFlagOption(t, name, number);
  switch (name) {
    case SO_RCVTIMEO_OLD:
    case SO_RCVTIMEO_NEW:
      o.receive_timeout_ns = TRY(TimeoutFrom(value));
      LaneEnds::Tell(*this);
      return base::Ok();
    case SO_SNDTIMEO_OLD:
    case SO_SNDTIMEO_NEW:
      o.send_timeout_ns = TRY(TimeoutFrom(value));
      LaneEnds::Tell(*this);
      return base::Ok();
    case SO_LINGER: {
      auto l = TRY(ValueFrom<linger>(value));
      o.linger_seconds = l.l_onoff != 0 ? std::max(l.l_linger, 0) : -1;
      return base::Ok();
    }
    case SO_SNDBUFFORCE:
    case SO_RCVBUFFORCE:
    case SO_SNDBUF:
    case SO_RCVBUF:
      return SetBuffer(t, name, number);
    case SO_BUF_LOCK:
      if ((number & ~(kSendLock | kReceiveLock)) != 0) return Error(EINVAL);
      o.send_buffer_locked = (number & kSendLock) != 0;
      o.receive_buffer_locked = (number & kReceiveLock) != 0;
      return base::Ok();
    case SO_RCVLOWAT:
      o.receive_low = number < 0 ? std::numeric_limits<int>::max() : std::max(number, 1);
      OnOptionChange();
      return base::Ok();
    case SO_PRIORITY:
      if ((number < 0 || number > 6) && !t.HasCap(CAP_NET_ADMIN) && !t.HasCap(CAP_NET_RAW)) {
        return Error(EPERM);
      }
      o.priority = number;
      return base::Ok();
    case SO_MARK:
      if (!t.HasCap(CAP_NET_RAW) && !t.HasCap(CAP_NET_ADMIN)) return Error(EPERM);
      o.mark = static_cast<uint32_t>(number);
      return base::Ok();
    case SO_BSDCOMPAT:
      return base::Ok();
    case SO_BUSY_POLL:
    case SO_BUSY_POLL_BUDGET:
      return SetBusyPoll(t, name, number);
    case SO_BINDTOIFINDEX:
      return BindToDevice(name, value, t.HasCap(CAP_NET_RAW));
    case SO_PEEK_OFF:
      o.peek_offset = number;
      return base::Ok();
    case SO_TXTIME:
      return SetTransmitTime(t, value);
    case SO_CNX_ADVICE:  // there is no other way that could be taken
      return base::Ok();
    case SO_INCOMING_CPU:
      o.incoming_cpu = number;
      return base::Ok();
    case SO_MAX_PACING_RATE:
      o.max_pacing_rate = value.size() >= sizeof(uint64_t) ? TRY(ValueFrom<uint64_t>(value))
                          : number == -1                   ? ~uint64_t{0}
                                         : uint64_t{static_cast<uint32_t>(number)};
      return base::Ok();
    case SO_TXREHASH:
      if (type_ != SOCK_STREAM || !IsInet(domain_)) return Error(EOPNOTSUPP);
      if (number < -1 || number > 1) return Error(EINVAL);
      o.transmit_rehash = number == -1 ? 1 : number;
      return base::Ok();
    case SO_RESERVE_MEM:
      return Error(number < 0 ? EINVAL : EOPNOTSUPP);
    case SO_TIMESTAMPING_OLD:
    case SO_TIMESTAMPING_NEW:
      return SetTimestamping(value);
    case SO_ATTACH_FILTER:
    case SO_DETACH_FILTER:
      return SetFilterOption(t, name, value);
    default:
      return Error(ENOPROTOOPT);
  }
}

}  // namespace sentry
