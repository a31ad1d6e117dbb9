// The runtime's log, in the two formats of runc (logrus): text and JSON. containerd and others read
// the JSON form to learn why a command failed.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace runsc {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Opens the log. An empty path is standard error. `format` is "text" or "json".
absl::Status InitLog(const std::string& path, const std::string& format, bool debug);

// Writes one entry. Below kInfo only with `debug`; below kError to standard error only with `debug`
// too, since the container's own output may go there.
void Log(LogLevel level, const std::string& message);

// Logs an error that ends the command, and repeats it on standard error if the log is elsewhere.
void LogFatal(const std::string& message);

// The time as RFC 3339 in UTC, with nanoseconds or without.
std::string Timestamp(bool nanoseconds);

}  // namespace runsc
