#include "sentry/fs/gofer/read_block.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "sentry/fs/gofer/inode.h"

namespace sentry {
namespace {

constexpr size_t kBlock = 16 * 1024;
constexpr uint64_t kPage = 4096;
// Blocks of all files of the sandbox.
constexpr uint32_t kMaxBlocks = 512;
// So many small reads near each other before a block is read.
constexpr uint32_t kReadsBeforeBlock = 2;

std::atomic<uint32_t> g_blocks{0};

bool TakeBlock() {
  if (g_blocks.fetch_add(1, std::memory_order_relaxed) < kMaxBlocks) return true;
  g_blocks.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

}  // namespace

// Nobody else has it any more.
GoferReadBlock::~GoferReadBlock() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  if (bytes_) g_blocks.fetch_sub(1, std::memory_order_relaxed);
}

void GoferReadBlock::SetEnd(uint64_t version, uint64_t end) {
  absl::MutexLock l(&mutex_);
  end_ = end;
  end_version_ = version;
}

bool GoferReadBlock::Likely(uint64_t offset, size_t size) {
  absl::MutexLock l(&mutex_);
  const uint64_t distance = offset > near_ ? offset - near_ : near_ - offset;
  near_reads_ = distance < kBlock ? near_reads_ + 1 : 0;
  near_ = offset + size;
  return near_reads_ >= kReadsBeforeBlock;
}

std::optional<size_t> GoferReadBlock::Find(uint64_t version, char* buffer, size_t size,
                                           uint64_t offset) {
  absl::MutexLock l(&mutex_);
  const bool end_known = end_version_ == version;
  if (end_known && offset >= end_) return 0;
  if (size > kMaxRead || !bytes_ || version_ != version || offset < start_ ||
      offset - start_ >= length_) {
    return std::nullopt;
  }
  const size_t there = std::min(size, length_ - (offset - start_));
  if (there < size && !(end_known && start_ + length_ == end_)) return std::nullopt;
  memcpy(buffer, bytes_.get() + (offset - start_), there);
  return there;
}

std::optional<size_t> GoferReadBlock::Read(GoferInode& inode, int fd, char* buffer, size_t size,
                                           uint64_t offset) {
  const std::optional<uint64_t> version = inode.DataVersion();
  if (!version) return std::nullopt;
  if (auto found = Find(*version, buffer, size, offset)) return found;
  if (size > kMaxRead || !Likely(offset, size) || !TakeBlock()) return std::nullopt;
  auto bytes = std::make_unique_for_overwrite<char[]>(kBlock);
  const uint64_t start = offset & ~(kPage - 1);
  bool end = false;
  auto n = inode.ReadAt(fd, bytes.get(), kBlock, start, &end);
  if (!n.ok()) {
    g_blocks.fetch_sub(1, std::memory_order_relaxed);
    return std::nullopt;
  }
  {
    absl::MutexLock l(&mutex_);
    if (bytes_) g_blocks.fetch_sub(1, std::memory_order_relaxed);
    bytes_ = std::move(bytes);
    start_ = start;
    length_ = *n;
    version_ = *version;
    if (end) {
      end_ = start + *n;
      end_version_ = *version;
    }
  }
  return Find(*version, buffer, size, offset);
}

}  // namespace sentry
