#include "platform/systrap/reap.h"

#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sentry/base/host_fd.h"

namespace platform {
namespace {

bool HasEnded(const siginfo_t& info) {
  return info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED;
}

}  // namespace

bool ReapEnded(idtype_t type, id_t id, siginfo_t* info) {
  info->si_pid = 0;
  if (waitid(type, id, info, WEXITED | WNOHANG | WNOWAIT) != 0) return false;
  if (info->si_pid == 0) return true;
  if (HasEnded(*info)) {
    // Of several, exactly this one.
    base::UniqueFd opened;
    if (type != static_cast<idtype_t>(P_PIDFD)) {
      opened.reset(static_cast<int>(syscall(SYS_pidfd_open, info->si_pid, 0)));
      id = static_cast<id_t>(opened.get());
    }
    info->si_pid = 0;
    if (static_cast<int>(id) >= 0) {
      waitid(static_cast<idtype_t>(P_PIDFD), id, info, WEXITED | WNOHANG);
    }
  } else {
    info->si_pid = 0;
  }
  return true;
}

void ReapAll(idtype_t type, id_t id) {
  constexpr timespec kNap{0, 200'000};
  siginfo_t info;
  while (ReapEnded(type, id, &info)) {
    if (info.si_pid != 0) continue;
    // Waits without taking anything, but not while one is stopped.
    if (waitid(type, id, &info, WEXITED | WNOWAIT) != 0) return;
    if (!HasEnded(info)) nanosleep(&kNap, nullptr);
  }
}

}  // namespace platform
