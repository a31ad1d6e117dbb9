// Who looks at packets: AF_PACKET sockets, raw sockets of UDP, and filters.
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <sys/mount.h>

#include <vector>

#include "inet_util.h"

namespace {

constexpr int kLo = 1;

sockaddr_ll OnLo(int protocol) {
  sockaddr_ll a{};
  a.sll_family = AF_PACKET;
  a.sll_protocol = htons(static_cast<uint16_t>(protocol));
  a.sll_ifindex = kLo;
  a.sll_halen = 6;
  return a;
}

int PacketSocket(int type, int protocol) {
  int fd = socket(AF_PACKET, type, htons(static_cast<uint16_t>(protocol)));
  sockaddr_ll a = OnLo(protocol);
  if (fd >= 0) EXPECT_OK(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a));
  return fd;
}

uint16_t Checksum(const void* data, size_t size, uint32_t sum = 0) {
  const auto* p = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i + 1 < size; i += 2) sum += static_cast<uint32_t>(p[i] << 8 | p[i + 1]);
  if (size % 2) sum += static_cast<uint32_t>(p[size - 1] << 8);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

// A UDP packet over IPv4 between ports of 127.0.0.1.
std::vector<char> UdpPacket(int from, int to, const std::string& text) {
  iphdr ip{};
  ip.version = 4;
  ip.ihl = 5;
  ip.ttl = 64;
  ip.protocol = IPPROTO_UDP;
  ip.saddr = ip.daddr = htonl(INADDR_LOOPBACK);
  ip.tot_len = htons(static_cast<uint16_t>(sizeof(ip) + sizeof(udphdr) + text.size()));
  ip.check = Checksum(&ip, sizeof ip);
  udphdr udp{};
  udp.source = htons(static_cast<uint16_t>(from));
  udp.dest = htons(static_cast<uint16_t>(to));
  udp.len = htons(static_cast<uint16_t>(sizeof(udp) + text.size()));
  std::vector<char> out(sizeof(ip) + sizeof(udp) + text.size());
  memcpy(out.data(), &ip, sizeof ip);
  memcpy(out.data() + sizeof ip, &udp, sizeof udp);
  memcpy(out.data() + sizeof ip + sizeof udp, text.data(), text.size());
  return out;
}

struct Udp {
  explicit Udp() : fd(socket(AF_INET, SOCK_DGRAM, 0)), address(AF_INET) {
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
  void Send(Udp& to, const std::string& text) {
    EXPECT_EQ(static_cast<ssize_t>(text.size()),
              sendto(fd, text.data(), text.size(), 0, to.address.get(), to.address.length));
  }
  int fd;
  Loopback address;
};

struct Got {
  std::vector<char> bytes;
  sockaddr_ll from{};
  socklen_t length = sizeof(sockaddr_ll);
};
// The next packet that goes to UDP port `port`.
Got Next(int fd, size_t head, int port, int ms = 1000) {
  Got got;
  while (Poll(fd, POLLIN, ms) & POLLIN) {
    got.bytes.resize(70000);
    got.length = sizeof got.from;
    ssize_t n = recvfrom(fd, got.bytes.data(), got.bytes.size(), MSG_DONTWAIT,
                         reinterpret_cast<sockaddr*>(&got.from), &got.length);
    if (n < 0) break;
    got.bytes.resize(static_cast<size_t>(n));
    if (got.bytes.size() < head + sizeof(iphdr) + sizeof(udphdr)) continue;
    udphdr udp;
    memcpy(&udp, got.bytes.data() + head + sizeof(iphdr), sizeof udp);
    if (ntohs(udp.dest) == port) return got;
  }
  got.bytes.clear();
  return got;
}

#define NEEDS_RAW()                                                          \
  do {                                                                       \
    int probe = socket(AF_PACKET, SOCK_DGRAM, 0);                            \
    if (probe < 0) GTEST_SKIP() << "no packet sockets: " << strerror(errno); \
    close(probe);                                                            \
  } while (0)

TEST(Packet, Making) {
  NEEDS_RAW();
  EXPECT_ERRNO(socket(AF_PACKET, SOCK_STREAM, 0), ESOCKTNOSUPPORT);
  EXPECT_ERRNO(socket(AF_PACKET, SOCK_SEQPACKET, 0), ESOCKTNOSUPPORT);
  int fds[2];
  EXPECT_ERRNO(socketpair(AF_PACKET, SOCK_RAW, 0, fds), EOPNOTSUPP);
  int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
  ASSERT_OK(fd);
  EXPECT_EQ(AF_PACKET, GetInt(fd, SOL_SOCKET, SO_DOMAIN));
  EXPECT_EQ(SOCK_RAW, GetInt(fd, SOL_SOCKET, SO_TYPE));
  EXPECT_EQ(0, GetInt(fd, SOL_SOCKET, SO_PROTOCOL));
  EXPECT_ERRNO(listen(fd, 1), EOPNOTSUPP);
  EXPECT_ERRNO(accept(fd, nullptr, nullptr), EOPNOTSUPP);
  EXPECT_ERRNO(shutdown(fd, SHUT_RD), EOPNOTSUPP);
  sockaddr_ll a = OnLo(ETH_P_IP);
  socklen_t length = sizeof a;
  EXPECT_ERRNO(connect(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), EOPNOTSUPP);
  EXPECT_ERRNO(getpeername(fd, reinterpret_cast<sockaddr*>(&a), &length), EOPNOTSUPP);
  EXPECT_ERRNO(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof(a) - 1), EINVAL);
  a.sll_family = AF_INET;
  EXPECT_ERRNO(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), EINVAL);
  a = OnLo(ETH_P_IP);
  a.sll_ifindex = 99;
  EXPECT_ERRNO(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), ENODEV);
  length = sizeof a;
  EXPECT_OK(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length));
  EXPECT_EQ(offsetof(sockaddr_ll, sll_addr), length);
  EXPECT_EQ(0, a.sll_ifindex);
  a = OnLo(ETH_P_IP);
  EXPECT_OK(bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a));
  length = sizeof a;
  EXPECT_OK(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length));
  EXPECT_EQ(offsetof(sockaddr_ll, sll_addr) + 6, length);
  EXPECT_EQ(kLo, a.sll_ifindex);
  EXPECT_EQ(htons(ETH_P_IP), a.sll_protocol);
  EXPECT_EQ(ARPHRD_LOOPBACK, a.sll_hatype);
  EXPECT_EQ(6, a.sll_halen);
  char c;
  EXPECT_ERRNO(recv(fd, &c, 1, MSG_DONTWAIT | MSG_OOB), EINVAL);
  EXPECT_ERRNO(ioctl(fd, SIOCGSTAMP, &a), ENOENT);
  close(fd);
  EXPECT_EQ(0, ExitStatus([] {
              if (geteuid() == 0 && setresuid(12345, 12345, 12345) != 0) return 1;
              return socket(AF_PACKET, SOCK_RAW, 0) == -1 && errno == EPERM ? 0 : 2;
            }));
}

TEST(Packet, UdpIsSeen) {
  NEEDS_RAW();
  for (int type : {SOCK_DGRAM, SOCK_RAW}) {
    const size_t head = type == SOCK_RAW ? ETH_HLEN : 0;
    int fd = PacketSocket(type, ETH_P_IP);
    Udp one, two;
    one.Send(two, "hello");
    EXPECT_EQ("hello", two.Receive());
    Got got = Next(fd, head, two.address.port());
    ASSERT_EQ(head + sizeof(iphdr) + sizeof(udphdr) + 5, got.bytes.size());
    EXPECT_EQ(sizeof(sockaddr_ll), got.length);
    EXPECT_EQ(AF_PACKET, got.from.sll_family);
    EXPECT_EQ(htons(ETH_P_IP), got.from.sll_protocol);
    EXPECT_EQ(kLo, got.from.sll_ifindex);
    EXPECT_EQ(ARPHRD_LOOPBACK, got.from.sll_hatype);
    EXPECT_EQ(PACKET_HOST, got.from.sll_pkttype);
    EXPECT_EQ(6, got.from.sll_halen);
    iphdr ip;
    memcpy(&ip, got.bytes.data() + head, sizeof ip);
    EXPECT_EQ(4, ip.version);
    EXPECT_EQ(5, ip.ihl);
    EXPECT_EQ(IPPROTO_UDP, ip.protocol);
    EXPECT_EQ(htonl(INADDR_LOOPBACK), ip.saddr);
    EXPECT_EQ(htons(33), ip.tot_len);
    EXPECT_EQ(0, Checksum(&ip, sizeof ip));
    udphdr udp;
    memcpy(&udp, got.bytes.data() + head + sizeof ip, sizeof udp);
    EXPECT_EQ(htons(static_cast<uint16_t>(one.address.port())), udp.source);
    EXPECT_EQ(htons(13), udp.len);
    EXPECT_EQ(0, memcmp("hello", got.bytes.data() + head + 28, 5));
    if (type == SOCK_RAW) {
      EXPECT_EQ(0x08, got.bytes[12]);
      EXPECT_EQ(0x00, got.bytes[13]);
    }
    EXPECT_TRUE(Next(fd, head, two.address.port(), 0).bytes.empty());  // once
    timeval tv{};
    EXPECT_OK(ioctl(fd, SIOCGSTAMP, &tv));
    close(fd);
  }
}

TEST(Packet, AllProtocolsSeeBothWays) {
  NEEDS_RAW();
  int fd = PacketSocket(SOCK_DGRAM, ETH_P_ALL);
  Udp one, two;
  one.Send(two, "x");
  Got out = Next(fd, 0, two.address.port()), in = Next(fd, 0, two.address.port());
  ASSERT_FALSE(out.bytes.empty());
  ASSERT_FALSE(in.bytes.empty());
  EXPECT_EQ(PACKET_OUTGOING, out.from.sll_pkttype);
  EXPECT_EQ(PACKET_HOST, in.from.sll_pkttype);
  close(fd);
}

TEST(Packet, OtherProtocolsDoNot) {
  NEEDS_RAW();
  int fd = PacketSocket(SOCK_DGRAM, ETH_P_IPV6), none = socket(AF_PACKET, SOCK_DGRAM, 0);
  Udp one, two;
  one.Send(two, "x");
  EXPECT_TRUE(Next(fd, 0, two.address.port(), 20).bytes.empty());
  EXPECT_TRUE(Next(none, 0, two.address.port(), 0).bytes.empty());
  close(fd);
  close(none);
}

// A network of its own whose loopback device takes what seems to come from outside.
int WithOpenLoopback(const std::function<void()>& body) {
  return InNewNetwork([&] {
    if (SetLoopbackUp(true) != 0) return 97;
    // /proc/sys may be there for reading alone.
    TempDir proc;
    if (unshare(CLONE_NEWNS) != 0) return 96;
    mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (mount("proc", proc.path().c_str(), "proc", 0, nullptr) != 0) return 95;
    for (const char* name : {"route_localnet", "accept_local"}) {
      WriteFile(proc / "sys/net/ipv4/conf/lo/" + name, "1");
    }
    body();
    umount2(proc.path().c_str(), MNT_DETACH);
    return 0;
  });
}

TEST(Packet, MartiansAreDropped) {
  NEEDS_RAW();
  EXPECT_EQ(0, InNewNetwork([] {
              EXPECT_EQ(0, SetLoopbackUp(true));
              int fd = socket(AF_PACKET, SOCK_DGRAM, 0);
              Udp to;
              std::vector<char> packet = UdpPacket(4321, to.address.port(), "by hand");
              sockaddr_ll a = OnLo(ETH_P_IP);
              EXPECT_EQ(static_cast<ssize_t>(packet.size()),
                        sendto(fd, packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&a),
                               sizeof a));
              EXPECT_EQ("nothing", to.Receive(50));
              return 0;
            }));
}

void SendByHand() {
  for (int type : {SOCK_DGRAM, SOCK_RAW}) {
    int fd = socket(AF_PACKET, type, 0);
    Udp to;
    std::vector<char> packet = UdpPacket(4321, to.address.port(), "by hand");
    if (type == SOCK_RAW) {
      std::vector<char> link(ETH_HLEN, 0);
      link[12] = 0x08;
      packet.insert(packet.begin(), link.begin(), link.end());
    }
    sockaddr_ll a = OnLo(ETH_P_IP);
    auto* address = reinterpret_cast<sockaddr*>(&a);
    EXPECT_EQ(static_cast<ssize_t>(packet.size()),
              sendto(fd, packet.data(), packet.size(), 0, address, sizeof a));
    sockaddr_in from{};
    socklen_t length = sizeof from;
    char buffer[64];
    ASSERT_TRUE(Poll(to.fd, POLLIN, 1000) & POLLIN);
    ASSERT_EQ(
        7, recvfrom(to.fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length));
    EXPECT_EQ(htons(4321), from.sin_port);
    EXPECT_EQ(0, memcmp("by hand", buffer, 7));
    a.sll_ifindex = 99;
    EXPECT_ERRNO(sendto(fd, packet.data(), packet.size(), 0, address, sizeof a), ENXIO);
    EXPECT_ERRNO(send(fd, packet.data(), packet.size(), 0), ENXIO);
    a = OnLo(ETH_P_IP);
    EXPECT_ERRNO(sendto(fd, packet.data(), packet.size(), 0, address, 8), EINVAL);
    std::vector<char> huge(70000);
    EXPECT_ERRNO(sendto(fd, huge.data(), huge.size(), 0, address, sizeof a), EMSGSIZE);
    if (type == SOCK_RAW) EXPECT_ERRNO(sendto(fd, packet.data(), 5, 0, address, sizeof a), EINVAL);
    close(fd);
  }
}

TEST(Packet, WhatIsSentComesIn) {
  NEEDS_RAW();
  EXPECT_EQ(0, WithOpenLoopback(SendByHand));
}

TEST(Packet, Statistics) {
  NEEDS_RAW();
  int fd = PacketSocket(SOCK_DGRAM, ETH_P_IP);
  tpacket_stats s{};
  socklen_t length = sizeof s;
  EXPECT_OK(getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &s, &length));
  Udp one, two;
  for (int i = 0; i < 3; ++i) one.Send(two, "x");
  for (int i = 0; i < 3; ++i) two.Receive();
  EXPECT_OK(getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &s, &length));
  EXPECT_EQ(8u, length);
  EXPECT_GE(s.tp_packets, 3u);
  EXPECT_EQ(0u, s.tp_drops);
  EXPECT_OK(getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &s, &length));
  EXPECT_LT(s.tp_packets, 3u);
  packet_mreq m{};
  m.mr_ifindex = kLo;
  m.mr_type = PACKET_MR_PROMISC;
  EXPECT_OK(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &m, sizeof m));
  EXPECT_OK(setsockopt(fd, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &m, sizeof m));
  m.mr_ifindex = 99;
  EXPECT_ERRNO(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &m, sizeof m), ENODEV);
  EXPECT_ERRNO(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &m, 4), EINVAL);
  EXPECT_OK(SetInt(fd, SOL_PACKET, PACKET_AUXDATA, 1));
  EXPECT_EQ(1, GetInt(fd, SOL_PACKET, PACKET_AUXDATA));
  EXPECT_ERRNO(SetInt(fd, SOL_IP, IP_TTL, 1), ENOPROTOOPT);
  close(fd);
}

TEST(Filter, OfUdp) {
  Udp one, two;
  // The first byte of the data behind UDP's header decides, and how much is kept.
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 8), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'a', 0, 1),
      BPF_STMT(BPF_RET | BPF_K, 0),          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'b', 0, 1),
      BPF_STMT(BPF_RET | BPF_K, 10),         BPF_STMT(BPF_RET | BPF_K, 0xffff),
  };
  sock_fprog program{6, code};
  ASSERT_OK(setsockopt(two.fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  one.Send(two, "a dropped");
  one.Send(two, "b cut");
  one.Send(two, "c whole");
  EXPECT_EQ("b ", two.Receive());
  EXPECT_EQ("c whole", two.Receive());
  sock_filter back[6];
  socklen_t length = 0;
  EXPECT_OK(getsockopt(two.fd, SOL_SOCKET, SO_GET_FILTER, nullptr, &length));
  EXPECT_EQ(6u, length);
  length = 5;
  EXPECT_ERRNO(getsockopt(two.fd, SOL_SOCKET, SO_GET_FILTER, back, &length), EINVAL);
  length = 6;
  EXPECT_OK(getsockopt(two.fd, SOL_SOCKET, SO_GET_FILTER, back, &length));
  EXPECT_EQ(0, memcmp(back, code, sizeof code));
  EXPECT_OK(SetInt(two.fd, SOL_SOCKET, SO_DETACH_FILTER, 0));
  EXPECT_ERRNO(SetInt(two.fd, SOL_SOCKET, SO_DETACH_FILTER, 0), ENOENT);
  one.Send(two, "a");
  EXPECT_EQ("a", two.Receive());
  EXPECT_OK(setsockopt(two.fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
  EXPECT_OK(SetInt(two.fd, SOL_SOCKET, SO_LOCK_FILTER, 1));
  EXPECT_ERRNO(SetInt(two.fd, SOL_SOCKET, SO_LOCK_FILTER, 0), EPERM);
  EXPECT_ERRNO(SetInt(two.fd, SOL_SOCKET, SO_DETACH_FILTER, 0), EPERM);
  EXPECT_ERRNO(setsockopt(two.fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), EPERM);
}

TEST(Filter, WhatIsRefused) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  auto attach = [&](std::vector<sock_filter> code) {
    sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
  };
  const sock_filter ret = BPF_STMT(BPF_RET | BPF_K, 1);
  EXPECT_ERRNO(attach({}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_LD | BPF_IMM, 1)}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 0), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_JMP | BPF_JA, 1), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 1), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_ST, 16), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_LD | BPF_MEM, 0), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(0xff, 0), ret}), EINVAL);
  EXPECT_ERRNO(attach({BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0xfffffff0), ret}), EINVAL);
  EXPECT_OK(attach({BPF_STMT(BPF_ST, 15), BPF_STMT(BPF_LD | BPF_MEM, 15), ret}));
  sock_fprog program{1, reinterpret_cast<sock_filter*>(BadAddress())};
  EXPECT_ERRNO(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), EFAULT);
  EXPECT_ERRNO(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, 8), EINVAL);
  close(fd);
}

TEST(Raw, OfUdp) {
  NEEDS_RAW();
  int fd = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
  ASSERT_OK(fd);
  Udp one, two;
  one.Send(two, "seen");
  EXPECT_EQ("seen", two.Receive());
  Got got = Next(fd, 0, two.address.port());
  ASSERT_EQ(32u, got.bytes.size());
  EXPECT_EQ(0, memcmp("seen", got.bytes.data() + 28, 4));
  // Without the header of IP, it is made.
  std::vector<char> packet = UdpPacket(99, two.address.port(), "raw");
  EXPECT_EQ(11, sendto(fd, packet.data() + 20, 11, 0, two.address.get(), two.address.length));
  EXPECT_EQ("raw", two.Receive());
  EXPECT_OK(SetInt(fd, SOL_IP, IP_HDRINCL, 1));
  packet = UdpPacket(99, two.address.port(), "whole");
  EXPECT_EQ(33, sendto(fd, packet.data(), packet.size(), 0, two.address.get(), two.address.length));
  EXPECT_EQ("whole", two.Receive());
  close(fd);
  fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
  EXPECT_EQ(1, GetInt(fd, SOL_IP, IP_HDRINCL));
  EXPECT_EQ(33, sendto(fd, packet.data(), packet.size(), 0, two.address.get(), two.address.length));
  EXPECT_EQ("whole", two.Receive());
  close(fd);
}

TEST(Raw, IcmpTellsOfClosedPorts) {
  NEEDS_RAW();
  int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  ASSERT_OK(fd);
  Loopback closed(AF_INET);
  {
    Udp gone;
    closed = gone.address;
  }
  Udp from;
  EXPECT_EQ(1, sendto(from.fd, "x", 1, 0, closed.get(), closed.length));
  char buffer[1024];
  ASSERT_TRUE(Poll(fd, POLLIN, 1000) & POLLIN);
  ASSERT_EQ(20 + 8 + 20 + 8 + 1, recv(fd, buffer, sizeof buffer, 0));
  EXPECT_EQ(ICMP_UNREACH, buffer[20]);
  EXPECT_EQ(ICMP_UNREACH_PORT, buffer[21]);
  EXPECT_EQ(0, Checksum(buffer + 20, 37));
  close(fd);
}

TEST(SocketOptions, Received) {
  Udp one, two;
  EXPECT_OK(SetInt(two.fd, SOL_SOCKET, SO_TIMESTAMPNS, 1));
  EXPECT_OK(SetInt(two.fd, SOL_SOCKET, SO_TIMESTAMPING, 1 << 3 | 1 << 4));
  one.Send(two, "x");
  char data, control[512];
  iovec io{&data, 1};
  msghdr m{};
  m.msg_iov = &io;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  ASSERT_EQ(1, recvmsg(two.fd, &m, 0));
  bool plain = false, fine = false;
  for (cmsghdr* h = CMSG_FIRSTHDR(&m); h != nullptr; h = CMSG_NXTHDR(&m, h)) {
    if (h->cmsg_type == SO_TIMESTAMPNS) plain = true;
    if (h->cmsg_type == SO_TIMESTAMPING) {
      timespec t[3];
      ASSERT_EQ(CMSG_LEN(sizeof t), h->cmsg_len);
      memcpy(t, CMSG_DATA(h), sizeof t);
      fine = t[0].tv_sec != 0 && t[2].tv_sec == 0;
    }
  }
  EXPECT_TRUE(plain);
  EXPECT_TRUE(fine);
  timeval stamp{};
  EXPECT_ERRNO(ioctl(two.fd, SIOCGSTAMP, &stamp), ENOENT);  // that was told already
  one.Send(one, "x");
  EXPECT_EQ("x", one.Receive());
  EXPECT_OK(ioctl(one.fd, SIOCGSTAMP, &stamp));
  EXPECT_NE(0, stamp.tv_sec);
}

TEST(SocketOptions, Peers) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  gid_t groups[64], got[64];
  int count = getgroups(64, groups);
  socklen_t length = sizeof got;
  EXPECT_OK(getsockopt(s[0], SOL_SOCKET, SO_PEERGROUPS, got, &length));
  EXPECT_EQ(static_cast<socklen_t>(count) * sizeof(gid_t), length);
  EXPECT_EQ(0, memcmp(groups, got, length));
  close(s[0]);
  close(s[1]);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  length = sizeof got;
  EXPECT_ERRNO(getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, got, &length), ENODATA);
  uint64_t cookie;
  length = 4;
  EXPECT_ERRNO(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length), EINVAL);
  length = 8;
  EXPECT_OK(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length));
  close(fd);
}

}  // namespace
