#include "sentry/net/socket_filter.h"

#include <optional>

#include "sentry/base/classic_bpf.h"
#include "sentry/base/random.h"

namespace sentry {
namespace {

using base::Result;

// What a program loads of one packet.
class PacketLoads {
 public:
  explicit PacketLoads(const FilterContext& packet) : packet_(packet) {}
  std::optional<uint32_t> operator()(const sock_filter& f, uint32_t a, uint32_t x) const;

 private:
  // `size` bytes at `offset`, which may count from the headers (SKF_NET_OFF, SKF_LL_OFF). None: the
  // packet has none there.
  std::optional<uint32_t> Load(uint32_t offset, size_t size) const;
  uint32_t Ancillary(uint32_t k, uint32_t a, uint32_t x) const;

  const FilterContext& packet_;
};

std::optional<uint32_t> PacketLoads::Load(uint32_t offset, size_t size) const {
  int64_t at = static_cast<int32_t>(offset);
  if (at < 0) {
    if (at >= SKF_NET_OFF) {
      at += packet_.network_offset - SKF_NET_OFF;
    } else if (at >= SKF_LL_OFF) {
      at += packet_.link_offset - SKF_LL_OFF;
    } else {
      return std::nullopt;
    }
  }
  if (at < 0 || static_cast<uint64_t>(at) + size > packet_.bytes.size()) return std::nullopt;
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) {
    value = value << 8 | static_cast<uint32_t>(packet_.bytes[static_cast<size_t>(at) + i]);
  }
  return value;
}

uint32_t PacketLoads::Ancillary(uint32_t k, uint32_t a, uint32_t x) const {
  switch (k - static_cast<uint32_t>(SKF_AD_OFF)) {
    case SKF_AD_PROTOCOL:
      return packet_.protocol;
    case SKF_AD_PKTTYPE:
      return packet_.packet_type;
    case SKF_AD_IFINDEX:
      return packet_.device;
    case SKF_AD_HATYPE:
      return packet_.hardware_type;
    case SKF_AD_MARK:
      return packet_.mark;
    case SKF_AD_ALU_XOR_X:
      return a ^ x;
    case SKF_AD_RANDOM:
      return static_cast<uint32_t>(base::Random64());
    case SKF_AD_PAY_OFFSET:
      return 0;
    default:  // queues, hashes, VLAN tags, the processor: there are none here
      return 0;
  }
}

std::optional<uint32_t> PacketLoads::operator()(const sock_filter& f, uint32_t a,
                                                uint32_t x) const {
  const size_t size = BPF_SIZE(f.code) == BPF_W ? 4 : BPF_SIZE(f.code) == BPF_H ? 2 : 1;
  switch (BPF_MODE(f.code)) {
    case BPF_LEN:
      return static_cast<uint32_t>(packet_.bytes.size());
    case BPF_MSH: {
      const std::optional<uint32_t> value = Load(f.k, 1);
      return value ? std::optional<uint32_t>((*value & 0xf) << 2) : std::nullopt;
    }
    case BPF_ABS:
      return base::IsAncillaryLoad(f.k) ? Ancillary(f.k, a, x) : Load(f.k, size);
    default:  // BPF_IND
      return Load(x + f.k, size);
  }
}

}  // namespace

Result<base::Ref<SocketFilter>> SocketFilter::New(std::vector<sock_filter> code) {
  TRY(base::CheckClassicBpf(code));
  return base::MakeRef<SocketFilter>(std::move(code));
}

uint32_t SocketFilter::Run(const FilterContext& packet) const {
  return base::RunClassicBpf(code_, PacketLoads(packet));
}

}  // namespace sentry
