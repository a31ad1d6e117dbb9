// What a stub has of stream lanes (platform/stream_lane.h): the memory that they lie in.
#pragma once

#include <atomic>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"

namespace platform {

// Mapped, and taken away again, in a round of any of the stub's threads. Thread-safe; the lock is a
// leaf.
class LaneMap {
 public:
  // `arena` is to be mapped. False if it will not be: another one is there, or the host refused.
  bool Want(const base::Ref<base::HostFd>& arena);
  // It is.
  bool Has(const base::Ref<base::HostFd>& arena) const;
  // What is mapped goes. A thread that is using a lane meanwhile finds zeros.
  void Drop();

  bool WantsChange() const { return changes_.load(std::memory_order_relaxed); }
  // The change that is due, for a caller who has it made and says so; none if another does.
  struct Change {
    base::Ref<base::HostFd> arena;  // null: nothing but zeros
  };
  std::optional<Change> Take();
  void Made(bool good);

  // The stub is, or will be, a copy of the one that has `other`.
  void InheritFrom(LaneMap& other);

 private:
  void NoteChange() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    changes_.store(!changing_ && wanted_ != present_, std::memory_order_relaxed);
  }
  std::atomic<bool> changes_{false};
  mutable absl::Mutex mu_;
  base::Ref<base::HostFd> wanted_ ABSL_GUARDED_BY(mu_);
  base::Ref<base::HostFd> present_ ABSL_GUARDED_BY(mu_);
  base::Ref<base::HostFd> next_ ABSL_GUARDED_BY(mu_);  // of the change under way
  bool changing_ ABSL_GUARDED_BY(mu_) = false;
  bool refused_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace platform
