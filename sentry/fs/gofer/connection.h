// The connection to the gofer for fibers. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gofer/client.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/fd_watch.h"

namespace sentry {

// Thread-safe.
class GoferConnection : public base::RefCounted {
 public:
  static base::Result<base::Ref<GoferConnection>> Connect(base::UniqueFd socket,
                                                          std::function<void()> on_broken);

  // Sends the request and parks the fiber until the reply is there (blocks a thread that is no
  // fiber). Not interruptible, as disk waits are not. EIO in the reply if the gofer has gone.
  gofer::Reply Call(gofer::Request request);

  // Gives a handle back: some time soon, or (`now`, for what may hold room on the host's disk) with
  // a request of its own. Never parks.
  void Forget(gofer::Handle handle, bool now = false);

  // Gives back now what Forget has collected; parks.
  void FlushForgotten();

  // Has the gofer end with this exit code, at once: requests fail with EIO from then on.
  void End(int exit_code);

  uint32_t mounts() const { return hello_.mounts; }
  uint32_t max_handles() const { return hello_.max_handles; }

 private:
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  GoferConnection(base::UniqueFd socket, std::function<void()> on_broken);
  ~GoferConnection() override;

  // Takes replies for a while, until `done`. False if it did not come: then park.
  bool Spin(const std::atomic<bool>& done);

  gofer::Client client_;
  fiber::FdWatch watch_;  // armed while somebody is parked
  std::atomic<int> parked_{0};
  // How much trust there is that spinning pays: below 1 it is not tried, but now and then.
  std::atomic<int> spin_credit_;
  std::atomic<int> spin_skipped_{0};
  std::atomic<int64_t> spin_ns_;  // bound of one spin: follows how long answers take
  gofer::HelloReply hello_ = {};
  absl::Mutex mutex_;  // leaf
  std::vector<gofer::Handle> forgotten_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
