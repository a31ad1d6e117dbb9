#include "sentry/net/inet/udp.h"

#include <netinet/udp.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "sentry/net/inet/packet_input.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {
constexpr size_t kMaxPayload4 = 65507, kMaxPayload6 = 65527;
constexpr int kSendCoverage = 10, kReceiveCoverage = 11;  // UDPLITE_{SEND,RECV}_CSCOV
constexpr size_t kMaxSegments = 128;                      // UDP_MAX_SEGMENTS
}  // namespace

Status UdpEndpoint::AutoBind() {
  if (local.port != 0) return base::Ok();
  SetPortUser();
  Status status = table().Bind(*this, stack().port_range());
  return status.ok() ? status : Status(Error(EAGAIN));
}

Status UdpEndpoint::Bind(Task& t, const InetAddress& address) {
  TRY(CheckBind(t, address, /*stream=*/false));
  return BindTo(address, stack().port_range());
}

// __ip4_datagram_connect().
Status UdpEndpoint::Connect(InetAddress to) {
  IpAddress source;
  SendArgs args;
  args.to = to.ToSockAddr(to.ip.v4() && !v6() ? AF_INET : AF_INET6);
  TRY(Destination(args, {}, &to, &source));
  absl::MutexLock lock(&mutex_);
  TRY(AutoBind());
  table().SetRemote(*this, local.ip.IsAny() ? source : local.ip, to);
  connected_ = true;
  return base::Ok();
}

// __udp_disconnect().
void UdpEndpoint::Disconnect() {
  absl::MutexLock lock(&mutex_);
  connected_ = false;
  IpAddress ip = bound_address_ ? local.ip : IpAddress::Any(!v6());
  if (bound_port_) {
    table().SetRemote(*this, ip, InetAddress());
    return;
  }
  table().Release(*this);
  local = InetAddress{.ip = ip};
  remote = InetAddress();
}

bool UdpEndpoint::Route(InetStack& stack, Packet packet) {
  NetCounters& counters = stack.counters;
  auto deliver = [&](DatagramEndpoint& to, const Packet& p) {
    bool taken = to.Deliver(p);
    (taken ? counters.udp_in : counters.udp_full).fetch_add(1, std::memory_order_relaxed);
  };
  bool multicast = packet.to.ip.IsMulticast();
  if (multicast || stack.IsBroadcast(packet.to.ip)) {
    if (multicast && !stack.InGroup(packet.to.ip)) return true;
    for (auto& user : stack.udp().FindAll(packet.to, packet.from)) {
      auto& to = static_cast<DatagramEndpoint&>(*user);
      if (!multicast || to.Wants(packet.to.ip, packet.from.ip)) deliver(to, packet);
    }
    return true;
  }
  base::Ref<PortUser> found = stack.udp().Find(packet.to, packet.from);
  if (found != nullptr) {
    deliver(static_cast<DatagramEndpoint&>(*found), packet);
    return true;
  }
  counters.udp_no_port.fetch_add(1, std::memory_order_relaxed);
  counters.icmp_out.fetch_add(1, std::memory_order_relaxed);
  return false;
}

void UdpEndpoint::Input(InetStack& stack, Packet packet) {
  udphdr header;
  const auto bytes = packet.payload();
  if (bytes.size() < sizeof(header)) return;
  memcpy(&header, bytes.data(), sizeof(header));
  const size_t length = ntohs(header.len);
  if (length < sizeof(header) || length > bytes.size()) return;
  if (header.check != 0 || !packet.to.ip.v4()) {
    const uint32_t sum = PseudoHeader(packet, length, IPPROTO_UDP);
    if (InternetChecksum(bytes.first(length), sum) != 0) return;
  }
  const Packet whole = packet;
  packet.from.port = ntohs(header.source);
  packet.to.port = ntohs(header.dest);
  packet.skip += sizeof(header);
  packet.cut += bytes.size() - length;
  if (!Route(stack, std::move(packet))) PortUnreachable(stack, whole);
}

void UdpEndpoint::SendOne(Packet packet) {
  NetCounters& counters = stack().counters;
  counters.udp_out.fetch_add(1, std::memory_order_relaxed);
  Packet seen;  // as who looks at packets sees it
  if (stack().watched()) {
    seen = WithUdpHeader(packet);
    ShowPacket(stack(), seen, IPPROTO_UDP, nullptr);
  } else {
    counters.packets.fetch_add(1, std::memory_order_relaxed);
    counters.bytes.fetch_add(packet.data->size(), std::memory_order_relaxed);
  }
  if (Route(stack(), packet)) return;
  if (seen.data != nullptr) PortUnreachable(stack(), seen);
  // The error is looked up by both ends: a connected socket hears of its peer alone.
  {
    absl::MutexLock lock(&mutex_);
    if (connected() && !(remote == packet.to)) return;
  }
  Fail(ECONNREFUSED, packet, /*hard=*/true);
}

Result<size_t> UdpEndpoint::SegmentOf(const SendArgs& args) const {
  auto segment = static_cast<size_t>(segment_.load());
  for (const ControlMessage& c : args.control) {
    if (c.level != IPPROTO_UDP) continue;
    uint16_t value;
    if (c.type != UDP_SEGMENT || c.data.size() != sizeof(value)) return Error(EINVAL);
    memcpy(&value, c.data.data(), sizeof(value));
    segment = value;
  }
  return segment;
}

Status UdpEndpoint::SendWhole(base::Ref<PacketData> data, const Pending& how) {
  const size_t length = data->size();
  if (length > (how.to.ip.v4() ? kMaxPayload4 : kMaxPayload6)) return Error(EMSGSIZE);
  Packet packet = MakePacket(std::move(data), how.source, how.to, how.ask);
  packet.from.port = LocalName().port;
  if (how.segment == 0 || length <= how.segment) {
    SendOne(std::move(packet));
    return base::Ok();
  }
  if ((length + how.segment - 1) / how.segment > kMaxSegments) return Error(EINVAL);
  for (size_t at = 0; at < length; at += how.segment) {
    Packet part = packet;
    part.skip = at;
    part.cut = length - std::min(length, at + how.segment);
    SendOne(std::move(part));
  }
  return base::Ok();
}

Result<size_t> UdpEndpoint::Append(IoSource& src, bool more, std::optional<Pending>* whole) {
  const size_t length = src.remaining();
  std::vector<std::byte> bytes(length);
  if (length > 0 && TRY(src.Get(bytes)) != length) return Error(EFAULT);
  absl::MutexLock lock(&mutex_);
  if (!pending_) return Error(EINVAL);  // another thread has sent it
  if (pending_->bytes.size() + length > kMaxPayload4) {
    pending_.reset();
    return Error(EMSGSIZE);
  }
  pending_->bytes.insert(pending_->bytes.end(), bytes.begin(), bytes.end());
  if (!more) *whole = std::exchange(pending_, std::nullopt);
  return length;
}

Result<size_t> UdpEndpoint::Send(IoSource& src, const SendArgs& args) {
  size_t length = src.remaining();
  const bool more = (args.flags & MSG_MORE) != 0 || cork_.load();
  bool appends;
  {
    absl::MutexLock lock(&mutex_);
    TRY(AutoBind());
    appends = pending_.has_value();
  }
  if (length > 0xffff) return Error(EMSGSIZE);
  if ((args.flags & MSG_OOB) && !v6()) return Error(EOPNOTSUPP);
  Pending how;
  if (!appends) {
    how.ask = TRY(ParseControl(args));
    how.segment = TRY(SegmentOf(args));
    TRY(Destination(args, how.ask, &how.to, &how.source));
    if (how.to.port == 0) return Error(EINVAL);
    TRY(CheckSend());
    if (length > (how.to.ip.v4() ? kMaxPayload4 : kMaxPayload6)) return Error(EMSGSIZE);
    if (!more) {
      TRY(SendWhole(TRY(PacketData::From(src)), how));
      return length;
    }
    absl::MutexLock lock(&mutex_);
    if (!pending_) pending_ = std::move(how);
  }
  std::optional<Pending> whole;
  TRY(Append(src, more, &whole));
  if (!whole) return length;
  auto data = base::MakeRef<PacketData>(whole->bytes.size());
  std::copy(whole->bytes.begin(), whole->bytes.end(), data->bytes().begin());
  TRY(SendWhole(std::move(data), *whole));
  return length;
}

Result<int> UdpEndpoint::GetUdpOption(int name) {
  switch (name) {
    case UDP_CORK:
      return cork_.load() ? 1 : 0;
    case UDP_SEGMENT:
      return segment_.load();
    case UDP_GRO:
      return gro_.load() ? 1 : 0;
    case UDP_NO_CHECK6_TX:
      return no_check_send_.load() ? 1 : 0;
    case UDP_NO_CHECK6_RX:
      return no_check_receive_.load() ? 1 : 0;
    case UDP_ENCAP:
    case kSendCoverage:
    case kReceiveCoverage:  // of UDP-Lite, which can be asked for of UDP too
      return 0;
    default:
      return Error(ENOPROTOOPT);
  }
}

Status UdpEndpoint::SetUdpOption(int name, int number) {
  switch (name) {
    case UDP_CORK: {
      cork_ = number != 0;
      if (number != 0) return base::Ok();
      std::optional<Pending> whole;
      {
        absl::MutexLock lock(&mutex_);
        whole = std::exchange(pending_, std::nullopt);
      }
      if (!whole) return base::Ok();
      auto data = base::MakeRef<PacketData>(whole->bytes.size());
      std::copy(whole->bytes.begin(), whole->bytes.end(), data->bytes().begin());
      return SendWhole(std::move(data), *whole);
    }
    case UDP_SEGMENT:
      if (number < 0 || number > 0xffff) return Error(EINVAL);
      segment_ = number;
      return base::Ok();
    case UDP_GRO:  // packets may come together, and need not
      gro_ = number != 0;
      return base::Ok();
    case UDP_NO_CHECK6_TX:
      no_check_send_ = number != 0;
      return base::Ok();
    case UDP_NO_CHECK6_RX:
      no_check_receive_ = number != 0;
      return base::Ok();
    case UDP_ENCAP:
      return number == 0 ? base::Ok() : Status(Error(ENOPROTOOPT));
    default:
      return Error(ENOPROTOOPT);
  }
}

void UdpEndpoint::Release() {
  LeaveAll();
  absl::MutexLock lock(&mutex_);
  table().Release(*this);
}

}  // namespace sentry
