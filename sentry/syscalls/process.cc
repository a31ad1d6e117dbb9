// Making, replacing, ending and waiting for processes.
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>

#include "sentry/kernel/inspect.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/loader/loader.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Result;
using base::UserPtr;

namespace {

constexpr uint64_t kCsignal = 0xff;

// struct clone_args of clone3(2), with all that was added to it.
struct Clone3Args {
  uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
      set_tid_size, cgroup;
};
constexpr size_t kCloneArgsSizeV0 = 64;

// struct rusage as wait4 and getrusage write it.
base::Status CopyUsage(Task& t, uint64_t addr, const Usage& usage) {
  if (addr == 0) return base::Ok();
  return UserPtr<struct rusage>(addr).CopyOut(t.memory(), ToRusage(usage));
}

}  // namespace

Result<uint64_t> SysFork(Task& t, const SyscallArgs&) { return t.Clone({.exit_signal = SIGCHLD}); }

Result<uint64_t> SysVfork(Task& t, const SyscallArgs&) {
  return t.Clone({.flags = CLONE_VM | CLONE_VFORK, .exit_signal = SIGCHLD});
}

Result<uint64_t> SysClone(Task& t, const SyscallArgs& a) {
  CloneArgs c;
  // Only 32 bits of flags; those that clone3 added are not among them.
  c.flags = (a[0] & 0xffffffff) & ~kCsignal;
  c.exit_signal = static_cast<int>(a[0] & kCsignal);
  c.stack = a[1];
  c.parent_tid = a[2];
  c.child_tid = a[3];
  c.tls = a[4];
  if (c.flags & CLONE_PIDFD) {
    if (c.flags & CLONE_PARENT_SETTID) return Error(EINVAL);
    c.pidfd = a[2];
  }
  c.flags &= ~uint64_t{CLONE_DETACHED};
  if (c.exit_signal > kNumSignals) return Error(EINVAL);
  return t.Clone(c);
}

Result<uint64_t> SysClone3(Task& t, const SyscallArgs& a) {
  size_t size = a[1];
  if (size > 4096) return Error(E2BIG);
  if (size < kCloneArgsSizeV0) return Error(EINVAL);
  // copy_struct_from_user: what is beyond our struct must be zero.
  std::vector<std::byte> raw(size);
  TRY(t.memory().Read(a[0], raw));
  Clone3Args c3{};
  memcpy(&c3, raw.data(), std::min(size, sizeof(c3)));
  for (size_t i = sizeof(c3); i < size; ++i) {
    if (raw[i] != std::byte{0}) return Error(E2BIG);
  }
  constexpr uint64_t kNewTime = 0x80;
  constexpr uint64_t kKnown = 0xffffffff | CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
  if (c3.flags & ~kKnown) return Error(EINVAL);
  if (c3.flags & (CLONE_DETACHED | (kCsignal & ~kNewTime))) return Error(EINVAL);
  // No time namespaces, and no cgroup filesystem whose descriptor could be given.
  if (c3.flags & kNewTime) return Error(EINVAL);
  if (c3.flags & CLONE_INTO_CGROUP) return Error(EBADF);
  if ((c3.flags & (CLONE_THREAD | CLONE_PARENT)) && c3.exit_signal != 0) return Error(EINVAL);
  if ((c3.stack == 0) != (c3.stack_size == 0)) return Error(EINVAL);
  if (c3.exit_signal > kNumSignals) return Error(EINVAL);
  if (c3.set_tid_size > 32) return Error(EINVAL);
  if ((c3.set_tid == 0) != (c3.set_tid_size == 0)) return Error(EINVAL);
  CloneArgs c;
  c.flags = c3.flags;
  c.exit_signal = static_cast<int>(c3.exit_signal);
  c.stack = c3.stack + c3.stack_size;
  c.tls = c3.tls;
  c.parent_tid = c3.parent_tid;
  c.child_tid = c3.child_tid;
  c.pidfd = c3.pidfd;
  if (c3.set_tid_size > 0) {
    c.set_tid.resize(c3.set_tid_size);
    TRY(t.memory().Read(c3.set_tid, std::as_writable_bytes(std::span(c.set_tid))));
  }
  return t.Clone(c);
}

Result<uint64_t> SysExecve(Task& t, const SyscallArgs& a) {
  std::string path = TRY(t.CopyInPath(a[0]));
  return t.Exec(AT_FDCWD, path, 0, a[1], a[2]);
}

Result<uint64_t> SysExecveat(Task& t, const SyscallArgs& a) {
  int flags = a.Int(4);
  if (flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)) return Error(EINVAL);
  std::string path = TRY(t.CopyInPath(a[1]));
  return t.Exec(a.Int(0), path, flags, a[2], a[3]);
}

Result<uint64_t> SysExit(Task& t, const SyscallArgs& a) {
  t.Exit((a.Int(0) & 0xff) << 8);
  return 0;
}

Result<uint64_t> SysExitGroup(Task& t, const SyscallArgs& a) {
  int status = (a.Int(0) & 0xff) << 8;
  t.thread_group().BeginExit(status);
  t.Exit(status);
  return 0;
}

Result<uint64_t> SysWait4(Task& t, const SyscallArgs& a) {
  int pid = a.Int(0), options = a.Int(2);
  if (options & ~(WNOHANG | WUNTRACED | WCONTINUED | __WNOTHREAD | __WCLONE | __WALL)) {
    return Error(EINVAL);
  }
  if (pid == INT32_MIN) return Error(ESRCH);
  WaitOptions w;
  w.options = options | WEXITED;  // WUNTRACED is WSTOPPED
  if (pid > 0) {
    w.which = WaitOptions::Which::kPid;
    w.pid = t.pid_namespace().Find(pid);
  } else if (pid != -1) {
    w.which = WaitOptions::Which::kPgrp;
    w.pid = pid == 0 ? t.thread_group().process_group()->pid() : t.pid_namespace().Find(-pid);
  }
  if (pid != -1 && !w.pid) return Error(ECHILD);
  WaitResult r = TRY(t.Wait(w));
  if (r.pid != 0) {
    if (a[1] != 0) TRY(UserPtr<int32_t>(a[1]).CopyOut(t.memory(), r.status));
    TRY(CopyUsage(t, a[3], r.usage));
  }
  return static_cast<uint64_t>(r.pid);
}

namespace {

// What waitid(2) writes of a siginfo_t: these fields one by one.
struct WaitInfo {
  int32_t signo, error, code, pad, pid;
  uint32_t uid;
  int32_t status;
};

Result<uint64_t> DoWaitid(Task& t, const SyscallArgs& a) {
  int which = a.Int(0), id = a.Int(1), options = a.Int(3);
  if (options &
      ~(WNOHANG | WNOWAIT | WEXITED | WSTOPPED | WCONTINUED | __WNOTHREAD | __WCLONE | __WALL)) {
    return Error(EINVAL);
  }
  if (!(options & (WEXITED | WSTOPPED | WCONTINUED))) return Error(EINVAL);
  WaitOptions w;
  w.options = options;
  bool nonblocking_pidfd = false;
  switch (which) {
    case P_ALL:
      break;
    case P_PID:
      if (id <= 0) return Error(EINVAL);
      w.which = WaitOptions::Which::kPid;
      w.pid = t.pid_namespace().Find(id);
      if (!w.pid) return Error(ECHILD);
      break;
    case P_PGID:
      if (id < 0) return Error(EINVAL);
      w.which = WaitOptions::Which::kPgrp;
      w.pid = id == 0 ? t.thread_group().process_group()->pid() : t.pid_namespace().Find(id);
      if (!w.pid) return Error(ECHILD);
      break;
    case P_PIDFD: {
      if (id < 0) return Error(EINVAL);
      base::Ref<FileDescription> file = TRY(GetOpenFile(t, id));
      w.which = WaitOptions::Which::kPid;
      w.pid = PidOfFile(*file);
      if (!w.pid) return Error(EBADF);
      nonblocking_pidfd = file->nonblock();
      break;
    }
    default:
      return Error(EINVAL);
  }
  if (nonblocking_pidfd) w.options |= WNOHANG;
  WaitResult r = TRY(t.Wait(w));
  if (r.pid == 0 && nonblocking_pidfd && !(options & WNOHANG)) return Error(EAGAIN);
  siginfo_t info{};
  if (r.pid != 0) {
    info.si_signo = SIGCHLD;
    info.si_code = r.code;
    info.si_pid = r.pid;
    info.si_uid = t.user_ns().MapUidOut(r.uid);
    info.si_status = r.code == CLD_EXITED      ? (r.status >> 8) & 0xff
                     : r.code == CLD_STOPPED   ? (r.status >> 8) & 0xff
                     : r.code == CLD_TRAPPED   ? r.status >> 8
                     : r.code == CLD_CONTINUED ? SIGCONT
                                               : r.status & 0x7f;
    TRY(CopyUsage(t, a[4], r.usage));
  }
  if (a[2] != 0) {
    const WaitInfo head{info.si_signo, 0,           info.si_code,  0,
                        info.si_pid,   info.si_uid, info.si_status};
    TRY(UserPtr<WaitInfo>(a[2]).CopyOut(t.memory(), head));
  }
  return 0;
}

}  // namespace

// A wait that fails leaves zeros.
Result<uint64_t> SysWaitid(Task& t, const SyscallArgs& a) {
  Result<uint64_t> result = DoWaitid(t, a);
  if (!result.ok() && a[2] != 0) TRY(UserPtr<WaitInfo>(a[2]).CopyOut(t.memory(), WaitInfo{}));
  return result;
}

Result<uint64_t> SysSetTidAddress(Task& t, const SyscallArgs& a) {
  t.words().clear_child_tid = a[0];
  return static_cast<uint64_t>(t.Tid());
}

Result<uint64_t> SysSetRobustList(Task& t, const SyscallArgs& a) {
  if (a[1] != 24) return Error(EINVAL);  // sizeof(struct robust_list_head)
  t.words().robust_list = a[0];
  return 0;
}

Result<uint64_t> SysGetRobustList(Task& t, const SyscallArgs& a) {
  base::Ref<Task> target(&t);
  if (a.Int(0) != 0) {
    target = t.kernel().FindTask(t.pid_namespace(), a.Int(0));
    if (!target) return Error(ESRCH);
    TRY(MayInspect(t, *target));
  }
  TRY(UserPtr<uint64_t>(a[2]).CopyOut(t.memory(), 24));
  TRY(UserPtr<uint64_t>(a[1]).CopyOut(t.memory(), target->WordsNow().robust_list));
  return 0;
}

Result<uint64_t> SysPidfdOpen(Task& t, const SyscallArgs& a) {
  uint32_t flags = a.Uint(1);
  if (flags & ~uint32_t{O_NONBLOCK}) return Error(EINVAL);
  if (a.Int(0) <= 0) return Error(EINVAL);
  base::Ref<Pid> pid = t.pid_namespace().Find(a.Int(0));
  if (!pid) return Error(ESRCH);
  if (!t.kernel().GroupOf(*pid)) {
    // The id of a thread that leads no group.
    return Error(t.kernel().FindTask(t.pid_namespace(), a.Int(0)) ? EINVAL : ESRCH);
  }
  return static_cast<uint64_t>(
      TRY(t.InstallFile(NewPidFd(t.kernel(), std::move(pid), flags), true)));
}

Result<uint64_t> SysPidfdGetfd(Task& t, const SyscallArgs& a) {
  if (a.Uint(2) != 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, a.Int(0)));
  base::Ref<Pid> pid = PidOfFile(*file);
  if (!pid) return Error(EBADF);
  base::Ref<ThreadGroup> group = t.kernel().GroupOf(*pid);
  base::Ref<Task> target = group ? group->leader() : nullptr;
  if (!target) return Error(ESRCH);
  TRY(MayInspect(t, *target));
  base::Ref<FdTable> table = target->fd_table_ref();
  if (!table) return Error(ESRCH);
  base::Ref<FileDescription> wanted = table->Get(a.Int(1));
  if (!wanted) return Error(EBADF);
  return static_cast<uint64_t>(TRY(t.InstallFile(std::move(wanted), true)));
}

Result<uint64_t> SysGetrusage(Task& t, const SyscallArgs& a) {
  Usage usage;
  switch (a.Int(0)) {
    case RUSAGE_SELF:
      usage = t.thread_group().SelfUsage();
      break;
    case RUSAGE_CHILDREN:
      usage = t.thread_group().ChildrenUsage();
      break;
    case RUSAGE_THREAD:
      usage = t.usage();
      break;
    default:
      return Error(EINVAL);
  }
  TRY(UserPtr<struct rusage>(a[1]).CopyOut(t.memory(), ToRusage(usage)));
  return 0;
}

// What is left of a process that dies goes by itself and at once, so there is nothing to do but to
// tell whether it does.
Result<uint64_t> SysProcessMrelease(Task& t, const SyscallArgs& a) {
  if (a.Uint(1) != 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, a.Int(0)));
  base::Ref<Pid> pid = PidOfFile(*file);
  if (pid == nullptr) return Error(EBADF);
  base::Ref<ThreadGroup> group = t.kernel().GroupOf(*pid);
  if (group == nullptr || group->is_zombie()) return Error(ESRCH);
  return group->exiting() ? Result<uint64_t>(uint64_t{0}) : Error(EINVAL);
}

}  // namespace sentry
