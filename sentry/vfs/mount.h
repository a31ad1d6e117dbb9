// Mount and MountNamespace (Linux: struct mount, struct mnt_namespace).
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/vfs/types.h"

namespace sentry {

// A filesystem (or a part of it) attached at a place of a mount namespace.
class Mount : public base::RefCounted {
 public:
  // flags: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_RELATIME...
  Mount(base::Ref<Filesystem> fs, base::Ref<Dentry> root, uint64_t flags, std::string source);
  Filesystem& fs() const { return *fs_; }
  const base::Ref<Dentry>& root() const { return root_; }
  const std::string& source() const { return source_; }
  int id() const { return id_; }
  uint64_t flags() const { return flags_.load(std::memory_order_relaxed); }
  void set_flags(uint64_t flags) { flags_.store(flags, std::memory_order_relaxed); }
  bool read_only() const;  // by the mount

 private:
  friend class MountNamespace;
  ~Mount() override;
  const base::Ref<Filesystem> fs_;
  const base::Ref<Dentry> root_;
  const std::string source_;
  const int id_;
  std::atomic<uint64_t> flags_;
  MountNamespace* ns_ = nullptr;             // guarded by the namespace's mutex
  base::Ref<Mount> parent_;                  // null for the namespace's root mount
  base::Ref<Dentry> mountpoint_;             // in parent_
  std::vector<Mount*> children_;
};

class MountNamespace : public base::RefCounted {
 public:
  // With `root` as its root mount.
  static base::Ref<MountNamespace> New(base::Ref<Mount> root);
  // A copy for CLONE_NEWNS: all mounts cloned; `paths` (root and cwd of the task) are moved over.
  base::Ref<MountNamespace> Copy(std::span<Path*> paths);

  base::Ref<Mount> root_mount() const;
  // Mounts `mount` on `where` (EBUSY, ENOTDIR/EISDIR mismatch, ELOOP as Linux).
  base::Status Attach(base::Ref<Mount> mount, const Path& where);
  // umount2: EINVAL if it is no mount of this namespace, EBUSY unless MNT_DETACH and in use.
  base::Status Detach(const base::Ref<Mount>& mount, int flags);
  base::Status Move(const base::Ref<Mount>& mount, const Path& where);
  base::Status PivotRoot(const Path& new_root, const Path& put_old);
  // The topmost mount on `path`, or null.
  base::Ref<Mount> MountedOn(const Path& path) const;
  // Where `mount` stands: the parent's path; empty for the root mount.
  Path MountPoint(const Mount& mount) const;
  // In creation order, as /proc/PID/mountinfo lists them.
  std::vector<base::Ref<Mount>> Mounts() const;
  uint64_t id() const { return id_; }

 private:
  explicit MountNamespace(base::Ref<Mount> root);
  ~MountNamespace() override;
  template <typename T, typename... Args>
  friend base::Ref<T> base::MakeRef(Args&&...);
  mutable absl::Mutex mutex_;
  base::Ref<Mount> root_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<Mount>> mounts_ ABSL_GUARDED_BY(mutex_);
  const uint64_t id_;
};

}  // namespace sentry
