// NETLINK_SOCK_DIAG: sockets of TCP, UDP and AF_UNIX as ss(8) asks for them; /proc/net/unix.
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <fstream>
#include <map>
#include <optional>
#include <vector>

#include "inet_util.h"

namespace {

// A message of an answer: its fixed part and its attributes.
template <typename T>
struct Found {
  T message;
  std::map<int, std::string> attributes;

  template <typename V>
  V Get(int type) const {
    V value{};
    auto it = attributes.find(type);
    EXPECT_TRUE(it != attributes.end()) << type;
    if (it == attributes.end()) return value;
    EXPECT_GE(it->second.size(), sizeof(V));
    memcpy(&value, it->second.data(), std::min(sizeof(V), it->second.size()));
    return value;
  }
};

struct Outcome {
  int error = 0;  // of an NLMSG_ERROR or of the end of the dump
};

class SockDiag : public ::testing::Test {
 protected:
  void SetUp() override {
    fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    ASSERT_OK(fd_);
    const timeval limit{5, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  void TearDown() override {
    close(fd_);
    for (int fd : fds_) close(fd);
  }
  int Keep(int fd) {
    EXPECT_OK(fd);
    fds_.push_back(fd);
    return fd;
  }

  // What comes back for a request; `T`: the fixed part of its answers.
  template <typename T, typename R>
  std::vector<Found<T>> Ask(R request, uint16_t flags, Outcome* outcome,
                            const std::string& attribute = {},
                            uint16_t type = SOCK_DIAG_BY_FAMILY) {
    std::string bytes(NLMSG_HDRLEN, '\0');
    bytes.append(reinterpret_cast<char*>(&request), sizeof(request));
    bytes += attribute;
    nlmsghdr h{};
    h.nlmsg_len = static_cast<uint32_t>(bytes.size());
    h.nlmsg_type = type;
    h.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    h.nlmsg_seq = 5;
    memcpy(bytes.data(), &h, sizeof(h));
    EXPECT_EQ(static_cast<ssize_t>(bytes.size()), send(fd_, bytes.data(), bytes.size(), 0));
    std::vector<Found<T>> found;
    *outcome = {};
    for (bool more = true; more;) {
      static char buffer[1 << 16];
      ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
      EXPECT_GT(n, 0);
      if (n <= 0) break;
      for (auto* m = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(m, static_cast<uint32_t>(n));
           m = NLMSG_NEXT(m, n)) {
        EXPECT_EQ(5u, m->nlmsg_seq);
        if (m->nlmsg_type == NLMSG_DONE || m->nlmsg_type == NLMSG_ERROR) {
          memcpy(&outcome->error, NLMSG_DATA(m), sizeof(int));
          more = false;
          continue;
        }
        EXPECT_EQ(SOCK_DIAG_BY_FAMILY, m->nlmsg_type);
        if ((m->nlmsg_flags & NLM_F_MULTI) == 0) more = false;
        found.push_back(Parse<T>(m));
      }
    }
    return found;
  }

  template <typename T>
  static Found<T> Parse(nlmsghdr* m) {
    Found<T> f{};
    memcpy(&f.message, NLMSG_DATA(m), sizeof(T));
    const char* at = static_cast<char*>(NLMSG_DATA(m)) + NLMSG_ALIGN(sizeof(T));
    const char* end = reinterpret_cast<char*>(m) + m->nlmsg_len;
    while (end - at >= static_cast<ptrdiff_t>(sizeof(nlattr))) {
      nlattr a;
      memcpy(&a, at, sizeof(a));
      if (a.nla_len < sizeof(a)) break;
      f.attributes[a.nla_type] = std::string(at + sizeof(a), a.nla_len - sizeof(a));
      at += NLA_ALIGN(a.nla_len);
    }
    return f;
  }

  static inet_diag_req_v2 Inet(int family, int protocol) {
    inet_diag_req_v2 r{};
    r.sdiag_family = static_cast<uint8_t>(family);
    r.sdiag_protocol = static_cast<uint8_t>(protocol);
    r.idiag_states = ~0u;
    return r;
  }
  static unix_diag_req Unix(uint32_t show) {
    unix_diag_req r{};
    r.sdiag_family = AF_UNIX;
    r.udiag_states = ~0u;
    r.udiag_show = show;
    return r;
  }

  static uint32_t Inode(int fd) {
    struct stat st {};
    EXPECT_OK(fstat(fd, &st));
    return static_cast<uint32_t>(st.st_ino);
  }
  // The one with this inode.
  static const Found<inet_diag_msg>* Find(const std::vector<Found<inet_diag_msg>>& all,
                                          uint32_t inode) {
    for (const auto& f : all) {
      if (f.message.idiag_inode == inode) return &f;
    }
    return nullptr;
  }
  static const Found<unix_diag_msg>* Find(const std::vector<Found<unix_diag_msg>>& all,
                                          uint32_t inode) {
    for (const auto& f : all) {
      if (f.message.udiag_ino == inode) return &f;
    }
    return nullptr;
  }
  static sockaddr_in Loopback(uint16_t port = 0) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(port);
    return a;
  }
  static uint16_t Port(int fd) {
    sockaddr_in a{};
    socklen_t length = sizeof(a);
    EXPECT_OK(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &length));
    return ntohs(a.sin_port);
  }
  // A listener with a connection: listener_, client_, server_.
  void Connect() {
    listener_ = Keep(socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in a = Loopback();
    ASSERT_OK(bind(listener_, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
    ASSERT_OK(listen(listener_, 7));
    a = Loopback(Port(listener_));
    client_ = Keep(socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_OK(connect(client_, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
    server_ = Keep(accept(listener_, nullptr, nullptr));
  }

  int fd_ = -1;
  int listener_ = -1, client_ = -1, server_ = -1;
  std::vector<int> fds_;
};

TEST_F(SockDiag, TcpConnections) {
  Connect();
  ASSERT_EQ(5, send(client_, "hello", 5, 0));
  Outcome outcome;
  inet_diag_req_v2 request = Inet(AF_INET, IPPROTO_TCP);
  request.idiag_ext = 1 << (INET_DIAG_INFO - 1) | 1 << (INET_DIAG_CONG - 1) |
                      1 << (INET_DIAG_SKMEMINFO - 1) | 1 << (INET_DIAG_TOS - 1);
  const auto all = Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome);
  EXPECT_EQ(0, outcome.error);
  const auto* l = Find(all, Inode(listener_));
  const auto* c = Find(all, Inode(client_));
  const auto* s = Find(all, Inode(server_));
  ASSERT_TRUE(l != nullptr && c != nullptr && s != nullptr);
  EXPECT_EQ(TCP_LISTEN, l->message.idiag_state);
  EXPECT_EQ(AF_INET, l->message.idiag_family);
  EXPECT_EQ(0u, l->message.idiag_rqueue);
  EXPECT_EQ(7u, l->message.idiag_wqueue);
  EXPECT_EQ(htonl(INADDR_LOOPBACK), l->message.id.idiag_src[0]);
  EXPECT_EQ(htons(Port(listener_)), l->message.id.idiag_sport);
  EXPECT_EQ(0, l->message.id.idiag_dport);
  EXPECT_EQ(geteuid(), l->message.idiag_uid);
  EXPECT_EQ(TCP_ESTABLISHED, c->message.idiag_state);
  EXPECT_EQ(TCP_ESTABLISHED, s->message.idiag_state);
  EXPECT_EQ(c->message.id.idiag_sport, s->message.id.idiag_dport);
  EXPECT_EQ(c->message.id.idiag_dport, s->message.id.idiag_sport);
  EXPECT_EQ(5u, s->message.idiag_rqueue);
  EXPECT_EQ(0u, c->message.idiag_rqueue);
  EXPECT_EQ(0, c->Get<uint8_t>(INET_DIAG_SHUTDOWN));
  EXPECT_EQ(0, c->Get<uint8_t>(INET_DIAG_TOS));
  EXPECT_GE(c->attributes.at(INET_DIAG_INFO).size(), sizeof(tcp_info));
  EXPECT_FALSE(c->attributes.at(INET_DIAG_CONG).empty());
  EXPECT_EQ(size_t{4} * SK_MEMINFO_VARS, c->attributes.at(INET_DIAG_SKMEMINFO).size());
  // By state.
  request.idiag_states = 1 << TCP_LISTEN;
  const auto listeners = Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome);
  EXPECT_NE(nullptr, Find(listeners, Inode(listener_)));
  EXPECT_EQ(nullptr, Find(listeners, Inode(client_)));
  // Of IPv6 there are others.
  EXPECT_EQ(nullptr, Find(Ask<inet_diag_msg>(Inet(AF_INET6, IPPROTO_TCP), NLM_F_DUMP, &outcome),
                          Inode(listener_)));
}

TEST_F(SockDiag, OneConnection) {
  Connect();
  Outcome outcome;
  inet_diag_req_v2 request = Inet(AF_INET, IPPROTO_TCP);
  request.id.idiag_src[0] = request.id.idiag_dst[0] = htonl(INADDR_LOOPBACK);
  request.id.idiag_sport = htons(Port(client_));
  request.id.idiag_dport = htons(Port(listener_));
  request.id.idiag_cookie[0] = request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  auto one = Ask<inet_diag_msg>(request, 0, &outcome);
  ASSERT_EQ(1u, one.size());
  EXPECT_EQ(Inode(client_), one[0].message.idiag_inode);
  // By its cookie, which SO_COOKIE tells.
  uint64_t cookie = 0;
  socklen_t length = sizeof(cookie);
  ASSERT_OK(getsockopt(client_, SOL_SOCKET, SO_COOKIE, &cookie, &length));
  memcpy(request.id.idiag_cookie, &cookie, sizeof(cookie));
  EXPECT_EQ(1u, Ask<inet_diag_msg>(request, 0, &outcome).size());
  request.id.idiag_cookie[0] ^= 0x40000000;
  Ask<inet_diag_msg>(request, 0, &outcome);
  EXPECT_EQ(-ENOENT, outcome.error);
  request.id.idiag_sport = htons(1);
  request.id.idiag_dport = 0;
  Ask<inet_diag_msg>(request, 0, &outcome);
  EXPECT_EQ(-ENOENT, outcome.error);
}

TEST_F(SockDiag, Filters) {
  Connect();
  auto attribute = [](const std::string& program) {
    nlattr a{};
    a.nla_len = static_cast<uint16_t>(sizeof(a) + program.size());
    a.nla_type = INET_DIAG_REQ_BYTECODE;
    return std::string(reinterpret_cast<char*>(&a), sizeof(a)) + program;
  };
  auto op = [](int code, int yes, int no) {
    inet_diag_bc_op o{};
    o.code = static_cast<uint8_t>(code);
    o.yes = static_cast<uint8_t>(yes);
    o.no = static_cast<uint16_t>(no);
    return std::string(reinterpret_cast<char*>(&o), sizeof(o));
  };
  Outcome outcome;
  const inet_diag_req_v2 request = Inet(AF_INET, IPPROTO_TCP);
  auto ask = [&](const std::string& program) {
    return Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome, attribute(program));
  };
  // Source port equal to the listener's: itself, and who was accepted.
  std::string program = op(INET_DIAG_BC_S_GE, 8, 20) + op(0, 0, Port(listener_)) +
                        op(INET_DIAG_BC_S_LE, 8, 12) + op(0, 0, Port(listener_));
  auto found = ask(program);
  EXPECT_EQ(0, outcome.error);
  EXPECT_NE(nullptr, Find(found, Inode(listener_)));
  EXPECT_NE(nullptr, Find(found, Inode(server_)));
  EXPECT_EQ(nullptr, Find(found, Inode(client_)));
  // Destination 127.0.0.0/8 with the listener's port.
  inet_diag_hostcond cond{};
  cond.family = AF_INET;
  cond.prefix_len = 8;
  cond.port = Port(listener_);
  const uint32_t net = htonl(0x7f000000);
  program = op(INET_DIAG_BC_D_COND, 16, 20) +
            std::string(reinterpret_cast<char*>(&cond), sizeof(cond)) +
            std::string(reinterpret_cast<const char*>(&net), sizeof(net));
  found = ask(program);
  EXPECT_EQ(0, outcome.error);
  EXPECT_NE(nullptr, Find(found, Inode(client_)));
  EXPECT_EQ(nullptr, Find(found, Inode(server_)));
  // What is no program.
  for (const std::string& bad :
       {op(INET_DIAG_BC_S_GE, 8, 12), op(77, 4, 8), op(INET_DIAG_BC_JMP, 4, 400),
        op(INET_DIAG_BC_NOP, 2, 0), op(INET_DIAG_BC_NOP, 0, 0), std::string("ab")}) {
    ask(bad);
    EXPECT_EQ(-EINVAL, outcome.error);
  }
}

TEST_F(SockDiag, Udp) {
  const int receiver = Keep(socket(AF_INET, SOCK_DGRAM, 0));
  const int sender = Keep(socket(AF_INET, SOCK_DGRAM, 0));
  sockaddr_in a = Loopback();
  ASSERT_OK(bind(receiver, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
  a = Loopback(Port(receiver));
  ASSERT_OK(connect(sender, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
  ASSERT_EQ(3, send(sender, "abc", 3, 0));
  Outcome outcome;
  const auto all = Ask<inet_diag_msg>(Inet(AF_INET, IPPROTO_UDP), NLM_F_DUMP, &outcome);
  EXPECT_EQ(0, outcome.error);
  const auto* r = Find(all, Inode(receiver));
  const auto* s = Find(all, Inode(sender));
  ASSERT_TRUE(r != nullptr && s != nullptr);
  EXPECT_EQ(TCP_CLOSE, r->message.idiag_state);
  EXPECT_GT(r->message.idiag_rqueue, 3u);
  EXPECT_EQ(TCP_ESTABLISHED, s->message.idiag_state);
  EXPECT_EQ(htons(Port(receiver)), s->message.id.idiag_dport);
}

TEST_F(SockDiag, UnixSockets) {
  const int listener = Keep(socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  const std::string name = "diag-test-" + std::to_string(getpid());
  memcpy(a.sun_path + 1, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  ASSERT_OK(bind(listener, reinterpret_cast<sockaddr*>(&a), length));
  ASSERT_OK(listen(listener, 3));
  const int client = Keep(socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_OK(connect(client, reinterpret_cast<sockaddr*>(&a), length));
  int pair[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
  Keep(pair[0]);
  Keep(pair[1]);
  ASSERT_EQ(4, send(pair[0], "abcd", 4, 0));
  ASSERT_OK(shutdown(pair[1], SHUT_WR));

  Outcome outcome;
  constexpr uint32_t kShow = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS |
                             UDIAG_SHOW_RQLEN | UDIAG_SHOW_UID;
  unix_diag_req request = Unix(kShow);
  const auto all = Ask<unix_diag_msg>(request, NLM_F_DUMP, &outcome);
  EXPECT_EQ(0, outcome.error);
  const auto* l = Find(all, Inode(listener));
  const auto* c = Find(all, Inode(client));
  const auto* p = Find(all, Inode(pair[1]));
  ASSERT_TRUE(l != nullptr && c != nullptr && p != nullptr);
  EXPECT_EQ(TCP_LISTEN, l->message.udiag_state);
  EXPECT_EQ(SOCK_STREAM, l->message.udiag_type);
  EXPECT_EQ(std::string(1, '\0') + name, l->attributes.at(UNIX_DIAG_NAME));
  EXPECT_EQ(1u, l->Get<unix_diag_rqlen>(UNIX_DIAG_RQLEN).udiag_rqueue);
  EXPECT_EQ(3u, l->Get<unix_diag_rqlen>(UNIX_DIAG_RQLEN).udiag_wqueue);
  EXPECT_EQ(Inode(client), l->Get<uint32_t>(UNIX_DIAG_ICONS));
  EXPECT_EQ(geteuid(), l->Get<uint32_t>(UNIX_DIAG_UID));
  EXPECT_EQ(TCP_ESTABLISHED, c->message.udiag_state);
  EXPECT_EQ(0u, c->attributes.count(UNIX_DIAG_NAME));
  EXPECT_EQ(SOCK_SEQPACKET, p->message.udiag_type);
  EXPECT_EQ(Inode(pair[0]), p->Get<uint32_t>(UNIX_DIAG_PEER));
  EXPECT_EQ(4u, p->Get<unix_diag_rqlen>(UNIX_DIAG_RQLEN).udiag_rqueue);
  EXPECT_EQ(2, p->Get<uint8_t>(UNIX_DIAG_SHUTDOWN));
  // One.
  request.udiag_ino = Inode(pair[1]);
  request.udiag_cookie[0] = request.udiag_cookie[1] = ~0u;
  const auto one = Ask<unix_diag_msg>(request, 0, &outcome);
  ASSERT_EQ(1u, one.size());
  EXPECT_EQ(request.udiag_ino, one[0].message.udiag_ino);
  request.udiag_cookie[0] = 0x7fffffff;
  Ask<unix_diag_msg>(request, 0, &outcome);
  EXPECT_EQ(-ESTALE, outcome.error);
  request.udiag_ino = 0;
  Ask<unix_diag_msg>(request, 0, &outcome);
  EXPECT_EQ(-EINVAL, outcome.error);
  request.udiag_ino = 0x7fffffff;
  Ask<unix_diag_msg>(request, 0, &outcome);
  EXPECT_EQ(-ENOENT, outcome.error);
}

TEST_F(SockDiag, APathIsTold) {
  const int s = Keep(socket(AF_UNIX, SOCK_DGRAM, 0));
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/diag-test-%d", getpid());
  unlink(a.sun_path);
  ASSERT_OK(bind(s, reinterpret_cast<sockaddr*>(&a), sizeof(a)));
  struct stat st {};
  ASSERT_OK(stat(a.sun_path, &st));
  Outcome outcome;
  const auto all = Ask<unix_diag_msg>(Unix(UDIAG_SHOW_NAME | UDIAG_SHOW_VFS), NLM_F_DUMP, &outcome);
  const auto* found = Find(all, Inode(s));
  ASSERT_NE(nullptr, found);
  EXPECT_EQ(TCP_CLOSE, found->message.udiag_state);
  EXPECT_EQ(std::string(a.sun_path) + '\0', found->attributes.at(UNIX_DIAG_NAME));
  EXPECT_EQ(st.st_ino, found->Get<unix_diag_vfs>(UNIX_DIAG_VFS).udiag_vfs_ino);
  // A line of /proc/net/unix has it too.
  std::ifstream file("/proc/net/unix");
  std::string line, with;
  while (std::getline(file, line)) {
    if (line.ends_with(a.sun_path)) with = line;
  }
  unsigned long refs = 0, protocol = 9, flags = 9, type = 9, state = 9, inode = 0;
  EXPECT_EQ(6, sscanf(with.c_str(), "%*s %lx %lx %lx %lx %lx %lu", &refs, &protocol, &flags, &type,
                      &state, &inode))
      << with;
  EXPECT_EQ(2u, refs);
  EXPECT_EQ(0u, flags);
  EXPECT_EQ(static_cast<unsigned long>(SOCK_DGRAM), type);
  EXPECT_EQ(1u, state);
  EXPECT_EQ(Inode(s), inode);
  unlink(a.sun_path);
}

TEST_F(SockDiag, ManyAnswersCome) {
  for (int i = 0; i < 400; ++i) {
    int pair[2];
    ASSERT_OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    Keep(pair[0]);
    Keep(pair[1]);
  }
  const int small = 4096;
  ASSERT_OK(setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)));
  Outcome outcome;
  const auto all = Ask<unix_diag_msg>(Unix(UDIAG_SHOW_PEER), NLM_F_DUMP, &outcome);
  EXPECT_EQ(0, outcome.error);
  for (int fd : fds_) EXPECT_NE(nullptr, Find(all, Inode(fd)));
}

TEST_F(SockDiag, BadRequests) {
  Outcome outcome;
  inet_diag_req_v2 request = Inet(AF_INET, IPPROTO_TCP);
  request.sdiag_family = 200;
  Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome);
  EXPECT_EQ(-EINVAL, outcome.error);
  request.sdiag_family = AF_KEY;
  Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome);
  EXPECT_EQ(-ENOENT, outcome.error);
  sock_diag_req tiny{AF_INET, IPPROTO_TCP};
  Ask<inet_diag_msg>(tiny, NLM_F_DUMP, &outcome);
  EXPECT_EQ(-EINVAL, outcome.error);
  request.sdiag_family = AF_INET;
  Ask<inet_diag_msg>(request, NLM_F_DUMP, &outcome, {}, 99);
  EXPECT_EQ(-EINVAL, outcome.error);
}

}  // namespace
