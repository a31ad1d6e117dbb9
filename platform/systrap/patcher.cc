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

constexpr size_t kBefore = 8,
                 kAfter = 6;  // bytes looked at around the end of a syscall instruction
constexpr uint32_t kMovBytes = 5, kSyscallBytes = 2, kCompareBytes = 6;
constexpr uint32_t kMovChanged = 5, kCompareChanged = 7;

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

// ff 24 25 <address of the table's entry>; the last two bytes are 0f 05.
uint64_t JumpBytes(uint32_t index) {
  uint64_t entry = kJumpTable + index * sizeof(uint64_t);
  return 0x2524ff | entry << 24;
}

uint64_t LowBytes(uint64_t v, uint32_t n) { return v & ((1ull << (8 * n)) - 1); }

}  // namespace

bool Patcher::InText(uint64_t begin, uint64_t end) const {
  return std::any_of(text_.begin(), text_.end(),
                     [&](const Range& r) { return r.begin <= begin && end <= r.end; });
}

bool Patcher::NoteTrap(uint64_t rip) {
  absl::MutexLock lock(&mu_);
  if (!enabled_) return false;
  if (hits_.size() >= kMaxCountedSites && !hits_.contains(rip)) return false;
  return ++hits_[rip] == kHitsBeforePatch;
}

std::optional<Patcher::Patched> Patcher::Recognise(uint64_t rip,
                                                   std::span<const unsigned char> around,
                                                   bool single_thread) {
  const unsigned char* code = around.data() + kBefore;  // behind the syscall
  if (code[-2] != 0x0f || code[-1] != 0x05) return std::nullopt;
  Patched p{};
  uint64_t old = 0;
  if (code[-7] == 0xb8 && code[-4] == 0 && code[-3] == 0 && (code[-8] & 0xf0) != 0x40) {
    // No REX prefix before it, which would make it a mov to another register.
    if (next_mov_ == kFirstCompareSite) return std::nullopt;
    p.form = kSiteMov;
    p.index = next_mov_++;
    p.start = rip - kSyscallBytes - kMovBytes;
    p.count = kMovChanged;
    memcpy(&old, code - 7, kMovChanged);
    uint32_t nr;
    memcpy(&nr, code - 6, sizeof(nr));
    SetSite(p.index, Site{rip, nr, p.form});
  } else if (around.size() >= kBefore + kAfter && code[0] == 0x48 && code[1] == 0x3d &&
             (code[2] == 0x00 || code[2] == 0x01) && code[3] == 0xf0 && code[4] == 0xff &&
             code[5] == 0xff && single_thread) {
    if (next_compare_ == kMaxSites) return std::nullopt;
    p.form = code[2] == 0x01 ? kSiteCompare4095 : kSiteCompare4096;
    p.index = next_compare_++;
    p.start = rip - kSyscallBytes;
    p.count = kCompareChanged;
    memcpy(&old, code - 2, kCompareChanged);
    SetSite(p.index, Site{rip, 0, p.form});
    compares_++;
  } else {
    return std::nullopt;
  }
  p.old_bytes = old;
  p.new_bytes = LowBytes(JumpBytes(p.index), p.count);
  return p;
}

std::optional<OrderEntry> Patcher::MakePatch(uint64_t rip, bool single_thread) {
  absl::MutexLock lock(&mu_);
  if (!enabled_ || !InText(rip - kBefore, rip + kAfter)) return std::nullopt;
  auto found = sites_.find(rip);
  if (found == sites_.end()) {
    unsigned char around[kBefore + kAfter];
    base::Result<size_t> n =
        process_->ReadMemory(rip - kBefore, std::as_writable_bytes(std::span(around)));
    if (!n.ok() || *n < sizeof(around)) return std::nullopt;
    std::optional<Patched> p = Recognise(rip, around, single_thread);
    if (!p) return std::nullopt;
    found = sites_.emplace(rip, *p).first;
  }
  Patched& p = found->second;
  if (p.attempts++ == kMaxAttempts) return std::nullopt;
  OrderEntry e{};
  e.op = OrderOp::kPatch;
  e.fd = -1;
  e.a = p.start;
  e.b = p.new_bytes;
  e.c = p.count;
  e.d = p.old_bytes;
  return e;
}

void Patcher::DropSites(uint64_t begin, uint64_t end) {
  absl::erase_if(hits_, [&](const auto& h) { return h.first >= begin && h.first < end; });
  uint32_t compares_gone = 0;
  absl::erase_if(sites_, [&](const auto& s) {
    bool gone = s.second.start + s.second.count > begin && s.second.start < end;
    if (gone && s.second.form != kSiteMov) compares_gone++;
    return gone;
  });
  compares_ -= compares_gone;
}

void Patcher::RemoveText(uint64_t begin, uint64_t end) {
  std::vector<Range> left;
  for (const Range& r : text_) {
    if (r.end <= begin || r.begin >= end) {
      left.push_back(r);
      continue;
    }
    if (r.begin < begin) left.push_back({r.begin, begin});
    if (r.end > end) left.push_back({end, r.end});
  }
  text_ = std::move(left);
}

std::vector<OrderEntry> Patcher::Unpatch(uint64_t begin, uint64_t end) {
  std::vector<OrderEntry> orders;
  for (const auto& [rip, p] : sites_) {
    if (p.start + p.count <= begin || p.start >= end) continue;
    OrderEntry e{};
    e.op = OrderOp::kPatch;
    e.fd = -1;
    e.a = p.start;
    e.b = p.old_bytes;
    e.c = p.count;
    e.d = p.new_bytes;
    orders.push_back(e);
  }
  return orders;
}

// Something else comes to stand at [begin, end).
std::vector<OrderEntry> Patcher::Replace(uint64_t begin, uint64_t end) {
  RemoveText(begin, end);
  DropSites(begin, end);
  std::vector<OrderEntry> orders;
  if (enabled_ && begin < kJumpTable + kJumpTableSize && end > kJumpTable) {
    // The guest wants the place of the jump table.
    orders = Unpatch(0, UINT64_MAX);
    DropSites(0, UINT64_MAX);
    enabled_ = false;
  }
  return orders;
}

std::vector<OrderEntry> Patcher::NoteOrder(const Order& order) {
  absl::MutexLock lock(&mu_);
  if (const auto* o = std::get_if<order::Mmap>(&order)) {
    std::vector<OrderEntry> first = Replace(o->addr, o->addr + o->length);
    if (o->has_identity && !o->shared && o->prot == (PROT_READ | PROT_EXEC)) {
      text_.push_back({o->addr, o->addr + o->length});
    }
    return first;
  }
  if (const auto* o = std::get_if<order::Munmap>(&order)) {
    return Replace(o->addr, o->addr + o->length);
  }
  if (const auto* o = std::get_if<order::Mremap>(&order)) {
    std::vector<OrderEntry> first = Unpatch(o->old_addr, o->old_addr + o->old_length);
    std::vector<OrderEntry> second = Replace(o->new_addr, o->new_addr + o->new_length);
    first.insert(first.end(), second.begin(), second.end());
    RemoveText(o->old_addr, o->old_addr + o->old_length);
    DropSites(o->old_addr, o->old_addr + o->old_length);
    return first;
  }
  if (const auto* o = std::get_if<order::Mprotect>(&order)) {
    uint64_t end = o->addr + o->length;
    if (o->prot == (PROT_READ | PROT_EXEC)) return {};
    std::vector<OrderEntry> first = Unpatch(o->addr, end);
    RemoveText(o->addr, end);
    DropSites(o->addr, end);
    return first;
  }
  if (const auto* o = std::get_if<order::Madvise>(&order)) {
    // Private pages are thrown away, and with them the changes.
    if (o->advice == MADV_DONTNEED || o->advice == MADV_FREE) {
      std::vector<OrderEntry> first = Unpatch(o->addr, o->addr + o->length);
      DropSites(o->addr, o->addr + o->length);
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
  table_.emplace_back(index, site);
  process_->header()->sites[index] = site;
}

bool Patcher::ReservesTable() {
  absl::MutexLock lock(&mu_);
  return enabled_;
}

}  // namespace platform
