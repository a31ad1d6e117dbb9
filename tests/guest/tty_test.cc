// Pseudo-terminals: line discipline, signals, sessions, window size.
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "guest_util.h"

namespace {
struct Pty {
  int master = -1, slave = -1;
  Pty() {
    master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    EXPECT_GE(master, 0) << strerror(errno);
    EXPECT_EQ(0, unlockpt(master));
    int number = -1;
    EXPECT_EQ(0, ioctl(master, TIOCGPTN, &number));
    slave = open(("/dev/pts/" + std::to_string(number)).c_str(), O_RDWR | O_NOCTTY);
    EXPECT_GE(slave, 0) << strerror(errno);
  }
  ~Pty() {
    if (master >= 0) close(master);
    if (slave >= 0) close(slave);
  }
  void Type(const char* text) {
    EXPECT_EQ(static_cast<ssize_t>(strlen(text)), write(master, text, strlen(text)));
  }
  std::string Get(int fd, int timeout_ms = 1000) {
    pollfd p{fd, POLLIN, 0};
    if (poll(&p, 1, timeout_ms) != 1) return "<nothing>";
    char b[4096];
    ssize_t n = read(fd, b, sizeof b);
    return n < 0 ? std::string("errno ") + strerror(errno) : std::string(b, n);
  }
};
}  // namespace

TEST(Tty, CanonicalModeWithEchoAndErase) {
  Pty p;
  EXPECT_TRUE(isatty(p.slave));
  p.Type("abx\177c\n");
  EXPECT_EQ("abc\n", p.Get(p.slave));
  EXPECT_EQ("abx\b \bc\r\n", p.Get(p.master));
  p.Type("no newline");
  EXPECT_EQ("<nothing>", p.Get(p.slave, 50));
  p.Type("\025gone\n");  // ^U kills the line
  EXPECT_EQ("gone\n", p.Get(p.slave));
  p.Type("eof\004");
  EXPECT_EQ("eof", p.Get(p.slave));
  p.Type("\004");
  EXPECT_EQ("", p.Get(p.slave));
}

TEST(Tty, OutputProcessing) {
  Pty p;
  write(p.slave, "a\nb", 3);
  EXPECT_EQ("a\r\nb", p.Get(p.master));
}

TEST(Tty, RawMode) {
  Pty p;
  termios t;
  ASSERT_OK(tcgetattr(p.slave, &t));
  EXPECT_TRUE(t.c_lflag & ICANON);
  cfmakeraw(&t);
  ASSERT_OK(tcsetattr(p.slave, TCSANOW, &t));
  p.Type("a\003\r");
  EXPECT_EQ("a\003\r", p.Get(p.slave));
  write(p.slave, "x\n", 2);
  EXPECT_EQ("x\n", p.Get(p.master));
}

TEST(Tty, WindowSize) {
  Pty p;
  winsize w{25, 80, 0, 0}, got{};
  ASSERT_OK(ioctl(p.master, TIOCSWINSZ, &w));
  ASSERT_OK(ioctl(p.slave, TIOCGWINSZ, &got));
  EXPECT_EQ(25, got.ws_row);
  EXPECT_EQ(80, got.ws_col);
}

TEST(Tty, ControllingTerminalSignalsAndHangup) {
  Pty p;
  pid_t pid = fork();
  if (pid == 0) {
    close(p.master);
    setsid();
    if (ioctl(p.slave, TIOCSCTTY, 0)) _exit(1);
    if (tcgetpgrp(p.slave) != getpid() || tcgetsid(p.slave) != getpid()) _exit(2);
    int tty = open("/dev/tty", O_RDWR);
    if (tty < 0) _exit(3);
    sigset_t set;
    sigemptyset(&set);
    for (int s : {SIGINT, SIGQUIT, SIGWINCH, SIGHUP}) sigaddset(&set, s);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    write(tty, "ready\n", 6);
    timespec t{5, 0};
    siginfo_t info;
    if (sigtimedwait(&set, &info, &t) != SIGINT) _exit(4);
    write(tty, "int\n", 4);
    if (sigtimedwait(&set, &info, &t) != SIGWINCH) _exit(5);
    write(tty, "winch\n", 6);
    if (sigtimedwait(&set, &info, &t) != SIGHUP) _exit(6);
    char c;
    if (read(p.slave, &c, 1) != 0) _exit(7);
    if (write(p.slave, &c, 1) != -1 || errno != EIO) _exit(8);
    _exit(0);
  }
  close(p.slave);
  p.slave = -1;
  EXPECT_EQ("ready\r\n", p.Get(p.master, 5000));
  p.Type("\003");
  EXPECT_EQ("^C", p.Get(p.master, 5000).substr(0, 2));
  SleepMs(50);
  p.Get(p.master, 100);
  winsize w{30, 90, 0, 0};
  ASSERT_OK(ioctl(p.master, TIOCSWINSZ, &w));
  EXPECT_EQ("winch\r\n", p.Get(p.master, 5000));
  close(p.master);
  p.master = -1;
  int status;
  waitpid(pid, &status, 0);
  EXPECT_EQ(0, status) << WEXITSTATUS(status);
}

TEST(Tty, BackgroundReadStops) {
  Pty p;
  pid_t pid = fork();
  if (pid == 0) {
    setsid();
    if (ioctl(p.slave, TIOCSCTTY, 0)) _exit(1);
    pid_t child = fork();
    if (child == 0) {
      setpgid(0, 0);
      char c;
      read(p.slave, &c, 1);
      _exit(0);
    }
    setpgid(child, child);
    int status;
    if (waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status)) _exit(2);
    if (WSTOPSIG(status) != SIGTTIN) _exit(3);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    _exit(0);
  }
  int status;
  waitpid(pid, &status, 0);
  EXPECT_EQ(0, status) << WEXITSTATUS(status);
}

TEST(Tty, MasterSeesSlaveClosed) {
  Pty p;
  write(p.slave, "bye", 3);
  close(p.slave);
  p.slave = -1;
  EXPECT_EQ("bye", p.Get(p.master));
  char c;
  EXPECT_ERRNO(read(p.master, &c, 1), EIO);
  pollfd f{p.master, POLLIN, 0};
  EXPECT_EQ(1, poll(&f, 1, 0));
  EXPECT_TRUE(f.revents & POLLHUP);
}

TEST(Tty, NotATerminal) {
  int fd = open("/dev/null", O_RDWR);
  termios t;
  EXPECT_ERRNO(tcgetattr(fd, &t), ENOTTY);
  EXPECT_FALSE(isatty(fd));
  close(fd);
}
