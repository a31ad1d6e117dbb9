// Starts the two processes of a sandbox, the sentry and the gofer, in namespaces of their own, and
// sees them through to the point where the sandbox is ready. For a container that joins a sandbox
// it is the gofer alone, and the sentry of that sandbox is asked.
//
// Both are clones of this process that wait before they exec this program again: meanwhile their
// ids are mapped, they are put into cgroups, written to the state file, and hooks run. If this
// process dies, they end: the sentry until Commit, the gofer with the sentry.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sentry/base/host_fd.h"
#include "sentry/boot/boot_spec.h"
#include "sentry/control/client.h"

namespace runsc {

// A mount of the gofer; index 0 is the root file system.
struct GoferMount {
  std::string path;  // absolute, resolved
  bool readonly = false;
};

struct LaunchOptions {
  std::string id;         // container id, for the processes' titles
  std::string hostname;   // of the sentry's UTS namespace, for who joins it; empty: as inherited
  std::string boot_spec;  // JSON; of no meaning for one that joins
  std::vector<GoferMount> mounts;
  std::vector<int> files;  // become the guest's descriptors 0 and up; stay the caller's
  int control_listener = -1;
  int exit_file = -1;
  int sentry_log = -1;  // -1: none
  int gofer_log = -1;
  bool die_with_parent = false;
  bool allow_no_seccomp = false;     // for the gofer; the sentry has it in its specification
  std::optional<int> oom_score_adj;  // absent: inherited
  int network_namespace = -1;        // the sentry's; -1: a new one, which stays empty
  // To join a sandbox: a connection to it, and what it is told. Null: one of its own.
  std::unique_ptr<sentry::ControlClient> pod;
  sentry::ContainerSpec container;
};

class Launch {
 public:
  Launch() = default;
  Launch(Launch&& other) noexcept { *this = std::move(other); }
  Launch& operator=(Launch&& other) noexcept;
  // Kills what was launched, unless it was committed.
  ~Launch();

  // Clones the processes.
  static absl::StatusOr<Launch> Begin(LaunchOptions options);
  // -1 for a container that joins.
  pid_t sentry_pid() const { return sentry_pid_; }
  pid_t gofer_pid() const { return gofer_pid_; }
  // The one that ends with the container's exit status.
  pid_t init_pid() const { return sentry_pid_ > 0 ? sentry_pid_ : gofer_pid_; }
  // Lets them exec, and waits until the container is ready. On error the message is what the
  // sandbox said, or how it died.
  absl::Status AwaitReady();
  // From now on the sandbox lives without this object, which forgets the processes. An error says
  // that it has ended already.
  absl::Status Commit();
  // Kills them and reaps them.
  void Kill();

 private:
  absl::Status BeginGofer(const LaunchOptions& options, int exe, int null, int connection);
  absl::Status BeginSentry(const LaunchOptions& options, int exe, int null, int connection);
  // Keeps what Join sends, once the caller's descriptors are closed.
  absl::Status PrepareJoin(LaunchOptions options, base::UniqueFd connection);
  absl::Status Join();
  absl::Status DescribeFailure(const std::string& sentry_error);
  void SpreadOomScores(std::optional<int> wanted);

  pid_t sentry_pid_ = -1, gofer_pid_ = -1;
  base::UniqueFd sync_;  // to the sentry
  base::UniqueFd sentry_go_, gofer_go_;
  int oom_score_ = 0;            // of the sentry and the gofer when they are ready
  base::UniqueFd gofer_errors_;  // the gofer's standard error
  std::unique_ptr<sentry::ControlClient> pod_;
  sentry::ContainerSpec container_;
  std::vector<base::UniqueFd> join_fds_;
};

// Waits for a child and returns its status as waitpid has it; -1 if it is no child of ours.
int WaitForChild(pid_t pid);
// 0 to 255 as runc would exit: the status, or 128 and the signal.
int ExitCode(int wait_status);
// "exited with status 3", "was killed by signal 9 (Killed)".
std::string DescribeEnd(int wait_status);

}  // namespace runsc
