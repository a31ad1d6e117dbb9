// Readiness of host descriptors: one epoll thread, started when first needed.
#pragma once

#include <cstdint>
#include <functional>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/fiber.h"

namespace fiber {

// Makes the epoll instance now, which is otherwise made when first needed: before the process gives
// up the call for it.
base::Status PrepareFdWatches();

// Parks until one of `events` (EPOLLIN, ...) or an error or hang-up is ready on host descriptor
// `fd`, which stays open meanwhile; returns kWoken then. A descriptor that epoll refuses (a regular
// file) counts as ready. Several waits on one descriptor at a time are allowed.
WakeReason WaitFd(int fd, uint32_t events, const ParkOptions& options = {});

// A standing watch of one host descriptor. The owner serialises the calls; the callback may call
// Rearm at any time.
class FdWatch {
 public:
  enum class Mode {
    kEdge,     // the callback for each edge (EPOLLET)
    kOneShot,  // once, then again after Rearm
  };
  // The callback runs on the epoll thread, outside any fiber, with what is ready (EPOLLERR and
  // EPOLLHUP always reported): short, no park; it may Rearm, Unpark fibers and Wake queues.
  using Callback = std::function<void(uint32_t events)>;

  FdWatch();
  ~FdWatch();
  FdWatch(const FdWatch&) = delete;
  FdWatch& operator=(const FdWatch&) = delete;

  // Starts to watch `fd`, which must stay open until Stop. EPERM if epoll refuses it (a regular
  // file: always ready), EBUSY if started already.
  base::Status Start(int fd, uint32_t events, Mode mode, Callback callback);
  // kOneShot: watches again, for `events`.
  base::Status Rearm(uint32_t events);
  // After it returns the callback neither runs nor will run (called from within it: later ones
  // only). Must not be called with a lock held that the callback takes. Idempotent.
  void Stop();
  bool started() const { return entry_ != nullptr; }

 private:
  struct Entry;
  friend class FdPoller;
  base::Ref<Entry> entry_;
};

}  // namespace fiber
