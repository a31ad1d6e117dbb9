// Starts the two processes of a sandbox, the sentry and the gofer, in namespaces of their own, and
// sees them through to the point where the sandbox is ready.
//
// Both are clones of this process that wait before they exec this program again: meanwhile their
// ids are mapped, they are put into cgroups, written to the state file, and hooks run. If this
// process dies, they end: the sentry until Commit, the gofer with the sentry.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sentry/base/host_fd.h"

namespace runsc {

// A mount of the gofer; index 0 is the root file system.
struct GoferMount {
  std::string path;  // absolute, resolved
  bool readonly = false;
};

struct LaunchOptions {
  std::string id;         // container id, for the processes' titles
  std::string hostname;   // of the sentry's UTS namespace, for who joins it; empty: as inherited
  std::string boot_spec;  // JSON
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
};

class Launch {
 public:
  Launch() = default;
  Launch(Launch&& other) noexcept { *this = std::move(other); }
  Launch& operator=(Launch&& other) noexcept;
  // Kills what was launched, unless it was committed.
  ~Launch();

  // Clones both processes.
  static absl::StatusOr<Launch> Begin(const LaunchOptions& options);
  pid_t sentry_pid() const { return sentry_pid_; }
  pid_t gofer_pid() const { return gofer_pid_; }
  // Lets both exec, and waits until the sandbox is ready. On error the message is what the sandbox
  // said, or how it died.
  absl::Status AwaitReady();
  // From now on the sandbox lives without this object, which forgets the processes. An error says
  // that it has ended already.
  absl::Status Commit();
  // Kills both and reaps them.
  void Kill();

 private:
  absl::Status DescribeFailure(const std::string& sentry_error);
  void SpreadOomScores(std::optional<int> wanted);

  pid_t sentry_pid_ = -1, gofer_pid_ = -1;
  base::UniqueFd sync_;  // to the sentry
  base::UniqueFd sentry_go_, gofer_go_;
  int oom_score_ = 0;            // of the sentry and the gofer when they are ready
  base::UniqueFd gofer_errors_;  // the gofer's standard error
};

// Waits for a child and returns its status as waitpid has it; -1 if it is no child of ours.
int WaitForChild(pid_t pid);
// 0 to 255 as runc would exit: the status, or 128 and the signal.
int ExitCode(int wait_status);
// "exited with status 3", "was killed by signal 9 (Killed)".
std::string DescribeEnd(int wait_status);

}  // namespace runsc
