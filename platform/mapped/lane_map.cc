#include "platform/mapped/lane_map.h"

#include <utility>

namespace platform {

bool LaneMap::Want(const base::Ref<base::HostFd>& arena) {
  absl::MutexLock lock(&mu_);
  if (refused_ || (wanted_ && wanted_ != arena)) return false;
  // What is there under another name must go first.
  if (present_ && present_ != arena) return true;
  wanted_ = arena;
  NoteChange();
  return true;
}

bool LaneMap::Has(const base::Ref<base::HostFd>& arena) const {
  absl::MutexLock lock(&mu_);
  return wanted_ == arena && present_ == arena && !changing_;
}

void LaneMap::Drop() {
  absl::MutexLock lock(&mu_);
  wanted_ = nullptr;
  NoteChange();
}

std::optional<LaneMap::Change> LaneMap::Take() {
  absl::MutexLock lock(&mu_);
  if (changing_ || wanted_ == present_) return std::nullopt;
  changing_ = true;
  next_ = wanted_;
  NoteChange();
  return Change{next_};
}

void LaneMap::Made(bool good) {
  absl::MutexLock lock(&mu_);
  changing_ = false;
  if (good) {
    present_ = next_;
  } else {
    refused_ = true;
    wanted_ = present_;
  }
  next_ = nullptr;
  NoteChange();
}

void LaneMap::InheritFrom(LaneMap& other) {
  base::Ref<base::HostFd> wanted, present;
  bool refused;
  {
    absl::MutexLock lock(&other.mu_);
    // A change under way may be made before the copy is, or after it: then it is made again.
    present = other.changing_ && other.next_ ? other.next_ : other.present_;
    if (!other.changing_ && other.wanted_ == other.present_) wanted = present;
    refused = other.refused_;
  }
  absl::MutexLock lock(&mu_);
  wanted_ = std::move(wanted);
  present_ = std::move(present);
  refused_ = refused;
  NoteChange();
}

}  // namespace platform
