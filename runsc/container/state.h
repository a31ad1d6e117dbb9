// What is stored about a container, and where.
//
// <root>/<id>/state.json   this file: replaced atomically, never half-written
//            config.json   the configuration as it was at creation
//            control.sock  the sandbox's control socket
//            exit          wait status of init, written by the sandbox when it ends
// <root>/.<id>.lock        flock'ed by every command that changes the container
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sentry/base/host_fd.h"

namespace runsc {

inline constexpr const char kSpecVersion[] = "1.0.2-dev";

enum class ContainerStatus { kCreating, kCreated, kRunning, kPaused, kStopped };
const char* StatusName(ContainerStatus status);

// A process of the host, told from a later one with the same pid by its start time.
struct ProcessId {
  pid_t pid = 0;
  uint64_t start_time = 0;  // field 22 of /proc/PID/stat
  // Fills in the start time of a living process; pid 0 if there is none.
  static ProcessId Of(pid_t pid);
  // True unless it has ended (a zombie has).
  bool Alive() const;
};

struct ContainerState {
  std::string id;
  std::string oci_version;  // of the specification that the state is written by
  std::string bundle;       // absolute
  std::string rootfs;       // absolute
  std::string created;      // RFC 3339
  uid_t owner_uid = 0;
  std::map<std::string, std::string> annotations;
  ContainerStatus status = ContainerStatus::kCreating;  // as last stored
  ProcessId creator;  // the runsc that makes it; of meaning while kCreating
  // Of a container in another's sandbox (a pod): that container's id; empty: it has its own.
  std::string sandbox_id;
  ProcessId sandbox;  // the sentry
  ProcessId gofer;

  // The process that ends when the container does, with init's exit status: what engines take for
  // its init. The sentry; or the gofer of a container in another's sandbox.
  const ProcessId& init() const { return sandbox_id.empty() ? sandbox : gofer; }
  bool terminal = false;
  std::vector<std::string> cgroup_dirs;  // made by us, absolute; deepest last

  // The status now: stopped once the sandbox (or, while kCreating, the creator) has ended.
  ContainerStatus CurrentStatus() const;
  // The state as the OCI runtime specification has it, for hooks and `state`.
  std::string OciJson() const;
};

// Holds a container's lock until destroyed.
class ContainerLock {
 public:
  ContainerLock() = default;
  explicit ContainerLock(base::UniqueFd fd, std::string path)
      : fd_(std::move(fd)), path_(std::move(path)) {}
  // Removes the lock file; for the holder that has just removed the container.
  void Remove();

 private:
  base::UniqueFd fd_;
  std::string path_;
};

// The directory of all containers (--root).
class Store {
 public:
  explicit Store(std::string root) : root_(std::move(root)) {}
  const std::string& root() const { return root_; }
  std::string Dir(const std::string& id) const { return root_ + "/" + id; }

  // Waits for the lock of `id`, making the root directory first if `create`.
  absl::StatusOr<ContainerLock> Lock(const std::string& id, bool create) const;
  // NotFound "container <id> does not exist"; FailedPrecondition if the directory is there but its
  // state is missing or damaged, with what is wrong.
  absl::StatusOr<ContainerState> Load(const std::string& id) const;
  absl::Status Save(const ContainerState& state) const;
  // Makes the container's directory. AlreadyExists.
  absl::Status MakeDir(const std::string& id) const;
  // Removes the container's directory with all that is in it.
  absl::Status RemoveDir(const std::string& id) const;
  // Ids of all directories, sorted. An absent root directory is an empty one.
  absl::StatusOr<std::vector<std::string>> List() const;
  // The directory, open for paths relative to it.
  absl::StatusOr<base::UniqueFd> OpenDir(const std::string& id) const;
  // The stored wait status of init, if it ended by itself.
  std::optional<int> ExitStatus(const std::string& id) const;

 private:
  std::string root_;
};

// InvalidArgument unless `id` is what runc accepts: not empty, at most 1024 of [A-Za-z0-9_+.-],
// neither "." nor "..".
absl::Status CheckId(const std::string& id);

// Whole files. Errors name the path.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max);
absl::Status WriteFileAtomically(const std::string& path, const std::string& bytes, mode_t mode);

// "<what>: <strerror(errno)>".
absl::Status ErrnoStatus(const std::string& what);

}  // namespace runsc
