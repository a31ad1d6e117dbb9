// Inodes of the gofer's files, of every type. Internal to sentry/fs/gofer.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gofer/protocol.h"
#include "sentry/base/file_source.h"
#include "sentry/base/host_fd.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fs/gofer/fs.h"
#include "sentry/fs/gofer/tree_walk.h"
#include "sentry/vfs/inode.h"

namespace sentry {

// The regular files of a directory, or the directories in it, in its order, by the host's inode
// number. Who opens one of them mostly opens those behind it next. Immutable but for the counts.
struct GoferSiblings {
  explicit GoferSiblings(mode_t type) : type(type) {}
  const mode_t type;  // S_IFREG or S_IFDIR
  std::vector<uint64_t> files;
  // Of directories: those among which their parent is, and its place there.
  std::weak_ptr<const GoferSiblings> up;
  size_t up_index = 0;
  mutable std::atomic<uint32_t> opens{0};  // of files for which the gofer had to be asked
  mutable std::atomic<size_t> known{0};    // how many of them had inodes when these were told last
};

// The entries of a directory at one moment. Immutable.
struct GoferListing {
  struct Item {
    std::string name;
    uint64_t ino;
    uint8_t type;
  };
  std::vector<Item> items;
  std::shared_ptr<const GoferSiblings> siblings;
  std::shared_ptr<const GoferSiblings> directories;
};

class GoferInode;

// The names in a directory of an exclusive filesystem: those that were found out so far, in the
// directory's order, or since the directory was made.
struct GoferNames {
  // Null: there is something, which the gofer is to be asked for.
  std::map<std::string, base::Ref<Inode>, std::less<>> children;
  std::vector<std::shared_ptr<const GoferSiblings>> siblings;  // of each part
  // They are all: what is not among them is not there.
  bool complete = false;
  // No more are looked for: they are all, or too many, or one could not be looked at.
  bool ended = false;
  uint64_t cursor = 0;   // where the next part begins, ...
  uint64_t version = 0;  // ... unless the directory has another version than this by now
};

// Attributes are cached. With an exclusive filesystem they are the truth, but for what the host
// changes by itself on a write or a change of names (`stale_`), which is asked for when somebody
// wants to know. Otherwise they are good for kSharedNs, and after that asked for: of the host if
// the file is open here and that tells enough, else of the gofer.
class GoferInode : public Inode {
 public:
  GoferInode(GoferFilesystem* fs, uint64_t ino, const gofer::Node& node, std::string link);

  GoferFilesystem& gofer_fs() const { return static_cast<GoferFilesystem&>(fs()); }
  gofer::Handle handle() const { return handle_; }
  // The same file of the host?
  bool Is(const gofer::Attr& attr) const;

  base::Result<InodeAttr> GetAttr() override;
  bool WatchAttr(AttrWords* words) override;
  base::Status SetAttr(const AttrChange& change) override;

  base::Result<base::Ref<Inode>> Lookup(std::string_view name) override;
  base::Result<std::vector<base::Ref<Inode>>> LookupMany(
      std::span<const std::string_view> names) override;
  bool looks_up_many() const override { return true; }
  base::Result<base::Ref<Inode>> Create(std::string_view name, const NewInode& args) override;
  base::Result<base::Ref<Inode>> Mkdir(std::string_view name, const NewInode& args) override;
  base::Result<base::Ref<Inode>> Symlink(std::string_view name, std::string_view target,
                                         const NewInode& args) override;
  base::Result<base::Ref<Inode>> Tmpfile(const NewInode& args) override;
  base::Status Link(std::string_view name, Inode& target) override;
  base::Status Unlink(std::string_view name, Inode& victim) override;
  base::Status Rmdir(std::string_view name, Inode& victim) override;
  base::Status Rename(std::string_view name, Inode& moved, Inode& new_dir,
                      std::string_view new_name, Inode* replaced, uint32_t flags) override;
  bool Revalidate(std::string_view name, Inode* child) override;

  base::Result<std::string> ReadLink() override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;
  base::Result<std::string> GetXattr(std::string_view name) override;
  base::Status SetXattr(std::string_view name, std::string_view value, int flags) override;
  base::Result<std::vector<std::string>> ListXattr() override;
  base::Status RemoveXattr(std::string_view name) override;

  // --- for the descriptions ---
  base::Status SyncDirectory();
  // All entries of the directory.
  base::Result<std::shared_ptr<const GoferListing>> List();
  // Reads from `fd` of this file at `offset` without blocking a worker. Fewer bytes at its end, and
  // `*end` is then true (it is not touched otherwise), or before an error.
  base::Result<size_t> ReadAt(int fd, char* buffer, size_t size, uint64_t offset, bool* end);
  // After a write or a read: the host has changed size and times. `end`: how far it went.
  void Wrote(uint64_t end) {
    uint64_t reach = reach_.load(std::memory_order_relaxed);
    while (reach < end && !reach_.compare_exchange_weak(reach, end, std::memory_order_relaxed)) {
    }
    data_version_.fetch_add(1, std::memory_order_seq_cst);
    MarkStale();
  }
  void WasRead();
  // The first bytes of the file, which is so long, or all of a short one, as far as they are in the
  // memory of this process or, with `fd`, the host. Null: they are not. The caller knows that
  // reading them does not change the access time.
  base::Ref<GoferContent> Begin(base::HostFd* fd, uint64_t size);
  // What was read of the file since the version was this is still what is in it. Nothing if its
  // bytes may change unseen: a shared mount, or a writable mapping.
  std::optional<uint64_t> DataVersion() const {
    if (!gofer_fs().exclusive() || mapped_writable_.load(std::memory_order_acquire)) {
      return std::nullopt;
    }
    return data_version_.load(std::memory_order_seq_cst);
  }
  // A host descriptor that cannot write.
  base::Result<base::Ref<base::HostFd>> MappingFd();
  // The file for who maps it to read it. Null if it must be read: its bytes or size may change
  // unseen, or a read is to change the access time.
  base::Ref<base::FileSource> MappedSource();
  // How it is, for who reads it without asking. Nothing if that may change unseen, or a read is to
  // change the access time. May park.
  struct Lendable {
    uint64_t size;
    uint64_t source;  // of MappedSource; 0: nobody has asked for it
  };
  std::optional<Lendable> LookForLending();
  // LookForLending would have to ask the host or the gofer.
  bool HasStaleAttr() const { return stale_.load(std::memory_order_acquire); }
  // How long the file is; `fd` is open on it. May be outdated at once, as any size.
  base::Result<uint64_t> SizeNow(int fd) const;
  void SetMappedWritable() {
    changed_.store(true, std::memory_order_relaxed);
    mapped_writable_.store(true, std::memory_order_release);
    attr_word().Changed();
  }
  base::Status Truncate(uint64_t size);
  // Parks until the gofer has made what changes of attributes were not waited for. Before any use
  // of the host's file that shows them or changes them too.
  void Settle() {
    if (unsettled_.load(std::memory_order_acquire)) SettleSlow();
  }
  // True if the file is known to end at `offset`.
  bool EndsAt(uint64_t offset) const;
  // All bytes of the file, if they are kept, are still what is in it, and a read of them would
  // change nothing. May park.
  base::Ref<GoferContent> Content();
  // Keeps all bytes of the file, as they were at `version`.
  void KeepContent(uint64_t version, std::span<const std::byte> bytes);
  void DropContent();
  // Orders writes, appends and changes of size by this sandbox (Linux's i_rwsem for data).
  fiber::Mutex& data_mutex() { return data_mutex_; }
  // Counts open descriptions; the host's descriptors stay open a while after the last.
  void AddOpen();
  void DropOpen();
  // Closes host descriptors unless a description is open.
  void CloseIdle();
  void DropNames();
  // A host descriptor for reading or for reading and writing; may park.
  base::Result<base::Ref<base::HostFd>> EnsureFd(bool write);

 private:
  friend class GoferFilesystem;
  friend class GoferContents;
  static constexpr int64_t kSharedNs = 200'000;
  // How long owners are believed to be the same while this side writes, and how long after a change
  // another one may get the same time: the host's clock of files may be a coarse one.
  static constexpr int64_t kOwnersNs = 5'000'000;
  static constexpr int64_t kCoarseNs = 20'000'000;

  ~GoferInode() override;
  gofer::Reply Call(gofer::Request request) {
    Settle();
    return gofer_fs().connection().Call(std::move(request));
  }
  base::Result<base::Ref<base::HostFd>> OpenFd(bool write);
  void AdoptFd(base::UniqueFd fd);
  bool HasFd() const;
  // Whether the next read changes the access time.
  bool ReadsChangeAtime();
  // The host may have put another file in the place of this one (overlayfs, when it is first opened
  // for writing or cut): what was opened before is not used for new mappings and descriptions.
  void FileReplaced();
  // Keeps it unless the file has been replaced since `replaced_` was that.
  void KeepForReading(base::UniqueFd fd, uint64_t replaced);
  // The file that was asked for, and no other?
  bool IsOpenOn(const base::UniqueFd& fd) const;
  void SetSiblings(const std::shared_ptr<const GoferSiblings>& siblings, size_t index);
  bool IsAmong(const std::shared_ptr<const GoferSiblings>& siblings) const;
  // Opens this file, and those next to it in its directory, for reading, if that is likely to pay.
  void OpenWithSiblings();
  // Asks the gofer for files from place `at` on that have no descriptor, and does not wait. Null if
  // there is none.
  base::Ref<GoferOpening> BeginOpening(const GoferSiblings& siblings, size_t at);
  // As BeginOpening; they are there for the next that is opened.
  void OpenAhead(const std::shared_ptr<const GoferSiblings>& siblings, size_t at);
  // Waits for the descriptors and gives them to their inodes.
  void Adopt(const GoferOpening& opening);
  void Apply(const gofer::Attr& attr);
  // Asks the gofer for a change of attributes and does not wait. False if it might fail, or does
  // not commute with what is under way: then it must be waited for.
  bool ChangeLate(const gofer::SetAttrRequest& request);
  bool MayBeLate(const gofer::SetAttrRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the filesystem whether the gofer could change that of this file.
  void NoteChange(uint32_t mask, bool done);
  void SettleSlow();
  // Those that are not known to be done.
  std::vector<base::Ref<GoferLateCall>> TakeLateChanges();
  // Reads until the buffer is full or the file ends (*end): how many bytes, or -errno if there are
  // none. May block.
  ssize_t ReadHere(int fd, std::span<char> buffer, uint64_t offset, int flags, bool* end) const;
  void AttrChanged() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the owners are those that are known, if the host's own view of the file is `st`, whose
  // owners say nothing. `changed`: this side has changed the file since it was last looked at.
  bool OwnersHold(const struct stat& st, bool changed) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  InodeAttr ToInodeAttr(const gofer::Attr& attr) const;
  // A name of it was removed.
  void LostName();
  bool lost_name() const { return lost_name_.load(std::memory_order_relaxed); }
  // Without its last name the file may hold so much room on the host's disk until the gofer lets go
  // of it that this should be soon.
  bool HoldsRoom() const;
  void MarkStale() {
    changed_.store(true, std::memory_order_relaxed);
    stale_.store(true, std::memory_order_release);
    attr_word().Changed();
  }
  // The names in this directory have changed: what is known of them is adapted. Called with the
  // directory's lock held exclusive, so that no lookup is under way.
  void NameAdded(std::string_view name);
  void NameGone(std::string_view name);
  void NamesChanged();
  // It was just made, and is empty.
  void SetNewDirectory();
  // What is known of the names says about `name`: an inode, null (there is none), or nothing.
  std::optional<base::Ref<Inode>> FindKnown(std::string_view name);
  // Counts a lookup that asked the gofer, and looks up many children when that is likely to pay.
  void CountLookup();
  // Looks up the next page of them. False if nothing came of it.
  bool Prefetch();
  // The inodes of a page become known names.
  void TakeNodes(const gofer::DirResult& page, GoferNames* names);
  // Keeps them unless names have changed since they were `version`: then false.
  bool KeepNames(std::unique_ptr<GoferNames> names, uint64_t version);
  // Lists the directory for List. `version`: that of its names before.
  base::Result<std::shared_ptr<const GoferListing>> ReadAll(uint64_t version);
  // The first page, if it was read before it was asked for.
  base::Result<gofer::DirResult> TakeReading(const GoferReading& reading, uint64_t version);
  // Has the gofer read the directory that is likely to be listed after this one.
  void ReadAhead(const GoferListing& listing);
  // Which that is: the first in this one, or that behind it, or behind one above. Null if unknown.
  base::Ref<GoferInode> NextDirectory(const GoferListing& listing) const;
  // Whether its names are known, as far as they ever will.
  bool NamesEnded() const;
  // Sends a request that makes the node `name` in this directory (empty: one without a name), again
  // if the gofer was out of handles.
  base::Result<base::Ref<Inode>> MakeNode(std::string_view name, const gofer::Request& request,
                                          bool want_fd, std::string link);
  static GoferInode& From(Inode& inode) { return static_cast<GoferInode&>(inode); }

  const gofer::Handle handle_;
  // By which the host names the file. They change when overlayfs copies a file of several names up;
  // ino() does not. Written under the filesystem's mutex.
  std::atomic<uint64_t> host_dev_;
  std::atomic<uint64_t> host_ino_;

  std::atomic<bool> stale_{false};
  std::atomic<bool> changed_{false};  // here, ever
  std::atomic<bool> mapped_writable_{false};
  std::atomic<bool> atime_due_{false};  // the next read changes the access time (relatime)
  // When it was due, a read did not change it: a noatime mount, or a lower file of overlayfs.
  std::atomic<bool> atime_kept_{false};
  std::atomic<bool> lost_name_{false};
  std::atomic<bool> never_linked_{false};  // made with O_TMPFILE | O_EXCL
  std::atomic<bool> no_file_caps_{false};  // exclusive: no security.capability
  std::atomic<bool> unsettled_{false};     // there are late changes
  std::atomic<uint64_t> names_version_{0};
  std::atomic<uint64_t> data_version_{0};  // of the bytes, the size included
  std::atomic<uint64_t> reach_{0};         // the end of the furthest write
  std::atomic<bool> listed_{false};
  std::atomic<uint32_t> lookups_{0};
  std::atomic<uint32_t> vain_prefetches_{0};

  mutable absl::Mutex mutex_;  // leaf
  gofer::Attr attr_ ABSL_GUARDED_BY(mutex_);
  std::string link_ ABSL_GUARDED_BY(mutex_);  // target, once known; a link keeps it for life
  int64_t fetched_ns_ ABSL_GUARDED_BY(mutex_);
  // The access time before a read that should have changed it.
  std::optional<gofer::Time> read_at_atime_ ABSL_GUARDED_BY(mutex_);
  // When and under which name Revalidate last found it.
  int64_t seen_ns_ ABSL_GUARDED_BY(mutex_) = 0;
  const Inode* seen_parent_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::string seen_name_ ABSL_GUARDED_BY(mutex_);
  base::Ref<base::HostFd> read_fd_ ABSL_GUARDED_BY(mutex_);
  base::Ref<base::HostFd> write_fd_ ABSL_GUARDED_BY(mutex_);  // O_RDWR
  base::Ref<base::FileSource> source_ ABSL_GUARDED_BY(mutex_);
  std::vector<base::Ref<GoferLateCall>> late_changes_ ABSL_GUARDED_BY(mutex_);
  uint32_t late_mask_ ABSL_GUARDED_BY(mutex_) = 0;  // what they change: SetAttrMask
  base::Ref<GoferContent> content_ ABSL_GUARDED_BY(mutex_);
  uint64_t replaced_ ABSL_GUARDED_BY(mutex_) = 0;  // how often it was
  int opens_ ABSL_GUARDED_BY(mutex_) = 0;
  std::weak_ptr<const GoferListing> listing_ ABSL_GUARDED_BY(mutex_);
  uint64_t listing_version_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<GoferNames> names_ ABSL_GUARDED_BY(mutex_);  // null: none are known
  // Of a regular file or directory: those of the directory in which it was seen last, and its place
  // there.
  std::weak_ptr<const GoferSiblings> siblings_ ABSL_GUARDED_BY(mutex_);
  size_t sibling_index_ ABSL_GUARDED_BY(mutex_) = 0;

  fiber::Mutex data_mutex_;

  // Of the filesystem's lists, under its mutex.
  std::optional<std::list<GoferInode*>::iterator> idle_at_;
  std::optional<std::list<GoferInode*>::iterator> named_at_;
  std::optional<size_t> content_at_;
};

}  // namespace sentry
