// The main function of the platform's tests: they run in a PID namespace of their own, as the
// sentry does, so that no stub outlives them however they end.
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr int kNoNamespace = 99;  // exit status

// Runs `child` in a new process, which ends with this one, and returns its exit status or 128 and
// its signal.
template <typename F>
int InProcess(F child) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return kNoNamespace;
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent && getpid() != 1) _exit(kNoNamespace);
    child();
  }
  int status = 0;
  while (waitpid(pid, &status, 0) != pid) {
  }
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

[[noreturn]] void RunTests() { exit(RUN_ALL_TESTS()); }

// The first process of the namespace, whose end is that of all others.
[[noreturn]] void Init() {
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    _exit(kNoNamespace);
  }
  _exit(InProcess(RunTests));
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  const int status = InProcess([] {
    if (unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) _exit(kNoNamespace);
    _exit(InProcess(Init));
  });
  return status == kNoNamespace ? RUN_ALL_TESTS() : status;
}
