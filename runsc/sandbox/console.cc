#include "runsc/sandbox/console.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "runsc/container/state.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr int kDrainMs = 200;

// SIGKILL and SIGSTOP cannot be read; SIGCHLD is this process's own; the rest would kill it for a
// fault of its own and must not be hidden.
sigset_t ForwardedSignals() {
  sigset_t set;
  sigfillset(&set);
  for (int signo : {SIGKILL, SIGSTOP, SIGCHLD, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP,
                    SIGSYS, SIGPIPE, SIGURG}) {
    sigdelset(&set, signo);
  }
  return set;
}

// The caller's terminal in raw mode, put back at the end.
class RawTerminal {
 public:
  explicit RawTerminal(int fd) : fd_(fd) {
    if (tcgetattr(fd, &saved_) != 0) return;
    termios raw = saved_;
    cfmakeraw(&raw);
    active_ = tcsetattr(fd, TCSADRAIN, &raw) == 0;
  }
  ~RawTerminal() {
    if (active_) tcsetattr(fd_, TCSADRAIN, &saved_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  const int fd_;
  bool active_ = false;
  termios saved_{};
};

void CopySize(int from, int to) {
  winsize size;
  if (ioctl(from, TIOCGWINSZ, &size) == 0) ioctl(to, TIOCSWINSZ, &size);
}

// Copies what can be read; false at the end or on an error.
bool Pump(int from, int to) {
  char buffer[8192];
  ssize_t n = read(from, buffer, sizeof(buffer));
  if (n < 0) return errno == EINTR || errno == EAGAIN;
  if (n == 0) return false;
  for (ssize_t done = 0; done < n;) {
    ssize_t w = write(to, buffer + done, n - done);
    if (w < 0 && errno == EINTR) continue;
    if (w < 0 && errno == EAGAIN) {
      pollfd p{to, POLLOUT, 0};
      poll(&p, 1, -1);
      continue;
    }
    if (w < 0) return false;
    done += w;
  }
  return true;
}

void ReadSignals(int fd, const ForegroundOptions& options) {
  signalfd_siginfo info;
  while (read(fd, &info, sizeof(info)) == sizeof(info)) {
    int signo = static_cast<int>(info.ssi_signo);
    if (signo == SIGWINCH) {
      if (options.master >= 0) CopySize(STDIN_FILENO, options.master);
      if (options.on_resize) options.on_resize();
    } else if (options.on_signal) {
      options.on_signal(signo);
    }
  }
}

}  // namespace

absl::StatusOr<Console> NewConsole(uint16_t rows, uint16_t cols) {
  Console c;
  c.master.reset(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!c.master.valid()) return ErrnoStatus("console: open /dev/ptmx");
  if (grantpt(c.master.get()) != 0 || unlockpt(c.master.get()) != 0) {
    return ErrnoStatus("console: unlock the terminal");
  }
  char name[64];
  if (ptsname_r(c.master.get(), name, sizeof(name)) != 0) return ErrnoStatus("console: ptsname");
  c.name = name;
  c.slave.reset(ioctl(c.master.get(), TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!c.slave.valid()) c.slave.reset(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!c.slave.valid()) return ErrnoStatus("console: open " + c.name);
  if (rows != 0 || cols != 0) {
    winsize size{rows, cols, 0, 0};
    if (ioctl(c.master.get(), TIOCSWINSZ, &size) != 0) return ErrnoStatus("console: set the size");
  }
  return c;
}

absl::Status SendConsole(const std::string& path, const Console& console) {
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof(addr.sun_path)) {
    errno = ENAMETOOLONG;
    return ErrnoStatus("console socket " + path);
  }
  memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return ErrnoStatus("socket");
  if (connect(socket.get(), reinterpret_cast<sockaddr*>(&addr), sizeof(addr)) != 0) {
    return ErrnoStatus("console socket " + path);
  }
  std::string name = console.name;
  iovec iov{name.data(), name.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof(control);
  cmsghdr* cmsg = CMSG_FIRSTHDR(&msg);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(sizeof(int));
  int fd = console.master.get();
  memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
  if (sendmsg(socket.get(), &msg, MSG_NOSIGNAL) < 0) {
    return ErrnoStatus("console socket " + path);
  }
  return absl::OkStatus();
}

void BlockForwardedSignals() {
  sigset_t set = ForwardedSignals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

absl::Status RunForeground(const ForegroundOptions& options) {
  sigset_t set = ForwardedSignals();
  UniqueFd signals(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) return ErrnoStatus("signalfd");
  bool console = options.master >= 0;
  RawTerminal raw(console ? STDIN_FILENO : -1);
  if (console) CopySize(STDIN_FILENO, options.master);

  bool input_open = console, output_open = console, ended = false;
  for (;;) {
    pollfd fds[4] = {{options.ended, POLLIN, 0},
                     {signals.get(), POLLIN, 0},
                     {input_open ? STDIN_FILENO : -1, POLLIN, 0},
                     {output_open ? options.master : -1, POLLIN, 0}};
    if (ended) fds[0].fd = -1;
    int n = poll(fds, 4, ended ? kDrainMs : -1);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus("poll");
    if (ended && (n == 0 || !output_open)) return absl::OkStatus();
    if (fds[1].revents != 0) ReadSignals(signals.get(), options);
    if (fds[2].revents != 0 && !Pump(STDIN_FILENO, options.master)) input_open = false;
    if (fds[3].revents != 0 && !Pump(options.master, STDOUT_FILENO)) output_open = false;
    if (fds[0].revents != 0) ended = true;
    if (ended && !output_open) return absl::OkStatus();
  }
}

}  // namespace runsc
