#include "sentry/vfs/notify.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

std::atomic<uint32_t> g_cookie{0};
std::atomic<int64_t> g_watches{0};

// Who is to be told of unmounts, and how often it was asked for. Each of them is kept by who asked.
struct UnmountWatches {
  absl::Mutex mutex;
  absl::flat_hash_map<const Filesystem*, absl::flat_hash_map<Inode*, int>> inodes
      ABSL_GUARDED_BY(mutex);
};
UnmountWatches& Unmounts() {
  static auto* const watches = new UnmountWatches;
  return *watches;
}

}  // namespace

void WatchUnmount(Inode& inode) {
  UnmountWatches& watches = Unmounts();
  absl::MutexLock l(&watches.mutex);
  ++watches.inodes[&inode.fs()][&inode];
}

void UnwatchUnmount(Inode& inode) {
  UnmountWatches& watches = Unmounts();
  absl::MutexLock l(&watches.mutex);
  auto fs = watches.inodes.find(&inode.fs());
  if (fs == watches.inodes.end()) return;
  auto it = fs->second.find(&inode);
  if (it == fs->second.end() || --it->second > 0) return;
  fs->second.erase(it);
  if (fs->second.empty()) watches.inodes.erase(fs);
}

void NotifyUnmount(const Filesystem& fs) {
  if (!AnyWatches()) return;
  std::vector<base::Ref<Inode>> told;
  {
    UnmountWatches& watches = Unmounts();
    absl::MutexLock l(&watches.mutex);
    auto it = watches.inodes.find(&fs);
    if (it == watches.inodes.end()) return;
    for (const auto& [inode, count] : it->second) told.emplace_back(inode);
  }
  for (const auto& inode : told) {
    NotifyInode(*inode, inode->IsDir() ? IN_UNMOUNT | IN_ISDIR : IN_UNMOUNT);
  }
}

bool AnyWatches() { return g_watches.load(std::memory_order_seq_cst) != 0; }
uint32_t NextNotifyCookie() { return g_cookie.fetch_add(1, std::memory_order_relaxed) + 1; }

void InodeWatches::Add(base::Ref<InodeWatch> watch) {
  bool first;
  // What was closed before is not told of, and what is closed from now on is told by the sentry.
  if (!AnyWatches()) FdTable::TakeAllClosed();
  {
    absl::MutexLock l(&mutex_);
    watches_.push_back(std::move(watch));
    first = g_watches.fetch_add(1, std::memory_order_seq_cst) == 0;
  }
  if (!first) return;
  FdTable::RecallCloses(nullptr);
  // From now on the sentry makes each read.
  AllWatchedChanged();
}

void InodeWatches::Remove(const InodeWatch& watch) {
  base::Ref<InodeWatch> removed;  // dropped without the mutex
  absl::MutexLock l(&mutex_);
  auto it = std::find_if(watches_.begin(), watches_.end(),
                         [&](const auto& w) { return w.get() == &watch; });
  if (it == watches_.end()) return;
  removed = std::move(*it);
  watches_.erase(it);
  g_watches.fetch_sub(1, std::memory_order_relaxed);
}

void InodeWatches::End(const FileDescription& file, const void* table) {
  for (const base::Ref<InodeWatch>& w : List()) {
    if (w->EndsWith(file, table)) Remove(*w);
  }
}

std::vector<base::Ref<InodeWatch>> InodeWatches::List() const {
  absl::MutexLock l(&mutex_);
  return watches_;
}

void InodeWatches::Notify(uint32_t mask, uint32_t cookie, std::string_view name, bool unlinked) {
  for (const base::Ref<InodeWatch>& w : List()) {
    if (unlinked && (w->mask() & IN_EXCL_UNLINK) != 0) continue;
    if ((w->mask() & mask & IN_ALL_EVENTS) != 0 || (mask & (IN_IGNORED | IN_UNMOUNT)) != 0) {
      w->OnEvent(mask, cookie, name);
    }
  }
}

void NotifyDentry(const Dentry& dentry, uint32_t mask) {
  if (!AnyWatches()) return;
  Inode* inode = dentry.inode_ptr();
  if (inode == nullptr) return;
  if (inode->IsDir()) mask |= IN_ISDIR;
  base::Ref<Dentry> parent = dentry.parent();
  if (parent.get() != &dentry && parent->inode_ptr() != nullptr) {
    NotifyDir(*parent->inode_ptr(), mask, dentry.name(), 0, dentry.unlinked());
  }
  NotifyInode(*inode, mask);
}

}  // namespace sentry
