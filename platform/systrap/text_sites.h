// Which system call instructions of a text can be replaced by a jump (mailbox.h tells how).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "platform/mailbox.h"

namespace platform {

inline constexpr uint32_t kSyscallBytes = 2, kCompareBytes = 6;
inline constexpr size_t kBeforeSite = 9, kAfterSite = 6;  // bytes that ClassifySite looks at

// What stands around a system call instruction.
struct SiteShape {
  SiteForm form;
  uint32_t back;   // the first changed byte is so far before the end of the call
  uint32_t count;  // changed bytes
  uint32_t nr;     // kSiteMov
};

// By the bytes alone: `around` holds kBeforeSite bytes before the end of the call and kAfterSite
// behind it.
std::optional<SiteShape> ClassifySite(std::span<const unsigned char> around);

// What the changed bytes become: a jump through entry `index` of the table.
uint64_t JumpBytes(const SiteShape& shape, uint32_t index);

// The return from a signal's handler, as a C library has it behind its handlers (sa_restorer).
bool IsRestorer(const SiteShape& shape);

// A site of `text` for which it is shown that the changed bytes are whole instructions, and that no
// jump leads to where the second of them was. `end` is where the call ends.
//
// Shown how: of the 15 bytes that begin so far before the site, one begins an instruction. Where
// all streams decoded from them agree, the true one is among them. What is data, or not known to
// the decoder, makes streams that end before the site or disagree: then there is no answer. Jumps
// of eight bits come from near and are found in the streams; those of 32 bits are looked for at
// every byte of the text. Jumps through memory to the middle of a call and its comparison would
// need a label there; compilers put none, since the comparison is the call's own.
class SiteFinder {
 public:
  explicit SiteFinder(std::span<const unsigned char> text) : text_(text) {}
  // The shapes at `ends`, in order.
  std::vector<std::optional<SiteShape>> Find(std::span<const size_t> ends) const;

 private:
  bool IsClean(size_t start, size_t replaced, size_t open) const;
  std::vector<bool> FarJumpsInto(std::span<const size_t> starts, size_t bytes) const;

  const std::span<const unsigned char> text_;
};

}  // namespace platform
