// Packets where somebody looks at them: what raw and packet sockets see of a stack's loopback
// device, and what becomes of what they send (Linux: net/ipv4/ip_input.c, icmp.c, net/core/dev.c).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "sentry/base/ref.h"
#include "sentry/net/inet/datagram.h"

namespace sentry {

// One packet on the loopback device, from the network's header on.
struct LinkFrame {
  base::Ref<PacketData> data;
  uint16_t protocol = 0;  // ETH_P_*
  uint32_t mark = 0;
  int priority = 0;
};

// Somebody who sees all of them.
class PacketTap : public base::RefCounted {
 public:
  // On its way out (before it comes in again), or coming in. Must not park.
  virtual void OnFrame(const LinkFrame& frame, bool outgoing) = 0;
};

// IPPROTO_ICMP or IPPROTO_ICMPV6.
int IcmpOf(bool v4);
// The Internet checksum of `bytes`, going on from `sum`.
uint16_t InternetChecksum(std::span<const std::byte> bytes, uint32_t sum = 0);
// The sum over the pseudo header of a packet whose transport part has `length` bytes.
uint32_t PseudoHeader(const Packet& packet, size_t length, int protocol);
void SetChecksum(std::span<std::byte> message, size_t at, uint32_t sum);
void SetIcmpChecksum(const Packet& packet, std::span<std::byte> message);

// Of the network's header in front of a packet's data: that of IPv4; there is none of IPv6.
size_t HeaderSize(const IpAddress& to);
// A packet whose data has room for an IPv4 header, which is filled in.
void FillHeader(Packet* packet, int protocol);
// A copy of a UDP packet with its headers.
Packet WithUdpHeader(const Packet& packet);

// A packet of `protocol` has come: raw and packet sockets see it. `packet` begins with the
// transport header after `skip` bytes, which are the IPv4 header. `origin`: a tap that does not see
// it go out.
void ShowPacket(InetStack& stack, const Packet& packet, int protocol, const PacketTap* origin);
// The same, and then its transport gets it: an echo request is answered, an echo reply and a UDP
// packet go to their sockets.
void PacketInput(InetStack& stack, const Packet& packet, int protocol);
// Nobody has the port that a UDP packet, with its headers, is for: its sender is told.
void PortUnreachable(InetStack& stack, const Packet& packet);
// What a packet socket has sent goes out and comes in again.
void FrameInput(InetStack& stack, const LinkFrame& frame, const PacketTap* origin);

}  // namespace sentry
