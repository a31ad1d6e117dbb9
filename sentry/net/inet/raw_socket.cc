#include "sentry/net/inet/raw_socket.h"

#include <netinet/icmp6.h>

#include <algorithm>
#include <cstring>

namespace sentry {
namespace {

constexpr int kIcmpFilter = 1;  // ICMP_FILTER of <linux/icmp.h>

constexpr int kIcmpChecksumAt = 2;

bool IsChecksum(int level, int name) {
  return (level == IPPROTO_IPV6 || level == SOL_RAW) && name == IPV6_CHECKSUM;
}

}  // namespace

using base::Error;
using base::Result;
using base::Status;

Result<std::vector<std::byte>> RawSocket::GetOption(Task& t, int level, int name) {
  if (!endpoint_->v6() && level == SOL_RAW) {
    if (name != kIcmpFilter) return Error(ENOPROTOOPT);
    if (protocol() != IPPROTO_ICMP) return Error(EOPNOTSUPP);
    return OptionBytes(endpoint_->filter()[0]);
  }
  if (endpoint_->v6() && level == IPPROTO_ICMPV6 && protocol() == IPPROTO_ICMPV6) {
    if (name != ICMP6_FILTER) return Error(ENOPROTOOPT);
    return OptionBytes(endpoint_->filter());
  }
  if (endpoint_->v6() && IsChecksum(level, name)) {
    // ICMPv6 has its checksum where it has it.
    if (protocol() == IPPROTO_ICMPV6) return OptionBytes(kIcmpChecksumAt);
    return OptionBytes(endpoint_->checksum_offset.load());
  }
  return DatagramSocket::GetOption(t, level, name);
}

Status RawSocket::SetOption(Task& t, int level, int name, std::span<const std::byte> value) {
  std::array<uint32_t, 8> filter{};
  bool filter4 = !endpoint_->v6() && level == SOL_RAW;
  bool filter6 = endpoint_->v6() && level == IPPROTO_ICMPV6 && protocol() == IPPROTO_ICMPV6;
  if (filter4 || filter6) {
    if (filter4 && name != kIcmpFilter) return Error(ENOPROTOOPT);
    if (filter4 && protocol() != IPPROTO_ICMP) return Error(EOPNOTSUPP);
    if (filter6 && name != ICMP6_FILTER) return Error(ENOPROTOOPT);
    size_t most = filter4 ? sizeof(uint32_t) : sizeof(filter);
    memcpy(filter.data(), value.data(), std::min(value.size(), most));
    endpoint_->SetFilter(filter);
    return base::Ok();
  }
  if (endpoint_->v6() && IsChecksum(level, name)) {
    int at = TRY(OptionInt(value));
    if (protocol() == IPPROTO_ICMPV6) {
      return level == SOL_RAW ? base::Ok() : Status(Error(EINVAL));
    }
    if (at > 0 && (at & 1) != 0) return Error(EINVAL);
    endpoint_->checksum_offset = at < 0 ? -1 : at;
    return base::Ok();
  }
  return DatagramSocket::SetOption(t, level, name, value);
}

}  // namespace sentry
