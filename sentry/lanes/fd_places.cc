#include "sentry/lanes/fd_places.h"

#include <atomic>
#include <utility>

namespace sentry {
namespace {

using platform::FdBit;
using platform::FdCloses;

std::atomic<uint64_t> g_owners{1};

FdCloses* ClosesOf(platform::AddressSpace* space) {
  auto* closes = dynamic_cast<platform::ClosesFds*>(space);
  return closes == nullptr ? nullptr : closes->Closes();
}

size_t WordOf(int fd) { return static_cast<size_t>(fd) / 64; }
uint64_t BitOf(int fd) { return FdBit(static_cast<uint32_t>(fd)); }

void Clear(FdCloses* closes) {
  __atomic_store_n(&closes->owner, uint64_t{0}, __ATOMIC_SEQ_CST);
  for (size_t i = 0; i < platform::kCloseWords; i++) {
    __atomic_store_n(&closes->open[i], uint64_t{0}, __ATOMIC_SEQ_CST);
    __atomic_store_n(&closes->lent[i], uint64_t{0}, __ATOMIC_SEQ_CST);
  }
}

}  // namespace

FdPlaces::FdPlaces(platform::AddressSpace* space)
    : owner_(g_owners.fetch_add(1, std::memory_order_relaxed)),
      space_(space),
      closes_(ClosesOf(space)) {}

bool FdPlaces::live() const {
  absl::MutexLock lock(&mutex_);
  return space_ != nullptr;
}

bool FdPlaces::Claim(const base::RefCounted* table) {
  absl::MutexLock lock(&mutex_);
  if (space_ == nullptr) return false;
  if (table_ == nullptr) table_ = table;
  return table_ == table;
}

void FdPlaces::Leave(const base::RefCounted* table) {
  absl::MutexLock lock(&mutex_);
  if (table_ == table) table_ = nullptr;
}

void FdPlaces::Set(int fd, uint64_t place) {
  absl::MutexLock lock(&mutex_);
  if (space_ != nullptr) space_->SetPlaceOfFd(fd, owner_, place);
}

bool FdPlaces::LendClose(int fd) {
  absl::MutexLock lock(&mutex_);
  if (closes_ == nullptr || fd < 0 || static_cast<uint32_t>(fd) >= platform::kCloseFds) {
    return false;
  }
  if (!std::exchange(lends_, true)) {
    Clear(closes_);
    __atomic_store_n(&closes_->owner, owner_, __ATOMIC_SEQ_CST);
  }
  const size_t word = WordOf(fd);
  lent_[word] |= BitOf(fd);
  // In this order, or who reads by the descriptor would take it for open when it is closed again.
  __atomic_store_n(&closes_->lent[word], lent_[word], __ATOMIC_RELEASE);
  __atomic_fetch_or(&closes_->open[word], BitOf(fd), __ATOMIC_SEQ_CST);
  return true;
}

// What the guest says of others than the lent ones counts for nothing.
uint64_t FdPlaces::ClosedIn(size_t word) const {
  if (lent_[word] == 0) return 0;
  if (closes_ == nullptr) return closed_[word];
  return lent_[word] & ~__atomic_load_n(&closes_->open[word], __ATOMIC_SEQ_CST);
}

// Of those that the stub has closed, or cannot close any more.
void FdPlaces::Recall(size_t word, uint64_t bits) {
  lent_[word] &= ~bits;
  closed_[word] &= ~bits;
  if (closes_ != nullptr) __atomic_store_n(&closes_->lent[word], lent_[word], __ATOMIC_RELEASE);
}

bool FdPlaces::RecallClose(int fd) {
  const size_t word = WordOf(fd);
  const uint64_t bit = BitOf(fd);
  absl::MutexLock lock(&mutex_);
  if (word >= lent_.size() || (lent_[word] & bit) == 0) return false;
  // Whoever takes the bit away has closed it.
  const uint64_t open = closes_ == nullptr
                            ? ~closed_[word]
                            : __atomic_fetch_and(&closes_->open[word], ~bit, __ATOMIC_SEQ_CST);
  Recall(word, bit);
  return (open & bit) == 0;
}

bool FdPlaces::IsClosed(int fd) const {
  if (WordOf(fd) >= platform::kCloseWords) return false;
  absl::ReaderMutexLock lock(&mutex_);
  return (ClosedIn(WordOf(fd)) & BitOf(fd)) != 0;
}

FdPlaces::Fds FdPlaces::TakeClosed() {
  Fds taken = {};
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < taken.size(); i++) {
    taken[i] = ClosedIn(i);
    if (taken[i] != 0) Recall(i, taken[i]);
  }
  return taken;
}

void FdPlaces::Unbind() {
  absl::MutexLock lock(&mutex_);
  if (closes_ != nullptr && lends_) {
    // A thread may be here still, of another process: from now on it closes nothing.
    for (size_t i = 0; i < closed_.size(); i++) {
      closed_[i] =
          lent_[i] & ~__atomic_exchange_n(&closes_->open[i], uint64_t{0}, __ATOMIC_SEQ_CST);
    }
    Clear(closes_);
  }
  closes_ = nullptr;
  space_ = nullptr;
}

}  // namespace sentry
