// Netlink messages: a bounded reader of what the guest sent and a writer of answers (Linux:
// include/net/netlink.h, lib/nlattr.c).
#pragma once

#include <linux/netlink.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace sentry {

using NetlinkBytes = std::span<const std::byte>;

// One message of a datagram.
struct NetlinkMessage {
  nlmsghdr header;
  NetlinkBytes payload;  // after the header, without padding
};

// Takes the next message off `*datagram`; none if what is left is no message (nlmsg_ok).
std::optional<NetlinkMessage> NextMessage(NetlinkBytes* datagram);

// The attributes behind a fixed header.
class NetlinkAttributes {
 public:
  explicit NetlinkAttributes(NetlinkBytes bytes) : bytes_(bytes) {}
  // The payload of the last attribute of this type; none if there is none. Stops at a broken one.
  std::optional<NetlinkBytes> Find(uint16_t type) const;
  template <typename T>
  std::optional<T> Get(uint16_t type) const {
    std::optional<NetlinkBytes> found = Find(type);
    if (!found || found->size() < sizeof(T)) return std::nullopt;
    T value;
    memcpy(&value, found->data(), sizeof(value));
    return value;
  }

 private:
  const NetlinkBytes bytes_;
};

// The fixed header at the beginning of a payload; zeros where the payload is too short. `*rest`:
// the attributes.
template <typename T>
T FixedHeader(NetlinkBytes payload, NetlinkBytes* rest) {
  T header{};
  memcpy(&header, payload.data(), std::min(payload.size(), sizeof(header)));
  *rest = payload.subspan(std::min<size_t>(payload.size(), NLMSG_ALIGN(sizeof(header))));
  return header;
}

// Builds one datagram of messages.
class NetlinkWriter {
 public:
  // Begins a message with a fixed header; End or the next Begin closes it.
  template <typename T>
  void Begin(const nlmsghdr& header, const T& fixed) {
    End();
    start_ = bytes_.size();
    Append(header);
    Append(fixed);
    Pad();
  }
  // The same without a fixed header: Raw follows.
  void BeginRaw(const nlmsghdr& header) {
    End();
    start_ = bytes_.size();
    Append(header);
  }
  void Attribute(uint16_t type, std::span<const std::byte> value);
  void Attribute(uint16_t type, std::string_view text);  // with a NUL
  template <typename T>
    requires(std::is_trivially_copyable_v<T> && !std::is_convertible_v<T, std::string_view>)
  void Attribute(uint16_t type, const T& value) {
    Attribute(type, std::as_bytes(std::span(&value, 1)));
  }
  // Bytes as they are, padded.
  void Raw(NetlinkBytes bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    Pad();
  }
  // An NLMSG_ERROR: the code, 0 for an acknowledgement, and the request's header; with an error all
  // of the request, unless `cap_ack`. Its type and flags are filled in.
  void Error(nlmsghdr header, const NetlinkMessage& request, int error, bool cap_ack);
  // Fills in the length of the message.
  void End();
  bool empty() const { return bytes_.empty(); }
  size_t size() const { return bytes_.size(); }
  std::vector<std::byte> Take();

 private:
  static constexpr size_t kNone = SIZE_MAX;
  template <typename T>
  void Append(const T& value) {
    auto b = std::as_bytes(std::span(&value, 1));
    bytes_.insert(bytes_.end(), b.begin(), b.end());
  }
  void Pad() { bytes_.resize(NLMSG_ALIGN(bytes_.size())); }

  std::vector<std::byte> bytes_;
  size_t start_ = kNone;
};

}  // namespace sentry
