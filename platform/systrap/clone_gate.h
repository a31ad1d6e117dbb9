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

  // The host thread `tid` may clone once with these flags. It may ask more often: a clone that a
  // signal interrupts, or a stop by the host, begins anew, and nothing here shows whether one
  // before has come to its end.
  void Expect(int tid, uint64_t flags);
  // It may not any more. True if it has asked more often than was expected.
  bool Forget(int tid);
  // The host thread `tid` asks to clone with these flags; whether it may.
  bool Take(int tid, uint64_t flags);

 private:
  struct Allowance {
    bool threads = false, forks = false;
    uint32_t expected = 0, asked = 0;
  };

  void Run();
  void AnswerOne();

  int listener_ = -1;
  base::UniqueFd stop_fd_;
  std::thread thread_;

  absl::Mutex mu_;
  absl::flat_hash_map<int, Allowance> allowed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
