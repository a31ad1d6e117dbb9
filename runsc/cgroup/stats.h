// What the control groups of a container tell about it: use of processors and memory, and when
// memory ran out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sentry/base/host_fd.h"

namespace runsc {

// Values that a kernel or a group does not tell stay 0.
struct CgroupStats {
  struct Memory {
    uint64_t limit = 0, usage = 0, max = 0, failures = 0;  // bytes; failures: times at the limit
  };
  uint64_t cpu_total = 0, cpu_user = 0, cpu_kernel = 0;             // nanoseconds
  std::vector<uint64_t> cpu_each;                                   // v1: of each processor
  uint64_t periods = 0, throttled_periods = 0, throttled_time = 0;  // the last in nanoseconds
  Memory memory, swap, kernel, kernel_tcp;     // swap: memory and swap together
  uint64_t cache = 0;                          // bytes of file pages in `memory`
  std::map<std::string, uint64_t> memory_raw;  // memory.stat
  uint64_t pids = 0, pids_limit = 0;           // limit 0: none
};

// Where a container's groups are. In v2 all are one directory.
struct CgroupDirs {
  bool v2 = false;                         // of memory
  std::string memory, cpu, cpuacct, pids;  // absolute; empty: it is in none
};

CgroupStats ReadCgroupStats(const CgroupDirs& dirs);

// Tells of processes that are killed because the memory group is full.
class OomWatch {
 public:
  // Unavailable if the group cannot be watched.
  static absl::StatusOr<OomWatch> Begin(const CgroupDirs& dirs);
  // Readable (poll(2)) when something may have happened.
  int fd() const { return events_.get(); }
  // After that: how many times memory ran out since the last call.
  uint64_t Take();

 private:
  std::string counter_file_;  // v2: memory.events
  uint64_t seen_ = 0;
  base::UniqueFd events_;  // v1: an eventfd; v2: inotify
};

}  // namespace runsc
