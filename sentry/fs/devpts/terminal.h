// A pseudo-terminal: the terminal (slave) with its line discipline, and what its master sees.
// Follows drivers/tty/pty.c, n_tty.c and tty_io.c.
#pragma once

#include <sys/ioctl.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/devpts/line_discipline.h"
#include "sentry/kernel/session.h"
#include "sentry/vfs/types.h"

namespace sentry {

class DevptsFs;

// Bytes from a bounded front to a back.
class ByteQueue {
 public:
  size_t size() const { return bytes_.size() - start_; }
  bool empty() const { return size() == 0; }
  void Push(uint8_t b) { bytes_.push_back(b); }
  void Append(std::span<const uint8_t> b) { bytes_.insert(bytes_.end(), b.begin(), b.end()); }
  std::span<const uint8_t> Front() const { return std::span(bytes_).subspan(start_); }
  void Pop(size_t n);
  void Clear() { bytes_.clear(), start_ = 0; }

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;
};

// One pair. Thread-safe. mutex_ is never held together with Kernel::task_mutex(): signals are
// collected under it and sent after it is given up.
class Terminal : public Tty, private TtySink {
 public:
  // The slave of the pair `index` of `fs`.
  Terminal(Kernel* kernel, base::Ref<DevptsFs> fs, int index);

  std::string name() const override;
  dev_t device() const override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;
  int index() const { return index_; }
  DevptsFs& fs() const { return *fs_; }

  // --- opens and closes ---
  // EIO while locked (TIOCSPTLCK) or without master, EBUSY with TIOCEXCL. Makes it the controlling
  // terminal of a session leader that has none, unless O_NOCTTY. `current` may be null (no guest).
  base::Status OpenSlave(Task* current, uint32_t flags);
  void CloseSlave();
  // Hangs up, and gives the index back.
  void CloseMaster();
  void Unlock();

  // --- the slave ---
  base::Result<size_t> Read(IoDest& dst, bool nonblock);
  base::Result<size_t> Write(IoSource& src, bool nonblock);
  uint32_t Readiness();
  fiber::WaitQueue& queue() { return slave_queue_; }
  bool hung_up() const { return hung_up_.load(std::memory_order_acquire); }
  // TIOCVHANGUP and the master's close.
  void HangUpLine();

  // --- the master ---
  base::Result<size_t> MasterRead(IoDest& dst, bool nonblock);
  base::Result<size_t> MasterWrite(IoSource& src, bool nonblock);
  uint32_t MasterReadiness();
  fiber::WaitQueue& master_queue() { return master_queue_; }

  // --- settings ---
  KTermios termios() const;
  // TCSETS, TCSETSW (drain), TCSETSF (flush).
  void SetTermios(const KTermios& termios, bool flush);
  struct winsize window_size() const;
  // SIGWINCH to the foreground group if it changed.
  void SetWindowSize(const struct winsize& size);

  // ioctls of either end that concern the line; ENOTTY for what is none of them.
  base::Result<uint64_t> Ioctl(Task& t, const IoctlArgs& args, bool master);

 private:
  static constexpr size_t kInputLimit = 8192;    // of what the line discipline has no room for yet
  static constexpr size_t kOutputLimit = 12288;  // writes wait above it
  static constexpr size_t kEchoLimit = kOutputLimit + 4096;

  ~Terminal() override;
  // TtySink, under mutex_.
  void PutOutput(uint8_t byte) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SignalForeground(int signo) override;
  void DropOutput() override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetStopped(bool stopped) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool stopped() const override { return stopped_; }

  // Hands waiting input to the line discipline.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // After mutex_ was given up: wakes both sides and sends the signals that were collected.
  void Settle();
  size_t Room() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One pass of a read; *more: go on at once. See Read.
  struct ReadState;
  base::Result<size_t> ReadStep(IoDest& dst, ReadState* state);

  base::Result<uint64_t> TermiosIoctl(Task& t, const IoctlArgs& args);
  base::Result<uint64_t> JobIoctl(Task& t, const IoctlArgs& args, bool master);
  base::Result<uint64_t> MasterIoctl(Task& t, const IoctlArgs& args);
  base::Result<uint64_t> LineIoctl(Task& t, const IoctlArgs& args, bool master);
  base::Status Flush(Task& t, uint64_t which, bool master);
  base::Status FlowControl(uint64_t action, bool master);
  base::Status StoreTermios(Task& t, KTermios termios, uint32_t cmd);
  base::Status Drain();

  const base::Ref<DevptsFs> fs_;
  const int index_;
  mutable absl::Mutex mutex_;
  LineDiscipline line_ ABSL_GUARDED_BY(mutex_);
  ByteQueue input_ ABSL_GUARDED_BY(mutex_);   // from the master, not yet in the line discipline
  ByteQueue output_ ABSL_GUARDED_BY(mutex_);  // for the master
  struct winsize size_ ABSL_GUARDED_BY(mutex_) = {};
  std::vector<int> signals_ ABSL_GUARDED_BY(mutex_);
  bool locked_ ABSL_GUARDED_BY(mutex_) = true;  // TIOCSPTLCK
  bool exclusive_ ABSL_GUARDED_BY(mutex_) = false;
  bool packet_ ABSL_GUARDED_BY(mutex_) = false;
  uint8_t packet_status_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ = false;  // under mutex_
  bool master_open_ ABSL_GUARDED_BY(mutex_) = true;
  // Something has come since Settle.
  bool slave_news_ ABSL_GUARDED_BY(mutex_) = false, master_news_ ABSL_GUARDED_BY(mutex_) = false;
  int slaves_ ABSL_GUARDED_BY(mutex_) = 0;
  bool slave_was_open_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> hung_up_{false};
  std::atomic<uint32_t> hangups_{0};
  fiber::WaitQueue slave_queue_, master_queue_;
};

}  // namespace sentry
