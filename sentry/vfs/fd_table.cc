#include "sentry/vfs/fd_table.h"

#include <algorithm>
#include <utility>

#include "platform/path_lane.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

std::atomic<FdTable::LaneKeeper> g_lane_keeper{nullptr};

}  // namespace

FdTable::~FdTable() {
  for (const auto& file : RemoveRange(0, UINT32_MAX)) (void)Finish(file);
  if (lanes_ != nullptr) lanes_->Leave(this);
  if (places_ != nullptr) places_->Leave(this);
}

base::Ref<FdTable> FdTable::Fork() const {
  auto copy = base::MakeRef<FdTable>();
  absl::ReaderMutexLock l(&mutex_);
  absl::MutexLock l2(&copy->mutex_);
  copy->entries_ = entries_;
  for (Entry& e : copy->entries_) e.has_lanes = e.has_place = false;
  copy->next_free_ = next_free_;
  return copy;
}

base::Ref<FileDescription> FdTable::Get(int fd) const {
  absl::ReaderMutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return nullptr;
  return entries_[fd].file;
}

base::Ref<FileDescription> FdTable::Get(int fd, bool* cloexec) const {
  absl::ReaderMutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return nullptr;
  *cloexec = entries_[fd].cloexec;
  return entries_[fd].file;
}

base::Result<int> FdTable::Install(base::Ref<FileDescription> file, bool cloexec, int min,
                                   uint64_t limit) {
  absl::MutexLock l(&mutex_);
  size_t fd = std::max(static_cast<size_t>(min), next_free_);
  while (fd < entries_.size() && entries_[fd].file) fd++;
  if (static_cast<size_t>(min) <= next_free_) next_free_ = fd;
  if (fd >= limit || fd > INT32_MAX) return base::Error(EMFILE);
  if (fd >= entries_.size()) entries_.resize(fd + 1);
  entries_[fd] = {std::move(file), cloexec};
  if (next_free_ == fd) next_free_ = fd + 1;
  version_.fetch_add(1, std::memory_order_acq_rel);
  return static_cast<int>(fd);
}

base::Status FdTable::InstallAt(int fd, base::Ref<FileDescription> file, bool cloexec,
                                uint64_t limit) {
  if (fd < 0 || static_cast<uint64_t>(fd) >= limit) return base::Error(EBADF);
  base::Ref<FileDescription> old;
  {
    absl::MutexLock l(&mutex_);
    const size_t n = static_cast<size_t>(fd);
    if (n >= entries_.size()) entries_.resize(n + 1);
    ForgetLanes(n);
    old = std::move(entries_[n].file);
    entries_[n] = {std::move(file), cloexec};
    version_.fetch_add(1, std::memory_order_acq_rel);
  }
  if (old) (void)Finish(old);  // dup2(2) does not tell errors of the implied close
  return base::Ok();
}

base::Ref<FileDescription> FdTable::Remove(int fd) {
  absl::MutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return nullptr;
  ForgetLanes(static_cast<size_t>(fd));
  base::Ref<FileDescription> file = std::move(entries_[fd].file);
  if (!file) return nullptr;
  entries_[fd].cloexec = false;
  next_free_ = std::min(next_free_, static_cast<size_t>(fd));
  while (!entries_.empty() && !entries_.back().file) entries_.pop_back();
  version_.fetch_add(1, std::memory_order_acq_rel);
  return file;
}

base::Status FdTable::Finish(const base::Ref<FileDescription>& file) {
  if (file->is_path()) return base::Ok();
  base::Status result = file->OnClose();
  if (Inode* inode = file->inode()) {
    if (FileLocks* locks = inode->locks_if_any()) locks->ReleaseRecords(this);
    if (InodeWatches* watches = inode->watches(); watches != nullptr && inode->IsDir()) {
      watches->End(*file, this);
    }
  }
  return result;
}

base::Status FdTable::Close(int fd) {
  base::Ref<FileDescription> file = Remove(fd);
  if (!file) return base::Error(EBADF);
  return Finish(file);
}

base::Status FdTable::SetCloexec(int fd, bool cloexec) {
  absl::MutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size() || !entries_[fd].file) {
    return base::Error(EBADF);
  }
  entries_[fd].cloexec = cloexec;
  version_.fetch_add(1, std::memory_order_acq_rel);
  return base::Ok();
}

std::vector<base::Ref<FileDescription>> FdTable::TakeLocked(size_t first, size_t last,
                                                            bool cloexec_only) {
  std::vector<base::Ref<FileDescription>> taken;
  for (size_t fd = first; fd < entries_.size() && fd <= last; fd++) {
    Entry& e = entries_[fd];
    if (!e.file || (cloexec_only && !e.cloexec)) continue;
    ForgetLanes(fd);
    taken.push_back(std::move(e.file));
    e.cloexec = false;
    next_free_ = std::min(next_free_, fd);
  }
  while (!entries_.empty() && !entries_.back().file) entries_.pop_back();
  version_.fetch_add(1, std::memory_order_acq_rel);
  return taken;
}

std::vector<base::Ref<FileDescription>> FdTable::RemoveCloexec() {
  absl::MutexLock l(&mutex_);
  return TakeLocked(0, UINT32_MAX, /*cloexec_only=*/true);
}

std::vector<base::Ref<FileDescription>> FdTable::RemoveRange(uint32_t first, uint32_t last) {
  absl::MutexLock l(&mutex_);
  return TakeLocked(first, last, /*cloexec_only=*/false);
}

void FdTable::SetCloexecRange(uint32_t first, uint32_t last) {
  absl::MutexLock l(&mutex_);
  for (size_t fd = first; fd < entries_.size() && fd <= last; fd++) {
    if (entries_[fd].file) entries_[fd].cloexec = true;
  }
  version_.fetch_add(1, std::memory_order_acq_rel);
}

// False: another space than that of `binding` has the lanes of this table.
bool FdTable::Bind(const base::Ref<LaneBinding>& binding) {
  if (lanes_ == binding) return true;
  if (lanes_ != nullptr && lanes_->live()) return false;
  if (!binding->Claim(this)) return false;
  for (Entry& e : entries_) e.has_lanes = false;
  if (lanes_ != nullptr) lanes_->Leave(this);
  lanes_ = binding;
  return true;
}

void FdTable::SetLaneKeeper(LaneKeeper keeper) { g_lane_keeper.store(keeper); }

bool FdTable::SetLanes(int fd, const FileDescription* file, const base::Ref<LaneBinding>& binding,
                       uint64_t in, uint64_t out) {
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != file) return true;
  if (!Bind(binding)) return false;
  entries_[n].has_lanes = true;
  lanes_->Set(fd, in, out);
  return true;
}

bool FdTable::ShowFile(int fd, const FileDescription* file, const base::Ref<LaneBinding>& binding,
                       LentFile& lent, uint64_t size, uint64_t source) {
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != file || !Bind(binding)) {
    return false;
  }
  entries_[n].has_lanes = true;
  return lent.Show(binding, fd, size, source);
}

bool FdTable::SetPlace(int fd, const FileDescription* file, const base::Ref<FdPlaces>& places,
                       uint64_t place) {
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (places_ != places) {
    if (places_ != nullptr && places_->live()) return false;
    if (!places->Claim(this)) return false;
    for (Entry& e : entries_) e.has_place = false;
    if (places_ != nullptr) places_->Leave(this);
    places_ = places;
  }
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != file) return true;
  if (!std::exchange(entries_[n].has_place, true)) places_->Set(fd, place);
  return true;
}

void FdTable::LeavePlaces() {
  absl::MutexLock l(&mutex_);
  if (places_ == nullptr) return;
  for (size_t fd = 0; fd < entries_.size(); fd++) ForgetPlace(fd);
  places_->Leave(this);
  places_ = nullptr;
}

bool FdTable::HasLanes(int fd, const FileDescription* file) const {
  absl::ReaderMutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  return fd >= 0 && n < entries_.size() && entries_[n].file.get() == file && entries_[n].has_lanes;
}

void FdTable::ForgetLanes(size_t fd) {
  ForgetPlace(fd);
  if (!std::exchange(entries_[fd].has_lanes, false)) return;
  lanes_->Set(static_cast<int>(fd), 0, 0);
  if (LaneKeeper keeper = g_lane_keeper.load(std::memory_order_acquire)) {
    keeper(static_cast<int>(fd), entries_[fd].file);
  }
}

void FdTable::ForgetPlace(size_t fd) {
  if (!std::exchange(entries_[fd].has_place, false)) return;
  places_->Set(static_cast<int>(fd), platform::kPathNowhere);
}

std::vector<int> FdTable::List() const {
  std::vector<int> fds;
  absl::ReaderMutexLock l(&mutex_);
  for (size_t fd = 0; fd < entries_.size(); fd++) {
    if (entries_[fd].file) fds.push_back(static_cast<int>(fd));
  }
  return fds;
}

size_t FdTable::size() const {
  absl::ReaderMutexLock l(&mutex_);
  return entries_.size();
}

}  // namespace sentry
