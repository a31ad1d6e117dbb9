// Lengths and branches of 64-bit x86 instructions, as far as compiled code near a system call needs
// them. What is not known is told to be unknown, never guessed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace platform {

struct Instruction {
  uint32_t length;
  bool branches = false;  // jmp, jcc, call or loop to an address relative to the next instruction
  int64_t distance = 0;   // from the next instruction
};

// The instruction at the beginning of `code`. Nothing if it is cut off, invalid or not known here.
// Source: Intel SDM volume 2, appendix A.
std::optional<Instruction> Decode(std::span<const unsigned char> code);

}  // namespace platform
