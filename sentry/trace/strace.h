// --strace: one line of the log per system call.
#pragma once

#include <cstdint>
#include <string>

#include "sentry/base/result.h"

namespace sentry {
class Task;
struct SyscallArgs;
struct SyscallInfo;
}  // namespace sentry

namespace sentry::trace {

// One traced call. Made before the handler runs (what the call reads is decoded then, as the
// handler may change it), finished after it; a call that does not return to its caller (exit, a
// successful exec) is logged by Finish too.
class Call {
 public:
  // `info` null: an unknown number. All must outlive this.
  Call(Task& t, int nr, const SyscallInfo* info, const SyscallArgs& args);
  // Writes the line; decodes what the call wrote.
  void Finish(const base::Result<uint64_t>& result);

 private:
  std::string Argument(size_t i, bool after, const base::Result<uint64_t>* result) const;

  Task& t_;
  const int nr_;
  const SyscallInfo* const info_;
  const SyscallArgs& args_;
  const int64_t start_ns_;
  std::string before_[6];
};

// "ENOENT" and the like; nullptr if there is none of this number.
const char* ErrnoName(int code);
const char* SignalName(int signo);

}  // namespace sentry::trace
