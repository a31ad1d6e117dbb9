// Where in tables of paths the descriptors of one address space stand, and which of them its stub
// may close (platform/fd_lane.h).
#pragma once

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/fd_lane.h"
#include "platform/platform.h"
#include "sentry/base/ref.h"

namespace sentry {

// Joins an address space and one table of descriptors, until the space goes. Whose table of paths
// the process uses has nothing to do with it: the number of a place is the same in each.
// Thread-safe; the lock is a leaf.
class FdPlaces : public base::RefCounted {
 public:
  // `space` is alive until Unbind.
  explicit FdPlaces(platform::AddressSpace* space);

  // For platform::Context::SetFdPlaces.
  uint64_t owner() const { return owner_; }
  bool live() const;
  // `table` is the one whose descriptors are meant. False: another is. It says when it goes, and
  // has no descriptors then.
  bool Claim(const base::RefCounted* table);
  void Leave(const base::RefCounted* table);
  // Descriptor `fd` leads to what has this number; platform::kPathNowhere: to nothing known.
  void Set(int fd, uint64_t place);

  // A set of descriptors below platform::kCloseFds.
  using Fds = std::array<uint64_t, platform::kCloseWords>;
  // The stub may close descriptor `fd`. False: it cannot.
  bool LendClose(int fd);
  // It may not any more. True: it has closed it.
  bool RecallClose(int fd);
  // It has closed it, which nobody has taken over yet.
  bool IsClosed(int fd) const;
  // Takes over what it has closed: what is told is lent no more.
  Fds TakeClosed();

  // The space goes, or to another program. What it has closed is kept until it is taken over.
  // Idempotent.
  void Unbind();

 private:
  ~FdPlaces() override = default;
  uint64_t ClosedIn(size_t word) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void Recall(size_t word, uint64_t bits) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  const uint64_t owner_;
  mutable absl::Mutex mutex_;
  platform::AddressSpace* space_ ABSL_GUARDED_BY(mutex_);
  const base::RefCounted* table_ ABSL_GUARDED_BY(mutex_) = nullptr;
  platform::FdCloses* closes_ ABSL_GUARDED_BY(mutex_);  // null: the stub closes nothing
  bool lends_ ABSL_GUARDED_BY(mutex_) = false;          // closes_ is its
  Fds lent_ ABSL_GUARDED_BY(mutex_) = {};
  Fds closed_ ABSL_GUARDED_BY(mutex_) = {};  // of lent_, once the space is gone
};

}  // namespace sentry
