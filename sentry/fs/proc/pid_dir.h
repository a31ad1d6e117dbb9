// /proc/PID and /proc/PID/task/TID.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/fs/pseudo/pseudo.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/task.h"

namespace sentry {

// The task that `pid` identifies: of a process's id its leader, which may be a zombie. Null once it
// has been reaped.
base::Ref<Task> TaskOf(Kernel& kernel, const Pid& pid);

// What a file about a task is made from.
struct PidContext {
  ProcFs& fs;
  base::Ref<Task> task;
  bool whole;  // of the process (/proc/PID), not of the thread alone (/proc/PID/task/TID)
  Kernel& kernel() const { return fs.kernel(); }
  PidNamespace& ns() const { return fs.pid_ns(); }
};
using PidRead = base::Result<std::string> (*)(const PidContext&);
using PidWrite = base::Status (*)(const PidContext&, std::string_view data);
// Makes the description of a file that can do more than be read.
using PidOpen = base::Ref<FileDescription> (*)(const PidContext&, const OpenArgs&,
                                               base::Ref<PseudoFile>);

// One file of the directories; see pid_files.cc.
struct PidFileInfo {
  const char* name;
  mode_t mode;
  PidRead read;
  PidWrite write = nullptr;
  bool checked = false;       // only for who may inspect the task (MayReadTask)
  bool process_only = false;  // not in task/TID
  PidOpen open = nullptr;
};
std::span<const PidFileInfo> PidFiles();

// Inode about a task: owned by the task's effective ids, or root if it is not dumpable
// (task_dump_owner).
template <typename Base>
class PidOwned : public Base {
 public:
  template <typename... Args>
  explicit PidOwned(ProcFs* fs, base::Ref<Pid> pid, bool whole, Args&&... args)
      : Base(std::forward<Args>(args)...), fs_(fs), pid_(std::move(pid)), whole_(whole) {}
  base::Result<InodeAttr> GetAttr() override {
    InodeAttr attr = TRY(Base::GetAttr());
    FillOwner(*fs_, *pid_, this->IsDir(), &attr);
    return attr;
  }
  base::Status SetAttr(const AttrChange& change) override {
    if (change.set_mode) return base::Error(EPERM);  // proc_setattr
    return Base::SetAttr(change);
  }
  // Else the names of processes that ended would fill the cache.
  bool keeps_dentries() const override { return false; }
  const base::Ref<Pid>& pid() const { return pid_; }

 protected:
  ~PidOwned() override = default;
  static void FillOwner(ProcFs& fs, const Pid& pid, bool is_dir, InodeAttr* attr);
  ProcFs& proc() const { return *fs_; }
  bool whole() const { return whole_; }
  // ESRCH once it is gone.
  base::Result<base::Ref<Task>> GetTask() const {
    base::Ref<Task> task = TaskOf(fs_->kernel(), *pid_);
    if (task == nullptr) return base::Error(ESRCH);
    return task;
  }
  // ESRCH; EACCES unless the current task may inspect it.
  base::Result<base::Ref<Task>> GetInspectable() const {
    base::Ref<Task> task = TRY(GetTask());
    Task* current = Task::Current();
    if (current != nullptr) TRY(MayReadTask(*current, *task));
    return task;
  }

 private:
  ProcFs* const fs_;  // lives as long as any inode of it
  const base::Ref<Pid> pid_;
  const bool whole_;
};

// Sets the owner by the task's credentials.
void FillPidOwner(ProcFs& fs, const Pid& pid, bool is_dir, InodeAttr* attr);
template <typename Base>
void PidOwned<Base>::FillOwner(ProcFs& fs, const Pid& pid, bool is_dir, InodeAttr* attr) {
  FillPidOwner(fs, pid, is_dir, attr);
}

// Inode numbers of what is about a task: unique while the task lives.
uint64_t PidIno(const Pid& pid, const PidNamespace& ns, bool whole, uint32_t index);

// The directory of a process (`whole`) or a thread.
base::Ref<Inode> NewPidDir(ProcFs* fs, base::Ref<Pid> pid, bool whole);
// Of its subdirectories.
base::Ref<Inode> NewFdDir(ProcFs* fs, base::Ref<Pid> pid, bool whole);
base::Ref<Inode> NewFdInfoDir(ProcFs* fs, base::Ref<Pid> pid, bool whole);
base::Ref<Inode> NewNsDir(ProcFs* fs, base::Ref<Pid> pid, bool whole);
base::Ref<Inode> NewMapFilesDir(ProcFs* fs, base::Ref<Pid> pid, bool whole);
// /proc/PID/net: of the network namespace that the process is in.
base::Ref<Inode> NewNetDir(ProcFs* fs, base::Ref<Pid> pid);
// pid_pagemap.cc: /proc/PID/pagemap.
base::Ref<Inode> NewPagemapFile(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino);
// /proc/PID/mem.
base::Ref<Inode> NewMemFile(ProcFs* fs, base::Ref<Pid> pid, bool whole);

// A link to a place: exe, cwd, root, fd/N.
class PidLink : public PidOwned<PseudoInode> {
 public:
  using Place = std::function<base::Result<Path>(Task& task)>;
  PidLink(ProcFs* fs, base::Ref<Pid> pid, bool whole, uint64_t ino, mode_t mode, Place place)
      : PidOwned(fs, std::move(pid), whole, fs, ino, S_IFLNK | mode), place_(std::move(place)) {}
  base::Result<std::string> ReadLink() override;
  base::Result<Path> FollowMagicLink(const Credentials& creds) override;
  bool is_magic_link() const override { return true; }
  base::Result<base::Ref<FileDescription>> Open(const OpenArgs&) override {
    return base::Error(ELOOP);
  }

 private:
  ~PidLink() override = default;
  const Place place_;
};

// The path of `path` as the current task sees it from its root.
std::string PathForCurrent(Kernel& kernel, const Path& path);

}  // namespace sentry
