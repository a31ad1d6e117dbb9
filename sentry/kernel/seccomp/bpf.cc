#include "sentry/kernel/seccomp/bpf.h"

#include <cstddef>
#include <cstring>

namespace sentry {
namespace {

using base::Error;

// What seccomp lets a program do (Linux: seccomp_check_filter).
bool CodeAllowed(uint16_t code) {
  switch (code) {
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_W | BPF_LEN:
    case BPF_RET | BPF_K:
    case BPF_RET | BPF_A:
    case BPF_ALU | BPF_ADD | BPF_K:
    case BPF_ALU | BPF_ADD | BPF_X:
    case BPF_ALU | BPF_SUB | BPF_K:
    case BPF_ALU | BPF_SUB | BPF_X:
    case BPF_ALU | BPF_MUL | BPF_K:
    case BPF_ALU | BPF_MUL | BPF_X:
    case BPF_ALU | BPF_DIV | BPF_K:
    case BPF_ALU | BPF_DIV | BPF_X:
    case BPF_ALU | BPF_AND | BPF_K:
    case BPF_ALU | BPF_AND | BPF_X:
    case BPF_ALU | BPF_OR | BPF_K:
    case BPF_ALU | BPF_OR | BPF_X:
    case BPF_ALU | BPF_XOR | BPF_K:
    case BPF_ALU | BPF_XOR | BPF_X:
    case BPF_ALU | BPF_LSH | BPF_K:
    case BPF_ALU | BPF_LSH | BPF_X:
    case BPF_ALU | BPF_RSH | BPF_K:
    case BPF_ALU | BPF_RSH | BPF_X:
    case BPF_ALU | BPF_NEG:
    case BPF_LD | BPF_IMM:
    case BPF_LDX | BPF_IMM:
    case BPF_MISC | BPF_TAX:
    case BPF_MISC | BPF_TXA:
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
    case BPF_JMP | BPF_JA:
    case BPF_JMP | BPF_JEQ | BPF_K:
    case BPF_JMP | BPF_JEQ | BPF_X:
    case BPF_JMP | BPF_JGE | BPF_K:
    case BPF_JMP | BPF_JGE | BPF_X:
    case BPF_JMP | BPF_JGT | BPF_K:
    case BPF_JMP | BPF_JGT | BPF_X:
    case BPF_JMP | BPF_JSET | BPF_K:
    case BPF_JMP | BPF_JSET | BPF_X:
      return true;
  }
  return false;
}

bool OperandsAllowed(const sock_filter& f, size_t at, size_t size) {
  const size_t left = size - at - 1;  // instructions behind this one
  switch (f.code) {
    case BPF_LD | BPF_W | BPF_ABS:
      return f.k < sizeof(seccomp_data) && f.k % sizeof(uint32_t) == 0;
    case BPF_ALU | BPF_DIV | BPF_K:
      return f.k != 0;
    case BPF_ALU | BPF_LSH | BPF_K:
    case BPF_ALU | BPF_RSH | BPF_K:
      return f.k < 32;
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
      return f.k < BPF_MEMWORDS;
    case BPF_JMP | BPF_JA:
      return f.k < left;
    default:
      if (BPF_CLASS(f.code) == BPF_JMP) return f.jt < left && f.jf < left;
      return true;
  }
}

// Scratch memory is read only where it was written before, on every way (Linux:
// check_load_and_stores). Jumps go forward, so one pass is enough.
bool ReadsOnlyWhatWasStored(std::span<const sock_filter> code) {
  std::vector<uint16_t> known(code.size(), 0xffff);
  uint16_t now = 0;
  for (size_t i = 0; i < code.size(); ++i) {
    now &= known[i];
    const sock_filter& f = code[i];
    switch (f.code) {
      case BPF_ST:
      case BPF_STX:
        now |= static_cast<uint16_t>(1u << f.k);
        break;
      case BPF_LD | BPF_MEM:
      case BPF_LDX | BPF_MEM:
        if (!(now & (1u << f.k))) return false;
        break;
      case BPF_JMP | BPF_JA:
        known[i + 1 + f.k] &= now;
        now = 0xffff;
        break;
      default:
        if (BPF_CLASS(f.code) == BPF_JMP) {
          known[i + 1 + f.jt] &= now;
          known[i + 1 + f.jf] &= now;
          now = 0xffff;
        }
    }
  }
  return true;
}

uint32_t Alu(uint16_t op, uint32_t a, uint32_t b) {
  switch (op) {
    case BPF_ADD:
      return a + b;
    case BPF_SUB:
      return a - b;
    case BPF_MUL:
      return a * b;
    case BPF_DIV:
      return a / b;
    case BPF_AND:
      return a & b;
    case BPF_OR:
      return a | b;
    case BPF_XOR:
      return a ^ b;
    case BPF_LSH:
      return a << (b & 31);
    case BPF_RSH:
      return a >> (b & 31);
    default:
      return -a;  // BPF_NEG
  }
}

bool Compare(uint16_t op, uint32_t a, uint32_t b) {
  switch (op) {
    case BPF_JEQ:
      return a == b;
    case BPF_JGT:
      return a > b;
    case BPF_JGE:
      return a >= b;
    default:
      return (a & b) != 0;  // BPF_JSET
  }
}

}  // namespace

base::Result<BpfProgram> BpfProgram::Check(std::vector<sock_filter> code) {
  if (code.empty() || code.size() > BPF_MAXINSNS) return Error(EINVAL);
  for (size_t i = 0; i < code.size(); ++i) {
    if (!CodeAllowed(code[i].code) || !OperandsAllowed(code[i], i, code.size())) {
      return Error(EINVAL);
    }
  }
  if (BPF_CLASS(code.back().code) != BPF_RET) return Error(EINVAL);
  if (!ReadsOnlyWhatWasStored(code)) return Error(EINVAL);
  return BpfProgram(std::move(code));
}

uint32_t BpfProgram::Run(const seccomp_data& data) const {
  uint32_t words[sizeof(data) / sizeof(uint32_t)];
  memcpy(words, &data, sizeof(data));
  uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = {};
  for (size_t pc = 0;; ++pc) {
    const sock_filter& f = code_[pc];
    const uint32_t operand = BPF_SRC(f.code) == BPF_X ? x : f.k;
    switch (BPF_CLASS(f.code)) {
      case BPF_LD:
      case BPF_LDX: {
        uint32_t value = f.k;  // BPF_IMM
        if (BPF_MODE(f.code) == BPF_ABS) value = words[f.k / sizeof(uint32_t)];
        if (BPF_MODE(f.code) == BPF_LEN) value = sizeof(data);
        if (BPF_MODE(f.code) == BPF_MEM) value = memory[f.k];
        (BPF_CLASS(f.code) == BPF_LD ? a : x) = value;
        break;
      }
      case BPF_ST:
        memory[f.k] = a;
        break;
      case BPF_STX:
        memory[f.k] = x;
        break;
      case BPF_ALU:
        if (BPF_OP(f.code) == BPF_DIV && operand == 0) return SECCOMP_RET_KILL_THREAD;
        a = Alu(BPF_OP(f.code), a, operand);
        break;
      case BPF_JMP:
        if (BPF_OP(f.code) == BPF_JA) {
          pc += f.k;
        } else {
          pc += Compare(BPF_OP(f.code), a, operand) ? f.jt : f.jf;
        }
        break;
      case BPF_MISC:
        (BPF_MISCOP(f.code) == BPF_TAX ? x : a) = BPF_MISCOP(f.code) == BPF_TAX ? a : x;
        break;
      default:  // BPF_RET
        return BPF_RVAL(f.code) == BPF_A ? a : f.k;
    }
  }
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
        pc += Compare(BPF_OP(f.code), a, f.k) ? f.jt : f.jf;
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
