// The log of the process: one line per message, to one descriptor, in logrus's text or JSON form,
// as runc's --log and --log-format. A line is formatted on the stack and written by one write(2).
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace base {

enum class LogLevel : int { kError, kWarning, kInfo, kDebug };
enum class LogFormat { kText, kJson };

struct LogOptions {
  int fd = 2;  // not owned; -1: no log
  LogLevel level = LogLevel::kWarning;
  LogFormat format = LogFormat::kText;
};

// Sets how the process logs. Thread-safe. Before it: warnings as text to standard error.
void InitLog(const LogOptions& options);

// True if messages of `level` are written. One relaxed load.
extern std::atomic<int> g_log_level;
inline bool LogEnabled(LogLevel level) {
  return static_cast<int>(level) <= g_log_level.load(std::memory_order_relaxed);
}

// Writes one message; printf formats. Longer than about 2000 bytes: cut. Keeps errno.
void Log(LogLevel level, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The same without formatting and without limit (for dumps, and strace's lines).
void LogLine(LogLevel level, std::string_view message);

// Appends `s` as the inside of a JSON string: escapes what must be, replaces invalid UTF-8.
void AppendJsonEscaped(std::string* out, std::string_view s);

// Limits messages: true at most once per `period_ns`, and tells how many were dropped before.
class LogLimiter {
 public:
  explicit constexpr LogLimiter(int64_t period_ns) : period_ns_(period_ns) {}
  bool Allow(uint64_t* dropped);

 private:
  const int64_t period_ns_;
  std::atomic<int64_t> next_ns_{0};
  std::atomic<uint64_t> dropped_{0};
};

}  // namespace base

// The arguments are not evaluated when the level is off.
#define LOG_AT(level, ...)                                          \
  do {                                                              \
    if (::base::LogEnabled(level)) ::base::Log(level, __VA_ARGS__); \
  } while (0)
#define LOG_ERROR(...) LOG_AT(::base::LogLevel::kError, __VA_ARGS__)
#define LOG_WARNING(...) LOG_AT(::base::LogLevel::kWarning, __VA_ARGS__)
#define LOG_INFO(...) LOG_AT(::base::LogLevel::kInfo, __VA_ARGS__)
#define LOG_DEBUG(...) LOG_AT(::base::LogLevel::kDebug, __VA_ARGS__)

// Once per place in the source and process.
#define LOG_ONCE(level, ...)                                                                     \
  do {                                                                                           \
    static std::atomic<bool> log_once_{false};                                                   \
    if (::base::LogEnabled(level) && !log_once_.exchange(true)) ::base::Log(level, __VA_ARGS__); \
  } while (0)
// At most once per second for this place; says how many were left out.
#define LOG_LIMITED(level, ...)                                           \
  do {                                                                    \
    static ::base::LogLimiter log_limiter_{1'000'000'000};                \
    uint64_t log_dropped_ = 0;                                            \
    if (::base::LogEnabled(level) && log_limiter_.Allow(&log_dropped_)) { \
      ::base::Log(level, __VA_ARGS__);                                    \
      if (log_dropped_ > 0)                                               \
        ::base::Log(level, "(%llu such messages left out)",               \
                    static_cast<unsigned long long>(log_dropped_));       \
    }                                                                     \
  } while (0)
