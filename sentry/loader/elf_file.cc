#include "sentry/loader/elf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "sentry/vfs/file_description.h"
#include "sentry/vfs/inode.h"

namespace sentry::loader {

namespace {
constexpr uint64_t kPage = 4096;
constexpr size_t kMaxProgramHeaders = 65536;  // bytes
}  // namespace

base::Result<size_t> ReadSome(FileDescription& file, uint64_t offset, std::span<std::byte> buffer) {
  size_t done = 0;
  if (offset > kMaxFileSize || buffer.size() > kMaxFileSize - offset) return base::Error(EINVAL);
  while (done < buffer.size()) {
    BufferDest dest(buffer.subspan(done));
    const size_t n = TRY(file.PRead(dest, offset + done, /*nonblock=*/false));
    if (n == 0) break;
    done += std::min(n, buffer.size() - done);
  }
  return done;
}

base::Result<ElfHeaders> ReadElf(const HeadReader& file, const Elf64_Ehdr& header, int bad) {
  if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return base::Error(bad);
  if (header.e_type != ET_EXEC && header.e_type != ET_DYN) return base::Error(bad);
  if (header.e_machine != EM_X86_64) return base::Error(bad);
  if (header.e_phentsize != sizeof(Elf64_Phdr)) return base::Error(bad);
  const size_t bytes = sizeof(Elf64_Phdr) * header.e_phnum;
  if (bytes == 0 || bytes > kMaxProgramHeaders) return base::Error(bad);
  ElfHeaders elf{.header = header, .segments = {}};
  elf.segments.resize(header.e_phnum);
  if (!file.ReadAll(header.e_phoff, std::as_writable_bytes(std::span(elf.segments))).ok()) {
    return base::Error(bad);
  }
  return elf;
}

base::Result<uint64_t> TotalSize(const ElfHeaders& elf) {
  uint64_t low = UINT64_MAX, high = 0;
  for (const Elf64_Phdr& segment : elf.segments) {
    if (segment.p_type != PT_LOAD) continue;
    if (segment.p_vaddr + segment.p_memsz < segment.p_vaddr) return base::Error(EINVAL);
    low = std::min(low, segment.p_vaddr & ~(kPage - 1));
    high = std::max(high, segment.p_vaddr + segment.p_memsz);
  }
  return low == UINT64_MAX ? 0 : high - std::min(low, high);
}

uint64_t MaxAlignment(const ElfHeaders& elf) {
  uint64_t alignment = kPage;
  for (const Elf64_Phdr& segment : elf.segments) {
    if (segment.p_type == PT_LOAD && std::has_single_bit(segment.p_align)) {
      alignment = std::max(alignment, segment.p_align);
    }
  }
  return alignment;
}

}  // namespace sentry::loader
