// sentry/base/syscalls.def as data.
#include <array>
#include <initializer_list>
#include <vector>

#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/syscall.h"

namespace sentry {

namespace {

SyscallInfo Make(int number, const char* name, SyscallHandler handler, Support support,
                 const char* note, std::initializer_list<ArgInfo> args) {
  SyscallInfo info;
  info.number = number;
  info.name = name;
  info.handler = handler == &kNone ? nullptr : handler;
  info.support = support;
  info.note = note;
  for (const ArgInfo& arg : args) info.args[info.arg_count++] = arg;
  return info;
}

// Takes 100 KiB of stack, more than a fiber has.
[[gnu::noinline]] const std::vector<SyscallInfo>* MakeTable() {
  return new std::vector<SyscallInfo>{
#define SYSCALL(number, name, handler, support, note, ...) \
  Make(number, #name, &handler, Support::support, note, {__VA_ARGS__}),
#define VAL(n) \
  ArgInfo { ArgKind::kVal, #n }
#define PTR(n) \
  ArgInfo { ArgKind::kPtr, #n }
#define LEN(n) \
  ArgInfo { ArgKind::kLen, #n }
#define OFF(n) \
  ArgInfo { ArgKind::kOff, #n }
#define FLAGS(n) \
  ArgInfo { ArgKind::kFlags, #n }
#define MODE(n) \
  ArgInfo { ArgKind::kMode, #n }
#define ID(n) \
  ArgInfo { ArgKind::kId, #n }
#define PID(n) \
  ArgInfo { ArgKind::kPid, #n }
#define SIG(n) \
  ArgInfo { ArgKind::kSig, #n }
#define FD(n) \
  ArgInfo { ArgKind::kFd, #n }
#define DIRFD(n) \
  ArgInfo { ArgKind::kDirfd, #n }
#define PATH(n) \
  ArgInfo { ArgKind::kPath, #n }
#define STR(n) \
  ArgInfo { ArgKind::kStr, #n }
#define ARGV(n) \
  ArgInfo { ArgKind::kArgv, #n }
#define IN(n, size) \
  ArgInfo { ArgKind::kIn, #n, -1, size }
#define OUT(n, size) \
  ArgInfo { ArgKind::kOut, #n, -1, size }
#define INOUT(n, size) \
  ArgInfo { ArgKind::kInout, #n, -1, size }
#define IN_LEN(n, arg) \
  ArgInfo { ArgKind::kInLen, #n, arg, 1 }
#define OUT_LEN(n, arg) \
  ArgInfo { ArgKind::kOutLen, #n, arg, 1 }
#define IN_CNT(n, arg, size) \
  ArgInfo { ArgKind::kInCnt, #n, arg, size }
#define OUT_CNT(n, arg, size) \
  ArgInfo { ArgKind::kOutCnt, #n, arg, size }
#define INOUT_CNT(n, arg, size) \
  ArgInfo { ArgKind::kInoutCnt, #n, arg, size }
#define IOV_IN(n, arg) \
  ArgInfo { ArgKind::kIovIn, #n, arg, 16 }
#define IOV_OUT(n, arg) \
  ArgInfo { ArgKind::kIovOut, #n, arg, 16 }
#define SOCKADDR_IN(n, arg) \
  ArgInfo { ArgKind::kSockaddrIn, #n, arg, 1 }
#define SOCKADDR_OUT(n, arg) \
  ArgInfo { ArgKind::kSockaddrOut, #n, arg, 1 }
#define MSG_IN(n) \
  ArgInfo { ArgKind::kMsgIn, #n }
#define MSG_OUT(n) \
  ArgInfo { ArgKind::kMsgOut, #n }
#define FUTEX(n) \
  ArgInfo { ArgKind::kFutex, #n }
#include "sentry/base/syscalls.def"
#undef SYSCALL
  };
}

const std::vector<SyscallInfo>& Table() {
  static const std::vector<SyscallInfo>* const table = MakeTable();
  return *table;
}

// Built when the program starts, before there are fibers.
[[maybe_unused]] const std::vector<SyscallInfo>& g_table = Table();

const std::vector<const SyscallInfo*>& ByNumber() {
  static const std::vector<const SyscallInfo*>* const index = [] {
    auto* v = new std::vector<const SyscallInfo*>;
    for (const SyscallInfo& info : Table()) {
      if (v->size() <= static_cast<size_t>(info.number)) v->resize(info.number + 1);
      (*v)[info.number] = &info;
    }
    return v;
  }();
  return *index;
}

}  // namespace

base::Result<uint64_t> kNone(Task&, const SyscallArgs&) { return base::Error(ENOSYS); }

int SyscallTableSize() { return static_cast<int>(ByNumber().size()); }

const SyscallInfo* FindSyscall(int number) {
  static const std::vector<const SyscallInfo*>& index = ByNumber();
  if (number < 0 || static_cast<size_t>(number) >= index.size()) return nullptr;
  return index[number];
}

std::span<const SyscallInfo> AllSyscalls() { return Table(); }

}  // namespace sentry
