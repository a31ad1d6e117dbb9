// Hooks by which the VFS tells inotify what happened (Linux: fsnotify). An inode without watches
// costs one load.
#pragma once

#include <sys/inotify.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/vfs/inode.h"

namespace sentry {

class FileDescription;

// Someone who wants to know about an inode. Implemented by inotify's watches.
class InodeWatch : public base::RefCounted {
 public:
  // IN_* bits of interest.
  virtual uint32_t mask() const = 0;
  // `name` is the entry's for events about something in a watched directory, else empty. Must not
  // park.
  virtual void OnEvent(uint32_t mask, uint32_t cookie, std::string_view name) = 0;
  // Does it end when `table` closes a descriptor of `file` (dnotify)?
  virtual bool EndsWith(const FileDescription& /*file*/, const void* /*table*/) const {
    return false;
  }
};

// The watches of one inode. Thread-safe.
class InodeWatches {
 public:
  void Add(base::Ref<InodeWatch> watch);
  void Remove(const InodeWatch& watch);
  // `unlinked`: by a file whose name is gone, which IN_EXCL_UNLINK is not told of.
  void Notify(uint32_t mask, uint32_t cookie, std::string_view name, bool unlinked = false);
  std::vector<base::Ref<InodeWatch>> List() const;
  // close(2) by the table of descriptors `table`: removes what ends with it.
  void End(const FileDescription& file, const void* table);

 private:
  mutable absl::Mutex mutex_;
  std::vector<base::Ref<InodeWatch>> watches_ ABSL_GUARDED_BY(mutex_);
};

class Dentry;

// An event on the object itself and, as its child, in its parent directory (Linux:
// fsnotify_dentry).
void NotifyDentry(const Dentry& dentry, uint32_t mask);
// An event about the entry `name` of a directory.
inline void NotifyDir(Inode& dir, uint32_t mask, std::string_view name, uint32_t cookie = 0,
                      bool unlinked = false) {
  if (InodeWatches* w = dir.watches()) w->Notify(mask, cookie, name, unlinked);
}
inline void NotifyInode(Inode& inode, uint32_t mask) {
  if (InodeWatches* w = inode.watches()) w->Notify(mask, 0, {});
}
// An inode that is to be told IN_UNMOUNT, as often as it is asked for and until it is taken back.
void WatchUnmount(Inode& inode);
void UnwatchUnmount(Inode& inode);
// The last mount of `fs` is gone.
void NotifyUnmount(const Filesystem& fs);
// Ties IN_MOVED_FROM to IN_MOVED_TO.
uint32_t NextNotifyCookie();
// True while any watch exists; lets hot paths skip looking at the parent.
bool AnyWatches();

}  // namespace sentry
