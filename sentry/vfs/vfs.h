// Operations on paths: what the path system calls do once their arguments are decoded.
// Follows Linux's fs/namei.c and fs/open.c, with their order of checks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "sentry/auth/credentials.h"
#include "sentry/vfs/dentry.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"
#include "sentry/vfs/mount.h"
#include "sentry/vfs/types.h"

namespace sentry {

struct PathRecord;

// Where a walk starts and under which identity. The caller keeps the referenced objects alive.
struct WalkContext {
  const Credentials& creds;
  MountNamespace& ns;
  Path root;   // of the task
  Path start;  // cwd, or the directory of dirfd
  mode_t umask = 0;
  // openat2(2) RESOLVE_* bits.
  uint64_t resolve = 0;
  // Where the walk notes what its outcome depends on; null: nowhere.
  PathRecord* record = nullptr;
};

// How the last component is treated.
struct WalkFlags {
  bool follow_last = true;   // follow a symbolic link in the last component
  bool allow_empty = false;  // AT_EMPTY_PATH: "" names `start`
  bool need_dir = false;     // ENOTDIR otherwise
  bool exec_check = false;   // kMayExec on a directory found, as chdir(2) needs: EACCES
};

// The registries of what is opened by type rather than by filesystem; filled at boot.
class SpecialFiles {
 public:
  using OpenDevice =
      std::function<base::Result<base::Ref<FileDescription>>(const OpenArgs&, dev_t)>;
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
  // Absolute path of `path` as seen from `root` (Linux: d_path), with " (deleted)" for unlinked
  // ones and "(unreachable)" in front of places outside of `root`.
  std::string PathName(MountNamespace& ns, const Path& root, const Path& path);

  // --- open(2) and friends; `flags` O_*, `mode` before the umask ---
  base::Result<base::Ref<FileDescription>> Open(const WalkContext& ctx, std::string_view path,
                                                uint32_t flags, mode_t mode);
  // Opens an inode that is already walked to (exec, /proc/self/fd, core).
  base::Result<base::Ref<FileDescription>> OpenPath(const WalkContext& ctx, const Path& path,
                                                    uint32_t flags);
  // For execve(2): the path must name a regular file that may be executed, on a mount without
  // MS_NOEXEC (EACCES). Read permission is not asked for. The caller denies write access to it.
  base::Result<base::Ref<FileDescription>> OpenExec(const WalkContext& ctx, std::string_view path,
                                                    WalkFlags flags = {});
  base::Status Mkdir(const WalkContext& ctx, std::string_view path, mode_t mode);
  base::Status Mknod(const WalkContext& ctx, std::string_view path, mode_t mode, dev_t dev);
  // As Mknod, for the kernel's own use: bind(2) of a socket. Also returns where it is.
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
  // chmod, chown, utimes (Linux: notify_change, setattr_prepare). Not for set_size.
  base::Status SetAttr(const Credentials& creds, const Path& path, AttrChange change);
  // truncate(2): EISDIR, EINVAL, EROFS, EACCES, ETXTBSY.
  base::Status Truncate(const Credentials& creds, const Path& path, uint64_t size);
  // ftruncate(2): through a description that is open for writing.
  base::Status Truncate(const Credentials& creds, FileDescription& file, uint64_t size);
  // Before a write by `creds`: set-id bits go unless the writer may keep them (Linux:
  // file_remove_privs). The mode that it has with those that stay; 0: none.
  base::Result<mode_t> RemovePrivs(const Credentials& creds, Inode& inode);
  // After the write: a host, for which somebody else has written, has taken these too.
  static base::Status RestorePrivs(Inode& inode, mode_t kept);
  // Permission as access(2) checks it, read-only mounts and MS_NOEXEC included.
  base::Status Access(const Credentials& creds, const Path& path, int may);
  base::Result<std::string> ReadLink(const Credentials& creds, const Path& path);
  base::Result<std::string> GetXattr(const Credentials& creds, const Path& path,
                                     std::string_view name);
  base::Status SetXattr(const Credentials& creds, const Path& path, std::string_view name,
                        std::string_view value, int flags);
  base::Result<std::vector<std::string>> ListXattr(const Credentials& creds, const Path& path);
  base::Status RemoveXattr(const Credentials& creds, const Path& path, std::string_view name);
  base::Result<struct statfs> StatFs(const Path& path);

  // --- mounts ---
  base::Result<base::Ref<Mount>> MakeMount(std::string_view fs_type, const MountArgs& args);
  // Bind mount of `what` (recursive with MS_REC in flags; MS_RDONLY and the like are added) on
  // `where`.
  base::Status Bind(MountNamespace& ns, const Path& what, const Path& where, uint64_t flags);

  // A description without a place in the tree needs an inode and path all the same (pipes,
  // sockets, eventfd, memfd): an anonymous dentry on the kernel's internal mount.
  Path AnonymousPath(base::Ref<Inode> inode, std::string name);
  // The filesystem that such inodes belong to.
  const base::Ref<Filesystem>& anonymous_filesystem() const;
  // A mount of a filesystem's root that is in no namespace yet. Mounts of one root inode share its
  // dentries.
  static base::Ref<Mount> NewMount(const base::Ref<Inode>& root, uint64_t flags,
                                   std::string source);

  Vfs();
  ~Vfs();

 private:
  struct Impl;
  base::Result<base::Ref<FileDescription>> OpenAt(const WalkContext& ctx, Path path, uint32_t flags,
                                                  bool created);
  base::Result<base::Ref<FileDescription>> OpenCreate(const WalkContext& ctx, std::string_view path,
                                                      uint32_t flags, mode_t mode);
  base::Result<base::Ref<FileDescription>> OpenTmpfile(const WalkContext& ctx,
                                                       std::string_view path, uint32_t flags,
                                                       mode_t mode);
  std::unique_ptr<Impl> impl_;
  SpecialFiles special_;
};

// Inode of an anonymous file (anon_inode, pipe, socket): mode and times kept in memory.
class AnonInode : public Inode {
 public:
  AnonInode(Filesystem* fs, mode_t mode, uid_t uid, gid_t gid);
  static uint64_t NextIno();
  base::Result<InodeAttr> GetAttr() override;
  base::Status SetAttr(const AttrChange& change) override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;  // ENXIO

 private:
  absl::Mutex mutex_;
  InodeAttr attr_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace sentry
