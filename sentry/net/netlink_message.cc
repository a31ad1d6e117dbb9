#include "sentry/net/netlink_message.h"

#include <algorithm>
#include <utility>

namespace sentry {

std::optional<NetlinkMessage> NextMessage(NetlinkBytes* datagram) {
  NetlinkMessage m;
  if (datagram->size() < sizeof(m.header)) return std::nullopt;
  memcpy(&m.header, datagram->data(), sizeof(m.header));
  size_t length = m.header.nlmsg_len;
  if (length < sizeof(m.header) || length > datagram->size()) return std::nullopt;
  m.payload = datagram->subspan(sizeof(m.header), length - sizeof(m.header));
  *datagram = datagram->subspan(std::min<size_t>(NLMSG_ALIGN(length), datagram->size()));
  return m;
}

std::optional<NetlinkBytes> NetlinkAttributes::Find(uint16_t type) const {
  std::optional<NetlinkBytes> found;
  NetlinkBytes rest = bytes_;
  while (rest.size() >= sizeof(nlattr)) {
    nlattr a;
    memcpy(&a, rest.data(), sizeof(a));
    if (a.nla_len < sizeof(a) || a.nla_len > rest.size()) break;
    if ((a.nla_type & NLA_TYPE_MASK) == type) {
      found = rest.subspan(sizeof(a), a.nla_len - sizeof(a));
    }
    rest = rest.subspan(std::min<size_t>(NLA_ALIGN(a.nla_len), rest.size()));
  }
  return found;
}

void NetlinkWriter::Attribute(uint16_t type, std::span<const std::byte> value) {
  nlattr a{static_cast<uint16_t>(sizeof(nlattr) + value.size()), type};
  Append(a);
  bytes_.insert(bytes_.end(), value.begin(), value.end());
  Pad();
}

void NetlinkWriter::Attribute(uint16_t type, std::string_view text) {
  std::vector<std::byte> value(text.size() + 1);
  memcpy(value.data(), text.data(), text.size());
  Attribute(type, value);
}

void NetlinkWriter::Error(nlmsghdr header, const NetlinkMessage& request, int error, bool cap_ack) {
  const bool capped = error == 0 || cap_ack;
  header.nlmsg_type = NLMSG_ERROR;
  header.nlmsg_flags = capped ? NLM_F_CAPPED : 0;
  nlmsgerr e{};
  e.error = -error;
  e.msg = request.header;
  Begin(header, e);
  if (!capped) Raw(request.payload);
  End();
}

void NetlinkWriter::End() {
  if (start_ == kNone) return;
  auto length = static_cast<uint32_t>(bytes_.size() - start_);
  memcpy(bytes_.data() + start_ + offsetof(nlmsghdr, nlmsg_len), &length, sizeof(length));
  start_ = kNone;
}

std::vector<std::byte> NetlinkWriter::Take() {
  End();
  return std::exchange(bytes_, {});
}

}  // namespace sentry
