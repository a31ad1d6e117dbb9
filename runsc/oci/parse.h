// Reading config.json and process.json.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runsc/oci/spec.h"

namespace runsc::oci {

inline constexpr size_t kMaxConfigBytes = 16 << 20;

// Parses and checks a whole configuration. The message of an error is one line that names the
// field, such as "process.args[1]: must be a string, is a number".
absl::StatusOr<Spec> ParseSpec(std::string_view text);
// Parses and checks a process as `exec --process` takes it.
absl::StatusOr<Process> ParseProcess(std::string_view text);
// The object linux.resources alone.
absl::StatusOr<Resources> ParseResources(std::string_view text);

// The capability number of a name such as "CAP_CHOWN" (case does not matter, the prefix may be
// missing); -1 if there is none. And the other way; empty if there is none.
int CapabilityNumber(std::string_view name);
std::string CapabilityName(int number);
inline constexpr int kCapabilityCount = 41;

}  // namespace runsc::oci
