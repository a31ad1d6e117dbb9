// PIDFD_GET_INFO and the namespaces of a process (Linux: fs/pidfs.c).
#include "sentry/syscalls/thread/pidfd_ioctl.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <span>

#include "sentry/base/user_memory.h"
#include "sentry/fs/nsfs/nsfs.h"
#include "sentry/kernel/inspect.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {
namespace {

using base::Error;
using base::Result;

// Of <linux/pidfd.h>, which may not be there.
constexpr uint32_t kMagic = 0xff, kInfoNumber = 11;
constexpr uint64_t kInfoPid = 1, kInfoCreds = 2;  // PIDFD_INFO_*
struct PidFdInfo {
  uint64_t mask, cgroup;
  int32_t pid, tgid, ppid;
  uint32_t ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  int32_t exit_code;
};
static_assert(sizeof(PidFdInfo) == 64);

// By number of the ioctl; 0: there is no such namespace. Of 6 it is the one for children.
constexpr int kForChildren = 6;
constexpr int kTypes[] = {
    0, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWPID, 0,
    0, CLONE_NEWUSER,   CLONE_NEWUTS};

base::Ref<Task> LivingTaskOf(Task& t, Pid& pid) {
  absl::MutexLock lock(&t.kernel().task_mutex());
  if (pid.group == nullptr || pid.group->is_zombie() || pid.task == nullptr) return nullptr;
  return base::Ref<Task>(pid.task);
}

Result<uint64_t> GetInfo(Task& t, Pid& pid, uint32_t size, uint64_t addr) {
  if (size < sizeof(PidFdInfo)) return Error(ENOTTY);
  if (addr == 0) return Error(EINVAL);
  TRY(base::UserPtr<uint64_t>(addr).CopyIn(t.memory()));  // what is wished for: all of it is told
  base::Ref<Task> task = LivingTaskOf(t, pid);
  const base::Ref<const Credentials> creds = task != nullptr ? task->credentials() : nullptr;
  const int number = pid.NumberIn(t.pid_namespace());
  if (creds == nullptr || number == 0) return Error(ESRCH);
  const UserNamespace& ns = t.user_ns();
  PidFdInfo info{.mask = kInfoPid | kInfoCreds,
                 .cgroup = 0,
                 .pid = number,
                 .tgid = number,
                 .ppid = task->thread_group().ParentPidIn(t.pid_namespace()),
                 .ruid = ns.MapUidOut(creds->ruid),
                 .rgid = ns.MapGidOut(creds->rgid),
                 .euid = ns.MapUidOut(creds->euid),
                 .egid = ns.MapGidOut(creds->egid),
                 .suid = ns.MapUidOut(creds->suid),
                 .sgid = ns.MapGidOut(creds->sgid),
                 .fsuid = ns.MapUidOut(creds->fsuid),
                 .fsgid = ns.MapGidOut(creds->fsgid),
                 .exit_code = 0};
  TRY(t.memory().Write(addr, std::as_bytes(std::span(&info, 1))));
  return uint64_t{0};
}

}  // namespace

Result<uint64_t> PidFdIoctl(Task& t, Pid& pid, uint32_t cmd, uint64_t arg) {
  if (_IOC_TYPE(cmd) != kMagic) return Error(ENOTTY);
  if (_IOC_NR(cmd) == kInfoNumber) return GetInfo(t, pid, _IOC_SIZE(cmd), arg);
  const uint32_t number = _IOC_NR(cmd);
  if (cmd != _IO(kMagic, number) || number >= std::size(kTypes) || number == 0) {
    return Error(ENOTTY);
  }
  if (arg != 0) return Error(EINVAL);
  base::Ref<Task> task = LivingTaskOf(t, pid);
  if (task == nullptr) return Error(ESRCH);
  if (!MayInspect(t, *task).ok()) return Error(EPERM);
  if (kTypes[number] == 0) return Error(EOPNOTSUPP);
  NamespaceRef ns = NamespaceOf(*task, kTypes[number], number == kForChildren);
  if (!ns.object) return Error(ESRCH);
  return OpenNamespace(t, std::move(ns));
}

}  // namespace sentry
