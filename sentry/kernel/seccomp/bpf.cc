#include "sentry/kernel/seccomp/bpf.h"

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "sentry/base/classic_bpf.h"

namespace sentry {
namespace {

using base::Error;

// Of the instructions that exist, what seccomp lets a program do (Linux: seccomp_check_filter).
bool Allowed(const sock_filter& f) {
  switch (BPF_CLASS(f.code)) {
    case BPF_LD:
    case BPF_LDX:
      switch (BPF_MODE(f.code)) {
        case BPF_ABS:
          return BPF_SIZE(f.code) == BPF_W && f.k < sizeof(seccomp_data) &&
                 f.k % sizeof(uint32_t) == 0;
        case BPF_IND:
        case BPF_MSH:
          return false;
        default:
          return true;
      }
    case BPF_ALU:
      return BPF_OP(f.code) != BPF_MOD;
    default:
      return true;
  }
}

}  // namespace

base::Result<BpfProgram> BpfProgram::Check(std::vector<sock_filter> code) {
  TRY(base::CheckClassicBpf(code));
  for (const sock_filter& f : code) {
    if (!Allowed(f)) return Error(EINVAL);
  }
  return BpfProgram(std::move(code));
}

uint32_t BpfProgram::Run(const seccomp_data& data) const {
  uint32_t words[sizeof(data) / sizeof(uint32_t)];
  memcpy(words, &data, sizeof(data));
  static_assert(SECCOMP_RET_KILL_THREAD == 0);  // what a division by zero returns
  return base::RunClassicBpf(code_, [&](const sock_filter& f, uint32_t, uint32_t) {
    return std::optional<uint32_t>(BPF_MODE(f.code) == BPF_LEN ? sizeof(data)
                                                               : words[f.k / sizeof(uint32_t)]);
  });
}

std::optional<uint32_t> BpfProgram::RunConstant(int nr, uint32_t arch) const {
  // As Linux's seccomp_is_const_allow: only what the usual programs do before they decide.
  uint32_t a = 0;
  for (size_t pc = 0; pc < code_.size(); ++pc) {
    const sock_filter& f = code_[pc];
    switch (f.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        if (f.k == offsetof(seccomp_data, nr)) {
          a = static_cast<uint32_t>(nr);
        } else if (f.k == offsetof(seccomp_data, arch)) {
          a = arch;
        } else {
          return std::nullopt;
        }
        break;
      case BPF_RET | BPF_K:
        return f.k;
      case BPF_JMP | BPF_JA:
        pc += f.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
      case BPF_JMP | BPF_JGE | BPF_K:
      case BPF_JMP | BPF_JGT | BPF_K:
      case BPF_JMP | BPF_JSET | BPF_K:
        pc += base::ClassicBpfCompare(BPF_OP(f.code), a, f.k) ? f.jt : f.jf;
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        a &= f.k;
        break;
      default:
        return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace sentry
