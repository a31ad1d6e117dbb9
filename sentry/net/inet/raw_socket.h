// Raw sockets as files: the options that only they have.
#pragma once

#include "sentry/net/inet/raw.h"

namespace sentry {

class RawSocket : public DatagramSocket {
 public:
  RawSocket(Vfs& vfs, base::Ref<RawEndpoint> endpoint, uint32_t flags)
      : DatagramSocket(vfs, endpoint, SOCK_RAW, endpoint->protocol(), flags),
        endpoint_(std::move(endpoint)) {
    options().SetFlag(SO_REUSEADDR, true);  // INET_PROTOSW_REUSE
  }
  base::Result<std::vector<std::byte>> GetOption(Task& t, int level, int name) override;
  base::Status SetOption(Task& t, int level, int name, std::span<const std::byte> value) override;

 private:
  ~RawSocket() override = default;
  const base::Ref<RawEndpoint> endpoint_;
};

}  // namespace sentry
