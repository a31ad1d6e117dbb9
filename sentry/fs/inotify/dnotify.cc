#include "sentry/fs/inotify/dnotify.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/inotify.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/notify.h"

namespace sentry {
namespace {

// convert_arg().
uint32_t ToEvents(uint32_t mask) {
  uint32_t events = 0;
  if ((mask & DN_ACCESS) != 0) events |= IN_ACCESS;
  if ((mask & DN_MODIFY) != 0) events |= IN_MODIFY;
  if ((mask & DN_ATTRIB) != 0) events |= IN_ATTRIB;
  if ((mask & DN_CREATE) != 0) events |= IN_CREATE | IN_MOVED_TO;
  if ((mask & DN_DELETE) != 0) events |= IN_DELETE | IN_MOVED_FROM;
  if ((mask & DN_RENAME) != 0) events |= IN_MOVED_FROM;
  return events;
}

// What one table of descriptors wants to know about one open directory (struct dnotify_struct).
// Keeps the description, which its table's close(2) has it give up.
class DirectoryWatch : public InodeWatch {
 public:
  DirectoryWatch(const void* table, int fd, base::Ref<FileDescription> file, uint32_t mask)
      : table_(table), file_(std::move(file)), fd_(fd), mask_(mask) {}

  uint32_t mask() const override { return ToEvents(mask_.load(std::memory_order_relaxed)); }

  void OnEvent(uint32_t mask, uint32_t, std::string_view name) override {
    if (name.empty() && (mask & IN_ISDIR) == 0) return;
    if ((mask_.load(std::memory_order_relaxed) & uint32_t{DN_MULTISHOT}) == 0) {
      if (done_.exchange(true)) return;
      file_->inode()->MakeWatches().Remove(*this);
    }
    file_->NotifyOwner(fd_.load(std::memory_order_relaxed), POLL_MSG);
  }

  bool EndsWith(const FileDescription& file, const void* table) const override {
    return file_.get() == &file && table_ == table;
  }

  void Add(int fd, uint32_t mask) {
    fd_.store(fd, std::memory_order_relaxed);
    mask_.fetch_or(mask, std::memory_order_relaxed);
  }

 private:
  ~DirectoryWatch() override = default;
  const void* const table_;
  const base::Ref<FileDescription> file_;
  std::atomic<int> fd_;
  std::atomic<uint32_t> mask_;  // DN_*
  std::atomic<bool> done_{false};
};

}  // namespace

base::Status WatchDirectory(const void* table, int fd, FileDescription& file, uint32_t mask) {
  Inode* inode = file.inode();
  if ((mask & ~uint32_t{DN_MULTISHOT}) == 0) {
    if (inode != nullptr && inode->watches() != nullptr) inode->watches()->End(file, table);
    return base::Ok();
  }
  if (inode == nullptr || !inode->IsDir()) return base::Error(ENOTDIR);
  InodeWatches& watches = inode->MakeWatches();
  for (const base::Ref<InodeWatch>& watch : watches.List()) {
    if (!watch->EndsWith(file, table)) continue;
    static_cast<DirectoryWatch&>(*watch).Add(fd, mask);
    return base::Ok();
  }
  watches.Add(base::MakeRef<DirectoryWatch>(table, fd, base::Ref<FileDescription>(&file), mask));
  return base::Ok();
}

}  // namespace sentry
