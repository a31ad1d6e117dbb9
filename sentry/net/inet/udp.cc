#include "sentry/net/inet/udp.h"

#include <netinet/udp.h>

#include <cstring>

#include "sentry/net/inet/packet_input.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;

namespace {
constexpr size_t kMaxPayload4 = 65507, kMaxPayload6 = 65527;
}

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
      if (!multicast || to.Wants(packet.to.ip)) deliver(to, packet);
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

Result<size_t> UdpEndpoint::Send(IoSource& src, const SendArgs& args) {
  size_t length = src.remaining();
  {
    absl::MutexLock lock(&mutex_);
    TRY(AutoBind());
  }
  if (length > 0xffff) return Error(EMSGSIZE);
  if (args.flags & MSG_OOB) return Error(EOPNOTSUPP);
  SendOptions ask = TRY(ParseControl(args));
  InetAddress to;
  IpAddress source;
  TRY(Destination(args, ask, &to, &source));
  if (to.port == 0) return Error(EINVAL);
  TRY(CheckSend());
  if (length > (to.ip.v4() ? kMaxPayload4 : kMaxPayload6)) return Error(EMSGSIZE);
  Packet packet = MakePacket(TRY(PacketData::From(src)), source, to, ask);
  packet.from.port = LocalName().port;
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
  if (Route(stack(), packet)) return length;
  if (seen.data != nullptr) PortUnreachable(stack(), seen);
  Fail(ECONNREFUSED, packet, /*hard=*/true);
  return length;
}

void UdpEndpoint::Release() {
  LeaveAll();
  absl::MutexLock lock(&mutex_);
  table().Release(*this);
}

UdpEndpoint::Row UdpEndpoint::Describe() {
  absl::MutexLock lock(&mutex_);
  return {local, remote, connected(), queued(), drops(), uid, ino()};
}

}  // namespace sentry
