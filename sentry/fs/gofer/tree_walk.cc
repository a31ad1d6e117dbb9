#include "sentry/fs/gofer/tree_walk.h"

#include <algorithm>
#include <utility>

namespace sentry {

base::Ref<GoferLateNodes> GoferLateNodes::Begin(GoferConnection* connection, gofer::Handle handle) {
  auto call = base::MakeRef<GoferLateNodes>(connection);
  connection->CallLate(call,
                       gofer::MakeReadDir(handle, 0, gofer::kMaxMessage, gofer::kReadDirNodes));
  return call;
}

GoferLateNodes::~GoferLateNodes() {
  if (!done()) return;
  const auto page = gofer::ParseDir(TakeReply());
  if (!page.ok()) return;
  for (const gofer::Entry& entry : page->entries) {
    if (entry.with == gofer::kWithNode) connection_->Forget(entry.node.handle);
  }
}

base::Ref<GoferReading> GoferTreeWalk::BeginList(uint64_t ino) {
  absl::MutexLock l(&mutex_);
  if (foreseen_ != 0) {
    hits_ = foreseen_ == ino ? std::min(hits_ + 1, kMaxHits) : std::max(hits_ - 1, 0);
    foreseen_ = 0;
  }
  if (!reading_ || reading_->ino != ino) return nullptr;
  return std::move(reading_);
}

bool GoferTreeWalk::WantsNodes() {
  const int left = expected_.load(std::memory_order_relaxed);
  if (left <= 0) return false;
  expected_.store(left - 1, std::memory_order_relaxed);
  return true;
}

bool GoferTreeWalk::Foresee(uint64_t ino) {
  absl::MutexLock l(&mutex_);
  foreseen_ = ino;
  return hits_ >= kHitsBeforeReading && expected_.load(std::memory_order_relaxed) > 0;
}

void GoferTreeWalk::Keep(base::Ref<GoferReading> reading) {
  // What was kept is freed after the lock.
  absl::MutexLock l(&mutex_);
  std::swap(reading_, reading);
}

}  // namespace sentry
