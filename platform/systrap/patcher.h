// Which system call sites of one address space are patched (mailbox.h tells how).
//
// A site is patched after it has trapped a few times, if it stands in private file text that nobody
// can write, and its bytes are one of the known forms. Text that becomes writable gets its bytes
// back first; text that is replaced takes its sites with it. Text that is mapped anew may come with
// the sites patched that have trapped in other processes (shared_text.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "platform/platform.h"
#include "platform/systrap/shared_text.h"

namespace platform {

class StubProcess;

// An order of the platform's own, with the file that a kMmap maps.
struct InternalOrder {
  OrderEntry entry;
  base::Ref<base::HostFd> file;
};

// Thread-safe.
class Patcher {
 public:
  Patcher(StubProcess* process, TextCache* texts, bool enabled)
      : process_(process), texts_(texts), enabled_(enabled) {}

  // A call came by SIGSYS from the instruction before `rip`. True if the site is worth patching
  // now. `counted`: it stands for many that were answered in the stub, and the site is worth it as
  // soon as it may be patched.
  bool NoteTrap(uint64_t rip, bool counted = false);
  // The order that patches it, or nothing. `single_thread`: no other thread can be inside.
  std::optional<OrderEntry> MakePatch(uint64_t rip, bool single_thread);

  // To be called for every order before it is carried out. Returns the orders that must come
  // first.
  std::vector<InternalOrder> NoteOrder(const Order& order);
  // What is mapped at `addr` in place of the file that an order noted before has named: a copy with
  // patched sites, and the offset in it. Null: the file itself.
  base::Ref<base::HostFd> Substitute(uint64_t addr, uint64_t* offset);

  // A thread is to continue at regs->rip: if that is the comparison that a patched site has
  // swallowed, does its work and moves rip behind it. True if regs have changed.
  bool FixReturn(Regs* regs);

  // No site is patched from now on, and no text comes with patched ones. Nothing is mapped so far.
  void Disable();

  // A fork has happened: the child has the parent's text.
  void CopyFrom(Patcher& parent);

  // All text is about to be unmapped.
  void Reset();

  // The jump table's range, unless something else stands there by now.
  bool ReservesTable() { return enabled(); }
  // Sites are patched here.
  bool enabled();

 private:
  struct Range {
    uint64_t begin, end;
    uint64_t offset;             // of `begin` in the file
    base::Ref<SharedText> text;  // null: not shared
    base::Ref<TextCopy> copy;    // mapped in the file's place
    Range Part(uint64_t from, uint64_t to) const {
      return {from, to, offset + (from - begin), text, copy};
    }
  };
  struct Patched {
    uint32_t index;
    SiteForm form;
    uint64_t start;  // first changed byte
    uint64_t old_bytes, new_bytes;
    uint32_t count;
    uint32_t attempts;
    bool shared;  // it came with a copy of the text
  };

  using Orders = std::vector<InternalOrder>;

  const Range* TextAt(uint64_t begin, uint64_t end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RemoveText(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `own`: those that were patched here alone.
  void DropSites(uint64_t begin, uint64_t end, bool own = false) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Orders UnpatchOwn(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Gives all text its own bytes back for good.
  Orders LeaveText() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Gives [begin, end) its own bytes back.
  Orders Restore(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Orders Replace(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddText(const order::Mmap& map) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddSharedSites(const Range& range) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetSite(uint32_t index, const Site& site) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `there`: what is known of the site from other processes. `alone`: no other thread can be
  // inside.
  std::optional<Patched> Recognise(uint64_t rip, std::span<const unsigned char> around,
                                   const std::optional<SiteShape>& there, bool alone)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  StubProcess* const process_;
  TextCache* const texts_;
  absl::Mutex mu_;
  bool enabled_ ABSL_GUARDED_BY(mu_);
  std::vector<Range> text_ ABSL_GUARDED_BY(mu_);
  // By rip, in order: each change of memory looks for what lies in its way.
  absl::btree_map<uint64_t, uint32_t> hits_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<uint64_t, Patched> sites_ ABSL_GUARDED_BY(mu_);
  // All that ever stood in the mailbox's table: a thread of a child that is being forked may still
  // need one that has been dropped here.
  absl::flat_hash_map<uint32_t, Site> table_ ABSL_GUARDED_BY(mu_);
  uint32_t next_mov_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t next_compare_ ABSL_GUARDED_BY(mu_) = kFirstCompareSite;
  uint32_t compares_ ABSL_GUARDED_BY(mu_) = 0;  // patched sites of that form
};

}  // namespace platform
