// Options of TCP that are not passed on to the host where the network is the host's.
#include "inet_util.h"

namespace {

TEST(TcpOption, OfOpeningAndOfThinStreams) {
  int s = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(6, GetInt(s, IPPROTO_TCP, TCP_SYNCNT));  // net.ipv4.tcp_syn_retries
  EXPECT_OK(SetInt(s, IPPROTO_TCP, TCP_SYNCNT, 1));
  EXPECT_EQ(1, GetInt(s, IPPROTO_TCP, TCP_SYNCNT));
  // Without effect; it reads as off.
  EXPECT_OK(SetInt(s, IPPROTO_TCP, TCP_THIN_DUPACK, 1));
  EXPECT_EQ(0, GetInt(s, IPPROTO_TCP, TCP_THIN_DUPACK));
  EXPECT_ERRNO(SetInt(s, IPPROTO_TCP, TCP_THIN_DUPACK, 2), EINVAL);
  EXPECT_EQ(0, GetInt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE));
  EXPECT_ERRNO(SetInt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 2), EINVAL);
  EXPECT_OK(SetInt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1));
  EXPECT_EQ(1, GetInt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE));
  ASSERT_EQ(0, listen(s, 1));
  EXPECT_OK(SetInt(s, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 0));
  EXPECT_ERRNO(SetInt(s, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1), EINVAL);
  close(s);
  TcpPair p;
  EXPECT_ERRNO(SetInt(p.client, IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1), EINVAL);
  EXPECT_ERRNO(SetInt(p.client, IPPROTO_TCP, TCP_FASTOPEN, 1), EINVAL);
}

TEST(TcpOption, SegmentsOverLoopback) {
  for (int family : {AF_INET, AF_INET6}) {
    TcpPair p(family);
    // Half of the first window that the peer offered.
    EXPECT_EQ(family == AF_INET ? 32741 : 32732, GetInt(p.client, IPPROTO_TCP, TCP_MAXSEG));
    EXPECT_EQ(32768, GetInt(p.server, IPPROTO_TCP, TCP_MAXSEG));
    for (int fd : {p.client, p.server}) {
      tcp_info info{};
      socklen_t length = sizeof(info);
      EXPECT_OK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length));
      EXPECT_EQ(GetInt(fd, IPPROTO_TCP, TCP_MAXSEG), static_cast<int>(info.tcpi_snd_mss));
    }
  }
}

}  // namespace
