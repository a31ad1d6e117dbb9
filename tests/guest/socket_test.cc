// AF_UNIX sockets and socketpair.
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <thread>

#include "guest_util.h"
#include "net/fd_util.h"

namespace {
sockaddr_un Address(const std::string& path, socklen_t* length) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  memcpy(a.sun_path, path.data(), path.size());
  *length = offsetof(sockaddr_un, sun_path) + path.size() + (path[0] ? 1 : 0);
  return a;
}
}  // namespace

TEST(Socketpair, StreamBothWays) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s));
  EXPECT_EQ(FD_CLOEXEC, fcntl(s[0], F_GETFD));
  EXPECT_EQ(5, write(s[0], "hello", 5));
  EXPECT_EQ(3, send(s[0], "abc", 3, 0));
  char b[16] = {};
  EXPECT_EQ(8, recv(s[1], b, 16, MSG_PEEK));
  EXPECT_EQ(8, read(s[1], b, 16));
  EXPECT_STREQ("helloabc", b);
  EXPECT_ERRNO(recv(s[1], b, 1, MSG_DONTWAIT), EAGAIN);
  ASSERT_OK(shutdown(s[0], SHUT_WR));
  EXPECT_EQ(0, read(s[1], b, 1));
  signal(SIGPIPE, SIG_IGN);
  EXPECT_ERRNO(write(s[0], "x", 1), EPIPE);
  EXPECT_EQ(1, write(s[1], "y", 1));
  EXPECT_EQ(1, read(s[0], b, 1));
  close(s[0]);
  EXPECT_ERRNO(send(s[1], "x", 1, MSG_NOSIGNAL), EPIPE);
  close(s[1]);
}

TEST(Socketpair, DatagramAndSeqpacketKeepBoundaries) {
  for (int type : {SOCK_DGRAM, SOCK_SEQPACKET}) {
    int s[2];
    ASSERT_OK(socketpair(AF_UNIX, type, 0, s));
    send(s[0], "one", 3, 0);
    send(s[0], "three", 5, 0);
    char b[16];
    EXPECT_EQ(3, recv(s[1], b, 16, 0));
    EXPECT_EQ(5, recv(s[1], b, 2, MSG_TRUNC));
    EXPECT_ERRNO(recv(s[1], b, 2, MSG_DONTWAIT), EAGAIN);
    int value;
    socklen_t length = sizeof value;
    ASSERT_OK(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &value, &length));
    EXPECT_EQ(type, value);
    close(s[0]);
    close(s[1]);
  }
}

TEST(Unix, ListenConnectAccept) {
  TempDir dir;
  socklen_t length;
  sockaddr_un address = Address(dir / "s", &length);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_ERRNO(connect(listener, reinterpret_cast<sockaddr*>(&address), length), ENOENT);
  ASSERT_OK(bind(listener, reinterpret_cast<sockaddr*>(&address), length));
  struct stat st;
  ASSERT_OK(stat((dir / "s").c_str(), &st));
  EXPECT_TRUE(S_ISSOCK(st.st_mode));
  int client = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_ERRNO(connect(client, reinterpret_cast<sockaddr*>(&address), length), ECONNREFUSED);
  ASSERT_OK(listen(listener, 5));
  int other = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_ERRNO(bind(other, reinterpret_cast<sockaddr*>(&address), length), EADDRINUSE);
  close(other);
  std::thread server([&] {
    sockaddr_un peer{};
    socklen_t peer_length = sizeof peer;
    int c = accept4(listener, reinterpret_cast<sockaddr*>(&peer), &peer_length, SOCK_CLOEXEC);
    ASSERT_OK(c);
    char b[8] = {};
    EXPECT_EQ(4, read(c, b, 8));
    EXPECT_EQ(4, write(c, "pong", 4));
    close(c);
  });
  ASSERT_OK(connect(client, reinterpret_cast<sockaddr*>(&address), length));
  EXPECT_EQ(4, write(client, "ping", 4));
  char b[8] = {};
  EXPECT_EQ(4, read(client, b, 8));
  EXPECT_STREQ("pong", b);
  EXPECT_EQ(0, read(client, b, 8));
  server.join();
  sockaddr_un name{};
  socklen_t name_length = sizeof name;
  ASSERT_OK(getpeername(client, reinterpret_cast<sockaddr*>(&name), &name_length));
  EXPECT_EQ(dir / "s", name.sun_path);
  struct ucred cred {};
  length = sizeof cred;
  ASSERT_OK(getsockopt(client, SOL_SOCKET, SO_PEERCRED, &cred, &length));
  EXPECT_EQ(getpid(), cred.pid);
  close(client);
  close(listener);
}

TEST(Unix, AbstractNamesAndNonblockingAccept) {
  socklen_t length;
  sockaddr_un address = Address(std::string("\0guest-test", 11), &length);
  int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
  ASSERT_OK(bind(listener, reinterpret_cast<sockaddr*>(&address), length));
  ASSERT_OK(listen(listener, 1));
  EXPECT_ERRNO(accept(listener, nullptr, nullptr), EAGAIN);
  int client = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  ASSERT_OK(connect(client, reinterpret_cast<sockaddr*>(&address), length));
  pollfd p{listener, POLLIN, 0};
  EXPECT_EQ(1, poll(&p, 1, 0));
  int server = accept(listener, nullptr, nullptr);
  ASSERT_OK(server);
  EXPECT_EQ(2, send(client, "hi", 2, 0));
  char b[4];
  EXPECT_EQ(2, recv(server, b, 4, 0));
  close(server);
  p = {client, POLLIN | POLLRDHUP, 0};
  EXPECT_EQ(1, poll(&p, 1, 1000));
  EXPECT_TRUE(p.revents & POLLHUP);
  close(client);
  close(listener);
}

TEST(Unix, DatagramsWithAddresses) {
  TempDir dir;
  socklen_t la, lb;
  sockaddr_un a = Address(dir / "a", &la), b = Address(dir / "b", &lb);
  int sa = socket(AF_UNIX, SOCK_DGRAM, 0), sb = socket(AF_UNIX, SOCK_DGRAM, 0);
  ASSERT_OK(bind(sa, reinterpret_cast<sockaddr*>(&a), la));
  ASSERT_OK(bind(sb, reinterpret_cast<sockaddr*>(&b), lb));
  EXPECT_EQ(2, sendto(sa, "hi", 2, 0, reinterpret_cast<sockaddr*>(&b), lb));
  sockaddr_un from{};
  socklen_t length = sizeof from;
  char buffer[8];
  EXPECT_EQ(2, recvfrom(sb, buffer, 8, 0, reinterpret_cast<sockaddr*>(&from), &length));
  EXPECT_EQ(dir / "a", from.sun_path);
  EXPECT_ERRNO(send(sa, "x", 1, 0), ENOTCONN);
  close(sa);
  close(sb);
}

TEST(Unix, PassesDescriptors) {
  int s[2], p[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  ASSERT_OK(pipe(p));
  EXPECT_EQ(1, SendFd(s[0], p[0]));
  close(p[0]);
  int fd = RecvFd(s[1], MSG_CMSG_CLOEXEC);
  ASSERT_OK(fd);
  EXPECT_EQ(FD_CLOEXEC, fcntl(fd, F_GETFD));
  write(p[1], "via", 3);
  char b[4];
  EXPECT_EQ(3, read(fd, b, 4));
  EXPECT_ERRNO(SendFd(s[0], 999), EBADF);
  close(fd);
  close(p[1]);
  close(s[0]);
  close(s[1]);
}

TEST(Unix, DescriptorsInFlightAreFreedWithTheSocket) {
  int s[2], p[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  ASSERT_OK(pipe(p));
  EXPECT_EQ(1, SendFd(s[0], p[1]));
  close(p[1]);
  close(s[0]);
  close(s[1]);
  char b;
  EXPECT_EQ(0, read(p[0], &b, 1));  // the last writer went with the socket
  close(p[0]);
}

TEST(Unix, PassesCredentials) {
  int s[2], one = 1;
  ASSERT_OK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
  ASSERT_OK(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
  ASSERT_EQ(1, send(s[0], "x", 1, 0));
  char byte, control[CMSG_SPACE(sizeof(ucred))];
  iovec iov{&byte, 1};
  msghdr m{};
  m.msg_iov = &iov;
  m.msg_iovlen = 1;
  m.msg_control = control;
  m.msg_controllen = sizeof control;
  ASSERT_EQ(1, recvmsg(s[1], &m, 0));
  cmsghdr* c = CMSG_FIRSTHDR(&m);
  ASSERT_NE(nullptr, c);
  EXPECT_EQ(SCM_CREDENTIALS, c->cmsg_type);
  ucred cred;
  memcpy(&cred, CMSG_DATA(c), sizeof cred);
  EXPECT_EQ(getpid(), cred.pid);
  EXPECT_EQ(getuid(), cred.uid);
  close(s[0]);
  close(s[1]);
}

TEST(Unix, TimeoutsAndErrors) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  timeval t{0, 30000};
  ASSERT_OK(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
  char b;
  int64_t start = NowNs();
  EXPECT_ERRNO(recv(s[0], &b, 1, 0), EAGAIN);
  EXPECT_GE(NowNs() - start, 25000000);
  EXPECT_ERRNO(listen(s[0], 1), EINVAL);
  EXPECT_ERRNO(accept(s[0], nullptr, nullptr), EINVAL);
  EXPECT_ERRNO(socket(AF_UNIX, 9, 0), ESOCKTNOSUPPORT);
  EXPECT_ERRNO(socket(200, SOCK_STREAM, 0), EAFNOSUPPORT);
  EXPECT_ERRNO(send(0, "x", 1, 0), ENOTSOCK);
  EXPECT_ERRNO(send(999, "x", 1, 0), EBADF);
  close(s[0]);
  close(s[1]);
}

TEST(Unix, LargeTransferThroughBackpressure) {
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  pid_t pid = fork();
  if (pid == 0) {
    close(s[1]);
    std::string data(4 << 20, 0);
    for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<char>(i % 251);
    size_t done = 0;
    while (done < data.size()) {
      ssize_t n = write(s[0], data.data() + done, data.size() - done);
      if (n <= 0) _exit(1);
      done += n;
    }
    _exit(0);
  }
  close(s[0]);
  size_t total = 0;
  char b[10000];
  for (ssize_t n; (n = read(s[1], b, sizeof b)) > 0; total += n) {
    for (ssize_t i = 0; i < n; i++) ASSERT_EQ(static_cast<char>((total + i) % 251), b[i]);
  }
  EXPECT_EQ(4u << 20, total);
  waitpid(pid, nullptr, 0);
  close(s[1]);
}
