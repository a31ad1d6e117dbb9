// What the stub knows of descriptors: where they stand in tables of paths (path_lane.h), and the
// attributes of what they lead to. In the mailbox, and written by the sentry. Compiled into both;
// freestanding.
#pragma once

#include <cstdint>

#include "platform/path_lane.h"

namespace platform {

// For the threads whose Slot::fd_places is `owner`, a name that is given once.
struct FdPlace {
  uint64_t owner;
  uint64_t place;  // its number, or kPathNowhere
};
inline constexpr uint32_t kPlaceFds = 1024;

// The attributes of what stood at a descriptor, for as long as the words that they depend on have
// these values. It stands there still if that is its FdPlace.
struct FdAttr {
  uint32_t sequence;  // odd: being written
  uint16_t steps;
  uint16_t used;  // by the stub, once they are of use
  uint64_t place;
  // In whose table the words are: the name of a place of a working directory there
  // (Slot::path_place).
  uint64_t path_place;
  uint64_t mount_id, btime_sec;
  uint32_t btime_nsec;
  uint32_t mount_root;  // it is that of its mount
  PathStep step[kPathAttrWords];
  uint64_t stat[18];  // struct stat
};
static_assert(sizeof(FdAttr) == 256);
inline constexpr uint32_t kAttrFds = 256;

// An address space whose platform answers fstat(2) by such attributes implements this class
// besides.
class FdAttrs {
 public:
  virtual ~FdAttrs() = default;
  // Replaces what is known of descriptor `fd`. Thread-safe.
  virtual void SetAttrOfFd(int fd, const FdAttr& attr) = 0;
  // They have been of use since.
  virtual bool UsedAttrOfFd(int fd) const = 0;
};

// Calls take(attr), which copies what it wants, if these are the attributes of what has this place
// and of the table in which `path_place` is. What it has copied holds if the outcome is true.
template <typename Take>
inline bool TakeFdAttr(const PathTable* table, const FdAttr* attr, uint64_t place,
                       uint64_t path_place, Take take) {
  const uint32_t sequence = PathLoad(&attr->sequence);
  if ((sequence & 1) != 0 || attr->place != place || attr->path_place != path_place) return false;
  take(*attr);
  const uint32_t n = attr->steps;
  if (n > kPathAttrWords || !PathStepsHold(table, attr->step, n)) return false;
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return __atomic_load_n(&attr->sequence, __ATOMIC_RELAXED) == sequence &&
         PathDirectory(table, path_place) != kPathNowhere;
}

}  // namespace platform
