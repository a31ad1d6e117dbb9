// What the platform must know of the host's CPU and limits.
#pragma once

#include <sched.h>

#include <cstdint>
#include <string>

#include "sentry/base/result.h"

namespace platform {

struct Machine {
  bool has_fsgsbase = false;
  uint64_t xfeatures = 0;   // user features that signal frames hold
  uint32_t xsave_size = 0;  // bytes of their XSAVE image
  uint32_t mxcsr_mask = 0;
  uint32_t pkru_offset = 0;   // of PKRU in an image; xsave_size if there is none
  uint64_t ticks_per_us = 0;  // of the TSC
  uint64_t mmap_min_addr = 65536;
  cpu_set_t cpus{};  // those that this process may run on, or all that there could be
  int cores = 1;     // how many it may run on
};

// ENOSYS with a line in `why` for a machine on which stubs cannot run.
base::Result<Machine> ProbeMachine(std::string* why);

}  // namespace platform
