#include "sentry/fs/proc/pid_dir.h"

#include <dirent.h>

#include <algorithm>
#include <charconv>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"
#include "sentry/vfs/vfs.h"

namespace sentry {
namespace {

// Index parts of inode numbers.
constexpr uint32_t kDirIndex = 0, kSpecialIndex = 1, kFilesIndex = 32;

struct SpecialEntry {
  const char* name;
  uint8_t type;
  bool process_only;
};
// What is not a plain file; the index in this table is a part of the inode number.
constexpr SpecialEntry kSpecial[] = {
    {"exe", DT_LNK, false}, {"cwd", DT_LNK, false},      {"root", DT_LNK, false},
    {"fd", DT_DIR, false},  {"fdinfo", DT_DIR, false},   {"ns", DT_DIR, false},
    {"task", DT_DIR, true}, {"map_files", DT_DIR, true}, {"mem", DT_REG, false},
    {"net", DT_DIR, false}, {"pagemap", DT_REG, false},
};

class TaskListDir : public PidOwned<PseudoDir> {
 public:
  TaskListDir(ProcFs* fs, base::Ref<Pid> pid, uint64_t ino)
      : PidOwned(fs, std::move(pid), true, fs, 0555, ino) {}

 private:
  ~TaskListDir() override = default;
  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    int tid;
    auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), tid);
    if (ec != std::errc() || end != name.data() + name.size() || name != std::to_string(tid)) {
      return base::Error(ENOENT);
    }
    base::Ref<Task> task = proc().kernel().FindTask(proc().pid_ns(), tid);
    base::Ref<Task> ours = TaskOf(proc().kernel(), *pid());
    if (task == nullptr || ours == nullptr || &task->thread_group() != &ours->thread_group()) {
      return base::Error(ENOENT);
    }
    return NewPidDir(&proc(), task->pid_ref(), false);
  }
  bool RevalidateDynamic(std::string_view, Inode* child) override {
    auto* dir = dynamic_cast<PidOwned<PseudoDir>*>(child);
    return dir != nullptr && TaskOf(proc().kernel(), *dir->pid()) != nullptr;
  }
  void ListDynamic(std::vector<PseudoEntry>* out) override {
    base::Ref<Task> task = TaskOf(proc().kernel(), *pid());
    if (task == nullptr) return;
    std::vector<base::Ref<Task>> threads = task->thread_group().Threads();
    if (threads.empty()) threads.push_back(task);
    for (const auto& thread : threads) {
      base::Ref<Pid> tid = thread->pid_ref();
      int number = tid->NumberIn(proc().pid_ns());
      if (number == 0) continue;
      out->push_back(
          {std::to_string(number), PidIno(*tid, proc().pid_ns(), false, kDirIndex), DT_DIR});
    }
  }
};

// A file of the table in pid_files.cc.
class PidFile : public PidOwned<PseudoFile> {
 public:
  PidFile(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino, const PidFileInfo& info)
      : PidOwned(fs, std::move(pid), whole, fs, info.mode, ino), info_(info) {}
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs& args) override {
    if (info_.checked) TRY(GetInspectable());
    if (info_.open == nullptr) return PseudoFile::Open(args);
    return info_.open(TRY(Context()), args, base::Ref<PseudoFile>(this));
  }
  base::Result<std::string> Generate() override { return info_.read(TRY(Context())); }
  base::Status Store(std::string_view data, uint64_t offset) override {
    if (info_.write == nullptr) return base::Error(EIO);
    if (offset != 0) return base::Error(EINVAL);
    return info_.write(TRY(Context()), data);
  }

 private:
  ~PidFile() override = default;
  base::Result<PidContext> Context() {
    base::Ref<Task> task = info_.checked ? TRY(GetInspectable()) : TRY(GetTask());
    return PidContext{proc(), std::move(task), whole()};
  }
  const PidFileInfo& info_;
};

class PidDir : public PidOwned<PseudoDir> {
 public:
  PidDir(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino)
      : PidOwned(fs, std::move(pid), whole, fs, 0555, ino) {}
  bool of_process() const { return whole(); }

 private:
  ~PidDir() override = default;
  uint64_t Ino(uint32_t index) const { return PidIno(*pid(), proc().pid_ns(), whole(), index); }

  base::Result<base::Ref<Inode>> LookupDynamic(std::string_view name) override {
    if (TaskOf(proc().kernel(), *pid()) == nullptr) return base::Error(ENOENT);
    uint32_t index = kFilesIndex;
    for (const PidFileInfo& info : PidFiles()) {
      if (name == info.name && (whole() || !info.process_only)) {
        return base::Ref<Inode>(base::MakeRef<PidFile>(&proc(), pid(), whole(), Ino(index), info));
      }
      ++index;
    }
    for (const SpecialEntry& e : kSpecial) {
      if (name == e.name && (whole() || !e.process_only)) {
        return MakeSpecial(static_cast<size_t>(&e - kSpecial));
      }
    }
    return base::Error(ENOENT);
  }

  base::Result<base::Ref<Inode>> MakeSpecial(size_t which) {
    ProcFs* fs = &proc();
    auto link = [&](PidLink::Place place) -> base::Ref<Inode> {
      return base::MakeRef<PidLink>(fs, pid(), whole(),
                                    Ino(kSpecialIndex + static_cast<uint32_t>(which)), 0777,
                                    std::move(place));
    };
    switch (which) {
      case 0:
        return link([](Task& t) -> base::Result<Path> {
          base::Ref<MemoryManager> mm = t.mm_ref();
          base::Ref<FileDescription> exe = mm != nullptr ? mm->executable() : nullptr;
          if (exe == nullptr) return base::Error(ENOENT);
          return exe->path();
        });
      case 1:
        return link([](Task& t) -> base::Result<Path> {
          base::Ref<FsContext> context = t.fs_context_ref();
          if (context == nullptr) return base::Error(ENOENT);
          return context->cwd();
        });
      case 2:
        return link([](Task& t) -> base::Result<Path> {
          base::Ref<FsContext> context = t.fs_context_ref();
          if (context == nullptr) return base::Error(ENOENT);
          return context->root();
        });
      case 3:
        return NewFdDir(fs, pid(), whole());
      case 4:
        return NewFdInfoDir(fs, pid(), whole());
      case 5:
        return NewNsDir(fs, pid(), whole());
      case 6:
        return base::Ref<Inode>(base::MakeRef<TaskListDir>(
            fs, pid(), Ino(kSpecialIndex + static_cast<uint32_t>(which))));
      case 7:
        return NewMapFilesDir(fs, pid(), whole());
      case 8:
        return NewMemFile(fs, pid(), whole());
      case 9:
        return NewNetDir(fs, pid());
      default:
        return NewPagemapFile(fs, pid(), whole(),
                              Ino(kSpecialIndex + static_cast<uint32_t>(which)));
    }
  }

  bool RevalidateDynamic(std::string_view, Inode* child) override {
    return child != nullptr && TaskOf(proc().kernel(), *pid()) != nullptr;
  }

  void ListDynamic(std::vector<PseudoEntry>* out) override {
    uint32_t index = kFilesIndex;
    for (const PidFileInfo& info : PidFiles()) {
      if (whole() || !info.process_only) out->push_back({info.name, Ino(index), DT_REG});
      ++index;
    }
    for (uint32_t i = 0; i < std::size(kSpecial); ++i) {
      const SpecialEntry& e = kSpecial[i];
      if (whole() || !e.process_only) out->push_back({e.name, Ino(kSpecialIndex + i), e.type});
    }
  }
};

}  // namespace

base::Ref<Task> TaskOf(Kernel& kernel, const Pid& pid) {
  absl::MutexLock lock(&kernel.task_mutex());
  return base::Ref<Task>(pid.task);
}

uint64_t PidIno(const Pid& pid, const PidNamespace& ns, bool whole, uint32_t index) {
  return uint64_t{1} << 52 | static_cast<uint64_t>(pid.NumberIn(ns)) << 24 |
         (whole ? 0u : 1u << 23) | (index & 0x7fffff);
}

void FillPidOwner(ProcFs& fs, const Pid& pid, bool is_dir, InodeAttr* attr) {
  base::Ref<Task> task = TaskOf(fs.kernel(), pid);
  attr->uid = attr->gid = 0;
  if (task == nullptr) return;
  base::Ref<MemoryManager> mm = task->mm_ref();
  base::Ref<const Credentials> creds = task->credentials();
  bool readable_dir = is_dir && (attr->mode & 07777) == 0555;
  if (creds == nullptr || (!readable_dir && mm != nullptr && mm->dumpable() != 1)) return;
  attr->uid = creds->euid;
  attr->gid = creds->egid;
}

base::Ref<Pid> PidOfProcDir(const FileDescription& file) {
  auto* dir = dynamic_cast<PidDir*>(file.inode());
  return dir != nullptr && dir->of_process() ? dir->pid() : nullptr;
}

base::Ref<Inode> NewPidDir(ProcFs* fs, base::Ref<Pid> pid, bool whole) {
  uint64_t ino = PidIno(*pid, fs->pid_ns(), whole, kDirIndex);
  return base::MakeRef<PidDir>(fs, std::move(pid), whole, ino);
}

std::string PathForCurrent(Kernel& kernel, const Path& path) {
  Task* t = Task::Current();
  if (t == nullptr) return path.dentry->name();
  return kernel.vfs().PathName(t->mount_namespace(), t->fs_context().root(), path);
}

base::Result<std::string> PidLink::ReadLink() {
  base::Ref<Task> task = TRY(GetInspectable());
  return PathForCurrent(proc().kernel(), TRY(place_(*task)));
}

base::Result<Path> PidLink::FollowMagicLink(const Credentials&) {
  base::Ref<Task> task = TRY(GetInspectable());
  return place_(*task);
}

}  // namespace sentry
