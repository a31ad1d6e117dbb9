// Datagrams that are put together or cut, and groups on the loopback device.
#include <netinet/udp.h>

#include <vector>

#include "inet_util.h"

namespace {

struct Udp {
  explicit Udp(int family = AF_INET) : fd(socket(family, SOCK_DGRAM, 0)), address(family) {
    EXPECT_OK(address.Bind(fd));
    address = NameOf(fd);
  }
  ~Udp() { close(fd); }
  std::string Receive(int ms = 1000) {
    char buffer[2048];
    if (!(Poll(fd, POLLIN, ms) & POLLIN)) return "nothing";
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    return n < 0 ? strerror(errno) : std::string(buffer, static_cast<size_t>(n));
  }
  ssize_t Send(Udp& to, const std::string& text, int flags = 0) {
    return sendto(fd, text.data(), text.size(), flags, to.address.get(), to.address.length);
  }
  int fd;
  Loopback address;
};

TEST(UdpMore, Cork) {
  for (int family : {AF_INET, AF_INET6}) {
    Udp one(family), two(family);
    EXPECT_EQ(3, one.Send(two, "abc", MSG_MORE));
    EXPECT_EQ("nothing", two.Receive(20));
    EXPECT_EQ(3, one.Send(two, "def"));
    EXPECT_EQ("abcdef", two.Receive());
    EXPECT_EQ(0, GetInt(one.fd, IPPROTO_UDP, UDP_CORK));
    EXPECT_OK(SetInt(one.fd, IPPROTO_UDP, UDP_CORK, 1));
    EXPECT_EQ(1, GetInt(one.fd, IPPROTO_UDP, UDP_CORK));
    EXPECT_EQ(1, one.Send(two, "x"));
    EXPECT_EQ(1, one.Send(two, "y"));
    EXPECT_EQ("nothing", two.Receive(20));
    EXPECT_OK(SetInt(one.fd, IPPROTO_UDP, UDP_CORK, 0));
    EXPECT_EQ("xy", two.Receive());
    EXPECT_EQ("nothing", two.Receive(0));
  }
}

TEST(UdpMore, Segments) {
  Udp one, two;
  EXPECT_OK(SetInt(one.fd, IPPROTO_UDP, UDP_SEGMENT, 4));
  EXPECT_EQ(4, GetInt(one.fd, IPPROTO_UDP, UDP_SEGMENT));
  EXPECT_ERRNO(SetInt(one.fd, IPPROTO_UDP, UDP_SEGMENT, -1), EINVAL);
  EXPECT_ERRNO(SetInt(one.fd, IPPROTO_UDP, UDP_SEGMENT, 65536), EINVAL);
  EXPECT_EQ(10, one.Send(two, "0123456789"));
  EXPECT_EQ("0123", two.Receive());
  EXPECT_EQ("4567", two.Receive());
  EXPECT_EQ("89", two.Receive());
  EXPECT_OK(SetInt(one.fd, IPPROTO_UDP, UDP_SEGMENT, 0));
  EXPECT_EQ(10, one.Send(two, "0123456789"));
  EXPECT_EQ("0123456789", two.Receive());
}

TEST(UdpMore, GroupsOverTheLoopbackDevice) {
  Udp sender;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  Loopback any = Loopback::V4("0.0.0.0");
  ASSERT_OK(any.Bind(fd));
  int port = NameOf(fd).port();
  ip_mreqn join{};
  inet_pton(AF_INET, "239.1.2.3", &join.imr_multiaddr);
  join.imr_address.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_OK(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof(ip_mreq)));
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join), EADDRINUSE);
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, 4), EINVAL);
  in_addr loopback{htonl(INADDR_LOOPBACK)}, got{77};
  ASSERT_OK(setsockopt(sender.fd, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof loopback));
  socklen_t length = sizeof got;
  EXPECT_OK(getsockopt(sender.fd, IPPROTO_IP, IP_MULTICAST_IF, &got, &length));
  EXPECT_EQ(loopback.s_addr, got.s_addr);
  Loopback group = Loopback::V4("239.1.2.3", port);
  EXPECT_EQ(1, sendto(sender.fd, "m", 1, 0, group.get(), group.length));
  EXPECT_TRUE(Poll(fd, POLLIN, 1000) & POLLIN);
  char c;
  EXPECT_EQ(1, recv(fd, &c, 1, MSG_DONTWAIT));
  EXPECT_OK(SetInt(sender.fd, IPPROTO_IP, IP_MULTICAST_LOOP, 0));
  EXPECT_EQ(1, sendto(sender.fd, "m", 1, 0, group.get(), group.length));
  EXPECT_TRUE(Poll(fd, POLLIN, 1000) & POLLIN);  // the device itself loops
  EXPECT_EQ(1, recv(fd, &c, 1, MSG_DONTWAIT));
  EXPECT_OK(SetInt(sender.fd, IPPROTO_IP, IP_MULTICAST_LOOP, 1));
  ASSERT_OK(setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &join, sizeof(ip_mreq)));
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &join, sizeof(ip_mreq)),
               EADDRNOTAVAIL);
  EXPECT_EQ(1, sendto(sender.fd, "m", 1, 0, group.get(), group.length));
  EXPECT_FALSE(Poll(fd, POLLIN, 30) & POLLIN);
  inet_pton(AF_INET, "10.0.0.1", &join.imr_multiaddr);
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof(ip_mreq)), EINVAL);
  close(fd);
}

TEST(UdpMore, SourcesOfGroups) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  ip_mreq_source m{};
  inet_pton(AF_INET, "239.1.2.3", &m.imr_multiaddr);
  m.imr_interface.s_addr = m.imr_sourceaddr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &m, sizeof m), EINVAL);
  EXPECT_OK(setsockopt(fd, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &m, sizeof m));
  EXPECT_OK(setsockopt(fd, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &m, sizeof m));
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_DROP_SOURCE_MEMBERSHIP, &m, 4), EINVAL);
  close(fd);
}

TEST(UdpMore, Broadcast) {
  Udp sender;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  Loopback any = Loopback::V4("0.0.0.0");
  ASSERT_OK(any.Bind(fd));
  Loopback to = Loopback::V4("127.255.255.255", NameOf(fd).port());
  EXPECT_ERRNO(sendto(sender.fd, "b", 1, 0, to.get(), to.length), EACCES);
  EXPECT_OK(SetInt(sender.fd, SOL_SOCKET, SO_BROADCAST, 1));
  EXPECT_EQ(1, sendto(sender.fd, "b", 1, 0, to.get(), to.length));
  EXPECT_TRUE(Poll(fd, POLLIN, 1000) & POLLIN);
  EXPECT_ERRNO(connect(fd, to.get(), to.length), EACCES);
  close(fd);
}

}  // namespace
