// What netlink sockets hear without asking: changes of devices, addresses and routes; and the
// options and memberships of such sockets.
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <vector>

#include "inet_util.h"

namespace {

int Open(int protocol, uint32_t groups) {
  int fd = socket(AF_NETLINK, SOCK_RAW, protocol);
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  a.nl_groups = groups;
  EXPECT_OK(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a));
  return fd;
}

struct News {
  int type = 0;
  uint32_t sequence = 0, port = 0, group = 0, sender = 77;
};
std::vector<News> Read(int fd) {
  std::vector<News> all;
  while (Poll(fd, POLLIN, 50) & POLLIN) {
    alignas(nlmsghdr) char buffer[8192];
    sockaddr_nl from{};
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, buffer, sizeof buffer, MSG_DONTWAIT,
                         reinterpret_cast<sockaddr*>(&from), &length);
    if (n < 0) break;
    auto left = static_cast<uint32_t>(n);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(h, left);
         h = NLMSG_NEXT(h, left)) {
      all.push_back({h->nlmsg_type, h->nlmsg_seq, h->nlmsg_pid, from.nl_groups, from.nl_pid});
    }
  }
  return all;
}
const News* Find(const std::vector<News>& all, int type, uint32_t group) {
  for (const News& n : all) {
    if (n.type == type && n.group == group) return &n;
  }
  return nullptr;
}

// Adds or removes 10.1.2.3/24 of lo.
int ChangeAddress(int fd, int type, uint32_t sequence, int flags = 0) {
  struct {
    nlmsghdr h;
    ifaddrmsg m;
    rtattr a;
    in_addr ip;
  } r{};
  r.h.nlmsg_len = sizeof r;
  r.h.nlmsg_type = static_cast<uint16_t>(type);
  r.h.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  r.h.nlmsg_seq = sequence;
  r.m.ifa_family = AF_INET;
  r.m.ifa_prefixlen = 24;
  r.m.ifa_index = 1;
  r.a.rta_len = RTA_LENGTH(4);
  r.a.rta_type = IFA_LOCAL;
  inet_pton(AF_INET, "10.1.2.3", &r.ip);
  if (send(fd, &r, sizeof r, 0) != sizeof r) return -errno;
  alignas(nlmsghdr) char buffer[1024];
  ssize_t n = recv(fd, buffer, sizeof buffer, 0);
  if (n < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr)))) return 1;
  auto* h = reinterpret_cast<nlmsghdr*>(buffer);
  if (h->nlmsg_type != NLMSG_ERROR) return 2;
  return static_cast<nlmsgerr*>(NLMSG_DATA(h))->error;
}

constexpr uint32_t kAll = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR;

TEST(NetlinkNews, TheDeviceGoesUpAndDown) {
  EXPECT_EQ(0, InNewNetwork([] {
              int fd = Open(NETLINK_ROUTE, kAll), quiet = Open(NETLINK_ROUTE, 0);
              EXPECT_EQ(0, SetLoopbackUp(true));
              std::vector<News> all = Read(fd);
              const News* link = Find(all, RTM_NEWLINK, RTMGRP_LINK);
              EXPECT_NE(nullptr, link);
              if (link != nullptr) {
                EXPECT_EQ(0u, link->sequence);
                EXPECT_EQ(0u, link->port);
                EXPECT_EQ(0u, link->sender);
              }
              EXPECT_NE(nullptr, Find(all, RTM_NEWADDR, RTMGRP_IPV4_IFADDR));
              EXPECT_NE(nullptr, Find(all, RTM_NEWADDR, RTMGRP_IPV6_IFADDR));
              EXPECT_NE(nullptr, Find(all, RTM_NEWROUTE, RTMGRP_IPV4_ROUTE));
              EXPECT_EQ(0, SetLoopbackUp(false));
              all = Read(fd);
              EXPECT_NE(nullptr, Find(all, RTM_NEWLINK, RTMGRP_LINK));
              EXPECT_NE(nullptr, Find(all, RTM_DELADDR, RTMGRP_IPV6_IFADDR));
              EXPECT_TRUE(Read(quiet).empty());
              return 0;
            }));
}

TEST(NetlinkNews, AddressesComeAndGo) {
  EXPECT_EQ(0, InNewNetwork([] {
              EXPECT_EQ(0, SetLoopbackUp(true));
              int fd = Open(NETLINK_ROUTE, 0), asks = Open(NETLINK_ROUTE, 0);
              EXPECT_OK(SetInt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV4_IFADDR));
              EXPECT_EQ(0, ChangeAddress(asks, RTM_NEWADDR, 41, NLM_F_CREATE | NLM_F_EXCL));
              std::vector<News> all = Read(fd);
              EXPECT_EQ(1u, all.size());
              const News* added = Find(all, RTM_NEWADDR, RTMGRP_IPV4_IFADDR);
              EXPECT_NE(nullptr, added);
              if (added != nullptr) {
                sockaddr_nl me{};
                socklen_t length = sizeof me;
                getsockname(asks, reinterpret_cast<sockaddr*>(&me), &length);
                EXPECT_EQ(41u, added->sequence);
                EXPECT_EQ(me.nl_pid, added->port);
              }
              EXPECT_EQ(-EEXIST, ChangeAddress(asks, RTM_NEWADDR, 42, NLM_F_CREATE | NLM_F_EXCL));
              EXPECT_EQ(0, ChangeAddress(asks, RTM_NEWADDR, 42, NLM_F_CREATE | NLM_F_REPLACE));
              Read(fd);
              EXPECT_EQ(0, ChangeAddress(asks, RTM_DELADDR, 43));
              EXPECT_NE(nullptr, Find(Read(fd), RTM_DELADDR, RTMGRP_IPV4_IFADDR));
              EXPECT_EQ(-EADDRNOTAVAIL, ChangeAddress(asks, RTM_DELADDR, 44));
              EXPECT_OK(SetInt(fd, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, RTNLGRP_IPV4_IFADDR));
              EXPECT_EQ(0, ChangeAddress(asks, RTM_NEWADDR, 45));
              EXPECT_TRUE(Read(fd).empty());
              return 0;
            }));
}

TEST(NetlinkNews, Memberships) {
  int fd = Open(NETLINK_ROUTE, RTMGRP_LINK);
  EXPECT_ERRNO(SetInt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 0), EINVAL);
  EXPECT_ERRNO(SetInt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 1000), EINVAL);
  EXPECT_OK(SetInt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_NEIGH));
  sockaddr_nl a{};
  socklen_t length = sizeof a;
  EXPECT_OK(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length));
  EXPECT_EQ(uint32_t{RTMGRP_LINK | RTMGRP_NEIGH}, a.nl_groups);
  uint32_t groups[8] = {};
  length = sizeof groups;
  EXPECT_OK(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &length));
  EXPECT_GE(length, 4u);
  EXPECT_EQ(uint32_t{RTMGRP_LINK | RTMGRP_NEIGH}, groups[0]);
  EXPECT_EQ(0, GetInt(fd, SOL_NETLINK, NETLINK_CAP_ACK));
  EXPECT_OK(SetInt(fd, SOL_NETLINK, NETLINK_CAP_ACK, 1));
  EXPECT_EQ(1, GetInt(fd, SOL_NETLINK, NETLINK_CAP_ACK));
  EXPECT_ERRNO(SetInt(fd, SOL_NETLINK, 99, 1), ENOPROTOOPT);
  EXPECT_ERRNO(SetInt(fd, SOL_IP, IP_TTL, 1), ENOPROTOOPT);
  // With it, an error does not repeat the request.
  struct {
    nlmsghdr h;
    ifinfomsg m;
    char more[64];
  } r{};
  r.h.nlmsg_len = sizeof r;
  r.h.nlmsg_type = RTM_GETLINK;
  r.h.nlmsg_flags = NLM_F_REQUEST;
  r.m.ifi_index = 4242;
  memset(r.more, 0, sizeof r.more);
  EXPECT_EQ(static_cast<ssize_t>(sizeof r), send(fd, &r, sizeof r, 0));
  alignas(nlmsghdr) char buffer[1024];
  EXPECT_EQ(static_cast<ssize_t>(NLMSG_LENGTH(sizeof(nlmsgerr))),
            recv(fd, buffer, sizeof buffer, 0));
  auto* h = reinterpret_cast<nlmsghdr*>(buffer);
  EXPECT_EQ(NLM_F_CAPPED, h->nlmsg_flags);
  EXPECT_EQ(-ENODEV, static_cast<nlmsgerr*>(NLMSG_DATA(h))->error);
  close(fd);
}

TEST(NetlinkNews, Uevents) {
  int fd = Open(NETLINK_KOBJECT_UEVENT, 1);
  ASSERT_OK(fd);
  char c;
  EXPECT_ERRNO(recv(fd, &c, 1, MSG_DONTWAIT), EAGAIN);
  EXPECT_EQ(NETLINK_KOBJECT_UEVENT, GetInt(fd, SOL_SOCKET, SO_PROTOCOL));
  EXPECT_ERRNO(socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE), ESOCKTNOSUPPORT);
  EXPECT_ERRNO(socket(AF_NETLINK, SOCK_RAW, 999), EPROTONOSUPPORT);
  close(fd);
}

}  // namespace
