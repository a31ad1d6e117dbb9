#include "platform/systrap/context.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "platform/systrap/address_space.h"
#include "platform/systrap/platform.h"

namespace platform {
namespace {

// What user code may set of the flags (arch/x86/kernel/signal_64.c: FIX_EFLAGS), and what is always
// set: IF and bit 1.
constexpr uint64_t kUserFlags = 0x50dd5;
constexpr uint64_t kFixedFlags = 0x202;
constexpr uint64_t kUserSpaceEnd = 1ull << 47;
constexpr uint64_t kNoOrigRax = ~0ull;

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

uint64_t CanonicalBase(uint64_t base) { return base < kUserSpaceEnd ? base : 0; }

}  // namespace

// The head of an answer.
struct ThreadContext::Answer {
  uint32_t flags, order_count = 0, copy_out_count = 0, fd_ticket = 0, fd_count = 0;
};

// The orders of one round.
struct ThreadContext::Batch {
  uint32_t count = 0;
  uint32_t out_used = 0;
  bool must_report = false;  // the platform itself needs to know the results
  bool closed = false;       // nothing may follow in this round
  int fds[kMaxOrderFds];
  uint32_t fd_count = 0;

  // Index of `fd` in the message; -1 if there is no room.
  int AddFd(int fd) {
    for (uint32_t i = 0; i < fd_count; i++) {
      if (fds[i] == fd) return static_cast<int>(i);
    }
    if (fd_count == kMaxOrderFds) return -1;
    fds[fd_count] = fd;
    return static_cast<int>(fd_count++);
  }
};

ThreadContext::ThreadContext(base::Ref<StubProcess> process, AddressSpace* space, uint32_t index)
    : process_(std::move(process)), space_(space), index_(index), slot_(process_->slot(index)) {}

ThreadContext::~ThreadContext() {
  if (!exited_ && !running()) Exit();
  process_->platform().RemoveContext(this);
  Stop();
}

void ThreadContext::Start(int tid) {
  tid_.store(tid, std::memory_order_release);
}

size_t ThreadContext::fpu_frame_size() const {
  return process_->platform().machine().xsave_size + sizeof(uint32_t);
}

bool ThreadContext::WaitsInFutex() const {
  return running() && __atomic_load_n(&slot_->in_futex, __ATOMIC_RELAXED) != 0;
}

void ThreadContext::Publish(const Identity& identity) {
  slot_->pid = identity.pid;
  slot_->tid = identity.tid;
  slot_->ppid = identity.ppid;
  slot_->uid = identity.uid;
  slot_->euid = identity.euid;
  slot_->gid = identity.gid;
  slot_->egid = identity.egid;
  __atomic_store_n(&slot_->has_identity, 1u, __ATOMIC_RELEASE);
}

// ---- Resuming -----------------------------------------------------------------------------------

void ThreadContext::Resume(ResumeMode mode) {
  mode_ = mode;
  results_.clear();
  batch_begin_ = batch_end_ = 0;
  refused_ = 0;
  trap_ = Trap{};
  counted_ = true;
  process_->running.fetch_add(1);
  seq_++;
  // An interrupt that came while the context was stopped stays set.
  state_.fetch_or(kRunning, std::memory_order_acq_rel);
  process_->platform().NoteResume(this);
  StartRound();
}

void ThreadContext::StartRound() {
  if (process_->dead() || exited_) {
    trap_ = Trap{TrapKind::kGone};
    return Post();
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
  uint32_t flags = 0;
  bool last = batch_end_ == orders_.size() && refused_ == 0 && !batch.must_report;
  if (!last || mode_ == ResumeMode::kOrdersOnly) {
    flags = kAnswerOrdersOnly;
  } else {
    if (patch_wanted_) AddPatch(&batch);
    bool rax_only = OnlyRaxChanged();
    // A patched call that returns as it should does its comparison on the way.
    bool fixed = !(rax_only && direct_call_) && process_->patcher().FixReturn(&regs_);
    if (fixed || !rax_only) {
      flags = kAnswerRegs;
      StoreRegs();
    }
  }
  uint32_t ticket = 0;
  if (batch.fd_count != 0) {
    base::Result<uint32_t> sent = process_->SendBatchFds(std::span(batch.fds, batch.fd_count));
    if (!sent.ok()) {
      return FailOrder(batch_begin_, sent.error().code() == EAGAIN ? ENOMEM : sent.error().code());
    }
    ticket = *sent;
  }
  Answer answer{flags, batch.count, static_cast<uint32_t>(copy_out_.size()), ticket,
                batch.fd_count};
  if (!copy_out_.empty()) {
    memcpy(slot_->copy_out, copy_out_.data(), copy_out_.size() * sizeof(CopyEntry));
    copy_out_.clear();
    out_used_ = 0;
  }
  copy_in_.clear();
  copy_in_loaded_ = true;
  SendAnswer(answer);
}

// Orders of the platform's own. If they do not all fit, the kernel's wait for the next round.
void ThreadContext::AddInternal(Batch* batch) {
  size_t n = std::min<size_t>(internal_.size(), kMaxOrders);
  if (n == 0) return;
  memcpy(slot_->orders, internal_.data(), n * sizeof(OrderEntry));
  internal_.erase(internal_.begin(), internal_.begin() + static_cast<ptrdiff_t>(n));
  batch->count = static_cast<uint32_t>(n);
  batch->must_report = !internal_.empty();
}

void ThreadContext::AddPatch(Batch* batch) {
  if (batch->count == kMaxOrders) return;
  patch_wanted_ = false;
  std::optional<OrderEntry> patch =
      process_->patcher().MakePatch(trapped_rip_, process_->thread_count() == 1);
  if (patch) slot_->orders[batch->count++] = *patch;
}

void ThreadContext::SendAnswer(const Answer& answer) {
  // Who interrupts after this sees that we run, and sets the flag itself.
  if (state_.load(std::memory_order_acquire) & kInterrupted) {
    __atomic_store_n(&slot_->interrupt, 1u, __ATOMIC_RELAXED);
  }
  // The stub may be polling this line: all of it at once.
  slot_->answer_flags = answer.flags;
  slot_->answer_rax = regs_.rax;
  slot_->order_count = answer.order_count;
  slot_->copy_out_count = answer.copy_out_count;
  slot_->fd_ticket = answer.fd_ticket;
  slot_->fd_count = answer.fd_count;
  __atomic_store_n(&slot_->answer_seq, seq_, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&slot_->sleeping, __ATOMIC_SEQ_CST)) FutexWakeShared(&slot_->answer_seq, 1);
}

base::Status ThreadContext::Check(const Order& order) const {
  const Limits& limits = space_->limits();
  auto range = [&](uint64_t addr, uint64_t length) -> base::Status {
    bool ok = addr % kPageSize == 0 && length % kPageSize == 0 && length != 0 &&
              addr < limits.max_address && length <= limits.max_address - addr;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  };
  constexpr int kProtMask = PROT_READ | PROT_WRITE | PROT_EXEC;
  if (const auto* o = std::get_if<order::Mmap>(&order)) {
    if (o->prot & ~kProtMask || o->offset % kPageSize != 0) return base::Error(EINVAL);
    if (o->shared && !o->file) return base::Error(EINVAL);
    return range(o->addr, o->length);
  }
  if (const auto* o = std::get_if<order::Munmap>(&order)) return range(o->addr, o->length);
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
  if (const auto* o = std::get_if<order::Write>(&order)) {
    bool ok = o->bytes.size() <= 4096;
    return ok ? base::Status() : base::Status(base::Error(EINVAL));
  }
  return {};
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
  if (const auto* o = std::get_if<order::Mmap>(&order)) {
    e.op = OrderOp::kMmap;
    e.a = o->addr;
    e.b = o->length;
    e.c = static_cast<uint64_t>(o->prot);
    e.d = MAP_FIXED | (o->shared ? MAP_SHARED : MAP_PRIVATE) | (o->noreserve ? MAP_NORESERVE : 0);
    e.e = o->offset;
    if (o->file) {
      e.fd = batch->AddFd(o->file->get());
      if (e.fd < 0) return false;
    } else {
      e.d |= MAP_ANONYMOUS;
    }
  } else if (const auto* o = std::get_if<order::Munmap>(&order)) {
    e.op = OrderOp::kMunmap;
    e.a = o->addr;
    e.b = o->length;
  } else if (const auto* o = std::get_if<order::Mprotect>(&order)) {
    e.op = OrderOp::kMprotect;
    e.a = o->addr;
    e.b = o->length;
    e.c = static_cast<uint64_t>(o->prot);
  } else if (const auto* o = std::get_if<order::Madvise>(&order)) {
    e.op = OrderOp::kMadvise;
    e.a = o->addr;
    e.b = o->length;
    e.c = static_cast<uint64_t>(o->advice);
  } else if (const auto* o = std::get_if<order::Mremap>(&order)) {
    e.op = OrderOp::kMremap;
    e.a = o->old_addr;
    e.b = o->old_length;
    e.c = o->new_addr;
    e.d = o->new_length;
  } else if (const auto* o = std::get_if<order::SaveFpu>(&order)) {
    e.op = OrderOp::kSaveFpu;
    e.a = o->addr;
  } else if (const auto* o = std::get_if<order::RestoreFpu>(&order)) {
    e.op = OrderOp::kRestoreFpu;
    e.a = o->addr;
  } else if (const auto* o = std::get_if<order::Write>(&order)) {
    uint32_t size = static_cast<uint32_t>(o->bytes.size());
    if (size > kCopyOutSize - batch->out_used) return false;
    memcpy(slot_->out_area + batch->out_used, o->bytes.data(), size);
    e.op = OrderOp::kWrite;
    e.a = o->addr;
    e.b = size;
    e.c = batch->out_used;
    batch->out_used += size;
  } else if (const auto* o = std::get_if<order::FutexWake>(&order)) {
    e.op = OrderOp::kFutexWake;
    e.a = o->addr;
    e.b = o->count;
    e.c = o->is_private;
  } else if (const auto* o = std::get_if<order::CloneThread>(&order)) {
    e.op = OrderOp::kCloneThread;
    e.a = static_cast<ThreadContext*>(o->thread)->index_;
    process_->platform().clone_gate().Expect(tid_, kThreadCloneFlags);
    batch->must_report = true;
  } else if (const auto* o = std::get_if<order::Fork>(&order)) {
    // The child inherits the descriptors that are open at this moment and closes these two.
    if (batch->fd_count != 0) return false;
    auto* child = static_cast<SystrapAddressSpace*>(o->child);
    child->PrepareMain(index_);
    process_->platform().clone_gate().Expect(tid_, kForkCloneFlags);
    e.op = OrderOp::kFork;
    e.fd = batch->AddFd(child->process().mailbox_fd());
    batch->AddFd(child->process().stub_socket());
    batch->must_report = batch->closed = true;
  }
  slot_->orders[batch->count++] = e;
  return true;
}

bool ThreadContext::OnlyRaxChanged() const {
  constexpr size_t kRax = offsetof(Regs, rax), kAfterRax = kRax + sizeof(uint64_t);
  constexpr size_t kOrig = offsetof(Regs, orig_rax), kAfterOrig = kOrig + sizeof(uint64_t);
  const char* a = reinterpret_cast<const char*>(&regs_);
  const char* b = reinterpret_cast<const char*>(&slot_regs_);
  return memcmp(a, b, kRax) == 0 && memcmp(a + kAfterRax, b + kAfterRax, kOrig - kAfterRax) == 0 &&
         memcmp(a + kAfterOrig, b + kAfterOrig, sizeof(Regs) - kAfterOrig) == 0;
}

void ThreadContext::StoreRegs() {
  regs_.eflags = (regs_.eflags & kUserFlags) | kFixedFlags;
  regs_.fs_base = CanonicalBase(regs_.fs_base);
  regs_.gs_base = CanonicalBase(regs_.gs_base);
  Slot* s = slot_;
  const Regs& r = regs_;
  s->rax = r.rax;
  s->rdi = r.rdi;
  s->rsi = r.rsi;
  s->rdx = r.rdx;
  s->r10 = r.r10;
  s->r8 = r.r8;
  s->r9 = r.r9;
  s->rip = r.rip;
  s->rsp = r.rsp;
  s->eflags = r.eflags;
  s->rbx = r.rbx;
  s->rbp = r.rbp;
  s->r12 = r.r12;
  s->r13 = r.r13;
  s->r14 = r.r14;
  s->r15 = r.r15;
  s->rcx = r.rcx;
  s->r11 = r.r11;
  s->fs_base = r.fs_base;
  s->gs_base = r.gs_base;
  slot_regs_ = r;
}

void ThreadContext::LoadRegs() {
  // Whatever values stand there are a guest's registers; none is trusted.
  const Slot* s = slot_;
  Regs& r = regs_;
  r.rax = s->rax;
  r.rdi = s->rdi;
  r.rsi = s->rsi;
  r.rdx = s->rdx;
  r.r10 = s->r10;
  r.r8 = s->r8;
  r.r9 = s->r9;
  r.rip = s->rip;
  r.rsp = s->rsp;
  r.eflags = s->eflags;
  r.rbx = s->rbx;
  r.rbp = s->rbp;
  r.r12 = s->r12;
  r.r13 = s->r13;
  r.r14 = s->r14;
  r.r15 = s->r15;
  r.rcx = s->rcx;
  r.r11 = s->r11;
  r.fs_base = s->fs_base;
  r.gs_base = s->gs_base;
  r.orig_rax = kNoOrigRax;
  slot_regs_ = r;
}

// ---- Traps --------------------------------------------------------------------------------------

void ThreadContext::Post() {
  posted_ = true;
  process_->platform().Post(this);
}

void ThreadContext::FailOrder(size_t index, int error) {
  trap_ = Trap{TrapKind::kOrderFailed};
  trap_.order_index = index;
  trap_.error = error;
  Post();
}

// What is left of the round's permission to clone ends with it.
void ThreadContext::ForgetClones() {
  for (size_t i = batch_begin_; i < batch_end_; i++) {
    if (std::holds_alternative<order::CloneThread>(orders_[i]) ||
        std::holds_alternative<order::Fork>(orders_[i])) {
      return process_->platform().clone_gate().Forget(tid_);
    }
  }
}

uint64_t ThreadContext::OrderResult(size_t order) const {
  size_t entry = (order - batch_begin_ + entry_of_first_) % kMaxOrders;
  return __atomic_load_n(&slot_->orders[entry].result, __ATOMIC_RELAXED);
}

// The round's orders have been carried out: go on with the rest, or with the guest. True if there
// is nothing left, so that the kernel is to be told.
bool ThreadContext::OrdersFinished() {
  for (size_t i = batch_begin_; i < batch_end_; i++) {
    uint64_t result = OrderResult(i);
    results_.push_back(std::holds_alternative<order::Mremap>(orders_[i]) ? result : 0);
  }
  if (!FinishClones()) return true;
  if (forks_pending_ != 0) {
    seq_++;  // this request has been taken; it goes on when the child has reported
    return false;
  }
  return ContinueOrders();
}

bool ThreadContext::ForkDone(bool good) {
  forks_pending_--;
  if (good) return ContinueOrders();
  trap_ = Trap{TrapKind::kOrderFailed};
  trap_.order_index = fork_order_;
  trap_.error = EAGAIN;
  return true;
}

bool ThreadContext::ContinueOrders() {
  if (refused_ != 0) {
    trap_ = Trap{TrapKind::kOrderFailed};
    trap_.order_index = batch_end_;
    trap_.error = refused_;
    return true;
  }
  if (batch_end_ < orders_.size() || mode_ == ResumeMode::kGuest) {
    seq_++;
    StartRound();
    return false;
  }
  trap_ = Trap{TrapKind::kOrdersDone};
  trap_.results = std::move(results_);
  return true;
}

// Threads and processes that the round has made. False, with the trap set, if one is not what it
// should be.
bool ThreadContext::FinishClones() {
  process_->platform().AssertPolling();
  for (size_t i = batch_begin_; i < batch_end_; i++) {
    uint64_t result = OrderResult(i);
    int id = result <= INT32_MAX ? static_cast<int>(result) : 0;
    if (const auto* o = std::get_if<order::CloneThread>(&orders_[i])) {
      // A false id deceives only the process that reports it: signals go to its own threads.
      auto* thread = static_cast<ThreadContext*>(o->thread);
      if (id <= 0) id = process_->pid();
      thread->Start(id);
      process_->AddThread(id);
    } else if (const auto* o = std::get_if<order::Fork>(&orders_[i])) {
      auto* child = static_cast<SystrapAddressSpace*>(o->child);
      base::Status status =
          id > 0 ? process_->platform().AdoptFork(child, process_.get(), id) : base::Status(base::Error(EAGAIN));
      if (!status.ok()) {
        trap_ = Trap{TrapKind::kOrderFailed};
        trap_.order_index = i;
        trap_.error = EAGAIN;
        return false;
      }
      fork_order_ = i;
      child->main()->regs_ = regs_;
      child->main()->AwaitFork(this);
    }
  }
  return true;
}

void ThreadContext::AwaitFork(ThreadContext* parent) {
  fork_parent_ = parent;
  parent->forks_pending_++;
  // The stub reports round 1, which PrepareMain has written into its slot.
  seq_ = 1;
  counted_ = true;
  process_->running.fetch_add(1);
  state_.fetch_or(kRunning, std::memory_order_acq_rel);
  process_->platform().NoteResume(this);
}

bool ThreadContext::Take() {
  process_->platform().AssertPolling();
  RequestKind kind = *const_cast<const volatile RequestKind*>(&slot_->kind);  // read once
  direct_call_ = false;
  switch (kind) {
    case RequestKind::kSyscall:
      LoadRegs();
      regs_.orig_rax = regs_.rax;
      regs_.rax = static_cast<uint64_t>(-ENOSYS);
      trap_ = Trap{TrapKind::kSyscall};
      copy_in_loaded_ = false;
      trapped_rip_ = regs_.rip;
      direct_call_ = slot_->mode == kModeDirect;
      patch_wanted_ = !direct_call_ && process_->patcher().NoteTrap(trapped_rip_);
      trap_.futex_interrupted = slot_->futex_interrupted != 0;
      trap_.remaining_ns = slot_->remaining_ns;
      return true;
    case RequestKind::kFault:
      LoadRegs();
      trap_ = Trap{TrapKind::kFault};
      trap_.signo = static_cast<int>(slot_->signo);
      trap_.si_code = slot_->si_code;
      trap_.fault_addr = slot_->fault_addr;
      trap_.trapno = slot_->trapno;
      trap_.error_code = slot_->error_code;
      if (trap_.signo < 1 || trap_.signo > 31) trap_.signo = SIGSEGV;
      return true;
    case RequestKind::kInterrupt:
      LoadRegs();
      trap_ = Trap{TrapKind::kInterrupt};
      return true;
    case RequestKind::kPatchHint:
      // Nothing for the kernel: the guest goes on, with the site patched.
      LoadRegs();
      trapped_rip_ = regs_.rip;
      patch_wanted_ = true;
      orders_.clear();
      batch_begin_ = batch_end_ = 0;
      mode_ = ResumeMode::kGuest;
      seq_++;
      StartRound();
      return false;
    case RequestKind::kOrdersDone:
      ForgetClones();
      return OrdersFinished();
    case RequestKind::kOrderFailed: {
      ForgetClones();
      uint32_t index = slot_->order_index;
      int error = slot_->order_error;
      trap_ = Trap{TrapKind::kOrderFailed};
      trap_.error = error > 0 && error < 4096 ? error : EFAULT;
      trap_.order_index = SIZE_MAX;
      if (index != kCopyOutIndex) {
        size_t order = index >= entry_of_first_ ? batch_begin_ + index - entry_of_first_ : 0;
        trap_.order_index = std::min(order, orders_.size());
      }
      return true;
    }
    case RequestKind::kReady: {
      ThreadContext* parent = std::exchange(fork_parent_, nullptr);
      if (!parent) break;
      process_->platform().FinishFork(this, parent, process_->OwnsMailbox());
      return false;
    }
  }
  // Nonsense from a hostile stub.
  process_->Kill();
  trap_ = Trap{TrapKind::kGone};
  return true;
}

bool ThreadContext::TakeDeath() {
  process_->platform().AssertPolling();
  if (!running()) return false;
  if (ThreadContext* parent = std::exchange(fork_parent_, nullptr)) {
    process_->platform().FinishFork(this, parent, false);
    return false;
  }
  posted_ = false;
  trap_ = Trap{TrapKind::kGone};
  return true;
}

void ThreadContext::Stop() {
  posted_ = false;
  if (counted_) {
    counted_ = false;
    process_->running.fetch_sub(1);
  }
  // Any trap answers the interrupts that came before it. One that comes between these two is
  // delivered once more.
  if (__atomic_load_n(&slot_->interrupt, __ATOMIC_RELAXED) != 0) {
    __atomic_store_n(&slot_->interrupt, 0u, __ATOMIC_RELAXED);
  }
  state_.store(kStopped, std::memory_order_release);
}

void ThreadContext::Deliver() {
  orders_.clear();
  Stop();
  if (listener_) listener_->OnTrap();
}

void ThreadContext::Interrupt() {
  uint32_t old = state_.fetch_or(kInterrupted, std::memory_order_acq_rel);
  // Stopped: the next Resume sees it. Interrupted already: the signal is on its way, and more of them
  // would only pile up on the stub's stack.
  if (!(old & kRunning) || (old & kInterrupted)) return;
  __atomic_store_n(&slot_->interrupt, 1u, __ATOMIC_SEQ_CST);
  int tid = tid_.load(std::memory_order_acquire);
  if (tid <= 0) return;
  base::Status status = process_->Signal(tid);
  if (!status.ok() && status.error().code() == ESRCH) process_->platform().NoteGone(this);
}

void ThreadContext::Exit() {
  if (exited_) return;
  static_cast<void>(FlushWrites());  // a fault here has nobody to be told
  exited_ = true;
  int tid = tid_.load(std::memory_order_acquire);
  if (tid > 0 && !process_->dead()) {
    process_->RemoveThread(tid);
    seq_++;
    SendAnswer(Answer{kAnswerExit});
  }
  process_->ReleaseSlot(index_, tid > 0);
}

}  // namespace platform
