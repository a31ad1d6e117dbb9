// Classic BPF that a program attaches to a socket (SO_ATTACH_FILTER): what the interpreter of
// net/core/filter.c makes of it.
#pragma once

#include <linux/filter.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace sentry {

// What a filter may ask about a packet besides its bytes (SKF_AD_*).
struct FilterContext {
  std::span<const std::byte> bytes;  // from where the socket's view of the packet begins
  // From there, where the network's and the link's headers begin.
  int network_offset = 0, link_offset = 0;
  uint16_t protocol = 0;  // ETH_P_*
  uint32_t packet_type = 0, device = 0, hardware_type = 0, mark = 0;
};

// Immutable.
class SocketFilter : public base::RefCounted {
 public:
  // EINVAL for what bpf_check_classic refuses.
  static base::Result<base::Ref<SocketFilter>> New(std::vector<sock_filter> code);
  const std::vector<sock_filter>& code() const { return code_; }
  // How many bytes of the packet the socket gets; 0: it is dropped.
  uint32_t Run(const FilterContext& packet) const;

 private:
  explicit SocketFilter(std::vector<sock_filter> code) : code_(std::move(code)) {}
  ~SocketFilter() override = default;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  const std::vector<sock_filter> code_;
};

}  // namespace sentry
