// A task's seccomp(2) mode and filters, and what they make of its calls (Linux: kernel/seccomp.c).
#include <algorithm>
#include <utility>

#include "sentry/base/log.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/seccomp/listener.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/thread_group.h"

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1
#endif

namespace sentry {

namespace {

constexpr int kNrRead = 0, kNrWrite = 1, kNrRtSigreturn = 15, kNrExit = 60, kNrFutex = 202;
constexpr uint32_t kMaxErrno = 4095;

bool StrictAllows(int nr) {
  return nr == kNrRead || nr == kNrWrite || nr == kNrRtSigreturn || nr == kNrExit;
}

// The call numbers of what may be answered without the kernel are what a filter must let through
// in any case: it is not asked then.
platform::Context::Lanes LanesUnder(const SeccompFilter& filter, const platform::Platform& host) {
  using Lanes = platform::Context::Lanes;
  if (!filter.AlwaysAllows(kNrFutex)) return Lanes::kNone;
  for (int nr : host.LaneCalls()) {
    if (!filter.AlwaysAllows(nr)) return Lanes::kFutex;
  }
  return Lanes::kAll;
}

}  // namespace

base::Ref<const SeccompFilter> Task::seccomp_filter() const {
  absl::MutexLock l(&mutex_);
  return seccomp_filter_;
}

void Task::SetSeccompMode(int mode) {
  seccomp_mode_.store(mode, std::memory_order_release);
  if (mode != SECCOMP_MODE_DISABLED) syscall_work_.fetch_or(kWorkSeccomp);
}

bool Task::MayAnswerThreadCalls() const {
  const base::Ref<const SeccompFilter> filter = seccomp_filter();
  if (!filter) return seccomp_mode() == SECCOMP_MODE_DISABLED;
  return std::ranges::all_of(kernel_->platform().ThreadCalls(),
                             [&](int nr) { return filter->AlwaysAllows(nr); });
}

// The signal mutex is held, or nobody else knows the task, or it is current.
void Task::UpdateLanes() {
  using Lanes = platform::Context::Lanes;
  Lanes lanes = Lanes::kAll;
  // A trace shows every call, so none may be answered below the table.
  if (kernel_->strace.load(std::memory_order_relaxed)) lanes = Lanes::kFutex;
  // A user namespace may get its maps after the ids were published, from whoever writes them.
  const base::Ref<const Credentials> creds = credentials();
  if (creds && creds->user_ns->parent()) lanes = Lanes::kFutex;
  if (base::Ref<const SeccompFilter> filter = seccomp_filter()) {
    lanes = std::max(lanes, LanesUnder(*filter, kernel_->platform()));
  } else if (seccomp_mode() == SECCOMP_MODE_STRICT) {
    lanes = Lanes::kNone;
  }
  if (traced()) lanes = Lanes::kNone;
  if (context_) context_->SetLanes(lanes);
  if (context_) context_->SetThreadCalls(MayAnswerThreadCalls());
  if (context_ && seccomp_mode() != SECCOMP_MODE_DISABLED) {
    context_->SetLaneOwner(0);
    context_->SetPathPlace(0);
    context_->SetFdPlaces(0);
  }
}

base::Status Task::SetStrictSeccomp() {
  mm_->DropLanes();
  mm_->DropPaths();
  absl::MutexLock l(&group_->signal_mutex());
  if (seccomp_mode() == SECCOMP_MODE_FILTER) return base::Error(EINVAL);
  SetSeccompMode(SECCOMP_MODE_STRICT);
  UpdateLanes();
  return base::Ok();
}

base::Result<int> Task::InstallSeccomp(base::Ref<SeccompFilter> filter, bool sync) {
  // Who may do less than others is no longer their equal.
  mm_->DropLanes();
  mm_->DropPaths();
  absl::MutexLock l(&group_->signal_mutex());
  if (seccomp_mode() == SECCOMP_MODE_STRICT) return base::Error(EINVAL);
  base::Ref<const SeccompFilter> own = seccomp_filter();
  // Another thread may have changed it since `filter` was made on top of it.
  if (own && !own->IsAncestorOf(filter.get())) return base::Error(EAGAIN);
  std::vector<Task*> tasks;
  if (sync) {
    for (const base::Ref<Task>& t : group_->tasks_) {
      if (t.get() == this || t->dead_) continue;
      base::Ref<const SeccompFilter> theirs = t->seccomp_filter();
      bool can = t->seccomp_mode() == SECCOMP_MODE_DISABLED ||
                 (t->seccomp_mode() == SECCOMP_MODE_FILTER &&
                  (!theirs || theirs->IsAncestorOf(own.get())));
      if (!can) return t->TidIn(*pid_ns_);
      tasks.push_back(t.get());
    }
  }
  tasks.push_back(this);
  for (Task* t : tasks) {
    {
      absl::MutexLock l2(&t->mutex_);
      t->seccomp_filter_ = filter;
    }
    t->SetSeccompMode(SECCOMP_MODE_FILTER);
    if (no_new_privs) t->no_new_privs = true;
    t->UpdateLanes();
  }
  return 0;
}

void Task::DieOfSeccomp(int signo, bool whole_process) {
  if (whole_process || group_->thread_count() == 1) {
    group_->BeginExit(signo);
  }
  Exit(signo);
}

bool Task::AskSeccomp(int* call, base::Result<uint64_t>* result, bool traced_already) {
  const int nr = *call;
  if (seccomp_mode() == SECCOMP_MODE_STRICT) {
    if (StrictAllows(nr)) return true;
    DieOfSeccomp(SIGKILL, false);
    return false;
  }
  base::Ref<const SeccompFilter> filter = seccomp_filter();
  if (filter->AlwaysAllows(nr)) return true;
  platform::Regs& r = regs();
  seccomp_data data{nr, kSeccompArch, r.rip, {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9}};
  bool log;
  SeccompWatcher* watcher = nullptr;
  uint32_t verdict = filter->Run(data, &log, &watcher);
  uint32_t value = verdict & SECCOMP_RET_DATA;
  uint32_t action = verdict & SECCOMP_RET_ACTION_FULL;
  if (action != SECCOMP_RET_ALLOW && (log || action == SECCOMP_RET_LOG)) {
    LOG_INFO("[%d] %s: seccomp filter answers call %d with %#x", Tid(), comm().c_str(), nr,
             verdict);
  }
  switch (action) {
    case SECCOMP_RET_ALLOW:
    case SECCOMP_RET_LOG:
      return true;
    case SECCOMP_RET_ERRNO:
      *result =
          value == 0
              ? base::Result<uint64_t>(uint64_t{0})
              : base::Result<uint64_t>(base::Error(static_cast<int>(std::min(value, kMaxErrno))));
      return false;
    case SECCOMP_RET_TRAP: {
      siginfo_t info = MakeSiginfo(SIGSYS, SYS_SECCOMP);
      info.si_errno = static_cast<int>(value);
      info.si_call_addr = reinterpret_cast<void*>(r.rip);
      info.si_syscall = nr;
      info.si_arch = kSeccompArch;
      // The handler finds the registers as they were before the call.
      r.rax = r.orig_rax;
      rax_kept_ = true;
      ForceSignal(info);
      return false;
    }
    case SECCOMP_RET_TRACE:
      if (traced_already) return true;
      if (!traced() || !Ptrace::EventEnabled(*this, PTRACE_EVENT_SECCOMP)) {
        *result = base::Error(ENOSYS);
        return false;
      }
      Ptrace::Event(*this, PTRACE_EVENT_SECCOMP, value);
      rax_kept_ = true;  // if the tracer has the call skipped, the result is its own
      if (gone_ || FatalPending()) return false;
      context_->RereadCall();
      *call = static_cast<int>(context_->call().nr);
      if (*call < 0) return false;
      rax_kept_ = false;
      return AskSeccomp(call, result, /*traced_already=*/true);
    case SECCOMP_RET_USER_NOTIF: {
      if (watcher == nullptr) {  // there is no listener
        *result = base::Error(ENOSYS);
        return false;
      }
      auto answer = static_cast<SeccompListener*>(watcher)->Ask(*this, data);
      if (!answer.ok()) {
        *result = answer.error();
        return false;
      }
      if (answer->goes_on) return true;
      context_->SetResult(
          static_cast<uint64_t>(answer->error != 0 ? int64_t{answer->error} : answer->value));
      rax_kept_ = true;
      return false;
    }
    case SECCOMP_RET_KILL_THREAD:
      DieOfSeccomp(SIGSYS, false);
      return false;
    default:
      DieOfSeccomp(SIGSYS, true);
      return false;
  }
}

}  // namespace sentry
