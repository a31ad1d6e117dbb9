// AF_PACKET sockets as files (Linux: net/packet/af_packet.c), without rings and fanout.
#pragma once

#include <atomic>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/net/packet/endpoint.h"
#include "sentry/net/socket.h"

namespace sentry {

class PacketSocket : public Socket {
 public:
  // `protocol`: as socket(2) has it, in network order.
  PacketSocket(Vfs& vfs, base::Ref<InetStack> stack, int type, int protocol, uint32_t flags);

  base::Status Bind(Task& t, const SockAddr& address) override;
  base::Result<SockAddr> LocalAddress() override;
  base::Result<size_t> Send(IoSource& src, SendArgs args) override;
  base::Result<size_t> Receive(IoDest& dst, RecvArgs* args) override;
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override { return endpoint_->Readiness(); }
  fiber::WaitQueue* wait_queue() override { return &endpoint_->wait_queue(); }

 protected:
  int TakeError() override { return endpoint_->TakeError(); }

 private:
  ~PacketSocket() override { endpoint_->Release(); }
  void AddControl(const ReceivedFrame& frame, RecvArgs* args);
  base::Status SetMembership(int name, std::span<const std::byte> value);

  const base::Ref<PacketEndpoint> endpoint_;
  std::atomic<uint32_t> flags_{0};  // of options that are on or off: bit = name
  std::atomic<int> version_{0}, reserve_{0}, timestamp_{0}, copy_threshold_{0};
  struct Membership {
    int device;
    uint16_t type;
    std::vector<std::byte> address;
    int count;
  };
  absl::Mutex mutex_;
  std::vector<Membership> memberships_ ABSL_GUARDED_BY(mutex_);
};

// socket(2) of AF_PACKET. ESOCKTNOSUPPORT, EPERM without CAP_NET_RAW.
base::Result<base::Ref<FileDescription>> NewPacketSocket(Task& t, Vfs& vfs, int type, int protocol,
                                                         uint32_t flags);

}  // namespace sentry
