#include "sentry/lanes/fd_places.h"

#include <atomic>

namespace sentry {
namespace {

std::atomic<uint64_t> g_owners{1};

}  // namespace

FdPlaces::FdPlaces(platform::AddressSpace* space)
    : owner_(g_owners.fetch_add(1, std::memory_order_relaxed)), space_(space) {}

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

void FdPlaces::Unbind() {
  absl::MutexLock lock(&mutex_);
  space_ = nullptr;
}

}  // namespace sentry
