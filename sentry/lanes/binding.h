// The stream lanes that one address space has.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/base/ref.h"
#include "sentry/lanes/arena.h"

namespace sentry {

// Joins an address space, one table of descriptors, and the arena of the process's domain, until the
// space goes or the process stops being the equal of the others. Thread-safe; the lock is a leaf.
class LaneBinding : public base::RefCounted {
 public:
  // `space` is alive until Unbind.
  LaneBinding(platform::AddressSpace* space, base::Ref<LaneArena> arena)
      : arena_(std::move(arena)), space_(space) {}

  LaneArena& arena() const { return *arena_; }
  bool live() const;
  // `table` (never followed) is the one whose descriptors are meant. False: another is.
  bool Claim(const void* table);
  // Descriptor `fd` leads to the lanes of these names; 0: to none.
  void Set(int fd, uint64_t in, uint64_t out);
  // No descriptor leads to a lane any more, and who waits for what a thread of the space has done to
  // one looks again. Idempotent. Not with locks held.
  void Unbind();

 private:
  ~LaneBinding() override = default;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  const base::Ref<LaneArena> arena_;
  mutable absl::Mutex mutex_;
  platform::AddressSpace* space_ ABSL_GUARDED_BY(mutex_);
  const void* table_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::vector<bool> set_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
