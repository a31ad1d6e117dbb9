#include "sentry/syscalls/docs.h"

#include <fmt/core.h>

#include <vector>

#include "sentry/base/log.h"
#include "sentry/syscalls/syscall.h"

namespace sentry {

namespace {

const char* Word(Support support) {
  switch (support) {
    case Support::kFull:
      return "yes";
    case Support::kPartial:
      return "partly";
    case Support::kConfiguredOut:
      return "configured out";
    case Support::kNone:
      return "no";
  }
  return "";
}

std::string Quoted(std::string_view s) {
  std::string out = "\"";
  base::AppendJsonEscaped(&out, s);
  return out + "\"";
}

}  // namespace

std::string SyscallsMarkdown() {
  int counts[4] = {};
  for (const SyscallInfo& info : AllSyscalls()) ++counts[static_cast<int>(info.support)];
  std::string out = fmt::format(
      "# System calls\n\n"
      "Every call of amd64, from `sentry/base/syscalls.def`; made by `syscall_docs`. A call that "
      "is "
      "not supported\nreturns ENOSYS, is counted, and is named once in the log. \"Configured "
      "out\": "
      "as a Linux that is built\nwithout the feature. {} yes, {} partly, {} configured out, {} "
      "no.\n\n"
      "| number | call | supported | remark |\n| ---: | --- | --- | --- |\n",
      counts[static_cast<int>(Support::kFull)], counts[static_cast<int>(Support::kPartial)],
      counts[static_cast<int>(Support::kConfiguredOut)], counts[static_cast<int>(Support::kNone)]);
  for (const SyscallInfo& info : AllSyscalls()) {
    out += fmt::format("| {} | {} | {} | {} |\n", info.number, info.name, Word(info.support),
                       info.note);
  }
  return out;
}

std::string SyscallsJson() {
  auto names = [](Support support) {
    std::string out = "[";
    for (const SyscallInfo& info : AllSyscalls()) {
      if (info.support != support) continue;
      if (out.size() > 1) out += ',';
      out += Quoted(info.name);
    }
    return out + "]";
  };
  std::string partial = "{";
  for (const SyscallInfo& info : AllSyscalls()) {
    if (info.support != Support::kPartial) continue;
    if (partial.size() > 1) partial += ',';
    partial += Quoted(info.name) + ":" + Quoted(info.note);
  }
  partial += "}";
  return fmt::format("{{\"supported\":{},\"partial\":{},\"configuredOut\":{},\"unsupported\":{}}}",
                     names(Support::kFull), partial, names(Support::kConfiguredOut),
                     names(Support::kNone));
}

}  // namespace sentry
