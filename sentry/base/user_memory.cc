#include "sentry/base/user_memory.h"

#include <algorithm>
#include <cstring>

namespace base {

namespace {
// Read in pieces that end at page boundaries, so that a string that ends just before an
// inaccessible page is readable, and mostly in one piece: paths are short.
constexpr size_t kFirstChunk = 256;
constexpr size_t kPage = 4096;
}  // namespace

Result<std::string> UserMemory::ReadString(uint64_t addr, size_t max) {
  std::string out;
  char buf[kPage];
  size_t chunk = kFirstChunk;
  while (out.size() < max) {
    if (addr + out.size() < addr) return Error(EFAULT);
    const uint64_t at = addr + out.size();
    const size_t want = std::min({chunk, kPage - at % kPage, max - out.size()});
    const size_t got = TRY(ReadSome(at, std::as_writable_bytes(std::span(buf, want))));
    if (const void* nul = memchr(buf, 0, got)) {
      out.append(buf, static_cast<const char*>(nul) - buf);
      return out;
    }
    if (got == 0) return Error(EFAULT);
    out.append(buf, got);
    chunk = kPage;
  }
  return Error(ENAMETOOLONG);
}

}  // namespace base
