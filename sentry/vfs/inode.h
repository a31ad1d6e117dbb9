// Inode and Filesystem: what a filesystem implements.
#pragma once

#include <sys/statfs.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/lanes/path_words.h"
#include "sentry/vfs/types.h"

namespace sentry {

class FileLocks;
class InodeWatches;

// A mounted instance of a filesystem (Linux: super_block). Lives as long as an inode or mount of
// it.
class Filesystem : public base::RefCounted {
 public:
  // type_name as /proc/mounts shows it. A device number is taken from the anonymous range.
  Filesystem(std::string type_name, uint64_t magic);
  const std::string& type_name() const { return type_name_; }
  uint64_t magic() const { return magic_; }
  dev_t dev() const { return dev_; }
  virtual base::Result<struct statfs> StatFs();
  // Options after "rw," in /proc/mounts, e.g. ",size=64k"; empty if none.
  virtual std::string ShowOptions() const { return ""; }
  virtual base::Status Sync() { return base::Ok(); }
  // mount(MS_REMOUNT) with new options; EINVAL for bad ones.
  virtual base::Status Reconfigure(std::string_view) { return base::Ok(); }
  // True if directory entries can change without this kernel's doing (a shared host directory):
  // cached dentries are then passed through Inode::Revalidate at each use.
  virtual bool needs_revalidation() const { return false; }
  // True if a lookup is as cheap as the dentry cache, which then keeps no negative entries.
  virtual bool cheap_lookup() const { return false; }
  // True if names, owners and permissions change by this kernel's doing alone, and are where the
  // dentry cache and Inode::GetPerm find them.
  virtual bool keeps_names() const { return false; }

  // Linux's s_vfs_rename_mutex: held over a rename between directories.
  fiber::Mutex& rename_mutex() { return rename_mutex_; }
  // Counts changes of names that this kernel makes, raised before each: what was learnt without the
  // directory's lock is dropped if it moved.
  uint64_t change_sequence() const { return change_sequence_.load(std::memory_order_seq_cst); }
  void BeginChange() { change_sequence_.fetch_add(1, std::memory_order_seq_cst); }
  // Mounts of it in any namespace; when the last goes, cached dentries are dropped.
  void AddMount() { mounts_.fetch_add(1, std::memory_order_relaxed); }
  bool RemoveMount() { return mounts_.fetch_sub(1, std::memory_order_acq_rel) == 1; }
  int mounts() const { return mounts_.load(std::memory_order_acquire); }
  // Linux's SB_RDONLY: whatever its mounts say. EBUSY while a file is open for writing.
  bool read_only() const { return read_only_.load(std::memory_order_acquire); }
  base::Status SetReadOnly(bool read_only);
  // Files that are open for writing.
  void AddWriters(int n) { writers_.fetch_add(n, std::memory_order_acq_rel); }

 protected:
  ~Filesystem() override;

 private:
  const std::string type_name_;
  const uint64_t magic_;
  const dev_t dev_;
  fiber::Mutex rename_mutex_;
  std::atomic<uint64_t> change_sequence_{0};
  std::atomic<int> mounts_{0}, writers_{0};
  std::atomic<bool> read_only_{false};
};

// Owner and permissions, all that a permission check needs.
struct InodePerm {
  mode_t mode;
  uid_t uid;
  gid_t gid;
};
// Linux: generic_permission. EACCES.
base::Status GenericPermission(const Credentials& creds, const InodePerm& perm, int may);
// Linux: capable_wrt_inode_uidgid.
bool CapableOver(const Credentials& creds, int cap, uid_t uid, gid_t gid);
// Linux: inode_owner_or_capable.
bool OwnerOrCapable(const Credentials& creds, uid_t uid, gid_t gid);
// CLOCK_REALTIME at the granularity that Linux stamps inodes with.
timespec CurrentTime();

// What creates an inode: owner and permissions as Linux's inode_init_owner would choose them; the
// VFS has applied the umask and the set-group-id rule before.
struct NewInode {
  mode_t mode;  // type and permissions
  uid_t uid;
  gid_t gid;
  dev_t rdev = 0;
};

struct OpenArgs {
  Path path;
  uint32_t flags;  // O_*
  const Credentials& creds;
};

// An object of a filesystem. The virtual methods are called after the VFS has checked permissions,
// read-only mounts and names ("." and ".." and names with '/' never arrive). Methods that change or
// search a directory run with its lock() held (exclusive for changes, shared for Lookup); they may
// park the fiber. Errors are Linux's. Defaults: ENOTDIR for directory methods on non-directories,
// EPERM where Linux says so for a missing method.
class Inode : public base::RefCounted {
 public:
  Inode(Filesystem* fs, uint64_t ino, mode_t mode);
  Filesystem& fs() const { return *fs_; }
  uint64_t ino() const { return ino_; }
  mode_t type() const { return type_; }  // S_IFMT bits
  bool IsDir() const { return S_ISDIR(type_); }
  bool IsReg() const { return S_ISREG(type_); }
  bool IsSymlink() const { return S_ISLNK(type_); }
  // Linux's i_rwsem: order is parent before child, and by address for unrelated directories.
  fiber::SharedMutex& lock() { return lock_; }

  // --- attributes ---
  virtual base::Result<InodeAttr> GetAttr() = 0;
  virtual base::Status SetAttr(const AttrChange& change) = 0;
  // Adds the words that change before GetAttr answers something else than now. False: that may
  // happen without.
  using AttrWords = absl::InlinedVector<PathWord*, 4>;
  virtual bool WatchAttr(AttrWords* /*words*/) { return false; }
  // That of the attributes, for filesystems that implement WatchAttr.
  PathWord& attr_word() { return attr_word_; }
  // May `creds` do `may` (kMay*)? Default: Linux's generic_permission with GetAttr; EACCES.
  virtual base::Status CheckPermission(const Credentials& creds, int may);
  // Owner and permissions: from what CachePerm left, else by GetAttr.
  base::Result<InodePerm> GetPerm();
  // The outcome of a walk that is kept (PathRecord) depends on what GetPerm says of this directory.
  void NotePermUsed() {
    if (!perm_used_.load(std::memory_order_relaxed)) perm_used_.store(true);
  }

  // --- directories ---
  // ENOENT if there is none (the VFS then caches a negative dentry).
  virtual base::Result<base::Ref<Inode>> Lookup(std::string_view name);
  // Looks up a run of names at once; result i belongs to names[i]; shorter when a name is missing
  // (last result null), not a directory, or a symbolic link. Default: one Lookup.
  virtual base::Result<std::vector<base::Ref<Inode>>> LookupMany(
      std::span<const std::string_view> names);
  // True if LookupMany does better than one Lookup.
  virtual bool looks_up_many() const { return false; }
  // Regular files, FIFOs, sockets and devices by new_inode.mode, and directories and links.
  virtual base::Result<base::Ref<Inode>> Create(std::string_view name, const NewInode& new_inode);
  virtual base::Result<base::Ref<Inode>> Mkdir(std::string_view name, const NewInode& new_inode);
  virtual base::Result<base::Ref<Inode>> Symlink(std::string_view name, std::string_view target,
                                                 const NewInode& new_inode);
  virtual base::Status Link(std::string_view name, Inode& target);
  virtual base::Status Unlink(std::string_view name, Inode& victim);
  virtual base::Status Rmdir(std::string_view name, Inode& victim);
  // `replaced` is null or the inode that new_name has. flags: RENAME_NOREPLACE, RENAME_EXCHANGE,
  // RENAME_WHITEOUT.
  virtual base::Status Rename(std::string_view name, Inode& moved, Inode& new_dir,
                              std::string_view new_name, Inode* replaced, uint32_t flags);
  // The directory was removed: nothing can be made in it (Linux: S_DEAD). Set under lock().
  bool dead() const { return dead_.load(std::memory_order_acquire); }
  void SetDead() { dead_.store(true, std::memory_order_release); }
  // Is the cached entry name -> child (null: negative) still right? Only if
  // fs().needs_revalidation().
  virtual bool Revalidate(std::string_view name, Inode* child);
  // May the dentry cache keep names of this object, and all that is below it, while nobody uses
  // them? No for what ends by itself, such as a process (Linux: d_delete, proc_flush_pid).
  virtual bool keeps_dentries() const { return true; }
  // O_TMPFILE.
  virtual base::Result<base::Ref<Inode>> Tmpfile(const NewInode& new_inode);

  // --- links ---
  virtual base::Result<std::string> ReadLink();
  // Magic links (/proc/PID/fd/N, exe, root, cwd): the place itself; EINVAL for ordinary ones.
  virtual base::Result<Path> FollowMagicLink(const Credentials& creds);
  virtual bool is_magic_link() const { return false; }

  // --- opening ---
  // Makes an open file. The VFS has done permission checks and O_TRUNC comes as SetAttr after.
  // Devices, FIFOs and sockets never arrive here unless the filesystem wants them: the VFS opens
  // them by type through the registries of special files.
  virtual base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) = 0;

  // --- extended attributes: default EOPNOTSUPP ---
  virtual base::Result<std::string> GetXattr(std::string_view name);
  virtual base::Status SetXattr(std::string_view name, std::string_view value, int flags);
  virtual base::Result<std::vector<std::string>> ListXattr();
  virtual base::Status RemoveXattr(std::string_view name);

  // POSIX, OFD and flock locks; made on first use.
  FileLocks& locks();
  FileLocks* locks_if_any() const { return locks_.load(std::memory_order_acquire); }
  // From now on it is seen when a descriptor of it is closed: no stub does that alone
  // (platform/fd_lane.h), and what was closed so has gone. Not with locks held.
  void SeeCloses();
  // For FdTable. A descriptor of it is lent to be closed by a stub, until EndLentClose. False: it
  // must not be.
  bool BeginLentClose() {
    lent_closes_.fetch_add(1, std::memory_order_seq_cst);
    if (!sees_closes_.load(std::memory_order_seq_cst)) return true;
    EndLentClose();
    return false;
  }
  void EndLentClose() { lent_closes_.fetch_sub(1, std::memory_order_relaxed); }
  // State that a kind of special file keys by its inode (a FIFO's pipe, a bound AF_UNIX socket);
  // made by the special file's code under special_mutex.
  class Special : public base::RefCounted {};
  base::Ref<Special> special() const;
  // Sets it if none is set; returns what is set then.
  base::Ref<Special> SetSpecialIfNone(base::Ref<Special> special);
  void ClearSpecial();

  // Writers and executors, for ETXTBSY (Linux: i_writecount).
  base::Status GetWriteAccess();  // ETXTBSY while it is executed
  void DropWriteAccess();
  base::Status DenyWriteAccess();  // ETXTBSY while it is open for writing
  void AllowWriteAccess();         // undoes DenyWriteAccess
  bool has_writers() const { return write_count_.load(std::memory_order_acquire) > 0; }
  // How often write access was got.
  uint64_t write_opens() const { return write_opens_.load(std::memory_order_acquire); }

  // inotify's watches of this inode; null while there are none. See notify.h.
  InodeWatches* watches() const { return watches_.load(std::memory_order_acquire); }
  InodeWatches& MakeWatches();

 protected:
  ~Inode() override;
  // For filesystems whose attributes only this kernel changes: leaves owner and mode where
  // permission checks find them. Called at construction and after each change.
  void CachePerm(mode_t mode, uid_t uid, gid_t gid);

 private:
  const base::Ref<Filesystem> fs_;
  const uint64_t ino_;
  const mode_t type_;
  fiber::SharedMutex lock_;
  std::atomic<int> write_count_{0};
  std::atomic<uint64_t> write_opens_{0};
  std::atomic<bool> dead_{false};
  std::atomic<bool> perm_cached_{false};
  std::atomic<mode_t> perm_mode_{0};
  std::atomic<uint64_t> perm_ids_{0};
  std::atomic<bool> perm_used_{false};
  std::atomic<bool> sees_closes_{false};
  std::atomic<int> lent_closes_{0};
  PathWord attr_word_;
  std::atomic<FileLocks*> locks_{nullptr};
  std::atomic<InodeWatches*> watches_{nullptr};
  Special* special_ = nullptr;  // under a mutex chosen by the inode's address
};

// A kind of filesystem that mount(2) can make.
struct MountArgs {
  std::string source;
  uint64_t flags;    // MS_*
  std::string data;  // comma-separated options
  const Credentials& creds;
};
class FilesystemType {
 public:
  virtual ~FilesystemType() = default;
  virtual std::string_view name() const = 0;
  // False: listed "nodev" in /proc/filesystems.
  virtual bool requires_device() const { return false; }
  // Root inode of a new (or the shared) instance. EINVAL for bad options.
  virtual base::Result<base::Ref<Inode>> Mount(const MountArgs& args) = 0;
  // ENOENT if it has no such option (none, by default), EINVAL if it cannot have this value.
  virtual base::Status CheckOption(std::string_view key, std::string_view value) const;
};

}  // namespace sentry
