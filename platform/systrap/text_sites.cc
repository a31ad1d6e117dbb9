#include "platform/systrap/text_sites.h"

#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

#include "platform/systrap/decode.h"

namespace platform {
namespace {

constexpr uint32_t kMovBytes = 5, kWideMovBytes = 7;
constexpr uint32_t kJumpBytes = 7;
constexpr size_t kStreams = 15;  // an instruction has at most so many bytes
constexpr size_t kNear = 128;    // reach of a jump of eight bits
constexpr size_t kLeadIn = 2 * kNear;
constexpr size_t kMinLeadIn = 64;

}  // namespace

std::optional<SiteShape> ClassifySite(std::span<const unsigned char> around) {
  if (around.size() < kBeforeSite + kAfterSite) return std::nullopt;
  const unsigned char* code = around.data() + kBeforeSite;
  if (code[-2] != 0x0f || code[-1] != 0x05) return std::nullopt;
  // No REX prefix before the mov, which would make it one to another register.
  if (code[-7] == 0xb8 && code[-4] == 0 && code[-3] == 0 && (code[-8] & 0xf0) != 0x40) {
    uint32_t nr;
    memcpy(&nr, code - 6, sizeof(nr));
    return SiteShape{kSiteMov, kSyscallBytes + kMovBytes, kMovBytes, nr};
  }
  if (code[-9] == 0x48 && code[-8] == 0xc7 && code[-7] == 0xc0 && code[-4] == 0 && code[-3] == 0) {
    uint32_t nr;
    memcpy(&nr, code - 6, sizeof(nr));
    return SiteShape{kSiteMov, kSyscallBytes + kWideMovBytes, kWideMovBytes, nr};
  }
  if (code[0] == 0x48 && code[1] == 0x3d && (code[2] == 0x00 || code[2] == 0x01) &&
      code[3] == 0xf0 && code[4] == 0xff && code[5] == 0xff) {
    return SiteShape{code[2] == 0x01 ? kSiteCompare4095 : kSiteCompare4096, kSyscallBytes,
                     kJumpBytes, 0};
  }
  return std::nullopt;
}

// ff 24 25 <address of the table's entry>, whose last two bytes are 0f 05.
uint64_t JumpBytes(const SiteShape& shape, uint32_t index) {
  uint64_t entry = kJumpTable + index * sizeof(uint64_t);
  uint64_t bytes = 0x2524ff | entry << 24;
  if (shape.form == kSiteMov && shape.count == kWideMovBytes) bytes = bytes << 16 | 0x482e;
  return bytes & ((1ull << (8 * shape.count)) - 1);
}

bool IsRestorer(const SiteShape& shape) {
  return shape.form == kSiteMov && shape.nr == SYS_rt_sigreturn;
}

// Instructions begin at `start`, in every stream; no near jump leads to between `start` and
// start + replaced, except to start + open.
bool SiteFinder::IsClean(size_t start, size_t replaced, size_t open) const {
  if (start < kMinLeadIn) return false;
  auto leads_in = [&](size_t at, const Instruction& i) {
    if (!i.branches) return false;
    int64_t target = static_cast<int64_t>(at + i.length) + i.distance;
    int64_t offset = target - static_cast<int64_t>(start);
    return offset > 0 && offset < static_cast<int64_t>(replaced) &&
           offset != static_cast<int64_t>(open);
  };
  size_t begin = start > kLeadIn ? start - kLeadIn : 0;
  bool reached = false;
  for (size_t s = 0; s < kStreams; s++) {
    size_t at = begin + s;
    bool bad = false;
    while (at < start) {
      auto i = Decode(text_.subspan(at));
      if (!i) break;
      bad |= leads_in(at, *i);
      at += i->length;
    }
    if (at < start) continue;  // no instructions
    if (at != start || bad) return false;
    reached = true;
  }
  if (!reached) return false;
  for (size_t at = start; at < std::min(text_.size(), start + replaced + kNear);) {
    auto i = Decode(text_.subspan(at));
    if (!i) break;
    if (leads_in(at, *i)) return false;
    at += i->length;
  }
  return true;
}

// For each of `starts` (ascending): whether something that may be a jump or call with a distance of
// 32 bits leads to one of the `bytes` bytes behind it.
std::vector<bool> SiteFinder::FarJumpsInto(std::span<const size_t> starts, size_t bytes) const {
  std::vector<bool> found(starts.size());
  if (starts.empty()) return found;
  const unsigned char* p = text_.data();
  for (size_t i = 0; i + 6 <= text_.size(); i++) {
    size_t at;
    if (p[i] == 0xe8 || p[i] == 0xe9) {
      at = i + 1;
    } else if ((p[i] == 0x0f && (p[i + 1] & 0xf0) == 0x80) || (p[i] == 0xc7 && p[i + 1] == 0xf8)) {
      at = i + 2;
    } else {
      continue;
    }
    int32_t distance;
    memcpy(&distance, p + at, sizeof(distance));
    size_t target = at + sizeof(distance) + static_cast<size_t>(static_cast<int64_t>(distance));
    auto next = std::lower_bound(starts.begin(), starts.end(), target);
    if (next == starts.begin()) continue;
    size_t index = static_cast<size_t>(next - starts.begin()) - 1;
    if (target - starts[index] < bytes) found[index] = true;
  }
  return found;
}

std::vector<std::optional<SiteShape>> SiteFinder::Find(std::span<const size_t> ends) const {
  std::vector<std::optional<SiteShape>> shapes(ends.size());
  std::vector<size_t> starts, which;
  for (size_t i = 0; i < ends.size(); i++) {
    size_t end = ends[i];
    if (end < kBeforeSite || end + kAfterSite > text_.size()) continue;
    std::optional<SiteShape> shape =
        ClassifySite(text_.subspan(end - kBeforeSite, kBeforeSite + kAfterSite));
    if (!shape) continue;
    // The form with the mov keeps its syscall instruction as it is, to jump to.
    size_t start = end - shape->back;
    bool mov = shape->form == kSiteMov;
    size_t replaced = mov ? shape->back : kSyscallBytes + kCompareBytes;
    if (!IsClean(start, replaced, mov ? shape->count : 0)) continue;
    shapes[i] = shape;
    if (!mov) which.push_back(i);
  }
  std::sort(which.begin(), which.end(), [&](size_t a, size_t b) { return ends[a] < ends[b]; });
  for (size_t i : which) starts.push_back(ends[i] - kSyscallBytes);
  std::vector<bool> jumps = FarJumpsInto(starts, kSyscallBytes + kCompareBytes);
  for (size_t i = 0; i < which.size(); i++) {
    if (jumps[i]) shapes[which[i]].reset();
  }
  return shapes;
}

}  // namespace platform
