#include "sentry/lanes/binding.h"

namespace sentry {

bool LaneBinding::live() const {
  absl::MutexLock lock(&mutex_);
  return space_ != nullptr;
}

bool LaneBinding::Claim(const void* table) {
  absl::MutexLock lock(&mutex_);
  if (space_ == nullptr) return false;
  if (table_ == nullptr) table_ = table;
  return table_ == table;
}

void LaneBinding::Set(int fd, uint64_t in, uint64_t out) {
  const size_t n = static_cast<size_t>(fd);
  absl::MutexLock lock(&mutex_);
  if (space_ == nullptr) return;
  if (n >= set_.size()) set_.resize(n + 1);
  set_[n] = in != 0 || out != 0;
  space_->SetLaneOfFd(fd, in, out);
}

void LaneBinding::Unbind() {
  {
    absl::MutexLock lock(&mutex_);
    if (space_ == nullptr) return;
    for (size_t fd = 0; fd < set_.size(); ++fd) {
      if (set_[fd]) space_->SetLaneOfFd(static_cast<int>(fd), 0, 0);
    }
    space_ = nullptr;
  }
  arena_->TellAll();
}

}  // namespace sentry
