#include "sentry/lanes/lent_file.h"

#include <utility>

namespace sentry {
namespace {

// So often it may come back unused; then it is lent once in a while.
constexpr uint32_t kVainMost = 16, kVainSkip = 64;

}  // namespace

LentFile::~LentFile() {
  word_.Forget(*this);
  absl::MutexLock lock(&mutex_);
  Hide();
}

void LentFile::Watch() {
  {
    absl::MutexLock lock(&mutex_);
    if (watching_) return;
    watching_ = true;
  }
  word_.Watch(*this);
}

void LentFile::WordChanged() {
  absl::MutexLock lock(&mutex_);
  watching_ = false;
  Hide();
}

void LentFile::Hide() {
  if (name_ != 0) binding_->HideFile(fd_, name_);
  name_ = 0;
}

bool LentFile::Show(const base::Ref<LaneBinding>& binding, int fd, uint64_t size, uint64_t source,
                    std::span<const std::byte> begin) {
  absl::MutexLock lock(&mutex_);
  if (!watching_) return false;
  if (binding_ != binding || fd_ != fd || source_ != source) Hide();
  if (binding_ != binding || fd_ != fd) vain_++;
  binding_ = binding;
  fd_ = fd;
  source_ = source;
  name_ = binding->ShowFile(fd, size, source, begin);
  return name_ != 0;
}

bool LentFile::Lend(uint64_t offset) {
  absl::MutexLock lock(&mutex_);
  if (binding_ == nullptr || lease_ != nullptr) return false;
  lease_ = binding_->LendPosition(fd_, offset);
  lender_ = binding_;
  lent_at_ = offset;
  return lease_ != nullptr;
}

std::optional<uint64_t> LentFile::Recall() {
  absl::MutexLock lock(&mutex_);
  if (lease_ == nullptr) return std::nullopt;
  const base::Ref<PositionLease> lease = std::move(lease_);
  const uint64_t offset = std::exchange(lender_, nullptr)->TakePosition(*lease);
  vain_ = offset == lent_at_ ? vain_ + 1 : 0;
  return offset;
}

void LentFile::Failed() {
  absl::MutexLock lock(&mutex_);
  vain_++;
}

bool LentFile::Pays() {
  absl::MutexLock lock(&mutex_);
  if (vain_ < kVainMost) return true;
  if (++vain_ < kVainMost + kVainSkip) return false;
  vain_ = kVainMost - 1;
  return true;
}

}  // namespace sentry
