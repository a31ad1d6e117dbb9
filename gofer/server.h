// The gofer: the process that alone can name the container's files. See protocol.h for what it is
// asked, confine.h for what it gives up.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"

namespace gofer {

// A directory, or one file, of the host that the sandbox may use. Mount 0 is the root file system.
struct MountConfig {
  // The source, opened with O_PATH (or O_RDONLY). Best opened after the gofer's mount namespace was
  // made; one from elsewhere works if the same file is found at its path in this namespace.
  base::UniqueFd fd;
  bool readonly = false;
  bool allow_connect = false;  // connections to the host's unix sockets in it (default: refused)
};

struct GoferConfig {
  std::vector<MountConfig> mounts;
  base::UniqueFd connection;  // one end of a SOCK_SEQPACKET socket pair; the sentry has the other
  base::UniqueFd log;         // where fatal messages go; may be invalid: standard error
  uint32_t threads = 4;       // how many requests are served at once
  // Keep no capability at all. Otherwise those that let it act on the container's files for any of
  // the container's users: chown, dac_override, dac_read_search, fowner, fsetid (in the gofer's own
  // user namespace alone).
  bool rootless = false;
  // With which to end when the connection does without having said another (kEnd).
  int exit_code = 0;
  // To serve even where the host has no seccomp(2), and then without a filter.
  bool allow_no_seccomp = false;
  // Leaves the process as it is (no new root, capabilities and filter kept). For tests alone.
  bool unconfined = false;
};

// The gofer's main function: confines the calling process for good, then serves until the sentry
// closes the connection. To be called early in a process of its own that has no other threads, with
// new user (ids mapped, uid 0 inside), mount, PID, IPC, UTS and network namespaces. Returns the
// exit status: that of kEnd or of the configuration, or 1 with one line in `*error` (also written
// to the log) that says which step failed.
int RunGofer(GoferConfig config, std::string* error);

// The server without the process: serves one connection over the mounts. For RunGofer and tests.
class Server {
 public:
  struct Options {
    std::vector<MountConfig> mounts;
    base::UniqueFd connection;
    // A directory descriptor of /proc/self/fd, through which handles are opened; it must also be
    // the working directory for extended attributes and Connect.
    int proc_fd = -1;
    uint32_t threads = 4;
    uint32_t max_handles = 0;
    int exit_code = 0;  // as in GoferConfig
  };
  explicit Server(Options options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Starts the threads; they have made the host calls of a starting thread and wait for Release().
  void Start();
  void Release();
  // Returns when the peer has closed the connection, ended it, or broken the protocol.
  void Join();
  int exit_code() const;  // after Join

  // Handles one packet as a serving thread does and returns the reply packet; `fds` gets
  // the descriptors to send with it. Empty: the packet is not even a request, the connection must
  // end. Thread-safe.
  std::string HandlePacket(std::string_view packet, std::vector<base::UniqueFd>* fds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gofer
