// Terminal settings as the kernel keeps them (Linux: struct ktermios).
#pragma once

#include <asm/ioctls.h>
#include <asm/termbits.h>

#include <cstdint>

namespace sentry {

// struct termios2 of the host's UAPI is the kernel's own layout: flags, line, 19 control
// characters and the two speeds. struct termios is its beginning.
using KTermios = struct termios2;

inline constexpr uint8_t kDisabledChar = 0;  // _POSIX_VDISABLE

// Settings of a new pseudo-terminal (drivers/tty/pty.c over tty_std_termios).
inline KTermios DefaultTermios() {
  KTermios t{};
  t.c_iflag = ICRNL | IXON;
  t.c_oflag = OPOST | ONLCR;
  t.c_cflag = B38400 | CS8 | CREAD;
  t.c_lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN;
  t.c_cc[VINTR] = 'C' & 0x1f;
  t.c_cc[VQUIT] = '\\' & 0x1f;
  t.c_cc[VERASE] = 0x7f;
  t.c_cc[VKILL] = 'U' & 0x1f;
  t.c_cc[VEOF] = 'D' & 0x1f;
  t.c_cc[VMIN] = 1;
  t.c_cc[VSTART] = 'Q' & 0x1f;
  t.c_cc[VSTOP] = 'S' & 0x1f;
  t.c_cc[VSUSP] = 'Z' & 0x1f;
  t.c_cc[VREPRINT] = 'R' & 0x1f;
  t.c_cc[VDISCARD] = 'O' & 0x1f;
  t.c_cc[VWERASE] = 'W' & 0x1f;
  t.c_cc[VLNEXT] = 'V' & 0x1f;
  t.c_ispeed = t.c_ospeed = 38400;
  return t;
}

}  // namespace sentry
