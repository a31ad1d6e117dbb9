#include "runsc/sandbox/launch.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runsc/container/state.h"
#include "runsc/sandbox/gofer_spec.h"
#include "runsc/sandbox/id_map.h"
#include "sentry/boot/boot_fds.h"
#include "sentry/control/protocol.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr int kReadyTimeoutMs = 120'000;
constexpr int kGoferGraceMs = 1'000;
constexpr int kOomProtection = 500;
constexpr int kMinOomScore = -999, kMaxOomScore = 1000;
constexpr unsigned long kNamespaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC |
                                      CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP;

// What a child needs to become a process of the sandbox. Prepared before the clone.
struct ChildPlan {
  const char* role;
  std::vector<int> fds;  // fds[n] becomes descriptor n
  std::vector<std::string> argv;
  int exe = -1;
  int go = -1;      // read end: one byte means go
  int errors = -1;  // where a failure before the exec is reported
  bool errors_are_sync = false;
  bool become_root = false;  // take id 0 of the user namespace
  bool die_with_parent = false;
  std::string hostname;        // of its UTS namespace; empty: as inherited
  int network_namespace = -1;  // to live in; -1: a new one
};

[[noreturn]] void ChildFail(const ChildPlan& plan, const char* step) {
  std::string text = std::string(plan.errors_are_sync ? "error " : "") + "cannot start the " +
                     plan.role + ": " + step + ": " + strerror(errno);
  [[maybe_unused]] ssize_t n = write(plan.errors, text.data(), text.size());
  _exit(1);
}

// Moves plan.fds to 0.., the other descriptors behind them, and closes the rest. Every source lies
// above all targets (LiftAll), so that no dup2 overwrites a source that is still needed.
void PlaceFds(ChildPlan* plan) {
  int count = 0;
  for (int fd : plan->fds) {
    if (dup2(fd, count) < 0) ChildFail(*plan, "dup2");
    ++count;
  }
  int last = count - 1;
  for (int* fd : {&plan->errors, &plan->exe, &plan->go}) {
    // Free numbers from `count` up: LiftAll's sources begin at least three above it.
    int copy = dup3(*fd, ++last, O_CLOEXEC);
    if (copy < 0) ChildFail(*plan, "dup3");
    *fd = copy;
  }
  if (syscall(SYS_close_range, last + 1, ~0U, 0) != 0) ChildFail(*plan, "close_range");
}

[[noreturn]] void RunChild(ChildPlan plan) {
  // First, so that the pipe ends when the parent does: this process has a copy of the other end.
  PlaceFds(&plan);
  char byte;
  ssize_t n;
  do {
    n = read(plan.go, &byte, 1);
  } while (n < 0 && errno == EINTR);
  if (n != 1) _exit(1);  // the runsc that made us has died or given up

  // A session of its own: signals of the caller's terminal are not for the sandbox.
  if (setsid() < 0) ChildFail(plan, "setsid");
  if (plan.become_root) {
    // setgroups is forbidden for a rootless caller, whose groups then stay.
    if (setgroups(0, nullptr) != 0 && errno != EPERM) ChildFail(plan, "setgroups");
    if (setresgid(0, 0, 0) != 0) ChildFail(plan, "setresgid");
    if (setresuid(0, 0, 0) != 0) ChildFail(plan, "setresuid");
  }
  if (!plan.hostname.empty() && sethostname(plan.hostname.data(), plan.hostname.size()) != 0) {
    ChildFail(plan, "sethostname");
  }
  if (plan.die_with_parent && prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) ChildFail(plan, "prctl");
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  umask(0);
  if (chdir("/") != 0) ChildFail(plan, "chdir");
  std::vector<char*> argv;
  for (const std::string& arg : plan.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  // Neither process uses restartable sequences, and their filters do not have the call, which the C
  // library would make for each thread.
  char no_rseq[] = "GLIBC_TUNABLES=glibc.pthread.rseq=0";
  char* envp[] = {no_rseq, nullptr};
  syscall(SYS_execveat, plan.exe, "", argv.data(), envp, AT_EMPTY_PATH);
  ChildFail(plan, "exec");
}

// This program, as something that an unprivileged id can execute.
absl::StatusOr<UniqueFd> OpenSelf() {
  UniqueFd self(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (!self.valid()) return ErrnoStatus("open /proc/self/exe");
  struct stat st;
  if (fstat(self.get(), &st) != 0) return ErrnoStatus("stat /proc/self/exe");
  if ((st.st_mode & 0111) == 0111) return self;
  UniqueFd copy(memfd_create("runsc", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!copy.valid()) return ErrnoStatus("memfd_create");
  off_t left = st.st_size;
  while (left > 0) {
    ssize_t n = copy_file_range(self.get(), nullptr, copy.get(), nullptr, left, 0);
    if (n <= 0) {
      char buffer[65536];
      n = read(self.get(), buffer, sizeof(buffer));
      if (n <= 0 || write(copy.get(), buffer, n) != n) return ErrnoStatus("copy of this program");
    }
    left -= n;
  }
  fcntl(copy.get(), F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  return copy;
}

// A duplicate whose number is at least `floor`.
absl::StatusOr<UniqueFd> Above(int fd, int floor) {
  UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, floor));
  if (!copy.valid()) return ErrnoStatus("duplicate a descriptor");
  return copy;
}

absl::Status LiftAll(ChildPlan* plan, std::vector<UniqueFd>* owned) {
  int floor = static_cast<int>(plan->fds.size()) + 8;
  auto lift = [&](int* fd) -> absl::Status {
    auto copy = Above(*fd, floor);
    if (!copy.ok()) return copy.status();
    *fd = copy->get();
    owned->push_back(std::move(*copy));
    return absl::OkStatus();
  };
  for (int& fd : plan->fds) {
    if (auto s = lift(&fd); !s.ok()) return s;
  }
  for (int* fd : {&plan->exe, &plan->go, &plan->errors}) {
    if (auto s = lift(fd); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<pid_t> CloneChild(ChildPlan plan) {
  std::vector<UniqueFd> owned;
  if (auto s = LiftAll(&plan, &owned); !s.ok()) return s;
  const bool joins = plan.network_namespace >= 0;
  UniqueFd back;
  if (joins) {
    back.reset(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!back.valid()) return ErrnoStatus("open /proc/self/ns/net");
    if (setns(plan.network_namespace, CLONE_NEWNET) != 0) {
      return ErrnoStatus("join the container's network namespace");
    }
  }
  const unsigned long namespaces = joins ? kNamespaces & ~CLONE_NEWNET : kNamespaces;
  long pid = syscall(SYS_clone, namespaces | SIGCHLD, nullptr, nullptr, nullptr, nullptr);
  if (pid == 0) RunChild(plan);
  const int error = errno;
  if (joins && setns(back.get(), CLONE_NEWNET) != 0) return ErrnoStatus("leave the namespace");
  errno = error;
  if (pid < 0) {
    return ErrnoStatus(std::string("cannot create the namespaces of the ") + plan.role);
  }
  return static_cast<pid_t>(pid);
}

absl::Status Pipe(UniqueFd* read_end, UniqueFd* write_end) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  read_end->reset(fds[0]);
  write_end->reset(fds[1]);
  return absl::OkStatus();
}

absl::Status SocketPair(UniqueFd* a, UniqueFd* b) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
    return ErrnoStatus("socketpair");
  }
  a->reset(fds[0]);
  b->reset(fds[1]);
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Sealed(const char* name, const std::string& text) {
  auto fd = sentry::SealedFile(name, text);
  if (!fd.ok()) {
    errno = fd.error().code();
    return ErrnoStatus("memory file for the specification");
  }
  return std::move(*fd);
}

bool Go(int fd) { return write(fd, "g", 1) == 1; }

void KillChild(pid_t* pid) {
  if (*pid <= 0) return;
  kill(*pid, SIGKILL);
  WaitForChild(*pid);
  *pid = -1;
}

// Waits up to `timeout_ms` for a child's end.
bool AwaitEnd(pid_t pid, int timeout_ms) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return true;
  pollfd p{pidfd.get(), POLLIN, 0};
  return poll(&p, 1, timeout_ms) == 1;
}

// Each file that the sandbox knows is a descriptor of the gofer, each open one of the sentry too.
// Without the right to raise the limit, the one there is has to do.
void RaiseDescriptorLimit(pid_t pid) {
  constexpr rlim_t kDescriptors = 1 << 20;  // fs.nr_open as Linux sets it
  const rlimit limit = {kDescriptors, kDescriptors};
  prlimit(pid, RLIMIT_NOFILE, &limit, nullptr);
}

// How ready the host is to kill a process when memory runs out. False without the right to lower it
// to that: then everything stays as it is.
bool SetOomScore(pid_t pid, int score) {
  UniqueFd fd(
      open(("/proc/" + std::to_string(pid) + "/oom_score_adj").c_str(), O_WRONLY | O_CLOEXEC));
  std::string text = std::to_string(score);
  return write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

int OomScore(pid_t pid) {
  UniqueFd fd(
      open(("/proc/" + std::to_string(pid) + "/oom_score_adj").c_str(), O_RDONLY | O_CLOEXEC));
  char text[16] = {};
  return read(fd.get(), text, sizeof(text) - 1) > 0 ? atoi(text) : 0;
}

}  // namespace

int WaitForChild(pid_t pid) {
  int status;
  for (;;) {
    if (waitpid(pid, &status, 0) == pid) return status;
    if (errno != EINTR) return -1;
  }
}

int ExitCode(int wait_status) {
  return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

std::string DescribeEnd(int wait_status) {
  if (WIFEXITED(wait_status)) {
    return "exited with status " + std::to_string(WEXITSTATUS(wait_status));
  }
  int signo = WTERMSIG(wait_status);
  std::string text =
      "was killed by signal " + std::to_string(signo) + " (" + strsignal(signo) + ")";
  if (signo == SIGSYS) text += ": a host call that its filter refuses";
  return text;
}

absl::StatusOr<Launch> Launch::Begin(LaunchOptions options) {
  Launch launch;
  auto exe = OpenSelf();
  if (!exe.ok()) return exe.status();
  UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus("open /dev/null");
  UniqueFd sentry_connection, gofer_connection;
  absl::Status s = SocketPair(&sentry_connection, &gofer_connection);
  if (s.ok()) s = launch.BeginGofer(options, exe->get(), null.get(), gofer_connection.get());
  const bool joins = options.pod != nullptr;
  if (s.ok() && !joins) {
    s = launch.BeginSentry(options, exe->get(), null.get(), sentry_connection.get());
  }
  if (!s.ok()) return s;
  launch.SpreadOomScores(options.oom_score_adj);
  RaiseDescriptorLimit(launch.gofer_pid_);
  if (s = WriteIdMaps(launch.gofer_pid_, IdMapKind::kIdentity); !s.ok()) return s;
  if (joins) {
    s = launch.PrepareJoin(std::move(options), std::move(sentry_connection));
  } else {
    RaiseDescriptorLimit(launch.sentry_pid_);
    s = WriteIdMaps(launch.sentry_pid_, IdMapKind::kUnprivileged);
  }
  if (!s.ok()) return s;
  return launch;
}

absl::Status Launch::BeginGofer(const LaunchOptions& options, int exe, int null, int connection) {
  GoferSpec spec;
  spec.mounts = options.mounts;
  spec.have_log = options.gofer_log >= 0;
  spec.rootless = !CanMapIds();
  spec.allow_no_seccomp = options.allow_no_seccomp;
  // One that stands for a container's init, and is not told how that ended, was left by its sentry.
  if (options.pod != nullptr) spec.exit_code = 128 + SIGKILL;
  auto spec_file = Sealed("runsc-gofer-spec", EncodeGoferSpec(spec));
  if (!spec_file.ok()) return spec_file.status();
  UniqueFd wait, errors;
  for (const absl::Status& s : {Pipe(&wait, &gofer_go_), Pipe(&gofer_errors_, &errors)}) {
    if (!s.ok()) return s;
  }
  ChildPlan plan;
  plan.role = "gofer";
  plan.fds = {null, null, errors.get(), spec_file->get(), connection};
  if (spec.have_log) plan.fds.push_back(options.gofer_log);
  plan.argv = {"runsc-gofer", "gofer", options.id};
  plan.exe = exe;
  plan.go = wait.get();
  plan.errors = errors.get();
  plan.die_with_parent = options.die_with_parent;
  auto pid = CloneChild(plan);
  if (!pid.ok()) return pid.status();
  gofer_pid_ = *pid;
  return absl::OkStatus();
}

absl::Status Launch::BeginSentry(const LaunchOptions& options, int exe, int null, int connection) {
  auto boot_spec = Sealed("runsc-boot-spec", options.boot_spec);
  if (!boot_spec.ok()) return boot_spec.status();
  UniqueFd sync, wait;
  for (const absl::Status& s : {SocketPair(&sync_, &sync), Pipe(&wait, &sentry_go_)}) {
    if (!s.ok()) return s;
  }
  const int log = options.sentry_log >= 0 ? options.sentry_log : null;
  ChildPlan plan;
  plan.role = "sentry";
  plan.fds = {null,       log,
              log,        boot_spec->get(),
              sync.get(), options.control_listener,
              connection, options.exit_file};
  plan.fds.insert(plan.fds.end(), options.files.begin(), options.files.end());
  plan.argv = {"runsc-sandbox", "boot", "--files=" + std::to_string(options.files.size())};
  if (options.sentry_log >= 0) plan.argv.push_back("--log");
  plan.argv.push_back(options.id);
  plan.exe = exe;
  plan.go = wait.get();
  plan.errors = sync.get();
  plan.errors_are_sync = true;
  plan.become_root = true;
  plan.hostname = options.hostname;
  plan.network_namespace = options.network_namespace;
  plan.die_with_parent = options.die_with_parent;
  auto pid = CloneChild(plan);
  if (!pid.ok()) return pid.status();
  sentry_pid_ = *pid;
  return absl::OkStatus();
}

absl::Status Launch::PrepareJoin(LaunchOptions options, UniqueFd connection) {
  pod_ = std::move(options.pod);
  container_ = std::move(options.container);
  std::vector<int> fds = {options.control_listener, options.exit_file, connection.get()};
  fds.insert(fds.end(), options.files.begin(), options.files.end());
  for (int fd : fds) {
    auto copy = Above(fd, 0);
    if (!copy.ok()) return copy.status();
    join_fds_.push_back(std::move(*copy));
  }
  return absl::OkStatus();
}

absl::Status Launch::Join() {
  std::vector<int> fds;
  for (const UniqueFd& fd : join_fds_) fds.push_back(fd.get());
  std::string why;
  auto joined = pod_->Join(container_, fds, &why);
  join_fds_.clear();
  if (joined.ok()) {
    SetOomScore(gofer_pid_, oom_score_);
    return absl::OkStatus();
  }
  if (joined.error().code() == EPIPE) why = "the pod's sandbox has ended";
  if (why.empty()) why = strerror(joined.error().code());
  return DescribeFailure("unable to start container process: " + why);
}

// A guest that takes all memory is killed before the two processes that serve all. The stubs
// inherit what the sentry has until it is ready: what the container is to have, and the two go
// below that then; or, without the right to go there, that much more, and the two come back.
void Launch::SpreadOomScores(std::optional<int> wanted) {
  if (wanted) SetOomScore(gofer_pid_, *wanted);
  int stubs = wanted.value_or(OomScore(gofer_pid_));
  oom_score_ = std::max(stubs - kOomProtection, kMinOomScore);
  if (sentry_pid_ <= 0) return;  // the stubs of one that joins have what the pod's have
  if (!SetOomScore(sentry_pid_, oom_score_)) {
    oom_score_ = stubs;
    stubs = std::min(stubs + kOomProtection, kMaxOomScore);
  }
  SetOomScore(sentry_pid_, stubs);
}

absl::Status Launch::AwaitReady() {
  if (!Go(gofer_go_.get()) || (!pod_ && !Go(sentry_go_.get()))) return DescribeFailure("");
  gofer_go_.reset();
  sentry_go_.reset();
  if (pod_) return Join();
  pollfd p{sync_.get(), POLLIN, 0};
  int n;
  do {
    n = poll(&p, 1, kReadyTimeoutMs);
  } while (n < 0 && errno == EINTR);
  if (n == 0) return DescribeFailure("the sandbox is not ready after 120 seconds");
  char buffer[4096];
  ssize_t length = recv(sync_.get(), buffer, sizeof(buffer), 0);
  std::string text(buffer, std::max<ssize_t>(length, 0));
  if (text == "ready") {
    SetOomScore(sentry_pid_, oom_score_);
    SetOomScore(gofer_pid_, oom_score_);
    return absl::OkStatus();
  }
  if (text.rfind("error ", 0) == 0) return DescribeFailure(text.substr(6));
  return DescribeFailure("");
}

absl::Status Launch::DescribeFailure(const std::string& sentry_error) {
  // What went wrong with the gofer explains what went wrong with the sentry, so it goes first.
  AwaitEnd(gofer_pid_, kGoferGraceMs);
  std::string gofer_error;
  char buffer[1024];
  fcntl(gofer_errors_.get(), F_SETFL, O_NONBLOCK);
  ssize_t n = read(gofer_errors_.get(), buffer, sizeof(buffer));
  if (n > 0) gofer_error.assign(buffer, n);
  if (size_t end = gofer_error.find('\n'); end != std::string::npos) gofer_error.resize(end);
  if (!gofer_error.empty()) return absl::InternalError(gofer_error);
  if (!sentry_error.empty()) return absl::InternalError(sentry_error);
  int status = 0;
  if (waitpid(gofer_pid_, &status, WNOHANG) == gofer_pid_) {
    gofer_pid_ = -1;
    if (status != 0) return absl::InternalError("the gofer " + DescribeEnd(status) + " at start");
  }
  if (pod_) return absl::InternalError("the container cannot join its pod's sandbox");
  kill(sentry_pid_, SIGKILL);  // it has closed its end, so it is dying anyway
  status = WaitForChild(sentry_pid_);
  sentry_pid_ = -1;
  return absl::InternalError("the sentry " + DescribeEnd(status) + " at start");
}

absl::Status Launch::Commit() {
  if (pod_) {
    const bool kept = pod_->Keep().ok();
    gofer_pid_ = -1;
    pod_.reset();
    return kept ? absl::OkStatus() : absl::UnavailableError("the pod's sandbox has ended");
  }
  bool sent = send(sync_.get(), "commit", 6, MSG_NOSIGNAL) == 6;
  sentry_pid_ = gofer_pid_ = -1;
  sync_.reset();
  return sent ? absl::OkStatus() : absl::UnavailableError("the sandbox has ended");
}

void Launch::Kill() {
  KillChild(&sentry_pid_);
  KillChild(&gofer_pid_);
}

Launch& Launch::operator=(Launch&& other) noexcept {
  if (this == &other) return *this;
  Kill();
  sentry_pid_ = std::exchange(other.sentry_pid_, -1);
  gofer_pid_ = std::exchange(other.gofer_pid_, -1);
  sync_ = std::move(other.sync_);
  sentry_go_ = std::move(other.sentry_go_);
  gofer_go_ = std::move(other.gofer_go_);
  gofer_errors_ = std::move(other.gofer_errors_);
  oom_score_ = other.oom_score_;
  pod_ = std::move(other.pod_);
  container_ = std::move(other.container_);
  join_fds_ = std::move(other.join_fds_);
  return *this;
}

Launch::~Launch() { Kill(); }

}  // namespace runsc
