// NETLINK_GENERIC: the controller, which is the one family that every machine has.
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "guest_util.h"

namespace {

struct Answer {
  nlmsghdr header{};
  genlmsghdr generic{};
  std::map<int, std::string> attributes;
  int error = 0;  // of an NLMSG_ERROR or of the end of the dump
  nlmsghdr echoed{};
};

std::map<int, std::string> Parse(std::string_view bytes) {
  std::map<int, std::string> out;
  nlattr a;
  while (bytes.size() >= sizeof(a)) {
    memcpy(&a, bytes.data(), sizeof(a));
    if (a.nla_len < sizeof(a) || a.nla_len > bytes.size()) {
      ADD_FAILURE() << "length " << a.nla_len;
      break;
    }
    out[a.nla_type & NLA_TYPE_MASK] = bytes.substr(sizeof(a), a.nla_len - sizeof(a));
    bytes.remove_prefix(std::min<size_t>(NLA_ALIGN(a.nla_len), bytes.size()));
  }
  return out;
}

template <typename T>
T Number(const std::map<int, std::string>& from, int type) {
  T value{};
  auto it = from.find(type);
  EXPECT_TRUE(it != from.end() && it->second.size() == sizeof(T)) << type;
  if (it != from.end()) memcpy(&value, it->second.data(), std::min(sizeof(T), it->second.size()));
  return value;
}

std::string Attribute(uint16_t type, std::string_view value) {
  const nlattr a{static_cast<uint16_t>(sizeof(nlattr) + value.size()), type};
  std::string out(reinterpret_cast<const char*>(&a), sizeof(a));
  out += value;
  out.resize(NLA_ALIGN(out.size()));
  return out;
}
std::string NameAttribute(std::string name) {
  return Attribute(CTRL_ATTR_FAMILY_NAME, name + '\0');
}
std::string IdAttribute(uint16_t id) {
  return Attribute(CTRL_ATTR_FAMILY_ID, {reinterpret_cast<const char*>(&id), sizeof(id)});
}

class NetlinkGeneric : public ::testing::Test {
 protected:
  void SetUp() override {
    fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    ASSERT_OK(fd_);
    const timeval limit{10, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  void TearDown() override { close(fd_); }

  void Send(uint16_t type, uint16_t flags, uint8_t command, const std::string& attributes,
            size_t header = GENL_HDRLEN) {
    const genlmsghdr g{command, 1, 0};
    nlmsghdr h{};
    h.nlmsg_len = static_cast<uint32_t>(NLMSG_HDRLEN + header + attributes.size());
    h.nlmsg_type = type;
    h.nlmsg_flags = flags;
    h.nlmsg_seq = ++sequence_;
    std::string bytes(reinterpret_cast<const char*>(&h), sizeof(h));
    bytes.append(reinterpret_cast<const char*>(&g), header);
    bytes += attributes;
    ASSERT_EQ(static_cast<ssize_t>(bytes.size()), send(fd_, bytes.data(), bytes.size(), 0));
  }
  // The messages of one datagram.
  std::vector<Answer> Receive() {
    std::vector<Answer> out;
    std::string buffer(65536, 0);
    const ssize_t n = recv(fd_, buffer.data(), buffer.size(), 0);
    EXPECT_GT(n, 0) << strerror(errno);
    std::string_view rest(buffer.data(), n > 0 ? static_cast<size_t>(n) : 0);
    while (rest.size() >= sizeof(nlmsghdr)) {
      Answer a;
      memcpy(&a.header, rest.data(), sizeof(a.header));
      EXPECT_EQ(sequence_, a.header.nlmsg_seq);
      const std::string_view body = rest.substr(NLMSG_HDRLEN, a.header.nlmsg_len - NLMSG_HDRLEN);
      if (a.header.nlmsg_type == NLMSG_ERROR || a.header.nlmsg_type == NLMSG_DONE) {
        memcpy(&a.error, body.data(), sizeof(a.error));
        if (a.header.nlmsg_type == NLMSG_ERROR)
          memcpy(&a.echoed, body.data() + 4, sizeof(nlmsghdr));
      } else {
        memcpy(&a.generic, body.data(), sizeof(a.generic));
        a.attributes = Parse(body.substr(GENL_HDRLEN));
      }
      out.push_back(std::move(a));
      rest.remove_prefix(std::min<size_t>(NLMSG_ALIGN(out.back().header.nlmsg_len), rest.size()));
    }
    return out;
  }
  // The error that comes back for a request; 0: an acknowledgement.
  int ErrorOf(uint16_t type, uint16_t flags, uint8_t command, const std::string& attributes,
              size_t header = GENL_HDRLEN) {
    Send(type, flags, command, attributes, header);
    const std::vector<Answer> answers = Receive();
    EXPECT_EQ(1u, answers.size());
    if (answers.empty()) return 1;
    EXPECT_EQ(NLMSG_ERROR, answers[0].header.nlmsg_type);
    EXPECT_EQ(type, answers[0].echoed.nlmsg_type);
    return -answers[0].error;
  }
  void ExpectController(const Answer& a) {
    EXPECT_EQ(GENL_ID_CTRL, a.header.nlmsg_type);
    EXPECT_EQ(CTRL_CMD_NEWFAMILY, a.generic.cmd);
    EXPECT_EQ(2, a.generic.version);
    EXPECT_EQ(std::string("nlctrl", 7), a.attributes.at(CTRL_ATTR_FAMILY_NAME));
    EXPECT_EQ(GENL_ID_CTRL, Number<uint16_t>(a.attributes, CTRL_ATTR_FAMILY_ID));
    EXPECT_EQ(2u, Number<uint32_t>(a.attributes, CTRL_ATTR_VERSION));
    EXPECT_EQ(0u, Number<uint32_t>(a.attributes, CTRL_ATTR_HDRSIZE));
    EXPECT_TRUE(a.attributes.contains(CTRL_ATTR_MAXATTR));
    // What it can do, and who is told of families: lists that are numbered from 1.
    const auto operations = Parse(a.attributes.at(CTRL_ATTR_OPS));
    const auto first = Parse(operations.at(1));
    EXPECT_EQ(static_cast<uint32_t>(CTRL_CMD_GETFAMILY), Number<uint32_t>(first, CTRL_ATTR_OP_ID));
    EXPECT_EQ(static_cast<uint32_t>(GENL_CMD_CAP_DO | GENL_CMD_CAP_DUMP | GENL_CMD_CAP_HASPOL),
              Number<uint32_t>(first, CTRL_ATTR_OP_FLAGS));
    const auto group = Parse(Parse(a.attributes.at(CTRL_ATTR_MCAST_GROUPS)).at(1));
    EXPECT_EQ(std::string("notify", 7), group.at(CTRL_ATTR_MCAST_GRP_NAME));
    EXPECT_EQ(static_cast<uint32_t>(GENL_ID_CTRL), Number<uint32_t>(group, CTRL_ATTR_MCAST_GRP_ID));
  }

  int fd_ = -1;
  uint32_t sequence_ = 0;
};

TEST_F(NetlinkGeneric, TheControllerTellsOfItself) {
  for (const std::string& asked : {NameAttribute("nlctrl"), IdAttribute(GENL_ID_CTRL),
                                   IdAttribute(999) + NameAttribute("nlctrl")}) {
    Send(GENL_ID_CTRL, NLM_F_REQUEST, CTRL_CMD_GETFAMILY, asked);
    const std::vector<Answer> answers = Receive();
    ASSERT_EQ(1u, answers.size());
    EXPECT_EQ(0, answers[0].header.nlmsg_flags);
    ExpectController(answers[0]);
  }
}

TEST_F(NetlinkGeneric, AcknowledgesAfterTheAnswer) {
  Send(GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_ACK, CTRL_CMD_GETFAMILY, NameAttribute("nlctrl"));
  std::vector<Answer> answers = Receive();
  ASSERT_EQ(1u, answers.size());
  ExpectController(answers[0]);
  answers = Receive();
  ASSERT_EQ(1u, answers.size());
  EXPECT_EQ(NLMSG_ERROR, answers[0].header.nlmsg_type);
  EXPECT_EQ(0, answers[0].error);
  EXPECT_EQ(NLM_F_CAPPED, answers[0].header.nlmsg_flags);
}

TEST_F(NetlinkGeneric, AllFamiliesBeginWithTheController) {
  Send(GENL_ID_CTRL, NLM_F_REQUEST | NLM_F_DUMP, CTRL_CMD_GETFAMILY, "");
  bool first = true, done = false;
  while (!done) {
    const std::vector<Answer> answers = Receive();
    ASSERT_FALSE(answers.empty());
    for (const Answer& a : answers) {
      EXPECT_EQ(NLM_F_MULTI, a.header.nlmsg_flags & NLM_F_MULTI);
      if (first) ExpectController(a);
      first = false;
      done = a.header.nlmsg_type == NLMSG_DONE;
      if (done) EXPECT_EQ(0, a.error);
    }
  }
}

TEST_F(NetlinkGeneric, Errors) {
  constexpr uint16_t kAsk = NLM_F_REQUEST;
  EXPECT_EQ(ENOENT, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, NameAttribute("no-such")));
  EXPECT_EQ(ENOENT, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, IdAttribute(999)));
  EXPECT_EQ(ENOENT, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY,
                            IdAttribute(GENL_ID_CTRL) + NameAttribute("no-such")));
  EXPECT_EQ(EINVAL, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, ""));
  EXPECT_EQ(ENOENT,
            ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, NameAttribute("fifteen-letters")));
  // No end within what a name may be long.
  EXPECT_EQ(EINVAL,
            ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, NameAttribute("sixteen-letters!")));
  EXPECT_EQ(EINVAL, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY,
                            Attribute(CTRL_ATTR_FAMILY_NAME, "nlctrl")));
  EXPECT_EQ(ERANGE,
            ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY,
                    Attribute(CTRL_ATTR_FAMILY_NAME, std::string("a\0aaaaaaaaaaaaaaaaaaaa", 22))));
  EXPECT_EQ(EOPNOTSUPP, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_NEWFAMILY, ""));
  EXPECT_EQ(EOPNOTSUPP, ErrorOf(GENL_ID_CTRL, kAsk | NLM_F_DUMP, CTRL_CMD_NEWFAMILY, ""));
  EXPECT_EQ(EOPNOTSUPP, ErrorOf(GENL_ID_CTRL, kAsk, 99, NameAttribute("nlctrl")));
  EXPECT_EQ(ENOENT, ErrorOf(999, kAsk, CTRL_CMD_GETFAMILY, NameAttribute("nlctrl")));
  EXPECT_EQ(EINVAL, ErrorOf(GENL_ID_CTRL, kAsk, CTRL_CMD_GETFAMILY, "", 2));
}

TEST_F(NetlinkGeneric, WhatIsNoRequestHasNoAnswer) {
  Send(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, NameAttribute("nlctrl"));
  Send(NLMSG_NOOP, NLM_F_REQUEST, CTRL_CMD_GETFAMILY, NameAttribute("nlctrl"));
  // The answer to the next is the first that comes.
  EXPECT_EQ(0, ErrorOf(NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, 0, ""));
}

TEST_F(NetlinkGeneric, Membership) {
  int group = GENL_ID_CTRL;
  EXPECT_OK(setsockopt(fd_, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)));
  EXPECT_OK(setsockopt(fd_, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof(group)));
}

}  // namespace
