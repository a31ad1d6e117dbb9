// What an open file keeps of the bytes it read last. Internal to sentry/fs/gofer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace sentry {

class GoferInode;

// Small reads next to each other (a header, records, a line at a time) are served from one block
// that was read at once, and the end of the file, once found, is not looked for again. Both hold as
// long as the inode's DataVersion stays what it was. The memory of all blocks together is bounded.
// Thread-safe.
class GoferReadBlock {
 public:
  static constexpr size_t kMaxRead = 4096;  // what counts as small

  GoferReadBlock() = default;
  ~GoferReadBlock();
  GoferReadBlock(const GoferReadBlock&) = delete;
  GoferReadBlock& operator=(const GoferReadBlock&) = delete;

  // The answer to a read of `size` bytes at `offset`, if it is known: how many bytes there are,
  // copied to `buffer` (0: end of file, and `size` may then be more than kMaxRead). Reads a block
  // from the host's `fd` when that is likely to pay; may park the fiber.
  std::optional<size_t> Read(GoferInode& inode, int fd, char* buffer, size_t size, uint64_t offset);

  // The host said, while the inode's version was `version`, that the file ends at `end`.
  void SetEnd(uint64_t version, uint64_t end);

 private:
  // True if this read continues the ones before, near by.
  bool Likely(uint64_t offset, size_t size);
  std::optional<size_t> Find(uint64_t version, char* buffer, size_t size, uint64_t offset);

  absl::Mutex mutex_;  // leaf
  std::unique_ptr<char[]> bytes_ ABSL_GUARDED_BY(mutex_);
  uint64_t start_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t length_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t end_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;  // of the file, at end_version_
  uint64_t end_version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t near_ ABSL_GUARDED_BY(mutex_) = 0;  // where the last small read was
  uint32_t near_reads_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace sentry
