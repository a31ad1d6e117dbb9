// Raw and ICMP echo sockets (Linux: net/ipv4/raw.c, ping.c, icmp.c and their IPv6 forms). The only
// ones that see packets: those of their own protocol that raw and ICMP sockets send.
#pragma once

#include <array>

#include "sentry/net/inet/datagram.h"
#include "sentry/net/inet/packet_input.h"

namespace sentry {

class RawEndpoint : public DatagramEndpoint {
 public:
  RawEndpoint(base::Ref<InetStack> stack, int family, int protocol);

  base::Status Bind(Task& t, const InetAddress& address) override;
  base::Status Connect(InetAddress to) override;
  void Disconnect() override;
  base::Result<size_t> Send(IoSource& src, const SendArgs& args) override;
  void Release() override;
  PortTable& table() override { return stack().ping(); }  // has no port
  InetAddress LocalName() override;

  int protocol() const { return protocol_; }
  // Is the packet of its protocol, addresses and filter? `type`: of an ICMP message, or -1.
  bool Accepts(const Packet& packet, int type);
  // ICMP_FILTER and ICMP6_FILTER: bit n set drops messages of type n.
  std::array<uint32_t, 8> filter();
  void SetFilter(const std::array<uint32_t, 8>& filter);
  // IPV6_CHECKSUM: where the checksum is; -1: none.
  std::atomic<int> checksum_offset{-1};

 private:
  ~RawEndpoint() override = default;
  base::Result<Packet> WithHeader(IoSource& src, const InetAddress& to, int* protocol);

  const int protocol_;
  std::array<uint32_t, 8> filter_ ABSL_GUARDED_BY(mutex_){};
};

class PingEndpoint : public DatagramEndpoint {
 public:
  PingEndpoint(base::Ref<InetStack> stack, int family)
      : DatagramEndpoint(std::move(stack), family) {
    local.ip = IpAddress::Any(!v6());
  }
  // May `t` have one (net.ipv4.ping_group_range)?
  static bool Allowed(Task& t, const InetStack& stack);

  base::Status Bind(Task& t, const InetAddress& address) override;
  base::Status Connect(InetAddress to) override;
  void Disconnect() override;
  base::Result<size_t> Send(IoSource& src, const SendArgs& args) override;
  void Release() override;
  // The "port" is the identifier of the echo requests.
  PortTable& table() override { return stack().ping(); }

 private:
  ~PingEndpoint() override = default;
  base::Status AutoBind() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
};

}  // namespace sentry
