// A context's rounds: the next orders that fit are encoded into the slot and sent with the answer.
#include <sched.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "platform/systrap/address_space.h"
#include "platform/systrap/context.h"
#include "platform/systrap/futex.h"
#include "platform/systrap/platform.h"

namespace platform {
namespace {

constexpr uint64_t kSoonUs = 200;
constexpr uint32_t kStreak = 3;

// Those that the stub's filter lets through.
bool AdviceAllowed(int advice) {
  switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED:
    case MADV_DONTNEED:
    case MADV_FREE:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
    case MADV_COLD:
    case MADV_PAGEOUT:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
      return true;
  }
  return false;
}

}  // namespace

// The head of an answer.
struct ThreadContext::AnswerHead {
  uint32_t flags, order_count = 0, fd_ticket = 0, fd_count = 0;
};

// The orders of one round.
struct ThreadContext::Batch {
  uint32_t count = 0;
  uint32_t out_used = 0;
  bool must_report = false;  // the platform itself needs to know the results
  bool closed = false;       // nothing may follow in this round
  int fds[kMaxOrderFds];
  uint32_t fd_count = 0;
  std::vector<base::Ref<base::HostFd>> held;  // of `fds`, until they are sent
  std::vector<OrderedCall> calls;             // which the orders take and the gate is asked about

  // Index of `fd` in the message; -1 if there is no room.
  int AddFd(int fd) {
    for (uint32_t i = 0; i < fd_count; i++) {
      if (fds[i] == fd) return static_cast<int>(i);
    }
    if (fd_count == kMaxOrderFds) return -1;
    fds[fd_count] = fd;
    return static_cast<int>(fd_count++);
  }
  int AddFile(base::Ref<base::HostFd> file) {
    int index = AddFd(file->get());
    held.push_back(std::move(file));
    return index;
  }
};

void ThreadContext::StartRound() {
  if (process_->dead() || exited_ || stillborn_) {
    trap_ = Trap{TrapKind::kGone};
    trap_.signo = process_->death_signal();
    return Post();
  }
  if (ChangeWindows()) return;
  if (orders_.empty() && internal_.empty() && !patch_wanted_ && mode_ == ResumeMode::kGuest) {
    return Answer({EntryFlags()});
  }
  Batch batch;
  batch.out_used = out_used_;
  batch_begin_ = batch_end_;
  AddInternal(&batch);
  entry_of_first_ = batch.count;
  while (batch_end_ < orders_.size() && !batch.closed && internal_.empty()) {
    base::Status status = Check(orders_[batch_end_]);
    if (!status.ok()) {
      refused_ = status.error().code();
      break;
    }
    if (!Encode(orders_[batch_end_], &batch)) break;
    batch_end_++;
  }
  if (refused_ != 0 && batch.count == 0) return FailOrder(batch_end_, refused_);
  bool last = batch_end_ == orders_.size() && refused_ == 0 && !batch.must_report;
  uint32_t flags = kAnswerOrdersOnly;
  if (last && mode_ == ResumeMode::kGuest) {
    if (patch_wanted_) AddPatch(&batch);
    flags = EntryFlags();
  }
  base::Result<uint32_t> ticket = Announce(&batch);
  // A stub that does not take what it is sent, or too many descriptors under way in the host.
  if (!ticket.ok()) {
    ForgetCalls();
    EndForks(false);
    return FailOrder(batch_begin_, ENOMEM);
  }
  Answer({flags, batch.count, *ticket, batch.fd_count});
}

// Tells the gate which calls the batch takes, and sends its descriptors. Returns its turn; 0
// without descriptors.
base::Result<uint32_t> ThreadContext::Announce(Batch* batch) {
  if (!batch->calls.empty()) {
    expects_calls_ = true;
    process_->platform().gate().Expect(tid_, process_->pid(), std::move(batch->calls));
  }
  if (batch->fd_count == 0) return uint32_t{0};
  if (process_->platform().strict()) return process_->TakeBatchTurn();
  return process_->SendBatchFds(std::span(batch->fds, batch->fd_count));
}

bool ThreadContext::ChangeWindows() {
  FileWindows& windows = process_->windows();
  Batch batch;
  auto add = [&](OrderOp op, uint64_t first, uint64_t count, const FileCopy* file) {
    OrderEntry e{};
    e.op = op;
    e.fd = -1;
    e.a = kFileWindowBase + first * kFileWindowSize;
    e.b = count * kFileWindowSize;
    if (!file) return AddEntry(&batch, e, nullptr);
    e.c = PROT_READ;
    e.d = MAP_PRIVATE | MAP_FIXED;
    e.e = file->offset - file->offset % kFileWindowSize;
    e.fd = batch.AddFile(file->source->file());
    AddEntry(&batch, e, file->source->file());
  };
  for (FileCopy& file : file_copies_) {
    if (std::exchange(file.map, false)) add(OrderOp::kMmap, file.window, 1, &file);
  }
  if (windows.WantsUnmap()) {
    changed_windows_ = windows.TakeUnmaps();
    for (size_t i = 0; i < changed_windows_.size();) {
      size_t n = 1;
      while (i + n < changed_windows_.size() && changed_windows_[i + n] == changed_windows_[i] + n)
        n++;
      // There is room for all of them, however they lie.
      static_assert(kMaxCopies + kFileWindows / 2 + 2 <= kMaxOrders);
      add(OrderOp::kMunmap, changed_windows_[i], n, nullptr);
      i += n;
    }
  }
  ChangeLanes(&batch);
  if (batch.count == 0) return false;
  base::Result<uint32_t> ticket = Announce(&batch);
  if (!ticket.ok()) {
    // The copies are made without windows, then: the stub will say that it cannot read them.
    ForgetCalls();
    EndWindowRound(/*good=*/false);
    return false;
  }
  changes_windows_ = true;
  SendAnswer({kAnswerOrdersOnly, batch.count, *ticket, batch.fd_count}, 0);
  return true;
}

void ThreadContext::ChangeLanes(Batch* batch) {
  changes_lanes_ =
      ChangeMap(batch, process_->lanes(), kLaneBase, kLaneArenaSize, PROT_READ | PROT_WRITE);
  changes_paths_ = ChangeMap(batch, process_->paths(), kPathBase, kPathTableSize, PROT_READ);
}

bool ThreadContext::ChangeMap(Batch* batch, LaneMap& map, uint64_t addr, uint64_t size, int prot) {
  if (!map.WantsChange()) return false;
  std::optional<LaneMap::Change> change = map.Take();
  if (!change) return false;
  OrderEntry e{};
  e.op = OrderOp::kMmap;
  e.a = addr;
  e.b = size;
  e.c = static_cast<uint64_t>(prot);
  e.fd = change->arena ? batch->AddFile(change->arena) : -1;
  e.d = MAP_FIXED | (change->arena ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  AddEntry(batch, e, change->arena);
  return true;
}

// Whether the changes could be made or not: a window that is not there is found out by who reads
// it.
void ThreadContext::EndWindowRound(bool good) {
  changes_windows_ = false;
  if (std::exchange(changes_lanes_, false)) process_->lanes().Made(good);
  if (std::exchange(changes_paths_, false)) process_->paths().Made(good);
  FileWindows& windows = process_->windows();
  for (uint32_t window : std::exchange(changed_windows_, {})) windows.Unpin(window);
  for (const FileCopy& file : file_copies_) windows.Mapped(file.window);
}

// What an answer says that leads into the guest; the registers go to the slot if they must.
uint32_t ThreadContext::EntryFlags() {
  uint32_t flags = 0;
  bool rax_only = OnlyRaxChanged();
  // A patched call that returns as it should does its comparison on the way.
  bool fixed = !(rax_only && direct_call_) && process_->patcher().FixReturn(&regs());
  if (fixed || !rax_only) {
    flags = kAnswerRegs;
    StoreRegs();
  }
  if (std::exchange(in_lane_, false)) {
    flags |= kAnswerLane;
    if (lane_traps_) flags |= kAnswerLaneTraps;
    if (lane_remaining_ns_ >= 0) {
      flags |= kAnswerRemaining;
      slot_->remaining_ns = lane_remaining_ns_;
    }
  }
  return flags;
}

void ThreadContext::Answer(const AnswerHead& head) {
  uint32_t copies = static_cast<uint32_t>(copy_out_.size());
  if (copies != 0) {
    memcpy(slot_->copy_out, copy_out_.data(), copies * sizeof(CopyEntry));
    if (!file_copies_.empty()) sent_copies_.swap(copy_out_);
    copy_out_.clear();
    out_used_ = 0;
  }
  copy_in_.clear();
  copy_in_loaded_ = true;
  SendAnswer(head, copies);
}

// Orders of the platform's own. If they do not all fit, the kernel's wait for the next round.
void ThreadContext::AddInternal(Batch* batch) {
  size_t n = 0;
  for (; n < internal_.size() && batch->count < kMaxOrders; n++) {
    OrderEntry entry = internal_[n].entry;
    if (internal_[n].file) {
      entry.fd = batch->AddFile(internal_[n].file);
      if (entry.fd < 0) break;
    }
    AddEntry(batch, entry, internal_[n].file);
  }
  if (n == 0) return;
  internal_.erase(internal_.begin(), internal_.begin() + static_cast<ptrdiff_t>(n));
  batch->must_report = !internal_.empty();
}

void ThreadContext::AddPatch(Batch* batch) {
  if (batch->count == kMaxOrders) return;
  patch_wanted_ = false;
  std::optional<OrderEntry> patch =
      process_->patcher().MakePatch(trapped_rip_, process_->thread_count() == 1);
  if (patch) AddEntry(batch, *patch, nullptr);
}

void ThreadContext::AddEntry(Batch* batch, const OrderEntry& entry, base::Ref<base::HostFd> file) {
  slot_->orders[batch->count++] = entry;
  AppendOrderedCalls(entry, index_, process_->platform().strict(), std::move(file), &batch->calls);
}

void ThreadContext::SendAnswer(const AnswerHead& answer, uint32_t copy_out_count) {
  const uint32_t seq = seq_;
  const uint64_t rax = regs_.rax;
  bool runs = !(answer.flags & kAnswerExit);
  uint32_t state = runs ? BeginRunning() : state_.load(std::memory_order_acquire);
  // Who interrupts after this sees that we run, and sets the flag itself.
  if (state & kInterrupted) __atomic_store_n(&slot_->interrupt, 1u, __ATOMIC_RELAXED);
  // The stub may be polling this line: all of it at once.
  slot_->answer_flags = answer.flags;
  slot_->answer_rax = rax;
  slot_->order_count = answer.order_count;
  slot_->copy_out_count = copy_out_count;
  slot_->fd_ticket = answer.fd_ticket;
  slot_->fd_count = answer.fd_count;
  // The fence comes after the word is on its way, so that the stub does not wait for it.
  __atomic_store_n(&slot_->answer_seq, seq, __ATOMIC_RELEASE);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (__atomic_load_n(&slot_->sleeping, __ATOMIC_RELAXED)) WakeStub();
  // Who has buried the process before we ran has not told us.
  if (runs && process_->dead()) process_->platform().NoteGone(this);
}

// The host wakes a thread where it slept, though we are there and another core is free, when the
// cores are as busy as spinning makes them (select_idle_cpu in kernel/sched/fair.c). After a
// streak of such wake-ups the thread is sent elsewhere, which takes long, but once.
void ThreadContext::WakeStub() {
  SystrapPlatform& platform = process_->platform();
  const int cpu = sched_getcpu();
  const bool here = __atomic_load_n(&slot_->cpu, __ATOMIC_RELAXED) == static_cast<uint32_t>(cpu);
  if (here) {
    const uint64_t now = __rdtsc();
    const bool soon =
        now - std::exchange(here_at_, now) < kSoonUs * platform.machine().ticks_per_us;
    here_streak_ = soon ? here_streak_ + 1 : 1;
  }
  const bool moved = here && here_streak_ >= kStreak && platform.HasFreeCore() &&
                     process_->AvoidCpu(host_tid(), cpu);
  if (here && !moved) {
    woken_here_.store(seq_, std::memory_order_relaxed);
    platform.NoteWokenHere();
  }
  FutexWakeShared(&slot_->answer_seq, 1);
  if (moved) process_->AvoidCpu(host_tid(), -1);
}

base::Status ThreadContext::Check(const Order& order) const {
  const Limits& limits = space_->limits();
  auto range = [&](uint64_t addr, uint64_t length) -> base::Status {
    bool ok = addr % kPageSize == 0 && length % kPageSize == 0 && length != 0 &&
              addr < limits.max_address && length <= limits.max_address - addr;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  };
  constexpr int kProtMask = PROT_READ | PROT_WRITE | PROT_EXEC;
  SystrapPlatform& platform = process_->platform();
  const bool no_fd = platform.strict() && index_ >= platform.ordered_fds();
  if (const auto* o = std::get_if<order::Mmap>(&order)) {
    if (o->file && no_fd) return base::Error(ENOMEM);
    if (o->prot & ~kProtMask || o->offset % kPageSize != 0) return base::Error(EINVAL);
    if (o->shared && !o->file) return base::Error(EINVAL);
    return range(o->addr, o->length);
  }
  if (const auto* o = std::get_if<order::Munmap>(&order)) return range(o->addr, o->length);
  if (std::holds_alternative<order::Fork>(order) && (no_fd || process_->forks_held())) {
    return base::Error(EAGAIN);
  }
  if (const auto* o = std::get_if<order::Mprotect>(&order)) {
    if (o->prot & ~kProtMask) return base::Error(EINVAL);
    return range(o->addr, o->length);
  }
  if (const auto* o = std::get_if<order::Madvise>(&order)) {
    if (!AdviceAllowed(o->advice)) return base::Error(EINVAL);
    return range(o->addr, o->length);
  }
  if (const auto* o = std::get_if<order::Mremap>(&order)) {
    TRY(range(o->old_addr, o->old_length));
    return range(o->new_addr, o->new_length);
  }
  if (const auto* o = std::get_if<order::SaveFpu>(&order)) {
    bool ok = o->addr % 64 == 0 && o->addr < limits.max_address;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  }
  if (const auto* o = std::get_if<order::RestoreFpu>(&order)) {
    bool ok = o->image.size() <= fpu_frame_size();
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  }
  if (const auto* o = std::get_if<order::CompareExchange>(&order)) {
    bool ok = o->addr % 4 == 0 && o->addr < limits.max_address;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  }
  if (const auto* o = std::get_if<order::Write>(&order)) {
    bool ok = o->bytes.size() <= 4096;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  }
  return {};
}

// Orders that need nothing but their own arguments. False if it is none.
bool ThreadContext::EncodePlain(const Order& order, OrderEntry* e) const {
  if (const auto* o = std::get_if<order::Munmap>(&order)) {
    e->op = OrderOp::kMunmap;
    e->a = o->addr;
    e->b = o->length;
  } else if (const auto* o = std::get_if<order::Mprotect>(&order)) {
    e->op = OrderOp::kMprotect;
    e->a = o->addr;
    e->b = o->length;
    e->c = static_cast<uint64_t>(o->prot);
  } else if (const auto* o = std::get_if<order::Madvise>(&order)) {
    e->op = OrderOp::kMadvise;
    e->a = o->addr;
    e->b = o->length;
    e->c = static_cast<uint64_t>(o->advice);
  } else if (const auto* o = std::get_if<order::Mremap>(&order)) {
    e->op = OrderOp::kMremap;
    e->a = o->old_addr;
    e->b = o->old_length;
    e->c = o->new_addr;
    e->d = o->new_length;
  } else if (const auto* o = std::get_if<order::FutexWake>(&order)) {
    e->op = OrderOp::kFutexWake;
    e->a = o->addr;
    e->b = o->count;
    e->c = o->is_private;
  } else if (const auto* o = std::get_if<order::CompareExchange>(&order)) {
    e->op = OrderOp::kCompareExchange;
    e->a = o->addr;
    e->b = o->expected;
    e->c = o->desired;
  } else if (const auto* o = std::get_if<order::Rseq>(&order)) {
    e->op = OrderOp::kRseq;
    e->a = o->addr;
    e->b = o->length;
    e->c = o->flags;
    e->d = o->signature;
  } else if (const auto* o = std::get_if<order::Membarrier>(&order)) {
    process_->NoteBarriers();
    e->op = OrderOp::kMembarrier;
    e->a = static_cast<uint64_t>(o->command);
    e->b = o->flags;
    e->c = static_cast<uint64_t>(o->cpu);
  } else {
    return false;
  }
  return true;
}

// An image that is the kernel's goes through the slot's out area. False if there is no room for it
// in this round.
bool ThreadContext::EncodeFpu(const Order& order, Batch* batch, OrderEntry* e) {
  const uint64_t area = SlotAddress(index_) + offsetof(Slot, out_area);
  const uint32_t size = static_cast<uint32_t>(fpu_frame_size());
  const auto* save = std::get_if<order::SaveFpu>(&order);
  const auto* restore = std::get_if<order::RestoreFpu>(&order);
  e->op = save ? OrderOp::kSaveFpu : OrderOp::kRestoreFpu;
  e->a = save ? save->addr : restore->addr;
  if (save ? save->addr != 0 : restore->image.empty()) return true;
  if (size > kCopyOutSize - batch->out_used) return false;
  e->a = area + batch->out_used;
  if (save) {
    saved_fpu_at_ = batch->out_used;
  } else {
    memcpy(slot_->out_area + batch->out_used, restore->image.data(), restore->image.size());
  }
  batch->out_used += size;
  return true;
}

// False if the order does not fit into this round any more.
bool ThreadContext::Encode(const Order& order, Batch* batch) {
  if (batch->count == kMaxOrders) return false;
  // Orders that must come first get a round before this one.
  internal_ = process_->patcher().NoteOrder(order);
  if (!internal_.empty()) {
    batch->must_report = true;
    return false;
  }
  OrderEntry e{};
  e.fd = -1;
  base::Ref<base::HostFd> file;
  if (std::holds_alternative<order::SaveFpu>(order) ||
      std::holds_alternative<order::RestoreFpu>(order)) {
    if (!EncodeFpu(order, batch, &e)) return false;
  } else if (std::holds_alternative<order::LeaveText>(order)) {
    e.op = OrderOp::kWrite;  // of nothing: what there was to do has been done
  } else if (EncodePlain(order, &e)) {
    // Nothing more to do.
  } else if (const auto* o = std::get_if<order::Mmap>(&order)) {
    e.op = OrderOp::kMmap;
    e.a = o->addr;
    e.b = o->length;
    e.c = static_cast<uint64_t>(o->prot);
    e.d = MAP_FIXED | (o->shared ? MAP_SHARED : MAP_PRIVATE) | (o->noreserve ? MAP_NORESERVE : 0);
    e.e = o->offset;
    if (o->file) {
      file = process_->patcher().Substitute(o->addr, &e.e);
      if (!file) file = o->file;
      e.fd = batch->AddFile(file);
      if (e.fd < 0) return false;
    } else {
      e.d |= MAP_ANONYMOUS;
    }
  } else if (const auto* o = std::get_if<order::Write>(&order)) {
    uint32_t size = static_cast<uint32_t>(o->bytes.size());
    if (size > kCopyOutSize - batch->out_used) return false;
    memcpy(slot_->out_area + batch->out_used, o->bytes.data(), size);
    e.op = OrderOp::kWrite;
    e.a = o->addr;
    e.b = size;
    e.c = batch->out_used;
    batch->out_used += size;
  } else if (const auto* o = std::get_if<order::CloneThread>(&order)) {
    const auto* thread = static_cast<ThreadContext*>(o->thread);
    const bool parked = thread == this || thread->parked_;
    e.op = parked ? OrderOp::kWakeThread : OrderOp::kCloneThread;
    e.a = thread == this ? wakes_ : thread->index_;
    batch->must_report |= !parked;
  } else if (const auto* o = std::get_if<order::Fork>(&order)) {
    // The child inherits the descriptors that are open at this moment and closes these two.
    if (batch->fd_count != 0) return false;
    auto* child = static_cast<SystrapAddressSpace*>(o->child);
    child->PrepareMain(index_);
    process_->BeginFork();
    if (process_->platform().strict()) {
      process_->platform().gate().ExpectBirth(process_->pid(), OrderedFd(index_));
    }
    file = child->process().mailbox_file();
    e.op = OrderOp::kFork;
    e.fd = batch->AddFd(child->process().mailbox_fd());
    batch->AddFd(child->process().stub_socket());
    batch->must_report = batch->closed = true;
  }
  AddEntry(batch, e, std::move(file));
  return true;
}

void ThreadContext::MoveTo(AddressSpace* space) {
  UnpinCopies();
  copy_out_.clear();
  out_used_ = 0;
  copy_in_.clear();
  copy_in_loaded_ = true;
  patch_wanted_ = false;
  // What the old program has read and written last is not for the new one to see.
  slot_->random_left = 0;
  memset(slot_->random, 0, sizeof(slot_->random));
  memset(slot_->in_area, 0, sizeof(slot_->in_area));
  memset(slot_->out_area, 0, sizeof(slot_->out_area));
  space_ = space;
}

// The orders with which the thread ends, as far as they fit.
uint32_t ThreadContext::EncodeLast() {
  Batch batch;
  for (const Order& order : orders_) {
    if (!Check(order).ok() || !Encode(order, &batch)) break;
  }
  return batch.count;
}

void ThreadContext::Exit() {
  if (exited_) return;
  static_cast<void>(FlushWrites());  // a fault here has nobody to be told
  exited_ = true;
  int tid = tid_.load(std::memory_order_acquire);
  bool parks = false;
  if (tid > 0 && !process_->dead()) {
    process_->RemoveThread(tid);
    seq_++;
    // The last one ends with the process, which nobody needs any more.
    if (process_->thread_count() != 0) {
      parks = tid != process_->pid() && process_->ReservePark();
      SendAnswer({kAnswerExit | (parks ? kAnswerPark : 0u), EncodeLast()}, 0);
    }
  }
  if (parks) {
    process_->Park({index_, tid});
  } else {
    process_->ReleaseSlot(index_, tid > 0);
  }
}

}  // namespace platform
