// Classic BPF for seccomp filters.
#pragma once

#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sentry/base/result.h"

namespace sentry {

// A program that seccomp accepts: it ends, stays within itself and its scratch memory, and reads
// nothing but aligned words of struct seccomp_data.
class BpfProgram {
 public:
  // EINVAL for what Linux's bpf_check_classic and seccomp_check_filter refuse.
  static base::Result<BpfProgram> Check(std::vector<sock_filter> code);

  size_t size() const { return code_.size(); }
  std::span<const sock_filter> code() const { return code_; }

  // The program's return value: SECCOMP_RET_*.
  uint32_t Run(const seccomp_data& data) const;
  // What it returns for call `nr` of architecture `arch`, if that depends on nothing else.
  std::optional<uint32_t> RunConstant(int nr, uint32_t arch) const;

 private:
  explicit BpfProgram(std::vector<sock_filter> code) : code_(std::move(code)) {}
  std::vector<sock_filter> code_;
};

}  // namespace sentry
