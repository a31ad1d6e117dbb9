#include "sentry/boot/boot.h"

#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "platform/platform.h"
#include "sentry/base/host_io.h"
#include "sentry/base/host_seccomp.h"
#include "sentry/boot/boot_fds.h"
#include "sentry/boot/boot_spec_json.h"
#include "sentry/boot/host_calls.h"
#include "sentry/boot/members.h"
#include "sentry/boot/network_fds.h"
#include "sentry/boot/warm_up.h"
#include "sentry/control/protocol.h"
#include "sentry/control/server.h"
#include "sentry/fiber/fd_watch.h"

namespace sentry {

using base::Result;
using base::Status;
using base::UniqueFd;

namespace {

constexpr int kMallocArenas = 8;
constexpr std::chrono::seconds kDestroyTimeout(10);

// Reports to the runsc that started us. It may be gone: then nobody needs the report.
void Report(int sync, const std::string& text) {
  [[maybe_unused]] ssize_t n = write(sync, text.data(), text.size());
}

void Log(const std::string& line) {
  std::string text = "sentry: " + line + "\n";
  [[maybe_unused]] ssize_t n = write(STDERR_FILENO, text.data(), text.size());
}

// The host terminal's signals are meant for the guest: they are read from a signalfd. SIGPIPE is
// the guest's affair, decided by EPIPE.
bool SetUpSignals(UniqueFd* signals, std::string* why) {
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  sigset_t set;
  sigemptyset(&set);
  for (int signo : {SIGWINCH, SIGHUP, SIGINT, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU}) {
    sigaddset(&set, signo);
  }
  if (sigaction(SIGPIPE, &ignore, nullptr) != 0 || sigaction(SIGXFSZ, &ignore, nullptr) != 0 ||
      sigprocmask(SIG_SETMASK, &set, nullptr) != 0) {
    *why = std::string("signals: ") + strerror(errno);
    return false;
  }
  signals->reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals->valid()) *why = std::string("signals: signalfd: ") + strerror(errno);
  return signals->valid();
}

bool Confine(const BootOptions& options, const BootSpec& spec, const BootHooks& hooks,
             std::unique_ptr<platform::Platform>* platform, NetworkFds* network, std::string* why) {
  const bool filtered = base::HostHasSeccomp();
  if (!filtered && !spec.allow_no_seccomp) {
    *why = "system call filter: the host refuses seccomp(2); --allow-no-seccomp starts without";
    return false;
  }
  if (!PrepareMounts(why)) return false;
  // The console sends SIGWINCH to the processes of the session that it controls, which is ours.
  if (spec.container.process.terminal && ioctl(kBootFirstFile, TIOCSCTTY, 0) != 0) {
    *why = std::string("console: TIOCSCTTY: ") + strerror(errno);
    return false;
  }
  // The stubs are made by the platform and share namespaces and limits with the sentry.
  if (!LimitResources(why)) return false;
  auto made = hooks.create_platform(spec, why);
  if (!made.ok()) {
    *why = "platform: " + (why->empty() ? strerror(made.error().code()) : *why);
    return false;
  }
  *platform = std::move(*made);
  if (!why->empty()) Log(std::string("platform ") + (*platform)->name() + ", since " + *why);
  why->clear();
  WarmUpLibraries();
  const bool host_network = spec.network == kHostNetwork;
  if (host_network && !OpenHostNetwork(network, why)) return false;
  if (!OpenMemoryDirectory(why) || !EnterEmptyRoot(why)) return false;
  if (*platform) (*platform)->StartPool();  // tests make sandboxes without one
  auto more_calls = [&](void* filter) {
    int rc = *platform ? (*platform)->AllowHostCalls(filter) : 0;
    return rc == 0 && host_network ? AllowHostNetworkCalls(filter) : rc;
  };
  if (!DropCapabilities(why)) return false;
  if (filtered) return InstallFilter(more_calls, options.have_log, why);
  Log("the host refuses seccomp(2): this sandbox runs without a filter around the sentry");
  return true;
}

SandboxFds TakeFds(const BootOptions& options) {
  SandboxFds fds;
  for (int i = 0; i < options.file_count; ++i) {
    fds.container.process.files.emplace_back(kBootFirstFile + i);
  }
  fds.container.gofer.reset(kBootGoferFd);
  if (options.have_log) fds.log.reset(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0));
  return fds;
}

// The descriptors arrive without close-on-exec, since they had to survive the exec.
void SetCloseOnExec(const BootOptions& options) {
  for (int fd = kBootSpecFd; fd < kBootFirstFile + options.file_count; ++fd) {
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
}

// Runs the main loop around a created sandbox.
class Loop {
 public:
  Loop(Sandbox* sandbox, ControlServer::LoopFds loop, UniqueFd sync, UniqueFd signals,
       UniqueFd gofer)
      : sandbox_(sandbox),
        first_(sandbox->first()),
        loop_(std::move(loop)),
        sync_(std::move(sync)),
        signals_(std::move(signals)),
        gofer_(std::move(gofer)),
        // The socket's directory is closed to all but root; a peer inside this PID namespace (a
        // stub) would be seen with its pid.
        server_(sandbox, [](const ucred& peer) { return peer.pid == 0; }) {
    server_.set_on_join(
        [this](ControlServer::Joined joined) { return members_.Add(std::move(joined)); });
  }

  int Run() {
    Status status = server_.Init(std::move(loop_));
    if (status.ok()) {
      auto served = server_.Serve(first_, UniqueFd(kBootControlFd), 0);
      if (served.ok()) first_served_ = *served;
      if (!served.ok()) status = served.error();
    }
    if (status.ok()) status = server_.Watch(sync_.get(), EPOLLIN, [this](uint32_t) { OnSync(); });
    if (status.ok()) {
      status = server_.Watch(signals_.get(), EPOLLIN, [this](uint32_t) { OnSignal(); });
    }
    if (status.ok()) status = server_.Watch(gofer_.get(), 0, [this](uint32_t) { OnGoferEnd(); });
    if (status.ok()) {
      status = first_->Wait(Container::kInit, [this](int wait_status) {
        server_.Post([this, wait_status] { OnInitEnd(wait_status); });
      });
    }
    if (!status.ok()) {
      Report(sync_.get(), std::string("error main loop: ") + strerror(status.error().code()));
      return EXIT_FAILURE;
    }
    Report(sync_.get(), "ready");
    int code = server_.Run();
    members_.StoreKilled();
    // The container has ended, whatever still waits for a file that does not answer. (A signal
    // would not do: process 1 of a PID namespace ignores those that it has no handler for.)
    std::thread([code] {
      std::this_thread::sleep_for(kDestroyTimeout);
      Log("the sandbox does not come down in time");
      _exit(code);
    }).detach();
    sandbox_->Destroy();
    return code;
  }

 private:
  void OnSync() {
    char text[16];
    ssize_t n = base::HostRead(sync_.get(), text, sizeof(text));
    if (n < 0 && errno == EINTR) return;
    server_.Unwatch(sync_.get());
    if (n == 6 && memcmp(text, "commit", 6) == 0) {
      sync_.reset();
      return;
    }
    Log("the runsc that was starting this container has gone");
    OnInitEnd(SIGKILL);
  }

  void OnSignal() {
    signalfd_siginfo info;
    while (base::HostRead(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
      // The rest are the terminal's too, but its line discipline is the guest's: the file that
      // reads the terminal sees the characters and the hang-up.
      if (info.ssi_signo == SIGWINCH) (void)first_->SetWindowSize(Container::kInit, 0, 0);
    }
  }

  void OnGoferEnd() {
    server_.Unwatch(gofer_.get());
    Log("the gofer has gone");
    OnInitEnd(SIGKILL);
  }

  void OnInitEnd(int wait_status) {
    if (ended_) return;
    ended_ = true;
    server_.SetInitStatus(first_served_, wait_status);
    StoreExitStatus(kBootExitFd, wait_status);
    server_.Quit(ExitCodeOf(wait_status));
  }

  Sandbox* const sandbox_;
  const std::shared_ptr<Container> first_;
  ControlServer::LoopFds loop_;
  UniqueFd sync_, signals_, gofer_;
  ControlServer server_;
  Members members_{&server_};
  uint64_t first_served_ = 0;
  bool ended_ = false;
};

}  // namespace

int RunSentry(const BootOptions& options, const BootHooks& hooks) {
  UniqueFd sync(kBootSyncFd);
  auto fail = [&](const std::string& why) {
    Report(sync.get(), "error " + why);
    return EXIT_FAILURE;
  };
  std::string why;
  prctl(PR_SET_NAME, "runsc-sentry");
  LearnPriority();
  // Without a limit malloc asks /sys for the number of processors; to trim a heap it asks /proc.
  mallopt(M_ARENA_MAX, kMallocArenas);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  // strftime, for the log, reads the time zone when it is first used.
  tzset();
#ifdef NDEBUG
  // It costs more than the locks.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
  SetCloseOnExec(options);
  UniqueFd spec_file(kBootSpecFd);
  Result<std::string> text = ReadSealedFile(spec_file.get(), kMaxSpecBytes);
  if (!text.ok()) return fail(std::string("boot specification: ") + strerror(text.error().code()));
  Result<BootSpec> spec = DecodeBootSpec(*text, &why);
  if (!spec.ok()) return fail("boot specification: " + why);
  spec_file.reset();

  UniqueFd signals;
  if (!CloseFrom(kBootFirstFile + options.file_count, &why) || !SetUpSignals(&signals, &why)) {
    return fail("cannot confine the sentry: " + why);
  }
  base::Result<ControlServer::LoopFds> loop_fds = ControlServer::MakeLoopFds();
  if (base::Status status = fiber::PrepareFdWatches(); !loop_fds.ok() || !status.ok()) {
    return fail("cannot make what the sentry waits with");
  }
  std::unique_ptr<platform::Platform> platform;
  NetworkFds network;
  if (!Confine(options, *spec, hooks, &platform, &network, &why)) {
    return fail("cannot confine the sentry: " + why);
  }

  SandboxFds fds = TakeFds(options);
  fds.network = std::move(network);
  UniqueFd gofer(fcntl(fds.container.gofer.get(), F_DUPFD_CLOEXEC, 0));
  auto sandbox = hooks.create_sandbox(*spec, std::move(fds), std::move(platform), &why);
  if (!sandbox.ok()) {
    if (why.empty()) why = strerror(sandbox.error().code());
    return fail("unable to start container process: " + why);
  }
  Loop loop(sandbox->get(), *std::move(loop_fds), std::move(sync), std::move(signals),
            std::move(gofer));
  int code = loop.Run();
  // Threads of the kernel may still use it; the process ends now.
  (void)sandbox->release();
  return code;
}

}  // namespace sentry
