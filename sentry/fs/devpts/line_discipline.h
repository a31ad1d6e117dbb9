// The terminal line discipline N_TTY: what turns bytes from a keyboard into lines, echo and
// signals, and bytes of an application into output. Follows drivers/tty/n_tty.c.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>

#include "sentry/fs/devpts/termios.h"

namespace sentry {

// What the line discipline asks of the terminal it serves; called under the terminal's lock.
class TtySink {
 public:
  virtual ~TtySink() = default;
  // Bytes for the display. Echo is never refused: what exceeds the terminal's bound is dropped.
  virtual void PutOutput(uint8_t byte) = 0;
  // To the foreground process group.
  virtual void SignalForeground(int signo) = 0;
  // Drops output that has not been taken.
  virtual void DropOutput() = 0;
  // Flow control by IXON.
  virtual void SetStopped(bool stopped) = 0;
  virtual bool stopped() const = 0;
};

// Not thread-safe: the terminal's lock covers all calls.
class LineDiscipline {
 public:
  static constexpr size_t kBufferSize = 4096;  // N_TTY_BUF_SIZE

  LineDiscipline(TtySink& sink, const KTermios& termios) : sink_(sink), termios_(termios) {}

  const KTermios& termios() const { return termios_; }
  // Takes over new settings; what has been typed stays readable (n_tty_set_termios).
  void SetTermios(const KTermios& termios);

  // Takes typed bytes; returns how many. Fewer than all: the buffer is full (call again after a
  // read). With an unfinished line in canonical mode, bytes too many are taken and lost.
  size_t Receive(std::span<const uint8_t> bytes);

  // True if a read would return something: a finished line, or `min` bytes outside canonical mode.
  bool InputAvailable(size_t min = 1) const;
  // For poll: with VMIN and no VTIME, as many as VMIN (input_available_p).
  bool PollReadable() const;
  // Moves up to dst.size() bytes of at most one line, or what there is outside canonical mode.
  // *end_of_line: a line (or the end of file) ended here, so that a read is complete.
  size_t Read(std::span<uint8_t> dst, bool* end_of_line);
  // FIONREAD.
  size_t InputCount() const;
  void DropInput();

  // Puts the bytes of an application through output processing, in as far as `room` output bytes
  // suffice; returns how many of `bytes` were taken.
  size_t Write(std::span<const uint8_t> bytes, size_t room);

 private:
  bool I(tcflag_t f) const { return (termios_.c_iflag & f) != 0; }
  bool O(tcflag_t f) const { return (termios_.c_oflag & f) != 0; }
  bool L(tcflag_t f) const { return (termios_.c_lflag & f) != 0; }
  bool Is(uint8_t c, int index) const {
    return termios_.c_cc[index] != kDisabledChar && termios_.c_cc[index] == c;
  }
  // Index of a position in the ring.
  static size_t At(size_t position) { return position & (kBufferSize - 1); }
  bool IsContinuation(uint8_t c) const { return I(IUTF8) && (c & 0xc0) == 0x80; }

  void ReceiveByte(uint8_t c);
  void ReceiveLiteral(uint8_t c);
  // True if the byte was a signal or flow control character and is dealt with.
  bool ReceiveControl(uint8_t c);
  // True if the byte edited or ended the line.
  bool ReceiveCanonical(uint8_t c);
  void PutInput(uint8_t c);
  void EndLine(uint8_t c);
  void Erase(uint8_t c);
  void EraseEcho(uint8_t c, bool is_erase, size_t head, size_t count);
  void EraseTab(size_t tail);
  void FinishErasing();
  void Reprint(uint8_t c);

  void EchoChar(uint8_t c);
  void EchoRaw(uint8_t c);
  // Output bytes that `c` becomes (at most 8).
  size_t OutputLength(uint8_t c) const;
  void OutputChar(uint8_t c);

  TtySink& sink_;
  KTermios termios_;
  uint8_t buffer_[kBufferSize] = {};
  std::bitset<kBufferSize> line_end_;  // positions that end a line (kDisabledChar: end of file)
  // Free-running positions: read tail <= end of finished lines <= head.
  size_t head_ = 0, canon_head_ = 0, tail_ = 0;
  size_t column_ = 0, canon_column_ = 0;
  bool erasing_ = false;       // inside a \.../ of ECHOPRT
  bool literal_next_ = false;  // after VLNEXT
};

}  // namespace sentry
