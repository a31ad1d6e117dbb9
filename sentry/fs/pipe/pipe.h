// Pipes and FIFOs. Follows fs/pipe.c.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/ring.h"
#include "sentry/base/ring_memory.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/types.h"

namespace sentry {

// /proc/sys/fs/pipe-max-size: what F_SETPIPE_SZ allows without CAP_SYS_RESOURCE, in bytes.
extern std::atomic<uint32_t> g_pipe_max_size;

// The buffer between the two ends (Linux: pipe_inode_info). Its bytes are in a memory file, made
// with the first write and given up when no end is open. Thread-safe.
class Pipe : public Inode::Special {
 public:
  static constexpr uint32_t kPageSize = base::SlotRing::kPageSize;
  static constexpr uint32_t kDefaultSlots = 16;

  Pipe() = default;

  // Moves what there is, at most dst.remaining(); waits for the first byte unless `nonblock`
  // (EAGAIN). 0: no writer is left. EFAULT, ERESTARTSYS.
  base::Result<size_t> Read(IoDest& dst, bool nonblock);
  // Writes all of `src`, or what fits if `nonblock`. Up to PIPE_BUF bytes are never split.
  // `packet`: O_DIRECT, each page or less is a packet. EPIPE without readers; *broken tells that
  // there were none even when bytes had been written (SIGPIPE is the caller's).
  base::Result<size_t> Write(IoSource& src, bool nonblock, bool packet, bool* broken);
  // For tee(2) and splice(2): copies the content without taking it, at most dst.remaining(), and
  // waits as Read; and takes `n` bytes that were copied before (no other reader got between only
  // if the caller is the only one).
  base::Result<size_t> Peek(IoDest& dst, bool nonblock);
  void Discard(size_t n);
  // Bytes that a write could put into free pages now, after waiting for the first unless `nonblock`
  // (EAGAIN). EPIPE, ERESTARTSYS.
  base::Result<size_t> WaitForRoom(bool nonblock);

  // FIONREAD.
  size_t BytesReadable();
  // F_GETPIPE_SZ and F_SETPIPE_SZ; the latter returns the size that was set. EBUSY, EPERM, EINVAL.
  uint32_t size() const { return slots_.load(std::memory_order_relaxed) * kPageSize; }
  base::Result<uint32_t> SetSize(uint64_t size, bool privileged);

  // open(2): counts the end and, for a FIFO, waits for the other one as fifo_open() does. ENXIO,
  // ERESTARTSYS. *writers_seen is for Readiness.
  base::Status Open(bool read, bool write, bool fifo, bool nonblock, uint32_t* writers_seen);
  void Close(bool read, bool write);

  // EPOLL* bits of an end; `writers_seen` from Open.
  uint32_t Readiness(bool read, bool write, uint32_t writers_seen) const;
  // EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP.
  fiber::WaitQueue& wait_queue() { return queue_; }

 private:
  // Woken when an end was opened; no poll event of its own.
  static constexpr uint32_t kOpened = EPOLLMSG;

  ~Pipe() override = default;
  base::Status EnsureRing() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The longest run of content that lies in one piece; a single slot if it is a packet.
  std::span<std::byte> NextRun(uint64_t index, size_t want, bool* packet)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Take(size_t n) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<size_t> MergeIntoLast(IoSource& src) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<size_t> FillSlots(IoSource& src, bool packet) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Parks until there is content or no writer (or space or no reader), with the mutex given up.
  base::Status WaitReadable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status WaitWritable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status WaitPartner(std::atomic<uint32_t>& opened) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Publishes how many slots are used, for Readiness.
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Full() const { return used_.load(std::memory_order_acquire) >= slots_.load(); }

  fiber::Mutex mutex_;  // held while bytes move; before the wait queue's lock
  std::unique_ptr<base::RingMemory> memory_ ABSL_GUARDED_BY(mutex_);
  base::SlotRing ring_ ABSL_GUARDED_BY(mutex_);
  fiber::WaitQueue queue_;
  std::atomic<uint32_t> slots_{kDefaultSlots};
  std::atomic<uint32_t> used_{0};
  std::atomic<uint32_t> readers_{0}, writers_{0};
  // Count opens, so that a FIFO's opener sees a partner that is gone again.
  std::atomic<uint32_t> reader_opens_{0}, writer_opens_{0};
};

}  // namespace sentry
