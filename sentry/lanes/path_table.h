// The table of what look-ups of paths give, of one domain (platform/path_lane.h).
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/path_lane.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/lanes/path_words.h"

namespace sentry {

// A domain is a set of processes that find the same whatever they look up, and may. Written by the
// sentry alone, which never reads back what a process could have written. Thread-safe; the lock is
// a leaf.
class PathTable : public base::RefCounted {
 public:
  // The table of the domain of this name, in which paths begin at the root of mount `root_mount`;
  // made if there is none. It keeps `owner`, whose address is a part of the name. ENOMEM, ENOSPC:
  // there are too many.
  static base::Result<base::Ref<PathTable>> OfDomain(const std::string& name, int root_mount,
                                                     base::Ref<base::RefCounted> owner);

  int root_mount() const { return root_mount_; }
  // Sealed: nobody maps it writable any more.
  const base::Ref<base::HostFd>& file() const { return file_; }
  const platform::PathTable* memory() const { return memory_; }

  // A place for a working directory: its name, or 0. And its end.
  uint64_t NewPlace(uint64_t directory);
  void SetPlace(uint64_t name, uint64_t directory);
  void FreePlace(uint64_t name);

  // Somebody has asked for what has this hash. True if the outcome is to be published now: it was
  // asked for before, and not tried in vain lately.
  bool Asked(uint64_t hash);
  // How that ended.
  void Tried(uint64_t hash, bool published);

  // What things are as they are now.
  uint64_t epoch() const { return __atomic_load_n(&memory_->epoch, __ATOMIC_SEQ_CST); }
  uint64_t ValueOf(uint32_t word) const {
    return __atomic_load_n(&memory_->words[word], __ATOMIC_SEQ_CST);
  }
  // Enters an outcome, with all but `sequence`, `hash`, `directory`, `path_length` and the path in
  // `entry` set; `link` is the text of the link that it is, or empty.
  void Publish(const platform::PathQuery& query, const platform::PathEntry& entry,
               const std::string& link);

 private:
  friend class PathWord;
  friend void AllPathsChanged();
  struct Filter {
    uint16_t tag;
    uint8_t skip;   // so many times it is not to be published
    uint8_t tries;  // how often it was
  };

  PathTable(base::Ref<base::HostFd> file, platform::PathTable* memory, int root_mount,
            base::Ref<base::RefCounted> owner, uint32_t number);
  ~PathTable() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  static base::Result<base::Ref<PathTable>> New(int root_mount, base::Ref<base::RefCounted> owner);
  Filter* FilterOf(uint64_t hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The number of an entry that nothing leads to.
  uint32_t TakeEntry(platform::PathBucket* bucket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const base::Ref<base::HostFd> file_;
  platform::PathTable* const memory_;
  const int root_mount_;
  const base::Ref<base::RefCounted> owner_;
  const uint32_t number_;  // its bit in PathWord::tables_
  absl::Mutex mutex_;
  uint32_t used_ ABSL_GUARDED_BY(mutex_) = 0;  // entries
  uint32_t oldest_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t charge_ ABSL_GUARDED_BY(mutex_) = 0;
  // Where an entry is named: the bucket's way.
  std::vector<uint64_t*> named_ ABSL_GUARDED_BY(mutex_);
  std::bitset<platform::kPathPlaces> places_ ABSL_GUARDED_BY(mutex_);
  std::vector<Filter> filter_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
