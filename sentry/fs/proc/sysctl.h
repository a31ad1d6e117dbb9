// What the files of /proc/sys are made with.
#pragma once

#include <charconv>
#include <string>
#include <string_view>

#include "sentry/base/result.h"
#include "sentry/fs/proc/proc.h"

namespace sentry {

// Without blanks, newlines and NULs at its ends.
inline std::string_view TrimSysctl(std::string_view s) {
  while (!s.empty() && (s.back() == '\n' || s.back() == ' ' || s.back() == '\0'))
    s.remove_suffix(1);
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  return s;
}

// A number that was written. EINVAL.
template <typename T>
base::Result<T> ParseSysctl(std::string_view data) {
  data = TrimSysctl(data);
  T value;
  auto [end, ec] = std::from_chars(data.data(), data.data() + data.size(), value);
  if (ec != std::errc() || end != data.data() + data.size()) return base::Error(EINVAL);
  return value;
}

// A directory being filled.
class SysctlBuilder {
 public:
  SysctlBuilder(ProcFs* fs, PseudoDir& dir) : fs_(fs), dir_(dir) {}
  SysctlBuilder Dir(const char* name) { return SysctlBuilder(fs_, *dir_.AddDir(name)); }
  void Value(const char* name, std::string value) {
    Read(name, [value = value + "\n"]() -> base::Result<std::string> { return value; });
  }
  void Value(const char* name, int64_t value) { Value(name, std::to_string(value)); }
  void Read(const char* name, FuncFile::Reader read) {
    dir_.Add(name, base::MakeRef<FuncFile>(fs_, 0444, std::move(read)));
  }
  void ReadWrite(const char* name, FuncFile::Reader read, FuncFile::Writer write) {
    dir_.Add(name, base::MakeRef<FuncFile>(fs_, 0644, std::move(read), std::move(write)));
  }

 private:
  ProcFs* const fs_;
  PseudoDir& dir_;
};

// /proc/sys/net: of the reader's network namespace.
void AddNetSysctls(SysctlBuilder dir);
// Into /proc/sys/kernel and /proc/sys/fs/mqueue: limits of the reader's IPC namespace.
void AddIpcSysctls(SysctlBuilder dir);
void AddMqueueSysctls(SysctlBuilder dir);
// /proc/sys/kernel/keys.
void AddKeySysctls(SysctlBuilder dir);

}  // namespace sentry
