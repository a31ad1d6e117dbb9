// Classic BPF, as filters of sockets and of system calls are written in it (net/core/filter.c).
#pragma once

#include <linux/filter.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "sentry/base/result.h"

namespace base {

// EINVAL for what bpf_check_classic refuses. What passes has at most BPF_MAXINSNS instructions,
// goes forward alone, ends, and reads no scratch memory that it has not written.
Status CheckClassicBpf(std::span<const sock_filter> code);

// Whether a load at `k` asks for something other than bytes of the packet (SKF_AD_*).
bool IsAncillaryLoad(uint32_t k);

// What the jump `op` (BPF_JEQ and so on) compares.
bool ClassicBpfCompare(uint16_t op, uint32_t a, uint32_t b);

// BPF_ALU. None: a division by zero, which ends the program.
std::optional<uint32_t> ClassicBpfArithmetic(uint16_t op, uint32_t a, uint32_t b);

// What a checked program returns. `load(f, a, x)` is the value of the load `f` if that is not of an
// immediate or of scratch memory; none ends the program with 0, as a division by zero does.
template <typename Load>
uint32_t RunClassicBpf(std::span<const sock_filter> code, const Load& load) {
  uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = {};
  for (size_t pc = 0;; ++pc) {
    const sock_filter& f = code[pc];
    const uint32_t operand = BPF_SRC(f.code) == BPF_X ? x : f.k;
    switch (BPF_CLASS(f.code)) {
      case BPF_LD:
      case BPF_LDX: {
        std::optional<uint32_t> value = f.k;  // BPF_IMM
        if (BPF_MODE(f.code) == BPF_MEM) {
          value = memory[f.k];
        } else if (BPF_MODE(f.code) != BPF_IMM) {
          value = load(f, a, x);
        }
        if (!value) return 0;
        (BPF_CLASS(f.code) == BPF_LD ? a : x) = *value;
        break;
      }
      case BPF_ST:
        memory[f.k] = a;
        break;
      case BPF_STX:
        memory[f.k] = x;
        break;
      case BPF_ALU: {
        const std::optional<uint32_t> value = ClassicBpfArithmetic(BPF_OP(f.code), a, operand);
        if (!value) return 0;
        a = *value;
        break;
      }
      case BPF_JMP:
        if (BPF_OP(f.code) == BPF_JA) {
          pc += f.k;
        } else {
          pc += ClassicBpfCompare(BPF_OP(f.code), a, operand) ? f.jt : f.jf;
        }
        break;
      case BPF_RET:
        return BPF_RVAL(f.code) == BPF_A ? a : f.k;
      default:  // BPF_MISC
        (BPF_MISCOP(f.code) == BPF_TAX ? x : a) = BPF_MISCOP(f.code) == BPF_TAX ? a : x;
    }
  }
}

}  // namespace base
