#include "sentry/kernel/async/sigio.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>

#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/session.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

namespace sentry {
namespace {

using base::Error;
using base::Status;

constexpr int kSiSigio = -5;  // SI_SIGIO

// Signals whose codes say something else (sig_specific_sicodes).
constexpr SigSet kOwnCodes = SigBit(SIGILL) | SigBit(SIGFPE) | SigBit(SIGSEGV) | SigBit(SIGBUS) |
                             SigBit(SIGTRAP) | SigBit(SIGCHLD) | SigBit(SIGSYS);

constexpr int64_t BandOf(int code) {
  switch (code) {
    case POLL_IN:
      return POLLIN | POLLRDNORM;
    case POLL_OUT:
      return POLLOUT | POLLWRNORM | POLLWRBAND;
    case POLL_MSG:
      return POLLIN | POLLRDNORM | POLLMSG;
    case POLL_ERR:
      return POLLERR;
    case POLL_PRI:
      return POLLPRI | POLLRDBAND;
    default:
      return POLLHUP | POLLERR;
  }
}

Pid* PidOf(const FileDescription::AsyncOwner& owner) { return static_cast<Pid*>(owner.pid.get()); }

// sigio_perm().
bool MaySignal(const FileDescription::AsyncOwner& owner, const Task& target) {
  base::Ref<const Credentials> theirs = target.credentials();
  return owner.euid == 0 || owner.euid == theirs->suid || owner.euid == theirs->ruid ||
         owner.ruid == theirs->suid || owner.ruid == theirs->ruid;
}

// Those whom the owner names: one thread, or processes.
struct Targets {
  base::Ref<Task> thread;
  std::vector<base::Ref<ThreadGroup>> processes;
};

Targets FindTargets(const FileDescription::AsyncOwner& owner) {
  Targets found;
  Pid* pid = PidOf(owner);
  if (pid == nullptr) return found;
  absl::MutexLock l(&Kernel::Get().task_mutex());
  if (owner.type == F_OWNER_TID) {
    found.thread = base::Ref<Task>(pid->task);
  } else if (owner.type == F_OWNER_PID) {
    if (pid->group != nullptr) found.processes.emplace_back(pid->group);
  } else if (pid->pgrp != nullptr) {
    for (ThreadGroup* member : pid->pgrp->members) found.processes.emplace_back(member);
  }
  return found;
}

// Sends to all targets that the owner may signal; `fallback` where the queue has no room.
void Send(const FileDescription::AsyncOwner& owner, const siginfo_t& info,
          const siginfo_t* fallback) {
  const Targets targets = FindTargets(owner);
  auto to = [&](auto& target, const Task& probe) {
    if (!MaySignal(owner, probe)) return;
    bool queue_full = false;
    target.SendSignal(info, &queue_full);
    if (queue_full && fallback != nullptr) target.SendSignal(*fallback);
  };
  if (targets.thread != nullptr) to(*targets.thread, *targets.thread);
  for (const base::Ref<ThreadGroup>& process : targets.processes) {
    if (base::Ref<Task> leader = process->leader()) to(*process, *leader);
  }
}

}  // namespace

void SendSigio(const FileDescription::AsyncOwner& owner, int fd, int band) {
  const siginfo_t plain = MakeSiginfo(SIGIO, SI_KERNEL);
  if (owner.signo == 0) return Send(owner, plain, nullptr);
  siginfo_t info = MakeSiginfo(owner.signo, band);
  if ((kOwnCodes & SigBit(owner.signo)) != 0) info.si_code = kSiSigio;
  info.si_band = BandOf(band);
  info.si_fd = fd;
  Send(owner, info, &plain);
}

void SendSigurg(const FileDescription::AsyncOwner& owner) {
  Send(owner, MakeSiginfo(SIGURG, SI_KERNEL), nullptr);
}

Status SetAsyncOwner(Task& t, FileDescription& file, int type, int id) {
  FileDescription::AsyncOwner owner = file.async_owner();
  base::Ref<Pid> pid;
  if (id != 0) {
    pid = t.pid_namespace().Find(id);
    if (pid == nullptr) return Error(ESRCH);
    owner.ruid = t.creds().ruid;
    owner.euid = t.creds().euid;
  }
  owner.type = type;
  owner.pid = std::move(pid);
  file.set_async_owner(std::move(owner));
  return base::Ok();
}

Status SetAsyncOwner(Task& t, FileDescription& file, int who) {
  if (who == INT32_MIN) return Error(EINVAL);
  return who < 0 ? SetAsyncOwner(t, file, F_OWNER_PGRP, -who)
                 : SetAsyncOwner(t, file, F_OWNER_PID, who);
}

void SetAsyncOwnerIfNone(Task& t, FileDescription& file, int type, base::Ref<Pid> pid) {
  FileDescription::AsyncOwner owner = file.async_owner();
  if (owner.pid != nullptr) return;
  owner.type = type;
  owner.pid = std::move(pid);
  owner.ruid = t.creds().ruid;
  owner.euid = t.creds().euid;
  file.set_async_owner(std::move(owner));
}

int AsyncOwnerId(Task& t, const FileDescription::AsyncOwner& owner) {
  Pid* pid = PidOf(owner);
  if (pid == nullptr) return 0;
  bool alive;
  {
    absl::MutexLock l(&t.kernel().task_mutex());
    alive = owner.type == F_OWNER_TID   ? pid->task != nullptr
            : owner.type == F_OWNER_PID ? pid->group != nullptr
                                        : pid->pgrp != nullptr;
  }
  return alive ? pid->NumberIn(t.pid_namespace()) : 0;
}

int AsyncOwnerWho(Task& t, const FileDescription& file) {
  const FileDescription::AsyncOwner owner = file.async_owner();
  const int id = AsyncOwnerId(t, owner);
  return owner.type == F_OWNER_PGRP ? -id : id;
}

}  // namespace sentry
