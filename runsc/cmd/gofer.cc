// runsc gofer: the process that opens the container's files. Internal; started by create and run.
#include "gofer/server.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "runsc/cmd/command.h"
#include "runsc/sandbox/gofer_spec.h"
#include "sentry/boot/boot_spec_json.h"
#include "sentry/control/protocol.h"

namespace runsc {
namespace {

absl::StatusOr<gofer::GoferConfig> ReadConfig() {
  base::UniqueFd file(kGoferSpecFd);
  auto text = sentry::ReadSealedFile(file.get(), sentry::kMaxSpecBytes);
  if (!text.ok()) return absl::InvalidArgumentError("gofer: no specification");
  auto spec = DecodeGoferSpec(*text);
  if (!spec.ok()) return spec.status();
  gofer::GoferConfig config;
  config.allow_no_seccomp = spec->allow_no_seccomp;
  fcntl(kGoferConnectionFd, F_SETFD, FD_CLOEXEC);
  config.connection.reset(kGoferConnectionFd);
  config.rootless = spec->rootless;
  config.exit_code = spec->exit_code;
  // Without a log, fatal messages go to the runsc that starts us.
  config.log.reset(
      fcntl(spec->have_log ? static_cast<int>(kGoferLogFd) : STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
  if (spec->have_log) close(kGoferLogFd);
  for (const GoferMount& m : spec->mounts) {
    gofer::MountConfig mount;
    mount.fd.reset(open(m.path.c_str(), O_PATH | O_CLOEXEC));
    if (!mount.fd.valid()) return ErrnoStatus("gofer: open " + m.path);
    mount.readonly = m.readonly;
    config.mounts.push_back(std::move(mount));
  }
  return config;
}

}  // namespace

void AddGoferCommand(Context& context) {
  Command command(context, "gofer", "run the gofer (internal)", "", "");
  command.Hide();
  command.Runs([](const Args&) -> absl::StatusOr<int> {
    prctl(PR_SET_NAME, "runsc-gofer");
    auto config = ReadConfig();
    if (!config.ok()) {
      dprintf(STDERR_FILENO, "%s\n", std::string(config.status().message()).c_str());
      _exit(1);
    }
    std::string error;
    int code = gofer::RunGofer(std::move(*config), &error);
    _exit(code);
  });
}

}  // namespace runsc
