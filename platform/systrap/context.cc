#include "platform/systrap/context.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "platform/systrap/address_space.h"
#include "platform/systrap/platform.h"
#include "sentry/base/log.h"

namespace platform {
namespace {

// What user code may set of the flags (arch/x86/kernel/signal_64.c: FIX_EFLAGS), and what is always
// set: IF and bit 1.
constexpr uint64_t kUserFlags = 0x50dd5;
constexpr uint64_t kFixedFlags = 0x202;
constexpr uint64_t kUserSpaceEnd = 1ull << 47;
constexpr uint64_t kNoOrigRax = ~0ull;

uint64_t CanonicalBase(uint64_t base) { return base < kUserSpaceEnd ? base : 0; }

}  // namespace

ThreadContext::ThreadContext(base::Ref<StubProcess> process, AddressSpace* space, uint32_t index)
    : process_(std::move(process)), space_(space), index_(index), slot_(process_->slot(index)) {}

ThreadContext::~ThreadContext() {
  if (!exited_ && !running()) Exit();
  process_->platform().RemoveContext(this);
  UnpinCopies();
  Stop();
}

void ThreadContext::Start(int tid) { tid_.store(tid, std::memory_order_release); }

size_t ThreadContext::fpu_frame_size() const {
  return process_->platform().machine().xsave_size + sizeof(uint32_t);
}

std::span<const std::byte> ThreadContext::saved_fpu() const {
  return {reinterpret_cast<const std::byte*>(slot_->out_area + saved_fpu_at_), fpu_frame_size()};
}

void ThreadContext::RereadCall() {
  const Regs& r = regs();
  call_.nr = r.orig_rax;
  call_.args = {r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9};
  copy_in_.clear();
  copy_in_loaded_ = true;
}

bool ThreadContext::WaitsInFutex() const {
  return running() && __atomic_load_n(&slot_->in_futex, __ATOMIC_RELAXED) != 0;
}

int ThreadContext::LaneWaitFd() const {
  const uint32_t wait = __atomic_load_n(&slot_->lane_wait, __ATOMIC_SEQ_CST);
  return wait <= kLaneFds ? static_cast<int>(wait) - 1 : -1;
}

Context::LastCall ThreadContext::PeekCall() const {
  const Slot* s = slot_;
  auto load = [](const uint64_t& word) { return __atomic_load_n(&word, __ATOMIC_RELAXED); };
  return {.call = {.nr = load(s->rax),
                   .args = {load(s->rdi), load(s->rsi), load(s->rdx), load(s->r10), load(s->r8),
                            load(s->r9)}},
          .sp = load(s->rsp),
          .pc = load(s->rip)};
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

void ThreadContext::SettleRegs() { process_->patcher().FixReturn(&regs()); }

Context::ThreadWords ThreadContext::PeekThreadWords() const {
  auto load = [](const auto& word) { return __atomic_load_n(&word, __ATOMIC_SEQ_CST); };
  const uint32_t changed = load(slot_->words_changed);
  if (changed == 0) return {};
  return {.clear_child_tid_changed = (changed & kWordClearChildTid) != 0,
          .robust_list_changed = (changed & kWordRobustList) != 0,
          .rseq_changed = (changed & kWordRseq) != 0,
          .clear_child_tid = load(slot_->clear_child_tid),
          .robust_list = load(slot_->robust_list),
          .rseq_addr = load(slot_->rseq_addr),
          .rseq_length = load(slot_->rseq_length),
          .rseq_signature = load(slot_->rseq_signature)};
}

// The first call alone offers none: most programs make no more.
bool ThreadContext::WantsRandom() {
  static_assert(kOfferedRandom == kRandomSize);
  return std::exchange(asked_random_, true) && slot_->random_left < kRandomSize / 4;
}

void ThreadContext::OfferRandom(std::span<const std::byte, kOfferedRandom> bytes) {
  memcpy(slot_->random, bytes.data(), bytes.size());
  slot_->random_left = kRandomSize;
}

void ThreadContext::OpenSignalMask(uint64_t mask, const SignalStack& stack) {
  slot_->mask_changed = 0;
  slot_->alt_stack_sp = stack.sp;
  slot_->alt_stack_size = stack.size;
  slot_->alt_stack_flags = stack.flags;
  __atomic_store_n(&slot_->sigmask, (mask & ~kUnblockableSignals) | kMaskOpen, __ATOMIC_SEQ_CST);
}

uint64_t ThreadContext::CloseSignalMask() {
  return __atomic_exchange_n(&slot_->sigmask, 0, __ATOMIC_SEQ_CST) & ~kUnblockableSignals;
}

uint64_t ThreadContext::SignalMask() const {
  return __atomic_load_n(&slot_->sigmask, __ATOMIC_SEQ_CST) & ~kUnblockableSignals;
}

void ThreadContext::OpenSignalActions(std::span<const SignalAction, kSignals> actions) {
  static_assert(sizeof(SignalAction) == sizeof(SignalEntry) && kSignals == kSignalCount);
  memcpy(slot_->actions0, actions.data(), sizeof(slot_->actions0));
  slot_->actions_changed = 0;
  __atomic_store_n(&slot_->actions_word, kActionsOpen, __ATOMIC_SEQ_CST);
}

bool ThreadContext::CloseSignalActions(std::span<SignalAction, kSignals> actions) {
  uint64_t word = __atomic_exchange_n(&slot_->actions_word, 0, __ATOMIC_SEQ_CST);
  if (!slot_->actions_changed) return false;
  for (size_t i = 0; i < kSignals; i++) {
    memcpy(&actions[i], word >> i & 1 ? &slot_->actions1[i] : &slot_->actions0[i],
           sizeof(SignalAction));
  }
  return true;
}

// ---- Resuming -----------------------------------------------------------------------------------

void ThreadContext::Resume(ResumeMode mode) {
  mode_ = mode;
  if (state_.load(std::memory_order_acquire) & kUnborn) {
    bool waits = false;
    process_->platform().UnderPollLock(
        [&] { waits = resumed_unborn_ = (state_.load(std::memory_order_acquire) & kUnborn) != 0; });
    if (waits) return;
  }
  BeginRounds();
}

void ThreadContext::BeginRounds() {
  results_.clear();
  batch_begin_ = batch_end_ = 0;
  refused_ = 0;
  seq_++;
  StartRound();
}

uint32_t ThreadContext::BeginRunning() {
  // An interrupt that came while the context was stopped stays set.
  uint32_t before = state_.fetch_or(kRunning);
  if (!(before & kRunning)) {
    process_->NoteRunning();
    process_->platform().NoteResume(this);
  }
  return before;
}

bool ThreadContext::OnlyRaxChanged() const {
  if (rest_in_slot_) return true;  // nobody has looked at them, even
  constexpr size_t kWords = sizeof(Regs) / sizeof(uint64_t);
  constexpr size_t kRax = offsetof(Regs, rax) / sizeof(uint64_t);
  constexpr size_t kOrigRax = offsetof(Regs, orig_rax) / sizeof(uint64_t);
  const auto* a = reinterpret_cast<const uint64_t*>(&regs_);
  const auto* b = reinterpret_cast<const uint64_t*>(&slot_regs_);
  uint64_t difference = 0;
  for (size_t i = 0; i < kWords; i++) {
    difference |= i == kRax || i == kOrigRax ? 0 : a[i] ^ b[i];
  }
  return difference == 0;
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

void ThreadContext::LoadCall() {
  call_.nr = slot_->call_nr;
  memcpy(call_.args.data(), slot_->call_args, sizeof(slot_->call_args));
  Regs& r = regs_;
  r.orig_rax = call_.nr;
  r.rax = static_cast<uint64_t>(-ENOSYS);
  r.rdi = call_.args[0];
  r.rsi = call_.args[1];
  r.rdx = call_.args[2];
  r.r10 = call_.args[3];
  r.r8 = call_.args[4];
  r.r9 = call_.args[5];
  rest_in_slot_ = true;
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
  r.orig_rax = kNoOrigRax;
  LoadRest();
}

void ThreadContext::LoadRest() {
  rest_in_slot_ = false;
  const Slot* s = slot_;
  Regs& r = regs_;
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
  slot_regs_ = r;
}

// ---- Traps --------------------------------------------------------------------------------------

void ThreadContext::Post() {
  posted_ = true;
  BeginRunning();
  process_->platform().Post(this);
}

void ThreadContext::FailOrder(size_t index, int error) {
  trap_ = Trap{TrapKind::kOrderFailed};
  trap_.order_index = index;
  trap_.error = error;
  Post();
}

// What the round has let the stub do ends with it.
void ThreadContext::ForgetCalls() {
  if (!std::exchange(expects_calls_, false)) return;
  if (uint32_t more = process_->platform().gate().Forget(tid_)) {
    process_->platform().Suspect(process_.get(), more);
  }
}

// The round's fork is not under way any more. Unless its child has been claimed, that is the stub's
// word alone.
void ThreadContext::EndForks(bool claimed) {
  for (size_t i = batch_begin_; i < batch_end_; i++) {
    if (!std::holds_alternative<order::Fork>(orders_[i])) continue;
    process_->EndFork();
    if (claimed) continue;
    process_->platform().gate().CancelBirth(process_->pid(), OrderedFd(index_));
    process_->platform().Suspect(process_.get(), StubProcess::kFailedFork);
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
    bool told = std::holds_alternative<order::Mremap>(orders_[i]) ||
                std::holds_alternative<order::CompareExchange>(orders_[i]);
    results_.push_back(told ? result : 0);
  }
  return !FinishClones() || ContinueOrders();
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
      if (o->thread == this || static_cast<ThreadContext*>(o->thread)->parked_) continue;
      // A false id could name a thread of another process, whose memory would be taken for this
      // one's.
      if (!process_->HasThread(id)) return Distrust("a thread that it does not have");
      static_cast<ThreadContext*>(o->thread)->Start(id);
      process_->AddThread(id);
    } else if (const auto* o = std::get_if<order::Fork>(&orders_[i])) {
      auto* child = static_cast<SystrapAddressSpace*>(o->child);
      base::Status status = id > 0 ? process_->platform().AdoptFork(child, process_.get(), id)
                                   : base::Status(base::Error(EAGAIN));
      EndForks(status.ok());
      if (!status.ok()) {
        trap_ = Trap{TrapKind::kOrderFailed};
        trap_.order_index = i;
        trap_.error = EAGAIN;
        return false;
      }
      child->main()->regs_ = regs();
      child->main()->AwaitBirth();
    }
  }
  return true;
}

bool ThreadContext::WakenBy(Context& maker) {
  if (parked_) static_cast<ThreadContext&>(maker).wakes_ = index_;
  return parked_;
}

void ThreadContext::AwaitBirth() {
  // The stub reports round 1, which PrepareMain has written into its slot.
  seq_ = 1;
  state_.fetch_or(kUnborn);
  process_->NoteRunning();
  process_->platform().NoteResume(this);
}

// The child's stub has said that it is ready, or something else, or has died. Begins what Resume
// has asked for since. True, with the trap set, if the listener is to be told.
bool ThreadContext::EndBirth(bool good) {
  stillborn_ = !good || !process_->OwnsMailbox();
  state_.fetch_and(~static_cast<uint32_t>(kUnborn));
  if (stillborn_) process_->Kill();
  if (!std::exchange(resumed_unborn_, false)) {
    if (stillborn_) NoteDeath();
    return false;
  }
  if (stillborn_) {
    trap_ = Trap{TrapKind::kGone};
    return true;
  }
  BeginRounds();
  return false;
}

void ThreadContext::TakeCall(const RequestHead& head) {
  copy_in_count_ = head.copy_in_count;
  copy_in_loaded_ = copy_in_count_ == 0;
  if (!copy_in_loaded_) {
    // Both lines come at once, before either is needed.
    __builtin_prefetch(&slot_->copy_in[0]);
    __builtin_prefetch(slot_->in_area);
  }
  LoadCall();
  trap_.kind = TrapKind::kSyscall;
  direct_call_ = (head.flags & kRequestDirect) != 0;
  if (!direct_call_) {
    trapped_rip_ = regs().rip;
    // The stub answers most of these, and tells of those after which it is worth to try.
    const bool counted = call_.nr == SYS_rt_sigreturn;
    patch_wanted_ = process_->patcher().NoteTrap(trapped_rip_, counted);
  }
  trap_.futex_interrupted = (head.flags & kRequestFutexInterrupted) != 0;
  trap_.lane_waited = (head.flags & kRequestLaneWaited) != 0;
  if (trap_.futex_interrupted || trap_.lane_waited) trap_.remaining_ns = slot_->remaining_ns;
  trap_.lane_done = (head.flags & kRequestLaneDone) != 0;
  if (trap_.lane_done) {
    trap_.lane_wrote = slot_->lane_wrote != 0;
    trap_.lane_result = slot_->lane_result;
    trap_.lane_name = slot_->lane_name;
  }
}

bool ThreadContext::Take() {
  process_->platform().AssertPolling();
  RequestHead head;  // read once
  __atomic_load(&slot_->request, &head, __ATOMIC_RELAXED);
  if (!running()) return EndBirth(head.kind == RequestKind::kReady);
  direct_call_ = false;
  mask_changed_ = (head.flags & kRequestMaskChanged) != 0;
  ForgetCalls();
  if (changes_windows_) {
    // Its own business, done or not.
    EndWindowRound(head.kind == RequestKind::kOrdersDone);
    seq_++;
    StartRound();
    return false;
  }
  const bool failed = head.kind == RequestKind::kOrderFailed;
  const uint32_t failed_index = failed ? slot_->order_index : 0;
  const int failed_error = failed ? slot_->order_error : 0;
  if (!sent_copies_.empty()) {
    ReleaseWindows(failed && failed_index == kCopyOutIndex && failed_error == EIO);
  }
  switch (head.kind) {
    case RequestKind::kSyscall:
      TakeCall(head);
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
      process_->patcher().NoteTrap(trapped_rip_);
      patch_wanted_ = true;
      orders_.clear();
      batch_begin_ = batch_end_ = 0;
      mode_ = ResumeMode::kGuest;
      seq_++;
      StartRound();
      return false;
    case RequestKind::kOrdersDone:
      return OrdersFinished();
    case RequestKind::kOrderFailed: {
      EndForks(false);
      trap_ = Trap{TrapKind::kOrderFailed};
      trap_.error = failed_error > 0 && failed_error < 4096 ? failed_error : EFAULT;
      trap_.order_index = SIZE_MAX;
      if (failed_index != kCopyOutIndex) {
        size_t order =
            failed_index >= entry_of_first_ ? batch_begin_ + failed_index - entry_of_first_ : 0;
        trap_.order_index = std::min(order, orders_.size());
      }
      return true;
    }
    case RequestKind::kReady:
      break;
  }
  return !Distrust("a request of no kind");
}

// The stub is not what it was: it ends. False, with the trap set.
bool ThreadContext::Distrust(const char* why) {
  LOG_LIMITED(base::LogLevel::kWarning, "stub %d is ended: it reports %s", process_->pid(), why);
  process_->Kill();
  trap_ = Trap{TrapKind::kGone};
  return false;
}

bool ThreadContext::TakeDeath() {
  process_->platform().AssertPolling();
  if (state_.load(std::memory_order_acquire) & kUnborn) {
    state_.fetch_and(~static_cast<uint32_t>(kUnborn));
    if (!std::exchange(resumed_unborn_, false)) return false;
  } else if (!running()) {
    return false;
  }
  ForgetCalls();
  posted_ = false;
  trap_ = Trap{TrapKind::kGone};
  trap_.signo = process_->death_signal();
  return true;
}

void ThreadContext::NoteDeath() {
  process_->platform().AssertPolling();
  if (listener_ && !exited_.load(std::memory_order_acquire))
    listener_->OnGone(process_->death_signal());
}

void ThreadContext::set_listener(TrapListener* listener) {
  process_->platform().UnderPollLock([&] { listener_ = listener; });
}

void ThreadContext::Stop() {
  posted_ = false;
  // Any trap answers the interrupts that came before it. One that comes between these two is
  // delivered once more.
  // The slot may be another thread's once this one has ended.
  if (!exited_ && __atomic_load_n(&slot_->interrupt, __ATOMIC_RELAXED) != 0) {
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
  // Stopped: the next Resume sees it. Interrupted already: the signal is on its way, and more of
  // them would only pile up on the stub's stack.
  if (!(old & kRunning) || (old & kInterrupted)) return;
  __atomic_store_n(&slot_->interrupt, 1u, __ATOMIC_SEQ_CST);
  int tid = tid_.load(std::memory_order_acquire);
  if (tid <= 0) return;
  base::Status status = process_->Signal(tid);
  if (!status.ok() && status.error().code() == ESRCH) process_->platform().NoteGone(this);
}

}  // namespace platform
