// The stream lanes that one address space has.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/file_lane.h"
#include "platform/lane_epoll.h"
#include "platform/platform.h"
#include "sentry/base/ref.h"
#include "sentry/lanes/arena.h"

namespace sentry {

// An epoll instance that processes change without the sentry (platform/lane_epoll.h).
class LaneWatcher {
 public:
  // Takes over what they have changed. May park.
  virtual void TakeLaneChanges() = 0;

 protected:
  ~LaneWatcher() = default;
};

// The position of an open file that a stub has been given. Used by the binding, under its lock.
class PositionLease : public base::RefCounted {
 private:
  friend class LaneBinding;
  int fd_ = -1;
  uint64_t name_ = 0;
  uint64_t offset_ = 0;  // where it was when it was given, or is since it came back
  bool out_ = false;
};

// Joins an address space, one table of descriptors, and the arena of the process's domain, until
// the space goes or the process stops being the equal of the others. Thread-safe; the lock is a
// leaf.
class LaneBinding : public base::RefCounted {
 public:
  // `space` is alive until Unbind.
  LaneBinding(platform::AddressSpace* space, base::Ref<LaneArena> arena)
      : arena_(std::move(arena)), space_(space) {}

  LaneArena& arena() const { return *arena_; }
  bool live() const;
  // `table` is the one whose descriptors are meant. False: another is. It says when it goes.
  bool Claim(base::RefCounted* table);
  void Leave(base::RefCounted* table);
  base::Ref<base::RefCounted> table();  // null: there is none any more
  // Descriptor `fd` leads to the lanes of these names; 0: to none.
  void Set(int fd, uint64_t in, uint64_t out);
  // Which it leads to (platform::WatchedLane).
  uint64_t NameOf(int fd) const;

  // --- regular files (platform/file_lane.h) ---
  // The file of descriptor `fd` is so long, and its bytes are those of the source with this number
  // (0: none), until HideFile or Set of the descriptor. The name of that; 0: the stub is not told.
  // `begin`: the first of its bytes, which the stub gets as well; at most kFileBeginSize.
  uint64_t ShowFile(int fd, uint64_t size, uint64_t source, std::span<const std::byte> begin = {});
  // Whether a file that is opened for reading is to be shown with its first bytes: what was given
  // in that way has mostly been read.
  bool WantsBegin();
  void HideFile(int fd, uint64_t name);
  // Gives the position of descriptor `fd`'s file to the stub, at `offset`. Null: it does not take
  // it. It comes back with TakePosition, or when the descriptor or the space goes.
  base::Ref<PositionLease> LendPosition(int fd, uint64_t offset);
  // Where it is; the stub has it no more. Whatever the guest has made of it.
  uint64_t TakePosition(PositionLease& lease);

  // A place for the instance at descriptor `fd`, which is none yet; `watcher` is a part of
  // `holder`, and calls RemoveWatcher before it goes. -1: there is none.
  int AddWatcher(base::RefCounted& holder, LaneWatcher& watcher);
  void RemoveWatcher(int place);
  // Calls f(platform::LaneEpoll&) of a place with the lock held, so it must be short. False: the
  // space is gone.
  template <typename F>
  bool WithEpoll(int place, F f) {
    absl::MutexLock lock(&mutex_);
    if (space_ == nullptr) return false;
    f(*space_->LaneEpollAt(static_cast<uint32_t>(place)));
    return true;
  }

  // No descriptor leads to a lane any more, and who waits for what a thread of the space has done
  // to one looks again. Idempotent. Not with locks held.
  void Unbind();

 private:
  ~LaneBinding() override = default;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);

  const base::Ref<LaneArena> arena_;
  mutable absl::Mutex mutex_;
  platform::AddressSpace* space_ ABSL_GUARDED_BY(mutex_);
  base::RefCounted* table_ ABSL_GUARDED_BY(mutex_) = nullptr;
  struct Watcher {
    base::RefCounted* holder = nullptr;
    LaneWatcher* watcher = nullptr;
  };
  std::array<Watcher, platform::kLaneEpolls> watchers_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> names_ ABSL_GUARDED_BY(mutex_);
  struct File {
    uint64_t name = 0;
    int begin = -1;  // the place of its first bytes; -1: it has none
    base::Ref<PositionLease> lease;
  };
  platform::FileLane* LaneOf(int fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null: the stub can know nothing of it.
  File* FileOf(int fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeBack(PositionLease& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetFile(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Hide(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  platform::FileBegin PutBegin(size_t fd, std::span<const std::byte> begin)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<File> files_ ABSL_GUARDED_BY(mutex_);
  // Whose first bytes stand at which place, -1: nobody's; and the one that is taken next.
  std::array<int, platform::kFileBegins> begins_ ABSL_GUARDED_BY(mutex_) = {-1, -1, -1, -1};
  uint32_t next_begin_ ABSL_GUARDED_BY(mutex_) = 0;
  static constexpr int kBeginCredit = 2, kMostBeginCredit = 8;
  int begin_credit_ ABSL_GUARDED_BY(mutex_) = kBeginCredit;
  uint32_t opens_without_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace sentry
