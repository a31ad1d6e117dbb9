// What `create` and `run` share.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runsc/cmd/command.h"
#include "runsc/container/container.h"

namespace runsc {

struct CreateFlags {
  std::string bundle, console_socket, pid_file;
  int preserve_fds = 0;
  bool no_pivot = false, no_new_keyring = false;  // accepted; nothing here pivots or has keyrings
};

void AddCreateFlags(Command& command, CreateFlags& flags);
// Loads the bundle and joins it with the flags.
absl::StatusOr<CreateOptions> MakeCreateOptions(const Context& context, const CreateFlags& flags,
                                                const std::string& id);

// Starts a container that was created in the foreground, stays until it has ended, and returns its
// exit status. The container is removed unless `keep`.
absl::StatusOr<int> RunInForeground(const Store& store, CreatedContainer container, bool keep);

}  // namespace runsc
