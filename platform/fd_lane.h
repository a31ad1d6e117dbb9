// What the stub knows of descriptors: where they stand in tables of paths (path_lane.h), the
// attributes of what they lead to, and which of them it may close. In the mailbox, and written by
// the sentry, but for what the stub has closed. Compiled into both; freestanding.
//
// Closing without the sentry. The sentry lends the closing of a descriptor to the stubs of its
// table if nobody outside that table can tell when it is closed: a file or directory open for
// reading that nobody locks, watches or has removed. close(2) is then one bit that the stub takes
// away. Whoever takes it has closed the descriptor, whether that is a thread in its stub or the
// sentry for dup2(2) and the like, so a number is never closed twice, nor another file than the
// one that stood there when the bit went. Nothing is told to anybody:
// - The sentry looks at these bits whenever it looks at the table, whichever process asks, and
//   before it installs or removes anything it takes over what was closed. So the lowest free
//   number, EBADF, limits, fork, exec and /proc are what they would be.
// - The stub answers nothing more by the descriptor (FdIsClosed); such calls are the sentry's.
// - The description lives on until then. Before anybody could see that, closing is taken back: when
//   the file is locked or loses a name (Inode::SeeCloses), when somebody watches files by inotify.
//   umount(2) takes over first what is closed anywhere (FdTable::TakeAllClosed).
// - Of an address space that ends, what was closed is kept (FdPlaces::Unbind).
// A guest that forges these bits closes its own descriptors, or believes that it has.
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

inline constexpr uint32_t kCloseFds = 256;  // descriptors below this may be closed by the stub
inline constexpr uint32_t kCloseWords = kCloseFds / 64;

// A bit for each descriptor. What is lent and not open was closed by the stub.
struct alignas(64) FdCloses {
  uint64_t lent[kCloseWords];
  uint64_t open[kCloseWords];
  // The threads with this Slot::fd_places may close; 0: nobody.
  uint64_t owner;
};
static_assert(sizeof(FdCloses) == 128);

// An address space whose platform closes descriptors so implements this class besides.
class ClosesFds {
 public:
  virtual ~ClosesFds() = default;
  // Lives as long as the address space. Null: it does not.
  virtual FdCloses* Closes() = 0;
};

inline uint64_t FdBit(uint32_t fd) { return uint64_t{1} << (fd % 64); }

// For the stub of threads of `owner`. True: the descriptor was open, and this has closed it.
inline bool CloseFd(FdCloses* closes, uint64_t owner, uint32_t fd) {
  if (owner == 0 || fd >= kCloseFds || PathLoad(&closes->owner) != owner) return false;
  const uint64_t bit = FdBit(fd);
  return (__atomic_fetch_and(&closes->open[fd / 64], ~bit, __ATOMIC_SEQ_CST) & bit) != 0;
}

// A stub has closed it, and the sentry has not taken that over yet.
inline bool FdIsClosed(const FdCloses* closes, uint32_t fd) {
  if (fd >= kCloseFds) return false;
  return (PathLoad(&closes->lent[fd / 64]) & ~PathLoad(&closes->open[fd / 64]) & FdBit(fd)) != 0;
}

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
