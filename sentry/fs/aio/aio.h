// Contexts of asynchronous I/O.
#pragma once

#include <linux/aio_abi.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

// /proc/sys/fs/aio-max-nr, and how many events all contexts may hold.
extern std::atomic<uint64_t> g_aio_max, g_aio_count;

// Thread-safe.
class AioContext : public base::RefCounted {
 public:
  // EAGAIN if g_aio_max would be passed.
  static base::Result<base::Ref<AioContext>> New(uint32_t events);

  uint32_t events() const { return events_; }
  // Takes a place for an operation; EAGAIN if they are all taken by operations under way and events
  // that nobody has collected.
  base::Status Reserve();
  void Unreserve();
  // The operation that a place was taken for has ended; `notify` (an eventfd) may be null.
  void Complete(const io_event& event, FileDescription* notify);
  // Waits for `file` to be ready for any of `mask`, on a fiber, and completes then. EAGAIN beyond
  // what a sandbox may have of them.
  base::Status StartPoll(base::Ref<FileDescription> file, uint32_t mask, io_event event,
                         base::Ref<FileDescription> notify);
  // io_cancel(2): the poll that `object` (the guest's iocb) started ends soon. EINVAL if there is
  // none.
  base::Status CancelPoll(uint64_t object);
  // Takes up to `most` events once there are `least`; fewer at the deadline or an interruption.
  std::vector<io_event> Collect(size_t least, size_t most, int64_t deadline_ns);
  // Nothing new is started; with `wait` it returns when nothing is under way.
  void Destroy(bool wait);

 private:
  struct Poll;
  explicit AioContext(uint32_t events);
  ~AioContext() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  void RunPoll(const base::Ref<Poll>& poll);

  const uint32_t events_;
  absl::Mutex mutex_;
  uint32_t taken_ ABSL_GUARDED_BY(mutex_) = 0;  // places: under way, or in done_
  std::deque<io_event> done_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<Poll>> polls_ ABSL_GUARDED_BY(mutex_);
  bool dead_ ABSL_GUARDED_BY(mutex_) = false;
  fiber::WaitQueue queue_;  // events, and the end of polls
};

// Those of an address space, by id; what Task::aio holds.
class AioContexts : public base::RefCounted {
 public:
  void Add(uint64_t id, base::Ref<AioContext> context);
  // EINVAL.
  base::Result<base::Ref<AioContext>> Find(uint64_t id);
  base::Result<base::Ref<AioContext>> Remove(uint64_t id);

 private:
  ~AioContexts() override;
  absl::Mutex mutex_;
  std::map<uint64_t, base::Ref<AioContext>> contexts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
