#include "runsc/container/hooks.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runsc/container/state.h"
#include "runsc/sandbox/launch.h"

namespace runsc {

using base::UniqueFd;

namespace {

constexpr size_t kMaxShownBytes = 2048;

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1'000'000;
}

[[noreturn]] void ExecHook(const oci::Hook& hook, int input, int errors) {
  std::vector<char*> argv, envp;
  for (const std::string& a : hook.args) argv.push_back(const_cast<char*>(a.c_str()));
  if (argv.empty()) argv.push_back(const_cast<char*>(hook.path.c_str()));
  argv.push_back(nullptr);
  for (const std::string& e : hook.env) envp.push_back(const_cast<char*>(e.c_str()));
  envp.push_back(nullptr);
  int null = open("/dev/null", O_WRONLY);
  dup2(input, 0);
  dup2(null, 1);
  dup2(errors, 2);
  syscall(SYS_close_range, 3, ~0U, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  execve(hook.path.c_str(), argv.data(), envp.data());
  const char* why = strerror(errno);
  [[maybe_unused]] ssize_t n = write(2, why, strlen(why));
  _exit(127);
}

// Open namespaces, in the order in which to join them.
absl::StatusOr<std::vector<UniqueFd>> OpenNamespaces(const HookNamespaces& where) {
  const bool root = geteuid() == 0;
  std::vector<std::pair<pid_t, const char*>> names;
  if (!root) names.emplace_back(where.gofer, "user");
  for (const char* name : {"ipc", "uts", "net", "pid", "cgroup"}) {
    names.emplace_back(root ? where.sentry : where.gofer, name);
  }
  names.emplace_back(where.gofer, "mnt");
  std::vector<UniqueFd> fds;
  for (const auto& [pid, name] : names) {
    std::string path = "/proc/" + std::to_string(pid) + "/ns/" + name;
    fds.emplace_back(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fds.back().valid()) return ErrnoStatus("open " + path);
  }
  return fds;
}

// In the child: enters the namespaces and, for the PID namespace to count, forks once more. Returns
// in the process that is to execute the hook; this one ends as that one does.
void EnterNamespaces(const std::vector<UniqueFd>& namespaces, int errors) {
  const auto fail = [errors](const char* what) {
    std::string why = std::string(what) + ": " + strerror(errno);
    [[maybe_unused]] ssize_t n = write(errors, why.data(), why.size());
    _exit(127);
  };
  for (const UniqueFd& fd : namespaces) {
    if (setns(fd.get(), 0) != 0) fail("setns");
  }
  pid_t pid = fork();
  if (pid < 0) fail("fork");
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // at a timeout this one's parent is killed
    return;
  }
  syscall(SYS_close_range, 0, ~0U, 0);  // the hook is to see the ends of its pipes
  int status = WaitForChild(pid);
  if (WIFSIGNALED(status)) {
    signal(WTERMSIG(status), SIG_DFL);
    kill(getpid(), WTERMSIG(status));
  }
  _exit(WEXITSTATUS(status));
}

// Feeds `input` and collects `errors` until the child has ended or the deadline (0: none) is over.
// Returns false in the latter case.
bool Converse(pid_t pid, UniqueFd input, const std::string& text, int errors, int64_t deadline,
              std::string* shown) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  size_t sent = 0;
  bool errors_open = true;
  for (;;) {
    int64_t left = deadline == 0 ? -1 : std::max<int64_t>(deadline - NowMs(), 0);
    pollfd fds[3] = {{pidfd.get(), POLLIN, 0},
                     {errors_open ? errors : -1, POLLIN, 0},
                     {input.valid() ? input.get() : -1, POLLOUT, 0}};
    int n = poll(fds, 3, static_cast<int>(std::min<int64_t>(left, INT32_MAX)));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    if (fds[1].revents != 0) {
      char buffer[512];
      ssize_t got = read(errors, buffer, sizeof(buffer));
      if (got > 0 && shown->size() < kMaxShownBytes) shown->append(buffer, got);
      if (got <= 0) errors_open = false;
      continue;
    }
    if (fds[2].revents != 0) {
      ssize_t put = write(input.get(), text.data() + sent, text.size() - sent);
      if (put > 0) sent += put;
      if (put < 0 || sent == text.size()) input.reset();  // it need not read its input
    }
    if (fds[0].revents != 0) return true;
  }
}

absl::Status RunHook(const oci::Hook& hook, const std::string& state_json,
                     const std::vector<UniqueFd>& namespaces) {
  int in[2], err[2];
  if (pipe2(in, O_CLOEXEC | O_NONBLOCK) != 0) return ErrnoStatus("pipe");
  UniqueFd in_read(in[0]), in_write(in[1]);
  if (pipe2(err, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  UniqueFd err_read(err[0]), err_write(err[1]);
  fcntl(in_read.get(), F_SETFL, 0);
  pid_t pid = fork();
  if (pid < 0) return ErrnoStatus("fork");
  if (pid == 0) {
    if (!namespaces.empty()) EnterNamespaces(namespaces, err_write.get());
    ExecHook(hook, in_read.get(), err_write.get());
  }
  in_read.reset();
  err_write.reset();
  fcntl(err_read.get(), F_SETFL, O_NONBLOCK);
  int64_t deadline = hook.timeout ? NowMs() + *hook.timeout * 1000 : 0;
  std::string shown;
  bool ended = Converse(pid, std::move(in_write), state_json, err_read.get(), deadline, &shown);
  if (!ended) kill(pid, SIGKILL);
  int status = WaitForChild(pid);
  if (!ended) {
    return absl::DeadlineExceededError("hook ran past specified timeout of " +
                                       std::to_string(*hook.timeout) + " seconds");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  std::string text = DescribeEnd(status);
  if (!shown.empty()) text += ": " + shown;
  return absl::InternalError(text);
}

absl::Status RunAll(const char* kind, const std::vector<oci::Hook>& hooks,
                    const std::string& state_json, const std::vector<UniqueFd>& namespaces) {
  signal(SIGPIPE, SIG_IGN);
  for (size_t i = 0; i < hooks.size(); ++i) {
    absl::Status s = RunHook(hooks[i], state_json, namespaces);
    if (s.ok()) continue;
    return absl::InternalError("error running " + std::string(kind) + " hook #" +
                               std::to_string(i) + " (" + hooks[i].path +
                               "): " + std::string(s.message()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunHooks(const char* kind, const std::vector<oci::Hook>& hooks,
                      const std::string& state_json) {
  return RunAll(kind, hooks, state_json, {});
}

absl::Status RunHooksInside(const HookNamespaces& where, const char* kind,
                            const std::vector<oci::Hook>& hooks, const std::string& state_json) {
  if (hooks.empty()) return absl::OkStatus();
  auto namespaces = OpenNamespaces(where);
  if (!namespaces.ok()) return namespaces.status();
  return RunAll(kind, hooks, state_json, *namespaces);
}

}  // namespace runsc
