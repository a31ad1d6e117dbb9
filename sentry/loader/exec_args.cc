// Arguments of an exec. Follows Linux's bprm_stack_limits and copy_strings.
#include <algorithm>
#include <array>

#include "sentry/loader/loader.h"

namespace sentry::loader {

namespace {

constexpr uint64_t kMaxStackLimit = (8 << 20) / 4 * 3;  // _STK_LIM / 4 * 3
constexpr uint64_t kMinLimit = 131072;                  // ARG_MAX
constexpr size_t kPointersAtOnce = 64;

// Pointers of a NULL-terminated array, at most `max`.
base::Result<std::vector<uint64_t>> CopyInPointers(base::UserMemory& memory, uint64_t addr,
                                                   uint64_t max) {
  std::vector<uint64_t> pointers;
  if (addr == 0) return pointers;
  std::array<uint64_t, kPointersAtOnce> chunk;
  for (;;) {
    const auto bytes = std::as_writable_bytes(std::span(chunk));
    const size_t got = TRY(memory.ReadSome(addr, bytes)) / sizeof(uint64_t);
    if (got == 0) return base::Error(EFAULT);
    for (size_t i = 0; i < got; ++i) {
      if (chunk[i] == 0) return pointers;
      if (pointers.size() >= max) return base::Error(E2BIG);
      pointers.push_back(chunk[i]);
    }
    addr += got * sizeof(uint64_t);
  }
}

}  // namespace

ExecArgs::ExecArgs(uint64_t stack_limit)
    : limit_(std::max(std::min(kMaxStackLimit, stack_limit / 4), kMinLimit)) {}

base::Status ExecArgs::CopyIn(base::UserMemory& memory, uint64_t argv_addr, uint64_t envp_addr) {
  uint64_t room = limit_ / sizeof(uint64_t);
  const std::vector<uint64_t> arg_pointers = TRY(CopyInPointers(memory, argv_addr, room));
  room -= std::min<uint64_t>(room, std::max<size_t>(arg_pointers.size(), 1));
  const std::vector<uint64_t> env_pointers = TRY(CopyInPointers(memory, envp_addr, room));
  uint64_t budget =
      limit_ - (std::max<size_t>(arg_pointers.size(), 1) + env_pointers.size()) * sizeof(uint64_t);
  for (auto [pointers, strings] : {std::pair(&env_pointers, &envp), {&arg_pointers, &argv}}) {
    strings->clear();
    strings->reserve(pointers->size());
    for (uint64_t pointer : *pointers) {
      auto string = memory.ReadString(pointer, kMaxArgStrlen);
      if (!string.ok()) {
        return string.error().code() == ENAMETOOLONG ? base::Error(E2BIG) : string.error();
      }
      if (string->size() + 1 > budget) return base::Error(E2BIG);
      budget -= string->size() + 1;
      strings->push_back(std::move(*string));
    }
  }
  return base::Ok();
}

base::Status ExecArgs::Set(std::vector<std::string> new_argv, std::vector<std::string> new_envp) {
  argv = std::move(new_argv);
  envp = std::move(new_envp);
  return Check("");
}

base::Status ExecArgs::Check(std::string_view filename) const {
  const uint64_t pointers = (std::max<size_t>(argv.size(), 1) + envp.size()) * sizeof(uint64_t);
  if (pointers >= limit_) return base::Error(E2BIG);
  uint64_t budget = limit_ - pointers;
  auto take = [&budget](std::string_view string) {
    const uint64_t bytes = string.size() + 1;
    if (bytes > kMaxArgStrlen || bytes > budget) return false;
    budget -= bytes;
    return true;
  };
  if (!take(filename)) return base::Error(E2BIG);
  for (const auto* strings : {&envp, &argv}) {
    for (const std::string& string : *strings) {
      if (!take(string)) return base::Error(E2BIG);
    }
  }
  return base::Ok();
}

}  // namespace sentry::loader
