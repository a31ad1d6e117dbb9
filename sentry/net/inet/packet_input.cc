#include "sentry/net/inet/packet_input.h"

#include <linux/if_ether.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>

#include <algorithm>
#include <cstring>

#include "sentry/base/random.h"
#include "sentry/net/inet/raw.h"
#include "sentry/net/inet/udp.h"

namespace sentry {
namespace {

constexpr size_t kIcmpHeader = 8, kIpHeader = sizeof(iphdr);
constexpr size_t kMaxQuoted = 576 - kIpHeader - kIcmpHeader;  // of a packet, in an ICMP error

// The packet as it is on the device.
LinkFrame ToFrame(const Packet& packet, int protocol) {
  LinkFrame frame;
  frame.mark = packet.mark;
  frame.priority = packet.priority;
  if (packet.to.ip.v4()) {
    frame.protocol = ETH_P_IP;
    frame.data = packet.data;
    return frame;
  }
  frame.protocol = ETH_P_IPV6;
  const auto payload = packet.payload();
  ip6_hdr header{};
  header.ip6_flow = htonl(6u << 28 | static_cast<uint32_t>(packet.traffic_class & 0xff) << 20);
  header.ip6_plen = htons(static_cast<uint16_t>(payload.size()));
  header.ip6_nxt = static_cast<uint8_t>(protocol);
  header.ip6_hlim = static_cast<uint8_t>(packet.hops);
  header.ip6_src = packet.from.ip.ToV6();
  header.ip6_dst = packet.to.ip.ToV6();
  frame.data = base::MakeRef<PacketData>(sizeof(header) + payload.size());
  memcpy(frame.data->bytes().data(), &header, sizeof(header));
  std::copy(payload.begin(), payload.end(), frame.data->bytes().begin() + sizeof(header));
  return frame;
}

void ShowFrame(InetStack& stack, const LinkFrame& frame, const PacketTap* origin) {
  const std::vector<base::Ref<PacketTap>> taps = stack.Taps();
  for (const auto& tap : taps) {
    if (tap.get() != origin) tap->OnFrame(frame, /*outgoing=*/true);
  }
  for (const auto& tap : taps) tap->OnFrame(frame, /*outgoing=*/false);
}

void ShowRaw(InetStack& stack, const Packet& packet, int protocol) {
  const bool v4 = packet.to.ip.v4();
  const auto message = packet.payload();
  const bool icmp = protocol == IcmpOf(v4) && message.size() >= kIcmpHeader;
  const int type = icmp ? static_cast<int>(message[0]) : -1;
  for (base::Ref<RawEndpoint>& raw : stack.RawSockets()) {
    if (raw->protocol() != protocol || raw->v6() == v4 || !raw->Accepts(packet, type)) continue;
    Packet copy = packet;
    copy.skip = 0;  // with the header
    raw->Deliver(std::move(copy));
  }
}

// icmp_echo(): the same message goes back.
void AnswerEcho(InetStack& stack, const Packet& request, std::span<const std::byte> message) {
  bool v4 = request.to.ip.v4();
  if (request.to.ip.IsMulticast() || stack.IsBroadcast(request.to.ip)) return;
  Packet reply;
  reply.from.ip = request.to.ip;
  reply.to.ip = request.from.ip;
  reply.hops = stack.default_ttl.load();
  reply.traffic_class = request.traffic_class;
  reply.skip = HeaderSize(reply.to.ip);
  reply.data = base::MakeRef<PacketData>(reply.skip + message.size());
  auto answer = reply.data->bytes().subspan(reply.skip);
  std::copy(message.begin(), message.end(), answer.begin());
  answer[0] = static_cast<std::byte>(v4 ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY);
  SetIcmpChecksum(reply, answer);
  FillHeader(&reply, IcmpOf(v4));
  stack.counters.icmp_out.fetch_add(1, std::memory_order_relaxed);
  PacketInput(stack, reply, IcmpOf(v4));
}

// The transport gets what has been shown.
void TransportInput(InetStack& stack, const Packet& packet, int protocol) {
  const bool v4 = packet.to.ip.v4();
  if (protocol == IPPROTO_UDP) return UdpEndpoint::Input(stack, packet);
  const auto message = packet.payload();
  if (protocol != IcmpOf(v4) || message.size() < kIcmpHeader) return;
  const int type = static_cast<int>(message[0]);
  stack.counters.icmp_in.fetch_add(1, std::memory_order_relaxed);
  if (type == (v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST)) {
    AnswerEcho(stack, packet, message);
  } else if (type == (v4 ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY)) {
    uint16_t identifier;
    memcpy(&identifier, message.data() + 4, sizeof(identifier));
    InetAddress to = packet.to;
    to.port = ntohs(identifier);
    base::Ref<PortUser> found = stack.ping().Find(to, packet.from);
    if (found != nullptr) static_cast<PingEndpoint&>(*found).Deliver(packet);
  }
}

// ip_rcv(). False: it is no good packet.
bool ParseV4(const LinkFrame& frame, Packet* p, int* protocol) {
  iphdr header;
  const std::span<const std::byte> bytes = frame.data->bytes();
  if (bytes.size() < sizeof(header)) return false;
  memcpy(&header, bytes.data(), sizeof(header));
  const size_t length = header.ihl * size_t{4}, total = ntohs(header.tot_len);
  if (header.version != 4 || length < sizeof(header) || length > bytes.size()) return false;
  if (total < length || total > bytes.size()) return false;
  if (InternetChecksum(bytes.first(length)) != 0) return false;
  if ((ntohs(header.frag_off) & (IP_MF | IP_OFFMASK)) != 0) return false;
  p->data = frame.data;
  p->from.ip = IpAddress::FromV4({header.saddr});
  p->to.ip = IpAddress::FromV4({header.daddr});
  p->hops = header.ttl;
  p->traffic_class = header.tos;
  p->skip = length;
  p->cut = bytes.size() - total;
  *protocol = header.protocol;
  return true;
}

// ip_route_input_slow(): a packet from outside has no business with addresses of this machine.
bool IsMartian(const InetStack& stack, const Packet& p) {
  const bool loopback = p.from.ip.IsLoopback() || p.to.ip.IsLoopback();
  if (loopback && stack.route_localnet_all.load() == 0 && stack.route_localnet_lo.load() == 0) {
    return true;
  }
  return stack.IsLocal(p.from.ip) && stack.accept_local_all.load() == 0 &&
         stack.accept_local_lo.load() == 0;
}

bool ParseV6(const LinkFrame& frame, Packet* p, int* protocol) {
  ip6_hdr header;
  const std::span<const std::byte> bytes = frame.data->bytes();
  if (bytes.size() < sizeof(header)) return false;
  memcpy(&header, bytes.data(), sizeof(header));
  const size_t length = ntohs(header.ip6_plen);
  if (header.ip6_vfc >> 4 != 6 || length > bytes.size() - sizeof(header)) return false;
  // Without the header: sockets of IPv6 do not see it.
  p->data = base::MakeRef<PacketData>(length);
  std::copy_n(bytes.begin() + sizeof(header), length, p->data->bytes().begin());
  p->from.ip = IpAddress::FromV6(header.ip6_src);
  p->to.ip = IpAddress::FromV6(header.ip6_dst);
  p->hops = header.ip6_hlim;
  p->traffic_class = static_cast<int>(ntohl(header.ip6_flow) >> 20 & 0xff);
  *protocol = header.ip6_nxt;
  return !p->to.ip.v4();
}

}  // namespace

int IcmpOf(bool v4) { return v4 ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6}; }

uint16_t InternetChecksum(std::span<const std::byte> bytes, uint32_t sum) {
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    uint16_t word;
    memcpy(&word, bytes.data() + i, sizeof(word));
    sum += word;
    if (sum >= 0xffff0000u) sum = (sum & 0xffff) + (sum >> 16);
  }
  if (bytes.size() % 2 != 0) sum += static_cast<uint32_t>(bytes.back());
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

uint32_t PseudoHeader(const Packet& p, size_t length, int protocol) {
  if (p.to.ip.v4()) {
    struct {
      in_addr from, to;
      uint8_t zero, protocol;
      uint16_t length;
    } header{p.from.ip.ToV4(), p.to.ip.ToV4(), 0, static_cast<uint8_t>(protocol),
             htons(static_cast<uint16_t>(length))};
    return static_cast<uint16_t>(~InternetChecksum(std::as_bytes(std::span(&header, 1))));
  }
  struct {
    in6_addr from, to;
    uint32_t length, next;
  } header{p.from.ip.ToV6(), p.to.ip.ToV6(), htonl(static_cast<uint32_t>(length)),
           htonl(static_cast<uint32_t>(protocol))};
  return static_cast<uint16_t>(~InternetChecksum(std::as_bytes(std::span(&header, 1))));
}

void SetChecksum(std::span<std::byte> message, size_t at, uint32_t sum) {
  memset(message.data() + at, 0, sizeof(uint16_t));
  uint16_t value = InternetChecksum(message, sum);
  memcpy(message.data() + at, &value, sizeof(value));
}

void SetIcmpChecksum(const Packet& p, std::span<std::byte> message) {
  uint32_t sum = p.to.ip.v4() ? 0 : PseudoHeader(p, message.size(), IPPROTO_ICMPV6);
  SetChecksum(message, 2, sum);
}

size_t HeaderSize(const IpAddress& to) { return to.v4() ? kIpHeader : 0; }

void FillHeader(Packet* p, int protocol) {
  if (!p->to.ip.v4()) return;
  iphdr header{};
  header.version = 4;
  header.ihl = kIpHeader / 4;
  header.tos = static_cast<uint8_t>(p->traffic_class);
  header.tot_len = htons(static_cast<uint16_t>(p->data->size()));
  header.id = static_cast<uint16_t>(base::Random64());
  header.ttl = static_cast<uint8_t>(p->hops);
  header.protocol = static_cast<uint8_t>(protocol);
  header.saddr = p->from.ip.ToV4().s_addr;
  header.daddr = p->to.ip.ToV4().s_addr;
  header.check = InternetChecksum(std::as_bytes(std::span(&header, 1)));
  memcpy(p->data->bytes().data(), &header, sizeof(header));
}

Packet WithUdpHeader(const Packet& packet) {
  Packet whole = packet;
  const auto payload = packet.payload();
  const size_t room = HeaderSize(packet.to.ip), length = sizeof(udphdr) + payload.size();
  whole.data = base::MakeRef<PacketData>(room + length);
  whole.skip = room;
  whole.cut = 0;
  auto message = whole.data->bytes().subspan(room);
  udphdr header{};
  header.source = htons(packet.from.port);
  header.dest = htons(packet.to.port);
  header.len = htons(static_cast<uint16_t>(length));
  memcpy(message.data(), &header, sizeof(header));
  std::copy(payload.begin(), payload.end(), message.begin() + sizeof(header));
  SetChecksum(message, offsetof(udphdr, check), PseudoHeader(whole, length, IPPROTO_UDP));
  FillHeader(&whole, IPPROTO_UDP);
  return whole;
}

void ShowPacket(InetStack& stack, const Packet& packet, int protocol, const PacketTap* origin) {
  stack.counters.packets.fetch_add(1, std::memory_order_relaxed);
  stack.counters.bytes.fetch_add(packet.data->size(), std::memory_order_relaxed);
  if (!stack.watched()) return;
  ShowFrame(stack, ToFrame(packet, protocol), origin);
  ShowRaw(stack, packet, protocol);
}

void PacketInput(InetStack& stack, const Packet& packet, int protocol) {
  ShowPacket(stack, packet, protocol, nullptr);
  TransportInput(stack, packet, protocol);
}

void PortUnreachable(InetStack& stack, const Packet& packet) {
  if (!packet.to.ip.v4() || stack.IsBroadcast(packet.to.ip)) return;
  const std::span<const std::byte> all = packet.data->bytes();
  const auto quoted = all.first(std::min(all.size(), kMaxQuoted));
  Packet error;
  error.from.ip = packet.to.ip;
  error.to.ip = packet.from.ip;
  error.hops = stack.default_ttl.load();
  error.traffic_class = IPTOS_PREC_INTERNETCONTROL;
  error.skip = kIpHeader;
  error.data = base::MakeRef<PacketData>(kIpHeader + kIcmpHeader + quoted.size());
  auto message = error.data->bytes().subspan(kIpHeader);
  std::fill_n(message.begin(), kIcmpHeader, std::byte{0});
  message[0] = std::byte{ICMP_UNREACH};
  message[1] = std::byte{ICMP_UNREACH_PORT};
  std::copy(quoted.begin(), quoted.end(), message.begin() + kIcmpHeader);
  SetIcmpChecksum(error, message);
  FillHeader(&error, IPPROTO_ICMP);
  PacketInput(stack, error, IPPROTO_ICMP);
}

void FrameInput(InetStack& stack, const LinkFrame& frame, const PacketTap* origin) {
  stack.counters.packets.fetch_add(1, std::memory_order_relaxed);
  stack.counters.bytes.fetch_add(frame.data->size(), std::memory_order_relaxed);
  ShowFrame(stack, frame, origin);
  Packet packet;
  packet.mark = frame.mark;
  packet.priority = frame.priority;
  int protocol = 0;
  const bool good = frame.protocol == ETH_P_IP     ? ParseV4(frame, &packet, &protocol)
                    : frame.protocol == ETH_P_IPV6 ? ParseV6(frame, &packet, &protocol)
                                                   : false;
  if (!good) return;
  if (!packet.to.ip.IsMulticast() && !stack.IsLocal(packet.to.ip) &&
      !stack.IsBroadcast(packet.to.ip)) {
    return;
  }
  if (frame.protocol == ETH_P_IP && IsMartian(stack, packet)) return;
  ShowRaw(stack, packet, protocol);
  TransportInput(stack, packet, protocol);
}

}  // namespace sentry
