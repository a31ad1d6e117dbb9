// The "linux.seccomp" section of a configuration, as runc reads it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runsc/oci/json_reader.h"

namespace runsc::oci {

struct SeccompArg {
  uint32_t index = 0;
  uint64_t value = 0, value_two = 0;
  std::string op;  // "SCMP_CMP_EQ", ...
};

struct SeccompRule {
  std::vector<std::string> names;
  std::string action;  // "SCMP_ACT_ERRNO", ...
  std::optional<uint32_t> errno_ret;
  std::vector<SeccompArg> args;
};

struct Seccomp {
  std::string default_action;
  std::optional<uint32_t> default_errno;
  bool log = false;  // SECCOMP_FILTER_FLAG_LOG
  std::vector<SeccompRule> rules;
};

// Reports unknown actions, operators and flags by node.Fail.
Seccomp ReadSeccomp(const Node& node);

// The filter as struct sock_filter, a word for each, for amd64 (other architectures have no entry
// into a sandbox). Calls with numbers above all that the rules name get ENOSYS where the default is
// an error, so that programs fall back as on an older kernel; names that nobody knows are left out.
absl::StatusOr<std::vector<uint64_t>> CompileSeccomp(const Seccomp& seccomp);

// What `features` tells.
std::vector<std::string> KnownSeccompActions();
std::vector<std::string> KnownSeccompOperators();

}  // namespace runsc::oci
