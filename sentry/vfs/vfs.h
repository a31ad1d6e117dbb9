// Operations on paths: what the path system calls do once their arguments are decoded.
// Follows Linux's fs/namei.c and fs/open.c, with their order of checks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "sentry/auth/credentials.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/types.h"

namespace sentry {

// Where a walk starts and under which identity. The caller keeps the referenced objects alive.
struct WalkContext {
  const Credentials& creds;
  MountNamespace& ns;
  Path root;        // of the task
  Path start;       // cwd, or the directory of dirfd
  mode_t umask = 0;
  // openat2(2) RESOLVE_* bits.
  uint64_t resolve = 0;
};

// How the last component is treated.
struct WalkFlags {
  bool follow_last = true;       // follow a symbolic link in the last component
  bool allow_empty = false;      // AT_EMPTY_PATH: "" names `start`
  bool need_dir = false;         // ENOTDIR otherwise
};

// A parent directory and a last name, for create, unlink and rename. `name` is never empty, "." or
// ".." unless `last_special`; a trailing slash is told by must_be_dir.
struct ParentWalk {
  Path parent;
  std::string name;
  bool must_be_dir = false;
  bool last_special = false;
};

// The registries of what is opened by type rather than by filesystem; filled at boot.
class SpecialFiles {
 public:
  using OpenDevice = std::function<base::Result<base::Ref<FileDescription>>(const OpenArgs&, dev_t)>;
  using OpenFifo = std::function<base::Result<base::Ref<FileDescription>>(const OpenArgs&)>;
  // (major, minor) or, with minor -1, a whole major. Character devices only.
  void RegisterCharDevice(unsigned major, int minor, OpenDevice open);
  void set_fifo(OpenFifo open) { fifo_ = std::move(open); }
  // ENXIO if nothing is registered (also for sockets and block devices).
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args, const InodeAttr& attr) const;

 private:
  absl::flat_hash_map<uint64_t, OpenDevice> chars_;
  OpenFifo fifo_;
};

// One per kernel. Thread-safe after boot.
class Vfs {
 public:
  SpecialFiles& special_files() { return special_; }
  void RegisterFilesystem(std::unique_ptr<FilesystemType> type);
  FilesystemType* FindFilesystem(std::string_view name) const;  // null: ENODEV
  std::vector<const FilesystemType*> filesystems() const;

  // --- walks ---
  base::Result<Path> Walk(const WalkContext& ctx, std::string_view path, WalkFlags flags);
  base::Result<ParentWalk> WalkParent(const WalkContext& ctx, std::string_view path);
  // Absolute path of `path` as seen from `root` (Linux: d_path), with " (deleted)" for unlinked
  // ones and "(unreachable)" in front of places outside of `root`.
  std::string PathName(MountNamespace& ns, const Path& root, const Path& path);

  // --- open(2) and friends; `flags` O_*, `mode` before the umask ---
  base::Result<base::Ref<FileDescription>> Open(const WalkContext& ctx, std::string_view path,
                                                uint32_t flags, mode_t mode);
  // Opens an inode that is already walked to (exec, /proc/self/fd, core).
  base::Result<base::Ref<FileDescription>> OpenPath(const WalkContext& ctx, const Path& path,
                                                    uint32_t flags);
  base::Status Mkdir(const WalkContext& ctx, std::string_view path, mode_t mode);
  base::Status Mknod(const WalkContext& ctx, std::string_view path, mode_t mode, dev_t dev);
  // mknod of a socket for bind(2): also returns where it is.
  base::Result<Path> MknodAt(const WalkContext& ctx, std::string_view path, mode_t mode, dev_t dev);
  base::Status Symlink(const WalkContext& ctx, std::string_view target, std::string_view path);
  base::Status Link(const WalkContext& old_ctx, std::string_view old_path, WalkFlags old_flags,
                    const WalkContext& new_ctx, std::string_view new_path);
  // linkat of a file that has no name yet (O_TMPFILE, AT_EMPTY_PATH).
  base::Status LinkPath(const Path& old, const WalkContext& new_ctx, std::string_view new_path);
  base::Status Unlink(const WalkContext& ctx, std::string_view path);
  base::Status Rmdir(const WalkContext& ctx, std::string_view path);
  base::Status Rename(const WalkContext& old_ctx, std::string_view old_path,
                      const WalkContext& new_ctx, std::string_view new_path, uint32_t flags);

  // --- on places that are already walked to, with permission checks of the caller's identity ---
  base::Result<InodeAttr> GetAttr(const Path& path);
  base::Status SetAttr(const Credentials& creds, const Path& path, AttrChange change);
  base::Status Access(const Credentials& creds, const Path& path, int may);
  base::Result<std::string> ReadLink(const Credentials& creds, const Path& path);
  base::Result<std::string> GetXattr(const Credentials& creds, const Path& path, std::string_view name);
  base::Status SetXattr(const Credentials& creds, const Path& path, std::string_view name,
                        std::string_view value, int flags);
  base::Result<std::vector<std::string>> ListXattr(const Credentials& creds, const Path& path);
  base::Status RemoveXattr(const Credentials& creds, const Path& path, std::string_view name);
  base::Result<struct statfs> StatFs(const Path& path);

  // --- mounts ---
  base::Result<base::Ref<Mount>> MakeMount(std::string_view fs_type, const MountArgs& args);
  // Bind mount of `what` (recursive with MS_REC) on `where`.
  base::Status Bind(MountNamespace& ns, const Path& what, const Path& where, uint64_t flags);

  // Drops cached dentries beyond the bound; called by the cache itself.
  size_t cached_dentries() const;

  // A description without a place in the tree needs an inode and path all the same (pipes,
  // sockets, eventfd, memfd): an anonymous dentry on the kernel's internal mount.
  Path AnonymousPath(base::Ref<Inode> inode, std::string name);

  Vfs();
  ~Vfs();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  SpecialFiles special_;
};

// Inode of an anonymous file (anon_inode, pipe, socket): mode and times kept in memory.
class AnonInode : public Inode {
 public:
  AnonInode(Filesystem* fs, mode_t mode, uid_t uid, gid_t gid);
  base::Result<InodeAttr> GetAttr() override;
  base::Status SetAttr(const AttrChange& change) override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;  // ENXIO

 private:
  absl::Mutex mutex_;
  InodeAttr attr_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
