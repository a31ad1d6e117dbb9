// Headers of an ELF file, read and checked.
#pragma once

#include <elf.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/loader/file_head.h"
#include "sentry/loader/loader.h"

namespace sentry::loader {

struct ElfHeaders {
  Elf64_Ehdr header;
  std::vector<Elf64_Phdr> segments;
};

struct ExecImage::Elf {
  ElfHeaders program;
  ElfHeaders interpreter;  // if there is one
  bool exec_stack = false;
};

// Bytes of `file` at `offset`, as many as there are up to the size of `buffer`.
base::Result<size_t> ReadSome(FileDescription& file, uint64_t offset, std::span<std::byte> buffer);
// Checks an ELF header and reads the program headers. `bad` is the error of a malformed file:
// ENOEXEC for the program, ELIBBAD for its interpreter.
base::Result<ElfHeaders> ReadElf(const HeadReader& file, const Elf64_Ehdr& header, int bad);

// From the lowest page to the end of the highest segment (Linux: total_mapping_size); 0 without a
// loadable segment. EINVAL if a segment ends beyond the address space.
base::Result<uint64_t> TotalSize(const ElfHeaders& elf);
// Greatest alignment that a loadable segment asks for, at least a page.
uint64_t MaxAlignment(const ElfHeaders& elf);

}  // namespace sentry::loader
