// MSG_ZEROCOPY for sockets that copy nevertheless: what is told in the error queue (Linux:
// net/core/skbuff.c: msg_zerocopy_callback).
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/net/socket.h"

namespace sentry {

// Thread-safe.
class ZeroCopyNotices {
 public:
  // A send with MSG_ZEROCOPY and SO_ZEROCOPY is complete: the bytes were copied. Told once for all
  // sends since it was last asked. The caller wakes who waits for EPOLLERR.
  void Complete();
  bool pending() const { return pending_.load(std::memory_order_relaxed); }
  // The answer to MSG_ERRQUEUE. EAGAIN.
  base::Result<size_t> Take(bool v6, RecvArgs* args);

 private:
  absl::Mutex mutex_;                           // leaf
  std::atomic<bool> pending_{false};            // written under it
  uint32_t first_ ABSL_GUARDED_BY(mutex_) = 0;  // not told yet
  uint32_t next_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace sentry
