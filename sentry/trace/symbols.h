// Names of flags and values in traces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sentry::trace {

// Argument `arg` of call `nr` as flags: symbolic for the calls that this knows, else hexadecimal.
std::string FlagNames(int nr, size_t arg, uint64_t value);
// The same for an enumeration or number.
std::string ValueName(int nr, size_t arg, uint64_t value);

}  // namespace sentry::trace
