// What a walk of a tree is likely to ask for next. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gofer/protocol.h"
#include "sentry/base/ref.h"
#include "sentry/fs/gofer/connection.h"

namespace sentry {

// A page of a directory with its nodes that is not waited for. Their handles go back if nobody
// takes the answer.
class GoferLateNodes : public GoferLateCall {
 public:
  // Asks for the first page of the directory `handle`.
  static base::Ref<GoferLateNodes> Begin(GoferConnection* connection, gofer::Handle handle);

 private:
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  explicit GoferLateNodes(GoferConnection* connection) : connection_(connection) {}
  ~GoferLateNodes() override;
  GoferConnection* const connection_;
};

// A directory that is read before it is asked for. Immutable.
struct GoferReading : base::RefCounted {
  uint64_t ino = 0;       // on the host
  uint64_t version = 0;   // of its names, when it was asked for
  uint64_t outdated = 0;  // GoferTreeWalk::outdated() then
  base::Ref<GoferLateNodes> call;
};

// Who walks a tree (find, grep -r, tar, du) lists one directory after the other, in the order of
// the listings, and looks at the files in each. So a listing brings the files' attributes while
// such look-ups follow, and the gofer reads the next directory while the guest is in this one, once
// the next ones were as foreseen. Of an exclusive mount alone, where nobody else makes what was
// read untrue. Thread-safe.
class GoferTreeWalk {
 public:
  // A file in a directory that was listed is looked at.
  void SawLookup() {
    if (expected_.load(std::memory_order_relaxed) != kExpected) {
      expected_.store(kExpected, std::memory_order_relaxed);
    }
  }
  // Some names in a directory that was listed are looked up, perhaps those of directories alone.
  void SawLookups() {
    if (expected_.load(std::memory_order_relaxed) < kPerhaps) {
      expected_.store(kPerhaps, std::memory_order_relaxed);
    }
  }
  // The directory `ino` is about to be listed: what was read of it before, if it was foreseen.
  base::Ref<GoferReading> BeginList(uint64_t ino);
  // Whether a listing is to bring its nodes; counts.
  bool WantsNodes();
  // The directory `ino` is likely to be listed next. True if it is to be read now.
  bool Foresee(uint64_t ino);
  // What was read before, if nobody has asked for it, is dropped.
  void Keep(base::Ref<GoferReading> reading);

  // How often an inode whose file was changed here has gone: attributes that were read before then
  // may be the old ones.
  uint64_t outdated() const { return outdated_.load(std::memory_order_acquire); }
  void DroppedChanged() { outdated_.fetch_add(1, std::memory_order_acq_rel); }

 private:
  // So many listings without a look-up are believed to be followed by some.
  static constexpr int kExpected = 8;
  static constexpr int kPerhaps = 2;
  static constexpr int kHitsBeforeReading = 2;
  static constexpr int kMaxHits = 4;

  std::atomic<int> expected_{0};
  std::atomic<uint64_t> outdated_{0};
  absl::Mutex mutex_;  // leaf
  uint64_t foreseen_ ABSL_GUARDED_BY(mutex_) = 0;
  int hits_ ABSL_GUARDED_BY(mutex_) = 0;
  base::Ref<GoferReading> reading_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
