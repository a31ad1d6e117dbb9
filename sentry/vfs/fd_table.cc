#include "sentry/vfs/fd_table.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "platform/path_lane.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

std::atomic<FdTable::LaneKeeper> g_lane_keeper{nullptr};

}  // namespace

// The tables of which something is or was lent to be closed by stubs. Its lock is before theirs.
class FdTable::Lenders {
 public:
  static Lenders& Get() {
    static auto* const lenders = new Lenders;
    return *lenders;
  }
  void Add(FdTable* table) {
    absl::MutexLock l(&mutex_);
    tables_.insert(table);
  }
  // Waits for whoever is about to use it.
  void Remove(FdTable* table) {
    absl::MutexLock l(&mutex_);
    tables_.erase(table);
  }
  template <typename F>
  void ForEach(F f) {
    absl::MutexLock l(&mutex_);
    for (FdTable* table : tables_) f(*table);
  }

 private:
  absl::Mutex mutex_;
  absl::flat_hash_set<FdTable*> tables_ ABSL_GUARDED_BY(mutex_);
};

FdTable::~FdTable() {
  if (lends_.load(std::memory_order_relaxed)) Lenders::Get().Remove(this);
  for (const auto& file : RemoveRange(0, UINT32_MAX)) (void)Finish(file);
  if (lanes_ != nullptr) lanes_->Leave(this);
  if (places_ != nullptr) places_->Leave(this);
}

base::Ref<FdTable> FdTable::Fork() const {
  auto copy = base::MakeRef<FdTable>();
  absl::ReaderMutexLock l(&mutex_);
  absl::MutexLock l2(&copy->mutex_);
  copy->entries_ = entries_;
  copy->next_free_ = next_free_;
  for (size_t fd = 0; fd < entries_.size(); fd++) {
    Entry& e = copy->entries_[fd];
    e.has_lanes = e.has_place = e.lent = false;
    if (!IsClosed(fd)) continue;
    e = Entry{};
    copy->next_free_ = std::min(copy->next_free_, fd);
  }
  copy->TrimEnd();
  return copy;
}

base::Ref<FileDescription> FdTable::Get(int fd) const {
  absl::ReaderMutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return nullptr;
  if (IsClosed(static_cast<size_t>(fd))) return nullptr;
  return entries_[fd].file;
}

base::Ref<FileDescription> FdTable::Get(int fd, bool* cloexec) const {
  absl::ReaderMutexLock l(&mutex_);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size()) return nullptr;
  if (IsClosed(static_cast<size_t>(fd))) return nullptr;
  *cloexec = entries_[fd].cloexec;
  return entries_[fd].file;
}

base::Result<int> FdTable::Install(base::Ref<FileDescription> file, bool cloexec, int min,
                                   uint64_t limit) {
  Closed closed;
  absl::MutexLock l(&mutex_);
  TakeClosed(&closed);
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
    Closed closed;
    absl::MutexLock l(&mutex_);
    TakeClosed(&closed);
    const size_t n = static_cast<size_t>(fd);
    if (n >= entries_.size()) entries_.resize(n + 1);
    RecallClose(n);
    ForgetLanes(n);
    old = std::move(entries_[n].file);
    entries_[n] = {std::move(file), cloexec};
    version_.fetch_add(1, std::memory_order_acq_rel);
  }
  if (old) (void)Finish(old);  // dup2(2) does not tell errors of the implied close
  return base::Ok();
}

base::Ref<FileDescription> FdTable::Remove(int fd) {
  Closed closed;
  absl::MutexLock l(&mutex_);
  TakeClosed(&closed);
  const size_t n = static_cast<size_t>(fd);
  if (fd < 0 || n >= entries_.size() || !entries_[n].file) return nullptr;
  if (RecallClose(n)) {  // this very moment
    Drop(n, &closed);
    TrimEnd();
    return nullptr;
  }
  ForgetLanes(n);
  base::Ref<FileDescription> file = std::move(entries_[n].file);
  entries_[n].cloexec = false;
  next_free_ = std::min(next_free_, n);
  TrimEnd();
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
  Closed closed;
  absl::MutexLock l(&mutex_);
  TakeClosed(&closed);
  if (fd < 0 || static_cast<size_t>(fd) >= entries_.size() || !entries_[fd].file) {
    return base::Error(EBADF);
  }
  entries_[fd].cloexec = cloexec;
  version_.fetch_add(1, std::memory_order_acq_rel);
  return base::Ok();
}

std::vector<base::Ref<FileDescription>> FdTable::TakeLocked(size_t first, size_t last,
                                                            bool cloexec_only, Closed* closed) {
  std::vector<base::Ref<FileDescription>> taken;
  TakeClosed(closed);
  for (size_t fd = first; fd < entries_.size() && fd <= last; fd++) {
    Entry& e = entries_[fd];
    if (!e.file || (cloexec_only && !e.cloexec)) continue;
    if (RecallClose(fd)) {
      Drop(fd, closed);
      continue;
    }
    ForgetLanes(fd);
    taken.push_back(std::move(e.file));
    e.cloexec = false;
    next_free_ = std::min(next_free_, fd);
  }
  TrimEnd();
  version_.fetch_add(1, std::memory_order_acq_rel);
  return taken;
}

std::vector<base::Ref<FileDescription>> FdTable::RemoveCloexec() {
  Closed closed;
  absl::MutexLock l(&mutex_);
  return TakeLocked(0, UINT32_MAX, /*cloexec_only=*/true, &closed);
}

std::vector<base::Ref<FileDescription>> FdTable::RemoveRange(uint32_t first, uint32_t last) {
  Closed closed;
  absl::MutexLock l(&mutex_);
  return TakeLocked(first, last, /*cloexec_only=*/false, &closed);
}

void FdTable::SetCloexecRange(uint32_t first, uint32_t last) {
  Closed closed;
  absl::MutexLock l(&mutex_);
  TakeClosed(&closed);
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
                       LentFile& lent, uint64_t size, uint64_t source,
                       std::span<const std::byte> begin) {
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != file || !Bind(binding)) {
    return false;
  }
  entries_[n].has_lanes = true;
  return lent.Show(binding, fd, size, source, begin);
}

bool FdTable::SetPlace(int fd, const FileDescription* file, const base::Ref<FdPlaces>& places,
                       uint64_t place) {
  Closed closed;
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (!BindPlaces(places, &closed)) return false;
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != file) return true;
  if (!std::exchange(entries_[n].has_place, true)) places_->Set(fd, place);
  return true;
}

// False: the descriptors of another table, or of this one in another address space, have theirs.
bool FdTable::BindPlaces(const base::Ref<FdPlaces>& places, Closed* closed) {
  if (places_ == places) return true;
  if (places_ != nullptr && places_->live()) return false;
  if (!places->Claim(this)) return false;
  LeavePlacesLocked(closed);
  places_ = places;
  return true;
}

void FdTable::LeavePlaces() {
  Closed closed;
  absl::MutexLock l(&mutex_);
  LeavePlacesLocked(&closed);
}

void FdTable::LeavePlacesLocked(Closed* closed) {
  if (places_ == nullptr) return;
  for (size_t fd = 0; fd < entries_.size(); fd++) {
    if (RecallClose(fd)) Drop(fd, closed);
    ForgetPlace(fd);
  }
  TrimEnd();
  places_->Leave(this);
  places_ = nullptr;
}

bool FdTable::LendClose(int fd, const FileDescription& file, const base::Ref<FdPlaces>& places) {
  Inode* inode = file.inode();
  // What is in no directory may end with the descriptor.
  const Dentry* dentry = file.path().dentry.get();
  if (inode == nullptr || dentry->unlinked() || dentry->parent().get() == dentry) return false;
  if (!lends_.load(std::memory_order_acquire)) {
    Lenders::Get().Add(this);
    lends_.store(true, std::memory_order_release);
  }
  Closed closed;
  absl::MutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  if (!BindPlaces(places, &closed)) return false;
  if (fd < 0 || n >= entries_.size() || entries_[n].file.get() != &file) return true;
  if (entries_[n].lent) return true;
  // Whoever is to see closes says so first, and then waits for the lock to take back what is lent.
  if (!inode->BeginLentClose()) return false;
  if (AnyWatches() || !places_->LendClose(fd)) {
    inode->EndLentClose();
    return false;
  }
  entries_[n].lent = true;
  lent_++;
  return true;
}

bool FdTable::RecallClose(size_t fd) {
  Entry& e = entries_[fd];
  if (!std::exchange(e.lent, false)) return false;
  lent_--;
  e.file->inode()->EndLentClose();
  return places_->RecallClose(static_cast<int>(fd));
}

void FdTable::TakeClosed(Closed* closed) {
  if (lent_ == 0) return;
  const FdPlaces::Fds fds = places_->TakeClosed();
  bool any = false;
  for (size_t word = 0; word < fds.size(); word++) {
    for (uint64_t bits = fds[word]; bits != 0; bits &= bits - 1) {
      const size_t fd = word * 64 + static_cast<size_t>(std::countr_zero(bits));
      entries_[fd].lent = false;  // as RecallClose does, but that places_ knows already
      entries_[fd].file->inode()->EndLentClose();
      lent_--;
      Drop(fd, closed);
      any = true;
    }
  }
  if (!any) return;
  TrimEnd();
  version_.fetch_add(1, std::memory_order_acq_rel);
}

// Of a descriptor that a stub has closed, and whose closing is lent no more.
void FdTable::Drop(size_t fd, Closed* closed) {
  HideLanes(fd);  // no call waits for a lane of a file
  Entry& e = entries_[fd];
  closed->push_back(std::move(e.file));
  e.cloexec = false;
  next_free_ = std::min(next_free_, fd);
}

void FdTable::TrimEnd() {
  while (!entries_.empty() && !entries_.back().file) entries_.pop_back();
}

void FdTable::RecallClosesOf(const Inode* inode, Closed* closed) {
  absl::MutexLock l(&mutex_);
  TakeClosed(closed);
  if (lent_ == 0) return;
  for (size_t fd = 0; fd < entries_.size(); fd++) {
    const Entry& e = entries_[fd];
    if (!e.lent || (inode != nullptr && e.file->inode() != inode)) continue;
    if (RecallClose(fd)) Drop(fd, closed);
  }
  TrimEnd();
}

void FdTable::RecallCloses(const Inode* inode) {
  Closed closed;
  Lenders::Get().ForEach([&](FdTable& table) { table.RecallClosesOf(inode, &closed); });
}

void FdTable::TakeAllClosed() {
  Closed closed;
  Lenders::Get().ForEach([&](FdTable& table) {
    absl::MutexLock l(&table.mutex_);
    table.TakeClosed(&closed);
  });
}

bool FdTable::HasLanes(int fd, const FileDescription* file) const {
  absl::ReaderMutexLock l(&mutex_);
  const size_t n = static_cast<size_t>(fd);
  return fd >= 0 && n < entries_.size() && entries_[n].file.get() == file && entries_[n].has_lanes;
}

bool FdTable::HideLanes(size_t fd) {
  ForgetPlace(fd);
  if (!std::exchange(entries_[fd].has_lanes, false)) return false;
  lanes_->Set(static_cast<int>(fd), 0, 0);
  return true;
}

void FdTable::ForgetLanes(size_t fd) {
  if (!HideLanes(fd)) return;
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
    if (entries_[fd].file && !IsClosed(fd)) fds.push_back(static_cast<int>(fd));
  }
  return fds;
}

size_t FdTable::size() const {
  absl::ReaderMutexLock l(&mutex_);
  size_t n = entries_.size();
  while (n > 0 && (!entries_[n - 1].file || IsClosed(n - 1))) n--;
  return n;
}

}  // namespace sentry
