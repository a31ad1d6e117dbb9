// The bytes of small files, kept so that opening and reading one again costs no host call. Internal
// to sentry/fs/gofer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"

namespace sentry {

class GoferInode;

// All bytes of a file as they were at one of its versions (GoferInode::DataVersion). Immutable.
class GoferContent : public base::RefCounted {
 public:
  static constexpr size_t kMax = 16 * 1024;  // a longer file has none

  GoferContent(uint64_t version, std::span<const std::byte> bytes);
  uint64_t version() const { return version_; }
  size_t size() const { return size_; }
  // The bytes from `offset` on.
  std::span<const std::byte> From(uint64_t offset) const {
    return std::span(bytes_.get(), size_).subspan(offset < size_ ? offset : size_);
  }

 private:
  const uint64_t version_;
  const size_t size_;
  const std::unique_ptr<std::byte[]> bytes_;
};

// The inodes of one filesystem that keep the bytes of their files. When those of the whole sandbox
// take too much memory, some inode loses its own: any, since who walks a tree again and again that
// is larger than the bound would never find what was seen longest ago. Thread-safe; a leaf.
class GoferContents {
 public:
  // `inode` keeps `size` bytes. False if there is no room.
  bool Enter(GoferInode* inode, size_t size);
  void Leave(GoferInode* inode);

 private:
  struct Entry {
    GoferInode* inode;
    size_t size;
  };
  void EraseLocked(size_t at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint32_t random_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace sentry
