// UDP (Linux: net/ipv4/udp.c).
#pragma once

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
  // A packet that a raw or packet socket has sent: `packet` begins with the header of UDP after
  // `skip` bytes.
  static void Input(InetStack& stack, Packet packet);
  // For /proc/net/udp.
  struct Row {
    InetAddress local, remote;
    bool connected;
    uint64_t queued, drops;
    uid_t uid;
    uint64_t ino;
  };
  Row Describe();

 private:
  ~UdpEndpoint() override = default;
  base::Status AutoBind() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // To whoever is bound there; false: nobody is.
  static bool Route(InetStack& stack, Packet packet);
};

}  // namespace sentry
