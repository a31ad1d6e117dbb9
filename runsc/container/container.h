// The life of a container: create, start, signal, destroy. Each function takes the container's lock
// where it says so; the caller holds it where it says that.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runsc/container/boot_spec_builder.h"
#include "runsc/container/state.h"
#include "runsc/oci/spec.h"
#include "runsc/sandbox/console.h"
#include "runsc/sandbox/launch.h"
#include "sentry/control/client.h"

namespace runsc {

struct CreateOptions {
  std::string id;
  std::string bundle;  // absolute
  std::string config_text;
  oci::Spec spec;  // parsed from config_text
  std::string console_socket;
  std::string pid_file;
  int preserve_fds = 0;
  bool foreground = false;  // the sandbox dies with this process; a terminal needs no socket
  bool systemd_cgroup = false;
  std::string debug_log;  // pattern, see OpenDebugLog
  SandboxFlags flags;
};

// A container in the state "created". Until launch is committed the sandbox dies with this object
// and with this process.
struct CreatedContainer {
  ContainerState state;
  Launch launch;
  Console console;  // in the foreground with a terminal: its master
  ContainerLock lock;
};

// Reads and checks `<bundle>/config.json`. `bundle` is made absolute.
absl::StatusOr<CreateOptions> LoadBundle(const std::string& bundle);

// Takes the lock. On error nothing is left behind.
absl::StatusOr<CreatedContainer> CreateContainer(const Store& store, const CreateOptions& options);

// Runs the created container; the caller holds the lock. Runs the startContainer and poststart
// hooks.
absl::Status StartContainer(const Store& store, ContainerState* state);

// Sends a signal to init or to all processes; the caller holds no lock.
absl::Status SignalContainer(const Store& store, const ContainerState& state, int signo, bool all);

// Stops all that the guest runs, and lets it go on; the caller holds the lock. FailedPrecondition
// if the container is not running, or not paused.
absl::Status PauseContainer(const Store& store, ContainerState* state);
absl::Status ResumeContainer(const Store& store, ContainerState* state);

// Kills what still lives, then removes the cgroups and the directory and runs the poststop hooks.
// The caller holds the lock, which is removed.
absl::Status DestroyContainer(const Store& store, const ContainerState& state, ContainerLock* lock);
// The same for a directory whose state cannot be read.
absl::Status DestroyBrokenContainer(const Store& store, const std::string& id, ContainerLock* lock);

// The configuration stored with the container.
absl::StatusOr<oci::Spec> LoadStoredSpec(const Store& store, const std::string& id);

// The container's sandbox. UnavailableError "container not running"; one that is paused does not
// answer.
absl::StatusOr<sentry::ControlClient> ConnectSandbox(const Store& store, const std::string& id);

// Descriptors for a new process: 0 to 2 (or three times the console's slave), then `preserve_fds`
// and the ones of socket activation ($LISTEN_FDS), whose variables are added to `env`. The
// descriptors stay the caller's. InvalidArgument if one is not open.
absl::StatusOr<std::vector<int>> ProcessFiles(int console_slave, int preserve_fds,
                                              std::vector<std::string>* env);

// Opens the debug log of one process for appending: %ID%, %COMMAND%, %TIMESTAMP% and %PID% in the
// pattern are replaced; to a pattern that ends with '/' a name is added. Invalid if it is empty.
absl::StatusOr<base::UniqueFd> OpenDebugLog(const std::string& pattern, const std::string& id,
                                            const std::string& command);

}  // namespace runsc
