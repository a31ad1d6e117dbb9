// What a seccomp filter says of a call, without the host's help.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstdint>
#include <span>
#include <vector>

namespace platform {

// A seccomp program of this project's own (systrap/filter.h), interpreted as the host does: so that
// both platforms follow one description of what stubs may do. Immutable.
class CallFilter {
 public:
  // The words of BuildStubFilter and BuildZygoteFilter.
  explicit CallFilter(std::span<const uint64_t> words);

  // SECCOMP_RET_*. An instruction that such programs do not have: SECCOMP_RET_KILL_PROCESS.
  uint32_t Action(const seccomp_data& call) const;

 private:
  std::vector<sock_filter> program_;
};

// The program for the host's seccomp below a tracer: the same, but it says nothing of a call whose
// number the tracer has taken away (-1), which the host does not make.
std::vector<uint64_t> BelowTracer(std::span<const uint64_t> words);

}  // namespace platform
