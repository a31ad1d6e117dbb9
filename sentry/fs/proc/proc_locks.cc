// /proc/locks: what the reader's processes hold on files that they have open (Linux: fs/locks.c,
// locks_show). Who holds a lock of a description is the first process that has it.
#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <map>
#include <set>
#include <string>

#include "sentry/fs/proc/proc_root.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/file_description.h"
#include "sentry/vfs/file_locks.h"
#include "sentry/vfs/inode.h"

namespace sentry {
namespace {

// The files that are open, and the process of each description's first descriptor.
struct OpenFiles {
  std::map<const void*, int> holders;
  std::map<uint64_t, base::Ref<FileDescription>> locked;  // a description of each inode, by place
};

OpenFiles FindLocked(Kernel& kernel, const PidNamespace& ns) {
  OpenFiles out;
  std::set<const FdTable*> seen;
  for (const base::Ref<Task>& task : kernel.Tasks(ns)) {
    base::Ref<FdTable> table = task->fd_table_ref();
    if (table == nullptr || !seen.insert(table.get()).second) continue;
    const int pid = task->thread_group().PidIn(ns);
    for (int fd : table->List()) {
      base::Ref<FileDescription> file = table->Get(fd);
      Inode* inode = file != nullptr ? file->inode() : nullptr;
      const FileLocks* locks = inode != nullptr ? inode->locks_if_any() : nullptr;
      if (locks == nullptr || !locks->any()) continue;
      out.holders.emplace(file.get(), pid);
      out.locked.emplace(reinterpret_cast<uintptr_t>(inode), std::move(file));
    }
  }
  return out;
}

std::string Line(size_t number, const char* kind, bool write, int pid, const InodeAttr& attr,
                 uint64_t start, uint64_t end) {
  return fmt::format("{}: {} ADVISORY  {} {} {:02x}:{:02x}:{} {} {}\n", number, kind,
                     write ? "WRITE" : "READ", pid, major(attr.dev), minor(attr.dev), attr.ino,
                     start, end == kLockEof ? "EOF" : std::to_string(end));
}

std::string LocksText(Kernel& kernel, const PidNamespace& ns) {
  const OpenFiles open = FindLocked(kernel, ns);
  std::string text;
  size_t number = 0;
  for (const auto& [place, file] : open.locked) {
    const FileLocks* locks = file->inode()->locks_if_any();
    const base::Result<InodeAttr> attr = file->GetAttr();
    if (locks == nullptr || !attr.ok()) continue;
    for (const RecordLock& lock : locks->records()) {
      int pid = -1;
      if (!lock.owner.ofd) {
        const auto group = kernel.FindThreadGroup(*kernel.root_pid_ns(), lock.owner.pid);
        pid = group != nullptr ? group->PidIn(ns) : 0;
      }
      if (pid == 0) continue;
      text += Line(++number, lock.owner.ofd ? "OFDLCK" : "POSIX ", lock.write, pid, *attr,
                   lock.start, lock.end);
    }
    for (const FileLocks::FlockEntry& lock : locks->flocks()) {
      const auto holder = open.holders.find(lock.holder);
      if (holder == open.holders.end()) continue;
      text += Line(++number, "FLOCK ", lock.exclusive, holder->second, *attr, 0, kLockEof);
    }
  }
  return text;
}

}  // namespace

void AddLocks(ProcFs* fs, PseudoDir& root) {
  root.Add("locks", base::MakeRef<FuncFile>(
                        fs, 0444, [fs] { return LocksText(fs->kernel(), fs->pid_ns()); }));
}

}  // namespace sentry
