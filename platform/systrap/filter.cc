#include "platform/systrap/filter.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <iterator>

#include "platform/mailbox.h"

namespace platform {
namespace {

// Assembles rules one behind the other. A call from outside of the stub raises SIGSYS, which is how
// the guest's own calls reach the sentry; one from the stub that no rule admits ends the process.
// The place of the instruction decides only whether a call is the stub's or the guest's, never
// whether it is harmless: hostile code can jump into the stub.
class Assembler {
 public:
  // The lower half of argument `index`.
  void LoadArg(int index) { Load(ArgOffset(index)); }
  void Load(uint32_t offset) { Emit(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset); }
  void Return(uint32_t action) { Emit(BPF_RET | BPF_K, 0, 0, action); }

  // Continues if A == k; else goes to the end of the rule, where the call is refused.
  void RequireEqual(uint32_t k) { RequireFalseExit(BPF_JEQ, k); }
  void RequireBelow(uint32_t k) {
    exits_true_.push_back(program_.size());
    Emit(BPF_JMP | BPF_JGE | BPF_K, 0, 0, k);
  }
  void And(uint32_t k) { Emit(BPF_ALU | BPF_AND | BPF_K, 0, 0, k); }

  // A rule for call `nr`: skipped for others.
  void BeginRule(uint32_t nr) {
    Load(offsetof(seccomp_data, nr));
    skip_ = program_.size();
    Emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, nr);
  }
  void EndRule() {
    Return(SECCOMP_RET_ALLOW);
    Refuse(SECCOMP_RET_KILL_PROCESS);
    program_[skip_].jf = static_cast<uint8_t>(program_.size() - skip_ - 1);
  }
  // A call `nr` is not made, and fails with `error`.
  void FailWith(uint32_t nr, uint32_t error) {
    Load(offsetof(seccomp_data, nr));
    Emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, nr);
    Return(SECCOMP_RET_ERRNO | error);
  }
  // What did not meet the requirements so far gets `action`.
  void Refuse(uint32_t action) {
    size_t here = program_.size();
    for (size_t at : exits_false_) program_[at].jf = static_cast<uint8_t>(here - at - 1);
    for (size_t at : exits_true_) program_[at].jt = static_cast<uint8_t>(here - at - 1);
    exits_false_.clear();
    exits_true_.clear();
    Return(action);
  }
  // The requirements so far hold, else the call is trapped.
  void EndPreamble() {
    Emit(BPF_JMP | BPF_JA, 0, 0, 1);
    Refuse(SECCOMP_RET_TRAP);
  }

  // Argument `index` is exactly `value`.
  void ArgEquals(int index, uint64_t value) {
    Load(ArgOffset(index));
    RequireEqual(static_cast<uint32_t>(value));
    Load(ArgOffset(index) + 4);
    RequireEqual(static_cast<uint32_t>(value >> 32));
  }
  // Argument `index` has no bits outside `mask` (32 bits).
  void ArgWithin(int index, uint32_t mask) {
    Load(ArgOffset(index) + 4);
    RequireEqual(0);
    Load(ArgOffset(index));
    And(~mask);
    RequireEqual(0);
  }
  // Argument `index` without the bits of `ignore` is one of `values`.
  void ArgOneOf(int index, uint32_t ignore, std::initializer_list<uint32_t> values) {
    Load(ArgOffset(index) + 4);
    RequireEqual(0);
    Load(ArgOffset(index));
    if (ignore != 0) And(~ignore);
    size_t left = values.size();
    for (uint32_t v : values) {
      left--;
      if (left == 0) {
        RequireEqual(v);
      } else {
        Emit(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint8_t>(left), 0, v);
      }
    }
  }

  // Admits the call if A == k.
  void AllowEqual(uint32_t k) {
    Emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, k);
    Return(SECCOMP_RET_ALLOW);
  }
  // Argument `index` is not an address in [begin, end), which lies in one 4 GiB. Last of a rule.
  void ArgOutside(int index, uint64_t begin, uint64_t end) {
    Load(ArgOffset(index) + 4);
    Emit(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, static_cast<uint32_t>(begin >> 32));
    Return(SECCOMP_RET_ALLOW);
    Load(ArgOffset(index));
    Emit(BPF_JMP | BPF_JGE | BPF_K, 1, 0, static_cast<uint32_t>(begin));
    Return(SECCOMP_RET_ALLOW);
    RequireFalseExit(BPF_JGE, static_cast<uint32_t>(end));
  }
  // The sum of arguments `a` and `b` is below `limit`, a multiple of 4 GiB.
  void SumBelow(int a, int b, uint64_t limit) {
    Load(ArgOffset(a));
    Emit(BPF_MISC | BPF_TAX, 0, 0, 0);
    Load(ArgOffset(b));
    Emit(BPF_ALU | BPF_ADD | BPF_X, 0, 0, 0);
    Emit(BPF_JMP | BPF_JGE | BPF_X, 6, 0, 0);  // no carry: past the first half
    for (bool carry : {true, false}) {
      Load(ArgOffset(a) + 4);
      Emit(BPF_MISC | BPF_TAX, 0, 0, 0);
      Load(ArgOffset(b) + 4);
      Emit(BPF_ALU | BPF_ADD | BPF_X, 0, 0, 0);
      if (!carry) break;
      Emit(BPF_ALU | BPF_ADD | BPF_K, 0, 0, 1);
      Emit(BPF_JMP | BPF_JA, 0, 0, 4);
    }
    RequireBelow(static_cast<uint32_t>(limit >> 32));
  }

  std::vector<uint64_t> Take() {
    std::vector<uint64_t> words(program_.size());
    static_assert(sizeof(sock_filter) == sizeof(uint64_t));
    memcpy(words.data(), program_.data(), words.size() * sizeof(uint64_t));
    return words;
  }

 private:
  static uint32_t ArgOffset(int index) {
    return static_cast<uint32_t>(offsetof(seccomp_data, args) + 8 * index);
  }
  void Emit(int code, uint8_t jt, uint8_t jf, uint32_t k) {
    program_.push_back(sock_filter{static_cast<uint16_t>(code), jt, jf, k});
  }
  void RequireFalseExit(int op, uint32_t k) {
    exits_false_.push_back(program_.size());
    Emit(BPF_JMP | op | BPF_K, 0, 0, k);
  }

  std::vector<sock_filter> program_;
  std::vector<size_t> exits_false_, exits_true_;
  size_t skip_ = 0;
};

// Waits and wakes on memory that it can address; no priority inheritance, which would touch other
// threads' scheduling. The doorbell, on which the sentry waits, is for waking alone: who waits
// there too takes others' rings, and a requeue would take the sentry away from it.
void FutexRule(Assembler& a) {
  a.BeginRule(SYS_futex);
  a.ArgWithin(1, FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME | 0xf);
  a.LoadArg(1);
  for (uint32_t op : {FUTEX_REQUEUE_PRIVATE, FUTEX_CMP_REQUEUE_PRIVATE}) a.AllowEqual(op);
  a.And(~static_cast<uint32_t>(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME));
  for (uint32_t op : {FUTEX_WAKE, FUTEX_WAKE_OP, FUTEX_WAKE_BITSET}) a.AllowEqual(op);
  a.ArgOneOf(1, FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME, {FUTEX_WAIT, FUTEX_WAIT_BITSET});
  a.ArgOutside(0, kSharedBase, kSharedBase + kSharedSize);
  a.EndRule();
}

void MemoryRules(Assembler& a) {
  // Memory of its own, or of a descriptor that the sentry sent; never at an address of the host's
  // choice, never populated, locked or in huge pages.
  a.BeginRule(SYS_mmap);
  a.ArgWithin(2, PROT_READ | PROT_WRITE | PROT_EXEC);
  a.ArgOneOf(
      3, MAP_NORESERVE,
      {MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, MAP_PRIVATE | MAP_FIXED, MAP_SHARED | MAP_FIXED});
  a.EndRule();
  // Only its own address space.
  a.BeginRule(SYS_munmap);
  a.EndRule();
  a.BeginRule(SYS_mprotect);
  a.ArgWithin(2, PROT_READ | PROT_WRITE | PROT_EXEC);
  a.EndRule();
  // Advice about its own pages that neither reaches files nor pins memory.
  a.BeginRule(SYS_madvise);
  a.ArgOneOf(2, 0,
             {MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_FREE,
              MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_COLD, MADV_PAGEOUT,
              MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_POPULATE_READ, MADV_POPULATE_WRITE});
  a.EndRule();
  // Moves its own pages to a fixed place, or has them grow into a hole behind them: the guest's,
  // not those of the stub's region, where the doorbell would get another address.
  a.BeginRule(SYS_mremap);
  a.ArgOneOf(3, 0, {MREMAP_MAYMOVE | MREMAP_FIXED, 0});
  a.SumBelow(0, 1, kRegionBase);
  a.EndRule();
}

void ThreadRules(Assembler& a) {
  // A thread or a child as the stub makes them: under this filter too, in no new namespace, and
  // bounded by the limits on processes. The call gate asks the sentry besides.
  a.BeginRule(SYS_clone);
  a.ArgOneOf(0, 0,
             {static_cast<uint32_t>(kThreadCloneFlags), static_cast<uint32_t>(kForkCloneFlags)});
  a.EndRule();
  // Ends the calling thread.
  a.BeginRule(SYS_exit);
  a.EndRule();
}

}  // namespace

// It runs for every call that a stub makes, beside the stub's own: so it looks at numbers alone
// where that one looks at arguments, first at those that stubs make most.
std::vector<uint64_t> BuildZygoteFilter(bool has_fsgsbase, Gated gated) {
  std::vector<uint32_t> calls = {
      SYS_futex,           SYS_rt_sigreturn, SYS_sched_yield, SYS_clock_gettime, SYS_mmap,
      SYS_munmap,          SYS_mprotect,     SYS_madvise,     SYS_mremap,        SYS_recvmsg,
      SYS_close,           SYS_exit,         SYS_membarrier,  SYS_rseq,
      SYS_restart_syscall,  // the stubs' own filter has an error for it
      SYS_prctl,            // of a stub that gets ready
      SYS_sendmsg,          // the zygote's answers to the sentry
  };
  if (!has_fsgsbase) calls.push_back(SYS_arch_prctl);
  std::vector<sock_filter> p = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
  };
  size_t left = calls.size() + 2;  // tests up to the first return
  auto test = [&](uint32_t nr, size_t place) {
    left--;
    p.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, static_cast<uint8_t>(left + place), 0));
  };
  const uint32_t memory[] = {SYS_mmap, SYS_munmap, SYS_mprotect, SYS_madvise, SYS_mremap};
  for (uint32_t nr : calls) {
    bool ask = gated == Gated::kMemory && std::ranges::count(memory, nr) != 0;
    test(nr, ask ? 5 : 1);
  }
  test(SYS_clone, 2);
  test(SYS_seccomp, 6);
  p.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  p.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));  // 1
  // clone: the zygote's own, or a stub's.
  p.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)));  // 2
  p.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(kZygoteCloneFlags), 0, 1));
  p.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  p.push_back(BPF_STMT(BPF_RET | BPF_K, gated == Gated::kNothing ? SECCOMP_RET_ALLOW
                                                                 : SECCOMP_RET_USER_NOTIF));  // 5
  // seccomp: a new stub's filter, which takes this call away.
  p.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)));  // 6
  p.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SECCOMP_SET_MODE_FILTER, 0, 1));
  p.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  p.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP));
  std::vector<uint64_t> words(p.size());
  memcpy(words.data(), p.data(), p.size() * sizeof(sock_filter));
  return words;
}

std::vector<uint64_t> BuildStubFilter(bool has_fsgsbase, bool strict) {
  Assembler a;
  // 64-bit entry, from the stub's text; the rest is the guest's call.
  a.Load(offsetof(seccomp_data, arch));
  a.RequireEqual(AUDIT_ARCH_X86_64);
  a.Load(offsetof(seccomp_data, instruction_pointer) + 4);
  a.RequireEqual(static_cast<uint32_t>(kStubBase >> 32));
  a.Load(offsetof(seccomp_data, instruction_pointer));
  a.RequireBelow(static_cast<uint32_t>(kStubTextMax));
  a.EndPreamble();

  // Restores registers of the caller.
  a.BeginRule(SYS_rt_sigreturn);
  a.EndRule();
  // How the host goes on with a timed futex wait that it has interrupted, after SIGCONT, say: the
  // stub does so itself.
  a.FailWith(SYS_restart_syscall, EINTR);
  FutexRule(a);
  // The host writes to the caller's own memory, and moves its instruction pointer within its own
  // code, when it preempts the caller.
  a.BeginRule(SYS_rseq);
  a.EndRule();
  // Interrupts the processors that run the caller's own threads; what concerns other processes
  // (GLOBAL, GLOBAL_EXPEDITED) is the sentry's to do.
  a.BeginRule(SYS_membarrier);
  a.ArgOneOf(
      0, 0,
      {MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
       MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
       MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ,
       MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ});
  a.EndRule();
  MemoryRules(a);
  // Its one socket, on which the sentry alone sends.
  if (!strict) {
    a.BeginRule(SYS_recvmsg);
    a.EndRule();
  }
  // The descriptors that the sentry has given it.
  a.BeginRule(SYS_close);
  a.EndRule();
  ThreadRules(a);
  // CPU time of the caller's own thread, and the times that everybody has through the vDSO.
  a.BeginRule(SYS_clock_gettime);
  a.ArgOneOf(0, 0,
             {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
              CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME});
  a.EndRule();
  // Gives the core to others.
  a.BeginRule(SYS_sched_yield);
  a.EndRule();
  if (!has_fsgsbase) {
    // Segment bases of the caller's own thread.
    a.BeginRule(SYS_arch_prctl);
    a.ArgOneOf(0, 0, {ARCH_SET_FS, ARCH_GET_FS, ARCH_SET_GS, ARCH_GET_GS});
    a.EndRule();
  }
  a.Return(SECCOMP_RET_KILL_PROCESS);
  return a.Take();
}

}  // namespace platform
