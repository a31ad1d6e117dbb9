#include "sentry/vfs/notify.h"

#include <algorithm>

#include "sentry/vfs/dentry.h"

namespace sentry {
namespace {
std::atomic<uint32_t> g_cookie{0};
std::atomic<int64_t> g_watches{0};
}  // namespace

bool AnyWatches() { return g_watches.load(std::memory_order_relaxed) != 0; }
uint32_t NextNotifyCookie() { return g_cookie.fetch_add(1, std::memory_order_relaxed) + 1; }

void InodeWatches::Add(base::Ref<InodeWatch> watch) {
  absl::MutexLock l(&mutex_);
  watches_.push_back(std::move(watch));
  g_watches.fetch_add(1, std::memory_order_relaxed);
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
