#include "runsc/testing/fake_sandbox.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "platform/platform.h"
#include "sentry/base/host_io.h"

namespace runsc {

using base::Error;
using base::Result;
using base::Status;
using base::UniqueFd;

namespace {

constexpr const char* kPrograms[] = {"echo", "cat", "exit",     "signal", "sleep",
                                     "tty",  "env", "hostcall", "heap"};

// Memory in small pieces from each of malloc's arenas, that of the program's break among them: more
// threads than there may be arenas ask for it.
void UseHeap() {
  constexpr int kThreads = 24, kPieces = 4096;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([] {
      std::vector<std::string> pieces;
      for (int j = 0; j < kPieces; ++j) pieces.emplace_back(1000, 'x');
    });
  }
  for (std::thread& t : threads) t.join();
}

// Without a leading '/'.
std::string Name(const std::string& program) { return program.substr(program[0] == '/'); }

class FakeContainer : public sentry::Container {
 public:
  explicit FakeContainer(UniqueFd gofer) : gofer_(std::move(gofer)) {}

  // Makes a process that waits for Run.
  Result<int32_t> Make(const sentry::ProcessSpec& spec, sentry::ProcessFds fds, std::string* why) {
    bool known = false;
    for (const char* program : kPrograms) known |= Name(spec.args[0]) == program;
    if (!known) {
      *why = "exec: \"" + spec.args[0] + "\": executable file not found in $PATH";
      return Error(ENOENT);
    }
    absl::MutexLock lock(&mutex_);
    int32_t pid = next_pid_++;
    Process& p = processes_[pid];
    p.spec = spec;
    p.fds = std::move(fds);
    return pid;
  }
  void Run(int32_t pid) {
    std::thread([this, pid] { Main(pid); }).detach();
  }

  Status Start(std::string* why) override {
    {
      absl::MutexLock lock(&mutex_);
      if (std::exchange(started_, true)) {
        *why = "the container runs already";
        return Error(EINVAL);
      }
    }
    Run(1);
    return base::Ok();
  }
  Result<int32_t> Exec(const sentry::ProcessSpec& spec, sentry::ProcessFds fds,
                       std::string* why) override {
    int32_t pid = TRY(Make(spec, std::move(fds), why));
    Run(pid);
    return pid;
  }
  Status Wait(int32_t pid, std::function<void(int)> done) override {
    std::optional<int> status;
    {
      absl::MutexLock lock(&mutex_);
      auto it = processes_.find(pid == kInit ? 1 : pid);
      if (it == processes_.end()) return Error(ESRCH);
      if (!it->second.status) {
        it->second.waiters.push_back(std::move(done));
        return base::Ok();
      }
      status = it->second.status;
    }
    done(*status);
    return base::Ok();
  }
  Status Signal(int32_t pid, int signo) override {
    {
      absl::MutexLock lock(&mutex_);
      auto it = processes_.find(pid == kInit ? 1 : pid);
      if (it == processes_.end() || it->second.status) return Error(ESRCH);
      if (signo == 0 || signo == SIGCONT || signo == SIGWINCH) return base::Ok();
      it->second.signal = signo;
      if (started_ || it->first != 1 || signo != SIGKILL) return base::Ok();
    }
    End(1, SIGKILL);  // not started yet: nobody else does it
    return base::Ok();
  }
  Status SignalAll(int signo) override {
    std::vector<int32_t> pids;
    {
      absl::MutexLock lock(&mutex_);
      for (auto& [pid, p] : processes_) pids.push_back(pid);
    }
    for (int32_t pid : pids) (void)Signal(pid, signo);
    return base::Ok();
  }
  std::vector<sentry::ProcessInfo> Processes() override {
    absl::MutexLock lock(&mutex_);
    std::vector<sentry::ProcessInfo> list;
    for (auto& [pid, p] : processes_) {
      if (p.status) continue;
      sentry::ProcessInfo info;
      info.pid = pid;
      info.init = pid == 1;
      info.uid = p.spec.uid;
      info.start_time = time(nullptr);
      for (const std::string& arg : p.spec.args) {
        info.command += (info.command.empty() ? "" : " ") + arg;
      }
      list.push_back(info);
    }
    return list;
  }
  void SetLimits(int64_t, int64_t) override {}
  void SetFrozen(bool) override {}
  void End(int) override {}
  Status SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) override {
    absl::MutexLock lock(&mutex_);
    auto it = processes_.find(pid == kInit ? 1 : pid);
    if (it == processes_.end()) return Error(ESRCH);
    winsize size{rows, cols, 0, 0};
    if (rows == 0 && cols == 0 && ioctl(it->second.fds.files[0].get(), TIOCGWINSZ, &size) != 0) {
      return Error(ENOTTY);
    }
    it->second.size = size;
    return base::Ok();
  }

 private:
  struct Process {
    sentry::ProcessSpec spec;
    sentry::ProcessFds fds;
    std::optional<int> status;
    std::vector<std::function<void(int)>> waiters;
    int signal = 0;
    std::optional<winsize> size;
  };

  void End(int32_t pid, int status) ABSL_LOCKS_EXCLUDED(mutex_) {
    std::vector<std::function<void(int)>> waiters;
    {
      absl::MutexLock lock(&mutex_);
      Process& p = processes_[pid];
      if (p.status) return;
      p.status = status;
      p.fds.files.clear();
      waiters.swap(p.waiters);
    }
    for (auto& done : waiters) done(status);
  }

  static void Put(int fd, const std::string& text) {
    [[maybe_unused]] ssize_t n = write(fd, text.data(), text.size());
  }

  // Until `ready` (called with the lock), a signal, or the end of `seconds`; returns the signal.
  template <typename Ready>
  int Await(int32_t pid, double seconds, Ready ready) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    Process& p = processes_[pid];
    auto condition = [&] { return p.signal != 0 || ready(p); };
    mutex_.AwaitWithTimeout(absl::Condition(&condition), absl::Seconds(seconds));
    return p.signal;
  }

  int Program(int32_t pid, const std::vector<std::string>& args, int in, int out,
              const std::vector<std::string>& env) {
    const std::string name = Name(args[0]);
    std::string arg = args.size() > 1 ? args[1] : "0";
    if (name == "exit") return atoi(arg.c_str()) << 8;
    if (name == "signal") return atoi(arg.c_str());
    if (name == "hostcall") return static_cast<int>(syscall(atoi(arg.c_str()), 0, 0, 0, 0, 0, 0));
    if (name == "heap") {
      UseHeap();
      return 0;
    }
    if (name == "sleep") return Await(pid, atof(arg.c_str()), [](Process&) { return false; });
    if (name == "tty") {
      int signo = Await(pid, 10, [](Process& p) { return p.size.has_value(); });
      absl::MutexLock lock(&mutex_);
      winsize size = processes_[pid].size.value_or(winsize{});
      Put(out, std::to_string(size.ws_row) + " " + std::to_string(size.ws_col) + "\n");
      return signo;
    }
    if (name == "env") {
      for (const std::string& e : env) {
        if (e.rfind(arg + "=", 0) == 0) Put(out, e + "\n");
      }
    } else if (name == "cat") {
      char buffer[4096];
      ssize_t n;
      while ((n = base::HostRead(in, buffer, sizeof(buffer))) > 0) Put(out, std::string(buffer, n));
    } else {
      std::string text;
      for (size_t i = 1; i < args.size(); ++i) text += (i > 1 ? " " : "") + args[i];
      Put(out, text + "\n");
    }
    return 0;
  }

  void Main(int32_t pid) {
    std::vector<std::string> args, env;
    int in, out;
    {
      absl::MutexLock lock(&mutex_);
      Process& p = processes_[pid];
      args = p.spec.args;
      env = p.spec.env;
      in = p.fds.files[0].get();
      out = p.fds.files[1].get();
    }
    End(pid, Program(pid, args, in, out, env));
  }

  const UniqueFd gofer_;
  absl::Mutex mutex_;
  std::map<int32_t, Process> processes_ ABSL_GUARDED_BY(mutex_);
  int32_t next_pid_ ABSL_GUARDED_BY(mutex_) = 1;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
};

class FakeSandbox : public sentry::Sandbox {
 public:
  explicit FakeSandbox(std::shared_ptr<FakeContainer> first) : first_(std::move(first)) {}
  std::shared_ptr<sentry::Container> first() override { return first_; }
  Result<std::shared_ptr<sentry::Container>> Join(const sentry::ContainerSpec&,
                                                  sentry::ContainerFds, std::string* why) override {
    *why = "there is no kernel here that could take another";
    return Error(ENOSYS);
  }
  std::string SyscallTimes() override {
    return R"({"calls":[{"name":"read","number":0,"count":3,"measured":0}]})";
  }
  void Destroy() override {}

 private:
  const std::shared_ptr<FakeContainer> first_;
};

}  // namespace

Result<std::unique_ptr<sentry::Sandbox>> CreateFakeSandbox(
    const sentry::BootSpec& spec, sentry::SandboxFds fds,
    std::unique_ptr<platform::Platform> /*platform*/, std::string* why) {
  auto container = std::make_shared<FakeContainer>(std::move(fds.container.gofer));
  TRY(container->Make(spec.container.process, std::move(fds.container.process), why));
  return std::unique_ptr<sentry::Sandbox>(std::make_unique<FakeSandbox>(std::move(container)));
}

}  // namespace runsc
