// Signals: sets, actions, queues. Follows Linux's kernel/signal.c. Layouts are those of the amd64
// system call interface.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/ref.h"

namespace platform {
class Context;
}

namespace sentry {

class Task;

inline constexpr int kNumSignals = 64;     // _NSIG
inline constexpr int kFirstRealTime = 32;  // the kernel's SIGRTMIN (libc keeps 32 and 33)

// Bit n-1 for signal n, as sigset_t of the system calls.
using SigSet = uint64_t;
constexpr SigSet SigBit(int signo) { return SigSet{1} << (signo - 1); }
constexpr bool SigValid(int signo) { return signo >= 1 && signo <= kNumSignals; }
inline constexpr SigSet kUnblockable = SigBit(SIGKILL) | SigBit(SIGSTOP);
inline constexpr SigSet kStopSignals =
    SigBit(SIGSTOP) | SigBit(SIGTSTP) | SigBit(SIGTTIN) | SigBit(SIGTTOU);
// Raised by the instruction that runs: taken before others (Linux: SYNCHRONOUS_MASK).
inline constexpr SigSet kSynchronous = SigBit(SIGSEGV) | SigBit(SIGBUS) | SigBit(SIGILL) |
                                       SigBit(SIGTRAP) | SigBit(SIGFPE) | SigBit(SIGSYS);

// struct sigaction of rt_sigaction(2).
struct SigAction {
  uint64_t handler = 0;  // 0 SIG_DFL, 1 SIG_IGN
  uint64_t flags = 0;    // SA_*
  uint64_t restorer = 0;
  SigSet mask = 0;
};
inline constexpr uint64_t kSigDfl = 0, kSigIgn = 1;
inline constexpr uint64_t kSaRestorer = 0x04000000;
// Flags that the kernel knows (UAPI_SA_FLAGS); others read back as zero.
inline constexpr uint64_t kKnownSaFlags = SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_ONSTACK |
                                          SA_RESTART | SA_NODEFER | SA_RESETHAND | 0x800 |
                                          kSaRestorer;

enum class SigDefault { kTerminate, kCore, kIgnore, kStop, kContinue };
SigDefault DefaultAction(int signo);

// A siginfo with si_signo, si_code and zeros. For SI_USER and the like the ids are filled in by
// SetSender for the receiver they go to.
siginfo_t MakeSiginfo(int signo, int code);
// si_pid and si_uid of `sender` as `receiver` sees them (0 if it does not).
void SetSender(siginfo_t* info, const Task& sender, const Task& receiver);

// Actions of a process, shared with CLONE_SIGHAND (Linux: sighand_struct). Thread-safe.
class SignalHandlers : public base::RefCounted {
 public:
  SignalHandlers() = default;
  base::Ref<SignalHandlers> Fork() const;
  SigAction Get(int signo) const;
  // The process's only thread may change them without a call (see platform::Context), until
  // somebody here looks at them or changes them. Close comes before `context` goes, before there is
  // another thread, and before a signal is made pending.
  void Open(platform::Context& context);
  void Close() const;
  // They were open, and are to be so again when the process's thread goes on and no signal is
  // pending.
  bool WantsOpen() const { return wants_open_.load(std::memory_order_relaxed); }
  void StayClosed() { wants_open_.store(false, std::memory_order_relaxed); }
  // Returns the old one. SIGKILL and SIGSTOP are the caller's check.
  SigAction Set(int signo, const SigAction& action);
  // exec: what was handled becomes SIG_DFL; SIG_IGN stays; flags and masks go.
  void ResetForExec();
  // clone(CLONE_CLEAR_SIGHAND): handled ones become SIG_DFL.
  void ClearHandlers() { ResetForExec(); }
  bool IsIgnored(int signo) const;  // by SIG_IGN or by default
  // Sets of ignored (SIG_IGN) and caught signals, for /proc/PID/status.
  void Sets(SigSet* ignored, SigSet* caught) const;

 private:
  ~SignalHandlers() override = default;
  void CloseLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  mutable SigAction actions_[kNumSignals + 1] ABSL_GUARDED_BY(mutex_);
  mutable platform::Context* open_ ABSL_GUARDED_BY(mutex_) = nullptr;
  mutable std::atomic<bool> wants_open_{false};
};

// What a user (a real uid) has, for RLIMIT_SIGPENDING, RLIMIT_NPROC and RLIMIT_MSGQUEUE (Linux:
// struct ucounts).
struct UserCount : base::RefCounted {
  std::atomic<int64_t> pending_signals{0};
  std::atomic<int64_t> processes{0};
  std::atomic<uint64_t> mqueue_bytes{0};
};

// Signals that wait for delivery, of a task or shared by its group (Linux: struct sigpending).
// Guarded by ThreadGroup::signal_mutex().
class PendingSignals {
 public:
  SigSet set() const { return set_; }
  // Queues `info`, counted for `user`; a standard signal that is pending already is dropped
  // (false).
  bool Add(const siginfo_t& info, base::Ref<UserCount> user);
  // Sets the bit without details: the queue is full and the signal was sent by kill(2).
  void AddBare(int signo);
  // Takes the next signal of `allowed` (synchronous ones first, then the lowest number).
  std::optional<siginfo_t> Take(SigSet allowed);
  // Adds to the overrun count of the queued signal of a POSIX timer; false if there is none.
  bool AddOverrun(int timer_id, int count);
  // Drops all of `signals`.
  void Flush(SigSet signals);
  size_t count() const { return queue_.size(); }
  // Up to `count` of what is queued, in order, from the one at `offset` on.
  std::vector<siginfo_t> Peek(uint64_t offset, size_t count) const;

 private:
  SigSet set_ = 0;
  struct Queued {
    siginfo_t info;
    base::Ref<UserCount> user;
  };
  std::list<Queued> queue_;
};

// sigaltstack(2)'s stack_t.
struct AltStack {
  uint64_t sp = 0;
  uint32_t flags = SS_DISABLE;
  uint32_t pad = 0;
  uint64_t size = 0;
};

}  // namespace sentry
