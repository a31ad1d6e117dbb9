#include "sentry/fs/devpts/line_discipline.h"

#include <signal.h>

#include <algorithm>

namespace sentry {
namespace {

bool IsControl(uint8_t c) { return c < 0x20 || c == 0x7f; }
bool IsWordChar(uint8_t c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         c >= 0xc0;  // Linux's isalnum of Latin-1 letters, near enough for UTF-8 lead bytes
}

}  // namespace

void LineDiscipline::SetTermios(const KTermios& termios) {
  tcflag_t changed = termios_.c_lflag ^ termios.c_lflag;
  bool ixon_ended = I(IXON) && !(termios.c_iflag & IXON);
  termios_ = termios;
  if (changed & (ICANON | EXTPROC)) {
    line_end_.reset();
    if (!L(ICANON) || head_ == tail_) {
      canon_head_ = tail_;
    } else {
      // What was typed before counts as a finished line.
      line_end_.set(At(head_ - 1));
      canon_head_ = head_;
    }
    erasing_ = false;
    literal_next_ = false;
  }
  if (ixon_ended && sink_.stopped()) sink_.SetStopped(false);
}

size_t LineDiscipline::Receive(std::span<const uint8_t> bytes) {
  size_t taken = 0;
  for (uint8_t c : bytes) {
    size_t used = head_ - tail_;
    size_t need = I(PARMRK) ? 2 : 1;
    if (used + need >= kBufferSize) {
      // A line that is too long keeps what it has; its end can still be typed.
      bool overflow = L(ICANON) && canon_head_ == tail_;
      if (!overflow) break;
      if (used + need > kBufferSize) head_ = tail_ + kBufferSize - need;
    }
    ReceiveByte(c);
    ++taken;
  }
  return taken;
}

void LineDiscipline::ReceiveByte(uint8_t c) {
  if (I(ISTRIP)) c &= 0x7f;
  if (I(IUCLC) && L(IEXTEN) && c >= 'A' && c <= 'Z') c = static_cast<uint8_t>(c + 32);
  if (L(EXTPROC)) {
    PutInput(c);
    return;
  }
  if (literal_next_) {
    literal_next_ = false;
    ReceiveLiteral(c);
    return;
  }
  if (ReceiveControl(c)) return;
  if (sink_.stopped() && I(IXON) && I(IXANY)) sink_.SetStopped(false);
  if (c == '\r') {
    if (I(IGNCR)) return;
    if (I(ICRNL)) c = '\n';
  } else if (c == '\n' && I(INLCR)) {
    c = '\r';
  }
  if (L(ICANON) && ReceiveCanonical(c)) return;
  if (L(ECHO)) {
    FinishErasing();
    if (c == '\n') {
      EchoRaw('\n');
    } else {
      if (canon_head_ == head_) canon_column_ = column_;
      EchoChar(c);
    }
  }
  PutInput(c);
}

// A byte without special meaning (n_tty_receive_char).
void LineDiscipline::ReceiveLiteral(uint8_t c) {
  if (L(ECHO)) {
    FinishErasing();
    if (canon_head_ == head_) canon_column_ = column_;
    EchoChar(c);
  }
  PutInput(c);
}

bool LineDiscipline::ReceiveControl(uint8_t c) {
  if (I(IXON)) {
    if (Is(c, VSTART)) {
      sink_.SetStopped(false);
      return true;
    }
    if (Is(c, VSTOP)) {
      sink_.SetStopped(true);
      return true;
    }
  }
  if (!L(ISIG)) return false;
  int signo = Is(c, VINTR) ? SIGINT : Is(c, VQUIT) ? SIGQUIT : Is(c, VSUSP) ? SIGTSTP : 0;
  if (signo == 0) return false;
  sink_.SignalForeground(signo);
  if (!L(NOFLSH)) {
    sink_.DropOutput();
    DropInput();
  }
  if (I(IXON)) sink_.SetStopped(false);
  if (L(ECHO)) EchoChar(c);
  return true;
}

bool LineDiscipline::ReceiveCanonical(uint8_t c) {
  if (Is(c, VERASE) || Is(c, VKILL) || (Is(c, VWERASE) && L(IEXTEN))) {
    Erase(c);
    return true;
  }
  if (Is(c, VLNEXT) && L(IEXTEN)) {
    literal_next_ = true;
    if (L(ECHO)) {
      FinishErasing();
      if (L(ECHOCTL)) {
        EchoRaw('^');
        EchoRaw('\b');
      }
    }
    return true;
  }
  if (Is(c, VREPRINT) && L(ECHO) && L(IEXTEN)) {
    Reprint(c);
    return true;
  }
  if (c == '\n') {
    if (L(ECHO) || L(ECHONL)) EchoRaw('\n');
    EndLine(c);
    return true;
  }
  if (Is(c, VEOF)) {
    EndLine(kDisabledChar);
    return true;
  }
  if (Is(c, VEOL) || (Is(c, VEOL2) && L(IEXTEN))) {
    if (L(ECHO)) {
      if (canon_head_ == head_) canon_column_ = column_;
      EchoChar(c);
    }
    EndLine(c);
    return true;
  }
  return false;
}

void LineDiscipline::PutInput(uint8_t c) {
  if (c == 0xff && I(PARMRK) && !I(ISTRIP)) buffer_[At(head_++)] = c;
  buffer_[At(head_++)] = c;
}

void LineDiscipline::EndLine(uint8_t c) {
  line_end_.set(At(head_));
  buffer_[At(head_++)] = c;
  canon_head_ = head_;
}

void LineDiscipline::Reprint(uint8_t c) {
  FinishErasing();
  EchoChar(c);
  EchoRaw('\n');
  for (size_t p = canon_head_; p != head_; ++p) EchoChar(buffer_[At(p)]);
}

void LineDiscipline::FinishErasing() {
  if (!erasing_) return;
  EchoRaw('/');
  erasing_ = false;
}

void LineDiscipline::Erase(uint8_t c) {
  if (head_ == canon_head_) return;
  bool kill = Is(c, VKILL);
  bool word = !Is(c, VERASE) && !kill;
  if (!Is(c, VERASE) && kill) {
    if (!L(ECHO)) {
      head_ = canon_head_;
      return;
    }
    if (!L(ECHOK) || !L(ECHOKE) || !L(ECHOE)) {
      head_ = canon_head_;
      FinishErasing();
      EchoChar(termios_.c_cc[VKILL]);
      if (L(ECHOK)) EchoRaw('\n');
      return;
    }
  }
  bool single = Is(c, VERASE);
  bool seen_word = false;
  while (head_ != canon_head_) {
    size_t head = head_;
    uint8_t last;
    do {
      last = buffer_[At(--head)];
    } while (IsContinuation(last) && head != canon_head_);
    if (IsContinuation(last)) break;  // never a part of a character
    if (word) {
      if (IsWordChar(last)) {
        seen_word = true;
      } else if (seen_word) {
        break;
      }
    }
    size_t count = head_ - head;
    head_ = head;
    if (L(ECHO)) EraseEcho(last, single, head, count);
    if (single) break;
  }
  if (head_ == canon_head_ && L(ECHO)) FinishErasing();
}

void LineDiscipline::EraseEcho(uint8_t c, bool is_erase, size_t head, size_t count) {
  if (L(ECHOPRT)) {
    if (!erasing_) {
      EchoRaw('\\');
      erasing_ = true;
    }
    EchoChar(c);
    while (--count > 0) {
      EchoRaw(buffer_[At(++head)]);
      if (column_ > 0) --column_;
    }
    return;
  }
  if (is_erase && !L(ECHOE)) {
    EchoChar(termios_.c_cc[VERASE]);
    return;
  }
  if (c == '\t') {
    EraseTab(head_);
    return;
  }
  auto rub_out = [this] {
    EchoRaw('\b');
    EchoRaw(' ');
    EchoRaw('\b');
  };
  if (IsControl(c) && L(ECHOCTL)) rub_out();  // "^X" has two columns
  if (!IsControl(c) || L(ECHOCTL)) rub_out();
}

// Moves back over the columns that the tab which stood at `tail` took.
void LineDiscipline::EraseTab(size_t tail) {
  size_t columns = 0;
  bool after_tab = false;
  while (tail != canon_head_) {
    uint8_t c = buffer_[At(--tail)];
    if (c == '\t') {
      after_tab = true;
      break;
    }
    if (IsControl(c)) {
      if (L(ECHOCTL)) columns += 2;
    } else if (!IsContinuation(c)) {
      ++columns;
    }
  }
  if (!after_tab) columns += canon_column_;
  for (size_t back = 8 - (columns & 7); back > 0; --back) {
    sink_.PutOutput('\b');
    if (column_ > 0) --column_;
  }
}

void LineDiscipline::EchoChar(uint8_t c) {
  if (L(ECHOCTL) && IsControl(c) && c != '\t') {
    sink_.PutOutput('^');
    sink_.PutOutput(c ^ 0100);
    column_ += 2;
    return;
  }
  EchoRaw(c);
}

void LineDiscipline::EchoRaw(uint8_t c) {
  if (O(OPOST)) {
    OutputChar(c);
  } else {
    sink_.PutOutput(c);
  }
}

size_t LineDiscipline::OutputLength(uint8_t c) const {
  if (c == '\n') return O(ONLCR) ? 2 : 1;
  if (c == '\t' && (termios_.c_oflag & TABDLY) == XTABS) return 8 - (column_ & 7);
  return 1;
}

// do_output_char.
void LineDiscipline::OutputChar(uint8_t c) {
  switch (c) {
    case '\n':
      if (O(ONLRET)) column_ = 0;
      if (O(ONLCR)) {
        canon_column_ = column_ = 0;
        sink_.PutOutput('\r');
      } else {
        canon_column_ = column_;
      }
      break;
    case '\r':
      if (O(ONOCR) && column_ == 0) return;
      if (O(OCRNL)) {
        c = '\n';
        if (O(ONLRET)) canon_column_ = column_ = 0;
      } else {
        canon_column_ = column_ = 0;
      }
      break;
    case '\t': {
      size_t spaces = 8 - (column_ & 7);
      column_ += spaces;
      if ((termios_.c_oflag & TABDLY) == XTABS) {
        for (; spaces > 0; --spaces) sink_.PutOutput(' ');
        return;
      }
      break;
    }
    case '\b':
      if (column_ > 0) --column_;
      break;
    default:
      if (!IsControl(c)) {
        if (O(OLCUC) && c >= 'a' && c <= 'z') c = static_cast<uint8_t>(c - 32);
        if (!IsContinuation(c)) ++column_;
      }
  }
  sink_.PutOutput(c);
}

size_t LineDiscipline::Write(std::span<const uint8_t> bytes, size_t room) {
  size_t taken = 0;
  for (uint8_t c : bytes) {
    size_t need = O(OPOST) ? OutputLength(c) : 1;
    if (need > room) break;
    room -= need;
    EchoRaw(c);
    ++taken;
  }
  return taken;
}

bool LineDiscipline::InputAvailable(size_t min) const {
  if (L(ICANON) && !L(EXTPROC)) return canon_head_ != tail_;
  return head_ - tail_ >= std::max<size_t>(min, 1);
}

bool LineDiscipline::PollReadable() const {
  size_t min = termios_.c_cc[VTIME] == 0 ? termios_.c_cc[VMIN] : 1;
  return InputAvailable(min);
}

size_t LineDiscipline::InputCount() const {
  if (!L(ICANON) || L(EXTPROC)) return head_ - tail_;
  size_t n = canon_head_ - tail_;
  // The marks of ends of file are not bytes (inq_canon).
  for (size_t p = tail_; p != canon_head_; ++p) {
    if (line_end_.test(At(p)) && buffer_[At(p)] == kDisabledChar) --n;
  }
  return n;
}

void LineDiscipline::DropInput() {
  head_ = canon_head_ = tail_ = 0;
  line_end_.reset();
  erasing_ = false;
  literal_next_ = false;
}

size_t LineDiscipline::Read(std::span<uint8_t> dst, bool* end_of_line) {
  *end_of_line = false;
  bool canonical = L(ICANON) && !L(EXTPROC);
  size_t limit = (canonical ? canon_head_ : head_) - tail_;
  size_t n = 0;
  while (n < limit && n < dst.size()) {
    uint8_t c = buffer_[At(tail_)];
    bool end = canonical && line_end_.test(At(tail_));
    if (end) line_end_.reset(At(tail_));
    ++tail_;
    if (end && c == kDisabledChar) {
      *end_of_line = true;
      return n;
    }
    dst[n++] = c;
    if (end) {
      *end_of_line = true;
      return n;
    }
  }
  // A read that is filled exactly takes an end of file with it, so that the next read does not
  // report it as an empty line (canon_skip_eof).
  if (canonical && n == dst.size() && canon_head_ != tail_ && line_end_.test(At(tail_)) &&
      buffer_[At(tail_)] == kDisabledChar) {
    line_end_.reset(At(tail_++));
  }
  if (head_ == tail_) head_ = tail_ = canon_head_ = 0;
  return n;
}

}  // namespace sentry
