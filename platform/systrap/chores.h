// Work for a moment in which the poller has nothing better to do: ending and burying stubs that no
// guest needs any more, making mailboxes for forks to come, having the pool filled.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/systrap/stub_process.h"
#include "platform/systrap/stub_shell.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace platform {

class SystrapPlatform;

// Thread-safe. What is put off never waits for long: beyond kMaxPending its giver does the oldest
// piece itself, and the poller does one every so many polls however busy it is.
class Chores {
 public:
  explicit Chores(SystrapPlatform* platform) : platform_(platform) {}
  Chores(const Chores&) = delete;
  Chores& operator=(const Chores&) = delete;
  ~Chores();

  // What is left of a process that has been reaped, or never began.
  struct Remains {
    StubShell shell;
    base::UniqueFd pidfd;
  };
  void Kill(base::Ref<StubProcess> process);
  void Bury(Remains remains);
  // The pool has given a stub away.
  void FillPool();

  // A process without a host process, for a fork; made now if none is ready. Errors: the host's.
  base::Result<base::Ref<StubProcess>> TakeMailbox();

  // Costs nothing if there are none.
  bool pending() const { return pending_.load(std::memory_order_relaxed) != 0; }
  // Does one, for some 5 to 60 us; false if there was none.
  bool DoOne();

 private:
  static constexpr size_t kMaxPending = 8;
  static constexpr size_t kReadyMailboxes = 2;

  void DoOldestBeyondLimit();

  SystrapPlatform* const platform_;
  std::atomic<size_t> pending_{0};
  absl::Mutex mu_;
  std::deque<base::Ref<StubProcess>> to_kill_ ABSL_GUARDED_BY(mu_);
  std::deque<Remains> to_bury_ ABSL_GUARDED_BY(mu_);
  bool fill_pool_ ABSL_GUARDED_BY(mu_) = false;
  size_t wanted_ ABSL_GUARDED_BY(mu_) = 0;  // mailboxes to be made
  std::vector<base::Ref<StubProcess>> ready_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
