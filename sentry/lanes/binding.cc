#include "sentry/lanes/binding.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace sentry {
namespace {

// Unique in the sandbox: who has seen a name never takes another file's for it.
std::atomic<uint64_t> g_file_name{1};
uint64_t NextFileName() { return g_file_name.fetch_add(1, std::memory_order_relaxed); }

bool ShowsFile(const platform::FileLane& lane, uint64_t name, uint64_t size, uint64_t source) {
  return __atomic_load_n(&lane.name, __ATOMIC_SEQ_CST) == name &&
         __atomic_load_n(&lane.size, __ATOMIC_RELAXED) == size &&
         __atomic_load_n(&lane.source, __ATOMIC_RELAXED) == source;
}

}  // namespace

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
  if (n < files_.size()) ForgetFile(n);
  const bool leads = in != 0 || out != 0;
  if (n >= names_.size()) {
    if (!leads) return;
    names_.resize(n + 1);
  }
  names_[n] = platform::WatchedLane(in, out);
  space_->SetLaneOfFd(fd, in, out);
}

uint64_t LaneBinding::NameOf(int fd) const {
  const size_t n = static_cast<size_t>(fd);
  absl::MutexLock lock(&mutex_);
  return n < names_.size() ? names_[n] : 0;
}

platform::FileLane* LaneBinding::LaneOf(int fd) {
  return space_ == nullptr ? nullptr : space_->FileLaneAt(fd);
}

LaneBinding::File* LaneBinding::FileOf(int fd) {
  if (LaneOf(fd) == nullptr) return nullptr;
  const size_t n = static_cast<size_t>(fd);
  if (n >= files_.size()) files_.resize(n + 1);
  return &files_[n];
}

bool LaneBinding::WantsBegin() {
  constexpr uint32_t kOpensBeforeTry = 32;
  absl::MutexLock lock(&mutex_);
  return begin_credit_ > 0 || ++opens_without_ % kOpensBeforeTry == 0;
}

// Hidden before its bytes give way to others: who copies them meanwhile finds the name gone.
void LaneBinding::Hide(size_t fd) {
  File& file = files_[fd];
  platform::FileLane* lane = LaneOf(static_cast<int>(fd));
  if (file.name != 0 && lane != nullptr) platform::HideFileLane(lane);
  file.name = 0;
  if (file.begin < 0) return;
  begins_[static_cast<size_t>(std::exchange(file.begin, -1))] = -1;
  const bool used = lane != nullptr && __atomic_load_n(&lane->begin_used, __ATOMIC_SEQ_CST) != 0;
  begin_credit_ = std::clamp(begin_credit_ + (used ? 1 : -1), 0, kMostBeginCredit);
}

platform::FileBegin LaneBinding::PutBegin(size_t fd, std::span<const std::byte> begin) {
  if (begin.empty()) return {};
  const uint32_t place = next_begin_++ % platform::kFileBegins;
  const std::span<std::byte> room = space_->FileBeginAt(place);
  if (begin.size() > room.size()) return {};
  if (begins_[place] >= 0) Hide(static_cast<size_t>(begins_[place]));
  begins_[place] = static_cast<int>(fd);
  files_[fd].begin = static_cast<int>(place);
  memcpy(room.data(), begin.data(), begin.size());
  return {place, static_cast<uint32_t>(begin.size())};
}

uint64_t LaneBinding::ShowFile(int fd, uint64_t size, uint64_t source,
                               std::span<const std::byte> begin) {
  absl::MutexLock lock(&mutex_);
  File* file = FileOf(fd);
  if (file == nullptr) return 0;
  platform::FileLane* lane = LaneOf(fd);
  // Who is reading by what stands there need not begin anew.
  if (file->name != 0 && ShowsFile(*lane, file->name, size, source)) return file->name;
  Hide(static_cast<size_t>(fd));
  const platform::FileBegin put = PutBegin(static_cast<size_t>(fd), begin);
  file->name = NextFileName();
  platform::ShowFileLane(lane, file->name, size, source, put);
  return file->name;
}

void LaneBinding::HideFile(int fd, uint64_t name) {
  absl::MutexLock lock(&mutex_);
  File* file = FileOf(fd);
  if (file == nullptr || file->name != name) return;
  Hide(static_cast<size_t>(fd));
}

base::Ref<PositionLease> LaneBinding::LendPosition(int fd, uint64_t offset) {
  absl::MutexLock lock(&mutex_);
  File* file = FileOf(fd);
  if (file == nullptr) return nullptr;
  if (file->lease != nullptr) TakeBack(*file->lease);
  auto lease = base::MakeRef<PositionLease>();
  lease->fd_ = fd;
  lease->name_ = NextFileName();
  lease->offset_ = offset;
  lease->out_ = true;
  platform::LendLanePosition(&LaneOf(fd)->position, lease->name_, offset);
  file->lease = lease;
  return lease;
}

uint64_t LaneBinding::TakePosition(PositionLease& lease) {
  absl::MutexLock lock(&mutex_);
  if (lease.out_) {
    base::Ref<PositionLease> held = std::move(files_[static_cast<size_t>(lease.fd_)].lease);
    TakeBack(lease);
  }
  return lease.offset_;
}

// What a guest has put there instead is taken for nothing.
void LaneBinding::TakeBack(PositionLease& lease) {
  if (!lease.out_) return;
  lease.out_ = false;
  platform::FileLane* lane = LaneOf(lease.fd_);
  if (lane == nullptr) return;
  uint64_t offset;
  if (platform::TakeLanePosition(&lane->position, &offset) == lease.name_) lease.offset_ = offset;
}

void LaneBinding::ForgetFile(size_t fd) {
  Hide(fd);
  File& file = files_[fd];
  if (file.lease != nullptr) TakeBack(*file.lease);
  file = File{};
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
  bool streams;
  {
    absl::MutexLock lock(&mutex_);
    if (space_ == nullptr) return;
    streams = !names_.empty();
    for (size_t fd = 0; fd < names_.size(); ++fd) {
      if (names_[fd] != 0) space_->SetLaneOfFd(static_cast<int>(fd), 0, 0);
    }
    for (uint32_t i = 0; i < platform::kLaneEpolls; ++i) {
      platform::LaneEpoll* epoll = space_->LaneEpollAt(i);
      if (epoll != nullptr) __atomic_store_n(&epoll->fd_plus_one, 0u, __ATOMIC_SEQ_CST);
    }
    for (size_t fd = 0; fd < files_.size(); ++fd) ForgetFile(fd);
    space_ = nullptr;
  }
  if (streams) arena_->TellAll();
}

}  // namespace sentry
