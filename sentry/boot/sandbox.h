// The sentry as runsc sees it: a sandbox with one container, or with the several of a pod, each of
// which can be created, started, entered, signalled and waited for. The control server
// (sentry/control) drives it; the kernel implements it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"
#include "sentry/boot/boot_spec.h"

namespace platform {
class Platform;
}  // namespace platform

namespace sentry {

// Host descriptors for a new process. The callee owns them.
struct ProcessFds {
  // files[n] becomes the guest's descriptor n. At least 3. With ProcessSpec::terminal, 0 to 2 are
  // descriptors of one host terminal (the slave side, with the host's default settings).
  std::vector<base::UniqueFd> files;
};

// What the sentry has of the host's network with BootSpec::network "host".
struct NetworkFds {
  base::UniqueFd route;                                      // a NETLINK_ROUTE socket
  std::vector<std::pair<std::string, base::UniqueFd>> proc;  // files of /proc/net, by name
};

struct ContainerFds {
  ProcessFds process;    // of the container's init
  base::UniqueFd gofer;  // the connection to its gofer
};

struct SandboxFds {
  ContainerFds container;
  base::UniqueFd log;  // debug log, opened for appending; may be invalid
  NetworkFds network;
};

// A guest process for `runsc ps`.
struct ProcessInfo {
  int32_t pid = 0;  // in the container's PID namespace
  int32_t ppid = 0;
  uint32_t uid = 0;
  int64_t start_time = 0;  // seconds since the epoch
  int64_t cpu_ns = 0;      // user and system time
  int32_t threads = 1;
  std::string tty;      // "pts/0", or "?"
  char state = 'S';     // as in /proc/PID/stat
  std::string command;  // the arguments joined by blanks, or [comm]
  // What runs its code, in the sentry's PID namespace on the host; 0: nothing.
  int32_t host_pid = 0;
  bool init = false;  // of its container
};

// A container of a sandbox. Thread-safe. Methods may block the calling thread (never a worker's)
// for as long as the gofer takes; Wait, Signal, Processes and SetWindowSize return at once.
class Container {
 public:
  // Of Signal, Wait and SetWindowSize: the container's init, whatever its pid.
  static constexpr int32_t kInit = 0;

  virtual ~Container() = default;
  // Lets the created init run. Once. Errors: EINVAL if it runs already; `why` says more.
  virtual base::Status Start(std::string* why) = 0;
  // Starts another process in the container, as a child of nobody inside it. Allowed between
  // creation and Start too (startContainer hooks). Returns its pid in the container's PID
  // namespace. On error `why` is one line for the user, such as
  //   exec: "foo": executable file not found in $PATH
  virtual base::Result<int32_t> Exec(const ProcessSpec& process, ProcessFds fds,
                                     std::string* why) = 0;
  // Calls `done` once, from any thread, with the wait status (as wait(2) encodes it) when the
  // process that was init or came from Exec has ended; at once if it has already. Each status is
  // kept until it was asked for once. ESRCH: no such process of ours.
  virtual base::Status Wait(int32_t pid, std::function<void(int wait_status)> done) = 0;
  // Sends a signal as a process outside the container's PID namespace would (SIGKILL and SIGSTOP
  // reach init). ESRCH, EINVAL.
  virtual base::Status Signal(int32_t pid, int signo) = 0;
  // To every process of the container.
  virtual base::Status SignalAll(int signo) = 0;
  virtual std::vector<ProcessInfo> Processes() = 0;
  // Tells the terminal of `pid` its new size: the foreground process group gets SIGWINCH.
  // 0 rows and columns: ask the host terminal. ENOTTY if it has none.
  virtual base::Status SetWindowSize(int32_t pid, uint16_t rows, uint16_t cols) = 0;
  // The container's limits are these from now on; 0: none, -1: as it was. Memory in bytes.
  virtual void SetLimits(int64_t pids, int64_t memory) = 0;
  // Stops all its processes, wherever they are, or lets them go on. They can be killed meanwhile.
  virtual void SetFrozen(bool frozen) = 0;
  // Of one that joined: kills what is left of it, waits until it is gone, gives back its mounts,
  // and ends its gofer with `exit_code`. Nothing may be called after it.
  virtual void End(int exit_code) = 0;
};

// Thread-safe.
class Sandbox {
 public:
  virtual ~Sandbox() = default;
  // The container that the sandbox was made with, and ends with.
  virtual std::shared_ptr<Container> first() = 0;
  // Builds another container, as CreateSandbox does the first; `why` likewise. May block.
  virtual base::Result<std::shared_ptr<Container>> Join(const ContainerSpec& spec, ContainerFds fds,
                                                        std::string* why) = 0;
  // Counts and times of system calls, a JSON object (sentry/trace/times/call_times.h).
  virtual std::string SyscallTimes() = 0;
  // Kills everything, and syncs what files need it. Nothing may be called after it.
  virtual void Destroy() = 0;
};

// Builds the kernel, the mounts and the init task, stopped before its first instruction. Called
// after the sentry confined itself, so it opens no host path. The executable is looked up and
// loaded here: errors such as a missing program come with the one line in `why` that follows
// "unable to start container process: ".
base::Result<std::unique_ptr<Sandbox>> CreateSandbox(const BootSpec& spec, SandboxFds fds,
                                                     std::unique_ptr<platform::Platform> platform,
                                                     std::string* why);

}  // namespace sentry
