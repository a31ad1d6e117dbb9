#include "sentry/fs/devpts/terminal.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/sysmacros.h>
#include <time.h>

#include <algorithm>

#include "sentry/fs/devpts/devpts.h"
#include "sentry/fs/devpts/tty_file.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

constexpr unsigned kPtsMajor = 136;
constexpr uint32_t kInEvents = EPOLLIN | EPOLLRDNORM;
constexpr uint32_t kOutEvents = EPOLLOUT | EPOLLWRNORM;

int64_t MonotonicNs() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000 + ts.tv_nsec;
}

std::span<const uint8_t> AsUnsigned(std::span<const std::byte> b) {
  return {reinterpret_cast<const uint8_t*>(b.data()), b.size()};
}

}  // namespace

void ByteQueue::Pop(size_t n) {
  start_ += n;
  if (start_ >= bytes_.size()) {
    Clear();
  } else if (start_ > 4096 && start_ > bytes_.size() / 2) {
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(start_));
    start_ = 0;
  }
}

Terminal::Terminal(Kernel* kernel, base::Ref<DevptsFs> fs, int index)
    : Tty(kernel), fs_(std::move(fs)), index_(index), line_(*this, DefaultTermios()) {}

Terminal::~Terminal() = default;

std::string Terminal::name() const { return "pts/" + std::to_string(index_); }

dev_t Terminal::device() const {
  return makedev(kPtsMajor + static_cast<unsigned>(index_) / 256,
                 static_cast<unsigned>(index_) % 256);
}

base::Result<base::Ref<FileDescription>> Terminal::Open(const OpenArgs& args) {
  TRY(OpenSlave(Task::Current(), args.flags));
  return base::Ref<FileDescription>(
      base::MakeRef<TtyFile>(args.path, args.flags, base::Ref<Terminal>(this)));
}

base::Status Terminal::OpenSlave(Task* current, uint32_t flags) {
  {
    absl::MutexLock lock(&mutex_);
    if (!master_open_ || locked_) return base::Error(EIO);
    if (exclusive_ && (current == nullptr || !current->HasCap(CAP_SYS_ADMIN))) {
      return base::Error(EBUSY);
    }
    ++slaves_;
    slave_was_open_ = true;
  }
  if (current != nullptr && (flags & O_NOCTTY) == 0) {
    bool readable = (flags & O_ACCMODE) != O_WRONLY;
    (void)SetControlling(*current, /*steal=*/false, readable);  // tty_open_proc_set_tty: if it may
  }
  return base::Ok();
}

void Terminal::CloseSlave() {
  bool last;
  {
    absl::MutexLock lock(&mutex_);
    last = --slaves_ == 0;
    if (last) packet_status_ = 0;
  }
  if (last) master_queue_.WakeAll(kInEvents | EPOLLHUP);
}

void Terminal::Unlock() {
  absl::MutexLock lock(&mutex_);
  locked_ = false;
}

void Terminal::CloseMaster() {
  {
    absl::MutexLock lock(&mutex_);
    master_open_ = false;
  }
  fs_->Release(index_);
  HangUpLine();
}

void Terminal::HangUpLine() {
  hung_up_.store(true, std::memory_order_release);
  hangups_.fetch_add(1);
  slave_queue_.WakeAll(kInEvents | kOutEvents | EPOLLERR | EPOLLHUP);
  master_queue_.WakeAll(kInEvents | kOutEvents | EPOLLHUP);
  Hangup();
}

// --- TtySink ---

void Terminal::PutOutput(uint8_t byte) {
  if (output_.size() >= kEchoLimit) return;
  output_.Push(byte);
  master_news_ = true;
}

void Terminal::SignalForeground(int signo) {
  mutex_.AssertHeld();
  signals_.push_back(signo);
}

void Terminal::DropOutput() {
  output_.Clear();
  if (packet_) packet_status_ |= TIOCPKT_FLUSHWRITE;
}

void Terminal::SetStopped(bool stopped) {
  if (stopped_ == stopped) return;
  stopped_ = stopped;
  if (packet_) {
    packet_status_ &= static_cast<uint8_t>(~(TIOCPKT_STOP | TIOCPKT_START));
    packet_status_ |= stopped ? TIOCPKT_STOP : TIOCPKT_START;
  }
}

void Terminal::Pump() {
  while (!input_.empty()) {
    size_t n = line_.Receive(input_.Front());
    if (n == 0) break;
    input_.Pop(n);
    slave_news_ |= line_.InputAvailable();
  }
}

size_t Terminal::Room() const {
  if (stopped_) return 0;
  return output_.size() < kOutputLimit ? kOutputLimit - output_.size() : 0;
}

void Terminal::Settle() {
  std::vector<int> signals;
  uint32_t slave = 0, master = 0;
  {
    absl::MutexLock lock(&mutex_);
    signals.swap(signals_);
    if (line_.InputAvailable()) slave |= kInEvents;
    if (Room() > 0) slave |= kOutEvents;
    if (!output_.empty()) master |= kInEvents;
    if (packet_status_ != 0) master |= kInEvents | EPOLLPRI;
    if (input_.size() < kInputLimit) master |= kOutEvents;
    if (slave != 0 && !std::exchange(slave_news_, false)) slave |= kWakeQuietly;
    if (master != 0 && !std::exchange(master_news_, false)) master |= kWakeQuietly;
  }
  if (slave != 0) slave_queue_.WakeAll(slave);
  if (master != 0) master_queue_.WakeAll(master);
  for (int signo : signals) Tty::SignalForeground(signo);
}

// --- the slave ---

struct Terminal::ReadState {
  size_t total = 0;
  bool done = false;
  bool canonical = false;
  size_t minimum = 1;
  int64_t wait_ns = -1;      // for the first byte; -1 without end
  int64_t interbyte_ns = 0;  // after the first byte, if > 0
};

// Takes what one pass of n_tty_read() takes; 0 if there is nothing.
base::Result<size_t> Terminal::ReadStep(IoDest& dst, ReadState* s) {
  uint8_t buffer[1024];
  size_t n;
  bool end_of_line = false;
  bool available;
  {
    absl::MutexLock lock(&mutex_);
    const KTermios& t = line_.termios();
    s->canonical = (t.c_lflag & ICANON) != 0;
    s->minimum = 1;
    s->wait_ns = -1;
    s->interbyte_ns = 0;
    if (!s->canonical) {
      int64_t time_ns = int64_t{t.c_cc[VTIME]} * 100'000'000;
      if (t.c_cc[VMIN] != 0) {
        s->minimum = t.c_cc[VMIN];
        s->interbyte_ns = time_ns;
      } else {
        s->wait_ns = time_ns;
      }
    }
    available = line_.InputAvailable();
    n = line_.Read(std::span(buffer).first(std::min(sizeof(buffer), dst.remaining())),
                   &end_of_line);
    Pump();
  }
  if (available) Settle();
  if (n > 0) {
    size_t put = TRY(dst.Put(std::as_bytes(std::span(buffer, n))));
    s->total += put;
    if (put < n) return base::Error(EFAULT);
  }
  if (end_of_line || dst.remaining() == 0) s->done = true;
  if (available && !s->canonical && n < sizeof(buffer) && s->total >= s->minimum) s->done = true;
  return n;
}

base::Result<size_t> Terminal::Read(IoDest& dst, bool nonblock) {
  if (hung_up()) return size_t{0};
  if (Task* t = Task::Current()) TRY(CheckJob(*t, SIGTTIN));
  if (dst.remaining() == 0) return size_t{0};
  ReadState s;
  int64_t deadline = 0;  // 0: not set yet
  while (true) {
    size_t before = s.total;
    base::Result<size_t> step = ReadStep(dst, &s);
    if (!step.ok()) return s.total > 0 ? base::Result<size_t>(s.total) : step;
    if (s.done) return s.total;
    if (*step > 0 && !s.canonical && s.total < s.minimum) deadline = 0;
    if (s.total > before && (s.canonical || s.total >= s.minimum)) continue;
    if (hung_up() || s.total >= s.minimum) return s.total;
    // The time that this wait may take.
    int64_t limit = s.total > 0 && s.interbyte_ns > 0 ? s.interbyte_ns : s.wait_ns;
    if (limit == 0) return s.total;
    if (nonblock) {
      if (s.total > 0) return s.total;
      return base::Error(EAGAIN);
    }
    if (limit > 0 && deadline == 0) deadline = MonotonicNs() + limit;
    auto reason = fiber::WaitUntil(
        slave_queue_, EPOLLIN | EPOLLHUP,
        [this] {
          if (hung_up()) return true;
          absl::MutexLock lock(&mutex_);
          return line_.InputAvailable();
        },
        {.interruptible = true, .deadline_ns = limit > 0 ? deadline : fiber::kNoDeadline});
    if (reason == fiber::WakeReason::kTimeout) return s.total;
    if (reason == fiber::WakeReason::kInterrupted) {
      if (s.total > 0) return s.total;
      return base::Error(base::kERESTARTSYS);
    }
  }
}

base::Result<size_t> Terminal::Write(IoSource& src, bool nonblock) {
  if (hung_up()) return base::Error(EIO);
  if (termios().c_lflag & TOSTOP) {
    if (Task* t = Task::Current()) TRY(CheckJob(*t, SIGTTOU));
  }
  size_t total = 0;
  while (src.remaining() > 0) {
    std::byte buffer[2048];
    base::Result<size_t> got =
        src.Get(std::span(buffer).first(std::min(sizeof(buffer), src.remaining())));
    if (!got.ok() || *got == 0) {
      if (total > 0) return total;
      return base::Error(EFAULT);
    }
    std::span<const uint8_t> chunk = AsUnsigned(std::span(buffer).first(*got));
    while (!chunk.empty()) {
      if (hung_up()) return total > 0 ? base::Result<size_t>(total) : base::Error(EIO);
      size_t n;
      {
        absl::MutexLock lock(&mutex_);
        n = line_.Write(chunk, Room());
      }
      if (n > 0) {
        total += n;
        chunk = chunk.subspan(n);
        master_queue_.WakeAll(kInEvents);
        continue;
      }
      if (nonblock) return total > 0 ? base::Result<size_t>(total) : base::Error(EAGAIN);
      auto reason = fiber::WaitUntil(slave_queue_, EPOLLOUT | EPOLLHUP,
                                     [this] {
                                       if (hung_up()) return true;
                                       absl::MutexLock lock(&mutex_);
                                       return Room() >= 8;  // what one byte may become
                                     },
                                     {.interruptible = true});
      if (reason == fiber::WakeReason::kInterrupted) {
        return total > 0 ? base::Result<size_t>(total) : base::Error(base::kERESTARTSYS);
      }
    }
  }
  return total;
}

uint32_t Terminal::Readiness() {
  if (hung_up()) return kInEvents | kOutEvents | EPOLLERR | EPOLLHUP;
  absl::MutexLock lock(&mutex_);
  uint32_t mask = 0;
  if (line_.PollReadable()) mask |= kInEvents;
  if (Room() >= 8) mask |= kOutEvents;
  return mask;
}

// --- the master ---

base::Result<size_t> Terminal::MasterRead(IoDest& dst, bool nonblock) {
  if (dst.remaining() == 0) return size_t{0};
  while (true) {
    std::vector<uint8_t> bytes;
    bool closed = false;
    {
      absl::MutexLock lock(&mutex_);
      if (packet_ && packet_status_ != 0) {
        bytes.push_back(packet_status_);
        packet_status_ = 0;
      } else if (!output_.empty()) {
        size_t room = dst.remaining();
        if (packet_) {
          bytes.push_back(TIOCPKT_DATA);
          --room;
        }
        std::span<const uint8_t> front = output_.Front();
        front = front.first(std::min(front.size(), room));
        bytes.insert(bytes.end(), front.begin(), front.end());
        output_.Pop(front.size());
      } else {
        closed = slave_was_open_ && slaves_ == 0;
      }
    }
    if (!bytes.empty()) {
      slave_queue_.WakeAll(kOutEvents);
      return dst.Put(std::as_bytes(std::span(bytes)));
    }
    if (closed) return base::Error(EIO);
    if (nonblock) return base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(master_queue_, EPOLLIN | EPOLLHUP | EPOLLPRI,
                                   [this] {
                                     absl::MutexLock lock(&mutex_);
                                     return !output_.empty() || (packet_ && packet_status_ != 0) ||
                                            (slave_was_open_ && slaves_ == 0);
                                   },
                                   {.interruptible = true});
    if (reason != fiber::WakeReason::kWoken) return base::Error(base::kERESTARTSYS);
  }
}

base::Result<size_t> Terminal::MasterWrite(IoSource& src, bool nonblock) {
  size_t total = 0;
  while (src.remaining() > 0) {
    size_t room;
    {
      absl::MutexLock lock(&mutex_);
      room = kInputLimit - std::min(input_.size(), kInputLimit);
    }
    if (room > 0) {
      std::byte buffer[2048];
      base::Result<size_t> got =
          src.Get(std::span(buffer).first(std::min({sizeof(buffer), src.remaining(), room})));
      if (!got.ok() || *got == 0) {
        if (total > 0) return total;
        return base::Error(EFAULT);
      }
      {
        absl::MutexLock lock(&mutex_);
        input_.Append(AsUnsigned(std::span(buffer).first(*got)));
        Pump();
      }
      total += *got;
      Settle();
      continue;
    }
    if (nonblock) return total > 0 ? base::Result<size_t>(total) : base::Error(EAGAIN);
    auto reason = fiber::WaitUntil(master_queue_, EPOLLOUT,
                                   [this] {
                                     absl::MutexLock lock(&mutex_);
                                     return input_.size() < kInputLimit;
                                   },
                                   {.interruptible = true});
    if (reason != fiber::WakeReason::kWoken) {
      return total > 0 ? base::Result<size_t>(total) : base::Error(base::kERESTARTSYS);
    }
  }
  return total;
}

uint32_t Terminal::MasterReadiness() {
  absl::MutexLock lock(&mutex_);
  uint32_t mask = 0;
  if (!output_.empty()) mask |= kInEvents;
  if (packet_ && packet_status_ != 0) mask |= kInEvents | EPOLLPRI;
  if (input_.size() < kInputLimit) mask |= kOutEvents;
  if (slave_was_open_ && slaves_ == 0) mask |= EPOLLHUP;
  return mask;
}

// --- settings ---

KTermios Terminal::termios() const {
  absl::MutexLock lock(&mutex_);
  return line_.termios();
}

void Terminal::SetTermios(const KTermios& termios, bool flush) {
  {
    absl::MutexLock lock(&mutex_);
    KTermios old = line_.termios();
    if (flush) {
      line_.DropInput();
      input_.Clear();
    }
    line_.SetTermios(termios);
    // pty_set_termios: tells a master in packet mode whether it may do flow control itself.
    bool was = (old.c_iflag & IXON) && old.c_cc[VSTOP] == 023 && old.c_cc[VSTART] == 021;
    bool is = (termios.c_iflag & IXON) && termios.c_cc[VSTOP] == 023 && termios.c_cc[VSTART] == 021;
    bool extproc = (old.c_lflag ^ termios.c_lflag) & EXTPROC;
    if (packet_ && (was != is || extproc)) {
      if (was != is) {
        packet_status_ &= static_cast<uint8_t>(~(TIOCPKT_DOSTOP | TIOCPKT_NOSTOP));
        packet_status_ |= is ? TIOCPKT_DOSTOP : TIOCPKT_NOSTOP;
      }
      if (extproc) packet_status_ |= TIOCPKT_IOCTL;
    }
    Pump();
  }
  Settle();
}

struct winsize Terminal::window_size() const {
  absl::MutexLock lock(&mutex_);
  return size_;
}

void Terminal::SetWindowSize(const struct winsize& size) {
  {
    absl::MutexLock lock(&mutex_);
    if (size.ws_row == size_.ws_row && size.ws_col == size_.ws_col &&
        size.ws_xpixel == size_.ws_xpixel && size.ws_ypixel == size_.ws_ypixel) {
      return;
    }
    size_ = size;
  }
  Tty::SignalForeground(SIGWINCH);
}

}  // namespace sentry
