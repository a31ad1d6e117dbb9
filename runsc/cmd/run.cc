// runsc run
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runsc/cmd/create_options.h"
#include "runsc/log/log.h"

namespace runsc {

absl::StatusOr<int> RunInForeground(const Store& store, CreatedContainer container, bool keep) {
  ContainerState& state = container.state;
  const std::string id = state.id;
  auto destroy = [&](ContainerLock lock) {
    absl::Status s = DestroyContainer(store, state, &lock);
    if (!s.ok()) Log(LogLevel::kWarning, std::string(s.message()));
  };
  const pid_t init = container.launch.init_pid();
  const pid_t gofer = container.launch.gofer_pid();
  base::UniqueFd ended(static_cast<int>(syscall(SYS_pidfd_open, init, 0)));
  absl::Status s = ended.valid() ? absl::OkStatus() : ErrnoStatus("pidfd_open");
  if (s.ok()) s = StartContainer(store, &state);
  if (s.ok()) {
    // A container that ended as soon as it ran cannot be told.
    (void)container.launch.Commit();
    container.lock = ContainerLock();  // others may signal it now
    ForegroundOptions foreground;
    foreground.master = container.console.master.get();
    foreground.ended = ended.get();
    foreground.on_signal = [&](int signo) {
      (void)SignalContainer(store, state, signo, /*all=*/false);
    };
    s = RunForeground(foreground);
  }
  if (!s.ok()) {
    container.launch.Kill();
    if (!keep) destroy(std::move(container.lock));
    return s;
  }
  int status = WaitForChild(init);
  if (gofer != init) WaitForChild(gofer);
  if (!keep) {
    // Somebody may have deleted it since.
    auto lock = store.Lock(id, /*create=*/false);
    if (lock.ok() && store.Load(id).ok()) destroy(std::move(*lock));
  }
  return ExitCode(status);
}

void AddRunCommand(Context& context) {
  static CreateFlags flags;
  static bool detach = false, keep = false, no_subreaper = false;
  Command command(context, "run", "create and run a container", kIdUsage, kIdText);
  AddCreateFlags(command, flags);
  command.Flag("--detach,-d", &detach, "detach from the container's process");
  command.Flag("--keep", &keep, "do not delete the container after it exits");
  command.Flag("--no-subreaper", &no_subreaper, "accepted, without effect");
  command.Runs([command, &context](const Args& args) -> absl::StatusOr<int> {
    if (auto s = command.CheckArgs(args, 1, 1); !s.ok()) return s;
    auto fail = [](const absl::Status& s) { return Prefixed("runsc run failed", s); };
    auto options = MakeCreateOptions(context, flags, args[0]);
    if (!options.ok()) return fail(options.status());
    options->foreground = !detach;
    Store store = context.store();
    if (!detach) BlockForwardedSignals();
    auto container = CreateContainer(store, *options);
    if (!container.ok()) return fail(container.status());
    if (!detach) {
      auto code = RunInForeground(store, std::move(*container), keep);
      if (!code.ok()) return fail(code.status());
      return code;
    }
    absl::Status s = StartContainer(store, &container->state);
    if (s.ok()) {
      (void)container->launch.Commit();
      return 0;
    }
    container->launch.Kill();
    (void)DestroyContainer(store, container->state, &container->lock);
    return fail(s);
  });
}

}  // namespace runsc
