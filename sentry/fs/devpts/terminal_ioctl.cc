// The ioctls of terminals: drivers/tty/tty_io.c:tty_ioctl, tty_ioctl.c:tty_mode_ioctl and
// n_tty_ioctl_helper, pty.c:pty_unix98_ioctl.
#include <signal.h>
#include <sys/epoll.h>

#include <algorithm>

#include "sentry/fs/devpts/terminal.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

// struct termio and the older struct termios, as the guest has them.
struct Termio {
  uint16_t iflag, oflag, cflag, lflag;
  uint8_t line;
  uint8_t cc[8];
};
static_assert(sizeof(Termio) == 18);
struct OldTermios {
  uint32_t iflag, oflag, cflag, lflag;
  uint8_t line;
  uint8_t cc[19];
};
static_assert(sizeof(OldTermios) == 36);
static_assert(sizeof(KTermios) == 44);

void ToOld(const KTermios& t, OldTermios* o) { memcpy(o, &t, sizeof(*o)); }
void FromOld(const OldTermios& o, KTermios* t) { memcpy(t, &o, sizeof(o)); }

// Speeds by the CBAUD code of the control flags (tty_termios_baud_rate).
uint32_t BaudRate(tcflag_t cflag, uint32_t other) {
  static constexpr uint32_t kTable[] = {
      0,      50,      75,      110,     134,     150,     200,     300,     600,    1200,   1800,
      2400,   4800,    9600,    19200,   38400,   57600,   115200,  230400,  460800, 500000, 576000,
      921600, 1000000, 1152000, 1500000, 2000000, 2500000, 3000000, 3500000, 4000000};
  uint32_t code = cflag & CBAUD;
  if (code == BOTHER) return other;
  if (code & CBAUDEX) code = (code & ~static_cast<uint32_t>(CBAUDEX)) + 15;
  return code < std::size(kTable) ? kTable[code] : 38400;
}

bool NeedsForeground(uint32_t cmd) {
  switch (cmd) {
    case TCSETS:
    case TCSETSW:
    case TCSETSF:
    case TCSETS2:
    case TCSETSW2:
    case TCSETSF2:
    case TCSETA:
    case TCSETAW:
    case TCSETAF:
    case TCXONC:
    case TCFLSH:
    case TCSBRK:
    case TCSBRKP:
    case TIOCSETD:
    case TIOCSBRK:
    case TIOCCBRK:
      return true;
    default:
      return false;
  }
}

template <typename T>
Result<uint64_t> Out(const IoctlArgs& args, const T& value) {
  TRY(UserPtr<T>(args.arg).CopyOut(args.memory, value));
  return uint64_t{0};
}

}  // namespace

Result<uint64_t> Terminal::Ioctl(Task& t, const IoctlArgs& args, bool master) {
  if (hung_up() && !master) return Error(args.cmd == TIOCSPGRP ? ENOTTY : EIO);
  if (NeedsForeground(args.cmd)) TRY(CheckJob(t, SIGTTOU));
  if (master) {
    Result<uint64_t> r = MasterIoctl(t, args);
    if (r.ok() || r.error().code() != ENOTTY) return r;
  }
  Result<uint64_t> r = TermiosIoctl(t, args);
  if (r.ok() || r.error().code() != ENOTTY) return r;
  r = LineIoctl(t, args, master);
  if (r.ok() || r.error().code() != ENOTTY) return r;
  return JobIoctl(t, args, master);
}

Result<uint64_t> Terminal::TermiosIoctl(Task& t, const IoctlArgs& args) {
  base::UserMemory& m = args.memory;
  KTermios now = termios();
  switch (args.cmd) {
    case TCGETS: {
      OldTermios o;
      ToOld(now, &o);
      return Out(args, o);
    }
    case TCGETS2:
      return Out(args, now);
    case TCGETA: {
      Termio o{};
      o.iflag = static_cast<uint16_t>(now.c_iflag);
      o.oflag = static_cast<uint16_t>(now.c_oflag);
      o.cflag = static_cast<uint16_t>(now.c_cflag);
      o.lflag = static_cast<uint16_t>(now.c_lflag);
      o.line = now.c_line;
      memcpy(o.cc, now.c_cc, sizeof(o.cc));
      return Out(args, o);
    }
    case TCSETS:
    case TCSETSW:
    case TCSETSF:
      FromOld(TRY(UserPtr<OldTermios>(args.arg).CopyIn(m)), &now);
      break;
    case TCSETS2:
    case TCSETSW2:
    case TCSETSF2:
      now = TRY(UserPtr<KTermios>(args.arg).CopyIn(m));
      break;
    case TCSETA:
    case TCSETAW:
    case TCSETAF: {
      Termio o = TRY(UserPtr<Termio>(args.arg).CopyIn(m));
      now.c_iflag = (now.c_iflag & 0xffff0000) | o.iflag;
      now.c_oflag = (now.c_oflag & 0xffff0000) | o.oflag;
      now.c_cflag = (now.c_cflag & 0xffff0000) | o.cflag;
      now.c_lflag = (now.c_lflag & 0xffff0000) | o.lflag;
      now.c_line = o.line;
      memcpy(now.c_cc, o.cc, sizeof(o.cc));
      break;
    }
    default:
      return Error(ENOTTY);
  }
  TRY(StoreTermios(t, now, args.cmd));
  return uint64_t{0};
}

base::Status Terminal::StoreTermios(Task&, KTermios termios, uint32_t cmd) {
  bool flush = cmd == TCSETSF || cmd == TCSETSF2 || cmd == TCSETAF;
  bool drain = flush || cmd == TCSETSW || cmd == TCSETSW2 || cmd == TCSETAW;
  KTermios old = this->termios();
  // A pseudo-terminal has 8 bits and no modem (pty_set_termios).
  termios.c_cflag = (termios.c_cflag & ~static_cast<tcflag_t>(CSIZE | PARENB)) | CS8 | CREAD;
  termios.c_ospeed = BaudRate(termios.c_cflag, termios.c_ospeed);
  termios.c_ispeed = (termios.c_cflag >> IBSHIFT & CBAUD) == 0
                         ? termios.c_ospeed
                         : BaudRate(termios.c_cflag >> IBSHIFT, termios.c_ispeed);
  termios.c_line = old.c_line;
  if (drain) TRY(Drain());
  SetTermios(termios, flush);
  return base::Ok();
}

// tcdrain: what a pseudo-terminal has written is with its master at once, but for stopped output.
base::Status Terminal::Drain() {
  auto reason = fiber::WaitUntil(slave_queue_, EPOLLOUT | EPOLLHUP,
                                 [this] {
                                   absl::MutexLock lock(&mutex_);
                                   return !stopped_ || hung_up();
                                 },
                                 {.interruptible = true});
  if (reason != fiber::WakeReason::kWoken) return Error(base::kERESTARTSYS);
  return base::Ok();
}

Result<uint64_t> Terminal::LineIoctl(Task& t, const IoctlArgs& args, bool master) {
  switch (args.cmd) {
    case TIOCGWINSZ:
      return Out(args, window_size());
    case TIOCSWINSZ:
      SetWindowSize(TRY(UserPtr<struct winsize>(args.arg).CopyIn(args.memory)));
      return uint64_t{0};
    case FIONREAD: {
      absl::ReleasableMutexLock lock(&mutex_);
      auto n = static_cast<int>(master ? output_.size() : line_.InputCount());
      lock.Release();
      return Out(args, n);
    }
    case TIOCOUTQ:
      return Out(args, 0);  // pty_chars_in_buffer
    case TCFLSH:
      TRY(Flush(t, args.arg, master));
      return uint64_t{0};
    case TCXONC:
      TRY(FlowControl(args.arg, master));
      return uint64_t{0};
    case TCSBRK:
    case TCSBRKP:
      TRY(Drain());  // no line to break
      return uint64_t{0};
    case TIOCSBRK:
    case TIOCCBRK:
      return uint64_t{0};
    case TIOCEXCL:
    case TIOCNXCL: {
      absl::MutexLock lock(&mutex_);
      exclusive_ = args.cmd == TIOCEXCL;
      return uint64_t{0};
    }
    case TIOCGEXCL: {
      absl::ReleasableMutexLock lock(&mutex_);
      int value = exclusive_ ? 1 : 0;
      lock.Release();
      return Out(args, value);
    }
    case TIOCGETD:
      return Out(args, 0);  // N_TTY
    case TIOCSETD:
      if (TRY(UserPtr<int>(args.arg).CopyIn(args.memory)) != 0) return Error(EINVAL);
      return uint64_t{0};
    case TIOCSTI: {
      if (t.thread_group().tty() != base::Ref<Tty>(this) && !t.HasCap(CAP_SYS_ADMIN)) {
        return Error(EPERM);
      }
      uint8_t byte = TRY(UserPtr<uint8_t>(args.arg).CopyIn(args.memory));
      {
        absl::MutexLock lock(&mutex_);
        line_.Receive(std::span(&byte, 1));
      }
      Settle();
      return uint64_t{0};
    }
    case TIOCGDEV:
      return Out(args, static_cast<uint32_t>(device()));
    default:
      return Error(ENOTTY);
  }
}

base::Status Terminal::Flush(Task&, uint64_t which, bool master) {
  if (which > TCIOFLUSH) return Error(EINVAL);
  bool input = which == TCIFLUSH || which == TCIOFLUSH;
  bool output = which == TCOFLUSH || which == TCIOFLUSH;
  if (master) std::swap(input, output);  // the master's input is the slave's output
  {
    absl::MutexLock lock(&mutex_);
    if (input) {
      line_.DropInput();
      input_.Clear();
      if (packet_ && !master) packet_status_ |= TIOCPKT_FLUSHREAD;
    }
    if (output && master) output_.Clear();
    if (output && !master) DropOutput();
  }
  Settle();
  return base::Ok();
}

base::Status Terminal::FlowControl(uint64_t action, bool master) {
  KTermios t = termios();
  uint8_t byte = kDisabledChar;
  {
    absl::MutexLock lock(&mutex_);
    switch (action) {
      case TCOOFF:
        SetStopped(true);
        break;
      case TCOON:
        SetStopped(false);
        break;
      case TCIOFF:
        byte = t.c_cc[VSTOP];
        break;
      case TCION:
        byte = t.c_cc[VSTART];
        break;
      default:
        return Error(EINVAL);
    }
    if (byte != kDisabledChar && !master) PutOutput(byte);
  }
  Settle();
  return base::Ok();
}

Result<uint64_t> Terminal::JobIoctl(Task& t, const IoctlArgs& args, bool master) {
  base::UserMemory& m = args.memory;
  switch (args.cmd) {
    case TIOCSCTTY:
      TRY(SetControlling(t, args.arg == 1, /*readable=*/true));
      return uint64_t{0};
    case TIOCNOTTY:
      TRY(ReleaseControlling(t));
      return uint64_t{0};
    case TIOCGPGRP: {
      if (master) {
        base::Ref<ProcessGroup> group = foreground();
        return Out(args, group != nullptr ? group->pid()->NumberIn(t.pid_namespace()) : 0);
      }
      return Out(args, TRY(ForegroundGroup(t)));
    }
    case TIOCSPGRP: {
      int pgid = TRY(UserPtr<int>(args.arg).CopyIn(m));
      TRY(SetForegroundGroup(t, pgid));
      return uint64_t{0};
    }
    case TIOCGSID: {
      if (!master) return Out(args, TRY(SessionId(t)));
      base::Ref<Session> s = session();
      if (s == nullptr) return Error(ENOTTY);
      return Out(args, s->pid()->NumberIn(t.pid_namespace()));
    }
    case TIOCVHANGUP:
      if (!t.HasCap(CAP_SYS_ADMIN)) return Error(EPERM);
      HangUpLine();
      return uint64_t{0};
    default:
      return Error(ENOTTY);
  }
}

Result<uint64_t> Terminal::MasterIoctl(Task&, const IoctlArgs& args) {
  base::UserMemory& m = args.memory;
  switch (args.cmd) {
    case TIOCGPTN:
      return Out(args, static_cast<uint32_t>(index_));
    case TIOCSPTLCK: {
      int value = TRY(UserPtr<int>(args.arg).CopyIn(m));
      absl::MutexLock lock(&mutex_);
      locked_ = value != 0;
      return uint64_t{0};
    }
    case TIOCGPTLCK: {
      absl::ReleasableMutexLock lock(&mutex_);
      int value = locked_ ? 1 : 0;
      lock.Release();
      return Out(args, value);
    }
    case TIOCPKT: {
      int value = TRY(UserPtr<int>(args.arg).CopyIn(m));
      absl::MutexLock lock(&mutex_);
      if (value != 0 && !packet_) packet_status_ = 0;
      packet_ = value != 0;
      return uint64_t{0};
    }
    case TIOCGPKT: {
      absl::ReleasableMutexLock lock(&mutex_);
      int value = packet_ ? 1 : 0;
      lock.Release();
      return Out(args, value);
    }
    case TIOCSIG: {
      int signo = static_cast<int>(args.arg);
      if (signo != SIGINT && signo != SIGQUIT && signo != SIGTSTP) return Error(EINVAL);
      Tty::SignalForeground(signo);
      return uint64_t{0};
    }
    default:
      return Error(ENOTTY);
  }
}

}  // namespace sentry
