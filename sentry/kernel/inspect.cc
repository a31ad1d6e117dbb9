#include "sentry/kernel/inspect.h"

#include "sentry/kernel/task.h"

namespace sentry {

base::Status MayInspect(Task& t, Task& target) {
  if (&target.thread_group() == &t.thread_group()) return base::Ok();
  const Credentials& c = t.creds();
  base::Ref<const Credentials> theirs = target.credentials();
  bool same = c.ruid == theirs->euid && c.ruid == theirs->suid && c.ruid == theirs->ruid &&
              c.rgid == theirs->egid && c.rgid == theirs->sgid && c.rgid == theirs->rgid;
  bool may_trace = c.HasCapIn(CAP_SYS_PTRACE, *theirs->user_ns);
  if (!same && !may_trace) return base::Error(EPERM);
  base::Ref<MemoryManager> mm = target.mm_ref();
  if (mm && mm->dumpable() != 1 && !may_trace) return base::Error(EPERM);
  // cap_ptrace_access_check: nobody with more capabilities.
  if ((c.user_ns == theirs->user_ns && (theirs->permitted & ~c.permitted) == 0) || may_trace) {
    return base::Ok();
  }
  return base::Error(EPERM);
}

}  // namespace sentry
