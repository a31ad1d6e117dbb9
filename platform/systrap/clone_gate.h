// Lets a stub clone only when it has been ordered to.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"

namespace platform {

// Answers the notifications of the zygote's filter on a thread of its own. What is asked for is in
// registers, so that nobody can change it after it was looked at. Thread-safe.
class CloneGate {
 public:
  CloneGate() = default;
  ~CloneGate() { Stop(); }
  CloneGate(const CloneGate&) = delete;
  CloneGate& operator=(const CloneGate&) = delete;

  // `listener` stays the caller's and open until Stop.
  void Start(int listener);
  void Stop();

  // The host thread `tid` may clone once with these flags.
  void Expect(int tid, uint64_t flags);
  // It may not any more.
  void Forget(int tid);

 private:
  struct Allowance {
    uint32_t threads = 0, forks = 0;
  };

  void Run();
  void AnswerOne();
  bool Take(int tid, uint64_t flags);

  int listener_ = -1;
  base::UniqueFd stop_fd_;
  std::thread thread_;

  absl::Mutex mu_;
  absl::flat_hash_map<int, Allowance> allowed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
