#include "platform/ptrace/tracer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "platform/mailbox.h"
#include "platform/systrap/call_gate.h"
#include "platform/systrap/futex.h"
#include "sentry/base/host_io.h"
#include "sentry/base/log.h"

// After <sys/ptrace.h>, which has names of its own for some of this.
#include <linux/ptrace.h>

namespace platform {
namespace {

constexpr int kTraceOptions = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                              PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL;
constexpr int kCallStop = SIGTRAP | 0x80;
// What this thread traces, and nobody else's children.
constexpr int kOurs = __WALL | __WNOTHREAD;
// The host tells of the tracee that it has attached last first, however often. So after some stops
// all that there are are taken before one of them is let go on.
constexpr uint32_t kStopsPerRound = 8;
constexpr size_t kMaxRound = 256;
constexpr int64_t kNapNs = 500'000;
constexpr uint64_t kSyscallSize = 2;  // `syscall`
constexpr int kSysSeccomp = 1;        // SYS_SECCOMP of <asm-generic/siginfo.h>

bool Ptrace(int request, pid_t tid, uint64_t addr = 0, uint64_t data = 0) {
  return syscall(SYS_ptrace, request, tid, addr, data) >= 0;
}

bool Poke(pid_t tid, size_t user_offset, uint64_t value) {
  return Ptrace(PTRACE_POKEUSER, tid, user_offset, value);
}
constexpr size_t kUserRax = offsetof(user, regs.rax);
constexpr size_t kUserRip = offsetof(user, regs.rip);
constexpr size_t kUserOrigRax = offsetof(user, regs.orig_rax);

bool InStubText(uint64_t rip) { return rip >= kStubBase && rip < kStubBase + kStubTextMax; }

// GS is that of a stub's thread, by which its code finds the mailbox.
bool IsSlot(uint64_t gs_base) {
  return gs_base >= SlotAddress(0) && gs_base < SlotAddress(kMaxSlots) && gs_base % kSlotSize == 0;
}

std::string YamaScope() {
  int fd = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  char c = 0;
  const bool have = base::HostRead(fd, &c, 1) == 1;
  close(fd);
  return have ? std::string(1, c) : "";
}

std::string WhyRefused(int error) {
  std::string why = "the host lets nobody be traced: ptrace: " + std::string(strerror(error));
  std::string scope = YamaScope();
  if (scope == "2" || scope == "3") {
    why += " (kernel.yama.ptrace_scope is " + scope + "; 0 or 1 would do)";
  }
  return why;
}

}  // namespace

Tracer::Tracer(std::span<const uint64_t> zygote_filter, std::span<const uint64_t> stub_filter,
               CallGate* gate, uint32_t* doorbell)
    : zygote_filter_(zygote_filter), stub_filter_(stub_filter), gate_(gate), doorbell_(doorbell) {}

Tracer::~Tracer() {
  if (thread_.joinable()) thread_.join();
}

base::Status Tracer::Start(int zygote, uint64_t entry, std::string* why) {
  zygote_ = zygote;
  entry_ = entry;
  base::Status seized;
  absl::Notification done;
  thread_ = std::thread([&] { Run(&seized, &done); });
  done.WaitForNotification();
  if (!seized.ok()) *why = WhyRefused(seized.error().code());
  return seized;
}

void Tracer::Run(base::Status* seized, absl::Notification* done) {
  pthread_setname_np(pthread_self(), "stub-tracer");
  if (!Ptrace(PTRACE_SEIZE, zygote_, 0, kTraceOptions) || !Ptrace(PTRACE_INTERRUPT, zygote_)) {
    *seized = base::LastError();
    done->Notify();
    return;
  }
  zygote_stopped_ = done;
  while (WaitForStops()) {
    for (const Stop& stop : stops_) Handle(stop);
    stops_.clear();
  }
  if (zygote_stopped_ != nullptr) {  // it has not lived so long
    *seized = base::Error(ESRCH);
    done->Notify();
  }
}

// ---- What has stopped ---------------------------------------------------------------------------

// False when there are no tracees left.
bool Tracer::WaitForStops() {
  siginfo_t info;
  info.si_pid = 0;
  // What has ended stays until it is known whose it is to reap.
  if (waitid(P_ALL, 0, &info, WSTOPPED | WEXITED | WNOWAIT | kOurs) != 0) return errno == EINTR;
  if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED) {
    OnEnd(info.si_pid);
    TakeStops();
  } else if (++since_round_ >= kStopsPerRound) {
    TakeStops();
  } else {
    stops_.push_back({info.si_pid, info.si_status});  // to go on is to take it
  }
  return true;
}

void Tracer::TakeStops() {
  since_round_ = 0;
  while (stops_.size() < kMaxRound) {
    siginfo_t info;
    info.si_pid = 0;
    if (waitid(P_ALL, 0, &info, WSTOPPED | WNOHANG | kOurs) != 0 || info.si_pid == 0) return;
    stops_.push_back({info.si_pid, info.si_status});
  }
}

// A tracee that was killed once more while it ended: others are let go before (see Handle). Threads
// are ours to reap. A process is its parent's, the keeper, which has been told as we have.
void Tracer::OnEnd(pid_t tid) {
  tracees_.erase(tid);
  const long pidfd = syscall(SYS_pidfd_open, tid, 0);
  if (pidfd >= 0) {
    close(static_cast<int>(pidfd));
    const timespec nap{0, kNapNs};
    nanosleep(&nap, nullptr);
    return;
  }
  siginfo_t info;
  waitid(P_PID, static_cast<id_t>(tid), &info, WEXITED | WNOHANG | kOurs);
}

void Tracer::Handle(const Stop& stop) {
  Tracee& tracee = tracees_[stop.tid];
  const int signo = stop.status & 0xff;
  switch (stop.status >> 8) {
    case 0:
      if (signo == kCallStop) {
        HandleCall(stop.tid, &tracee);
      } else {
        HandleSignal(stop.tid, &tracee, signo);
      }
      return;
    case PTRACE_EVENT_EXIT:
      // It runs no more code. Without us it is reaped as any other.
      Ptrace(PTRACE_DETACH, stop.tid);
      tracees_.erase(stop.tid);
      return;
    case PTRACE_EVENT_STOP:
      // The host stops the whole process, by SIGSTOP say, until it gets SIGCONT.
      if (signo != SIGTRAP) {
        Ptrace(PTRACE_LISTEN, stop.tid);
        return;
      }
      Continue(stop.tid, tracee);
      if (stop.tid == zygote_ && zygote_stopped_ != nullptr) {
        std::exchange(zygote_stopped_, nullptr)->Notify();
      }
      return;
    default:  // it has made a process or thread, which stops by itself
      Continue(stop.tid, tracee);
      return;
  }
}

// A tracee that has been killed meanwhile is not there any more, and needs nothing.
void Tracer::Continue(pid_t tid, const Tracee& tracee, int signo) {
  Ptrace(tracee.mode == Mode::kSkip ? PTRACE_SYSEMU : PTRACE_SYSCALL, tid, 0,
         static_cast<uint64_t>(signo));
}

void Tracer::HandleSignal(pid_t tid, Tracee* tracee, int signo) {
  if (signo == SIGSYS && tracee->raised_arch != 0) {
    // As seccomp's SECCOMP_RET_TRAP describes it (include/uapi/asm-generic/siginfo.h).
    siginfo_t info{};
    info.si_signo = SIGSYS;
    info.si_code = kSysSeccomp;
    info.si_call_addr = reinterpret_cast<void*>(tracee->raised.instruction_pointer);
    info.si_syscall = tracee->raised.nr;
    info.si_arch = tracee->raised_arch;
    tracee->raised_arch = 0;
    Ptrace(PTRACE_SETSIGINFO, tid, 0, reinterpret_cast<uint64_t>(&info));
  }
  Continue(tid, *tracee, signo);
}

// ---- Calls --------------------------------------------------------------------------------------

void Tracer::HandleCall(pid_t tid, Tracee* tracee) {
  ptrace_syscall_info info{};
  if (!Ptrace(PTRACE_GET_SYSCALL_INFO, tid, sizeof(info), reinterpret_cast<uint64_t>(&info))) {
    // It is gone; and what cannot be looked at must go.
    return Continue(tid, *tracee, SIGKILL);
  }
  if (info.op != PTRACE_SYSCALL_INFO_ENTRY) return Continue(tid, *tracee);  // it has been made
  seccomp_data call{};
  call.nr = static_cast<int>(info.entry.nr);
  call.arch = info.arch;
  call.instruction_pointer = info.instruction_pointer;
  static_assert(sizeof(call.args) == sizeof(info.entry.args));
  memcpy(call.args, info.entry.args, sizeof(call.args));
  const uint32_t verdict = Judge(tid, call);
  if ((verdict & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_KILL_PROCESS) {
    LOG_LIMITED(base::LogLevel::kWarning,
                "stub thread %d has made host call %d, outside its list, and ended", tid, call.nr);
    return Continue(tid, *tracee, SIGKILL);
  }
  if (Admit(tid, tracee, call, verdict)) return Continue(tid, *tracee);
  Guess(tracee, kGuests);
  if (EnterStub(tid, call)) return Continue(tid, *tracee);
  Raise(tid, tracee, call);
}

// As the host's seccomp takes several filters: the strictest decides.
uint32_t Tracer::Judge(pid_t tid, const seccomp_data& call) const {
  const uint32_t zygotes = zygote_filter_.Action(call);
  if (tid == zygote_) return zygotes;
  auto rank = [](uint32_t verdict) {
    return static_cast<int32_t>(verdict & SECCOMP_RET_ACTION_FULL);
  };
  const uint32_t stubs = stub_filter_.Action(call);
  return rank(stubs) <= rank(zygotes) ? stubs : zygotes;
}

// False if the call must not be made. Else the tracee can go on: with the call, to it once more, or
// without it and with the error that its own asking has got.
bool Tracer::Admit(pid_t tid, Tracee* tracee, const seccomp_data& call, uint32_t verdict) {
  auto fail = [&](uint32_t error) {
    if (!Poke(tid, kUserOrigRax, ~0ull)) return;  // it is gone
    Poke(tid, kUserRax, -uint64_t{error});
  };
  const uint32_t action = verdict & SECCOMP_RET_ACTION_FULL;
  if (action == SECCOMP_RET_ERRNO) {
    fail(verdict & SECCOMP_RET_DATA);
    Guess(tracee, kOwn);
    return true;
  }
  if (action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_USER_NOTIF) return false;
  RingFor(call);
  if (tracee->mode == Mode::kSkip) {
    Poke(tid, kUserRip, call.instruction_pointer - kSyscallSize);
    Poke(tid, kUserRax, static_cast<uint64_t>(call.nr));
    tracee->mode = Mode::kMake;
    return true;
  }
  if (action == SECCOMP_RET_USER_NOTIF && !gate_->Admit(tid, call)) fail(EPERM);
  Guess(tracee, kOwn);
  return true;
}

// Rings for a stub that is about to wait on a word of its mailbox.
void Tracer::RingFor(const seccomp_data& call) const {
  if (call.nr != SYS_futex || call.args[1] != FUTEX_WAIT || call.args[0] < kMailboxBase ||
      call.args[0] >= kMailboxBase + kMailboxSize ||
      __atomic_load_n(doorbell_, __ATOMIC_SEQ_CST) == 0) {
    return;
  }
  __atomic_store_n(doorbell_, 0u, __ATOMIC_SEQ_CST);
  FutexWakeShared(doorbell_, 1);
}

void Tracer::Guess(Tracee* tracee, Kind kind) {
  tracee->next[tracee->last] = kind;
  tracee->last = kind;
  tracee->mode = tracee->next[kind] == kOwn ? Mode::kMake : Mode::kSkip;
}

// A call of the guest's continues in the stub's code, with its registers as a patched site leaves
// them. False if the stub cannot take it there: its thread's GS is the guest's.
bool Tracer::EnterStub(pid_t tid, const seccomp_data& call) {
  if (call.arch != AUDIT_ARCH_X86_64 || InStubText(call.instruction_pointer - 1)) return false;
  user_regs_struct regs;
  if (!Ptrace(PTRACE_GETREGS, tid, 0, reinterpret_cast<uint64_t>(&regs))) return false;
  if (!IsSlot(regs.gs_base)) return false;
  regs.rcx = regs.rip;
  regs.r11 = regs.eflags;
  regs.rax = regs.orig_rax;
  regs.orig_rax = ~0ull;
  regs.rip = entry_;
  return Ptrace(PTRACE_SETREGS, tid, 0, reinterpret_cast<uint64_t>(&regs));
}

void Tracer::Raise(pid_t tid, Tracee* tracee, const seccomp_data& call) {
  user_regs_struct regs;
  if (!Ptrace(PTRACE_GETREGS, tid, 0, reinterpret_cast<uint64_t>(&regs))) return;
  // As the host rolls a call back that seccomp traps, and so that no signal takes it for one that
  // is to be restarted.
  regs.rax = regs.orig_rax;
  regs.orig_rax = ~0ull;
  if (!Ptrace(PTRACE_SETREGS, tid, 0, reinterpret_cast<uint64_t>(&regs))) return;
  tracee->raised_arch = call.arch;
  tracee->raised = call;
  Continue(tid, *tracee, SIGSYS);
}

}  // namespace platform
