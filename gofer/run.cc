#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

#include "gofer/confine.h"
#include "gofer/server.h"
#include "sentry/base/host_seccomp.h"

namespace gofer {
namespace {

// Descriptors beside handles: one per thread and request for data, one for its reply, and our own.
constexpr rlim_t kSpareDescriptors = 64;
constexpr uint32_t kMaxHandles = 256 * 1024;
// For so many the host has room in its table of them from the start. Each time that it makes more
// room for a process of several threads it waits for all processors (synchronize_rcu), 10 ms or so.
constexpr int kRoomForDescriptors = 16 * 1024;

// `errors` is closed when nothing can fail any more.
base::Status Run(GoferConfig config, base::UniqueFd* errors, const char** step, int* exit_code) {
  base::UniqueFd proc;
  const bool has_seccomp = base::HostHasSeccomp();
  const bool filtered = !config.unconfined && (has_seccomp || !config.allow_no_seccomp);
  if (filtered && !has_seccomp) {
    *step = "use the host's seccomp(2); --allow-no-seccomp starts without";
    return base::LastError();
  }
  if (config.unconfined) {
    *step = "open /proc/self/fd";
    proc.reset(open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!proc.valid() || fchdir(proc.get()) != 0) return base::LastError();
  } else {
    TRY(LimitProcess(config, errors->get(), step));
    proc = TRY(CloneMounts(config, step));
    TRY(EnterEmptyRoot(proc.get(), step));
    TRY(DropCapabilities(config.rootless, step));
  }
  rlimit files;
  *step = "read limits";
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return base::LastError();
  const rlim_t used = kSpareDescriptors + config.mounts.size() + 2 * config.threads;
  if (files.rlim_cur <= used) return base::Error(EMFILE);

  // Now, that there is one thread.
  const auto highest = static_cast<int>(std::min<rlim_t>(files.rlim_cur, kRoomForDescriptors)) - 1;
  base::UniqueFd(fcntl(proc.get(), F_DUPFD_CLOEXEC, highest)).reset();

  FilterFds fds = {config.connection.get(), proc.get(), 2, false};
  for (const MountConfig& mount : config.mounts) fds.connect |= mount.allow_connect;
  // One arena for malloc: before it makes more it reads the number of processors from /sys.
  mallopt(M_ARENA_MAX, 1);

  *step = "start threads";
  Server server(
      {.mounts = std::move(config.mounts),
       .connection = std::move(config.connection),
       .proc_fd = proc.get(),
       .threads = config.threads,
       .max_handles = static_cast<uint32_t>(std::min<rlim_t>(files.rlim_cur - used, kMaxHandles)),
       .exit_code = config.exit_code});
  server.Start();
  if (filtered) TRY(InstallFilter(fds, step));
  errors->reset();
  server.Release();
  server.Join();
  *exit_code = server.exit_code();
  return base::Ok();
}

}  // namespace

int RunGofer(GoferConfig config, std::string* error) {
  const char* step = "";
  // Whoever started us listens at standard error, which becomes the log.
  base::UniqueFd errors;
  if (config.log.valid()) errors.reset(fcntl(2, F_DUPFD_CLOEXEC, 3));
  int exit_code = 0;
  const base::Status status = Run(std::move(config), &errors, &step, &exit_code);
  if (status.ok()) return exit_code;
  *error = std::string("gofer: cannot ") + step + ": " + strerror(status.error().code());
  dprintf(2, "%s\n", error->c_str());
  if (errors.valid()) dprintf(errors.get(), "%s\n", error->c_str());
  return 1;
}

}  // namespace gofer
