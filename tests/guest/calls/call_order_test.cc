// Which of several errors a call tells, and newer calls whose arguments are structs.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "guest_util.h"

#ifndef SYS_process_mrelease
#define SYS_process_mrelease 448
#endif
#ifndef SYS_setxattrat
#define SYS_setxattrat 463
#define SYS_getxattrat 464
#define SYS_listxattrat 465
#define SYS_removexattrat 466
#endif

namespace {

TEST(CallOrder, DescriptorsOfPathsAlone) {
  TempDir dir;
  WriteFile(dir / "f", "x");
  int fd = open((dir / "f").c_str(), O_PATH);
  ASSERT_OK(fd);
  sockaddr_un a{};
  socklen_t length = sizeof a;
  auto* address = reinterpret_cast<sockaddr*>(&a);
  char c = 0;
  EXPECT_ERRNO(listen(fd, 1), EBADF);
  EXPECT_ERRNO(getsockname(fd, address, &length), EBADF);
  EXPECT_ERRNO(send(fd, &c, 1, 0), EBADF);
  EXPECT_ERRNO(shutdown(fd, SHUT_RD), EBADF);
  epoll_event event{};
  EXPECT_ERRNO(epoll_wait(fd, &event, 1, 0), EBADF);
  EXPECT_ERRNO(inotify_add_watch(fd, "/", IN_CREATE), EBADF);
  pollfd p{fd, POLLIN, 0};
  EXPECT_EQ(1, poll(&p, 1, 0));
  EXPECT_EQ(POLLNVAL, p.revents);
  close(fd);
}

TEST(CallOrder, OfSockets) {
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_ERRNO(accept4(-1, nullptr, nullptr, 77), EBADF);
  EXPECT_ERRNO(accept4(fd, nullptr, nullptr, 77), EINVAL);
  EXPECT_ERRNO(accept4(0x7fff, nullptr, nullptr, 0), EBADF);
  int s[2];
  ASSERT_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  close(s[1]);
  char c = 0;
  EXPECT_ERRNO(send(s[0], &c, 0, MSG_NOSIGNAL), EPIPE);  // also of nothing
  msghdr m{};
  EXPECT_ERRNO(syscall(SYS_sendmsg, -1, &m, 1u << 31), EINVAL);
  EXPECT_ERRNO(syscall(SYS_recvmsg, -1, &m, 1u << 31), EINVAL);
  EXPECT_ERRNO(syscall(SYS_recvmmsg, -1, &m, 1, 0, BadAddress()), EFAULT);
  EXPECT_ERRNO(syscall(SYS_socketpair, AF_NETLINK, SOCK_RAW, 0, s), EOPNOTSUPP);
  close(s[0]);
  close(fd);
}

TEST(CallOrder, OfFiles) {
  TempDir dir;
  int fd = open((dir / "f").c_str(), O_RDWR | O_CREAT, 0600);
  int d = open(dir.path().c_str(), O_RDONLY | O_DIRECTORY);
  EXPECT_OK(syscall(SYS_flock, -1, LOCK_MAND));  // what is not done any more
  EXPECT_ERRNO(mknod(BadAddress(), S_IFDIR, 0), EPERM);
  EXPECT_ERRNO(mknod(BadAddress(), 0170000, 0), EINVAL);
  EXPECT_ERRNO(syscall(SYS_renameat2, AT_FDCWD, BadAddress(), AT_FDCWD, BadAddress(), 99), EINVAL);
  EXPECT_ERRNO(sendfile(-1, -1, reinterpret_cast<off_t*>(BadAddress()), 1), EFAULT);
  EXPECT_ERRNO(syscall(SYS_copy_file_range, -1, nullptr, fd, nullptr, 1, 99), EBADF);
  EXPECT_ERRNO(syscall(SYS_copy_file_range, fd, nullptr, fd, nullptr, 1, 99), EINVAL);
  iovec none{nullptr, 0};
  EXPECT_EQ(0, readv(d, &none, 1));
  EXPECT_ERRNO(epoll_wait(-1, nullptr, -1, 0), EBADF);
  EXPECT_ERRNO(inotify_add_watch(-1, "/", IN_MASK_CREATE), EBADF);
  EXPECT_ERRNO(inotify_add_watch(-1, "/", 0), EINVAL);
  EXPECT_EQ(0, vmsplice(fd, &none, 0, 0));
  EXPECT_ERRNO(vmsplice(fd, &none, 1, 99), EINVAL);
  close(fd);
  close(d);
}

TEST(CallOrder, OfProcesses) {
  EXPECT_ERRNO(kill(4000000, 99), ESRCH);
  EXPECT_ERRNO(kill(getpid(), 99), EINVAL);
  rlimit64 limit{1, 1};
  EXPECT_ERRNO(syscall(SYS_prlimit64, -1, 99, BadAddress(), nullptr), EFAULT);
  EXPECT_ERRNO(syscall(SYS_prlimit64, 4000000, 99, &limit, nullptr), ESRCH);
  EXPECT_ERRNO(syscall(SYS_prlimit64, 0, 99, nullptr, &limit), EINVAL);
  EXPECT_ERRNO(syscall(SYS_timer_settime, -1, 0, nullptr, nullptr), EINVAL);
  siginfo_t info;
  memset(&info, 0xff, sizeof info);
  EXPECT_ERRNO(syscall(SYS_waitid, P_PID, 4000000, &info, WEXITED, nullptr), ECHILD);
  EXPECT_EQ(0, info.si_signo);
  EXPECT_EQ(0, info.si_pid);
  EXPECT_ERRNO(syscall(SYS_waitid, 99, 1, BadAddress(), WEXITED, nullptr), EFAULT);
  EXPECT_ERRNO(syscall(SYS_waitid, 99, 1, nullptr, WEXITED, nullptr), EINVAL);
}

struct XattrArgs {
  uint64_t value;
  uint32_t size, flags;
};

TEST(NewCalls, ExtendedAttributesAt) {
  TempDir dir;
  WriteFile(dir / "f", "x");
  ASSERT_OK(symlink("f", (dir / "l").c_str()));
  int d = open(dir.path().c_str(), O_RDONLY | O_DIRECTORY);
  int fd = open((dir / "f").c_str(), O_RDWR);
  char value[16] = "hello";
  XattrArgs args{reinterpret_cast<uint64_t>(value), 5, 0};
  if (syscall(SYS_setxattrat, d, "f", 0, "user.a", &args, sizeof args) != 0) {
    ASSERT_TRUE(errno == ENOSYS || errno == EOPNOTSUPP) << strerror(errno);
    GTEST_SKIP() << strerror(errno);
  }
  char got[32] = {};
  EXPECT_EQ(5, getxattr((dir / "f").c_str(), "user.a", got, sizeof got));
  args.flags = XATTR_CREATE;
  EXPECT_ERRNO(syscall(SYS_setxattrat, d, "f", 0, "user.a", &args, sizeof args), EEXIST);
  args.flags = 99;
  EXPECT_ERRNO(syscall(SYS_setxattrat, d, "f", 0, "user.a", &args, sizeof args), EINVAL);
  args.flags = 0;
  EXPECT_ERRNO(syscall(SYS_setxattrat, d, "f", 0, "user.a", &args, 8), EINVAL);
  EXPECT_ERRNO(syscall(SYS_setxattrat, d, "f", 0, "user.a", &args, 5000), E2BIG);
  EXPECT_ERRNO(syscall(SYS_setxattrat, d, "f", 1, "user.a", &args, sizeof args), EINVAL);
  EXPECT_OK(syscall(SYS_setxattrat, fd, "", AT_EMPTY_PATH, "user.b", &args, sizeof args));
  XattrArgs out{reinterpret_cast<uint64_t>(got), sizeof got, 0};
  EXPECT_EQ(5, syscall(SYS_getxattrat, d, "l", 0, "user.b", &out, sizeof out));
  EXPECT_ERRNO(syscall(SYS_getxattrat, d, "f", 0, "user.c", &out, sizeof out), ENODATA);
  out.flags = 1;
  EXPECT_ERRNO(syscall(SYS_getxattrat, d, "f", 0, "user.b", &out, sizeof out), EINVAL);
  EXPECT_GE(syscall(SYS_listxattrat, d, "f", 0, got, sizeof got), 14);
  EXPECT_OK(syscall(SYS_removexattrat, d, "f", 0, "user.a"));
  EXPECT_ERRNO(syscall(SYS_removexattrat, d, "f", 0, "user.a"), ENODATA);
  close(fd);
  close(d);
}

TEST(NewCalls, ProcessMrelease) {
  EXPECT_ERRNO(syscall(SYS_process_mrelease, 0, 1), EINVAL);
  int file = open("/dev/null", O_RDONLY);
  EXPECT_ERRNO(syscall(SYS_process_mrelease, file, 0), EBADF);
  close(file);
  pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  int fd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  ASSERT_OK(fd);
  EXPECT_ERRNO(syscall(SYS_process_mrelease, fd, 0), EINVAL);  // it lives
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_ERRNO(syscall(SYS_process_mrelease, fd, 0), ESRCH);
  close(fd);
}

}  // namespace
