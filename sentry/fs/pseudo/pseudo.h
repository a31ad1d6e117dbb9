// Building blocks of filesystems whose content the kernel makes up: proc, sysfs, devpts.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"

namespace sentry {

class PseudoFs : public Filesystem {
 public:
  // `dynamic`: entries come and go by themselves, so cached ones are asked again at each use.
  PseudoFs(std::string type_name, uint64_t magic, bool dynamic)
      : Filesystem(std::move(type_name), magic), dynamic_(dynamic) {}
  bool needs_revalidation() const override { return dynamic_; }
  bool cheap_lookup() const override { return true; }
  uint64_t NextIno() { return next_ino_.fetch_add(1, std::memory_order_relaxed); }

 private:
  const bool dynamic_;
  std::atomic<uint64_t> next_ino_{2};  // 1 is the root
};

// Attributes in memory, which chmod, chown and utimes change.
class PseudoInode : public Inode {
 public:
  PseudoInode(PseudoFs* fs, uint64_t ino, mode_t mode, uid_t uid = 0, gid_t gid = 0);
  base::Result<InodeAttr> GetAttr() override;
  base::Status SetAttr(const AttrChange& change) override;
  PseudoFs& pseudo_fs() const { return static_cast<PseudoFs&>(fs()); }

 protected:
  ~PseudoInode() override = default;
  // Links of the inode, for directories 2 and the number of subdirectories.
  virtual uint32_t nlink() const { return 1; }
  virtual dev_t rdev() const { return 0; }
  virtual uint64_t size() const { return 0; }

 private:
  absl::Mutex mutex_;
  InodeAttr attr_ ABSL_GUARDED_BY(mutex_);
};

struct PseudoEntry {
  std::string name;
  uint64_t ino;
  uint8_t type;  // DT_*
};

// A directory. Fixed entries are added while it is built; subclasses make up further ones.
class PseudoDir : public PseudoInode {
 public:
  explicit PseudoDir(PseudoFs* fs, mode_t mode = 0555, uint64_t ino = 0);
  // Before anybody sees the directory. Returns `inode`.
  template <typename T>
  base::Ref<T> Add(std::string name, base::Ref<T> inode) {
    entries_.emplace(std::move(name), inode);
    return inode;
  }
  base::Ref<PseudoDir> AddDir(std::string name, mode_t mode = 0555) {
    return Add(std::move(name), base::MakeRef<PseudoDir>(&pseudo_fs(), mode));
  }

  base::Result<base::Ref<Inode>> Lookup(std::string_view name) override;
  bool Revalidate(std::string_view name, Inode* child) override;
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;

  // All entries but "." and "..", in order of the listing.
  virtual std::vector<PseudoEntry> List();

 protected:
  ~PseudoDir() override = default;
  // Entries that are not fixed. ENOENT.
  virtual base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name);
  virtual bool RevalidateDynamic(std::string_view name, Inode* child);
  virtual void ListDynamic(std::vector<PseudoEntry>* out) {}
  uint32_t nlink() const override;

 private:
  std::map<std::string, base::Ref<Inode>, std::less<>> entries_;
};

// A text that is made when it is read from its beginning (Linux: seq_file, single_open).
class PseudoFile : public PseudoInode {
 public:
  explicit PseudoFile(PseudoFs* fs, mode_t mode = 0444, uint64_t ino = 0);
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;

  // The whole content; on the fiber of the reader, may park.
  virtual base::Result<std::string> Generate() = 0;
  // A write of at most a page; EINVAL and others. Default: EIO, as for a file without write.
  virtual base::Status Store(std::string_view data, uint64_t offset);

 protected:
  ~PseudoFile() override = default;
};

class PseudoFileDescription : public SeekableFile {
 public:
  PseudoFileDescription(Path path, uint32_t flags, base::Ref<PseudoFile> file)
      : SeekableFile(std::move(path), flags), file_(std::move(file)) {}
  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool nonblock) override;
  base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool nonblock) override;

 protected:
  ~PseudoFileDescription() override = default;

 private:
  const base::Ref<PseudoFile> file_;
  fiber::Mutex mutex_;
  bool valid_ ABSL_GUARDED_BY(mutex_) = false;
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

// A file given by functions.
class FuncFile : public PseudoFile {
 public:
  using Reader = std::function<base::Result<std::string>()>;
  using Writer = std::function<base::Status(std::string_view)>;
  FuncFile(PseudoFs* fs, mode_t mode, Reader reader, Writer writer = nullptr)
      : PseudoFile(fs, mode), reader_(std::move(reader)), writer_(std::move(writer)) {}
  base::Result<std::string> Generate() override { return reader_(); }
  base::Status Store(std::string_view data, uint64_t offset) override {
    return writer_ ? writer_(data) : PseudoFile::Store(data, offset);
  }

 protected:
  ~FuncFile() override = default;

 private:
  const Reader reader_;
  const Writer writer_;
};

// A symbolic link whose target is made up when it is read.
class PseudoLink : public PseudoInode {
 public:
  using Target = std::function<base::Result<std::string>()>;
  PseudoLink(PseudoFs* fs, Target target, uint64_t ino = 0);
  PseudoLink(PseudoFs* fs, std::string target);
  base::Result<std::string> ReadLink() override { return target_(); }
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override;

 protected:
  ~PseudoLink() override = default;

 private:
  const Target target_;
};

// DT_* of an inode.
uint8_t DirentType(const Inode& inode);

}  // namespace sentry
