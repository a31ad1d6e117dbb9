// An open file that a stub reads without the sentry (platform/file_lane.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/lanes/binding.h"
#include "sentry/lanes/path_words.h"

namespace sentry {

// One descriptor of one address space at a time is told how long the file is and where its bytes
// are, until the word of its attributes changes; and has the position, until somebody else asks for
// it. Thread-safe; of the position, whoever holds the description's lock of it. Lock order: the
// word's, its own, the binding's.
class LentFile final : private PathWatcher {
 public:
  explicit LentFile(PathWord& word) : word_(word) {}
  ~LentFile();
  LentFile(const LentFile&) = delete;
  LentFile& operator=(const LentFile&) = delete;

  // Before one looks how the file is: what changes from now on is noticed.
  void Watch();
  // The file was so when one looked. False: perhaps it is not any more, or the stub is not told.
  // `begin`: see LaneBinding::ShowFile.
  bool Show(const base::Ref<LaneBinding>& binding, int fd, uint64_t size, uint64_t source,
            std::span<const std::byte> begin = {});

  // Gives the position to who has been shown the file.
  bool Lend(uint64_t offset);
  // Takes it back: where it is now. Nothing if it is here.
  std::optional<uint64_t> Recall();
  // A read was made by the sentry. False, most of the time, if what was lent came back unused again
  // and again: it is not to be shown.
  bool Pays();
  // It could not be shown.
  void Failed();

 private:
  void WordChanged() override;
  void Hide() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  PathWord& word_;
  absl::Mutex mutex_;
  bool watching_ ABSL_GUARDED_BY(mutex_) = false;  // no change since Watch
  base::Ref<LaneBinding> binding_ ABSL_GUARDED_BY(mutex_);
  int fd_ ABSL_GUARDED_BY(mutex_) = -1;
  uint64_t name_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: it is not shown
  uint64_t source_ ABSL_GUARDED_BY(mutex_) = 0;
  base::Ref<PositionLease> lease_ ABSL_GUARDED_BY(mutex_);
  base::Ref<LaneBinding> lender_ ABSL_GUARDED_BY(mutex_);  // of lease_
  uint64_t lent_at_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t vain_ ABSL_GUARDED_BY(mutex_) = 0;  // how often it came back unused
};

}  // namespace sentry
