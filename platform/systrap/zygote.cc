#include "platform/systrap/zygote.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "platform/mailbox.h"
#include "platform/platform.h"
#include "platform/systrap/fds.h"
#include "platform/systrap/reap.h"

extern "C" const unsigned char kRunscStubImage[];
extern "C" const unsigned char kRunscStubImageEnd[];

namespace platform {
namespace {

// The host puts an exec's stack at a random place, which once in a hundred thousand times is where
// the stub's image wants to be; then the exec fails and is tried again.
constexpr int kStartAttempts = 8;
constexpr rlim_t kStubMaxFds = 64;
constexpr rlim_t kStrictStubMaxFds = OrderedFd(kMaxSlots);  // a number for each thread
constexpr rlim_t kStubStack = 8 << 20;

base::Result<int> MakeImageFd() {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif
  int fd = memfd_create("runsc-stub", flags | MFD_EXEC);
  if (fd < 0 && errno == EINVAL) fd = memfd_create("runsc-stub", flags);  // before Linux 6.3
  if (fd < 0) return base::LastError();
  const unsigned char* p = kRunscStubImage;
  while (p < kRunscStubImageEnd) {
    ssize_t n = write(fd, p, static_cast<size_t>(kRunscStubImageEnd - p));
    if (n <= 0) {
      base::Error error = base::LastError();
      close(fd);
      return error;
    }
    p += n;
  }
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
    base::Error error = base::LastError();
    close(fd);
    return error;
  }
  return fd;
}

// In the child, before the exec: descriptors 0 (socket), 1 (shared) and the image alone, no
// privilege, no way to gain any, own process group (a terminal's signals are not for stubs; but the
// sentry's session, so that it may sort the clones into groups).
void ExecZygote(int exe_fd, int socket_fd, int shared_fd) {
  int exe = fcntl(exe_fd, F_DUPFD, 10);
  int socket = fcntl(socket_fd, F_DUPFD, 10);
  int shared = fcntl(shared_fd, F_DUPFD, 10);
  if (exe < 0 || socket < 0 || shared < 0) return;
  if (dup2(socket, 0) < 0 || dup2(shared, 1) < 0 || dup3(exe, 2, O_CLOEXEC) < 0) return;
  if (syscall(SYS_close_range, 3u, ~0u, 0u) != 0) return;
  if (setpgid(0, 0) != 0) return;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int signo : {SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS}) signal(signo, SIG_DFL);
  rlimit core{0, 0}, stack{kStubStack, kStubStack};
  if (setrlimit(RLIMIT_CORE, &core) != 0) return;
  setrlimit(RLIMIT_STACK, &stack);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return;
  if (!DropThreadCapabilities().ok()) return;
  if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) return;
  char name[] = "runsc-stub";
  char* argv[] = {name, nullptr};
  char* envp[] = {nullptr};
  syscall(SYS_execveat, 2, "", argv, envp, AT_EMPTY_PATH);
}

}  // namespace

base::Status ProbeStrict() {
  const pid_t pid = fork();
  if (pid < 0) return base::LastError();
  if (pid == 0) {
    sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    sock_fprog program{1, &allow};
    constexpr unsigned kFlags =
        SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) _exit(errno);
    _exit(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, kFlags, &program) >= 0 ? 0 : errno);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return base::LastError();
  }
  if (!WIFEXITED(status)) return base::Error(EIO);
  if (WEXITSTATUS(status) != 0) return base::Error(WEXITSTATUS(status));
  return {};
}

base::Status DropThreadCapabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  if (syscall(SYS_capset, &header, data) != 0) return base::LastError();
  return {};
}

Zygote::~Zygote() {
  if (!pidfd_.valid()) return;
  socket_.reset();  // at which it ends
  ReapAll(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd_.get()));
}

base::Status Zygote::Start(int shared_fd, bool strict, std::string* why) {
  base::Result<int> image = MakeImageFd();
  if (!image.ok()) {
    *why = "memory file for the stub's image: " + std::string(strerror(image.error().code()));
    return image.error();
  }
  base::UniqueFd exe_fd(*image);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return base::LastError();
  rlim_t wanted = strict ? kStrictStubMaxFds : kStubMaxFds;
  max_fds_ = static_cast<uint32_t>(std::min(wanted, limit.rlim_max));
  base::Status status = base::Error(EIO);
  for (int i = 0; i < kStartAttempts; i++) {
    status = StartOnce(exe_fd.get(), shared_fd, strict, why);
    if (status.ok()) break;
  }
  return status;
}

// Receives the zygote's first message, and the listener that may come with it.
ssize_t Zygote::ReceiveHello(int socket, ZygoteHello* hello) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec iov{hello, sizeof(*hello)};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  cmsghdr* header = n > 0 ? CMSG_FIRSTHDR(&msg) : nullptr;
  if (header && header->cmsg_type == SCM_RIGHTS) {
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    listener_.reset(fd);
  }
  return n;
}

base::Status Zygote::StartOnce(int exe_fd, int shared_fd, bool strict, std::string* why) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    *why = "socket pair for the zygote: " + std::string(strerror(errno));
    return base::LastError();
  }
  base::UniqueFd ours(pair[0]), theirs(pair[1]);
  pid_t pid = fork();
  if (pid < 0) {
    *why = "fork of the zygote: " + std::string(strerror(errno));
    return base::LastError();
  }
  if (pid == 0) {
    ExecZygote(exe_fd, theirs.get(), shared_fd);
    _exit(127);
  }
  theirs.reset();
  ZygoteHello hello{};
  ssize_t n = ReceiveHello(ours.get(), &hello);
  // Not before: who sends a descriptor may have no more of his user's in flight, anywhere on the
  // host, than he may have open.
  const rlimit fds{max_fds_, max_fds_};
  if (n == sizeof(hello) && hello.error == 0 && prlimit(pid, RLIMIT_NOFILE, &fds, nullptr) != 0) {
    hello.error = errno;
  }
  const bool no_gate = n == sizeof(hello) && strict && !listener_.valid();
  if (no_gate && hello.error == 0) hello.error = hello.listener_error;
  if (n != sizeof(hello) || hello.error != 0) {
    kill(pid, SIGKILL);
    int status = 0;
    waitpid(pid, &status, 0);
    *why = no_gate
               ? "strict mode: the host grants no seccomp listener (it takes Linux 5.19, and none "
                 "that is there already): " +
                     std::string(strerror(hello.error))
           : n == sizeof(hello)
               ? "the zygote could not be set up: " + std::string(strerror(hello.error))
               : "the zygote did not start (wait status " + std::to_string(status) + ")";
    return base::Error(n == sizeof(hello) ? hello.error : EIO);
  }
  pid_ = pid;
  pidfd_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  vdso_base_ = hello.vdso_base;
  traced_entry_ = hello.traced_entry;
  socket_ = std::move(ours);
  return {};
}

base::Result<int> Zygote::MakeStub(int mailbox_fd, int socket_fd) {
  absl::MutexLock lock(&mu_);
  ZygoteRequest request{0};
  int fds[2] = {mailbox_fd, socket_fd};
  TRY(SendWithFds(socket_.get(), &request, sizeof(request), fds));
  ZygoteReply reply{};
  iovec iov{&reply, sizeof(reply)};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  ssize_t n;
  do {
    n = recvmsg(socket_.get(), &msg, 0);
  } while (n < 0 && errno == EINTR);
  if (n != sizeof(reply)) return base::Error(EIO);
  if (reply.pid <= 0) return base::Error(reply.pid == 0 ? EIO : -reply.pid);
  return reply.pid;
}

}  // namespace platform
