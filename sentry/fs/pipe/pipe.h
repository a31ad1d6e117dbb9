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
#include "sentry/lanes/arena.h"
#include "sentry/vfs/byte_stream.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/types.h"

namespace sentry {

class FileDescription;

// /proc/sys/fs/pipe-max-size: what F_SETPIPE_SZ allows without CAP_SYS_RESOURCE, in bytes.
extern std::atomic<uint32_t> g_pipe_max_size;

// The buffer between the two ends (Linux: pipe_inode_info). Its bytes are in page slots in a memory
// file, made with the first write and given up when no end is open; or in a lane (sentry/lanes),
// one run of bytes. Thread-safe.
class Pipe final : public Inode::Special, public LaneUser {
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

  // EPOLL* bits of an end; `writers_seen` from Open, `wish` as in FileDescription::ReadinessFor.
  uint32_t Readiness(bool read, bool write, uint32_t writers_seen,
                     platform::LaneWish wish = platform::kWish);
  // EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP.
  fiber::WaitQueue& wait_queue() { return queue_; }

  // --- lanes ---
  // Moves into a lane of `arena`, if both ends are open and nothing asks for boundaries; its name,
  // or 0.
  uint64_t EnterLane(LaneArena& arena);
  // Only the sentry moves its bytes, for good.
  void LeaveLanes();
  // What who finds nothing at an end of its lane does, as `file` has it. An end of which there are
  // several descriptions has nothing of the kind.
  void SetPatience(const FileDescription& file, bool reader, platform::LanePatience patience);
  bool lane_open() const { return in_lane_.load() && stream_.lane_open(); }
  void WatchEdges(platform::LaneWish wish) {
    if (in_lane_.load()) stream_.WantData(wish);
  }
  uint64_t came() const { return stream_.written(); }
  void LaneWritten() override;
  void LaneRead() override;

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
  base::Result<size_t> PeekSlots(IoDest& dst) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // One step of a read or a write: what is there now, and what fits now (0: nothing, since a part
  // would have to wait). *last: a read ends with this.
  base::Result<size_t> ReadStep(IoDest& dst, bool* last) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<size_t> WriteStep(IoSource& src, bool packet, bool first)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Parks until there is content or no writer (or space or no reader), with the mutex given up.
  // `rounds` counts those without progress.
  base::Status WaitReadable(VainRounds& rounds) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status WaitWritable(VainRounds& rounds) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status WaitPartner(std::atomic<uint32_t>& opened) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status ResizeRing(uint32_t pages) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Publishes how many slots are used, for Readiness.
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  bool HasContent() const { return in_lane_.load() ? stream_.Used() > 0 : used_.load() > 0; }
  bool Full() const {
    return in_lane_.load() ? !stream_.Writable() : used_.load() >= slots_.load();
  }
  // There is content, or space; if not, others than the sentry are to tell when it comes.
  bool WantContent(platform::LaneWish wish);
  bool WantSpace(platform::LaneWish wish);

  // In a lane.
  base::Result<size_t> ReadLane(IoDest& dst) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<size_t> PeekLane(IoDest& dst) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Result<size_t> WriteLane(IoSource& src) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DiscardLane(size_t n) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the content into the lane, or into slots for good; false, ENOMEM: it stays where it is.
  bool MoveToLane(LaneArena& arena) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  base::Status MoveToSlots() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  fiber::Mutex mutex_;  // held while bytes move; before the wait queue's lock
  std::unique_ptr<base::RingMemory> memory_ ABSL_GUARDED_BY(mutex_);
  base::SlotRing ring_ ABSL_GUARDED_BY(mutex_);
  fiber::WaitQueue queue_;
  ByteStream stream_{platform::kLanePipe};  // the content if in_lane_; both ends under mutex_
  std::atomic<bool> in_lane_{false};        // written under mutex_
  bool without_lanes_ ABSL_GUARDED_BY(mutex_) = false;
  // Of an end: the description that has set its patience (never followed), or that there are more.
  struct End {
    const FileDescription* file = nullptr;
    bool shared = false;
  };
  End reader_end_ ABSL_GUARDED_BY(mutex_), writer_end_ ABSL_GUARDED_BY(mutex_);
  // Fibers that are in WaitReadable, WaitWritable.
  std::atomic<uint32_t> waiting_readers_{0}, waiting_writers_{0};
  std::atomic<uint32_t> slots_{kDefaultSlots};
  std::atomic<uint32_t> used_{0};
  std::atomic<uint32_t> readers_{0}, writers_{0};
  // Count opens, so that a FIFO's opener sees a partner that is gone again.
  std::atomic<uint32_t> reader_opens_{0}, writer_opens_{0};
};

}  // namespace sentry
