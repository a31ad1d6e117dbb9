// seccomp(2), and prctl's forms of it.
#include "sentry/kernel/seccomp/filter.h"

#include <linux/seccomp.h>

#include "sentry/kernel/seccomp/listener.h"

#include "sentry/kernel/task.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/thread/seccomp.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

namespace sentry {
namespace {

using base::Error;
using base::Result;
using base::UserPtr;

// struct sock_fprog.
struct Program {
  uint16_t length;
  uint64_t code;
};

Result<BpfProgram> CopyInProgram(Task& t, uint64_t addr) {
  Program user = TRY(UserPtr<Program>(addr).CopyIn(t.memory()));
  if (user.length == 0 || user.length > BPF_MAXINSNS) return Error(EINVAL);
  if (!t.no_new_privs && !t.HasCap(CAP_SYS_ADMIN)) return Error(EACCES);
  std::vector<sock_filter> code(user.length);
  TRY(t.memory().Read(user.code, std::as_writable_bytes(std::span(code))));
  return BpfProgram::Check(std::move(code));
}

// Puts the program into force on top of what there is; 0, or the thread that could not follow.
Result<uint64_t> Install(Task& t, const BpfProgram& program, uint64_t flags,
                         const base::Ref<SeccompListener>& listener) {
  while (true) {
    base::Ref<const SeccompFilter> before = t.seccomp_filter();
    if (listener != nullptr && before != nullptr && before->HasWatcher()) return Error(EBUSY);
    base::Ref<SeccompFilter> filter = TRY(SeccompFilter::New(
        program, std::move(before), (flags & SECCOMP_FILTER_FLAG_LOG) != 0, listener));
    Result<int> other =
        t.InstallSeccomp(std::move(filter), (flags & SECCOMP_FILTER_FLAG_TSYNC) != 0);
    if (!other.ok()) {
      if (other.error().code() == EAGAIN) continue;  // another thread was quicker
      return other.error();
    }
    if (*other != 0 && (flags & SECCOMP_FILTER_FLAG_TSYNC_ESRCH)) return Error(ESRCH);
    return static_cast<uint64_t>(*other);
  }
}

// seccomp_set_mode_filter().
Result<uint64_t> SetFilter(Task& t, uint64_t flags, uint64_t addr) {
  constexpr uint64_t kKnown = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG |
                              SECCOMP_FILTER_FLAG_SPEC_ALLOW | SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
                              SECCOMP_FILTER_FLAG_NEW_LISTENER |
                              SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  if (flags & ~kKnown) return Error(EINVAL);
  const bool sync = (flags & SECCOMP_FILTER_FLAG_TSYNC) != 0;
  const bool esrch = (flags & SECCOMP_FILTER_FLAG_TSYNC_ESRCH) != 0;
  const bool listens = (flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) != 0;
  const bool killable = (flags & SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) != 0;
  // What is returned could be a thread's number or a descriptor.
  if (sync && listens && !esrch) return Error(EINVAL);
  if (killable && !listens) return Error(EINVAL);
  BpfProgram program = TRY(CopyInProgram(t, addr));
  if (t.seccomp_mode() == SECCOMP_MODE_STRICT) return Error(EINVAL);
  base::Ref<SeccompListener> listener;
  int fd = -1;
  if (listens) {
    listener = base::MakeRef<SeccompListener>(killable);
    fd = TRY(t.InstallFile(NewSeccompFile(t, listener), /*cloexec=*/true));
  }
  Result<uint64_t> result = Install(t, program, flags, listener);
  if (!listens) return result;
  if (result.ok() && *result == 0) return static_cast<uint64_t>(fd);
  (void)t.fd_table().Close(fd);
  return result;
}

Result<uint64_t> ActionAvailable(Task& t, uint64_t addr) {
  switch (TRY(UserPtr<uint32_t>(addr).CopyIn(t.memory()))) {
    case SECCOMP_RET_KILL_PROCESS:
    case SECCOMP_RET_KILL_THREAD:
    case SECCOMP_RET_TRAP:
    case SECCOMP_RET_ERRNO:
    case SECCOMP_RET_USER_NOTIF:
    case SECCOMP_RET_TRACE:
    case SECCOMP_RET_LOG:
    case SECCOMP_RET_ALLOW:
      return uint64_t{0};
    default:
      return Error(EOPNOTSUPP);
  }
}

}  // namespace

Result<uint64_t> DoSeccomp(Task& t, uint32_t operation, uint64_t flags, uint64_t addr) {
  switch (operation) {
    case SECCOMP_SET_MODE_STRICT:
      if (flags != 0 || addr != 0) return Error(EINVAL);
      TRY(t.SetStrictSeccomp());
      return uint64_t{0};
    case SECCOMP_SET_MODE_FILTER:
      return SetFilter(t, flags, addr);
    case SECCOMP_GET_ACTION_AVAIL:
      if (flags != 0) return Error(EINVAL);
      return ActionAvailable(t, addr);
    case SECCOMP_GET_NOTIF_SIZES: {
      if (flags != 0) return Error(EINVAL);
      seccomp_notif_sizes sizes{sizeof(seccomp_notif), sizeof(seccomp_notif_resp),
                                sizeof(seccomp_data)};
      TRY(UserPtr<seccomp_notif_sizes>(addr).CopyOut(t.memory(), sizes));
      return uint64_t{0};
    }
    default:
      return Error(EINVAL);
  }
}

Result<uint64_t> SysSeccomp(Task& t, const SyscallArgs& a) {
  return DoSeccomp(t, a.Uint(0), a.Uint(1), a[2]);
}

}  // namespace sentry
