// Host descriptors of inodes: got from the gofer, shared by all who have the file open, kept a
// while after the last.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "sentry/base/host_io.h"
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
  if (!IsOpenOn(fd)) {
    // Unless the file itself has got another number by that.
    Apply(TRY(gofer::ParseAttr(Call(gofer::MakeOn(gofer::Op::kGetAttr, handle_)))));
    if (!IsOpenOn(fd)) return base::Error(EIO);
  }
  if (write) FileReplaced();
  auto shared = base::MakeRef<base::HostFd>(fd.release());
  absl::MutexLock l(&mutex_);
  base::Ref<base::HostFd>& slot = write ? write_fd_ : read_fd_;
  if (!slot) slot = std::move(shared);  // somebody else may have been first
  return slot;
}

void GoferInode::FileReplaced() {
  changed_.store(true, std::memory_order_relaxed);
  base::Ref<base::HostFd> read;
  base::Ref<base::FileSource> source;
  absl::MutexLock l(&mutex_);
  replaced_++;
  std::swap(read, read_fd_);
  std::swap(source, source_);
  atime_kept_.store(false, std::memory_order_relaxed);
  if (source) source->Retire();
  attr_word().Changed();
}

std::optional<GoferInode::Lendable> GoferInode::LookForLending() {
  if (!DataVersion() || ReadsChangeAtime()) return std::nullopt;
  if (stale_.load(std::memory_order_acquire) && !GetAttr().ok()) return std::nullopt;
  absl::MutexLock l(&mutex_);
  if (stale_.load(std::memory_order_acquire)) return std::nullopt;
  return Lendable{attr_.size, source_ ? source_->id() : 0};
}

base::Ref<base::FileSource> GoferInode::MappedSource() {
  if (!gofer_fs().exclusive() || ReadsChangeAtime()) return nullptr;
  uint64_t replaced;
  {
    absl::MutexLock l(&mutex_);
    if (source_) return source_;
    replaced = replaced_;
  }
  base::Result<base::Ref<base::HostFd>> fd = MappingFd();
  if (!fd.ok()) return nullptr;
  auto source = base::MakeRef<base::FileSource>(*fd);
  absl::MutexLock l(&mutex_);
  if (replaced != replaced_) return nullptr;
  if (!source_) source_ = std::move(source);
  return source_;
}

bool GoferInode::ReadsChangeAtime() {
  const auto do_they = [this] {
    return atime_due_.load(std::memory_order_relaxed) &&
           !atime_kept_.load(std::memory_order_relaxed);
  };
  if (!do_they()) return false;
  // Perhaps the last one has.
  if (!stale_.load(std::memory_order_acquire) || !GetAttr().ok()) return true;
  return do_they();
}

void GoferInode::WasRead() {
  if (!atime_due_.load(std::memory_order_relaxed)) return;
  {
    absl::MutexLock l(&mutex_);
    read_at_atime_ = attr_.atime;
  }
  MarkStale();
}

base::Ref<GoferContent> GoferInode::Content() {
  const std::optional<uint64_t> version = DataVersion();
  if (!version) return nullptr;
  base::Ref<GoferContent> content;
  {
    absl::MutexLock l(&mutex_);
    if (!content_ || content_->version() != *version) return nullptr;
    content = content_;
  }
  if (ReadsChangeAtime()) return nullptr;
  return content;
}

void GoferInode::KeepContent(uint64_t version, std::span<const std::byte> bytes) {
  if (bytes.size() > GoferContent::kMax || lost_name()) return;
  auto content = base::MakeRef<GoferContent>(version, bytes);
  {
    absl::MutexLock l(&mutex_);
    std::swap(content_, content);  // the old one is freed after the lock
  }
  if (!gofer_fs().contents().Enter(this, bytes.size())) DropContent();
}

base::Ref<GoferContent> GoferInode::Begin(base::HostFd* fd, uint64_t size) {
  constexpr size_t kBeginOfLong = 4096;
  if (base::Ref<GoferContent> content = Content()) return content;
  const std::optional<uint64_t> version = DataVersion();
  if (fd == nullptr || size == 0 || !version) return nullptr;
  const size_t want = size <= GoferContent::kMax ? size : kBeginOfLong;
  const auto buffer = std::make_unique_for_overwrite<char[]>(want);
  bool end = false;
  ssize_t n;
  {
    const fiber::ScopedPhase phase(fiber::Phase::kHostCall);
    n = ReadHere(fd->get(), std::span(buffer.get(), want), 0, RWF_NOWAIT, &end);
  }
  if (n <= 0) return nullptr;
  const auto bytes = std::as_bytes(std::span(buffer.get(), static_cast<size_t>(n)));
  if (end && EndsAt(bytes.size())) KeepContent(*version, bytes);
  return base::MakeRef<GoferContent>(*version, bytes);
}

void GoferInode::DropContent() {
  base::Ref<GoferContent> old;  // freed after the lock
  absl::MutexLock l(&mutex_);
  std::swap(content_, old);
}

base::Result<uint64_t> GoferInode::SizeNow(int fd) const {
  if (!stale_.load(std::memory_order_acquire)) {
    absl::MutexLock l(&mutex_);
    return attr_.size;
  }
  struct stat st;
  if (base::HostStat(fd, &st) != 0) return base::LastError();
  return static_cast<uint64_t>(st.st_size);
}

bool GoferInode::IsOpenOn(const base::UniqueFd& fd) const {
  struct stat st;
  return base::HostStat(fd.get(), &st) == 0 && S_ISREG(st.st_mode) && st.st_ino == host_ino_;
}

// Who reads a tree (grep -r, tar, a compiler's or interpreter's directory of modules) opens most of
// what a directory holds. One exchange for many files costs little more than for one, and the gofer
// opens the next ones while those are read.
void GoferInode::OpenWithSiblings() {
  std::shared_ptr<const GoferSiblings> siblings;
  size_t at;
  {
    absl::MutexLock l(&mutex_);
    siblings = siblings_.lock();
    at = sibling_index_;
  }
  if (!siblings) return;
  GoferFilesystem& fs = gofer_fs();
  if (const base::Ref<GoferOpening> ahead = fs.TakeOpening(siblings)) {
    Adopt(*ahead);
    if (HasFd()) {
      fs.SawTreeRead();
      OpenAhead(siblings, ahead->end);
      return;
    }
  }
  const uint32_t opens = siblings->opens.fetch_add(1, std::memory_order_relaxed);
  if (opens < kOpensBeforeMany && !(opens == 0 && fs.ExpectsTreeRead())) return;
  const base::Ref<GoferOpening> opening = BeginOpening(*siblings, at);
  if (!opening) return;
  Adopt(*opening);
  OpenAhead(siblings, opening->end);
}

void GoferInode::OpenAhead(const std::shared_ptr<const GoferSiblings>& siblings, size_t at) {
  if (base::Ref<GoferOpening> opening = BeginOpening(*siblings, at)) {
    gofer_fs().KeepOpening(siblings, std::move(opening));
  }
}

base::Ref<GoferOpening> GoferInode::BeginOpening(const GoferSiblings& siblings, size_t at) {
  auto opening = base::MakeRef<GoferOpening>();
  std::vector<gofer::Handle> handles;
  const size_t count = std::min(siblings.files.size() - at, kSiblingsLookedAt);
  opening->end = at;
  for (auto& file : gofer_fs().FindFiles(host_dev_, std::span(siblings.files).subspan(at, count))) {
    if (handles.size() == gofer::kMaxOpenMany) break;
    opening->end++;
    if (!file) continue;
    absl::MutexLock l(&file->mutex_);
    const bool kept = file->content_ && file->content_->version() == file->data_version_;
    if (file.get() != this && (file->read_fd_ || file->write_fd_ || kept)) continue;
    handles.push_back(file->handle_);
    opening->files.push_back({file->host_ino_, file->handle_, file->replaced_});
  }
  if (handles.empty()) return nullptr;
  opening->call = base::MakeRef<GoferLateCall>();
  gofer_fs().connection().CallLate(opening->call, gofer::MakeOpenMany(handles));
  return opening;
}

void GoferInode::Adopt(const GoferOpening& opening) {
  gofer_fs().connection().Await(*opening.call);
  auto opened = gofer::ParseOpenMany(opening.call->TakeReply(), opening.files.size());
  if (!opened.ok()) return;
  std::vector<uint64_t> inos;
  for (const GoferOpening::File& file : opening.files) inos.push_back(file.ino);
  const auto files = gofer_fs().FindFiles(host_dev_, inos);
  for (size_t i = 0; i < files.size(); ++i) {
    base::UniqueFd& fd = (*opened)[i];
    if (!fd.valid() || !files[i] || files[i]->handle_ != opening.files[i].handle) continue;
    if (files[i]->IsOpenOn(fd)) files[i]->KeepForReading(std::move(fd), opening.files[i].replaced);
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

void GoferInode::KeepForReading(base::UniqueFd fd, uint64_t replaced) {
  auto shared = base::MakeRef<base::HostFd>(fd.release());
  {
    absl::MutexLock l(&mutex_);
    if (read_fd_ || replaced_ != replaced) return;
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
  base::Ref<base::FileSource> source;
  absl::MutexLock l(&mutex_);
  if (opens_ > 0) return;
  std::swap(read, read_fd_);
  std::swap(write, write_fd_);
  std::swap(source, source_);
  if (source) source->Retire();
}

}  // namespace sentry
