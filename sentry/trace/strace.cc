#include "sentry/trace/strace.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/syscall_info.h"
#include "sentry/kernel/task.h"
#include "sentry/trace/symbols.h"

namespace sentry::trace {

namespace {

constexpr size_t kMaxString = 64;  // bytes of a buffer that are shown
constexpr size_t kMaxPath = 256;
constexpr size_t kMaxElements = 8;  // of argv and iovecs

std::string Quote(std::string_view bytes, bool cut) {
  std::string out = "\"";
  for (unsigned char c : bytes) {
    switch (c) {
      case '"':
      case '\\':
        out += '\\';
        out += static_cast<char>(c);
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (c >= 0x20 && c < 0x7f) {
          out += static_cast<char>(c);
        } else {
          out += fmt::format("\\x{:02x}", c);
        }
    }
  }
  out += '"';
  if (cut) out += "...";
  return out;
}

std::string Bytes(Task& t, uint64_t addr, uint64_t length, size_t max) {
  if (addr == 0) return "NULL";
  size_t n = std::min<uint64_t>(length, max);
  std::string buffer(n, '\0');
  base::Result<size_t> got =
      t.memory().ReadPartial(addr, std::as_writable_bytes(std::span(buffer)));
  if (n > 0 && !got.ok()) return fmt::format("{:#x}", addr);
  if (n > 0) buffer.resize(*got);
  return Quote(buffer, length > buffer.size());
}

std::string String(Task& t, uint64_t addr) {
  if (addr == 0) return "NULL";
  base::Result<std::string> s = t.memory().ReadString(addr, kPathMax);
  if (!s.ok()) return fmt::format("{:#x}", addr);
  return Quote(std::string_view(*s).substr(0, kMaxPath), s->size() > kMaxPath);
}

std::string Argv(Task& t, uint64_t addr) {
  if (addr == 0) return "NULL";
  std::string out = "[";
  for (size_t i = 0;; ++i) {
    base::Result<uint64_t> p = base::UserPtr<uint64_t>(addr + 8 * i).CopyIn(t.memory());
    if (!p.ok() || *p == 0) break;
    if (i > 0) out += ", ";
    if (i == kMaxElements) {
      out += "...";
      break;
    }
    out += String(t, *p);
  }
  return out + "]";
}

std::string Fd(Task& t, int fd) {
  if (fd == AT_FDCWD) return "AT_FDCWD";
  base::Ref<FdTable> table = t.fd_table_ref();
  base::Ref<FileDescription> file = table ? table->Get(fd) : nullptr;
  if (!file) return fmt::format("{}", fd);
  // "pipe:[5]" and the like say what they are; what has a place is shown by its path.
  std::string name = file->Describe();
  base::Ref<FsContext> fs = t.fs_context_ref();
  if (name.find(':') == std::string::npos && file->path() && fs) {
    name = t.kernel().vfs().PathName(t.mount_namespace(), fs->root(), file->path());
  }
  return fmt::format("{}<{}>", fd, name);
}

std::string Iovec(Task& t, uint64_t addr, uint64_t count, uint64_t bytes) {
  if (addr == 0) return "NULL";
  std::string out = "[";
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out += ", ";
    if (i == kMaxElements) {
      out += "...";
      break;
    }
    struct Vec {
      uint64_t base, length;
    };
    base::Result<Vec> v = base::UserPtr<Vec>(addr + sizeof(Vec) * i).CopyIn(t.memory());
    if (!v.ok()) break;
    uint64_t shown = std::min(v->length, bytes);
    bytes -= shown;
    out += fmt::format("{{{}, {}}}", Bytes(t, v->base, shown, kMaxString), v->length);
  }
  return out + "]";
}

std::string Words(Task& t, uint64_t addr, size_t size) {
  if (addr == 0) return "NULL";
  if (size == 4) {
    base::Result<int32_t> v = base::UserPtr<int32_t>(addr).CopyIn(t.memory());
    return v.ok() ? fmt::format("[{}]", *v) : fmt::format("{:#x}", addr);
  }
  if (size == 8) {
    base::Result<std::array<int32_t, 2>> v =
        base::UserPtr<std::array<int32_t, 2>>(addr).CopyIn(t.memory());
    return v.ok() ? fmt::format("[{}, {}]", (*v)[0], (*v)[1]) : fmt::format("{:#x}", addr);
  }
  if (size == 16) {
    base::Result<std::array<int64_t, 2>> v =
        base::UserPtr<std::array<int64_t, 2>>(addr).CopyIn(t.memory());
    return v.ok() ? fmt::format("{{{}, {}}}", (*v)[0], (*v)[1]) : fmt::format("{:#x}", addr);
  }
  return fmt::format("{:#x}", addr);
}

}  // namespace

Call::Call(Task& t, int nr, const SyscallInfo* info, const SyscallArgs& args)
    : t_(t), nr_(nr), info_(info), args_(args), start_ns_(base::MonotonicNs()) {
  if (!info_) return;
  for (size_t i = 0; i < info_->arg_count; ++i) before_[i] = Argument(i, false, nullptr);
}

// Empty before the call for what the call fills in.
std::string Call::Argument(size_t i, bool after, const base::Result<uint64_t>* result) const {
  const ArgInfo& arg = info_->args[i];
  uint64_t v = args_[i];
  uint64_t count = arg.count_arg >= 0 ? args_[arg.count_arg] : 0;
  bool failed = after && !result->ok();
  switch (arg.kind) {
    case ArgKind::kFd:
    case ArgKind::kDirfd:
      return Fd(t_, static_cast<int>(v));
    case ArgKind::kPath:
    case ArgKind::kStr:
      return String(t_, v);
    case ArgKind::kArgv:
      return Argv(t_, v);
    case ArgKind::kFlags:
      return FlagNames(nr_, i, v);
    case ArgKind::kMode:
      return fmt::format("0{:o}", v);
    case ArgKind::kSig:
      if (const char* name = SignalName(static_cast<int>(v))) return name;
      return fmt::format("{}", static_cast<int>(v));
    case ArgKind::kVal:
      return ValueName(nr_, i, v);
    case ArgKind::kLen:
      return fmt::format("{}", v);
    case ArgKind::kId:
    case ArgKind::kPid:
      return fmt::format("{}", static_cast<int>(v));
    case ArgKind::kOff:
      return fmt::format("{}", static_cast<int64_t>(v));
    case ArgKind::kIn:
      return Words(t_, v, arg.size);
    case ArgKind::kInLen:
      return Bytes(t_, v, count, kMaxString);
    case ArgKind::kIovIn:
      return Iovec(t_, v, count, UINT64_MAX);
    case ArgKind::kOut:
    case ArgKind::kInout:
      if (!after) return "";
      return failed ? fmt::format("{:#x}", v) : Words(t_, v, arg.size);
    case ArgKind::kOutLen:
      if (!after) return "";
      return failed ? fmt::format("{:#x}", v) : Bytes(t_, v, **result, kMaxString);
    case ArgKind::kIovOut:
      if (!after) return "";
      return failed ? fmt::format("{:#x}", v) : Iovec(t_, v, count, **result);
    default:
      return v == 0 ? "NULL" : fmt::format("{:#x}", v);
  }
}

void Call::Finish(const base::Result<uint64_t>& result) {
  int64_t took = base::MonotonicNs() - start_ns_;
  std::string line = fmt::format("[{:4}:{:4}] {} {}(", t_.Pid_(), t_.Tid(), t_.comm(),
                                 info_ ? info_->name : fmt::format("syscall_{}", nr_));
  if (info_) {
    for (size_t i = 0; i < info_->arg_count; ++i) {
      if (i > 0) line += ", ";
      line += before_[i].empty() ? Argument(i, true, &result) : before_[i];
    }
  } else {
    for (size_t i = 0; i < 6; ++i) line += fmt::format("{}{:#x}", i > 0 ? ", " : "", args_[i]);
  }
  if (result.ok()) {
    int64_t value = static_cast<int64_t>(*result);
    line += value > 0xffffff ? fmt::format(") = {:#x}", value) : fmt::format(") = {}", value);
  } else {
    int code = result.error().code();
    const char* name = ErrnoName(code);
    line += code >= base::kERESTARTSYS
                ? fmt::format(") = ? {}", name ? name : "ERESTART")
                : fmt::format(") = -1 {}", name ? name : std::to_string(code));
  }
  line += fmt::format(" <{}.{:03} us>", took / 1000, took % 1000);
  base::LogLine(base::LogLevel::kInfo, line);
}

}  // namespace sentry::trace
