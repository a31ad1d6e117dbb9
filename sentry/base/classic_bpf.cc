#include "sentry/base/classic_bpf.h"

#include <cerrno>
#include <vector>

namespace base {
namespace {

// Instructions that exist (chk_code_allowed).
bool KnownCode(uint16_t code) {
  switch (code) {
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS:
    case BPF_LD | BPF_W | BPF_IND:
    case BPF_LD | BPF_H | BPF_IND:
    case BPF_LD | BPF_B | BPF_IND:
    case BPF_LD | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_W | BPF_LEN:
    case BPF_LDX | BPF_B | BPF_MSH:
    case BPF_LD | BPF_IMM:
    case BPF_LDX | BPF_IMM:
    case BPF_LD | BPF_MEM:
    case BPF_LDX | BPF_MEM:
    case BPF_ST:
    case BPF_STX:
    case BPF_MISC | BPF_TAX:
    case BPF_MISC | BPF_TXA:
    case BPF_RET | BPF_K:
    case BPF_RET | BPF_A:
    case BPF_ALU | BPF_NEG:
    case BPF_JMP | BPF_JA:
      return true;
    default:
      break;
  }
  const uint16_t source = BPF_SRC(code), op = BPF_OP(code);
  if ((code & ~(0xf8)) == BPF_ALU) {
    return op <= BPF_XOR && op != BPF_NEG && (source == BPF_K || source == BPF_X);
  }
  if ((code & ~(0xf8)) == BPF_JMP) return op >= BPF_JEQ && op <= BPF_JSET;
  return false;
}

// A word of scratch memory is read on no path before it is written (check_load_and_stores).
bool ScratchIsWritten(std::span<const sock_filter> code) {
  std::vector<uint16_t> masks(code.size(), 0xffff);
  uint16_t valid = 0;
  for (size_t pc = 0; pc < code.size(); ++pc) {
    const sock_filter& f = code[pc];
    valid &= masks[pc];
    switch (f.code) {
      case BPF_ST:
      case BPF_STX:
        valid |= static_cast<uint16_t>(1u << f.k);
        continue;
      case BPF_LD | BPF_MEM:
      case BPF_LDX | BPF_MEM:
        if ((valid & (1u << f.k)) == 0) return false;
        continue;
      default:
        break;
    }
    if (f.code == (BPF_JMP | BPF_JA)) {
      masks[pc + 1 + f.k] &= valid;
      valid = 0xffff;
    } else if (BPF_CLASS(f.code) == BPF_JMP) {
      masks[pc + 1 + f.jt] &= valid;
      masks[pc + 1 + f.jf] &= valid;
      valid = 0xffff;
    }
  }
  return true;
}

bool CheckOne(const sock_filter& f, size_t pc, size_t size) {
  if (!KnownCode(f.code)) return false;
  const size_t left = size - pc - 1;
  switch (f.code) {
    case BPF_ALU | BPF_DIV | BPF_K:
    case BPF_ALU | BPF_MOD | BPF_K:
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
    case BPF_LD | BPF_W | BPF_ABS:
    case BPF_LD | BPF_H | BPF_ABS:
    case BPF_LD | BPF_B | BPF_ABS:
      return f.k < static_cast<uint32_t>(SKF_AD_OFF) || IsAncillaryLoad(f.k);
    default:
      return BPF_CLASS(f.code) != BPF_JMP || (f.jt < left && f.jf < left);
  }
}

}  // namespace

bool IsAncillaryLoad(uint32_t k) { return k - static_cast<uint32_t>(SKF_AD_OFF) < SKF_AD_MAX; }

Status CheckClassicBpf(std::span<const sock_filter> code) {
  if (code.empty() || code.size() > BPF_MAXINSNS) return Error(EINVAL);
  for (size_t pc = 0; pc < code.size(); ++pc) {
    if (!CheckOne(code[pc], pc, code.size())) return Error(EINVAL);
  }
  const uint16_t last = code.back().code;
  if (last != (BPF_RET | BPF_K) && last != (BPF_RET | BPF_A)) return Error(EINVAL);
  if (!ScratchIsWritten(code)) return Error(EINVAL);
  return Ok();
}

bool ClassicBpfCompare(uint16_t op, uint32_t a, uint32_t b) {
  switch (op) {
    case BPF_JEQ:
      return a == b;
    case BPF_JGT:
      return a > b;
    case BPF_JGE:
      return a >= b;
    default:  // BPF_JSET
      return (a & b) != 0;
  }
}

std::optional<uint32_t> ClassicBpfArithmetic(uint16_t op, uint32_t a, uint32_t b) {
  switch (op) {
    case BPF_ADD:
      return a + b;
    case BPF_SUB:
      return a - b;
    case BPF_MUL:
      return a * b;
    case BPF_DIV:
      if (b == 0) return std::nullopt;
      return a / b;
    case BPF_MOD:
      if (b == 0) return std::nullopt;
      return a % b;
    case BPF_OR:
      return a | b;
    case BPF_AND:
      return a & b;
    case BPF_XOR:
      return a ^ b;
    case BPF_LSH:
      return a << (b & 31);
    case BPF_RSH:
      return a >> (b & 31);
    default:  // BPF_NEG
      return -a;
  }
}

}  // namespace base
