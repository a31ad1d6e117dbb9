// What `runsc gofer` is told, and by which descriptors.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runsc/sandbox/launch.h"

namespace runsc {

enum GoferFd : int {
  // 0: /dev/null, 1: /dev/null, 2: a pipe to the runsc that starts it.
  kGoferSpecFd = 3,        // sealed memory file with this JSON
  kGoferConnectionFd = 4,  // to the sentry
  kGoferLogFd = 5,         // if there is a log
};

struct GoferSpec {
  std::vector<GoferMount> mounts;
  bool have_log = false;
  bool rootless = false;
  bool allow_no_seccomp = false;
  int exit_code = 0;  // gofer::GoferConfig::exit_code
};

std::string EncodeGoferSpec(const GoferSpec& spec);
absl::StatusOr<GoferSpec> DecodeGoferSpec(std::string_view text);

}  // namespace runsc
