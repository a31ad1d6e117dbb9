// Which system call sites of one address space are patched (mailbox.h tells how).
//
// A site is patched after it has trapped a few times, if it stands in private file text that nobody
// can write, and its bytes are one of the known forms. Text that becomes writable gets its bytes
// back first; text that is replaced takes its sites with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "platform/platform.h"

namespace platform {

class StubProcess;

// Thread-safe.
class Patcher {
 public:
  Patcher(StubProcess* process, bool enabled) : process_(process), enabled_(enabled) {}

  // A call came by SIGSYS from the instruction before `rip`. True if the site is worth patching
  // now.
  bool NoteTrap(uint64_t rip);
  // The order that patches it, or nothing. `single_thread`: no other thread can be inside.
  std::optional<OrderEntry> MakePatch(uint64_t rip, bool single_thread);

  // To be called for every order before it is carried out. Returns the orders that must come
  // first.
  std::vector<OrderEntry> NoteOrder(const Order& order);

  // A thread is to continue at regs->rip: if that is the comparison that a patched site has
  // swallowed, does its work and moves rip behind it. True if regs have changed.
  bool FixReturn(Regs* regs);

  // A fork has happened: the child has the parent's text.
  void CopyFrom(Patcher& parent);

  // The jump table's range, unless something else stands there by now.
  bool ReservesTable();

 private:
  struct Range {
    uint64_t begin, end;
  };
  struct Patched {
    uint32_t index;
    SiteForm form;
    uint64_t start;  // first changed byte
    uint64_t old_bytes, new_bytes;
    uint32_t count;
    uint32_t attempts;
  };

  bool InText(uint64_t begin, uint64_t end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RemoveText(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropSites(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<OrderEntry> Unpatch(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<OrderEntry> Replace(uint64_t begin, uint64_t end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetSite(uint32_t index, const Site& site) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Patched> Recognise(uint64_t rip, std::span<const unsigned char> around,
                                   bool single_thread) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  StubProcess* const process_;
  absl::Mutex mu_;
  bool enabled_ ABSL_GUARDED_BY(mu_);
  std::vector<Range> text_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, uint32_t> hits_ ABSL_GUARDED_BY(mu_);  // by rip
  absl::flat_hash_map<uint64_t, Patched> sites_ ABSL_GUARDED_BY(mu_);  // by rip
  // All that ever stood in the mailbox's table: a thread of a child that is being forked may still
  // need one that has been dropped here.
  std::vector<std::pair<uint32_t, Site>> table_ ABSL_GUARDED_BY(mu_);
  uint32_t next_mov_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t next_compare_ ABSL_GUARDED_BY(mu_) = kFirstCompareSite;
  uint32_t compares_ ABSL_GUARDED_BY(mu_) = 0;  // patched sites of that form
};

}  // namespace platform
