// inotify instances (Linux: fs/notify/inotify).
#pragma once

#include <sys/inotify.h>

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "sentry/fs/anon/anon.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/notify.h"

namespace sentry {

class InotifyWatch;

class InotifyFile : public AnonFile {
 public:
  // EMFILE beyond fs.inotify.max_user_instances.
  static base::Result<base::Ref<InotifyFile>> New(Vfs& vfs, uint32_t flags);

  // Watches `inode`, or changes its watch; returns the watch descriptor. ENOSPC beyond
  // max_user_watches, EEXIST with IN_MASK_CREATE.
  base::Result<int> AddWatch(base::Ref<Inode> inode, uint32_t mask);
  // EINVAL if there is no such watch.
  base::Status RemoveWatch(int wd);

  base::Result<size_t> Read(IoDest& dst, bool nonblock) override;
  base::Result<uint64_t> Ioctl(const IoctlArgs& args) override;
  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override { return &queue_; }
  bool CanAsync() const override { return true; }
  std::string FdInfo() const override;

 private:
  friend class InotifyWatch;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  struct Event {
    int wd;
    uint32_t mask, cookie;
    std::string name;
    // Of the record that read(2) gives; the name is padded to the size of the header.
    size_t size() const;
  };

  InotifyFile(Vfs& vfs, uint32_t flags);
  ~InotifyFile() override;
  void Queue(int wd, uint32_t mask, uint32_t cookie, std::string_view name);
  // Takes the watch out and tells so by IN_IGNORED.
  void DropWatch(int wd);

  mutable absl::Mutex mutex_;  // after InotifyWatch's
  std::deque<Event> events_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<int, base::Ref<InotifyWatch>> watches_ ABSL_GUARDED_BY(mutex_);
  int next_wd_ ABSL_GUARDED_BY(mutex_) = 1;
  fiber::WaitQueue queue_;
};

}  // namespace sentry
