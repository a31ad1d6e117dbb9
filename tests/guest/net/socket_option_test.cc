// Options of sockets that few programs set: what they do, what reads back, and who has none of
// them.
#include <linux/net_tstamp.h>
#include <linux/sock_diag.h>
#include <netinet/udp.h>
#include <sys/un.h>

#include <array>

#include "inet_util.h"

#ifndef SO_PEEK_OFF
#define SO_PEEK_OFF 42
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

namespace {

std::string Recv(int fd, size_t most, int flags = 0) {
  std::string text(most, '\0');
  const ssize_t n = recv(fd, text.data(), most, flags | MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN ? "EAGAIN" : strerror(errno);
  text.resize(std::min(static_cast<size_t>(n), most));
  return text;
}
std::string Peek(int fd, size_t most) { return Recv(fd, most, MSG_PEEK); }
void Put(int fd, std::string_view text) {
  ASSERT_EQ(static_cast<ssize_t>(text.size()), send(fd, text.data(), text.size(), 0));
}

using Pair = std::array<int, 2>;

Pair UnixPair(int type) {
  Pair p;
  EXPECT_OK(socketpair(AF_UNIX, type, 0, p.data()));
  return p;
}
Pair UdpPair() {
  Pair p;
  for (int& fd : p) {
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    EXPECT_OK(Loopback(AF_INET).Bind(fd));
  }
  for (int i = 0; i < 2; ++i) EXPECT_OK(NameOf(p[1 - i]).Connect(p[i]));
  return p;
}
Pair Tcp() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_OK(Loopback(AF_INET).Bind(listener));
  EXPECT_OK(listen(listener, 1));
  Pair p;
  p[0] = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_OK(NameOf(listener).Connect(p[0]));
  p[1] = accept(listener, nullptr, nullptr);
  EXPECT_OK(p[1]);
  close(listener);
  return p;
}
void Close(const Pair& p) {
  for (int fd : p) close(fd);
}

// --- SO_PEEK_OFF ---

void PeekStream(const Pair& p) {
  EXPECT_EQ(-1, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  Put(p[0], "abcdefgh");
  pollfd ready{.fd = p[1], .events = POLLIN, .revents = 0};
  ASSERT_EQ(1, poll(&ready, 1, 5000));
  EXPECT_EQ("abc", Peek(p[1], 3));
  EXPECT_EQ("abc", Peek(p[1], 3));
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, 0));
  EXPECT_EQ("abc", Peek(p[1], 3));
  EXPECT_EQ(3, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_EQ("def", Peek(p[1], 3));
  // What is read is no longer ahead.
  EXPECT_EQ("ab", Recv(p[1], 2));
  EXPECT_EQ(4, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_EQ("gh", Peek(p[1], 10));
  EXPECT_EQ("EAGAIN", Peek(p[1], 10));
  Put(p[0], "ij");
  ASSERT_EQ(1, poll(&ready, 1, 5000));
  EXPECT_EQ("ij", Peek(p[1], 10));
  char byte;
  EXPECT_EQ(1, read(p[1], &byte, 1));
  EXPECT_EQ(7, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_EQ("defghij", Recv(p[1], 10));
  EXPECT_EQ(0, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, -1));
  Put(p[0], "kl");
  ASSERT_EQ(1, poll(&ready, 1, 5000));
  EXPECT_EQ("kl", Peek(p[1], 10));
  EXPECT_EQ("kl", Peek(p[1], 10));
  Close(p);
}

TEST(PeekOffset, UnixStream) { PeekStream(UnixPair(SOCK_STREAM)); }

TEST(PeekOffset, Tcp) {
  const Pair p = Tcp();
  if (int off = 0; setsockopt(p[1], SOL_SOCKET, SO_PEEK_OFF, &off, sizeof off) != 0) {
    Close(p);
    GTEST_SKIP() << "before Linux 6.10";
  }
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, -1));
  PeekStream(p);
}

// A thread that peeks beyond what is there waits for what comes.
TEST(PeekOffset, WaitsForMore) {
  const Pair p = UnixPair(SOCK_STREAM);
  Put(p[0], "abc");
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, 3));
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    const bool right = recv(p[1], &byte, 1, MSG_PEEK) == 1 && byte == 'd';
    _exit(right ? 0 : 1);
  }
  Put(p[0], "d");
  int status = -1;
  EXPECT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  Close(p);
}

void PeekMessages(const Pair& p) {
  for (const char* text : {"abcd", "efg", "hi"}) Put(p[0], text);
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, 0));
  EXPECT_EQ("ab", Peek(p[1], 2));
  EXPECT_EQ("cd", Peek(p[1], 10));
  EXPECT_EQ("efg", Peek(p[1], 10));
  EXPECT_EQ("h", Peek(p[1], 1));
  EXPECT_EQ("i", Peek(p[1], 10));
  EXPECT_EQ(9, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_EQ("EAGAIN", Peek(p[1], 10));
  EXPECT_EQ("abcd", Recv(p[1], 10));
  EXPECT_EQ(5, GetInt(p[1], SOL_SOCKET, SO_PEEK_OFF));
  EXPECT_OK(SetInt(p[1], SOL_SOCKET, SO_PEEK_OFF, 2));
  EXPECT_EQ("g", Peek(p[1], 10));
  EXPECT_EQ("efg", Recv(p[1], 10));
  EXPECT_EQ("hi", Recv(p[1], 10));
  Close(p);
}

TEST(PeekOffset, UnixDatagrams) { PeekMessages(UnixPair(SOCK_DGRAM)); }
TEST(PeekOffset, UnixSequence) { PeekMessages(UnixPair(SOCK_SEQPACKET)); }
TEST(PeekOffset, Udp) { PeekMessages(UdpPair()); }

TEST(PeekOffset, OthersHaveNone) {
  const int netlink = socket(AF_NETLINK, SOCK_RAW, 0);
  EXPECT_ERRNO(SetInt(netlink, SOL_SOCKET, SO_PEEK_OFF, 0), EOPNOTSUPP);
  int value = 0;
  socklen_t length = sizeof value;
  EXPECT_ERRNO(getsockopt(netlink, SOL_SOCKET, SO_PEEK_OFF, &value, &length), EOPNOTSUPP);
  close(netlink);
}

// --- TCP ---

// recvmsg(2) that takes `most` bytes; what it says is left, or -1.
int LeftAfter(int fd, size_t most) {
  std::string text(most, '\0');
  iovec part{text.data(), most};
  alignas(cmsghdr) char control[64];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(fd, &message, 0) < 0) return -2;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) return -1;
  if (header->cmsg_level != IPPROTO_TCP || header->cmsg_type != TCP_CM_INQ) return -3;
  int left;
  memcpy(&left, CMSG_DATA(header), sizeof left);
  return left;
}

TEST(TcpOption, UnreadBytesAreTold) {
  const Pair p = Tcp();
  Put(p[0], "abcdefgh");
  EXPECT_EQ(0, GetInt(p[1], IPPROTO_TCP, TCP_INQ));
  EXPECT_EQ(-1, LeftAfter(p[1], 1));
  EXPECT_ERRNO(SetInt(p[1], IPPROTO_TCP, TCP_INQ, 2), EINVAL);
  EXPECT_OK(SetInt(p[1], IPPROTO_TCP, TCP_INQ, 1));
  EXPECT_EQ(1, GetInt(p[1], IPPROTO_TCP, TCP_INQ));
  EXPECT_EQ(4, LeftAfter(p[1], 3));
  EXPECT_EQ(0, LeftAfter(p[1], 4));
  EXPECT_OK(shutdown(p[0], SHUT_WR));
  EXPECT_EQ(1, LeftAfter(p[1], 4));  // there is an end to be read
  Close(p);
}

TEST(TcpOption, InfoIsAsLongAsIsAskedFor) {
  const Pair p = Tcp();
  Put(p[0], "abcdefgh");
  EXPECT_EQ("abcdefgh", Recv(p[1], 8, MSG_WAITALL));
  std::array<uint8_t, 512> info{};
  socklen_t length = info.size();
  EXPECT_OK(getsockopt(p[1], IPPROTO_TCP, TCP_INFO, info.data(), &length));
  EXPECT_GE(length, 232u);
  uint64_t received;
  memcpy(&received, info.data() + 128, sizeof received);
  EXPECT_EQ(8u, received);
  EXPECT_EQ(TCP_ESTABLISHED, info[0]);
  info.fill(0xee);
  length = 7;
  EXPECT_OK(getsockopt(p[0], IPPROTO_TCP, TCP_INFO, info.data(), &length));
  EXPECT_EQ(7u, length);
  EXPECT_EQ(0xee, info[7]);
  length = info.size();
  EXPECT_OK(getsockopt(p[0], IPPROTO_TCP, TCP_INFO, info.data(), &length));
  uint64_t sent;
  memcpy(&sent, info.data() + 200, sizeof sent);
  EXPECT_EQ(8u, sent);
  Close(p);
}

int SetAndGet(int fd, int level, int name, int value) {
  EXPECT_OK(SetInt(fd, level, name, value));
  return GetInt(fd, level, name);
}

TEST(TcpOption, TimesOfAnswers) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  for (auto [set, is] :
       {std::pair{1, 1}, {2, 3}, {3, 3}, {5, 7}, {30, 31}, {100, 127}, {200, 247}}) {
    EXPECT_EQ(is, SetAndGet(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, set)) << set;
  }
  EXPECT_EQ(0, SetAndGet(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0));
  EXPECT_EQ(0, SetAndGet(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, -3));
  close(fd);
}

TEST(TcpOption, Bounds) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(1152, SetAndGet(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, 1));
  EXPECT_EQ(5000, SetAndGet(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, 5000));
  EXPECT_EQ(0, SetAndGet(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, 0));
  EXPECT_EQ(100, SetAndGet(fd, SOL_SOCKET, SO_RCVLOWAT, 100));
  EXPECT_EQ(1, SetAndGet(fd, SOL_SOCKET, SO_RCVLOWAT, 0));
  EXPECT_OK(SetInt(fd, SOL_SOCKET, SO_RCVBUF, 8192));
  EXPECT_EQ(8192, SetAndGet(fd, SOL_SOCKET, SO_RCVLOWAT, 1000000));
  EXPECT_ERRNO(SetInt(fd, IPPROTO_TCP, TCP_TIMESTAMP, 1), EPERM);
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "nothing", 7), ENOENT);
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "", 0), EINVAL);
  char name[16];
  socklen_t length = sizeof name;
  EXPECT_OK(getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &length));
  EXPECT_EQ(0u, length);
  close(fd);
}

// --- SOL_SOCKET ---

TEST(SocketOption, MemoryInfo) {
  const Pair p = UnixPair(SOCK_STREAM);
  Put(p[0], "abcd");
  for (int i = 0; i < 2; ++i) {
    std::array<uint32_t, 16> info{};
    socklen_t length = sizeof info;
    EXPECT_OK(getsockopt(p[i], SOL_SOCKET, SO_MEMINFO, info.data(), &length));
    EXPECT_EQ(sizeof(uint32_t) * 9, length);
    EXPECT_EQ(GetInt(p[i], SOL_SOCKET, SO_RCVBUF), static_cast<int>(info[SK_MEMINFO_RCVBUF]));
    EXPECT_EQ(GetInt(p[i], SOL_SOCKET, SO_SNDBUF), static_cast<int>(info[SK_MEMINFO_SNDBUF]));
    EXPECT_EQ(i == 0, info[SK_MEMINFO_WMEM_ALLOC] > 0);
  }
  Close(p);
}

TEST(SocketOption, NegativeBuffersAreLargeOnes) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_GE(SetAndGet(fd, SOL_SOCKET, SO_SNDBUF, -1), 2 * 212992);
  EXPECT_GE(SetAndGet(fd, SOL_SOCKET, SO_RCVBUF, -1), 2 * 212992);
  EXPECT_EQ(4608, SetAndGet(fd, SOL_SOCKET, SO_SNDBUF, 0));
  close(fd);
}

TEST(SocketOption, TransmitTime) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct {
    int clock = CLOCK_MONOTONIC;
    uint32_t flags = 1;
  } time, back;
  EXPECT_ERRNO(setsockopt(fd, SOL_SOCKET, SO_TXTIME, &time, 4), EINVAL);
  EXPECT_OK(setsockopt(fd, SOL_SOCKET, SO_TXTIME, &time, sizeof time));
  socklen_t length = sizeof back;
  EXPECT_OK(getsockopt(fd, SOL_SOCKET, SO_TXTIME, &back, &length));
  EXPECT_EQ(sizeof back, length);
  EXPECT_EQ(CLOCK_MONOTONIC, back.clock);
  EXPECT_EQ(1u, back.flags);
  time.flags = 4;
  EXPECT_ERRNO(setsockopt(fd, SOL_SOCKET, SO_TXTIME, &time, sizeof time), EINVAL);
  close(fd);
}

TEST(SocketOption, EverySocketCanBeBoundToADevice) {
  for (int family : {AF_UNIX, AF_INET, AF_NETLINK}) {
    const int fd = socket(family, SOCK_DGRAM, 0);
    EXPECT_OK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2));
    char name[IFNAMSIZ];
    socklen_t length = sizeof name;
    EXPECT_OK(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &length));
    EXPECT_EQ(3u, length);
    EXPECT_STREQ("lo", name);
    EXPECT_EQ(1, GetInt(fd, SOL_SOCKET, SO_BINDTOIFINDEX));
    EXPECT_ERRNO(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "none", 4), ENODEV);
    EXPECT_OK(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "", 0));
    EXPECT_EQ(0, GetInt(fd, SOL_SOCKET, SO_BINDTOIFINDEX));
    close(fd);
  }
}

// --- SO_PASSPIDFD ---

int PidOf(int pidfd) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  FILE* file = fopen(path, "r");
  if (file == nullptr) return -1;
  int pid = -1;
  while (fgets(line, sizeof line, file) != nullptr) {
    if (sscanf(line, "Pid: %d", &pid) == 1) break;
  }
  fclose(file);
  return pid;
}

TEST(PassPidFd, NamesTheSender) {
  for (int type : {SOCK_STREAM, SOCK_DGRAM}) {
    const Pair p = UnixPair(type);
    if (SetInt(p[1], SOL_SOCKET, SO_PASSPIDFD, 1) != 0) {
      Close(p);
      GTEST_SKIP() << "before Linux 6.5";
    }
    EXPECT_EQ(1, GetInt(p[1], SOL_SOCKET, SO_PASSPIDFD));
    Put(p[0], "a");
    char byte;
    iovec part{&byte, 1};
    alignas(cmsghdr) char control[64];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ASSERT_EQ(1, recvmsg(p[1], &message, 0));
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    ASSERT_NE(nullptr, header);
    EXPECT_EQ(SCM_PIDFD, header->cmsg_type);
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    EXPECT_EQ(getpid(), PidOf(fd));
    EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
    close(fd);
    // Without room for it.
    Put(p[0], "a");
    message.msg_controllen = sizeof(cmsghdr);
    ASSERT_EQ(1, recvmsg(p[1], &message, 0));
    EXPECT_EQ(MSG_CTRUNC, message.msg_flags & MSG_CTRUNC);
    Close(p);
  }
}

TEST(PassPidFd, IsOfUnixSocketsAlone) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  EXPECT_NE(0, SetInt(fd, SOL_SOCKET, SO_PASSPIDFD, 1));
  close(fd);
}

// --- IPPROTO_IP, IPPROTO_IPV6 ---

TEST(IpOption, ProtocolIsThePort) {
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  constexpr int kProtocol = 52;  // IP_PROTOCOL
  EXPECT_EQ(0, GetInt(fd, IPPROTO_IP, kProtocol));
  EXPECT_OK(Loopback(AF_INET).Bind(fd));
  EXPECT_EQ(NameOf(fd).port(), GetInt(fd, IPPROTO_IP, kProtocol));
  close(fd);
}

TEST(IpOption, StreamsHaveNoGroups) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_ERRNO(SetInt(fd, IPPROTO_IP, IP_MULTICAST_IF, 0), EINVAL);
  ip_mreq request{};
  EXPECT_ERRNO(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request, sizeof request), EPROTO);
  close(fd);
}

}  // namespace
