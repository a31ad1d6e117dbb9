// Task's main loop: resume the guest, park until it traps, answer, deliver signals.
#include <sys/epoll.h>
#include <sys/syscall.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "platform/platform.h"
#include "sentry/base/log.h"
#include "sentry/base/time.h"
#include "sentry/fiber/blocking.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"

namespace sentry {
namespace {

// What the end of a stub is to the guest. The host itself ends a process by SIGSEGV that has
// unmapped what the host has to write to for it (the area of rseq(2), where a signal's frame goes).
int SignalOfGone(int signo) { return signo == SIGSEGV ? SIGSEGV : SIGKILL; }

}  // namespace

Task* Task::Current() {
  fiber::Fiber* f = fiber::Current();
  return f ? static_cast<Task*>(f->user_data()) : nullptr;
}

void Task::OnTrap() {
  // The fiber may run on and even end as soon as trapped_ is seen, so take it first.
  fiber::Fiber* f = trap_fiber_.load(std::memory_order_acquire);
  base::Ref<fiber::Fiber> keep(f);
  trapped_.store(true, std::memory_order_release);
  keep->Unpark();
}

void Task::Start() {
  IncRef();  // held by the fiber until Main returns
  base::Ref<fiber::Fiber> f = fiber::Spawn(
      comm(),
      [this] {
        Main();
        fiber::Current()->set_user_data(nullptr);
        DecRef();
      },
      this);
}

void Task::Main() {
  {
    absl::MutexLock l(&group_->signal_mutex());
    fiber_ = base::Ref<fiber::Fiber>(fiber::Current());
    if (signal_pending_.load(std::memory_order_relaxed)) fiber_->Interrupt();
  }
  WaitForThaw();  // begun while its group is being frozen
  while (true) {
    if (signal_pending_.load(std::memory_order_acquire) || restart_code_ != 0 || saved_mask_) {
      if (std::exchange(lane_call_, std::nullopt)) {
        // It has not begun, so it begins again.
        restart_code_ = base::kERESTARTNOINTR;
        regs().rax = -EINTR;
        if (traced()) Ptrace::LaneEnded(*this);
      }
      DeliverSignals();
      if (!exit_pending_) WaitForThaw();  // who freezes kicks
    }
    if (exit_pending_) break;
    RunGuest();
  }
  FinishExit();
}

void Task::WaitForThaw() {
  Cgroup& cgroup = *group_->cgroup();
  if (!cgroup.frozen()) return;
  fiber::WaitUntil(cgroup.thaw_queue(), EPOLLIN,
                   [&] { return !cgroup.frozen() || FatalPending(); });
}

void Task::ResumeAndPark(platform::ResumeMode mode) {
  trap_fiber_.store(fiber::Current(), std::memory_order_release);
  context_->Resume(mode);
  while (!trapped_.load(std::memory_order_acquire)) fiber::Park({.in_guest = true});
  trapped_.store(false, std::memory_order_relaxed);
  rounds_.store((rounds_.load(std::memory_order_relaxed) | kWaitsMask) + 1,
                std::memory_order_relaxed);
}

void Task::RunOnlyOrders(std::vector<platform::Order> orders) {
  // Others may wait for what this task holds meanwhile.
  bool fills = std::any_of(orders.begin(), orders.end(), [](const platform::Order& order) {
    return std::holds_alternative<platform::order::Madvise>(order);
  });
  Waits waits = fills ? Waits::kFill : Waits::kOrders;
  rounds_.store(rounds_.load(std::memory_order_relaxed) | static_cast<uint64_t>(waits),
                std::memory_order_seq_cst);
  kernel_->stub_watch_.Begin();
  for (platform::Order& order : orders) context_->QueueOrder(std::move(order));
  ResumeAndPark(platform::ResumeMode::kOrdersOnly);
}

void Task::RunGuest() {
  in_guest_.store(true, std::memory_order_seq_cst);
  // Whoever sets signal_pending_ looks at in_guest_ after it: one of the two sees the other.
  if (signal_pending_.load(std::memory_order_seq_cst)) {
    in_guest_.store(false, std::memory_order_relaxed);
    return;
  }
  // No call waits any more. Whoever keeps a file from now on interrupts the guest.
  if (has_kept_file_.load(std::memory_order_seq_cst)) [[unlikely]]
    DropKeptFile();
  if (!mask_open_.load(std::memory_order_relaxed)) {
    absl::MutexLock l(&group_->signal_mutex());
    OpenMaskLocked();
  }
  if (group_->handlers_->WantsOpen()) OpenSignalActions();
  for (const platform::Order& order : queued_orders_) context_->QueueOrder(order);
  rounds_.store(rounds_.load(std::memory_order_relaxed) | static_cast<uint64_t>(Waits::kGuest),
                std::memory_order_relaxed);
  if (lane_call_) {
    const bool then_trap = (syscall_work() & kWorkOfTracer) != 0;
    context_->AnswerInLane(lane_call_->first, lane_call_->second, then_trap);
    lane_call_.reset();
  }
  ResumeAndPark(platform::ResumeMode::kGuest);
  in_guest_.store(false, std::memory_order_relaxed);
  TakeMask();
  HandleTrap();
}

void Task::OnGone(int signo) { group_->BeginExit(SignalOfGone(signo)); }

void Task::HandleTrap() {
  const platform::Trap& trap = context_->trap();
  const bool waited = trap.kind == platform::TrapKind::kSyscall && trap.lane_waited;
  if (!waited && has_kept_file_.load(std::memory_order_relaxed)) DropKeptFile();
  if (trap.kind == platform::TrapKind::kOrderFailed) {
    HandleFailedOrder(trap.order_index, trap.error);
    return;
  }
  queued_orders_.clear();
  queued_groups_.clear();
  switch (trap.kind) {
    case platform::TrapKind::kSyscall:
      HandleSyscall();
      break;
    case platform::TrapKind::kFault:
      HandleFault();
      break;
    case platform::TrapKind::kGone:
      gone_ = true;
      group_->BeginExit(SignalOfGone(trap.signo));
      break;
    case platform::TrapKind::kInterrupt:
      HandleInterrupt();
      break;
    case platform::TrapKind::kOrdersDone:
    case platform::TrapKind::kOrderFailed:
      break;
  }
}

void Task::HandleSyscall() {
  if (context_->trap().lane_done) return FinishLaneCall();
  int nr = static_cast<int>(context_->call().nr);
  syscall_nr_.store(nr, std::memory_order_relaxed);
  restart_code_ = 0;
  copy_out_failed_ = false;
  rax_kept_ = false;
  base::Result<uint64_t> result = base::Error(ENOSYS);
  if (syscall_work() == 0 || EnterWithWork(&nr, &result)) {
    result = kernel_->dispatch()(*this, nr);
  }
  syscall_nr_.store(-1, std::memory_order_relaxed);
  if (has_kept_file_.load(std::memory_order_relaxed)) DropKeptFile();
  if (!exit_pending_ && !lane_call_ && !rax_kept_) FinishSyscall(result);
  if (syscall_work() != 0 && !exit_pending_) Ptrace::LeaveCall(*this);
}

// What seccomp and a tracer make of the call at hand. False: it is not made; `*result`, or what
// they have left in rax, is its outcome.
bool Task::EnterWithWork(int* nr, base::Result<uint64_t>* result) {
  const uint32_t work = syscall_work();
  // A call that goes on after it was interrupted in a lane, or was not taken there, was asked about
  // already. That it was interrupted is the guest's word, which counts for no other call.
  const bool in_lane = tracee_ && std::exchange(tracee_->in_lane, false);
  if (in_lane || (context_->trap().futex_interrupted && *nr == SYS_futex)) {
    if (tracee_) Ptrace::Disarm(*this);
    return true;
  }
  if (work & kWorkOfTracer) {
    if (!Ptrace::EnterCall(*this, work)) {
      rax_kept_ = true;
      return false;
    }
    *nr = static_cast<int>(context_->call().nr);
    syscall_nr_.store(*nr, std::memory_order_relaxed);
  }
  if (!(work & kWorkSeccomp)) return true;
  return AskSeccomp(nr, result);
}

void Task::FinishSyscall(const base::Result<uint64_t>& result) {
  if (result.ok()) {
    context_->SetResult(copy_out_failed_ ? static_cast<uint64_t>(-int64_t{EFAULT}) : *result);
    return;
  }
  int code = result.error().code();
  switch (code) {
    case base::kERESTARTSYS:
    case base::kERESTARTNOINTR:
    case base::kERESTARTNOHAND:
    case base::kERESTART_RESTARTBLOCK:
      restart_code_ = code;
      context_->SetResult(static_cast<uint64_t>(-int64_t{EINTR}));
      break;
    default:
      context_->SetResult(static_cast<uint64_t>(-static_cast<int64_t>(code)));
      break;
  }
}

base::Result<uint64_t> Task::AnswerInLane(int nr, int64_t remaining_ns) {
  lane_call_ = {nr, remaining_ns};
  return uint64_t{0};
}

void Task::HandleInterrupt() {
  if (!tracee_) return;
  Ptrace::Disarm(*this);
  // What the tracer asked for goes on, if it is not asked again.
  if (!Ptrace::LaneEnded(*this)) Ptrace::Arm(*this);
}

void Task::HandleFault() {
  platform::Trap trap = context_->trap();
  const bool is_step = trap.signo == SIGTRAP && trap.si_code == TRAP_TRACE;
  if (tracee_) {
    const bool forced = tracee_->forced_tf;
    // The trap of a step whose tracer has gone meanwhile is nobody's.
    if (!Ptrace::Disarm(*this) && forced && is_step) return;
  }
  kernel_->faults.fetch_add(1, std::memory_order_relaxed);
  min_faults_.fetch_add(1, std::memory_order_relaxed);
  FaultOutcome outcome = mm_->HandleFault(*this, trap);
  if (outcome.retry) {
    if (tracee_) Ptrace::Arm(*this);
    return;
  }
  fault_trapno_ = trap.trapno;
  fault_error_ = trap.error_code;
  fault_addr_ = trap.fault_addr;
  siginfo_t info = MakeSiginfo(outcome.signo, outcome.si_code);
  bool about_instruction =
      outcome.signo == SIGTRAP || outcome.signo == SIGILL || outcome.signo == SIGFPE;
  info.si_addr = reinterpret_cast<void*>(
      about_instruction && trap.fault_addr == 0 && outcome.si_code != SI_KERNEL ? regs().rip
                                                                                : trap.fault_addr);
  ForceSignal(info);
}

// --- orders ---

bool Task::CanQueue() const {
  return mm_users_ && mm_users_->tasks.load(std::memory_order_acquire) == 1;
}

void Task::QueueOrders(std::vector<platform::Order> orders,
                       std::function<int64_t(int)> on_failure) {
  queued_groups_.push_back({queued_orders_.size(), orders.size(), std::move(on_failure)});
  for (platform::Order& order : orders) queued_orders_.push_back(std::move(order));
}

void Task::FlushQueuedOrders() {
  while (!queued_orders_.empty() && !gone_) {
    RunOnlyOrders(queued_orders_);
    const platform::Trap& trap = context_->trap();
    if (trap.kind == platform::TrapKind::kOrderFailed) {
      HandleFailedOrder(trap.order_index, trap.error);
      continue;
    }
    if (trap.kind == platform::TrapKind::kGone) {
      gone_ = true;
      group_->BeginExit(SignalOfGone(trap.signo));
    }
    queued_orders_.clear();
    queued_groups_.clear();
  }
}

void Task::HandleFailedOrder(size_t index, int error) {
  // The whole group of the failed order is dropped, what was queued after it stays queued.
  std::vector<QueuedGroup> groups = std::exchange(queued_groups_, {});
  std::vector<platform::Order> orders = std::exchange(queued_orders_, {});
  std::function<int64_t(int)> on_failure;
  bool copy_out_failed = index == SIZE_MAX;
  for (QueuedGroup& group : groups) {
    if (!copy_out_failed && group.first + group.count <= index) continue;  // done
    if (!copy_out_failed && group.first <= index) {
      on_failure = std::move(group.on_failure);
      continue;
    }
    std::vector<platform::Order> rest;
    for (size_t i = 0; i < group.count; ++i) rest.push_back(std::move(orders[group.first + i]));
    QueueOrders(std::move(rest), std::move(group.on_failure));
  }
  if (copy_out_failed) {
    if (error == EIO) {
      // A file could not be read through its mapping: it was cut short meanwhile, or so. That is no
      // error of the call's unless it cannot be read at all.
      base::Status status = fiber::BlockingCall([this] { return context_->FlushWrites(); });
      if (status.ok()) return;
      error = status.error().code();
    }
    regs().rax = static_cast<uint64_t>(-static_cast<int64_t>(error));
  } else if (on_failure) {
    regs().rax = static_cast<uint64_t>(on_failure(error));
  }
}

base::Result<std::vector<uint64_t>> Task::RunOrders(std::vector<platform::Order> orders) {
  FlushQueuedOrders();
  if (gone_) return base::Error(ESRCH);
  // What the call at hand has written goes first, so that its failure is not taken for an order's.
  if (!context_->FlushWrites().ok()) {
    regs().rax = static_cast<uint64_t>(-int64_t{EFAULT});
    copy_out_failed_ = true;
  }
  RunOnlyOrders(std::move(orders));
  const platform::Trap& trap = context_->trap();
  switch (trap.kind) {
    case platform::TrapKind::kOrdersDone:
      return trap.results;
    case platform::TrapKind::kOrderFailed:
      return base::Error(trap.error > 0 ? trap.error : EFAULT);
    default:
      gone_ = true;
      group_->BeginExit(SignalOfGone(trap.signo));
      return base::Error(ESRCH);
  }
}

}  // namespace sentry
