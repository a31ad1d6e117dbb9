// The containers of a sandbox beside its first: from their making to their end, in the main loop.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"
#include "sentry/control/server.h"

namespace sentry {

// All methods: on the thread that runs the server, which outlives this.
class Members {
 public:
  explicit Members(ControlServer* server) : server_(*server) {}
  Members(const Members&) = delete;
  Members& operator=(const Members&) = delete;

  // A container has been made; it ends with its init or its gofer.
  base::Status Add(ControlServer::Joined joined);
  // The sandbox ends: stores a status for those that still run.
  void StoreKilled();

 private:
  struct Member {
    std::shared_ptr<Container> container;
    base::UniqueFd exit_file, gofer;
    bool ending = false;
  };

  void OnGoferEnd(uint64_t id);
  void OnInitEnd(uint64_t id, int wait_status);
  void OnEnded(uint64_t id, int wait_status);

  ControlServer& server_;
  std::map<uint64_t, Member> members_;  // by the server's number
};

// Writes the wait status of a container's init into its file.
void StoreExitStatus(int file, int wait_status);
// What a process exits with that stands for one that ended so.
int ExitCodeOf(int wait_status);

}  // namespace sentry
