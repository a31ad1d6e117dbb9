// prctl(2), arch_prctl(2), personality(2).
#include <asm/prctl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>

#include <algorithm>
#include <optional>

#include "sentry/kernel/kernel.h"
#include "sentry/kernel/task.h"
#include "sentry/kernel/user_io.h"
#include "sentry/syscalls/handlers.h"
#include "sentry/syscalls/thread/seccomp.h"

namespace sentry {

using base::Error;
using base::Ref;
using base::Result;
using base::UserPtr;

namespace {

// Of Linux versions that the headers may not know.
constexpr int kGetAuxv = 0x41555856;         // PR_GET_AUXV
constexpr int kSetMdwe = 65, kGetMdwe = 66;  // PR_SET_MDWE, PR_GET_MDWE

bool CapValid(uint64_t cap) { return cap <= CAP_LAST_CAP; }

// Linux: cap_prctl_drop.
Result<uint64_t> DropBounding(Task& t, uint64_t cap) {
  if (!t.HasCap(CAP_SETPCAP)) return Error(EPERM);
  if (!CapValid(cap)) return Error(EINVAL);
  Ref<Credentials> c = t.creds().Clone();
  c->bounding &= ~CapBit(static_cast<int>(cap));
  t.SetCredentials(std::move(c));
  return 0;
}

Result<uint64_t> SetSecurebits(Task& t, uint64_t bits) {
  const Credentials& old = t.creds();
  constexpr uint32_t kLocks = SECURE_ALL_LOCKS;
  if (((old.securebits & kLocks) >> 1) & (old.securebits ^ bits)) return Error(EPERM);
  if (old.securebits & kLocks & ~bits) return Error(EPERM);
  if (bits & ~uint64_t{SECURE_ALL_LOCKS | SECURE_ALL_BITS}) return Error(EPERM);
  if (!t.HasCap(CAP_SETPCAP)) return Error(EPERM);
  Ref<Credentials> c = old.Clone();
  c->securebits = static_cast<uint32_t>(bits);
  t.SetCredentials(std::move(c));
  return 0;
}

Result<uint64_t> Ambient(Task& t, const SyscallArgs& a) {
  const Credentials& old = t.creds();
  if (a[1] == PR_CAP_AMBIENT_CLEAR_ALL) {
    if (a[2] | a[3] | a[4]) return Error(EINVAL);
    Ref<Credentials> c = old.Clone();
    c->ambient = 0;
    t.SetCredentials(std::move(c));
    return 0;
  }
  if ((a[3] | a[4]) != 0 || !CapValid(a[2])) return Error(EINVAL);
  CapSet bit = CapBit(a.Int(2));
  if (a[1] == PR_CAP_AMBIENT_IS_SET) return (old.ambient & bit) != 0 ? 1 : 0;
  if (a[1] != PR_CAP_AMBIENT_RAISE && a[1] != PR_CAP_AMBIENT_LOWER) return Error(EINVAL);
  if (a[1] == PR_CAP_AMBIENT_RAISE && (!(old.permitted & bit) || !(old.inheritable & bit) ||
                                       (old.securebits & SECBIT_NO_CAP_AMBIENT_RAISE))) {
    return Error(EPERM);
  }
  Ref<Credentials> c = old.Clone();
  c->ambient = a[1] == PR_CAP_AMBIENT_RAISE ? c->ambient | bit : c->ambient & ~bit;
  t.SetCredentials(std::move(c));
  return 0;
}

// PR_SET_MM of the fields that programs use to change what /proc/PID/cmdline shows.
Result<uint64_t> SetMm(Task& t, const SyscallArgs& a) {
  if (a[4] != 0 || (a[3] != 0 && a[1] != PR_SET_MM_AUXV && a[1] != PR_SET_MM_MAP))
    return Error(EINVAL);
  if (!t.HasCap(CAP_SYS_RESOURCE)) return Error(EPERM);
  MmLayout layout = t.mm().layout();
  switch (a[1]) {
    case PR_SET_MM_ARG_START:
      layout.arg_start = a[2];
      break;
    case PR_SET_MM_ARG_END:
      layout.arg_end = a[2];
      break;
    case PR_SET_MM_ENV_START:
      layout.env_start = a[2];
      break;
    case PR_SET_MM_ENV_END:
      layout.env_end = a[2];
      break;
    case PR_SET_MM_START_CODE:
      layout.start_code = a[2];
      break;
    case PR_SET_MM_END_CODE:
      layout.end_code = a[2];
      break;
    case PR_SET_MM_START_DATA:
      layout.start_data = a[2];
      break;
    case PR_SET_MM_END_DATA:
      layout.end_data = a[2];
      break;
    case PR_SET_MM_START_STACK:
      layout.start_stack = a[2];
      break;
    default:
      return Error(EINVAL);
  }
  if (a[2] >= kUserAddressEnd) return Error(EINVAL);
  t.mm().SetLayout(layout);
  return 0;
}

void MarkSubreaper(Kernel& kernel) {
  // Descendants look for a subreaper only if they have one.
  for (const auto& group : kernel.ThreadGroups(*kernel.root_pid_ns()))
    group->has_child_subreaper = true;
}

// The options about capabilities and securebits; nothing for the others.
std::optional<Result<uint64_t>> CapabilityOption(Task& t, const SyscallArgs& a) {
  switch (a.Int(0)) {
    case PR_GET_KEEPCAPS:
      return (t.creds().securebits & SECBIT_KEEP_CAPS) ? 1 : 0;
    case PR_SET_KEEPCAPS: {
      if (a[1] > 1) return Error(EINVAL);
      if (t.creds().securebits & SECBIT_KEEP_CAPS_LOCKED) return Error(EPERM);
      Ref<Credentials> c = t.creds().Clone();
      c->securebits = a[1] ? c->securebits | SECBIT_KEEP_CAPS : c->securebits & ~SECBIT_KEEP_CAPS;
      t.SetCredentials(std::move(c));
      return 0;
    }
    case PR_CAPBSET_READ:
      if (!CapValid(a[1])) return Error(EINVAL);
      return (t.creds().bounding & CapBit(a.Int(1))) ? 1 : 0;
    case PR_CAPBSET_DROP:
      return DropBounding(t, a[1]);
    case PR_GET_SECUREBITS:
      return uint64_t{t.creds().securebits};
    case PR_SET_SECUREBITS:
      return SetSecurebits(t, a[1]);
    case PR_CAP_AMBIENT:
      return Ambient(t, a);
    default:
      return std::nullopt;
  }
}

Result<uint64_t> SetName(Task& t, uint64_t addr) {
  // At most 15 bytes and a NUL, which need not be there.
  std::string name;
  for (int i = 0; i < 15; ++i) {
    char c = TRY(UserPtr<char>(addr + i).CopyIn(t.memory()));
    if (c == 0) break;
    name.push_back(c);
  }
  t.SetComm(name);
  return 0;
}

Result<uint64_t> GetName(Task& t, uint64_t addr) {
  char buffer[16] = {};
  std::string name = t.comm();
  std::copy(name.begin(), name.end(), buffer);
  TRY(t.memory().Write(addr, std::as_bytes(std::span(buffer))));
  return 0;
}

Result<uint64_t> SetMceKill(Task& t, const SyscallArgs& a) {
  if ((a[3] | a[4]) != 0) return Error(EINVAL);
  if (a[1] == PR_MCE_KILL_CLEAR) {
    if (a[2] != 0) return Error(EINVAL);
    t.mce_kill = PR_MCE_KILL_DEFAULT;
    return 0;
  }
  if (a[1] != PR_MCE_KILL_SET || a[2] > PR_MCE_KILL_DEFAULT) return Error(EINVAL);
  t.mce_kill = a.Int(2);
  return 0;
}

// PR_GET_AUXV: as much of the vector as fits; how long it is.
Result<uint64_t> GetAuxv(Task& t, const SyscallArgs& a) {
  if ((a[3] | a[4]) != 0) return Error(EINVAL);
  std::vector<uint64_t> auxv = t.mm().layout().auxv;
  const size_t n = auxv.size();
  if (n < 2 || (auxv[n - 2] | auxv[n - 1]) != 0) auxv.insert(auxv.end(), {0, 0});
  const auto bytes = std::as_bytes(std::span(auxv));
  TRY(t.memory().Write(a[1], bytes.first(std::min<uint64_t>(bytes.size(), a[2]))));
  return uint64_t{bytes.size()};
}

Result<uint64_t> SetMdwe(Task& t, const SyscallArgs& a) {
  if ((a[2] | a[3] | a[4]) != 0) return Error(EINVAL);
  if ((a[1] & ~uint64_t{kMdweRefuseExecGain | kMdweNoInherit}) != 0) return Error(EINVAL);
  const int flags = a.Int(1);
  if ((flags & kMdweNoInherit) != 0 && (flags & kMdweRefuseExecGain) == 0) return Error(EINVAL);
  TRY(t.mm().SetMdwe(flags));
  return 0;
}

// Memory is the host's: that it is an I/O flusher's is kept, inherited and told.
Result<uint64_t> IoFlusher(Task& t, const SyscallArgs& a) {
  const bool set = a.Int(0) == PR_SET_IO_FLUSHER;
  if (!t.HasCap(CAP_SYS_RESOURCE)) return Error(EPERM);
  if ((a[2] | a[3] | a[4]) != 0 || a[1] > (set ? 1 : 0)) return Error(EINVAL);
  if (!set) return t.io_flusher ? 1 : 0;
  t.io_flusher = a[1] != 0;
  return 0;
}

}  // namespace

Result<uint64_t> SysPrctl(Task& t, const SyscallArgs& a) {
  ThreadGroup& group = t.thread_group();
  bool no_more = (a[1] | a[2] | a[3] | a[4]) == 0;
  bool only_one = (a[2] | a[3] | a[4]) == 0;
  if (auto result = CapabilityOption(t, a)) return *result;
  switch (a.Int(0)) {
    case PR_SET_PDEATHSIG:
      if (a[1] > kNumSignals) return Error(EINVAL);
      t.pdeath_signal = a.Int(1);
      return 0;
    case PR_GET_PDEATHSIG:
      TRY(UserPtr<int32_t>(a[1]).CopyOut(t.memory(), t.pdeath_signal.load()));
      return 0;
    case PR_GET_DUMPABLE:
      return static_cast<uint64_t>(t.mm().dumpable());
    case PR_SET_DUMPABLE:
      if (a[1] > 1) return Error(EINVAL);
      t.mm().SetDumpable(a.Int(1));
      return 0;
    case PR_SET_NAME:
      return SetName(t, a[1]);
    case PR_GET_NAME:
      return GetName(t, a[1]);
    case PR_GET_TIMING:
      return PR_TIMING_STATISTICAL;
    case PR_SET_TIMING:
      return a[1] == PR_TIMING_STATISTICAL ? Result<uint64_t>(0) : Error(EINVAL);
    case PR_GET_SECCOMP:
      return static_cast<uint64_t>(t.seccomp_mode());
    case PR_SET_SECCOMP:
      if (a[1] == SECCOMP_MODE_STRICT) return DoSeccomp(t, SECCOMP_SET_MODE_STRICT, 0, 0);
      if (a[1] == SECCOMP_MODE_FILTER) return DoSeccomp(t, SECCOMP_SET_MODE_FILTER, 0, a[2]);
      return Error(EINVAL);
    case PR_SET_TIMERSLACK:
      t.timer_slack_ns = a.Long(1) <= 0 ? t.default_timer_slack_ns.load() : a[1];
      return 0;
    case PR_GET_TIMERSLACK:
      return t.timer_slack_ns.load();
    case PR_SET_CHILD_SUBREAPER:
      group.child_subreaper = a[1] != 0;
      if (a[1] != 0) MarkSubreaper(t.kernel());
      return 0;
    case PR_GET_CHILD_SUBREAPER:
      TRY(UserPtr<int32_t>(a[1]).CopyOut(t.memory(), group.child_subreaper ? 1 : 0));
      return 0;
    case PR_SET_NO_NEW_PRIVS:
      if (a[1] != 1 || !only_one) return Error(EINVAL);
      t.no_new_privs = true;
      return 0;
    case PR_GET_NO_NEW_PRIVS:
      if (!no_more) return Error(EINVAL);
      return t.no_new_privs ? 1 : 0;
    case PR_GET_THP_DISABLE:
      if (!no_more) return Error(EINVAL);
      return static_cast<uint64_t>(t.thp_disable.load());
    case PR_SET_THP_DISABLE:
      if (!only_one) return Error(EINVAL);
      t.thp_disable = a[1] != 0;
      return 0;
    case PR_GET_TID_ADDRESS:
      TRY(UserPtr<uint64_t>(a[1]).CopyOut(t.memory(), t.words().clear_child_tid));
      return 0;
    case PR_SET_MM:
      return SetMm(t, a);
    case PR_MCE_KILL:
      return SetMceKill(t, a);
    case PR_MCE_KILL_GET:
      if (!no_more) return Error(EINVAL);
      return static_cast<uint64_t>(t.mce_kill.load());
    case PR_GET_TSC:
      TRY(UserPtr<int32_t>(a[1]).CopyOut(t.memory(), PR_TSC_ENABLE));
      return 0;
    case PR_SET_TSC:
      return a[1] == PR_TSC_ENABLE ? Result<uint64_t>(0) : Error(EINVAL);
    case PR_TASK_PERF_EVENTS_DISABLE:  // there are none
    case PR_TASK_PERF_EVENTS_ENABLE:
      return 0;
    case kSetMdwe:
      return SetMdwe(t, a);
    case kGetMdwe:
      if (!no_more) return Error(EINVAL);
      return static_cast<uint64_t>(t.mm().mdwe());
    case PR_SET_IO_FLUSHER:
    case PR_GET_IO_FLUSHER:
      return IoFlusher(t, a);
    case kGetAuxv:
      return GetAuxv(t, a);
    case PR_SET_SYSCALL_USER_DISPATCH:  // it always is off
      return a[1] == PR_SYS_DISPATCH_OFF && only_one ? Result<uint64_t>(0) : Error(EINVAL);
    default:
      return Error(EINVAL);
  }
}

Result<uint64_t> SysArchPrctl(Task& t, const SyscallArgs& a) {
  switch (a.Int(0)) {
    case ARCH_SET_FS:
      if (a[1] >= kUserAddressEnd) return Error(EPERM);
      t.regs().fs_base = a[1];
      return 0;
    case ARCH_SET_GS:
      if (a[1] >= kUserAddressEnd) return Error(EPERM);
      t.regs().gs_base = a[1];
      return 0;
    case ARCH_GET_FS:
      TRY(UserPtr<uint64_t>(a[1]).CopyOut(t.memory(), t.regs().fs_base));
      return 0;
    case ARCH_GET_GS:
      TRY(UserPtr<uint64_t>(a[1]).CopyOut(t.memory(), t.regs().gs_base));
      return 0;
    case 0x1011:  // ARCH_GET_CPUID: cpuid does not fault
      return 1;
    case 0x1012:  // ARCH_SET_CPUID
      return Error(ENODEV);
    default:
      return Error(EINVAL);
  }
}

Result<uint64_t> SysPersonality(Task& t, const SyscallArgs& a) {
  uint32_t old = t.personality;
  if (a.Uint(0) != 0xffffffff) t.personality = a.Uint(0);
  return old;
}

}  // namespace sentry
