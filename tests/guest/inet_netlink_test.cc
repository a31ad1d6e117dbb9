// AF_NETLINK with NETLINK_ROUTE, getifaddrs, the ioctls about devices, and /proc/net.
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <set>
#include <vector>

#include "inet_util.h"

namespace {

// Sends a request and gathers the answers up to the end of the dump or an error message.
struct Answers {
  std::vector<std::vector<char>> messages;
  int error = 0;
  bool done = false;

  nlmsghdr* header(size_t i) { return reinterpret_cast<nlmsghdr*>(messages[i].data()); }
};

struct Request {
  nlmsghdr header{};
  char body[64] = {};
};

Answers Ask(int fd, Request& r, size_t body) {
  r.header.nlmsg_len = static_cast<uint32_t>(NLMSG_LENGTH(body));
  r.header.nlmsg_seq = 77;
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  EXPECT_EQ(
      static_cast<ssize_t>(r.header.nlmsg_len),
      sendto(fd, &r, r.header.nlmsg_len, 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel));
  Answers out;
  bool more = true;
  while (more) {
    static char buffer[65536];
    sockaddr_nl from{};
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
    EXPECT_GT(n, 0);
    if (n <= 0) break;
    EXPECT_EQ(0u, from.nl_pid);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(h, static_cast<uint32_t>(n));
         h = NLMSG_NEXT(h, n)) {
      EXPECT_EQ(77u, h->nlmsg_seq);
      if (h->nlmsg_type == NLMSG_DONE) {
        out.done = true;
        more = false;
      } else if (h->nlmsg_type == NLMSG_ERROR) {
        out.error = static_cast<nlmsgerr*>(NLMSG_DATA(h))->error;
        more = false;
      } else {
        auto* bytes = reinterpret_cast<char*>(h);
        out.messages.emplace_back(bytes, bytes + h->nlmsg_len);
        if (!(h->nlmsg_flags & NLM_F_MULTI) && !(r.header.nlmsg_flags & NLM_F_ACK)) more = false;
      }
    }
  }
  return out;
}

}  // namespace

TEST(Netlink, SocketAndName) {
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  ASSERT_OK(fd);
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  ASSERT_OK(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a));
  socklen_t length = sizeof a;
  ASSERT_OK(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length));
  EXPECT_EQ(sizeof a, length);
  EXPECT_NE(0u, a.nl_pid);
  int other = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);
  EXPECT_ERRNO(bind(other, reinterpret_cast<sockaddr*>(&a), sizeof a), EADDRINUSE);
  EXPECT_EQ(AF_NETLINK, GetInt(fd, SOL_SOCKET, SO_DOMAIN));
  EXPECT_ERRNO(socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE), ESOCKTNOSUPPORT);
  char b;
  EXPECT_ERRNO(recv(fd, &b, 1, MSG_DONTWAIT), EAGAIN);
  close(fd);
  close(other);
}

TEST(Netlink, Links) {
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  Request r;
  r.header.nlmsg_type = RTM_GETLINK;
  r.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  Answers all = Ask(fd, r, sizeof(ifinfomsg));
  EXPECT_TRUE(all.done);
  bool found = false;
  for (size_t i = 0; i < all.messages.size(); i++) {
    nlmsghdr* h = all.header(i);
    EXPECT_EQ(RTM_NEWLINK, h->nlmsg_type);
    auto* link = static_cast<ifinfomsg*>(NLMSG_DATA(h));
    if (!(link->ifi_flags & IFF_LOOPBACK)) continue;
    int left = static_cast<int>(h->nlmsg_len - NLMSG_LENGTH(sizeof *link));
    for (auto* at = IFLA_RTA(link); RTA_OK(at, left); at = RTA_NEXT(at, left)) {
      if (at->rta_type == IFLA_IFNAME) {
        EXPECT_STREQ("lo", static_cast<char*>(RTA_DATA(at)));
        found = true;
      }
    }
    EXPECT_TRUE(link->ifi_flags & IFF_UP);
  }
  EXPECT_TRUE(found);
  r.header.nlmsg_flags = NLM_F_REQUEST;
  reinterpret_cast<ifinfomsg*>(r.body)->ifi_index = 9999;
  EXPECT_EQ(-ENODEV, Ask(fd, r, sizeof(ifinfomsg)).error);
  reinterpret_cast<ifinfomsg*>(r.body)->ifi_index = static_cast<int>(if_nametoindex("lo"));
  EXPECT_EQ(1u, Ask(fd, r, sizeof(ifinfomsg)).messages.size());
  close(fd);
}

TEST(Netlink, AddressesAndErrors) {
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  for (int family : {AF_INET, AF_INET6}) {
    Request r;
    r.header.nlmsg_type = RTM_GETADDR;
    r.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    r.body[0] = static_cast<char>(family);
    Answers all = Ask(fd, r, sizeof(ifaddrmsg));
    EXPECT_TRUE(all.done);
    bool found = false;
    for (size_t i = 0; i < all.messages.size(); i++) {
      auto* a = static_cast<ifaddrmsg*>(NLMSG_DATA(all.header(i)));
      EXPECT_EQ(family, a->ifa_family);
      found |= a->ifa_scope == RT_SCOPE_HOST && a->ifa_prefixlen == (family == AF_INET ? 8 : 128);
    }
    EXPECT_TRUE(found) << family;
  }
  Request bad;
  bad.header.nlmsg_type = RTM_GETADDR + 200;
  bad.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  EXPECT_EQ(-EOPNOTSUPP, Ask(fd, bad, sizeof(ifaddrmsg)).error);
  close(fd);
}

TEST(Netlink, UpAndAddressInANewNetwork) {
  EXPECT_EQ(0, InNewNetwork([] {
              int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
              Request r;
              r.header.nlmsg_type = RTM_NEWLINK;
              r.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
              auto* link = reinterpret_cast<ifinfomsg*>(r.body);
              link->ifi_index = 1;
              link->ifi_flags = link->ifi_change = IFF_UP;
              Answers up = Ask(fd, r, sizeof *link);
              if (up.error != 0) return 1;
              Listener listener;
              close(listener.Client());
              Request add;
              add.header.nlmsg_type = RTM_NEWADDR;
              add.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
              auto* address = reinterpret_cast<ifaddrmsg*>(add.body);
              address->ifa_family = AF_INET;
              address->ifa_prefixlen = 24;
              address->ifa_index = 1;
              auto* at = reinterpret_cast<rtattr*>(add.body + NLMSG_ALIGN(sizeof *address));
              at->rta_type = IFA_LOCAL;
              at->rta_len = RTA_LENGTH(4);
              inet_pton(AF_INET, "10.9.8.7", RTA_DATA(at));
              size_t size = NLMSG_ALIGN(sizeof *address) + RTA_LENGTH(4);
              if (Ask(fd, add, size).error != 0) return 2;
              if (Ask(fd, add, size).error != -EEXIST) return 3;
              int s = socket(AF_INET, SOCK_STREAM, 0);
              Loopback mine = Loopback::V4("10.9.8.7");
              if (mine.Bind(s) != 0 || listen(s, 1) != 0) return 4;
              mine = NameOf(s);
              int c = socket(AF_INET, SOCK_STREAM, 0);
              if (mine.Connect(c) != 0) return 5;
              if (NameOf(c).text() != "10.9.8.7") return 6;
              return 0;
            }));
}

TEST(Interfaces, GetifaddrsAndNames) {
  ifaddrs* all = nullptr;
  ASSERT_OK(getifaddrs(&all));
  std::set<int> families;
  for (ifaddrs* i = all; i; i = i->ifa_next) {
    if (strcmp(i->ifa_name, "lo") == 0 && i->ifa_addr) families.insert(i->ifa_addr->sa_family);
  }
  freeifaddrs(all);
  EXPECT_TRUE(families.count(AF_PACKET));
  EXPECT_TRUE(families.count(AF_INET));
  EXPECT_TRUE(families.count(AF_INET6));
  EXPECT_GT(if_nametoindex("lo"), 0u);
  char name[IF_NAMESIZE];
  EXPECT_STREQ("lo", if_indextoname(if_nametoindex("lo"), name));
  EXPECT_EQ(0u, if_nametoindex("nothere0"));
}

TEST(Interfaces, Ioctls) {
  for (int family : {AF_INET, AF_UNIX}) {
    int fd = socket(family, SOCK_DGRAM, 0);
    ifreq r{};
    strcpy(r.ifr_name, "lo");
    ASSERT_OK(ioctl(fd, SIOCGIFFLAGS, &r));
    EXPECT_TRUE(r.ifr_flags & IFF_UP);
    ASSERT_OK(ioctl(fd, SIOCGIFMTU, &r));
    EXPECT_EQ(65536, r.ifr_mtu);
    strcpy(r.ifr_name, "nothere0");
    EXPECT_ERRNO(ioctl(fd, SIOCGIFFLAGS, &r), ENODEV);
    close(fd);
  }
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ifreq r{};
  strcpy(r.ifr_name, "lo");
  ASSERT_OK(ioctl(fd, SIOCGIFADDR, &r));
  EXPECT_EQ(htonl(INADDR_LOOPBACK), reinterpret_cast<sockaddr_in*>(&r.ifr_addr)->sin_addr.s_addr);
  ASSERT_OK(ioctl(fd, SIOCGIFNETMASK, &r));
  EXPECT_EQ(htonl(0xff000000), reinterpret_cast<sockaddr_in*>(&r.ifr_addr)->sin_addr.s_addr);
  close(fd);
}

TEST(Interfaces, Configuration) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  // Without a buffer the length is not looked at: a JVM passes what its stack holds.
  ifconf conf{};
  conf.ifc_len = -5;
  ASSERT_OK(ioctl(fd, SIOCGIFCONF, &conf));
  const int size = conf.ifc_len;
  ASSERT_GE(size, static_cast<int>(sizeof(ifreq)));
  EXPECT_EQ(0u, size % sizeof(ifreq));
  std::vector<ifreq> all(size / sizeof(ifreq));
  conf.ifc_req = all.data();
  ASSERT_OK(ioctl(fd, SIOCGIFCONF, &conf));
  EXPECT_EQ(size, conf.ifc_len);
  EXPECT_STREQ("lo", all[0].ifr_name);
  for (int room : {-1, 0, static_cast<int>(sizeof(ifreq)) - 1}) {
    conf.ifc_len = room;
    ASSERT_OK(ioctl(fd, SIOCGIFCONF, &conf));
    EXPECT_EQ(0, conf.ifc_len) << room;
  }
  close(fd);
}

TEST(ProcNet, ListsSockets) {
  Listener listener;
  int c = listener.Client();
  char line[64];
  snprintf(line, sizeof line, "0100007F:%04X 00000000:0000 0A", listener.address.port());
  EXPECT_NE(std::string::npos, ReadFile("/proc/net/tcp").find(line));
  snprintf(line, sizeof line, "0100007F:%04X 0100007F:%04X 01", NameOf(c).port(),
           listener.address.port());
  EXPECT_NE(std::string::npos, ReadFile("/proc/net/tcp").find(line));
  Loopback six(AF_INET6);
  int u = socket(AF_INET6, SOCK_DGRAM, 0);
  ASSERT_OK(six.Bind(u));
  snprintf(line, sizeof line, "00000000000000000000000001000000:%04X ", NameOf(u).port());
  EXPECT_NE(std::string::npos, ReadFile("/proc/net/udp6").find(line));
  EXPECT_NE(std::string::npos, ReadFile("/proc/net/dev").find("lo:"));
  EXPECT_NE(std::string::npos,
            ReadFile("/proc/net/if_inet6").find("00000000000000000000000000000001"));
  EXPECT_NE(std::string::npos, ReadFile("/proc/net/snmp").find("Tcp: RtoAlgorithm"));
  close(u);
  close(c);
}
