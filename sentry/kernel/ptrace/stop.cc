// The stops of a traced task.
#include <sys/wait.h>

#include <utility>

#include "sentry/base/log.h"
#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/task.h"

namespace sentry {

namespace {

constexpr uint64_t kTrapFlag = 0x100;
constexpr int kSysGood = 0x80;  // of PTRACE_O_TRACESYSGOOD

bool AsksForRestart(int64_t rax) {
  return rax == -base::kERESTARTSYS || rax == -base::kERESTARTNOINTR ||
         rax == -base::kERESTARTNOHAND || rax == -base::kERESTART_RESTARTBLOCK;
}

}  // namespace

// --- what the tracer is to find, and what it leaves ---

// Everything that is on its way to the guest's memory and registers arrives first.
void Ptrace::BeforeStop(Task& t) {
  if (t.gone_ || !t.context_) return;
  t.FlushQueuedOrders();
  if (!t.gone_ && !t.context_->FlushWrites().ok()) {
    t.regs().rax = static_cast<uint64_t>(-int64_t{EFAULT});
  }
  Tracee& tracee = *t.tracee_;
  if (!t.gone_ && tracee.left_text != t.mm_.get()) {
    std::vector<platform::Order> orders;
    orders.push_back(platform::order::LeaveText{});
    if (t.RunOrders(std::move(orders)).ok()) tracee.left_text = t.mm_.get();
  }
  Disarm(t);
  // The tracer sees, as in Linux, that the call would be restarted, and can have it otherwise.
  if (t.restart_code_ != 0) t.regs().rax = static_cast<uint64_t>(-int64_t{t.restart_code_});
}

void Ptrace::AfterStop(Task& t) {
  if (t.gone_ || !t.context_) return;
  platform::Regs& r = t.regs();
  t.restart_code_ = 0;
  if (static_cast<int>(r.orig_rax) >= 0 && AsksForRestart(static_cast<int64_t>(r.rax))) {
    t.restart_code_ = static_cast<int>(-static_cast<int64_t>(r.rax));
    r.rax = static_cast<uint64_t>(-int64_t{EINTR});
  }
  Arm(t);
}

void Ptrace::Arm(Task& t) {
  if (!(t.syscall_work() & kWorkStep)) return;
  platform::Regs& r = t.regs();
  if (r.eflags & kTrapFlag) return;
  r.eflags |= kTrapFlag;
  t.tracee_->forced_tf = true;
}

bool Ptrace::Disarm(Task& t) {
  if (std::exchange(t.tracee_->forced_tf, false)) t.regs().eflags &= ~kTrapFlag;
  return (t.syscall_work() & kWorkStep) != 0;
}

// --- the stop itself ---

bool Ptrace::IsKilled(const Task& t, Kind kind) {
  return kind == Kind::kExit ? t.tracee_->killed : t.FatalPending();
}

// SIGCHLD and the wake-up of who waits (Linux: do_notify_parent_cldstop). Under task_mutex.
void Ptrace::TellTracer(Task& t, int code, int status) {
  Task& tracer = *t.tracee_->tracer;
  ThreadGroup& to = tracer.thread_group();
  SigAction action = to.handlers_->Get(SIGCHLD);
  if (action.handler != kSigIgn && !(action.flags & SA_NOCLDSTOP)) {
    siginfo_t info = MakeSiginfo(SIGCHLD, code);
    info.si_pid = t.TidIn(tracer.pid_namespace());
    info.si_uid = tracer.credentials()->user_ns->MapUidOut(t.credentials()->ruid);
    info.si_status = status & 0x7f;
    to.SendSignal(info);
  }
  to.child_queue_.WakeAll(EPOLLIN);
}

// In the stop: does what the tracer asks for until it lets go.
void Ptrace::AwaitResume(Task& t, Kind kind) {
  Tracee& tracee = *t.tracee_;
  while (true) {
    const std::function<void()>* job = nullptr;
    fiber::WaitUntil(tracee.queue, EPOLLIN, [&] {
      absl::MutexLock l(&t.group_->signal_mutex());
      job = tracee.job;
      if (job) return true;
      bool trap = tracee.listening && (tracee.trap_stop || tracee.trap_notify);
      return !tracee.frozen && (tracee.resumed || trap || IsKilled(t, kind));
    });
    if (!job) return;
    (*job)();
    {
      absl::MutexLock l(&t.group_->signal_mutex());
      tracee.job = nullptr;
    }
    tracee.queue.WakeAll(EPOLLIN);
  }
}

// Linux: ptrace_stop. Returns the signal that the tracer sends the task on with.
int Ptrace::Stop(Task& t, Kind kind, int code, siginfo_t* info, uint64_t message) {
  Tracee& tracee = *t.tracee_;
  BeforeStop(t);
  bool tell_parent = false;
  int signal = kind == Kind::kSignal ? code : 0;
  bool stopped = false;
  {
    absl::MutexLock l(&t.kernel_->task_mutex());
    int status = code;
    {
      absl::MutexLock l2(&t.group_->signal_mutex());
      stopped = t.traced() && !IsKilled(t, kind);
      if (stopped) {
        tracee.stopped = true;
        tracee.resumed = tracee.listening = false;
        tracee.wait_code = tracee.resume_signal = code;
        tracee.info = info;
        tracee.message = message;
        tracee.trap_stop = false;
        if (code >> 8 == PTRACE_EVENT_STOP) tracee.trap_notify = false;
        if (kind == Kind::kGroup) {
          status = t.group_->stop_signo_;
          if (t.stop_counted_) tell_parent = t.JoinGroupStop() && IsReparented(t);
        }
        t.state_.store(TaskState::kTraced, std::memory_order_relaxed);
      }
    }
    if (stopped) TellTracer(t, kind == Kind::kGroup ? CLD_STOPPED : CLD_TRAPPED, status);
    tracee.queue.WakeAll(EPOLLIN);  // for who has attached to a stopped one
  }
  if (tell_parent) t.group_->NotifyStop(CLD_STOPPED);
  if (stopped) {
    AwaitResume(t, kind);
    absl::MutexLock l(&t.group_->signal_mutex());
    tracee.stopped = tracee.listening = false;
    tracee.info = nullptr;
    tracee.message = 0;
    tracee.wait_code = 0;
    // Ended by SIGKILL: nothing is left to be done but to die.
    signal = tracee.resumed ? tracee.resume_signal : 0;
    t.state_.store(TaskState::kRunning, std::memory_order_relaxed);
    t.RecalcPending();
  }
  AfterStop(t);
  return signal;
}

// Linux: ptrace_do_notify.
int Ptrace::Notify(Task& t, Kind kind, int signo, int code, uint64_t message) {
  siginfo_t info = MakeSiginfo(signo, code);
  info.si_pid = t.Tid();
  info.si_uid = t.user_ns().MapUidOut(t.creds().ruid);
  return Stop(t, kind, code, &info, message);
}

bool Ptrace::SignalStop(Task& t, siginfo_t* info) {
  {
    absl::MutexLock l(&t.group_->signal_mutex());
    t.stop_dequeued_ = true;
  }
  const int signo = Stop(t, Kind::kSignal, info->si_signo, info, 0);
  if (signo == 0) return false;
  if (signo != info->si_signo) {
    *info = MakeSiginfo(signo, SI_USER);
    absl::MutexLock l(&t.kernel_->task_mutex());
    if (Task* tracer = t.tracee_->tracer) {
      info->si_pid = tracer->TidIn(t.pid_namespace());
      info->si_uid = t.user_ns().MapUidOut(tracer->credentials()->ruid);
    }
  }
  absl::MutexLock l(&t.group_->signal_mutex());
  if (!(t.signal_mask() & SigBit(signo)) && !t.FatalPending()) return true;
  t.group_->SendLocked(*info, &t, nullptr);
  return false;
}

bool Ptrace::TrapPending(const Task& t) {
  if (!t.traced()) return false;
  return t.stop_counted_ || t.tracee_->trap_stop || t.tracee_->trap_notify;
}

void Ptrace::TrapStop(Task& t) {
  bool seized, in_stop;
  int signo;
  {
    absl::MutexLock l(&t.group_->signal_mutex());
    seized = (t.trace_flags() & kTraceSeized) != 0;
    in_stop = t.group_->stopped_ || t.group_->stop_pending_;
    signo = t.group_->stop_signo_;
  }
  if (seized) {
    if (!in_stop) signo = SIGTRAP;
    Notify(t, Kind::kGroup, signo, signo | PTRACE_EVENT_STOP << 8, 0);
  } else {
    Stop(t, Kind::kGroup, signo != 0 ? signo : SIGSTOP, nullptr, 0);
  }
}

// --- events ---

bool Ptrace::EventEnabled(const Task& t, int event) {
  return (t.trace_flags() & TraceOption(1u << event)) != 0;
}

void Ptrace::Event(Task& t, int event, uint64_t message) {
  if (!EventEnabled(t, event)) return;
  Notify(t, Kind::kOther, SIGTRAP, SIGTRAP | event << 8, message);
}

void Ptrace::PidEvent(Task& t, int event, const Pid& pid) {
  uint64_t number = 0;
  {
    absl::MutexLock l(&t.kernel_->task_mutex());
    if (t.tracee_->tracer) {
      number = static_cast<uint64_t>(pid.NumberIn(t.tracee_->tracer->pid_namespace()));
    }
  }
  Event(t, event, number);
}

uint64_t Ptrace::TidForTracer(Task& t) {
  absl::MutexLock l(&t.kernel_->task_mutex());
  Task* tracer = t.tracee_->tracer;
  return tracer ? static_cast<uint64_t>(t.TidIn(tracer->pid_namespace())) : 0;
}

// Linux: ptrace_event of PTRACE_EVENT_EXEC, which without the option is a SIGTRAP.
void Ptrace::ExecEvent(Task& t, uint64_t old_tid) {
  if (EventEnabled(t, PTRACE_EVENT_EXEC)) {
    Event(t, PTRACE_EVENT_EXEC, old_tid);
  } else if (t.traced() && !(t.trace_flags() & kTraceSeized)) {
    siginfo_t info = MakeSiginfo(SIGTRAP, SI_USER);
    SetSender(&info, t, t);
    t.SendSignal(info);
  }
}

// With the namespace ends all that is in it, whoever waits for a stop.
void Ptrace::ExitEvent(Task& t) {
  if (!EventEnabled(t, PTRACE_EVENT_EXIT) || t.pid_namespace().init == nullptr) return;
  Notify(t, Kind::kExit, SIGTRAP, SIGTRAP | PTRACE_EVENT_EXIT << 8,
         static_cast<uint64_t>(t.exit_status_));
}

// --- system calls ---

// Linux: ptrace_report_syscall.
void Ptrace::CallStop(Task& t, uint64_t message) {
  if (!t.traced()) return;
  const bool good = (t.trace_flags() & TraceOption(PTRACE_O_TRACESYSGOOD)) != 0;
  const int signo = Notify(t, Kind::kOther, SIGTRAP, SIGTRAP | (good ? kSysGood : 0), message);
  if (signo != 0) t.SendSignal(MakeSiginfo(signo, SI_KERNEL));
}

// Linux: syscall_trace_enter.
bool Ptrace::EnterCall(Task& t, uint32_t work) {
  Disarm(t);
  if (!(work & (kWorkTrace | kWorkEmulate))) return true;
  CallStop(t, PTRACE_EVENTMSG_SYSCALL_ENTRY);
  if (t.gone_) return false;
  // The tracer may have changed the call, and the memory behind it.
  t.context_->RereadCall();
  if (t.FatalPending() || (work & kWorkEmulate)) return false;
  return static_cast<int>(t.regs().orig_rax) != -1;
}

// Linux: syscall_exit_work.
void Ptrace::LeaveCall(Task& t) {
  const uint32_t work = t.syscall_work();
  if (!(work & kWorkOfTracer) || !t.traced() || t.gone_) return;
  if (t.lane_call_) {  // it has not been made yet
    Tracee& tracee = *t.tracee_;
    tracee.in_lane = true;
    tracee.lane_nr = t.regs().orig_rax;
    return;
  }
  if (work & kWorkEmulate) return;
  if (work & kWorkStep) {
    Disarm(t);
    siginfo_t info = MakeSiginfo(SIGTRAP, TRAP_BRKPT);
    info.si_addr = reinterpret_cast<void*>(t.regs().rip);
    t.ForceSignal(info);
  } else {
    CallStop(t, PTRACE_EVENTMSG_SYSCALL_EXIT);
  }
}

bool Ptrace::LaneEnded(Task& t) {
  if (!t.tracee_ || !std::exchange(t.tracee_->in_lane, false)) return false;
  t.regs().orig_rax = t.tracee_->lane_nr;
  LeaveCall(t);
  return true;
}

void Ptrace::FrameMade(Task& t) { Notify(t, Kind::kOther, SIGTRAP, SIGTRAP, 0); }

}  // namespace sentry
