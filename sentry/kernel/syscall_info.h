// What the table of system calls says of one call; shared by dispatch and tracing.
#pragma once

#include <array>
#include <cstdint>

#include "sentry/base/result.h"

namespace sentry {

class Task;

// The six argument registers of a call.
struct SyscallArgs {
  std::array<uint64_t, 6> v;
  uint64_t operator[](size_t i) const { return v[i]; }
  // As the types that most parameters have: the upper half of the register is ignored, as in Linux.
  int Int(size_t i) const { return static_cast<int>(v[i]); }
  uint32_t Uint(size_t i) const { return static_cast<uint32_t>(v[i]); }
  int64_t Long(size_t i) const { return static_cast<int64_t>(v[i]); }
};

// Answers a call on the fiber of `t`. A restart code (base::kERESTARTSYS, ...) asks for what Linux
// does with it.
using SyscallHandler = base::Result<uint64_t> (*)(Task& t, const SyscallArgs& args);

enum class Support : uint8_t {
  kNone,     // ENOSYS
  kPartial,  // the note says in what
  kFull,
  kConfiguredOut,  // as a Linux that is built without it
};

enum class ArgKind : uint8_t {
  kVal,
  kPtr,
  kLen,
  kOff,
  kFlags,
  kMode,
  kId,
  kPid,
  kSig,
  kFd,
  kDirfd,
  kPath,
  kStr,
  kArgv,
  kIn,
  kOut,
  kInout,
  kInLen,
  kOutLen,
  kInCnt,
  kOutCnt,
  kInoutCnt,
  kIovIn,
  kIovOut,
  kSockaddrIn,
  kSockaddrOut,
  kMsgIn,
  kMsgOut,
  kFutex,
};

struct ArgInfo {
  ArgKind kind;
  const char* name;
  int count_arg = -1;  // the argument that has the length or count
  uint32_t size = 0;   // of the struct or of an element
};

struct SyscallInfo {
  int number = -1;
  const char* name = nullptr;        // null: no such call
  SyscallHandler handler = nullptr;  // null: ENOSYS
  Support support = Support::kNone;
  const char* note = "";
  uint8_t arg_count = 0;
  ArgInfo args[6] = {};
};

}  // namespace sentry
