// The connection to the gofer for fibers. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gofer/client.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/fd_watch.h"
#include "sentry/fiber/wait_queue.h"

namespace sentry {

class GoferConnection;

// Gives a handle back when the last reference goes.
class GoferLastUse : public base::RefCounted {
 public:
  GoferLastUse(GoferConnection* connection, gofer::Handle handle, bool now)
      : connection_(connection), handle_(handle), now_(now) {}

 private:
  ~GoferLastUse() override;
  GoferConnection* const connection_;
  const gofer::Handle handle_;
  const bool now_;
};

// A request that is sent without waiting for its answer. Thread-safe.
class GoferLateCall : public base::RefCounted {
 public:
  bool done() const { return done_.load(std::memory_order_acquire); }
  // The answer, once it is there.
  int error() const { return reply_.error; }
  gofer::Reply TakeReply() { return std::move(reply_); }
  // Keeps `use` until the answer is there.
  void Hold(base::Ref<GoferLastUse> use);

 private:
  friend class GoferConnection;
  void Finish(gofer::Reply reply);

  absl::Mutex mutex_;  // leaf
  base::Ref<GoferLastUse> use_ ABSL_GUARDED_BY(mutex_);
  gofer::Reply reply_;  // written before done_
  std::atomic<bool> done_{false};
};

// Thread-safe.
class GoferConnection : public base::RefCounted {
 public:
  static base::Result<base::Ref<GoferConnection>> Connect(base::UniqueFd socket,
                                                          std::function<void()> on_broken);

  // Sends the request and parks the fiber until the reply is there (blocks a thread that is no
  // fiber). Not interruptible, as disk waits are not. EIO in the reply if the gofer has gone.
  gofer::Reply Call(gofer::Request request);

  // Sends the request of `late` and returns at once. Requests are served in any order.
  void CallLate(const base::Ref<GoferLateCall>& late, gofer::Request request);
  // Parks until the answer is there.
  void Await(const GoferLateCall& late);
  // Parks until no late call is under way.
  void AwaitLateCalls();
  int late_calls() const { return late_calls_.load(std::memory_order_acquire); }

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

  // Takes replies for a while, until `done`. False if it did not come: then Lead.
  template <typename Done>
  bool Spin(const Done& done);
  // Sleeps in the host for a while, one thread at a time, and takes replies for all who wait, until
  // `done`. False if it did not come, or is not likely to come soon: then park.
  template <typename Done>
  bool Lead(const Done& done);
  void EndLead();
  // Who parks has the watch wake it, unless somebody leads.
  void BeginPark();
  void EndPark() { parked_.fetch_sub(1, std::memory_order_seq_cst); }
  // An answer took so long.
  void Took(int64_t ns);
  template <typename Done>
  void AwaitLate(const Done& done);

  gofer::Client client_;
  fiber::FdWatch watch_;  // armed while somebody is parked and nobody leads
  std::atomic<int> parked_{0};
  std::atomic<bool> leading_{false};
  std::atomic<int> quick_{0};  // answers in a row that came soon
  const bool may_spin_;
  // How much trust there is that spinning pays: below 1 it is not tried, but now and then.
  std::atomic<int> spin_credit_;
  std::atomic<int> spin_skipped_{0};
  std::atomic<int64_t> spin_ns_;  // bound of one spin: follows how long answers take
  std::atomic<int> late_calls_{0};
  fiber::WaitQueue late_queue_;  // woken when a late call is done
  gofer::HelloReply hello_ = {};
  absl::Mutex mutex_;  // leaf
  std::vector<gofer::Handle> forgotten_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
