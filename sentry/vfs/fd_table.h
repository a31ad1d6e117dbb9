// FdTable: descriptors of a process (Linux: files_struct), shared with CLONE_FILES.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/binding.h"
#include "sentry/lanes/fd_places.h"
#include "sentry/vfs/file_description.h"

namespace sentry {

class FdTable : public base::RefCounted {
 public:
  FdTable() = default;
  // A copy for fork or unshare(CLONE_FILES).
  base::Ref<FdTable> Fork() const;

  // EBADF through null.
  base::Ref<FileDescription> Get(int fd) const;
  base::Ref<FileDescription> Get(int fd, bool* cloexec) const;
  // Lowest free descriptor >= min; EMFILE at `limit` (RLIMIT_NOFILE).
  base::Result<int> Install(base::Ref<FileDescription> file, bool cloexec, int min, uint64_t limit);
  // dup2/dup3: replaces what stands at `fd`; EBADF at or above `limit`. The replaced one is closed.
  base::Status InstallAt(int fd, base::Ref<FileDescription> file, bool cloexec, uint64_t limit);
  // Removes and returns it (caller calls OnClose and releases POSIX locks); null: EBADF.
  base::Ref<FileDescription> Remove(int fd);
  // close(2): Remove, release of the table's POSIX locks on the file, OnClose. EBADF.
  base::Status Close(int fd);
  // What close(2) does with a description that was removed from this table.
  base::Status Finish(const base::Ref<FileDescription>& file);
  base::Status SetCloexec(int fd, bool cloexec);
  // Removes all with close-on-exec (exec), or all in a range (close_range), or everything (exit).
  // The caller passes each to Finish.
  std::vector<base::Ref<FileDescription>> RemoveCloexec();
  std::vector<base::Ref<FileDescription>> RemoveRange(uint32_t first, uint32_t last);
  void SetCloexecRange(uint32_t first, uint32_t last);
  // Open descriptors in order.
  std::vector<int> List() const;
  size_t size() const;  // one past the highest open descriptor
  // Descriptor `fd`, if it is still `file`'s, leads to the lanes of these names, as long as it is.
  // False: another address space than that of `binding` has the lanes of this table.
  bool SetLanes(int fd, const FileDescription* file, const base::Ref<LaneBinding>& binding,
                uint64_t in, uint64_t out);
  // The same for a regular file: its readers are told by `lent` how it is.
  bool ShowFile(int fd, const FileDescription* file, const base::Ref<LaneBinding>& binding,
                LentFile& lent, uint64_t size, uint64_t source, std::span<const std::byte> begin);
  // The same for its place in tables of paths (FsContext::NumberOf): false if the descriptors of
  // another table, or of this one in another address space, have theirs.
  bool SetPlace(int fd, const FileDescription* file, const base::Ref<FdPlaces>& places,
                uint64_t place);
  // None has one any more: who uses the table goes to another address space.
  void LeavePlaces();
  // The stubs of `places` may close descriptor `fd`, if it still leads to `file`
  // (platform/fd_lane.h). False: they must not. What they have closed is gone for all other
  // methods.
  bool LendClose(int fd, const FileDescription& file, const base::Ref<FdPlaces>& places);
  // For all tables: takes back what is lent of `inode`, null: of any; and lets go what was closed.
  // Whoever calls sees to it that no more is lent. Not with locks held.
  static void RecallCloses(const Inode* inode);
  // For all tables: lets go what was closed so far.
  static void TakeAllClosed();
  // Descriptor `fd` is `file`'s, and leads to lanes.
  bool HasLanes(int fd, const FileDescription* file) const;
  // Keeps a description whose descriptor is about to go for those calls that wait for its lanes.
  // Called with the table's lock held; set once at the start, by the kernel.
  using LaneKeeper = void (*)(int fd, const base::Ref<FileDescription>& file);
  static void SetLaneKeeper(LaneKeeper keeper);
  // Changes with every install, remove or flag change; for publication to express lanes.
  uint64_t version() const { return version_.load(std::memory_order_acquire); }

 private:
  struct Entry {
    base::Ref<FileDescription> file;
    bool cloexec = false;
    bool has_lanes = false;
    bool has_place = false;
    bool lent = false;  // to be closed by a stub of places_
  };
  // Descriptions that stubs have closed, to be dropped without the lock. Nothing else is to be done
  // about them.
  using Closed = absl::InlinedVector<base::Ref<FileDescription>, 4>;
  class Lenders;
  ~FdTable() override;  // closes all
  std::vector<base::Ref<FileDescription>> TakeLocked(size_t first, size_t last, bool cloexec_only,
                                                     Closed* closed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsClosed(size_t fd) const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return entries_[fd].lent && places_->IsClosed(static_cast<int>(fd));
  }
  // Takes over what the stub has closed.
  void TakeClosed(Closed* closed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(size_t fd, Closed* closed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TrimEnd() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The stub may not close it any more. True: it has closed it.
  bool RecallClose(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecallClosesOf(const Inode* inode, Closed* closed);
  bool BindPlaces(const base::Ref<FdPlaces>& places, Closed* closed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LeavePlacesLocked(Closed* closed) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Bind(const base::Ref<LaneBinding>& binding) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetPlace(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetLanes(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HideLanes(size_t fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  mutable absl::Mutex mutex_;
  base::Ref<LaneBinding> lanes_ ABSL_GUARDED_BY(mutex_);
  base::Ref<FdPlaces> places_ ABSL_GUARDED_BY(mutex_);
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  size_t next_free_ ABSL_GUARDED_BY(mutex_) = 0;  // none is free below
  size_t lent_ ABSL_GUARDED_BY(mutex_) = 0;       // entries
  std::atomic<bool> lends_{false};                // it is one of the lenders
  std::atomic<uint64_t> version_{0};
};

}  // namespace sentry
