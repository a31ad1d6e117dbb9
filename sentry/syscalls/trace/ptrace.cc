// ptrace(2) (Linux: kernel/ptrace.c, arch/x86/kernel/ptrace.c).
#include <elf.h>
#include <linux/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/ptrace/ptrace.h"
#include "sentry/kernel/seccomp/filter.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/trace/ptrace_regs.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;
using base::UserPtr;

namespace {

// Those that headers leave out or call otherwise.
constexpr int kGetRseqConfiguration = 0x420f;
constexpr uint64_t kSyscallArch = 0xc000003e;  // AUDIT_ARCH_X86_64
constexpr int kCallTrap = SIGTRAP | 0x80;      // si_code of a syscall stop with TRACESYSGOOD
constexpr size_t kMaxPeek = 1024;

// One request to a tracee in a stop.
struct Request {
  Task& tracer;
  StoppedTracee& tracee;
  uint64_t addr, data;
  base::UserMemory& memory() const { return tracer.memory(); }
};

// --- memory and registers ---

Result<uint64_t> PeekData(const Request& r) {
  Ref<MemoryManager> mm = r.tracee.task().mm_ref();
  if (!mm) return Error(EIO);
  uint64_t word = 0;
  std::span<std::byte> bytes = std::as_writable_bytes(std::span(&word, 1));
  base::Result<size_t> n = mm->address_space().ReadPartial(r.addr, bytes);
  if (!n.ok() || *n != bytes.size()) {
    n = Error(EIO);
    r.tracee.Run([&] { n = mm->ForcedRead(r.tracee.task(), r.addr, bytes); });
  }
  if (!n.ok() || *n != bytes.size()) return Error(EIO);
  TRY(UserPtr<uint64_t>(r.data).CopyOut(r.memory(), word));
  return 0;
}

Result<uint64_t> PokeData(const Request& r) {
  Ref<MemoryManager> mm = r.tracee.task().mm_ref();
  if (!mm) return Error(EIO);
  std::span<const std::byte> bytes = std::as_bytes(std::span(&r.data, 1));
  base::Result<size_t> n = mm->address_space().WritePartial(r.addr, bytes);
  if (!n.ok() || *n != bytes.size()) {
    n = Error(EIO);
    r.tracee.Run([&] { n = mm->ForcedWrite(r.tracee.task(), r.addr, bytes); });
  }
  if (!n.ok() || *n != bytes.size()) return Error(EIO);
  return 0;
}

// The register set `type` in whole at r.data.
Result<uint64_t> GetWholeRegset(const Request& r, uint64_t type) {
  std::vector<std::byte> bytes = TRY(GetRegset(r.tracee, type));
  if (!r.memory().Write(r.data, bytes).ok()) return Error(EFAULT);
  return 0;
}

Result<uint64_t> SetWholeRegset(const Request& r, uint64_t type, size_t size) {
  std::vector<std::byte> bytes(size);
  if (!r.memory().Read(r.data, bytes).ok()) return Error(EFAULT);
  TRY(SetRegset(r.tracee, type, std::move(bytes)));
  return 0;
}

// Linux: ptrace_regset.
Result<uint64_t> Regset(const Request& r, bool set) {
  struct Iov {
    uint64_t base, length;
  };
  UserPtr<Iov> where(r.data);
  Iov iov = TRY(where.CopyIn(r.memory()));
  std::vector<std::byte> now = TRY(GetRegset(r.tracee, r.addr));
  if (iov.length % sizeof(uint64_t) != 0) return Error(EINVAL);
  iov.length = std::min<uint64_t>(iov.length, now.size());
  now.resize(iov.length);
  if (set) {
    TRY(r.memory().Read(iov.base, now));
    TRY(SetRegset(r.tracee, r.addr, std::move(now)));
  } else {
    TRY(r.memory().Write(iov.base, now));
  }
  TRY(UserPtr<uint64_t>(r.data + offsetof(Iov, length)).CopyOut(r.memory(), iov.length));
  return 0;
}

// Linux: do_arch_prctl_64 with another task; the value is in `addr`.
Result<uint64_t> ArchPrctl(const Request& r) {
  constexpr uint64_t kSetGs = 0x1001, kSetFs = 0x1002, kGetFs = 0x1003, kGetGs = 0x1004;
  platform::Regs& regs = r.tracee.task().regs();
  switch (r.data) {
    case kSetFs:
    case kSetGs:
      if (r.addr >= kUserAddressEnd) return Error(EPERM);
      (r.data == kSetFs ? regs.fs_base : regs.gs_base) = r.addr;
      return 0;
    case kGetFs:
    case kGetGs:
      TRY(UserPtr<uint64_t>(r.addr).CopyOut(r.memory(),
                                            r.data == kGetFs ? regs.fs_base : regs.gs_base));
      return 0;
    default:
      return Error(EINVAL);
  }
}

// --- signals ---

Result<uint64_t> GetSiginfo(const Request& r) {
  const siginfo_t* info = r.tracee.state().info;
  if (!info) return Error(EINVAL);
  TRY(UserPtr<siginfo_t>(r.data).CopyOut(r.memory(), *info));
  return 0;
}

Result<uint64_t> SetSiginfo(const Request& r) {
  siginfo_t info = TRY(UserPtr<siginfo_t>(r.data).CopyIn(r.memory()));
  if (!r.tracee.state().info) return Error(EINVAL);
  *r.tracee.state().info = info;
  return 0;
}

// Linux: ptrace_peek_siginfo. Copies what is queued, without taking it.
Result<uint64_t> PeekSiginfo(const Request& r) {
  struct Args {
    uint64_t offset;
    uint32_t flags;
    int32_t count;
  };
  Args args = TRY(UserPtr<Args>(r.addr).CopyIn(r.memory()));
  if ((args.flags & ~uint32_t{PTRACE_PEEKSIGINFO_SHARED}) || args.count < 0) return Error(EINVAL);
  const size_t count = std::min<size_t>(static_cast<size_t>(args.count), kMaxPeek);
  std::vector<siginfo_t> found = r.tracee.task().PeekSignals(args.flags != 0, args.offset, count);
  for (size_t i = 0; i < found.size(); i++) {
    base::Status put = (UserPtr<siginfo_t>(r.data) + i).CopyOut(r.memory(), found[i]);
    if (!put.ok()) return i > 0 ? Result<uint64_t>(i) : put.error();
  }
  return found.size();
}

Result<uint64_t> GetSigmask(const Request& r) {
  if (r.addr != sizeof(SigSet)) return Error(EINVAL);
  TRY(UserPtr<SigSet>(r.data).CopyOut(r.memory(), r.tracee.task().TracedMask()));
  return 0;
}

Result<uint64_t> SetSigmask(const Request& r) {
  if (r.addr != sizeof(SigSet)) return Error(EINVAL);
  r.tracee.task().SetTracedMask(TRY(UserPtr<SigSet>(r.data).CopyIn(r.memory())));
  return 0;
}

// --- what the stop is about ---

// Linux: ptrace_get_syscall_info.
Result<uint64_t> GetSyscallInfo(const Request& r) {
  const Tracee& state = r.tracee.state();
  const platform::Regs& regs = r.tracee.task().regs();
  ptrace_syscall_info info{};
  info.arch = kSyscallArch;
  info.instruction_pointer = regs.rip;
  info.stack_pointer = regs.rsp;
  size_t size = offsetof(ptrace_syscall_info, entry);
  const int code = state.info ? state.info->si_code : 0;
  const bool seccomp = code == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8);
  const uint64_t args[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  if (seccomp) {
    info.op = PTRACE_SYSCALL_INFO_SECCOMP;
    info.seccomp.nr = regs.orig_rax;
    std::copy(std::begin(args), std::end(args), std::begin(info.seccomp.args));
    info.seccomp.ret_data = static_cast<uint32_t>(state.message);
    size = offsetof(ptrace_syscall_info, seccomp.ret_data) + sizeof(info.seccomp.ret_data);
  } else if (code == kCallTrap && state.message == PTRACE_EVENTMSG_SYSCALL_ENTRY) {
    info.op = PTRACE_SYSCALL_INFO_ENTRY;
    info.entry.nr = regs.orig_rax;
    std::copy(std::begin(args), std::end(args), std::begin(info.entry.args));
    size = offsetof(ptrace_syscall_info, entry.args) + sizeof(info.entry.args);
  } else if (code == kCallTrap && state.message == PTRACE_EVENTMSG_SYSCALL_EXIT) {
    info.op = PTRACE_SYSCALL_INFO_EXIT;
    info.exit.rval = static_cast<int64_t>(regs.rax);
    info.exit.is_error = info.exit.rval < 0 && info.exit.rval >= -4095;
    size = offsetof(ptrace_syscall_info, exit.is_error) + sizeof(info.exit.is_error);
  }
  std::span<const std::byte> bytes = std::as_bytes(std::span(&info, 1));
  TRY(r.memory().Write(r.data, bytes.first(std::min<uint64_t>(r.addr, size))));
  return size;
}

Result<uint64_t> GetRseq(const Request& r) {
  struct Config {
    uint64_t addr;
    uint32_t size, signature, flags, pad;
  };
  const Task::Rseq rseq = r.tracee.task().WordsNow().rseq;
  const Config config{rseq.addr, rseq.length, rseq.signature, 0, 0};
  std::span<const std::byte> bytes = std::as_bytes(std::span(&config, 1));
  TRY(r.memory().Write(r.data, bytes.first(std::min<uint64_t>(r.addr, sizeof(config)))));
  return sizeof(config);
}

// --- going on ---

Result<uint64_t> SetOptions(const Request& r) {
  if (r.data & ~uint64_t{kTraceOptions}) return Error(EINVAL);
  r.tracee.SetOptions(static_cast<uint32_t>(r.data));
  return 0;
}

Result<uint64_t> Resume(const Request& r, uint32_t work) {
  if (r.data > kNumSignals) return Error(EIO);
  r.tracee.Resume(work, static_cast<int>(r.data));
  return 0;
}

Result<uint64_t> Listen(const Request& r) {
  const siginfo_t* info = r.tracee.state().info;
  const bool seized = (r.tracee.task().trace_flags() & kTraceSeized) != 0;
  if (!seized || !info || info->si_code >> 8 != PTRACE_EVENT_STOP) return Error(EIO);
  r.tracee.Listen();
  return 0;
}

Result<uint64_t> Detach(const Request& r) {
  if (r.data > kNumSignals) return Error(EIO);
  Deferred later;
  absl::MutexLock l(&r.tracer.kernel().task_mutex());
  Ptrace::Detach(r.tracee.task(), static_cast<int>(r.data), &later);
  return 0;
}

// Requests to a tracee in a stop.
Result<uint64_t> Serve(int request, const Request& r) {
  switch (request) {
    case PTRACE_PEEKTEXT:
    case PTRACE_PEEKDATA:
      return PeekData(r);
    case PTRACE_POKETEXT:
    case PTRACE_POKEDATA:
      return PokeData(r);
    case PTRACE_PEEKUSR: {
      const uint64_t word = TRY(PeekUser(r.tracee, r.addr));
      TRY(UserPtr<uint64_t>(r.data).CopyOut(r.memory(), word));
      return 0;
    }
    case PTRACE_POKEUSR:
      TRY(PokeUser(r.tracee, r.addr, r.data));
      return 0;
    case PTRACE_GETREGS:
      return GetWholeRegset(r, NT_PRSTATUS);
    case PTRACE_SETREGS:
      return SetWholeRegset(r, NT_PRSTATUS, sizeof(user_regs_struct));
    case PTRACE_GETFPREGS:
      return GetWholeRegset(r, NT_PRFPREG);
    case PTRACE_SETFPREGS:
      return SetWholeRegset(r, NT_PRFPREG, sizeof(user_fpregs_struct));
    case PTRACE_GETREGSET:
      return Regset(r, /*set=*/false);
    case PTRACE_SETREGSET:
      return Regset(r, /*set=*/true);
    case PTRACE_ARCH_PRCTL:
      return ArchPrctl(r);
    case PTRACE_GETSIGINFO:
      return GetSiginfo(r);
    case PTRACE_SETSIGINFO:
      return SetSiginfo(r);
    case PTRACE_PEEKSIGINFO:
      return PeekSiginfo(r);
    case PTRACE_GETSIGMASK:
      return GetSigmask(r);
    case PTRACE_SETSIGMASK:
      return SetSigmask(r);
    case PTRACE_SETOPTIONS:
      return SetOptions(r);
    case PTRACE_GETEVENTMSG:
      TRY(UserPtr<uint64_t>(r.data).CopyOut(r.memory(), r.tracee.state().message));
      return 0;
    case PTRACE_GET_SYSCALL_INFO:
      return GetSyscallInfo(r);
    case kGetRseqConfiguration:
      return GetRseq(r);
    case PTRACE_SECCOMP_GET_FILTER:  // as a kernel without CONFIG_CHECKPOINT_RESTORE
      return Error(EINVAL);
    case PTRACE_LISTEN:
      return Listen(r);
    case PTRACE_DETACH:
      return Detach(r);
    case PTRACE_CONT:
      return Resume(r, 0);
    case PTRACE_SYSCALL:
      return Resume(r, kWorkTrace);
    case PTRACE_SINGLESTEP:
      return Resume(r, kWorkStep);
    case PTRACE_SYSEMU:
      return Resume(r, kWorkEmulate);
    case PTRACE_SYSEMU_SINGLESTEP:
      return Resume(r, kWorkEmulate | kWorkStep);
    default:
      return Error(EIO);
  }
}

}  // namespace

Result<uint64_t> SysPtrace(Task& t, const SyscallArgs& a) {
  const int request = static_cast<int>(a[0]);
  if (a[0] == PTRACE_TRACEME) {
    TRY(Ptrace::TraceMe(t));
    return 0;
  }
  Ref<Task> target = t.kernel().FindTask(t.pid_namespace(), a.Int(1));
  if (!target) return Error(ESRCH);
  const bool seize = request == PTRACE_SEIZE;
  if (request == PTRACE_ATTACH || seize) {
    if (seize && (a[2] != 0 || (a[3] & ~uint64_t{kTraceOptions}))) return Error(EIO);
    TRY(Ptrace::Attach(t, *target, seize, seize ? static_cast<uint32_t>(a[3]) : 0));
    return 0;
  }
  if (request == PTRACE_KILL || request == PTRACE_INTERRUPT) {
    TRY(Ptrace::CheckTracer(t, *target));
    if (request == PTRACE_KILL) {
      siginfo_t info = MakeSiginfo(SIGKILL, SI_USER);
      SetSender(&info, t, *target);
      target->SendSignal(info);
      return 0;
    }
    TRY(Ptrace::Interrupt(*target));
    return 0;
  }
  StoppedTracee tracee = TRY(StoppedTracee::Freeze(t, std::move(target)));
  return Serve(request, Request{t, tracee, a[2], a[3]});
}

}  // namespace sentry
