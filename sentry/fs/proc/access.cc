#include "sentry/auth/credentials.h"
#include "sentry/fs/proc/proc.h"
#include "sentry/kernel/task.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {

base::Status MayReadTask(Task& reader, Task& target) {
  if (&reader.thread_group() == &target.thread_group()) return base::Ok();
  base::Ref<const Credentials> theirs = target.credentials();
  if (theirs == nullptr) return base::Error(EACCES);
  const Credentials& mine = reader.creds();
  bool privileged = mine.HasCapIn(CAP_SYS_PTRACE, *theirs->user_ns);
  bool same_ids = mine.fsuid == theirs->euid && mine.fsuid == theirs->suid &&
                  mine.fsuid == theirs->ruid && mine.fsgid == theirs->egid &&
                  mine.fsgid == theirs->sgid && mine.fsgid == theirs->rgid;
  if (!same_ids && !privileged) return base::Error(EACCES);
  base::Ref<MemoryManager> mm = target.mm_ref();
  if (mm != nullptr && mm->dumpable() != 1 && !privileged) return base::Error(EACCES);
  // cap_ptrace_access_check: nobody looks into a process that may do more.
  bool subset = mine.user_ns == theirs->user_ns && (theirs->permitted & ~mine.effective) == 0;
  if (!subset && !privileged) return base::Error(EACCES);
  return base::Ok();
}

}  // namespace sentry
