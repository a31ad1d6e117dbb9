#include "sentry/net/inet/datagram.h"

#include <asm/socket.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/net_tstamp.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cstring>

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {

constexpr uint32_t kIn = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOut = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;

template <typename T>
void PutControl(RecvArgs* args, int level, int type, const T& value) {
  args->control.push_back({level, type, OptionBytes(value)});
}

}  // namespace

Result<base::Ref<PacketData>> PacketData::From(IoSource& src) {
  auto data = base::MakeRef<PacketData>(src.remaining());
  if (data->size() > 0 && TRY(src.Get(data->bytes())) != data->size()) return Error(EFAULT);
  return data;
}

InetAddress DatagramEndpoint::LocalName() {
  absl::MutexLock lock(&mutex_);
  return local;
}

Result<InetAddress> DatagramEndpoint::PeerName() {
  absl::MutexLock lock(&mutex_);
  if (!connected() || remote.port == 0) return Error(ENOTCONN);
  return remote;
}

DatagramEndpoint::Row DatagramEndpoint::Describe() {
  absl::MutexLock lock(&mutex_);
  return {local, remote, connected(), queued(), drops(), uid, ino()};
}

int DatagramEndpoint::TakeError() { return error_.exchange(0); }

size_t DatagramEndpoint::FirstLength() {
  absl::MutexLock lock(&mutex_);
  return queue_.empty() ? 0 : queue_.front().payload().size();
}

// Who gets the time with each packet is not asked to keep it (SOCK_RCVTSTAMP).
bool DatagramEndpoint::TellsTime() const {
  return options().flag(SO_TIMESTAMP_OLD) || options().flag(SO_TIMESTAMPNS_OLD) ||
         options().flag(SO_TIMESTAMP_NEW) || options().flag(SO_TIMESTAMPNS_NEW);
}

Result<timespec> DatagramEndpoint::LastTime() {
  absl::MutexLock lock(&mutex_);
  if (last_time_.tv_sec == 0) return Error(ENOENT);
  return last_time_;
}

Status DatagramEndpoint::Shutdown(int how) {
  if (how < SHUT_RD || how > SHUT_RDWR) return Error(EINVAL);
  shutdown_ |= how + 1;
  wait_queue().WakeAll(kIn | kOut | EPOLLRDHUP | EPOLLHUP | kWakeQuietly);
  return connected() ? base::Ok() : Status(Error(ENOTCONN));
}

uint32_t DatagramEndpoint::Readiness() {
  uint32_t mask = kOut;
  int shut = shutdown_.load();
  if (shut & kReceiveShut) mask |= kIn | EPOLLRDHUP;
  if (shut == (kReceiveShut | kSendShut)) mask |= EPOLLHUP;
  absl::MutexLock lock(&mutex_);
  if (!queue_.empty()) mask |= kIn;
  if (error_.load() != 0 || !errors_.empty() || zero_copy_pending()) {
    mask |= EPOLLERR;
    if (!errors_.empty() && options().flag(SO_SELECT_ERR_QUEUE)) mask |= EPOLLPRI;
  }
  return mask;
}

// --- the queue ---

// sk_filter(): what is beyond the length that the filter gives is cut off.
bool DatagramEndpoint::PassesFilter(Packet* packet) const {
  base::Ref<const SocketFilter> filter = options().filter();
  if (filter == nullptr) return true;
  // The transport's header comes first; where there are no packets it is made for the filter.
  const auto payload = packet->payload();
  const size_t header = filter_header();
  std::vector<std::byte> bytes(header);
  if (header >= 8) {
    const uint16_t fields[4] = {htons(packet->from.port), htons(packet->to.port),
                                htons(static_cast<uint16_t>(payload.size() + header)), 0};
    memcpy(bytes.data(), fields, sizeof(fields));
  }
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  const bool v4 = packet->to.ip.v4();
  FilterContext context{.bytes = bytes,
                        .protocol = static_cast<uint16_t>(v4 ? ETH_P_IP : ETH_P_IPV6),
                        .device = InetStack::kLoopbackIndex,
                        .hardware_type = ARPHRD_LOOPBACK,
                        .mark = packet->mark};
  const size_t kept = filter->Run(context);
  if (kept == 0) return false;
  if (kept < bytes.size()) packet->cut += bytes.size() - std::max(kept, header);
  return true;
}

bool DatagramEndpoint::Deliver(Packet packet) {
  if (options().has_filter() && !PassesFilter(&packet)) {
    drops_.fetch_add(1);
    return false;
  }
  size_t charge = packet.data->size() + kOverhead;
  // As long as what is there is within the limit, one more is taken, whatever its size.
  if (charge_.load() > static_cast<uint64_t>(options().receive_buffer.load())) {
    drops_.fetch_add(1);
    return false;
  }
  clock_gettime(CLOCK_REALTIME, &packet.time);
  charge_.fetch_add(charge);
  {
    absl::MutexLock lock(&mutex_);
    queue_.push_back(std::move(packet));
  }
  wait_queue().Wake(kIn);
  return true;
}

bool DatagramEndpoint::ReceivesErrors(bool v4) {
  return v4 ? ip().flag(IPPROTO_IP, IP_RECVERR) || (v6() && ip().flag(IPPROTO_IPV6, IPV6_RECVERR))
            : ip().flag(IPPROTO_IPV6, IPV6_RECVERR);
}

// __udp4_lib_err(), ip_icmp_error().
void DatagramEndpoint::Fail(int error, const Packet& packet, bool hard) {
  bool v4 = packet.to.ip.v4();
  if (ReceivesErrors(v4)) {
    ErrorEntry entry{};
    entry.error.ee_errno = static_cast<uint32_t>(error);
    entry.error.ee_origin = v4 ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6;
    entry.error.ee_type = v4 ? ICMP_UNREACH : ICMP6_DST_UNREACH;
    entry.error.ee_code = v4 ? ICMP_UNREACH_PORT : ICMP6_DST_UNREACH_NOPORT;
    entry.offender.ip = packet.to.ip;
    entry.to = packet.to;
    entry.data = packet.data;
    entry.skip = packet.skip;
    absl::MutexLock lock(&mutex_);
    if (errors_.size() < kMaxErrors) errors_.push_back(std::move(entry));
  } else if (!hard || !connected()) {
    return;
  }
  error_.store(error);
  wait_queue().WakeAll(EPOLLERR | kIn);
}

// --- receiving ---

void DatagramEndpoint::AddControl4(const Packet& p, RecvArgs* args) {
  if (ip().flag(IPPROTO_IP, IP_PKTINFO)) {
    in_pktinfo info{};
    info.ipi_ifindex = InetStack::kLoopbackIndex;
    info.ipi_spec_dst = info.ipi_addr = p.to.ip.ToV4();
    PutControl(args, IPPROTO_IP, IP_PKTINFO, info);
  }
  if (ip().flag(IPPROTO_IP, IP_RECVTTL)) PutControl(args, IPPROTO_IP, IP_TTL, p.hops);
  if (ip().flag(IPPROTO_IP, IP_RECVTOS)) {
    PutControl(args, IPPROTO_IP, IP_TOS, static_cast<uint8_t>(p.traffic_class));
  }
  if (ip().flag(IPPROTO_IP, IP_RECVORIGDSTADDR)) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr = p.to.ip.ToV4();
    a.sin_port = htons(p.to.port);
    PutControl(args, IPPROTO_IP, IP_ORIGDSTADDR, a);
  }
}

void DatagramEndpoint::AddControl6(const Packet& p, RecvArgs* args) {
  if (ip().flag(IPPROTO_IPV6, IPV6_RECVPKTINFO)) {
    in6_pktinfo info{};
    info.ipi6_addr = p.to.ip.ToV6();
    info.ipi6_ifindex = InetStack::kLoopbackIndex;
    PutControl(args, IPPROTO_IPV6, IPV6_PKTINFO, info);
  }
  if (ip().flag(IPPROTO_IPV6, IPV6_2292PKTINFO)) {
    in6_pktinfo info{};
    info.ipi6_addr = p.to.ip.ToV6();
    info.ipi6_ifindex = InetStack::kLoopbackIndex;
    PutControl(args, IPPROTO_IPV6, IPV6_2292PKTINFO, info);
  }
  if (p.to.ip.v4()) return AddControl4(p, args);
  if (ip().flag(IPPROTO_IPV6, IPV6_RECVHOPLIMIT)) {
    PutControl(args, IPPROTO_IPV6, IPV6_HOPLIMIT, p.hops);
  }
  if (ip().flag(IPPROTO_IPV6, IPV6_2292HOPLIMIT)) {
    PutControl(args, IPPROTO_IPV6, IPV6_2292HOPLIMIT, p.hops);
  }
  if (ip().flag(IPPROTO_IPV6, IPV6_RECVTCLASS)) {
    PutControl(args, IPPROTO_IPV6, IPV6_TCLASS, p.traffic_class);
  }
  if (ip().flag(IPPROTO_IPV6, IPV6_RECVORIGDSTADDR)) {
    sockaddr_in6 a{};
    a.sin6_family = AF_INET6;
    a.sin6_addr = p.to.ip.ToV6();
    a.sin6_port = htons(p.to.port);
    PutControl(args, IPPROTO_IPV6, IPV6_ORIGDSTADDR, a);
  }
}

void DatagramEndpoint::AddSocketControl(const Packet& p, RecvArgs* args) {
  const timeval tv{p.time.tv_sec, p.time.tv_nsec / 1000};
  for (int name : {SO_TIMESTAMP_OLD, SO_TIMESTAMP_NEW}) {
    if (options().flag(name)) PutControl(args, SOL_SOCKET, name, tv);
  }
  for (int name : {SO_TIMESTAMPNS_OLD, SO_TIMESTAMPNS_NEW}) {
    if (options().flag(name)) PutControl(args, SOL_SOCKET, name, p.time);
  }
  constexpr int kReceived = SOF_TIMESTAMPING_RX_SOFTWARE, kReported = SOF_TIMESTAMPING_SOFTWARE;
  const int wanted = options().timestamping.load().flags;
  if ((wanted & kReceived) != 0 && (wanted & kReported) != 0) {
    PutControl(args, SOL_SOCKET, SO_TIMESTAMPING, scm_timestamping{{p.time, {}, {}}});
  }
  if (options().flag(SO_RXQ_OVFL) && drops_.load() > 0) {
    PutControl(args, SOL_SOCKET, SO_RXQ_OVFL, static_cast<uint32_t>(drops_.load()));
  }
  if (options().flag(SO_RCVMARK)) PutControl(args, SOL_SOCKET, SO_MARK, p.mark);
}

void DatagramEndpoint::AddControl(const Packet& p, RecvArgs* args) {
  AddSocketControl(p, args);
  if (v6()) {
    AddControl6(p, args);
  } else {
    AddControl4(p, args);
  }
}

// ip_recv_error(), ipv6_recv_error().
Result<size_t> DatagramEndpoint::ReceiveError(IoDest& dst, RecvArgs* args) {
  ErrorEntry entry;
  {
    absl::MutexLock lock(&mutex_);
    if (errors_.empty()) return TakeZeroCopy(args);
    entry = std::move(errors_.front());
    errors_.pop_front();
    // The next one is told again.
    error_.store(errors_.empty() ? 0 : static_cast<int>(errors_.front().error.ee_errno));
  }
  auto bytes = entry.data->bytes().subspan(entry.skip);
  size_t n = std::min(bytes.size(), dst.remaining());
  if (n < bytes.size()) args->out_flags |= MSG_TRUNC;
  if (n > 0 && TRY(dst.Put(bytes.first(n))) != n) return Error(EFAULT);
  args->full_length = bytes.size();
  args->from = entry.to.ToSockAddr(family());
  args->out_flags |= MSG_ERRQUEUE;
  SockAddr offender = entry.offender.ToSockAddr(family());
  std::vector<std::byte> control = OptionBytes(entry.error);
  control.insert(control.end(), offender.bytes.begin(), offender.bytes.begin() + offender.length);
  args->control.push_back(
      {v6() ? IPPROTO_IPV6 : IPPROTO_IP, v6() ? IPV6_RECVERR : IP_RECVERR, std::move(control)});
  return n;
}

size_t DatagramEndpoint::PacketAt(size_t* skip) const {
  size_t index = 0;
  for (; *skip > 0 && index < queue_.size(); ++index) {
    const size_t length = queue_[index].payload().size();
    if (*skip < length) break;
    *skip -= length;
  }
  return index;
}

Result<size_t> DatagramEndpoint::Receive(IoDest& dst, RecvArgs* args, int64_t deadline_ns) {
  if (args->flags & MSG_ERRQUEUE) return ReceiveError(dst, args);
  if ((args->flags & MSG_OOB) && refuses_urgent()) return Error(EOPNOTSUPP);
  bool peek = (args->flags & MSG_PEEK) != 0;
  Packet p;
  size_t skip = 0;
  while (true) {
    if (int error = TakeError()) return Error(error);
    {
      absl::MutexLock lock(&mutex_);
      skip = options().PeekFrom(args->flags);
      size_t index = PacketAt(&skip);
      if (index < queue_.size()) {
        if (peek) {
          p = queue_[index];
        } else {
          p = std::move(queue_.front());
          queue_.pop_front();
          if (!TellsTime()) last_time_ = p.time;
        }
        break;
      }
    }
    if (args->nonblock) return Error(EAGAIN);
    if (shutdown_.load() & kReceiveShut) return size_t{0};
    auto reason = fiber::WaitUntil(
        wait_queue(), EPOLLIN,
        [&] {
          if (error_.load() != 0 || (shutdown_.load() & kReceiveShut)) return true;
          absl::MutexLock lock(&mutex_);
          size_t from = options().PeekFrom(args->flags);
          return PacketAt(&from) < queue_.size();
        },
        {.interruptible = true, .deadline_ns = deadline_ns}, /*exclusive=*/true);
    if (reason == fiber::WakeReason::kTimeout) return Error(EAGAIN);
    if (reason == fiber::WakeReason::kInterrupted) {
      return Error(deadline_ns == fiber::kNoDeadline ? base::kERESTARTSYS : EINTR);
    }
  }
  if (!peek) charge_.fetch_sub(p.data->size() + kOverhead);
  const auto bytes = p.payload();
  skip = std::min(skip, bytes.size());
  size_t n = std::min(bytes.size() - skip, dst.remaining());
  if (n < bytes.size()) args->out_flags |= MSG_TRUNC;
  args->full_length = bytes.size();
  if (n > 0 && TRY(dst.Put(bytes.subspan(skip, n))) != n) return Error(EFAULT);
  options().NoteReceived(args->flags, (args->flags & MSG_TRUNC) != 0 ? bytes.size() : n);
  args->from = p.from.ToSockAddr(family());
  AddControl(p, args);
  return n;
}

// --- sending ---

Status DatagramEndpoint::CheckSend() {
  if (shutdown_.load() & kSendShut) return Error(EPIPE);
  if (int error = TakeError()) return Error(error);
  return base::Ok();
}

// ip_cmsg_send(), ip6_datagram_send_ctl().
Result<SendOptions> DatagramEndpoint::ParseControl(const SendArgs& args) const {
  SendOptions out;
  auto number = [](const ControlMessage& c) -> Result<int> { return OptionInt(c.data); };
  for (const ControlMessage& c : args.control) {
    if (c.level == IPPROTO_IP) {
      if (c.type == IP_PKTINFO) {
        in_pktinfo info;
        if (c.data.size() != sizeof(info)) return Error(EINVAL);
        memcpy(&info, c.data.data(), sizeof(info));
        out.device = info.ipi_ifindex;
        if (info.ipi_spec_dst.s_addr != INADDR_ANY) {
          out.has_source = true;
          out.source = IpAddress::FromV4(info.ipi_spec_dst);
        }
      } else if (c.type == IP_TTL) {
        out.hops = TRY(number(c));
        if (out.hops < 1 || out.hops > 255) return Error(EINVAL);
      } else if (c.type == IP_TOS) {
        out.traffic_class = TRY(OptionInt(c.data, /*allow_byte=*/true));
        if (out.traffic_class < 0 || out.traffic_class > 255) return Error(EINVAL);
      } else {
        return Error(EINVAL);
      }
    } else if (c.level == IPPROTO_IPV6 && v6()) {
      if (c.type == IPV6_PKTINFO) {
        in6_pktinfo info;
        if (c.data.size() < sizeof(info)) return Error(EINVAL);
        memcpy(&info, c.data.data(), sizeof(info));
        out.device = static_cast<int>(info.ipi6_ifindex);
        IpAddress source = IpAddress::FromV6(info.ipi6_addr);
        if (!source.IsAny()) {
          out.has_source = true;
          out.source = source;
        }
      } else if (c.type == IPV6_HOPLIMIT || c.type == IPV6_TCLASS) {
        int value = TRY(number(c));
        if (value < -1 || value > 255) return Error(EINVAL);
        (c.type == IPV6_HOPLIMIT ? out.hops : out.traffic_class) = value;
      } else {
        return Error(EINVAL);
      }
    }
  }
  if (out.device != 0 && out.device != InetStack::kLoopbackIndex) return Error(ENODEV);
  return out;
}

Status DatagramEndpoint::Destination(const SendArgs& args, const SendOptions& ask, InetAddress* to,
                                     IpAddress* source) {
  bool given = args.to.length > 0;
  if (given && v6() && args.to.family() == AF_UNSPEC) given = false;
  if (given) {
    int as = family();
    SockAddr address = args.to;
    // IPv4 addresses on an IPv6 socket; AF_UNSPEC for AF_INET on an IPv4 one.
    if (v6() && address.family() == AF_INET) as = AF_INET;
    if (!v6() && address.family() == AF_UNSPEC && address.length >= sizeof(sockaddr_in)) {
      sa_family_t inet = AF_INET;
      memcpy(address.bytes.data(), &inet, sizeof(inet));
    }
    Result<InetAddress> parsed = ParseInetAddress(address, as);
    if (!parsed.ok()) {
      bool wrong = parsed.error().code() == EAFNOSUPPORT && v6();
      return wrong ? Error(EINVAL) : parsed.error();
    }
    *to = *parsed;
  } else {
    absl::MutexLock lock(&mutex_);
    if (!connected()) return Error(EDESTADDRREQ);
    *to = remote;
  }
  if (ask.has_source) TRY(stack().CheckBind(ask.source));
  if (to->ip.IsMulticast() || (to->ip.v4() && to->ip.v4_bits() == INADDR_BROADCAST)) {
    // Only where the application has chosen the device: there is no route to them.
    bool v4 = to->ip.v4();
    int device = v4 ? ip().multicast_device.load() : ip().multicast_device6.load();
    if (ask.device != 0) device = ask.device;
    if (to->scope != 0) device = static_cast<int>(to->scope);
    IpAddress bound = LocalName().ip;
    if (device == 0 && v4 && bound.v4() && stack().IsLocal(bound)) {
      device = InetStack::kLoopbackIndex;
    }
    if (device != InetStack::kLoopbackIndex || !stack().up()) return Error(ENETUNREACH);
    *source = bound.v4() == v4 && !bound.IsAny() ? bound : IpAddress::Loopback(v4);
  } else {
    absl::MutexLock lock(&mutex_);
    TRY(Resolve(to, source));
  }
  bool broadcast =
      stack().IsBroadcast(to->ip) || (to->ip.v4() && to->ip.v4_bits() == INADDR_BROADCAST);
  if (broadcast && !options().flag(SO_BROADCAST)) return Error(EACCES);
  if (ask.has_source) *source = ask.source;
  return base::Ok();
}

Packet DatagramEndpoint::MakePacket(base::Ref<PacketData> data, const IpAddress& source,
                                    const InetAddress& to, const SendOptions& ask) {
  Packet p;
  p.data = std::move(data);
  p.from.ip = source;
  p.to = to;
  p.mark = options().mark.load();
  p.priority = options().priority.load();
  bool v4 = to.ip.v4(), many = to.ip.IsMulticast();
  int set = many ? (v4 ? ip().multicast_ttl.load() : ip().multicast_hops.load())
                 : (v4 ? ip().ttl.load() : ip().hops.load());
  if (ask.hops >= 0) set = ask.hops;
  p.hops = set >= 0 ? set : stack().default_ttl.load();
  p.traffic_class = v4 ? ip().tos.load() : ip().traffic_class.load();
  if (ask.traffic_class >= 0) p.traffic_class = ask.traffic_class;
  return p;
}

Status DatagramEndpoint::BindTo(const InetAddress& address, PortTable::Range ports) {
  absl::MutexLock lock(&mutex_);
  if (local.port != 0) return Error(EINVAL);
  SetPortUser();
  IpAddress old = local.ip;
  local = address;
  Status status = table().Bind(*this, ports);
  if (!status.ok()) {
    local = InetAddress{.ip = old};
    return status;
  }
  bound_address_ = !address.ip.IsAny();
  bound_port_ = address.port != 0;
  return base::Ok();
}

}  // namespace sentry
