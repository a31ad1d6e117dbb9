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
  // To whoever is bound there.
  void Route(Packet packet);
};

}  // namespace sentry
