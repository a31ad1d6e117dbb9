// The stack that a new program finds: strings, auxiliary vector, pointers, argc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "sentry/loader/loader.h"

namespace sentry::loader {

// What the auxiliary vector tells beyond what the image does.
struct AuxFacts {
  uint64_t headers = 0, header_count = 0, entry = 0, interpreter_base = 0, vdso = 0;
  ExecIdentity identity;
};

// Lays the stack out as Linux's copy_strings and create_elf_tables. The address of everything is
// known from the start, the auxiliary vector's values only at the end.
class InitialStack {
 public:
  // `top`: end of the stack's mapping. `align_random`: bytes left out below the strings.
  InitialStack(const ExecImage& image, uint64_t top, uint64_t align_random,
               const std::array<std::byte, 16>& at_random);

  // At most so many bytes come together, those left out aside.
  static size_t SizeFor(const ExecImage& image);

  uint64_t sp() const { return sp_; }
  // The bytes [gap_begin, gap_end) of those from sp() on are the ones left out: zero, as a stack is
  // anyway.
  size_t gap_begin() const { return gap_ - sp_; }
  size_t gap_end() const { return strings_ - sp_; }
  // The bytes from sp() up to the top.
  std::vector<std::byte> Finish(const AuxFacts& facts);
  // Stack, argument, environment and auxv fields; after Finish.
  const MmLayout& layout() const { return layout_; }

 private:
  void Put(uint64_t addr, const void* data, size_t size);
  void PutWord(uint64_t addr, uint64_t value) { Put(addr, &value, sizeof(value)); }

  const ExecImage& image_;
  uint64_t strings_ = 0, gap_ = 0, exec_fn_ = 0, platform_ = 0, random_ = 0, sp_ = 0;
  std::vector<std::byte> bytes_;
  MmLayout layout_;
};

}  // namespace sentry::loader
