#include "runsc/log/log.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace runsc {
namespace {

int g_fd = STDERR_FILENO;
bool g_json = false;
bool g_debug = false;

const char* Name(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "";
}

const char* ShortName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBU";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARN";
    case LogLevel::kError:
      return "ERRO";
  }
  return "";
}

// As Go's %q, which keeps an entry on one line.
std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    auto b = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (b < 0x20 || b == 0x7f) {
      char buffer[8];
      snprintf(buffer, sizeof(buffer), "\\x%02x", b);
      out += buffer;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string MaybeQuoted(const std::string& text) {
  for (char c : text) {
    if (!isalnum(static_cast<unsigned char>(c)) && strchr("-._/@^+", c) == nullptr) {
      return Quoted(text);
    }
  }
  return text.empty() ? "\"\"" : text;
}

void WriteLine(int fd, const std::string& line) {
  // One write: lines of several processes in one file stay whole.
  [[maybe_unused]] ssize_t n = write(fd, line.data(), line.size());
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

absl::Status InitLog(const std::string& path, const std::string& format, bool debug) {
  g_debug = debug;
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError("invalid log-format: " + format);
  }
  g_json = format == "json";
  if (path.empty() || path == "/dev/stderr") return absl::OkStatus();
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::UnavailableError("open " + path + ": " + strerror(errno));
  }
  g_fd = fd;
  return absl::OkStatus();
}

void Log(LogLevel level, const std::string& message) {
  if (level == LogLevel::kDebug && !g_debug) return;
  if (g_fd == STDERR_FILENO && level != LogLevel::kError && !g_debug) return;
  if (g_json) {
    nlohmann::ordered_json entry = {
        {"level", Name(level)}, {"msg", message}, {"time", Timestamp(false)}};
    WriteLine(g_fd, entry.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  } else if (isatty(g_fd)) {
    WriteLine(g_fd, std::string(ShortName(level)) + "[0000] " + OneLine(message) + "\n");
  } else {
    WriteLine(g_fd, "time=\"" + Timestamp(false) + "\" level=" + Name(level) +
                        " msg=" + MaybeQuoted(message) + "\n");
  }
}

void LogFatal(const std::string& message) {
  Log(LogLevel::kError, message);
  if (g_fd != STDERR_FILENO) WriteLine(STDERR_FILENO, OneLine(message) + "\n");
}

std::string Timestamp(bool nanoseconds) {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tm utc;
  gmtime_r(&now.tv_sec, &utc);
  char buffer[64];
  size_t n = strftime(buffer, sizeof(buffer), "%Y-%m-%dT%H:%M:%S", &utc);
  if (nanoseconds) n += snprintf(buffer + n, sizeof(buffer) - n, ".%09ld", now.tv_nsec);
  snprintf(buffer + n, sizeof(buffer) - n, "Z");
  return buffer;
}

}  // namespace runsc
