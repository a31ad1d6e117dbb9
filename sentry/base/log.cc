#include "sentry/base/log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "sentry/base/time.h"

namespace base {

std::atomic<int> g_log_level{static_cast<int>(LogLevel::kWarning)};

namespace {

std::atomic<int> g_fd{2};
std::atomic<LogFormat> g_format{LogFormat::kText};

constexpr size_t kMaxMessage = 2000;

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kError:
      return "error";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kDebug:
      return "debug";
  }
  return "info";
}

// A bounded buffer on the stack; what does not fit is dropped.
class LineBuffer {
 public:
  void Add(char c) {
    if (size_ < sizeof(data_) - 1) data_[size_++] = c;
  }
  void Add(std::string_view s) {
    for (char c : s) Add(c);
  }
  // Inside of a JSON (and logrus text) string.
  void AddEscaped(std::string_view s);
  std::string_view Finish() {
    data_[size_++] = '\n';
    return {data_, size_};
  }

 private:
  char data_[kMaxMessage * 3 / 2 + 200];
  size_t size_ = 0;
};

// The length of the valid UTF-8 sequence at the start of s; 0 if there is none.
size_t Utf8Length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char c = byte(0);
  size_t n = 0;
  uint32_t min = 0, code = 0;
  if (c < 0x80) return 1;
  if (c >= 0xc2 && c < 0xe0) {
    n = 2, min = 0x80, code = c & 0x1f;
  } else if (c >= 0xe0 && c < 0xf0) {
    n = 3, min = 0x800, code = c & 0x0f;
  } else if (c >= 0xf0 && c < 0xf5) {
    n = 4, min = 0x10000, code = c & 0x07;
  } else {
    return 0;
  }
  if (s.size() < n) return 0;
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return code >= min && code <= 0x10ffff && !surrogate ? n : 0;
}

template <typename Out>
void Escape(Out&& out, std::string_view s) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (size_t i = 0; i < s.size();) {
    const char c = s[i];
    const size_t n = Utf8Length(s.substr(i));
    if (n == 0) {
      out("\\ufffd");
      ++i;
      continue;
    }
    if (c == '"' || c == '\\') {
      const char pair[] = {'\\', c};
      out(std::string_view(pair, 2));
    } else if (c == '\n') {
      out("\\n");
    } else if (c == '\t') {
      out("\\t");
    } else if (c == '\r') {
      out("\\r");
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      const char code[] = {'\\', 'u', '0', '0', kHex[c >> 4 & 15], kHex[c & 15]};
      out(std::string_view(code, 6));
    } else {
      out(s.substr(i, n));
    }
    i += n;
  }
}

void LineBuffer::AddEscaped(std::string_view s) {
  Escape([this](std::string_view piece) { Add(piece); }, s);
}

// RFC 3339 in UTC.
size_t FormatTime(char* out, size_t size) {
  const int64_t now = RealtimeNs();
  const time_t sec = now / kNsPerSec;
  tm parts;
  gmtime_r(&sec, &parts);
  const size_t n = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &parts);
  const int m = snprintf(out + n, size - n, ".%06dZ", static_cast<int>(now % kNsPerSec / 1000));
  return n + (m > 0 ? m : 0);
}

void WriteAll(int fd, std::string_view s) {
  while (!s.empty()) {
    const ssize_t n = write(fd, s.data(), s.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // nowhere to complain
    s.remove_prefix(n);
  }
}

template <typename Buffer>
void Compose(Buffer& line, LogLevel level, std::string_view message) {
  char time[64];
  const std::string_view stamp(time, FormatTime(time, sizeof(time)));
  if (g_format.load(std::memory_order_relaxed) == LogFormat::kJson) {
    line.Add("{\"level\":\"");
    line.Add(LevelName(level));
    line.Add("\",\"msg\":\"");
    line.AddEscaped(message);
    line.Add("\",\"time\":\"");
    line.Add(stamp);
    line.Add("\"}");
  } else {
    line.Add("time=\"");
    line.Add(stamp);
    line.Add("\" level=");
    line.Add(LevelName(level));
    line.Add(" msg=\"");
    line.AddEscaped(message);
    line.Add("\"");
  }
}

// LineBuffer's interface without its bound.
struct LongLine {
  std::string data;
  void Add(std::string_view s) { data.append(s); }
  void AddEscaped(std::string_view s) { AppendJsonEscaped(&data, s); }
};

}  // namespace

void InitLog(const LogOptions& options) {
  g_fd.store(options.fd, std::memory_order_relaxed);
  g_format.store(options.format, std::memory_order_relaxed);
  g_log_level.store(options.fd < 0 ? -1 : static_cast<int>(options.level),
                    std::memory_order_relaxed);
}

void AppendJsonEscaped(std::string* out, std::string_view s) {
  Escape([out](std::string_view piece) { out->append(piece); }, s);
}

void Log(LogLevel level, const char* format, ...) {
  if (!LogEnabled(level)) return;
  const int saved_errno = errno;
  char message[kMaxMessage];
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(message, sizeof(message), format, args);
  va_end(args);
  if (n >= 0) {
    const size_t size = std::min<size_t>(n, sizeof(message) - 1);
    LineBuffer line;
    Compose(line, level, std::string_view(message, size));
    WriteAll(g_fd.load(std::memory_order_relaxed), line.Finish());
  }
  errno = saved_errno;
}

void LogLine(LogLevel level, std::string_view message) {
  if (!LogEnabled(level)) return;
  const int saved_errno = errno;
  LongLine line;
  Compose(line, level, message);
  line.data.push_back('\n');
  WriteAll(g_fd.load(std::memory_order_relaxed), line.data);
  errno = saved_errno;
}

bool LogLimiter::Allow(uint64_t* dropped) {
  const int64_t now = MonotonicNs();
  int64_t next = next_ns_.load(std::memory_order_relaxed);
  if (now < next || !next_ns_.compare_exchange_strong(next, now + period_ns_)) {
    dropped_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  *dropped = dropped_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace base

#ifdef __SANITIZE_THREAD__
// Debian's Abseil is not built for the thread sanitizer, which so does not see the lock that its
// detection of deadlocks takes.
extern "C" const char* __tsan_default_suppressions() {
  return "race:absl::*::synchronization_internal::GraphCycles\n";
}
#endif
