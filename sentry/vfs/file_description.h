// FileDescription: an open file (Linux: struct file).
#pragma once

#include <fcntl.h>
#include <sys/epoll.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/base/user_memory.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/lanes/arena.h"
#include "sentry/lanes/binding.h"
#include "sentry/lanes/lent_file.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/types.h"

namespace sentry {

class FdTable;

// What mmap(2) of a file maps in the host.
struct HostMapping {
  base::Ref<base::HostFd> file;  // null: anonymous memory (/dev/zero privately)
  uint64_t offset = 0;           // in the host file, of the requested file offset
};

// Receives directory entries. Return false to stop before this entry (no room).
struct DirEntry {
  std::string_view name;
  uint64_t ino;
  uint8_t type;      // DT_*
  int64_t next_off;  // position after this entry (d_off)
};
using DirEmit = std::function<bool(const DirEntry&)>;

// Tells who runs an ioctl and how it reaches guest memory.
struct IoctlArgs {
  uint32_t cmd;
  uint64_t arg;
  base::UserMemory& memory;
};

// With the events of a wake: who waits is to look again, but nothing has come that a signal
// (O_ASYNC) would tell of.
inline constexpr uint32_t kWakeQuietly = 1u << 27;

// Thread-safe. Data methods may park the fiber; blocking ones return EAGAIN instead of waiting
// when `nonblock` (O_NONBLOCK or RWF_NOWAIT or MSG_DONTWAIT), and ERESTARTSYS (or what they moved)
// when interrupted. Defaults are those of Linux for a file without the operation: EINVAL for
// read/write, ESPIPE for positions, ENOTTY for ioctl, ENODEV for mmap, always ready for poll.
class FileDescription : public base::RefCounted {
 public:
  // flags: O_* of open; access mode and status flags are kept, creation flags dropped.
  FileDescription(Path path, uint32_t flags);

  const Path& path() const { return path_; }
  Inode* inode() const;  // null only for descriptions without a path
  uint32_t flags() const { return flags_.load(std::memory_order_relaxed); }
  bool nonblock() const { return (flags() & O_NONBLOCK) != 0; }
  // Opened with O_PATH: every operation on it but those on its path is EBADF.
  bool is_path() const { return path_only_; }
  bool readable() const { return readable_; }
  bool writable() const { return writable_; }
  // F_SETFL: changes O_APPEND, O_NONBLOCK, O_DIRECT, O_NOATIME and leaves other bits.
  // EINVAL as Linux; the caller has checked who may set O_NOATIME.
  virtual base::Status SetStatusFlags(uint32_t flags);

  // --- signals when it becomes ready (Linux: struct fown_struct, fasync_struct) ---
  // F_SETOWN, F_SETOWN_EX, F_SETSIG.
  struct AsyncOwner {
    int type = 0;                     // F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP
    base::Ref<base::RefCounted> pid;  // a Pid of sentry/kernel; null: none
    int signo = 0;                    // 0: SIGIO
    uid_t ruid = 0, euid = 0;         // of who has set the owner
  };
  AsyncOwner async_owner() const;
  void set_async_owner(AsyncOwner owner);
  // May O_ASYNC be set? Default: pipes and sockets.
  virtual bool CanAsync() const;
  // Turns O_ASYNC on, for what was called descriptor `fd`, or off. Precondition: CanAsync().
  void SetAsync(int fd, bool on);
  // What a wake with `events` means to who has asked for signals: POLL_IN, POLL_OUT, ...; 0:
  // nothing. Called with the queue's lock held. Default: as of a pipe's end.
  virtual int AsyncBand(uint32_t events) const;
  // Sends what is due for `fd` of the file; set once at the start, by the kernel.
  using AsyncSender = void (*)(const AsyncOwner& owner, int fd, int band);
  static void SetAsyncSender(AsyncSender sender);
  // Has it sent to the owner.
  void NotifyOwner(int fd, int band) const;

  // --- data. The generic layer has checked readable()/writable(), lengths and offsets. ---
  // At the file position (locked and advanced by the generic helpers of seekable files).
  virtual base::Result<size_t> Read(IoDest& dst, bool nonblock);
  virtual base::Result<size_t> Write(IoSource& src, bool nonblock);
  virtual base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool nonblock);
  virtual base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool nonblock);
  // SEEK_SET, CUR, END, DATA, HOLE.
  virtual base::Result<int64_t> Seek(int64_t offset, int whence);
  virtual base::Status GetDents(const DirEmit& emit);
  virtual base::Result<uint64_t> Ioctl(const IoctlArgs& args);
  virtual base::Status Sync(bool data_only);
  virtual base::Status Allocate(int mode, uint64_t offset, uint64_t length);
  virtual base::Status Truncate(uint64_t size);
  // May `length` bytes at `offset` be mapped with PROT_* `prot`? Called again for each fork-free
  // map.
  virtual base::Result<HostMapping> Mmap(uint64_t offset, uint64_t length, int prot, bool shared);
  virtual base::Result<InodeAttr> GetAttr();
  virtual base::Status SetAttr(const AttrChange& change);

  // --- readiness: EPOLL* bits that are true now, and the queue that is woken when one comes. ---
  // Default: EPOLLIN, EPOLLOUT with their RDNORM and WRNORM forms, as files without poll.
  virtual uint32_t Readiness();
  // False: epoll_ctl(EPOLL_CTL_ADD) fails with EPERM (regular files and directories).
  virtual bool CanPoll() const { return true; }
  // Null: readiness never changes. The queue lives as long as this.
  virtual fiber::WaitQueue* wait_queue();
  // Whoever waits for what comes from now on is to be told of it although something is there now:
  // for edge-triggered watches, before they look at Readiness. `wish` as in ReadinessFor.
  virtual void WatchEdges(uint32_t /*wish*/ = platform::kWish) {}

  // --- stream lanes (sentry/lanes) ---
  // A read or write was made by the sentry: true, now and then, if lanes might do the next ones.
  // `expected`: the process has lanes, so that one more is had at once.
  bool WantsLanes(bool expected) {
    if (!may_have_lanes_) return false;
    const uint32_t n = sentry_calls_.fetch_add(1, std::memory_order_relaxed) + 1;
    return (n >= kCallsBeforeLanes || (expected && lanes_early_)) && (n & (n - 1)) == 0;
  }
  // So few that it is to have no lane that others might use more.
  bool HasFewCalls() const {
    return sentry_calls_.load(std::memory_order_relaxed) < kCallsBeforeLanes;
  }
  // Moves its streams into lanes of `arena`, if it can, and says which it reads from and writes to;
  // 0: none.
  struct LaneNames {
    uint64_t in = 0, out = 0;
  };
  virtual LaneNames EnterLanes(LaneArena& /*arena*/) { return {}; }
  // It has entered some, and others than the sentry may use them now.
  virtual bool HasOpenLanes() { return false; }
  // Readiness, for a sleeper of its lanes' arena who has this wish (platform/stream_lane.h).
  virtual uint32_t ReadinessFor(uint32_t /*wish*/) { return Readiness(); }
  // Grows with all that comes by its lane; 0 if nothing can.
  virtual uint64_t LaneCame() { return 0; }
  // An epoll instance: what descriptor `fd` of the space of `binding` asks of it is answered
  // without the sentry, as far as it is about files with lanes. False: it is none, or it cannot be.
  virtual bool BindWatches(int /*fd*/, const base::Ref<LaneBinding>& /*binding*/) { return false; }

  // --- reads of regular files without the sentry (sentry/lanes/lent_file.h) ---
  // A read of `asked` bytes was made by the sentry and gave `got`: true if the next ones may be
  // made without. Who has not got all comes again, to find the end.
  bool WantsLending(size_t asked, size_t got) {
    if (!may_be_lent_) return false;
    return sentry_calls_.fetch_add(1, std::memory_order_relaxed) != 0 || got < asked;
  }
  // LendTo may do something.
  bool may_be_lent() const { return may_be_lent_; }
  // They are, if they are made by descriptor `fd` of `table` in the space of `binding`; `begin`:
  // the first bytes of the file go there at once. May park.
  virtual bool LendTo(FdTable& /*table*/, int /*fd*/, const base::Ref<LaneBinding>& /*binding*/,
                      bool /*begin*/) {
    return false;
  }

  // Open for reading, of a kind whose end nobody outside the table of descriptors is told of,
  // watches and locks aside: it may be closed without the sentry (platform/fd_lane.h).
  bool closes_unseen() const { return closes_unseen_ && !writable_ && !path_only_; }

  // F_GETPIPE_SZ, F_SETPIPE_SZ, F_GET_SEALS, F_ADD_SEALS and whatever else a kind of file answers;
  // EINVAL.
  virtual base::Result<uint64_t> Fcntl(int cmd, uint64_t arg);

  // The VFS took write access to the inode for it (ETXTBSY), to be dropped at the end.
  void set_holds_write_access();

  // The last descriptor of one table went (flush); errors are close(2)'s.
  virtual base::Status OnClose() { return base::Ok(); }
  // "target" of /proc/PID/fd/N for descriptions without a path, e.g. "pipe:[123]".
  virtual std::string Describe() const;
  // Further lines of /proc/PID/fdinfo/N.
  virtual std::string FdInfo() const { return ""; }

  // Epoll instances hold no reference to the files they watch; they are told when the last one
  // goes, before anything of the description is torn down (Linux: eventpoll_release).
  using ReleaseHook = void (*)(FileDescription&);
  void WatchRelease(ReleaseHook hook) { release_hook_.store(hook, std::memory_order_release); }

 protected:
  void OnZeroRefs() override {
    if (ReleaseHook hook = release_hook_.load(std::memory_order_acquire)) hook(*this);
    if (has_async_.load(std::memory_order_acquire)) SetAsync(-1, false);
    delete this;
  }
  ~FileDescription() override;  // releases write access and locks of the description
  // set_async_owner has named another one.
  virtual void OnAsyncOwner() {}
  // EnterLanes may find some. `early`: calls mostly come in such numbers that the first pays.
  void MayHaveLanes(bool early) {
    may_have_lanes_ = true;
    lanes_early_ = early;
  }
  // LendTo may do something.
  void MayBeLent() { may_be_lent_ = true; }
  // See closes_unseen.
  void ClosesUnseen() { closes_unseen_ = true; }
  // O_ASYNC is about to be set.
  virtual void OnAsyncOn() {}
  // For seekable files: the position and its lock (Linux: f_pos_lock).
  fiber::Mutex pos_mutex_;
  uint64_t pos_ = 0;

 private:
  class AsyncWaiter;
  const Path path_;
  std::atomic<uint32_t> flags_;
  std::atomic<ReleaseHook> release_hook_{nullptr};
  static constexpr uint32_t kCallsBeforeLanes = 16;
  bool may_have_lanes_ = false, lanes_early_ = false, may_be_lent_ = false;
  bool closes_unseen_ = false;
  std::atomic<uint32_t> sentry_calls_{0};
  const bool path_only_;
  const bool readable_, writable_;
  bool holds_write_access_ = false;
  absl::Mutex async_mutex_;             // before the queue's lock
  std::atomic<bool> has_async_{false};  // async_ is not null
  std::unique_ptr<AsyncWaiter> async_ ABSL_GUARDED_BY(async_mutex_);
  mutable absl::Mutex owner_mutex_;  // after the queue's lock
  AsyncOwner async_owner_ ABSL_GUARDED_BY(owner_mutex_);
};

// A description whose Read and Write go through PRead and PWrite at the position (regular files,
// most proc files).
class SeekableFile : public FileDescription {
 public:
  using FileDescription::FileDescription;
  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<size_t> Write(IoSource& src, bool nonblock) override;
  base::Result<int64_t> Seek(int64_t offset, int whence) override;
  // With O_APPEND: appends atomically and says where the write began. The default writes at the
  // size that GetAttr tells.
  virtual base::Result<size_t> PWriteAppend(IoSource& src, uint64_t* offset, bool nonblock);
  bool CanPoll() const override { return false; }
  bool LendTo(FdTable& table, int fd, const base::Ref<LaneBinding>& binding, bool begin) final;

 protected:
  // How the file is if a read of it does nothing but copy bytes; the inode's attr_word changes
  // before any of this does. May park, and may be called again.
  struct Lendable {
    uint64_t size;
    uint64_t source;  // base::FileSource::id of what readers have mapped; 0: nothing yet
    // Its first bytes, if they were wanted and are at hand, and what keeps them.
    std::span<const std::byte> begin;
    base::Ref<base::RefCounted> keeps_begin;
  };
  virtual std::optional<Lendable> LookForLending(bool /*begin*/) { return std::nullopt; }
  // Greatest position that Seek may reach.
  virtual uint64_t max_offset() const { return kMaxFileSize; }
  // SEEK_DATA and SEEK_HOLE from `offset` below the size; by default all is data.
  virtual base::Result<int64_t> SeekDataOrHole(uint64_t offset, uint64_t size, bool data);

 private:
  // With pos_mutex_ held.
  void RecallPosition();
  bool LendLocked(FdTable& table, int fd, const base::Ref<LaneBinding>& binding, bool begin);
  std::unique_ptr<LentFile> lent_;  // under pos_mutex_; null: it never was
};

// What open(O_PATH) makes.
class PathOnlyFile : public FileDescription {
 public:
  // detached: the anonymous namespace that `path` is in, if it ends with this description (Linux:
  // FMODE_NEED_UNMOUNT).
  explicit PathOnlyFile(Path path, base::Ref<MountNamespace> detached = nullptr)
      : FileDescription(std::move(path), O_PATH), detached_(std::move(detached)) {}

 private:
  const base::Ref<MountNamespace> detached_;
};

}  // namespace sentry
