// Host descriptors of inodes: got from the gofer, shared by all who have the file open, kept a
// while after the last.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "sentry/fs/gofer/inode.h"

namespace sentry {
namespace {

// So many files of a directory are opened one by one before several are opened at once.
constexpr uint32_t kOpensBeforeMany = 2;
// How far in the directory's order files without a descriptor are looked for.
constexpr size_t kSiblingsLookedAt = 4 * gofer::kMaxOpenMany;

}  // namespace

base::Result<base::Ref<base::HostFd>> GoferInode::EnsureFd(bool write) {
  {
    absl::MutexLock l(&mutex_);
    if (write_fd_) return write_fd_;
    if (!write && read_fd_) return read_fd_;
  }
  if (!write) {
    OpenWithSiblings();
    absl::MutexLock l(&mutex_);
    if (read_fd_) return read_fd_;
  }
  return OpenFd(write);
}

base::Result<base::Ref<base::HostFd>> GoferInode::MappingFd() {
  {
    absl::MutexLock l(&mutex_);
    if (read_fd_) return read_fd_;
  }
  return OpenFd(false);
}

base::Result<base::Ref<base::HostFd>> GoferInode::OpenFd(bool write) {
  base::UniqueFd fd =
      TRY(gofer::ParseFd(Call(gofer::MakeOpen(handle_, write ? O_RDWR : O_RDONLY))));
  if (!IsOpenOn(fd)) return base::Error(EIO);
  auto shared = base::MakeRef<base::HostFd>(fd.release());
  absl::MutexLock l(&mutex_);
  base::Ref<base::HostFd>& slot = write ? write_fd_ : read_fd_;
  if (!slot) slot = std::move(shared);  // somebody else may have been first
  return slot;
}

bool GoferInode::IsOpenOn(const base::UniqueFd& fd) const {
  struct stat st;
  return syscall(SYS_fstat, fd.get(), &st) == 0 && S_ISREG(st.st_mode) && st.st_ino == host_ino_;
}

// Who reads a tree (grep -r, tar, a compiler's or interpreter's directory of modules) opens most of
// what a directory holds. One exchange for many files costs little more than for one.
void GoferInode::OpenWithSiblings() {
  std::shared_ptr<const GoferSiblings> siblings;
  size_t at;
  {
    absl::MutexLock l(&mutex_);
    siblings = siblings_.lock();
    at = sibling_index_;
  }
  if (!siblings || siblings->opens.fetch_add(1, std::memory_order_relaxed) < kOpensBeforeMany) {
    return;
  }
  std::vector<base::Ref<GoferInode>> files;
  std::vector<gofer::Handle> handles;
  const size_t count = std::min(siblings->files.size() - at, kSiblingsLookedAt);
  for (auto& file :
       gofer_fs().FindFiles(host_dev_, std::span(siblings->files).subspan(at, count))) {
    if (handles.size() == gofer::kMaxOpenMany) break;
    if (!file || (file.get() != this && file->HasFd())) continue;
    handles.push_back(file->handle_);
    files.push_back(std::move(file));
  }
  if (files.empty()) return;
  auto opened = gofer::ParseOpenMany(Call(gofer::MakeOpenMany(handles)), handles.size());
  if (!opened.ok()) return;
  for (size_t i = 0; i < files.size(); ++i) {
    base::UniqueFd& fd = (*opened)[i];
    if (fd.valid() && files[i]->IsOpenOn(fd)) files[i]->KeepForReading(std::move(fd));
  }
}

void GoferInode::SetSiblings(const std::shared_ptr<const GoferSiblings>& siblings, size_t index) {
  absl::MutexLock l(&mutex_);
  siblings_ = siblings;
  sibling_index_ = index;
}

bool GoferInode::IsAmong(const std::shared_ptr<const GoferSiblings>& siblings) const {
  absl::MutexLock l(&mutex_);
  return siblings_.lock() == siblings;
}

bool GoferInode::HasFd() const {
  absl::MutexLock l(&mutex_);
  return read_fd_ || write_fd_;
}

void GoferInode::KeepForReading(base::UniqueFd fd) {
  auto shared = base::MakeRef<base::HostFd>(fd.release());
  {
    absl::MutexLock l(&mutex_);
    if (read_fd_) return;
    read_fd_ = std::move(shared);
    if (opens_ > 0) return;
  }
  gofer_fs().EnterIdle(this);
}

void GoferInode::AdoptFd(base::UniqueFd fd) {
  auto shared = base::MakeRef<base::HostFd>(fd.release());
  absl::MutexLock l(&mutex_);
  if (!write_fd_) write_fd_ = std::move(shared);
}

void GoferInode::AddOpen() {
  bool first;
  {
    absl::MutexLock l(&mutex_);
    first = opens_++ == 0;
  }
  if (first) gofer_fs().LeaveIdle(this);
}

void GoferInode::DropOpen() {
  base::Ref<base::HostFd> closing;
  {
    absl::MutexLock l(&mutex_);
    if (--opens_ > 0) return;
    // A descriptor for writing would keep the host from executing a shared file.
    if (!gofer_fs().exclusive()) std::swap(closing, write_fd_);
    if (!read_fd_ && !write_fd_) return;
  }
  gofer_fs().EnterIdle(this);
}

void GoferInode::CloseIdle() {
  base::Ref<base::HostFd> read, write;
  absl::MutexLock l(&mutex_);
  if (opens_ > 0) return;
  std::swap(read, read_fd_);
  std::swap(write, write_fd_);
}

}  // namespace sentry
