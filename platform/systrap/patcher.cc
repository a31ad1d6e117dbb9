#include "platform/systrap/patcher.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <variant>

#include "platform/systrap/stub_process.h"

namespace platform {
namespace {

constexpr size_t kMaxCountedSites = 8192;
constexpr uint32_t kMaxAttempts = 3;

constexpr uint64_t kCarry = 1, kParity = 4, kAux = 0x10, kZero = 0x40, kSign = 0x80,
                   kOverflow = 0x800;

// The flags after `cmp $imm,%rax`.
uint64_t CompareFlags(uint64_t flags, uint64_t a, uint64_t b) {
  uint64_t r = a - b;
  flags &= ~(kCarry | kParity | kAux | kZero | kSign | kOverflow);
  if (a < b) flags |= kCarry;
  if (!__builtin_parity(static_cast<unsigned>(r & 0xff))) flags |= kParity;
  if ((a ^ b ^ r) & 0x10) flags |= kAux;
  if (r == 0) flags |= kZero;
  if (r >> 63) flags |= kSign;
  if (((a ^ b) & (a ^ r)) >> 63) flags |= kOverflow;
  return flags;
}

}  // namespace

const Patcher::Range* Patcher::TextAt(uint64_t begin, uint64_t end) const {
  for (const Range& r : text_) {
    if (r.begin <= begin && end <= r.end) return &r;
  }
  return nullptr;
}

bool Patcher::NoteTrap(uint64_t rip, bool counted) {
  absl::MutexLock lock(&mu_);
  if (!enabled_) return false;
  if (hits_.size() >= kMaxCountedSites && !hits_.contains(rip)) return false;
  uint64_t hits = ++hits_[rip];
  if (hits == 1 || counted) {
    const Range* range = TextAt(rip - kBeforeSite, rip + kAfterSite);
    const bool shared = range && range->text;
    const uint64_t end = shared ? range->offset + (rip - range->begin) : 0;
    if (shared && hits == 1) range->text->NoteTrap(end);
    if (counted) return shared && range->text->SiteAt(end).has_value();
  }
  // Again and again, each time later: what was refused once may be known to be right since.
  return hits >= kHitsBeforePatch && (hits & (hits - 1)) == 0;
}

std::optional<Patcher::Patched> Patcher::Recognise(uint64_t rip,
                                                   std::span<const unsigned char> around,
                                                   const std::optional<SiteShape>& there,
                                                   bool alone) {
  std::optional<SiteShape> shape = ClassifySite(around);
  // Where a mov is patched already, a comparison may be left.
  if (!shape || (there && there->form != shape->form)) return std::nullopt;
  const bool known = there.has_value();
  if (IsRestorer(*shape) && !known) return std::nullopt;
  Patched p{};
  p.form = shape->form;
  p.start = rip - shape->back;
  p.count = shape->count;
  memcpy(&p.old_bytes, around.data() + kBeforeSite - shape->back, shape->count);
  if (p.form == kSiteMov) {
    if (next_mov_ == kFirstSharedSite) return std::nullopt;
    p.index = next_mov_++;
  } else {
    if (!known || !alone || next_compare_ == kFirstSharedCompareSite) return std::nullopt;
    p.index = next_compare_++;
    compares_++;
  }
  SetSite(p.index, Site{rip, shape->nr, p.form});
  p.new_bytes = JumpBytes(*shape, p.index);
  return p;
}

std::optional<OrderEntry> Patcher::MakePatch(uint64_t rip, bool single_thread) {
  absl::MutexLock lock(&mu_);
  const Range* range = TextAt(rip - kBeforeSite, rip + kAfterSite);
  if (!enabled_ || !range) return std::nullopt;
  auto found = sites_.find(rip);
  if (found == sites_.end()) {
    unsigned char around[kBeforeSite + kAfterSite];
    base::Result<size_t> n =
        process_->ReadMemory(rip - kBeforeSite, std::as_writable_bytes(std::span(around)));
    if (!n.ok() || *n < sizeof(around)) return std::nullopt;
    std::optional<SiteShape> there;
    if (range->text) there = range->text->SiteAt(range->offset + (rip - range->begin));
    std::optional<Patched> p = Recognise(rip, around, there, single_thread);
    if (!p) return std::nullopt;
    found = sites_.emplace(rip, *p).first;
  }
  Patched& p = found->second;
  if (p.shared || p.attempts++ == kMaxAttempts) return std::nullopt;
  OrderEntry e{};
  e.op = OrderOp::kPatch;
  e.fd = -1;
  e.a = p.start;
  e.b = p.new_bytes;
  e.c = p.count;
  e.d = p.old_bytes;
  return e;
}

void Patcher::DropSites(uint64_t begin, uint64_t end, bool own) {
  hits_.erase(hits_.lower_bound(begin), hits_.lower_bound(end));
  for (auto at = sites_.lower_bound(begin); at != sites_.end() && at->second.start < end;) {
    const Patched& p = at->second;
    if (p.start + p.count <= begin || (own && p.shared)) {
      ++at;
      continue;
    }
    if (p.form != kSiteMov) compares_--;
    at = sites_.erase(at);
  }
}

void Patcher::RemoveText(uint64_t begin, uint64_t end) {
  std::vector<Range> left;
  for (const Range& r : text_) {
    if (r.end <= begin || r.begin >= end) {
      left.push_back(r);
      continue;
    }
    if (r.begin < begin) left.push_back(r.Part(r.begin, begin));
    if (r.end > end) left.push_back(r.Part(end, r.end));
  }
  text_ = std::move(left);
}

std::vector<InternalOrder> Patcher::UnpatchOwn(uint64_t begin, uint64_t end) {
  Orders orders;
  for (auto at = sites_.lower_bound(begin); at != sites_.end(); ++at) {
    const Patched& p = at->second;
    if (p.start >= end) break;
    if (p.shared || p.start + p.count <= begin) continue;
    OrderEntry e{};
    e.op = OrderOp::kPatch;
    e.fd = -1;
    e.a = p.start;
    e.b = p.old_bytes;
    e.c = p.count;
    e.d = p.new_bytes;
    orders.push_back({e, nullptr});
  }
  return orders;
}

std::vector<InternalOrder> Patcher::Restore(uint64_t begin, uint64_t end) {
  Orders orders = UnpatchOwn(begin, end);
  for (const Range& r : text_) {
    if (!r.copy || r.end <= begin || r.begin >= end) continue;
    Range part = r.Part(std::max(r.begin, begin), std::min(r.end, end));
    OrderEntry e{};
    e.op = OrderOp::kMmap;
    e.a = part.begin;
    e.b = part.end - part.begin;
    e.c = PROT_READ | PROT_EXEC;
    e.d = MAP_FIXED | MAP_PRIVATE;
    e.e = part.offset;
    orders.push_back({e, r.text->file()});
  }
  return orders;
}

// Something else comes to stand at [begin, end).
std::vector<InternalOrder> Patcher::Replace(uint64_t begin, uint64_t end) {
  RemoveText(begin, end);
  DropSites(begin, end);
  // Or does the guest want the place of the jump table?
  return begin < kJumpTable + kJumpTableSize && end > kJumpTable ? LeaveText() : Orders();
}

std::vector<InternalOrder> Patcher::LeaveText() {
  if (!enabled_) return {};
  Orders orders = Restore(0, UINT64_MAX);
  DropSites(0, UINT64_MAX);
  text_.clear();
  enabled_ = false;
  return orders;
}

void Patcher::Disable() {
  absl::MutexLock lock(&mu_);
  enabled_ = false;
}

// Registers the calls of a copy that is about to be mapped.
void Patcher::AddSharedSites(const Range& range) {
  for (const TextSite& site : range.copy->sites) {
    if (site.end < range.offset || site.end > range.offset + (range.end - range.begin)) continue;
    uint64_t rip = range.begin + (site.end - range.offset);
    SetSite(site.index, Site{rip, site.shape.nr, site.shape.form});
    if (site.shape.form == kSiteMov) continue;
    Patched p{};
    p.index = site.index;
    p.form = site.shape.form;
    p.start = rip - site.shape.back;
    p.count = site.shape.count;
    p.shared = true;
    if (sites_.emplace(rip, p).second) compares_++;
  }
}

void Patcher::AddText(const order::Mmap& map) {
  Range range{map.addr, map.addr + map.length, map.offset, nullptr, nullptr};
  if (enabled_ && map.file) {
    range.text = texts_->Find(map.identity, map.file, map.offset, map.offset + map.length);
  }
  if (range.text) {
    // A site's number stands for one address in a process, so text that is mapped a second time,
    // elsewhere, is mapped as it is.
    bool elsewhere = std::any_of(text_.begin(), text_.end(), [&](const Range& r) {
      return r.text == range.text && r.begin - r.offset != range.begin - range.offset;
    });
    if (!elsewhere) range.copy = range.text->copy();
    if (range.copy) AddSharedSites(range);
  }
  text_.push_back(std::move(range));
}

base::Ref<base::HostFd> Patcher::Substitute(uint64_t addr, uint64_t* offset) {
  absl::MutexLock lock(&mu_);
  for (const Range& r : text_) {
    if (r.begin != addr || !r.copy) continue;
    *offset = r.offset - r.text->begin();
    return r.copy->file;
  }
  return nullptr;
}

std::vector<InternalOrder> Patcher::NoteOrder(const Order& order) {
  absl::MutexLock lock(&mu_);
  if (const auto* o = std::get_if<order::Mmap>(&order)) {
    Orders first = Replace(o->addr, o->addr + o->length);
    // Those come in a round of their own, before this order is noted again.
    if (!first.empty()) return first;
    if (o->has_identity && !o->shared && o->prot == (PROT_READ | PROT_EXEC)) AddText(*o);
    return first;
  }
  if (std::holds_alternative<order::LeaveText>(order)) return LeaveText();
  if (const auto* o = std::get_if<order::Munmap>(&order)) {
    return Replace(o->addr, o->addr + o->length);
  }
  if (const auto* o = std::get_if<order::Mremap>(&order)) {
    Orders first = Restore(o->old_addr, o->old_addr + o->old_length);
    Orders second = Replace(o->new_addr, o->new_addr + o->new_length);
    first.insert(first.end(), second.begin(), second.end());
    RemoveText(o->old_addr, o->old_addr + o->old_length);
    DropSites(o->old_addr, o->old_addr + o->old_length);
    return first;
  }
  if (const auto* o = std::get_if<order::Mprotect>(&order)) {
    uint64_t end = o->addr + o->length;
    if (o->prot == (PROT_READ | PROT_EXEC)) return {};
    Orders first = Restore(o->addr, end);
    RemoveText(o->addr, end);
    DropSites(o->addr, end);
    return first;
  }
  if (const auto* o = std::get_if<order::Madvise>(&order)) {
    // Private pages are thrown away, and with them the changes made here.
    if (o->advice == MADV_DONTNEED || o->advice == MADV_FREE) {
      Orders first = UnpatchOwn(o->addr, o->addr + o->length);
      DropSites(o->addr, o->addr + o->length, /*own=*/true);
      return first;
    }
  }
  return {};
}

bool Patcher::FixReturn(Regs* regs) {
  absl::MutexLock lock(&mu_);
  if (compares_ == 0) return false;
  auto found = sites_.find(regs->rip);
  if (found == sites_.end() || found->second.form == kSiteMov) return false;
  int64_t bound = found->second.form == kSiteCompare4095 ? -4095 : -4096;
  regs->eflags = CompareFlags(regs->eflags, regs->rax, static_cast<uint64_t>(bound));
  regs->rip += kCompareBytes;
  return true;
}

void Patcher::CopyFrom(Patcher& parent) {
  absl::MutexLock parent_lock(&parent.mu_);
  absl::MutexLock lock(&mu_);
  enabled_ = parent.enabled_;
  text_ = parent.text_;
  hits_ = parent.hits_;
  sites_ = parent.sites_;
  next_mov_ = parent.next_mov_;
  next_compare_ = parent.next_compare_;
  compares_ = parent.compares_;
  table_ = parent.table_;
  for (const auto& [index, site] : table_) process_->header()->sites[index] = site;
}

void Patcher::SetSite(uint32_t index, const Site& site) {
  table_[index] = site;
  process_->header()->sites[index] = site;
}

void Patcher::Reset() {
  absl::MutexLock lock(&mu_);
  text_.clear();
  hits_.clear();
  sites_.clear();
  table_.clear();
  next_mov_ = 0;
  next_compare_ = kFirstCompareSite;
  compares_ = 0;
}

bool Patcher::enabled() {
  absl::MutexLock lock(&mu_);
  return enabled_;
}

}  // namespace platform
