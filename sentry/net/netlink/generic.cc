#include "sentry/net/netlink/generic.h"

#include <linux/genetlink.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "sentry/base/result.h"

namespace sentry {
namespace {

using base::Error;
using base::Status;

constexpr size_t kMaxRequests = 64;  // of one datagram
constexpr std::string_view kController = "nlctrl", kGroup = "notify";
constexpr uint32_t kVersion = 2;
// GETFAMILY: for one and for all, with a policy.
constexpr uint32_t kGetFamily = GENL_CMD_CAP_DO | GENL_CMD_CAP_DUMP | GENL_CMD_CAP_HASPOL;

// One request and where its answers go.
struct GenericRequest {
  uint32_t port;
  const NetlinkMessage& message;
  NetlinkWriter& out;

  bool dump() const { return (message.header.nlmsg_flags & NLM_F_DUMP) == NLM_F_DUMP; }
  nlmsghdr Header(uint16_t type) const {
    nlmsghdr h{};
    h.nlmsg_type = type;
    h.nlmsg_flags = dump() ? NLM_F_MULTI : 0;
    h.nlmsg_seq = message.header.nlmsg_seq;
    h.nlmsg_pid = port;
    return h;
  }
};

// ctrl_fill_info() of the controller.
void WriteController(const GenericRequest& r) {
  r.out.Begin(r.Header(GENL_ID_CTRL), genlmsghdr{CTRL_CMD_NEWFAMILY, kVersion, 0});
  r.out.Attribute(CTRL_ATTR_FAMILY_NAME, kController);
  r.out.Attribute(CTRL_ATTR_FAMILY_ID, uint16_t{GENL_ID_CTRL});
  r.out.Attribute(CTRL_ATTR_VERSION, kVersion);
  r.out.Attribute(CTRL_ATTR_HDRSIZE, uint32_t{0});
  r.out.Attribute(CTRL_ATTR_MAXATTR, uint32_t{0});
  // A list each, of one entry: numbered from 1.
  NetlinkWriter operation, operations, group, groups;
  operation.Attribute(CTRL_ATTR_OP_ID, uint32_t{CTRL_CMD_GETFAMILY});
  operation.Attribute(CTRL_ATTR_OP_FLAGS, kGetFamily);
  operations.Attribute(1, std::span<const std::byte>(operation.Take()));
  r.out.Attribute(CTRL_ATTR_OPS, std::span<const std::byte>(operations.Take()));
  group.Attribute(CTRL_ATTR_MCAST_GRP_ID, uint32_t{GENL_ID_CTRL});
  group.Attribute(CTRL_ATTR_MCAST_GRP_NAME, kGroup);
  groups.Attribute(1, std::span<const std::byte>(group.Take()));
  r.out.Attribute(CTRL_ATTR_MCAST_GROUPS, std::span<const std::byte>(groups.Take()));
  r.out.End();
}

// A string that ends within the longest name (NLA_NUL_STRING). EINVAL, ERANGE.
base::Result<std::string_view> NameFrom(NetlinkBytes value) {
  const std::string_view text(reinterpret_cast<const char*>(value.data()), value.size());
  const size_t end = text.substr(0, GENL_NAMSIZ).find('\0');
  if (end == std::string_view::npos) return Error(EINVAL);
  if (text.size() - (text.back() == '\0' ? 1 : 0) > GENL_NAMSIZ - 1) return Error(ERANGE);
  return text.substr(0, end);
}

// ctrl_getfamily() and ctrl_dumpfamily(). The name counts where there is an id too.
Status GetFamily(const GenericRequest& r, NetlinkBytes attributes) {
  if (r.dump()) {
    WriteController(r);
    return base::Ok();
  }
  const NetlinkAttributes all(attributes);
  const auto id = all.Find(CTRL_ATTR_FAMILY_ID), name = all.Find(CTRL_ATTR_FAMILY_NAME);
  if (!id && !name) return Error(EINVAL);
  bool found = false;
  if (id) {
    const auto number = all.Get<uint16_t>(CTRL_ATTR_FAMILY_ID);
    if (!number) return Error(ERANGE);
    found = *number == GENL_ID_CTRL;
  }
  if (name) found = TRY(NameFrom(*name)) == kController;
  if (!found) return Error(ENOENT);
  WriteController(r);
  return base::Ok();
}

// genl_rcv_msg().
Status Answer(const GenericRequest& r) {
  if (r.message.header.nlmsg_type != GENL_ID_CTRL) return Error(ENOENT);
  if (r.message.payload.size() < GENL_HDRLEN) return Error(EINVAL);
  NetlinkBytes attributes;
  const auto header = FixedHeader<genlmsghdr>(r.message.payload, &attributes);
  return header.cmd == CTRL_CMD_GETFAMILY ? GetFamily(r, attributes) : Status(Error(EOPNOTSUPP));
}

}  // namespace

std::vector<std::vector<std::byte>> AnswerGeneric(uint32_t port, bool cap_ack,
                                                  NetlinkBytes request) {
  std::vector<std::vector<std::byte>> answers;
  for (size_t i = 0; i < kMaxRequests; ++i) {
    const std::optional<NetlinkMessage> message = NextMessage(&request);
    if (!message) break;
    NetlinkWriter out;
    const GenericRequest r{port, *message, out};
    const nlmsghdr& header = message->header;
    const bool asks =
        (header.nlmsg_flags & NLM_F_REQUEST) != 0 && header.nlmsg_type >= NLMSG_MIN_TYPE;
    const Status status = asks ? Answer(r) : base::Ok();
    const bool dumped = asks && r.dump() && status.ok();
    if (dumped) out.Begin(r.Header(NLMSG_DONE), int32_t{0});
    if (!out.empty()) answers.push_back(out.Take());
    if (dumped || (status.ok() && (header.nlmsg_flags & NLM_F_ACK) == 0)) continue;
    out.Error(r.Header(NLMSG_ERROR), *message, status.ok() ? 0 : status.error().code(), cap_ack);
    answers.push_back(out.Take());
  }
  return answers;
}

}  // namespace sentry
