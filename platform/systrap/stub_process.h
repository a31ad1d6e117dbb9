// The host process behind one guest address space, with its mailbox.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "platform/mapped/file_windows.h"
#include "platform/mapped/lane_map.h"
#include "platform/systrap/patcher.h"
#include "platform/systrap/stub_shell.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace platform {

class SystrapPlatform;
class ThreadContext;

// Counted: the address space, its contexts, the keeper and the poller share it.
class StubProcess : public base::RefCounted {
 public:
  // A mailbox and a socket, without a process so far. In a shell of `home` if there is one, to
  // which it goes back; null: none.
  static base::Result<base::Ref<StubProcess>> Create(SystrapPlatform* platform,
                                                     base::Ref<SpareShells> home);
  // The same for a fork of this one.
  base::Result<base::Ref<StubProcess>> CreateChild();
  ~StubProcess() override;

  SystrapPlatform& platform() const { return *platform_; }
  Slot* slot(uint32_t index) const {
    return reinterpret_cast<Slot*>(shell_.mailbox() + SlotOffset(index));
  }
  MailboxHeader* header() const { return reinterpret_cast<MailboxHeader*>(shell_.mailbox()); }
  const base::Ref<base::HostFd>& mailbox_file() const { return shell_.mailbox_file(); }
  int mailbox_fd() const { return mailbox_file() ? mailbox_file()->get() : -1; }
  int stub_socket() const { return shell_.stub_socket(); }

  // The process exists: `pid`, which has been claimed for this object. Opens its pidfd; without one
  // it is to be abandoned. Our copies of what was the stub's are closed.
  base::Status Attach(int pid);
  // Whether the memory of the attached process holds this mailbox, as that of the right child does.
  bool OwnsMailbox();

  // ---- Claims ----
  //
  // A clone begins in the process group of what made it. The sentry makes each stub that it claims
  // the leader of a group of its own; no stub can leave its group itself. So the groups tell whose
  // child an unclaimed process is, however hostile its parent, and what a stub has made and not
  // reported can be found and killed.

  // Takes `pid` out of `group`, in which it is a child of ours that is unclaimed so far, for the
  // caller alone. ESRCH if it is no such process.
  static base::Status Claim(int pid, int group);
  // The same for a child that this stub's thread in slot `index` has reported.
  base::Status ClaimFork(int pid, uint32_t index);
  // Around each fork that is ordered of this stub: from before it may clone, until its child has
  // been claimed or the fork has failed.
  void BeginFork();
  void EndFork();
  // New forks are to be refused for a moment.
  bool forks_held() const {
    return hold_forks_.load(std::memory_order_relaxed) ||
           doubt.load(std::memory_order_relaxed) >= kMaxDoubt;
  }
  enum class Children { kNone, kMaybe, kUnclaimed };
  // By the keeper: whether there are processes that this stub has made and not reported. kMaybe: a
  // fork is under way; with `hold` no more of them begin until this has been asked again.
  // `refuge`: the group of another process, of the same session.
  Children FindUnclaimed(int refuge, bool hold);
  // By the keeper: kills the process's whole group. Before Reap.
  void KillGroup();
  // By the keeper, after that: reaps what has ended. False: some are left, to be asked for again.
  bool ReapGroup();
  // How many children there may be that were not reported, since the keeper has last looked for
  // them: a clone that was asked for once more counts one, as it may be one that a signal has
  // interrupted; a fork that failed by the stub's word counts kFailedFork. Not 0: the keeper is to
  // look. Beyond kMaxDoubt no fork is ordered until then, so that there are but few.
  static constexpr uint32_t kFailedFork = 16;
  std::atomic<uint32_t> doubt{0};

  int pid() const { return pid_.load(std::memory_order_acquire); }
  int pidfd() const { return pidfd_.get(); }
  bool dead() const { return dead_.load(std::memory_order_seq_cst); }
  // The signal that has ended it, once it is reaped; 0: none, or not known yet.
  int death_signal() const { return death_signal_.load(std::memory_order_relaxed); }
  // No context is left that would have to be told of the process's end.
  void Abandon() { abandoned_.store(true, std::memory_order_release); }
  bool abandoned() const { return abandoned_.load(std::memory_order_acquire); }
  // SIGKILL.
  void Kill();
  // By the keeper: the process has ended; reaps it.
  void Reap();

  // Guest memory by process_vm_readv/writev; as base::UserMemory's *Partial. `program`: EFAULT if
  // the process executes another one; 0: whichever it is.
  base::Result<size_t> ReadMemory(uint64_t addr, std::span<std::byte> dst, uint32_t program = 0);
  base::Result<size_t> WriteMemory(uint64_t addr, std::span<const std::byte> src,
                                   uint32_t program = 0);

  // ---- Programs that the process executes one behind the other ----

  // The one that it executes, counted from 1.
  uint32_t program() const { return program_.load(std::memory_order_acquire); }
  // Another one than the present one may have written to the mailbox.
  bool had_other_program() const { return shell_.used() || program() != 0; }
  // The next one begins, whose number is returned: nothing of the one before is in reach any more.
  uint32_t BeginProgram();
  // Whether its only thread may execute another program here. Not where anything about the process
  // is, or may be, other than when it began: once there were more threads or other credentials, it
  // has registered for barriers, its text was given up for a tracer or the jump table for the
  // guest, or there are forks that nobody has explained; nor in strict mode.
  bool MayExecute();
  // It has registered for membarrier(2), which the host remembers as long as it lives.
  void NoteBarriers() { barriers_.store(true, std::memory_order_relaxed); }
  // Who runs here is not the same any more.
  void NoteOtherCredentials() { others_.store(true, std::memory_order_relaxed); }
  // Of the process that has forked this one, which may reach into this one's mailbox.
  void InheritFrom(const StubProcess& parent) {
    if (parent.barriers_.load(std::memory_order_relaxed)) NoteBarriers();
    if (parent.others_.load(std::memory_order_relaxed)) NoteOtherCredentials();
  }
  // Sends the interrupt signal. ESRCH if the thread is gone.
  base::Status Signal(int tid);
  // Keeps thread `tid` from running on processor `cpu` as long as it sleeps or runs elsewhere; -1:
  // from none. False if that cannot be. Should the number have become another thread's, no harm is
  // done: what runs in the sentry's PID namespace is in reach alone, and gets its processors back
  // at once.
  bool AvoidCpu(int tid, int cpu);
  // Whether `tid` is a thread of this process.
  bool HasThread(int tid);
  int64_t CpuTimeNs() const;

  // Sends a batch's descriptors to the stub; returns the batch's turn.
  base::Result<uint32_t> SendBatchFds(std::span<const int> fds);
  // The turn alone: in strict mode, where descriptors come with the calls that need them.
  uint32_t TakeBatchTurn();

  // A slot that no thread has had here begins with zeros, whoever has had the mailbox before.
  void ClearSlot(uint32_t index) {
    if (shell_.used()) memset(static_cast<void*>(slot(index)), 0, kPageSize);
  }
  // A free slot, zeroed. EAGAIN if there is none.
  base::Result<uint32_t> AllocateSlot();
  void ReserveSlot(uint32_t index);
  // The slot's thread has been told to exit (or never began).
  void ReleaseSlot(uint32_t index, bool started);

  // ---- Parked threads: those that have ended and wait, in their slots, to be others ----

  struct ParkedThread {
    uint32_t slot;
    int tid;
  };
  // Whether one more thread may be parked; it is to be.
  bool ReservePark();
  // The thread has been told to park; its slot is not another's until then.
  void Park(ParkedThread thread);
  // One that is parked, with its slot cleared. Order kWakeThread lets it go on.
  std::optional<ParkedThread> TakeParked();
  // Slots that have ever been in use are below this.
  uint32_t slot_limit() const { return slot_limit_.load(std::memory_order_acquire); }

  // Contexts by slot; changed and read by the poller under the platform's poll lock.
  ThreadContext* context(uint32_t index) const {
    return index < contexts_.size() ? contexts_[index] : nullptr;
  }
  void set_context(uint32_t index, ThreadContext* context);
  uint32_t context_count() const { return context_count_; }

  // Host threads that may serve for process_vm_*: those that have begun and not been told to exit.
  void AddThread(int tid);
  void RemoveThread(int tid);
  size_t thread_count();

  Patcher& patcher() { return patcher_; }
  FileWindows& windows() { return windows_; }
  // AddressSpace::FileBeginAt.
  std::span<std::byte> UseFileBegin(uint32_t place) {
    shell_.UseFileBegin(place);
    return std::as_writable_bytes(std::span(header()->file_begins[place]));
  }
  void ClearFileBegins() { shell_.ClearFileBegins(); }
  LaneMap& lanes() { return lanes_; }
  LaneMap& paths() { return paths_; }

  // Whether contexts may be running: the poller looks into the mailbox only then. A context says so
  // after it has begun to run; the poller takes it back and looks at the contexts after that.
  void NoteRunning() {
    if (!may_run_.load(std::memory_order_seq_cst)) may_run_.store(true, std::memory_order_seq_cst);
  }
  bool MayRun() const { return may_run_.load(std::memory_order_seq_cst); }
  void RefreshMayRun();

 private:
  static constexpr uint32_t kMaxDoubt = 32 * kFailedFork;

  StubProcess(SystrapPlatform* platform, StubShell shell, base::Ref<SpareShells> home);
  static base::Result<base::Ref<StubProcess>> CreateIn(SystrapPlatform* platform, StubShell shell,
                                                       base::Ref<SpareShells> home);
  // Nobody has the shell any more, beside who had it before.
  bool MayPassOnShell();

  SystrapPlatform* const platform_;
  StubShell shell_;
  base::Ref<SpareShells> home_;  // where the shell came from and goes; null: nowhere
  base::UniqueFd pidfd_;
  uint64_t nonce_[2] = {};
  std::atomic<int> pid_{0};
  std::atomic<bool> dead_{false};
  std::atomic<bool> abandoned_{false};
  std::atomic<int> death_signal_{0};
  std::atomic<bool> may_run_{false};
  std::atomic<bool> hold_forks_{false};
  std::atomic<bool> had_threads_{false};  // besides the first
  std::atomic<bool> left_alone_{false};   // reaped, and nobody was in its group
  std::atomic<bool> barriers_{false};
  std::atomic<bool> others_{false};
  std::atomic<uint32_t> program_{1};  // changed under pid_mu_
  std::atomic<uint32_t> slot_limit_{0};
  std::vector<ThreadContext*> contexts_;
  uint32_t context_count_ = 0;
  Patcher patcher_;
  FileWindows windows_;
  LaneMap lanes_;
  LaneMap paths_;

  // Held shared while a pid or tid is used, exclusively while the process is reaped, so that no
  // call can reach a later process of the same number.
  absl::Mutex pid_mu_;
  std::vector<int> tids_ ABSL_GUARDED_BY(pid_mu_);
  bool HasThreadLocked(int tid) ABSL_SHARED_LOCKS_REQUIRED(pid_mu_);

  // Held while the process or its children change groups.
  absl::Mutex group_mu_;
  uint32_t forks_ ABSL_GUARDED_BY(group_mu_) = 0;  // under way
  bool has_forked_ ABSL_GUARDED_BY(group_mu_) = false;
  base::Ref<SpareShells> nursery_ ABSL_GUARDED_BY(group_mu_);  // of its forks

  absl::Mutex fd_mu_;
  uint32_t next_ticket_ ABSL_GUARDED_BY(fd_mu_) = 0;

  absl::Mutex slot_mu_;
  std::vector<uint32_t> free_slots_ ABSL_GUARDED_BY(slot_mu_);
  std::vector<uint32_t> zombie_slots_ ABSL_GUARDED_BY(slot_mu_);  // the host thread still leaves
  std::vector<ParkedThread> parked_ ABSL_GUARDED_BY(slot_mu_);
  uint32_t parks_ ABSL_GUARDED_BY(slot_mu_) = 0;  // of parked_, and those that will be
  uint32_t next_slot_ ABSL_GUARDED_BY(slot_mu_) = 0;
};

}  // namespace platform
