// UDP over IPv4 and IPv6: datagrams, errors, control messages, multicast; ICMP echo and raw
// sockets.
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <sys/mount.h>

#include <thread>
#include <vector>

#include "inet_util.h"

// After <time.h>, which it needs.
#include <linux/errqueue.h>

namespace {

// A socket bound to a port of its own.
int Bound(int family, Loopback* address, int flags = 0) {
  int fd = socket(family, SOCK_DGRAM | flags, 0);
  EXPECT_OK(fd);
  *address = Loopback(family);
  EXPECT_OK(address->Bind(fd));
  *address = NameOf(fd);
  return fd;
}

int SendTo(int fd, Loopback& to, const std::string& text, int flags = 0) {
  return sendto(fd, text.data(), text.size(), flags, to.get(), to.length);
}

// A received message with its control messages.
struct Received {
  std::string text;
  int flags = 0;
  Loopback from{AF_INET};
  char control[512];
  msghdr m{};
  explicit Received(int fd, int how = 0, size_t room = 100) {
    text.resize(room);
    iovec iov{text.data(), room};
    m.msg_name = from.get();
    m.msg_namelen = sizeof from.storage;
    m.msg_iov = &iov;
    m.msg_iovlen = 1;
    m.msg_control = control;
    m.msg_controllen = sizeof control;
    ssize_t n = recvmsg(fd, &m, how);
    EXPECT_OK(n);
    text.resize(n < 0 ? 0 : n);
    flags = m.msg_flags;
    from.length = m.msg_namelen;
  }
  template <typename T>
  bool Find(int level, int type, T* out) {
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level != level || c->cmsg_type != type) continue;
      memcpy(out, CMSG_DATA(c), sizeof(T));
      return true;
    }
    return false;
  }
};

}  // namespace

TEST(Udp, Datagrams) {
  for (int family : {AF_INET, AF_INET6}) {
    Loopback a(family), b(family);
    int fa = Bound(family, &a), fb = Bound(family, &b);
    EXPECT_EQ(5, SendTo(fa, b, "hello"));
    EXPECT_EQ(0, SendTo(fa, b, ""));
    EXPECT_EQ(8, SendTo(fa, b, "truncate"));
    int n = 0;
    EXPECT_OK(ioctl(fb, FIONREAD, &n));
    EXPECT_EQ(5, n);
    Received first(fb);
    EXPECT_EQ("hello", first.text);
    EXPECT_EQ(a.port(), first.from.port());
    EXPECT_EQ(a.text(), first.from.text());
    EXPECT_EQ(0u, Received(fb).text.size());
    Received peeked(fb, MSG_PEEK, 3);
    EXPECT_EQ("tru", peeked.text);
    EXPECT_TRUE(peeked.flags & MSG_TRUNC);
    char buffer[4];
    EXPECT_EQ(8, recv(fb, buffer, 3, MSG_TRUNC));
    EXPECT_ERRNO(recv(fb, buffer, 3, MSG_DONTWAIT), EAGAIN);
    EXPECT_EQ(POLLOUT, Poll(fb, POLLIN | POLLOUT));
    EXPECT_EQ(SOCK_DGRAM, GetInt(fa, SOL_SOCKET, SO_TYPE));
    EXPECT_EQ(IPPROTO_UDP, GetInt(fa, SOL_SOCKET, SO_PROTOCOL));
    EXPECT_ERRNO(listen(fa, 1), EOPNOTSUPP);
    EXPECT_ERRNO(accept(fa, nullptr, nullptr), EOPNOTSUPP);
    close(fa);
    close(fb);
  }
}

TEST(Udp, ConnectedFiltersAndDisconnects) {
  Loopback a(AF_INET), b(AF_INET), c(AF_INET);
  int fa = Bound(AF_INET, &a), fb = Bound(AF_INET, &b), fc = Bound(AF_INET, &c);
  ASSERT_OK(b.Connect(fa));
  EXPECT_EQ(b.port(), PeerOf(fa).port());
  EXPECT_EQ(1, SendTo(fc, a, "c"));  // not from the peer
  EXPECT_EQ(1, SendTo(fb, a, "b"));
  EXPECT_EQ("b", Received(fa).text);
  char x;
  EXPECT_ERRNO(recv(fa, &x, 1, MSG_DONTWAIT), EAGAIN);
  EXPECT_EQ(3, send(fa, "one", 3, 0));
  EXPECT_EQ("one", Received(fb).text);
  EXPECT_EQ(3, SendTo(fa, c, "two"));  // elsewhere, all the same
  EXPECT_EQ("two", Received(fc).text);
  sockaddr unspec{};
  unspec.sa_family = AF_UNSPEC;
  ASSERT_OK(connect(fa, &unspec, sizeof unspec));
  Loopback none(AF_INET);
  EXPECT_ERRNO(getpeername(fa, none.get(), &none.length), ENOTCONN);
  EXPECT_EQ(0, NameOf(fa).port());  // it was not the application's choice
  EXPECT_EQ("127.0.0.1", NameOf(fa).text());
  EXPECT_ERRNO(send(fa, "x", 1, 0), EDESTADDRREQ);
  EXPECT_NE(0, NameOf(fa).port());
  for (int fd : {fa, fb, fc}) close(fd);
}

TEST(Udp, AutoBindAndUnbound) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  EXPECT_EQ(0, NameOf(fd).port());
  Loopback b(AF_INET);
  int fb = Bound(AF_INET, &b);
  EXPECT_EQ(1, SendTo(fd, b, "x"));
  int port = NameOf(fd).port();
  EXPECT_GT(port, 0);
  EXPECT_EQ("0.0.0.0", NameOf(fd).text());
  EXPECT_EQ(port, Received(fb).from.port());
  ASSERT_OK(b.Connect(fd));
  EXPECT_EQ("127.0.0.1", NameOf(fd).text());
  close(fd);
  close(fb);
}

TEST(Udp, RefusedOnceConnected) {
  for (int family : {AF_INET, AF_INET6}) {
    Loopback gone(family), a(family);
    close(Bound(family, &gone));
    int fd = Bound(family, &a);
    EXPECT_EQ(1, SendTo(fd, gone, "x"));
    EXPECT_EQ(1, SendTo(fd, gone, "x"));  // unconnected: nobody is told
    ASSERT_OK(gone.Connect(fd));
    EXPECT_EQ(1, send(fd, "x", 1, 0));
    EXPECT_TRUE(Poll(fd, POLLIN, 1000) & POLLERR);
    EXPECT_ERRNO(send(fd, "x", 1, 0), ECONNREFUSED);
    EXPECT_EQ(1, send(fd, "x", 1, 0));
    char b;
    EXPECT_ERRNO(recv(fd, &b, 1, 0), ECONNREFUSED);
    EXPECT_ERRNO(recv(fd, &b, 1, MSG_DONTWAIT), EAGAIN);
    EXPECT_EQ(1, send(fd, "x", 1, 0));
    EXPECT_EQ(ECONNREFUSED, TakeError(fd));
    EXPECT_EQ(0, TakeError(fd));
    close(fd);
  }
}

TEST(Udp, ErrorQueue) {
  for (int family : {AF_INET, AF_INET6}) {
    bool v4 = family == AF_INET;
    Loopback gone(family), a(family);
    close(Bound(family, &gone));
    int fd = Bound(family, &a);
    int level = v4 ? IPPROTO_IP : IPPROTO_IPV6, name = v4 ? IP_RECVERR : IPV6_RECVERR;
    ASSERT_OK(SetInt(fd, level, name, 1));
    EXPECT_EQ(1, GetInt(fd, level, name));
    char b;
    EXPECT_ERRNO(recv(fd, &b, 1, MSG_ERRQUEUE), EAGAIN);
    EXPECT_EQ(4, SendTo(fd, gone, "lost"));
    EXPECT_TRUE(Poll(fd, POLLIN, 1000) & POLLERR);
    EXPECT_ERRNO(recv(fd, &b, 1, MSG_DONTWAIT), ECONNREFUSED);
    Received e(fd, MSG_ERRQUEUE);
    EXPECT_EQ("lost", e.text);
    EXPECT_TRUE(e.flags & MSG_ERRQUEUE);
    EXPECT_EQ(gone.port(), e.from.port());
    struct {
      sock_extended_err error;
      sockaddr_in6 offender;
    } err{};
    ASSERT_TRUE(e.Find(level, name, &err));
    EXPECT_EQ(static_cast<unsigned>(ECONNREFUSED), err.error.ee_errno);
    EXPECT_EQ(v4 ? SO_EE_ORIGIN_ICMP : SO_EE_ORIGIN_ICMP6, err.error.ee_origin);
    EXPECT_EQ(v4 ? 3 : 1, err.error.ee_type);
    EXPECT_EQ(v4 ? 3 : 4, err.error.ee_code);
    EXPECT_EQ(family, err.offender.sin6_family);
    close(fd);
  }
}

TEST(Udp, Errors) {
  Loopback a(AF_INET);
  int fd = Bound(AF_INET, &a);
  std::vector<char> big(65508);
  EXPECT_ERRNO(sendto(fd, big.data(), 65508, 0, a.get(), a.length), EMSGSIZE);
  EXPECT_EQ(65507, sendto(fd, big.data(), 65507, 0, a.get(), a.length));
  EXPECT_ERRNO(sendto(fd, "x", 1, MSG_OOB, a.get(), a.length), EOPNOTSUPP);
  EXPECT_ERRNO(sendto(fd, "x", 1, 0, a.get(), 8), EINVAL);
  Loopback zero(AF_INET, 0);
  EXPECT_ERRNO(SendTo(fd, zero, "x"), EINVAL);
  Loopback broadcast = Loopback::V4("127.255.255.255", 9);
  EXPECT_ERRNO(SendTo(fd, broadcast, "x"), EACCES);
  ASSERT_OK(SetInt(fd, SOL_SOCKET, SO_BROADCAST, 1));
  EXPECT_EQ(1, SendTo(fd, broadcast, "x"));
  EXPECT_ERRNO(sendto(fd, BadAddress(), 10, 0, a.get(), a.length), EFAULT);
  EXPECT_ERRNO(shutdown(fd, SHUT_RD), ENOTCONN);
  close(fd);
  fd = socket(AF_INET, SOCK_DGRAM, 0);
  ASSERT_OK(a.Connect(fd));
  ASSERT_OK(shutdown(fd, SHUT_RDWR));
  EXPECT_ERRNO(send(fd, "x", 1, 0), EPIPE);
  char b;
  EXPECT_EQ(0, recv(fd, &b, 1, 0));
  EXPECT_EQ(POLLIN | POLLRDHUP | POLLHUP, Poll(fd, POLLIN | POLLRDHUP));
  close(fd);
}

TEST(Udp, BroadcastReachesThoseWhoListen) {
  int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
  for (int fd : {a, b}) SetInt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  Loopback any = Loopback::V4("0.0.0.0");
  ASSERT_OK(any.Bind(a));
  any.set_port(NameOf(a).port());
  ASSERT_OK(any.Bind(b));
  int s = socket(AF_INET, SOCK_DGRAM, 0);
  SetInt(s, SOL_SOCKET, SO_BROADCAST, 1);
  Loopback to = Loopback::V4("127.255.255.255", any.port());
  EXPECT_EQ(3, SendTo(s, to, "all"));
  EXPECT_EQ("all", Received(a, MSG_DONTWAIT).text);
  EXPECT_EQ("all", Received(b, MSG_DONTWAIT).text);
  for (int fd : {a, b, s}) close(fd);
}

TEST(Udp, BindConflictsAndReusePort) {
  Loopback a(AF_INET);
  int fa = Bound(AF_INET, &a), fb = socket(AF_INET, SOCK_DGRAM, 0);
  EXPECT_ERRNO(a.Bind(fb), EADDRINUSE);
  SetInt(fb, SOL_SOCKET, SO_REUSEADDR, 1);
  EXPECT_ERRNO(a.Bind(fb), EADDRINUSE);
  SetInt(fa, SOL_SOCKET, SO_REUSEADDR, 1);
  EXPECT_OK(a.Bind(fb));
  close(fa);
  close(fb);
  int fds[4];
  a = Loopback(AF_INET);
  for (int& fd : fds) {
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    ASSERT_OK(SetInt(fd, SOL_SOCKET, SO_REUSEPORT, 1));
    ASSERT_OK(a.Bind(fd));
    a = NameOf(fd);
  }
  for (int i = 0; i < 100; i++) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    EXPECT_EQ(1, SendTo(s, a, "x"));
    close(s);
  }
  int total = 0;
  for (int fd : fds) {
    int n = 0;
    char b;
    while (recv(fd, &b, 1, 0) == 1) n++;
    EXPECT_GT(n, 5);
    total += n;
    close(fd);
  }
  EXPECT_EQ(100, total);
}

TEST(Udp, FullQueueDrops) {
  Loopback a(AF_INET);
  int fa = Bound(AF_INET, &a), s = socket(AF_INET, SOCK_DGRAM, 0);
  ASSERT_OK(SetInt(fa, SOL_SOCKET, SO_RCVBUF, 8192));
  std::string block(1000, 'x');
  for (int i = 0; i < 100; i++) EXPECT_EQ(1000, SendTo(s, a, block));
  int n = 0;
  char b[1000];
  while (recv(fa, b, sizeof b, MSG_DONTWAIT) > 0) n++;
  EXPECT_GT(n, 3);
  EXPECT_LT(n, 40);
  close(fa);
  close(s);
}

TEST(Udp, ControlMessagesV4) {
  Loopback a(AF_INET);
  int fa = Bound(AF_INET, &a), s = socket(AF_INET, SOCK_DGRAM, 0);
  for (int name : {IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVORIGDSTADDR}) {
    ASSERT_OK(SetInt(fa, IPPROTO_IP, name, 1));
  }
  ASSERT_OK(SetInt(fa, SOL_SOCKET, SO_TIMESTAMP, 1));
  ASSERT_OK(SetInt(s, IPPROTO_IP, IP_TTL, 42));
  ASSERT_OK(SetInt(s, IPPROTO_IP, IP_TOS, 0x10));
  EXPECT_EQ(1, SendTo(s, a, "x"));
  Received r(fa);
  in_pktinfo info{};
  ASSERT_TRUE(r.Find(IPPROTO_IP, IP_PKTINFO, &info));
  EXPECT_EQ(htonl(INADDR_LOOPBACK), info.ipi_addr.s_addr);
  EXPECT_EQ(static_cast<int>(if_nametoindex("lo")), info.ipi_ifindex);
  int ttl = 0;
  ASSERT_TRUE(r.Find(IPPROTO_IP, IP_TTL, &ttl));
  EXPECT_EQ(42, ttl);
  uint8_t tos = 0;
  ASSERT_TRUE(r.Find(IPPROTO_IP, IP_TOS, &tos));
  EXPECT_EQ(0x10, tos);
  sockaddr_in original{};
  ASSERT_TRUE(r.Find(IPPROTO_IP, IP_ORIGDSTADDR, &original));
  EXPECT_EQ(a.port(), ntohs(original.sin_port));
  timeval tv{};
  ASSERT_TRUE(r.Find(SOL_SOCKET, SO_TIMESTAMP, &tv));
  EXPECT_LT(llabs(tv.tv_sec - NowNs(CLOCK_REALTIME) / 1000000000), 10);
  // The same in a control message of the sender, with another source address.
  char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(in_pktinfo))] = {};
  iovec iov{control, 1};
  msghdr m{};
  m.msg_name = a.get();
  m.msg_namelen = a.length;
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = IPPROTO_IP;
  c->cmsg_type = IP_TTL;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  ttl = 7;
  memcpy(CMSG_DATA(c), &ttl, sizeof ttl);
  c = CMSG_NXTHDR(&m, c);
  c->cmsg_level = IPPROTO_IP;
  c->cmsg_type = IP_PKTINFO;
  c->cmsg_len = CMSG_LEN(sizeof(in_pktinfo));
  info = {};
  inet_pton(AF_INET, "127.0.0.9", &info.ipi_spec_dst);
  memcpy(CMSG_DATA(c), &info, sizeof info);
  EXPECT_EQ(1, sendmsg(s, &m, 0));
  Received again(fa);
  EXPECT_EQ("127.0.0.9", again.from.text());
  ASSERT_TRUE(again.Find(IPPROTO_IP, IP_TTL, &ttl));
  EXPECT_EQ(7, ttl);
  close(fa);
  close(s);
}

TEST(Udp, ControlMessagesV6AndMapped) {
  int fd = socket(AF_INET6, SOCK_DGRAM, 0);
  Loopback any = Loopback::V6("::");
  ASSERT_OK(any.Bind(fd));
  int port = NameOf(fd).port();
  for (int name : {IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS}) {
    ASSERT_OK(SetInt(fd, IPPROTO_IPV6, name, 1));
  }
  int s = socket(AF_INET6, SOCK_DGRAM, 0);
  ASSERT_OK(SetInt(s, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 33));
  ASSERT_OK(SetInt(s, IPPROTO_IPV6, IPV6_TCLASS, 0x20));
  Loopback to(AF_INET6, port);
  EXPECT_EQ(1, SendTo(s, to, "x"));
  Received r(fd);
  in6_pktinfo info{};
  ASSERT_TRUE(r.Find(IPPROTO_IPV6, IPV6_PKTINFO, &info));
  EXPECT_EQ(0, memcmp(&in6addr_loopback, &info.ipi6_addr, 16));
  int value = 0;
  ASSERT_TRUE(r.Find(IPPROTO_IPV6, IPV6_HOPLIMIT, &value));
  EXPECT_EQ(33, value);
  ASSERT_TRUE(r.Find(IPPROTO_IPV6, IPV6_TCLASS, &value));
  EXPECT_EQ(0x20, value);
  int four = socket(AF_INET, SOCK_DGRAM, 0);
  Loopback v4(AF_INET, port);
  EXPECT_EQ(2, SendTo(four, v4, "v4"));
  Received mapped(fd);
  EXPECT_EQ("::ffff:127.0.0.1", mapped.from.text());
  EXPECT_EQ(2, SendTo(fd, mapped.from, "ok"));
  EXPECT_EQ("ok", Received(four).text);
  for (int x : {fd, s, four}) close(x);
}

TEST(Udp, MulticastOnLoopback) {
  int r = socket(AF_INET, SOCK_DGRAM, 0), s = socket(AF_INET, SOCK_DGRAM, 0);
  Loopback any = Loopback::V4("0.0.0.0");
  ASSERT_OK(any.Bind(r));
  Loopback group = Loopback::V4("239.1.2.3", NameOf(r).port());
  ip_mreqn m{};
  m.imr_multiaddr = group.v4()->sin_addr;
  m.imr_ifindex = static_cast<int>(if_nametoindex("lo"));
  ASSERT_OK(setsockopt(s, IPPROTO_IP, IP_MULTICAST_IF, &m, sizeof m));
  EXPECT_EQ(4, SendTo(s, group, "none"));
  char b;
  EXPECT_ERRNO(recv(r, &b, 1, MSG_DONTWAIT), EAGAIN);
  ASSERT_OK(setsockopt(r, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof m));
  EXPECT_ERRNO(setsockopt(r, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof m), EADDRINUSE);
  EXPECT_EQ(4, SendTo(s, group, "many"));
  EXPECT_EQ("many", Received(r, MSG_DONTWAIT).text);
  ASSERT_OK(setsockopt(r, IPPROTO_IP, IP_DROP_MEMBERSHIP, &m, sizeof m));
  EXPECT_ERRNO(setsockopt(r, IPPROTO_IP, IP_DROP_MEMBERSHIP, &m, sizeof m), EADDRNOTAVAIL);
  EXPECT_EQ(4, SendTo(s, group, "none"));
  EXPECT_ERRNO(recv(r, &b, 1, MSG_DONTWAIT), EAGAIN);
  m.imr_multiaddr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_ERRNO(setsockopt(r, IPPROTO_IP, IP_ADD_MEMBERSHIP, &m, sizeof m), EINVAL);
  close(r);
  close(s);
}

TEST(Udp, Mmsg) {
  Loopback a(AF_INET);
  int fa = Bound(AF_INET, &a), s = socket(AF_INET, SOCK_DGRAM, 0);
  ASSERT_OK(a.Connect(s));
  char text[3][4] = {"one", "two", "tre"}, got[3][8] = {};
  iovec out[3], in[3];
  mmsghdr mo[3] = {}, mi[3] = {};
  for (int i = 0; i < 3; i++) {
    out[i] = {text[i], 3};
    in[i] = {got[i], 8};
    mo[i].msg_hdr.msg_iov = &out[i];
    mi[i].msg_hdr.msg_iov = &in[i];
    mo[i].msg_hdr.msg_iovlen = mi[i].msg_hdr.msg_iovlen = 1;
  }
  EXPECT_EQ(3, sendmmsg(s, mo, 3, 0));
  EXPECT_EQ(3, recvmmsg(fa, mi, 3, MSG_WAITFORONE, nullptr));
  EXPECT_STREQ("tre", got[2]);
  EXPECT_EQ(3u, mi[1].msg_len);
  close(fa);
  close(s);
}

TEST(Udp, BlockedReceiverIsWoken) {
  Loopback a(AF_INET);
  int fa = Bound(AF_INET, &a), s = socket(AF_INET, SOCK_DGRAM, 0);
  std::thread reader([&] { EXPECT_EQ("wake", Received(fa).text); });
  SleepMs(30);
  EXPECT_EQ(4, SendTo(s, a, "wake"));
  reader.join();
  timeval t{0, 30000};
  ASSERT_OK(setsockopt(fa, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
  char b;
  EXPECT_ERRNO(recv(fa, &b, 1, 0), EAGAIN);
  close(fa);
  close(s);
}

TEST(Icmp, RawEcho) {
  int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  if (fd < 0 && errno == EPERM) GTEST_SKIP();
  ASSERT_OK(fd);
  Loopback to(AF_INET);
  struct {
    icmphdr header;
    char data[8];
  } request{}, reply{};
  request.header.type = ICMP_ECHO;
  request.header.un.echo.id = htons(4321);
  request.header.un.echo.sequence = htons(1);
  memcpy(request.data, "payload", 8);
  uint32_t sum = 0;
  for (size_t i = 0; i < sizeof request / 2; i++) sum += reinterpret_cast<uint16_t*>(&request)[i];
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  request.header.checksum = static_cast<uint16_t>(~sum);
  ASSERT_EQ(static_cast<ssize_t>(sizeof request),
            sendto(fd, &request, sizeof request, 0, to.get(), to.length));
  bool found = false;
  for (int i = 0; i < 10 && !found; i++) {
    Received r(fd, 0, 200);
    ASSERT_GE(r.text.size(), 20 + sizeof reply);
    auto* header = reinterpret_cast<iphdr*>(r.text.data());
    EXPECT_EQ(4, header->version);
    EXPECT_EQ(IPPROTO_ICMP, header->protocol);
    EXPECT_EQ(r.text.size(), ntohs(header->tot_len));
    memcpy(&reply, r.text.data() + header->ihl * 4, sizeof reply);
    found = reply.header.type == ICMP_ECHOREPLY && reply.header.un.echo.id == htons(4321);
  }
  EXPECT_TRUE(found);
  EXPECT_STREQ("payload", reply.data);
  close(fd);
}

TEST(Icmp, EchoSocket) {
  EXPECT_EQ(0, InNewNetwork([] {
              if (SetLoopbackUp(true) != 0) return 1;
              if (socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP) >= 0 || errno != EACCES) return 2;
              // A /proc/sys that can be written.
              TempDir dir;
              if (unshare(CLONE_NEWNS) != 0) return 10;
              mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
              if (mount("proc", dir.path().c_str(), "proc", 0, nullptr) != 0) return 11;
              WriteFile(dir / "sys/net/ipv4/ping_group_range", "0 2147483647");
              umount2(dir.path().c_str(), MNT_DETACH);
              for (int family : {AF_INET, AF_INET6}) {
                bool v4 = family == AF_INET;
                int fd = socket(family, SOCK_DGRAM, v4 ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
                if (fd < 0) return 3;
                Loopback to(family);
                unsigned char m[16] = {};
                m[0] = v4 ? ICMP_ECHO : ICMP6_ECHO_REQUEST;
                m[7] = 9;
                memcpy(m + 8, "pingdata", 8);
                if (sendto(fd, m, sizeof m, 0, to.get(), to.length) != sizeof m) return 4;
                int id = NameOf(fd).port();
                Received r(fd);
                if (r.text.size() != sizeof m) return 5;
                auto* b = reinterpret_cast<unsigned char*>(r.text.data());
                if (b[0] != (v4 ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY)) return 6;
                if (b[4] * 256 + b[5] != id || b[7] != 9) return 7;
                if (memcmp(b + 8, "pingdata", 8) != 0) return 8;
                m[0] = 13;
                if (sendto(fd, m, sizeof m, 0, to.get(), to.length) >= 0 || errno != EINVAL)
                  return 9;
                close(fd);
              }
              return 0;
            }));
}

TEST(Network, FreshNamespaceIsDown) {
  EXPECT_EQ(0, InNewNetwork([] {
              int s = socket(AF_INET, SOCK_STREAM, 0);
              Loopback a(AF_INET, 80);
              if (a.Connect(s) == 0 || errno != ENETUNREACH) return 2;
              if (SetLoopbackUp(true) != 0) return 3;
              Listener listener;
              close(listener.Client());
              Loopback six(AF_INET6);
              int u = socket(AF_INET6, SOCK_DGRAM, 0);
              if (six.Bind(u) != 0) return 4;
              Loopback far = Loopback::V4("192.0.2.1", 80);
              if (far.Connect(s) == 0 || errno != ENETUNREACH) return 5;
              if (SetLoopbackUp(false) != 0) return 6;
              return 0;
            }));
}
