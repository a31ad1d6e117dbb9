// UDP (Linux: net/ipv4/udp.c).
#pragma once

#include <optional>
#include <vector>

#include "sentry/net/inet/datagram.h"

namespace sentry {

class UdpEndpoint : public DatagramEndpoint {
 public:
  UdpEndpoint(base::Ref<InetStack> stack, int family) : DatagramEndpoint(std::move(stack), family) {
    local.ip = IpAddress::Any(!v6());
  }

  base::Status Bind(Task& t, const InetAddress& address) override;
  base::Status Connect(InetAddress to) override;
  void Disconnect() override;
  base::Result<size_t> Send(IoSource& src, const SendArgs& args) override;
  void Release() override;
  PortTable& table() override { return stack().udp(); }
  size_t filter_header() const override { return 8; }
  bool refuses_urgent() const override { return false; }
  // A packet that a raw or packet socket has sent: `packet` begins with the header of UDP after
  // `skip` bytes.
  static void Input(InetStack& stack, Packet packet);
  // Options of IPPROTO_UDP. EINVAL, ENOPROTOOPT.
  base::Result<int> GetUdpOption(int name);
  base::Status SetUdpOption(int name, int number);

 private:
  ~UdpEndpoint() override = default;
  base::Status AutoBind() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // A datagram that is still being put together (UDP_CORK, MSG_MORE).
  struct Pending {
    InetAddress to;
    IpAddress source;
    SendOptions ask;
    size_t segment = 0;
    std::vector<std::byte> bytes;
  };
  // Appends to what is pending; `*whole`: it is complete now. EMSGSIZE drops it.
  base::Result<size_t> Append(IoSource& src, bool more, std::optional<Pending>* whole);
  // UDP_SEGMENT, by option or control message; 0: whole. EINVAL.
  base::Result<size_t> SegmentOf(const SendArgs& args) const;
  // In one packet, or in several of `segment` bytes. EMSGSIZE, EINVAL.
  base::Status SendWhole(base::Ref<PacketData> data, const Pending& how);
  void SendOne(Packet packet);
  // To whoever is bound there; false: nobody is.
  static bool Route(InetStack& stack, Packet packet);

  std::atomic<bool> cork_{false}, gro_{false}, no_check_send_{false}, no_check_receive_{false};
  std::atomic<int> segment_{0};
  std::optional<Pending> pending_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
