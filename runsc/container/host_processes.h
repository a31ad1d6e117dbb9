// The host's view of a sandbox: the processes below the sentry.
#pragma once

#include <sys/types.h>

#include <vector>

namespace runsc {

struct HostProcess {
  pid_t pid = 0, parent = 0;
  char state = 0;       // as in /proc/PID/stat
  pid_t inner_pid = 0;  // in the innermost PID namespace that it is in
};

// False if there is no such process. Leaves `inner_pid` as it is.
bool ReadHostProcess(pid_t pid, HostProcess* p);

// The living processes below `root`: a sandbox's stubs. Without their inner_pid.
std::vector<HostProcess> Descendants(pid_t root);
// Fills in inner_pid; false if the process has ended.
bool ReadInnerPid(HostProcess* p);

}  // namespace runsc
