// Where in tables of paths the descriptors of one address space stand.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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
  // The space goes, or to another program. Idempotent.
  void Unbind();

 private:
  ~FdPlaces() override = default;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  const uint64_t owner_;
  mutable absl::Mutex mutex_;
  platform::AddressSpace* space_ ABSL_GUARDED_BY(mutex_);
  const base::RefCounted* table_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace sentry
