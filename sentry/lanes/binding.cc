#include "sentry/lanes/binding.h"

namespace sentry {

bool LaneBinding::live() const {
  absl::MutexLock lock(&mutex_);
  return space_ != nullptr;
}

bool LaneBinding::Claim(base::RefCounted* table) {
  absl::MutexLock lock(&mutex_);
  if (space_ == nullptr) return false;
  if (table_ == nullptr) table_ = table;
  return table_ == table;
}

void LaneBinding::Leave(base::RefCounted* table) {
  absl::MutexLock lock(&mutex_);
  if (table_ == table) table_ = nullptr;
}

base::Ref<base::RefCounted> LaneBinding::table() {
  absl::MutexLock lock(&mutex_);
  if (table_ == nullptr || !table_->TryIncRef()) return nullptr;
  return base::Ref<base::RefCounted>::Adopt(table_);
}

int LaneBinding::AddWatcher(base::RefCounted& holder, LaneWatcher& watcher) {
  absl::MutexLock lock(&mutex_);
  if (space_ == nullptr) return -1;
  for (size_t i = 0; i < watchers_.size(); ++i) {
    platform::LaneEpoll* epoll = space_->LaneEpollAt(static_cast<uint32_t>(i));
    if (watchers_[i].watcher != nullptr || epoll == nullptr) continue;
    watchers_[i] = {&holder, &watcher};
    return static_cast<int>(i);
  }
  return -1;
}

void LaneBinding::RemoveWatcher(int place) {
  absl::MutexLock lock(&mutex_);
  watchers_[static_cast<size_t>(place)] = Watcher{};
  if (space_ == nullptr) return;
  platform::LaneEpoll* epoll = space_->LaneEpollAt(static_cast<uint32_t>(place));
  __atomic_store_n(&epoll->fd_plus_one, 0u, __ATOMIC_SEQ_CST);
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
  for (size_t i = 0; i < platform::kLaneEpolls; ++i) {
    base::Ref<base::RefCounted> holder;
    LaneWatcher* watcher;
    {
      absl::MutexLock lock(&mutex_);
      watcher = watchers_[i].watcher;
      if (space_ == nullptr || watcher == nullptr || !watchers_[i].holder->TryIncRef()) continue;
      holder = base::Ref<base::RefCounted>::Adopt(watchers_[i].holder);
      __atomic_store_n(&space_->LaneEpollAt(static_cast<uint32_t>(i))->busy, 1u, __ATOMIC_SEQ_CST);
    }
    watcher->TakeLaneChanges();
  }
  {
    absl::MutexLock lock(&mutex_);
    if (space_ == nullptr) return;
    for (size_t fd = 0; fd < set_.size(); ++fd) {
      if (set_[fd]) space_->SetLaneOfFd(static_cast<int>(fd), 0, 0);
    }
    for (uint32_t i = 0; i < platform::kLaneEpolls; ++i) {
      platform::LaneEpoll* epoll = space_->LaneEpollAt(i);
      if (epoll != nullptr) __atomic_store_n(&epoll->fd_plus_one, 0u, __ATOMIC_SEQ_CST);
    }
    space_ = nullptr;
  }
  arena_->TellAll();
}

}  // namespace sentry
