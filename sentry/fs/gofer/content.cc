#include "sentry/fs/gofer/content.h"

#include <algorithm>
#include <atomic>

#include "sentry/fs/gofer/inode.h"

namespace sentry {
namespace {

// Of all files of the sandbox, with what keeping one costs besides.
constexpr size_t kMaxBytes = 8 * 1024 * 1024;
constexpr size_t kEntryBytes = 128;

std::atomic<size_t> g_bytes{0};

}  // namespace

GoferContent::GoferContent(uint64_t version, std::span<const std::byte> bytes)
    : version_(version),
      size_(bytes.size()),
      bytes_(std::make_unique_for_overwrite<std::byte[]>(size_)) {
  std::ranges::copy(bytes, bytes_.get());
}

void GoferContents::EraseLocked(size_t at) {
  Entry& entry = entries_[at];
  g_bytes.fetch_sub(entry.size, std::memory_order_relaxed);
  entry.inode->content_at_.reset();
  if (at + 1 < entries_.size()) {
    entry = entries_.back();
    entry.inode->content_at_ = at;
  }
  entries_.pop_back();
}

bool GoferContents::Enter(GoferInode* inode, size_t size) {
  size += kEntryBytes;
  std::vector<base::Ref<GoferInode>> victims;  // lose theirs after the lock
  bool room = true;
  {
    absl::MutexLock l(&mutex_);
    if (inode->content_at_) EraseLocked(*inode->content_at_);
    g_bytes.fetch_add(size, std::memory_order_relaxed);
    while (!entries_.empty() && g_bytes.load(std::memory_order_relaxed) > kMaxBytes) {
      random_ = random_ * 1664525 + 1013904223;
      const size_t at = (random_ >> 8) % entries_.size();
      GoferInode* victim = entries_[at].inode;
      EraseLocked(at);
      if (victim->TryIncRef()) victims.push_back(base::Ref<GoferInode>::Adopt(victim));
    }
    room = g_bytes.load(std::memory_order_relaxed) <= kMaxBytes;
    if (room) {
      inode->content_at_ = entries_.size();
      entries_.push_back({inode, size});
    } else {
      g_bytes.fetch_sub(size, std::memory_order_relaxed);
    }
  }
  for (const auto& victim : victims) victim->DropContent();
  return room;
}

void GoferContents::Leave(GoferInode* inode) {
  absl::MutexLock l(&mutex_);
  if (inode->content_at_) EraseLocked(*inode->content_at_);
}

}  // namespace sentry
