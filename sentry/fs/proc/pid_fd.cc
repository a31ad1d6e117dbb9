// /proc/PID/{fd,fdinfo,ns,map_files}/ and /proc/PID/mem.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "platform/platform.h"
#include "sentry/fs/nsfs/nsfs.h"
#include "sentry/fs/proc/pid_dir.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/fd_table.h"

namespace sentry {
namespace {

constexpr uint32_t kFdIndex = 1u << 22, kFdInfoIndex = 1u << 21, kNsIndex = 1u << 20,
                   kMapIndex = 1u << 19;

bool ParseFd(std::string_view name, int* fd) {
  auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), *fd);
  return ec == std::errc() && end == name.data() + name.size() && *fd >= 0 &&
         name == std::to_string(*fd);
}

base::Result<base::Ref<FileDescription>> FileOf(Task& task, int fd) {
  base::Ref<FdTable> table = task.fd_table_ref();
  base::Ref<FileDescription> file = table != nullptr ? table->Get(fd) : nullptr;
  if (file == nullptr) return base::Error(ENOENT);
  return file;
}

// What fd and fdinfo share: an entry for each open descriptor.
class FdListDir : public PidOwned<PseudoDir> {
 public:
  FdListDir(ProcFs* fs, base::Ref<Pid> pid, bool whole, mode_t mode, uint32_t index, uint8_t type)
      : PidOwned(fs, pid, whole, fs, mode, PidIno(*pid, fs->pid_ns(), whole, index)),
        index_(index),
        type_(type) {}
  base::Status CheckPermission(const Credentials& creds, int may) override {
    base::Status status = PidOwned::CheckPermission(creds, may);
    if (status.ok()) return status;
    // A process may always look at its own (proc_fd_permission).
    Task* current = Task::Current();
    base::Ref<Task> task = TaskOf(proc().kernel(), *pid());
    if (current != nullptr && task != nullptr &&
        &current->thread_group() == &task->thread_group()) {
      return base::Ok();
    }
    return status;
  }

 protected:
  ~FdListDir() override = default;
  uint64_t EntryIno(int fd) const {
    return PidIno(*pid(), proc().pid_ns(), whole(), index_ | (static_cast<uint32_t>(fd) + 1));
  }
  virtual base::Result<base::Ref<Inode>> MakeEntry(int fd, FileDescription& file) = 0;

 private:
  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    int fd;
    if (!ParseFd(name, &fd)) return base::Error(ENOENT);
    base::Result<base::Ref<Task>> task = GetInspectable();
    if (!task.ok()) return base::Error(task.error().code() == ESRCH ? ENOENT : EACCES);
    base::Ref<FileDescription> file = TRY(FileOf(**task, fd));
    return MakeEntry(fd, *file);
  }
  // Modes of links differ by the description: looked up anew each time.
  bool RevalidateDynamic(std::string_view, Inode*) override { return false; }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    auto task = GetInspectable();
    if (!task.ok()) return;
    base::Ref<FdTable> table = (*task)->fd_table_ref();
    if (table == nullptr) return;
    for (int fd : table->List()) out->push_back({std::to_string(fd), EntryIno(fd), type_});
  }
  const uint32_t index_;
  const uint8_t type_;
};

class FdDir : public FdListDir {
 public:
  FdDir(ProcFs* fs, base::Ref<Pid> pid, bool whole)
      : FdListDir(fs, std::move(pid), whole, 0500, kFdIndex, DT_LNK) {}

 private:
  ~FdDir() override = default;
  base::Result<base::Ref<Inode>> MakeEntry(int fd, FileDescription& file) override {
    mode_t mode = (file.readable() ? 0500u : 0u) | (file.writable() ? 0300u : 0u);
    return base::Ref<Inode>(base::MakeRef<PidLink>(
        &proc(), pid(), whole(), EntryIno(fd), mode, [fd](Task& task) -> base::Result<Path> {
          base::Ref<FileDescription> file = TRY(FileOf(task, fd));
          return file->path();
        }));
  }
};

class FdInfoFile : public PidOwned<PseudoFile> {
 public:
  FdInfoFile(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino, int fd)
      : PidOwned(fs, std::move(pid), whole, fs, 0444, ino), fd_(fd) {}
  base::Result<std::string> Generate() override {
    base::Ref<Task> task = TRY(GetInspectable());
    base::Ref<FdTable> table = task->fd_table_ref();
    bool cloexec = false;
    base::Ref<FileDescription> file = table != nullptr ? table->Get(fd_, &cloexec) : nullptr;
    if (file == nullptr) return base::Error(ENOENT);
    base::Result<int64_t> pos = file->Seek(0, SEEK_CUR);
    uint32_t flags = (file->flags() & ~uint32_t{O_CREAT}) | (cloexec ? O_CLOEXEC : 0) |
                     0100000 /* O_LARGEFILE */;
    Inode* inode = file->inode();
    char text[160];
    snprintf(text, sizeof(text), "pos:\t%lld\nflags:\t0%o\nmnt_id:\t%d\nino:\t%llu\n",
             static_cast<long long>(pos.ok() ? *pos : 0), flags,
             file->path().mount != nullptr ? file->path().mount->id() : 0,
             static_cast<unsigned long long>(inode != nullptr ? inode->ino() : 0));
    return text + file->FdInfo();
  }

 private:
  ~FdInfoFile() override = default;
  const int fd_;
};

class FdInfoDir : public FdListDir {
 public:
  FdInfoDir(ProcFs* fs, base::Ref<Pid> pid, bool whole)
      : FdListDir(fs, std::move(pid), whole, 0555, kFdInfoIndex, DT_REG) {}

 private:
  ~FdInfoDir() override = default;
  base::Result<base::Ref<Inode>> MakeEntry(int fd, FileDescription&) override {
    return base::Ref<Inode>(base::MakeRef<FdInfoFile>(&proc(), pid(), whole(), EntryIno(fd), fd));
  }
};

// --- namespaces ---

// What /proc/PID/ns names.
struct NsEntry {
  const char* name;
  size_t kind;  // of kNamespaceKind
  bool for_children;
};
std::vector<NsEntry> MakeNsEntries() {
  std::vector<NsEntry> entries;
  for (size_t i = 0; i < std::size(kNamespaceKind); ++i) {
    entries.push_back({kNamespaceKind[i].name, i, false});
    if (kNamespaceKind[i].type == CLONE_NEWPID) entries.push_back({"pid_for_children", i, true});
  }
  return entries;
}
const std::vector<NsEntry>& NsEntries() {
  static const auto* const entries = new std::vector<NsEntry>(MakeNsEntries());
  return *entries;
}

// A link that shows the namespace and leads to its file.
class NsLink : public PidOwned<PseudoInode> {
 public:
  NsLink(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino, const NsEntry& kind)
      : PidOwned(fs, std::move(pid), whole, fs, ino, S_IFLNK | 0777), kind_(kind) {}
  base::Result<std::string> ReadLink() override {
    NamespaceRef ns = TRY(Get());
    return std::string(kNamespaceKind[kind_.kind].name) + ":[" + std::to_string(ns.id) + "]";
  }
  bool is_magic_link() const override { return true; }
  base::Result<Path> FollowMagicLink(const Credentials&) override {
    NamespaceRef ns = TRY(Get());
    if (!ns.object) return base::Error(ENOENT);
    return NamespacePath(proc().kernel().vfs(), ns);
  }
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs&) override {
    return base::Error(EACCES);
  }

 private:
  ~NsLink() override = default;
  base::Result<NamespaceRef> Get() {
    return NamespaceOf(*TRY(GetInspectable()), kNamespaceKind[kind_.kind].type, kind_.for_children);
  }
  const NsEntry& kind_;
};

class NsDir : public PidOwned<PseudoDir> {
 public:
  NsDir(ProcFs* fs, base::Ref<Pid> pid, bool whole)
      : PidOwned(fs, pid, whole, fs, 0511, PidIno(*pid, fs->pid_ns(), whole, kNsIndex)) {}

 private:
  ~NsDir() override = default;
  uint64_t EntryIno(size_t i) const {
    return PidIno(*pid(), proc().pid_ns(), whole(), kNsIndex + 1 + static_cast<uint32_t>(i));
  }
  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    for (size_t i = 0; i < NsEntries().size(); ++i) {
      if (name != NsEntries()[i].name) continue;
      return base::Ref<Inode>(
          base::MakeRef<NsLink>(&proc(), pid(), whole(), EntryIno(i), NsEntries()[i]));
    }
    return base::Error(ENOENT);
  }
  bool RevalidateDynamic(std::string_view, Inode* child) override {
    return child != nullptr && TaskOf(proc().kernel(), *pid()) != nullptr;
  }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    for (size_t i = 0; i < NsEntries().size(); ++i) {
      out->push_back({NsEntries()[i].name, EntryIno(i), DT_LNK});
    }
  }
};

// --- map_files ---

class MapFilesDir : public PidOwned<PseudoDir> {
 public:
  MapFilesDir(ProcFs* fs, base::Ref<Pid> pid, bool whole)
      : PidOwned(fs, pid, whole, fs, 0500, PidIno(*pid, fs->pid_ns(), whole, kMapIndex)) {}

 private:
  ~MapFilesDir() override = default;
  struct Entry {
    uint64_t start, end;
    base::Ref<FileDescription> file;
  };
  static std::vector<Entry> Mapped(Task& task) {
    std::vector<Entry> out;
    base::Ref<MemoryManager> mm = task.mm_ref();
    if (mm == nullptr) return out;
    mm->ForEachVma([&](const Vma& v) {
      if (v.file != nullptr) out.push_back({v.start, v.end, v.file});
    });
    return out;
  }
  static std::string Name(const Entry& e) {
    char name[40];
    snprintf(name, sizeof(name), "%llx-%llx", static_cast<unsigned long long>(e.start),
             static_cast<unsigned long long>(e.end));
    return name;
  }
  uint64_t EntryIno(const Entry& e) const {
    auto part = static_cast<uint32_t>(e.start >> 12) & 0x3ffff;
    return PidIno(*pid(), proc().pid_ns(), whole(), kMapIndex | (part + 1));
  }
  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    base::Ref<Task> task = TRY(GetInspectable());
    for (const Entry& e : Mapped(*task)) {
      if (name != Name(e)) continue;
      Path path = e.file->path();
      return base::Ref<Inode>(
          base::MakeRef<PidLink>(&proc(), pid(), whole(), EntryIno(e), 0400,
                                 [path](Task&) -> base::Result<Path> { return path; }));
    }
    return base::Error(ENOENT);
  }
  bool RevalidateDynamic(std::string_view, Inode*) override { return false; }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    auto task = GetInspectable();
    if (!task.ok()) return;
    for (const Entry& e : Mapped(**task)) out->push_back({Name(e), EntryIno(e), DT_LNK});
  }
};

// --- mem ---

// The address space as it was when the file was opened (proc_mem_open).
class MemDescription : public SeekableFile {
 public:
  MemDescription(Path path, uint32_t flags, base::Ref<MemoryManager> mm)
      : SeekableFile(std::move(path), flags), mm_(std::move(mm)) {}

  base::Result<size_t> PRead(IoDest& dst, uint64_t offset, bool) override {
    size_t total = 0;
    while (mm_ != nullptr && dst.remaining() > 0) {
      std::byte buffer[4096];
      std::span<std::byte> chunk(buffer, std::min(sizeof(buffer), dst.remaining()));
      auto n = Ptrace::ReadMemory(*Task::Current(), *mm_, offset + total, chunk);
      if (!n.ok() || *n == 0) {
        if (total == 0) return base::Error(EIO);
        break;
      }
      size_t put = TRY(dst.Put(chunk.first(*n)));
      total += put;
      if (put < chunk.size()) break;
    }
    return total;
  }
  base::Result<size_t> PWrite(IoSource& src, uint64_t offset, bool) override {
    size_t total = 0;
    while (mm_ != nullptr && src.remaining() > 0) {
      std::byte buffer[4096];
      size_t n = TRY(src.Get(std::span(buffer, std::min(sizeof(buffer), src.remaining()))));
      auto put = Ptrace::WriteMemory(*Task::Current(), *mm_, offset + total, std::span(buffer, n));
      if (!put.ok() || *put == 0) {
        if (total == 0) return base::Error(EIO);
        break;
      }
      total += *put;
      if (*put < n) break;
    }
    return total;
  }
  base::Result<int64_t> Seek(int64_t offset, int whence) override {
    if (whence != SEEK_SET && whence != SEEK_CUR) return base::Error(EINVAL);
    fiber::MutexLock lock(&pos_mutex_);
    uint64_t base = whence == SEEK_CUR ? pos_ : 0;
    pos_ = base + static_cast<uint64_t>(offset);  // addresses may be "negative"
    return static_cast<int64_t>(pos_);
  }

 private:
  ~MemDescription() override = default;
  const base::Ref<MemoryManager> mm_;
};

class MemInode : public PidOwned<PseudoInode> {
 public:
  MemInode(ProcFs* fs, base::Ref<Pid> pid, bool whole)
      : PidOwned(fs, pid, whole, fs, PidIno(*pid, fs->pid_ns(), whole, 9), S_IFREG | 0600) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    base::Ref<Task> task = TRY(GetInspectable());
    return base::Ref<FileDescription>(
        base::MakeRef<MemDescription>(args.path, args.flags, task->mm_ref()));
  }

 private:
  ~MemInode() override = default;
};

}  // namespace

base::Ref<Inode> NewFdDir(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  return base::MakeRef<FdDir>(fs, std::move(pid), whole);
}
base::Ref<Inode> NewFdInfoDir(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  return base::MakeRef<FdInfoDir>(fs, std::move(pid), whole);
}
base::Ref<Inode> NewNsDir(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  return base::MakeRef<NsDir>(fs, std::move(pid), whole);
}
base::Ref<Inode> NewMapFilesDir(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  return base::MakeRef<MapFilesDir>(fs, std::move(pid), whole);
}
base::Ref<Inode> NewMemFile(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  return base::MakeRef<MemInode>(fs, std::move(pid), whole);
}

}  // namespace sentry
