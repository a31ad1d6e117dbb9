// The beginning of files that are executed, kept from one exec to the next.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "sentry/base/result.h"
#include "sentry/vfs/file_description.h"

namespace sentry::loader {

// Reads a file that is open for execution, so that nobody in the sandbox writes it: from its first
// bytes as they were read before, while its attributes say that it has not changed since.
class HeadReader {
 public:
  explicit HeadReader(FileDescription& file);
  // As ReadSome of elf_file.h; ReadAll: EIO if the file ends before (Linux: elf_read).
  base::Result<size_t> ReadSome(uint64_t offset, std::span<std::byte> buffer) const;
  base::Status ReadAll(uint64_t offset, std::span<std::byte> buffer) const;

 private:
  FileDescription& file_;
  std::shared_ptr<const std::vector<std::byte>> head_;  // null: not kept
};

}  // namespace sentry::loader
