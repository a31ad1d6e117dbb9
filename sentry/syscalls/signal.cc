// Signals (Linux: kernel/signal.c).
#include <sys/wait.h>

#include <algorithm>

#include "sentry/base/time.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/pidfd.h"
#include "sentry/kernel/task.h"
#include "sentry/syscalls/file_util.h"
#include "sentry/syscalls/handlers.h"

namespace sentry {

using base::Error;
using base::Result;
using base::Status;
using base::UserPtr;

namespace {

constexpr uint64_t kSigSetSize = sizeof(SigSet);
constexpr uint64_t kMinSigStack =
    2048;  // MINSIGSTKSZ; the frame's real size is checked on delivery
constexpr uint32_t kSsAutodisarm = 1u << 31;

// Checks and sends one signal of the caller to `target` (its group, or the thread alone). Signal 0
// is checked and not sent.
Status SendTo(Task& t, Task& target, siginfo_t info, bool thread_only) {
  TRY(t.CheckKill(target, info.si_signo));
  if (info.si_signo == 0) return base::Ok();
  if (info.si_code == SI_USER || info.si_code == SI_TKILL) SetSender(&info, t, target);
  bool full = false;
  if (thread_only) {
    target.SendSignal(info, &full);
  } else {
    target.thread_group().SendSignal(info, &full);
  }
  return full ? Status(Error(EAGAIN)) : base::Ok();
}

// Whom a number means: a thread's names its process too. Null if nobody.
base::Ref<ThreadGroup> FindTarget(Task& t, int pid) {
  Kernel& kernel = t.kernel();
  if (base::Ref<ThreadGroup> group = kernel.FindThreadGroup(t.pid_namespace(), pid)) return group;
  base::Ref<Task> task = kernel.FindTask(t.pid_namespace(), pid);
  return task ? task->thread_group_ref() : nullptr;
}

Status SendToGroup(Task& t, ThreadGroup& group, const siginfo_t& info) {
  base::Ref<Task> leader = group.leader();
  if (!leader) return Error(ESRCH);
  return SendTo(t, *leader, info, false);
}

// kill(2) of many: fine if one could be signalled.
Status SendToMany(Task& t, const std::vector<base::Ref<ThreadGroup>>& groups,
                  const siginfo_t& info) {
  bool sent = false;
  Status last = Error(ESRCH);
  for (const auto& group : groups) {
    Status s = SendToGroup(t, *group, info);
    sent |= s.ok();
    if (!s.ok()) last = s;
  }
  return sent ? base::Ok() : last;
}

// A siginfo from the guest: only what no kernel-made signal can be mistaken for.
Result<siginfo_t> CopyInfo(Task& t, uint64_t addr, int signo) {
  siginfo_t info = TRY(UserPtr<siginfo_t>(addr).CopyIn(t.memory()));
  info.si_signo = signo;
  return info;
}

}  // namespace

Result<uint64_t> SysRtSigaction(Task& t, const SyscallArgs& a) {
  if (a[3] != kSigSetSize) return Error(EINVAL);
  int signo = a.Int(0);
  SigAction action;
  if (a[1] != 0) action = TRY(UserPtr<SigAction>(a[1]).CopyIn(t.memory()));
  if (!SigValid(signo) || (a[1] != 0 && (signo == SIGKILL || signo == SIGSTOP)))
    return Error(EINVAL);
  SignalHandlers& handlers = *t.thread_group().handlers();
  SigAction old;
  if (a[1] != 0) {
    action.mask &= ~kUnblockable;
    action.flags &= kKnownSaFlags;
    old = handlers.Set(signo, action);
    if (handlers.IsIgnored(signo)) t.thread_group().FlushIgnored(signo);
  } else {
    old = handlers.Get(signo);
  }
  if (a[2] != 0) TRY(UserPtr<SigAction>(a[2]).CopyOut(t.memory(), old));
  t.OpenSignalActions();  // who asks once, asks again
  return 0;
}

Result<uint64_t> SysRtSigprocmask(Task& t, const SyscallArgs& a) {
  if (a[3] != kSigSetSize) return Error(EINVAL);
  SigSet old = t.signal_mask();
  if (a[1] != 0) {
    SigSet set = TRY(UserPtr<SigSet>(a[1]).CopyIn(t.memory()));
    switch (a.Int(0)) {
      case SIG_BLOCK:
        t.SetSignalMask(old | set);
        break;
      case SIG_UNBLOCK:
        t.SetSignalMask(old & ~set);
        break;
      case SIG_SETMASK:
        t.SetSignalMask(set);
        break;
      default:
        return Error(EINVAL);
    }
  }
  if (a[2] != 0) TRY(UserPtr<SigSet>(a[2]).CopyOut(t.memory(), old));
  return 0;
}

Result<uint64_t> SysRtSigreturn(Task& t, const SyscallArgs&) { return t.SigReturn(); }

Result<uint64_t> SysRtSigpending(Task& t, const SyscallArgs& a) {
  if (a[1] > kSigSetSize) return Error(EINVAL);
  SigSet pending = t.PendingSignalSet() & t.signal_mask();
  TRY(t.memory().Write(a[0], std::as_bytes(std::span(&pending, 1)).first(a[1])));
  return 0;
}

Result<uint64_t> SysRtSigtimedwait(Task& t, const SyscallArgs& a) {
  if (a[3] != kSigSetSize) return Error(EINVAL);
  SigSet set = TRY(UserPtr<SigSet>(a[0]).CopyIn(t.memory())) & ~kUnblockable;
  int64_t deadline = fiber::kNoDeadline;
  if (a[2] != 0) {
    timespec ts = TRY(UserPtr<timespec>(a[2]).CopyIn(t.memory()));
    std::optional<int64_t> ns = base::NsFromTimespec(ts);
    if (!ns) return Error(EINVAL);
    deadline = base::DeadlineAfter(*ns);
  }
  std::optional<siginfo_t> info;
  fiber::WakeReason reason = fiber::WaitUntil(t.thread_group().signal_queue(), EPOLLIN,
                                              [&] {
                                                info = t.DequeueSignal(set);
                                                return info.has_value();
                                              },
                                              {.interruptible = true, .deadline_ns = deadline});
  if (!info) return Error(reason == fiber::WakeReason::kTimeout ? EAGAIN : EINTR);
  if (a[1] != 0) TRY(UserPtr<siginfo_t>(a[1]).CopyOut(t.memory(), *info));
  return static_cast<uint64_t>(info->si_signo);
}

Result<uint64_t> SysRtSigsuspend(Task& t, const SyscallArgs& a) {
  if (a[1] != kSigSetSize) return Error(EINVAL);
  SigSet mask = TRY(UserPtr<SigSet>(a[0]).CopyIn(t.memory()));
  t.SetTemporaryMask(mask);
  while (!t.SignalPending()) fiber::Park({.interruptible = true});
  return Error(base::kERESTARTNOHAND);
}

Result<uint64_t> SysPause(Task& t, const SyscallArgs&) {
  while (!t.SignalPending()) fiber::Park({.interruptible = true});
  return Error(base::kERESTARTNOHAND);
}

Result<uint64_t> SysSigaltstack(Task& t, const SyscallArgs& a) {
  AltStack old = t.alt_stack();
  uint64_t sp = t.regs().rsp;
  bool on_stack = !(old.flags & kSsAutodisarm) && sp > old.sp && sp - old.sp <= old.size;
  if (a[0] != 0) {
    AltStack stack = TRY(UserPtr<AltStack>(a[0]).CopyIn(t.memory()));
    if (on_stack) return Error(EPERM);
    uint32_t mode = stack.flags & ~kSsAutodisarm;
    if (mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0) return Error(EINVAL);
    if (mode == SS_DISABLE) {
      stack = AltStack{};
    } else {
      if (stack.size < kMinSigStack) return Error(ENOMEM);
      stack.flags &= kSsAutodisarm;
      stack.pad = 0;
    }
    t.SetAltStack(stack);
  }
  if (a[1] != 0) {
    if (old.size == 0) old.flags = SS_DISABLE;
    if (on_stack) old.flags |= SS_ONSTACK;
    TRY(UserPtr<AltStack>(a[1]).CopyOut(t.memory(), old));
  }
  return 0;
}

Result<uint64_t> SysKill(Task& t, const SyscallArgs& a) {
  int pid = a.Int(0), signo = a.Int(1);
  Kernel& kernel = t.kernel();
  // A target that is not there comes before a signal that is none.
  const bool valid = signo == 0 || SigValid(signo);
  if (!valid && pid <= 0) return Error(EINVAL);
  siginfo_t info = MakeSiginfo(signo, SI_USER);
  if (pid > 0) {
    base::Ref<ThreadGroup> group = FindTarget(t, pid);
    if (!group) return Error(ESRCH);
    if (!valid) return Error(EINVAL);
    TRY(SendToGroup(t, *group, info));
    return 0;
  }
  std::vector<base::Ref<ThreadGroup>> groups;
  if (pid == -1) {
    for (auto& group : kernel.ThreadGroups(t.pid_namespace())) {
      if (group.get() == &t.thread_group() || group->PidIn(t.pid_namespace()) == 1) continue;
      groups.push_back(std::move(group));
    }
  } else {
    if (pid == INT32_MIN) return Error(ESRCH);
    base::Ref<ProcessGroup> pgrp = pid == 0 ? t.thread_group().process_group()
                                            : kernel.FindProcessGroup(t.pid_namespace(), -pid);
    if (!pgrp) return Error(ESRCH);
    groups = kernel.Members(*pgrp);
  }
  TRY(SendToMany(t, groups, info));
  return 0;
}

namespace {
Result<uint64_t> Tgkill(Task& t, int tgid, int tid, const siginfo_t& info) {
  if (tid <= 0 || tgid == 0) return Error(EINVAL);
  int signo = info.si_signo;
  base::Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), tid);
  if (!target) return Error(ESRCH);
  if (tgid > 0 && target->thread_group().PidIn(t.pid_namespace()) != tgid) return Error(ESRCH);
  if (signo != 0 && !SigValid(signo)) return Error(EINVAL);
  TRY(SendTo(t, *target, info, true));
  return 0;
}
}  // namespace

Result<uint64_t> SysTgkill(Task& t, const SyscallArgs& a) {
  if (a.Int(0) <= 0) return Error(EINVAL);
  return Tgkill(t, a.Int(0), a.Int(1), MakeSiginfo(a.Int(2), SI_TKILL));
}

Result<uint64_t> SysTkill(Task& t, const SyscallArgs& a) {
  return Tgkill(t, -1, a.Int(0), MakeSiginfo(a.Int(1), SI_TKILL));
}

Result<uint64_t> SysRtSigqueueinfo(Task& t, const SyscallArgs& a) {
  int pid = a.Int(0), signo = a.Int(1);
  siginfo_t info = TRY(CopyInfo(t, a[2], signo));
  base::Ref<ThreadGroup> group = FindTarget(t, pid);
  if ((info.si_code >= 0 || info.si_code == SI_TKILL) &&
      (!group || group.get() != &t.thread_group())) {
    return Error(EPERM);
  }
  if (!group) return Error(ESRCH);
  if (signo != 0 && !SigValid(signo)) return Error(EINVAL);
  TRY(SendToGroup(t, *group, info));
  return 0;
}

Result<uint64_t> SysRtTgsigqueueinfo(Task& t, const SyscallArgs& a) {
  siginfo_t info = TRY(CopyInfo(t, a[3], a.Int(2)));
  if (a.Int(0) <= 0 || a.Int(1) <= 0) return Error(EINVAL);
  if ((info.si_code >= 0 || info.si_code == SI_TKILL) && a.Int(0) != t.Pid_()) return Error(EPERM);
  return Tgkill(t, a.Int(0), a.Int(1), info);
}

Result<uint64_t> SysPidfdSendSignal(Task& t, const SyscallArgs& a) {
  int signo = a.Int(1);
  uint32_t flags = a.Uint(3);
  constexpr uint32_t kThread = 1, kGroup = 2, kPgrp = 4;  // PIDFD_SIGNAL_*
  if (flags & ~(kThread | kGroup | kPgrp)) return Error(EINVAL);
  if ((flags & (flags - 1)) != 0) return Error(EINVAL);
  base::Ref<FileDescription> file = TRY(GetOpenFile(t, a.Int(0)));
  base::Ref<Pid> pid = PidOfFile(*file);
  if (!pid) pid = PidOfProcDir(*file);
  if (!pid) return Error(EBADF);
  if (pid->NumberIn(t.pid_namespace()) == 0) return Error(EINVAL);
  base::Ref<ThreadGroup> group = t.kernel().GroupOf(*pid);
  siginfo_t info = MakeSiginfo(signo, SI_USER);
  if (a[2] != 0) {
    info = TRY(UserPtr<siginfo_t>(a[2]).CopyIn(t.memory()));
    if (info.si_signo != signo) return Error(EINVAL);
    if (group.get() != &t.thread_group() && (info.si_code >= 0 || info.si_code == SI_TKILL)) {
      return Error(EPERM);
    }
  }
  if (signo != 0 && !SigValid(signo)) return Error(EINVAL);
  if (flags & kPgrp) {
    base::Ref<ProcessGroup> pgrp =
        t.kernel().FindProcessGroup(t.pid_namespace(), pid->NumberIn(t.pid_namespace()));
    if (!pgrp) return Error(ESRCH);
    TRY(SendToMany(t, t.kernel().Members(*pgrp), info));
    return 0;
  }
  if (!group) return Error(ESRCH);
  base::Ref<Task> leader = group->leader();
  if (!leader) return Error(ESRCH);
  TRY(SendTo(t, *leader, info, (flags & kThread) != 0));
  return 0;
}

}  // namespace sentry
