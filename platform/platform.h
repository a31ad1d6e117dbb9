// How application code runs and traps. Nothing above this interface knows of stubs, mailboxes or
// signals of the host; nothing below it knows of files, guest signals or policy.
//
// Life of a guest thread: a Context is created stopped; the kernel sets its registers, queues
// orders (work on the address space) and calls Resume; the guest runs until it traps; the platform
// then calls the context's TrapListener, and the context is stopped again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "sentry/base/host_fd.h"
#include "sentry/base/result.h"
#include "sentry/base/user_memory.h"

namespace platform {

// General registers of a stopped guest thread. For a trap of kind kSyscall, `rax` holds -ENOSYS and
// `orig_rax` the call's number, as Linux shows them to a tracer; otherwise `orig_rax` is -1.
struct Regs {
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip;
  uint64_t eflags, rsp, fs_base, gs_base;
};

enum class TrapKind {
  kSyscall,      // a system call; number and arguments are in regs()
  kFault,        // the host raised a synchronous signal for the guest's instruction
  kInterrupt,    // Interrupt() was called while guest code ran; regs() are those of the guest
  kOrdersDone,   // Resume(kOrdersOnly) has carried out the orders
  kOrderFailed,  // an order failed in the host; the later ones of the batch were not tried
  kGone,         // the host thread or its whole process has died unasked; no more can be resumed
};

struct Trap {
  TrapKind kind;
  // kFault: of the host's siginfo, ucontext. kOrderFailed: order_index, error. kGone: signo or 0.
  int signo = 0;
  int si_code = 0;
  uint64_t fault_addr = 0;
  uint64_t trapno = 0;      // x86 exception number
  uint64_t error_code = 0;  // x86 page fault error code (bit 1: write, bit 4: instruction fetch)
  size_t order_index = 0;
  int error = 0;
  // kSyscall of futex(2): the wait ran natively and was ended by Interrupt(). remaining_ns is what
  // was left of a relative timeout, -1 without one.
  bool futex_interrupted = false;
  int64_t remaining_ns = -1;
  // kSyscall: a stream lane has answered the call, with lane_result, and somebody may wait for what
  // it did to the lane of this name. The guest may lie.
  bool lane_done = false;
  bool lane_wrote = false;
  int64_t lane_result = 0;
  uint64_t lane_name = 0;
  // kOrdersDone: results of the orders, in order (mremap: the address; CompareExchange: the word;
  // else 0).
  std::vector<uint64_t> results;
  // kSyscall: the call has waited for the lane of its descriptor, and goes on with the kernel;
  // remaining_ns is what is left of its timeout, -1 without one. The guest may lie.
  bool lane_waited = false;
};

class Context;
class AddressSpace;
struct FileLane;
struct LaneEpoll;

// The file a text mapping comes from, by which a patched copy is shared between processes.
struct FileIdentity {
  uint64_t dev, ino, size;
  int64_t mtime_ns, ctime_ns;
  uint64_t writes;  // how often the guest has opened it for writing
  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

// Work that the stub does on its own address space, in one batch. Addresses are page-aligned and
// inside the range of AddressSpace::limits(); the platform checks that and refuses with EINVAL.
namespace order {
struct Mmap {  // always MAP_FIXED: replaces what was there
  uint64_t addr, length;
  int prot;
  bool shared;  // MAP_SHARED, else MAP_PRIVATE
  bool noreserve = false;
  base::Ref<base::HostFd> file;  // null: anonymous
  uint64_t offset = 0;
  // Set for a private file mapping whose text may be patched.
  bool has_identity = false;
  FileIdentity identity{};
};
struct Munmap {
  uint64_t addr, length;
};
struct Mprotect {
  uint64_t addr, length;
  int prot;
};
// Advice: NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, (NO)HUGEPAGE, (DO|DONT)DUMP, COLD,
// PAGEOUT, (WIPE|KEEP)ONFORK, POPULATE_READ, POPULATE_WRITE; others fail with EINVAL.
struct Madvise {
  uint64_t addr, length;
  int advice;
};
struct Mremap {
  uint64_t old_addr, old_length, new_addr, new_length;
};  // moves to new_addr exactly; if that is old_addr, grows there as one mapping of the host
// Writes a copy of the thread's FPU state to guest memory as a signal frame holds it: the XSAVE
// image with Linux's sw_reserved words and end marker (arch/x86/kernel/fpu/signal.c). `addr` is
// 64-byte aligned, with fpu_frame_size() bytes; 0: the copy is for Context::saved_fpu() instead.
struct SaveFpu {
  uint64_t addr;
};
// Loads the FPU state from such an image, checked as Linux does; addr 0: the initial state.
struct RestoreFpu {
  uint64_t addr;
  std::vector<std::byte> image = {};  // not empty: this instead, at most fpu_frame_size() bytes
};
// Stores `bytes` at `addr` in guest memory (at most 4096).
struct Write {
  uint64_t addr;
  std::vector<std::byte> bytes;
};
// futex(FUTEX_WAKE) of `count` waiters on the shared or private word at addr.
struct FutexWake {
  uint64_t addr;
  uint32_t count;
  bool is_private;
};
// Atomically: stores `desired` in the aligned word at `addr` if it holds `expected`. Result: what
// it held. EFAULT.
struct CompareExchange {
  uint64_t addr;
  uint32_t expected, desired;
};
// rseq(2) of the calling thread, served by the host: only the host knows of preemption. Its errors.
struct Rseq {
  uint64_t addr;
  uint32_t length, flags, signature;
};
// membarrier(2) with a PRIVATE_EXPEDITED command or the registration of one, for the threads of
// this address space. Its errors.
struct Membarrier {
  int command;
  uint32_t flags;
  int cpu;
};
// Takes every change of the platform's own out of the text, and makes none from now on, not in
// forks either: a debugger reads and changes it.
struct LeaveText {};
// Starts the host thread of a context from AddressSpace::PrepareThread; it inherits the FPU state.
struct CloneThread {
  Context* thread;
};
// Forks the stub into the address space from AddressSpace::PrepareFork.
struct Fork {
  AddressSpace* child;
};
}  // namespace order
using Order = std::variant<order::Mmap, order::Munmap, order::Mprotect, order::Madvise,
                           order::Mremap, order::SaveFpu, order::RestoreFpu, order::Write,
                           order::FutexWake, order::CompareExchange, order::Rseq, order::Membarrier,
                           order::LeaveText, order::CloneThread, order::Fork>;

enum class ResumeMode {
  kGuest,       // carry out the orders, then run the guest; success of the orders is not reported
  kOrdersOnly,  // carry out the orders, then trap with kOrdersDone
};

// Told of a context's traps. OnTrap runs inside Platform::Poll or Wait on the polling thread, under
// the platform's poll lock: it must be short, and must neither poll nor create or destroy contexts.
// What Context::trap() and regs() return is valid from then until the next Resume.
class TrapListener {
 public:
  virtual ~TrapListener() = default;
  virtual void OnTrap() = 0;
  // The process has died while this context was stopped; its next Resume will trap with kGone. As
  // OnTrap, but possibly at the same time as the owner's use of the context. `signo`: see Trap.
  virtual void OnGone(int /*signo*/) {}
};

// One guest thread. Owned by the kernel's Task. All but Interrupt: only while stopped, by one
// thread at a time. As UserMemory it serves from what the stub copied into the mailbox first, and
// leaves small writes there, and those of WriteFromFile, for the stub to copy out (`FlushWrites`
// forces them out, and a fault met while the stub copies out turns into kOrderFailed with EFAULT
// and order_index SIZE_MAX; with EIO if a file could not be read as it was mapped, when FlushWrites
// makes all those copies by other means).
class Context : public base::UserMemory {
 public:
  // Null: none. The one before is not called any more once this returns.
  virtual void set_listener(TrapListener* listener) = 0;
  virtual Regs& regs() = 0;
  // What most calls need of regs() after a kSyscall trap, at less cost: the number and arguments;
  // and the way to set rax.
  struct Call {
    uint64_t nr = 0;
    std::array<uint64_t, 6> args{};
  };
  virtual const Call& call() = 0;
  // What the thread has asked for last, for /proc/PID/syscall: the call, its arguments, and where
  // it was made. From any thread; of a thread that runs it is whatever stands there.
  struct LastCall {
    Call call;
    uint64_t sp = 0, pc = 0;
  };
  virtual LastCall PeekCall() const { return {}; }
  virtual void SetResult(uint64_t value) = 0;
  // After a kSyscall trap: regs() or guest memory have been changed by somebody else, so call() is
  // to be what regs() say (the number in orig_rax), and nothing copied in at the trap counts.
  virtual void RereadCall() = 0;
  virtual const Trap& trap() const = 0;
  virtual AddressSpace& address_space() = 0;

  // Lets the thread go on with regs() after the queued orders. Non-blocking; never fails: what goes
  // wrong arrives as a trap.
  virtual void QueueOrder(Order order) = 0;
  virtual void Resume(ResumeMode mode) = 0;
  // Makes a running guest trap soon (kInterrupt, or whatever it traps with first). From any thread
  // at any time. An interrupt of a stopped context is kept: the next Resume(kGuest) traps before
  // any guest instruction runs. Never lost, possibly delivered once more than asked.
  virtual void Interrupt() = 0;
  // True while the guest waits natively, in futex(2) or for a lane (for /proc: state S).
  virtual bool WaitsInFutex() const = 0;
  // Bytes of an FPU image in a signal frame on this machine.
  virtual size_t fpu_frame_size() const = 0;
  // What order::SaveFpu{0} has saved, until anything else is done with this context. The guest can
  // write there too: read it once.
  virtual std::span<const std::byte> saved_fpu() const = 0;
  // CPU time of the host thread, nanoseconds (user and system).
  virtual int64_t CpuTimeNs() const = 0;
  // Identifies the host thread for sched_setaffinity and the like; 0 if none.
  virtual int host_tid() const = 0;
  // Sends pending writes to the guest now; may read files (those of WriteFromFile). EFAULT, EIO.
  virtual base::Status FlushWrites() = 0;
  // Tells the thread to exit; the context must not be resumed again and may be destroyed.
  virtual void Exit() = 0;
  // Measuring a hand-off: with true, the stub notes in the mailbox when the guest trapped next and
  // when it went on after that, in ticks of the time stamp counter; with false it does not. The
  // guest can write there too, so check what is read. Platforms without a stub answer 0.
  virtual void StampNextTrap(bool /*on*/) {}
  virtual uint64_t trapped_at() const { return 0; }  // of the current trap
  virtual uint64_t resumed_at() const { return 0; }  // after the one before the current
  // Which calls may be answered without the kernel: kAll at first, kFutex alone (strace; futexes
  // have no other home), or kNone (a tracer, a guest's seccomp filter that looks at them). At any
  // time; holds for calls that begin later.
  enum class Lanes : uint32_t { kAll, kFutex, kNone };
  virtual void SetLanes(Lanes /*lanes*/) {}
  // With which number the thread locks stream lanes; 0: it uses none.
  virtual void SetLaneOwner(uint32_t /*owner*/) {}
  // Whether those of Platform::ThreadCalls may be answered too, where Lanes::kAll holds. At first
  // they may not.
  virtual void SetThreadCalls(bool /*may*/) {}
  // What the thread has set by them: set_tid_address, set_robust_list and rseq. `changed` tells
  // what of it since ForgetThreadWords, which is for while it is stopped. From any thread.
  struct ThreadWords {
    bool clear_child_tid_changed = false, robust_list_changed = false, rseq_changed = false;
    uint64_t clear_child_tid = 0, robust_list = 0, rseq_addr = 0;
    uint32_t rseq_length = 0, rseq_signature = 0;
  };
  virtual ThreadWords PeekThreadWords() const { return {}; }
  virtual void ForgetThreadWords() {}
  // The name of the place of its working directory in the table of paths (platform/path_lane.h); 0:
  // it uses none. From any thread; holds for calls that begin later.
  virtual void SetPathPlace(uint64_t /*place*/) {}
  // Whose places its descriptors have (AddressSpace::SetPlaceOfFd); 0: they have none.
  virtual void SetFdPlaces(uint64_t /*owner*/) {}
  // After a kSyscall trap: the next Resume(kGuest) has call `nr` with the arguments in regs()
  // (which must not have changed) answered without the kernel after all. If that cannot be, or the
  // wait is interrupted, it traps with the call again. `remaining_ns` >= 0: timeout of a relative
  // futex wait, instead of the guest's. With `then_trap` it traps (kInterrupt) once the call is
  // answered, before the guest's next instruction.
  virtual void AnswerInLane(int nr, int64_t remaining_ns, bool then_trap) = 0;
  // Finishes what a patched site has left to do at regs().rip, so that the guest may be shown the
  // registers and may jump to where they point (signal frames, tracers). While stopped.
  virtual void SettleRegs() {}

  // The thread's signal mask may be changed without the kernel from the next Resume on, beginning
  // with `mask`, and by rt_sigreturn(2) if what the frame says of the signal stack is `stack`.
  // While stopped.
  struct SignalStack {
    uint64_t sp, size;  // size 0: none
    uint32_t flags;
  };
  virtual void OpenSignalMask(uint64_t /*mask*/, const SignalStack& /*stack*/) {}
  // Ends that, and returns what the mask is. From any thread; only while open.
  virtual uint64_t CloseSignalMask() { return 0; }
  // The mask as it is, while open; and whether it has changed since it was opened. From any thread,
  // but only while stopped nobody changes it.
  virtual uint64_t SignalMask() const { return 0; }
  virtual bool SignalMaskChanged() const { return false; }
  // The same for the actions of rt_sigaction(2), by signal number less one. Only the thread whose
  // actions nobody else shares may change them without the kernel.
  struct SignalAction {
    uint64_t handler, flags, restorer, mask;
  };
  static constexpr size_t kSignals = 64;
  virtual void OpenSignalActions(std::span<const SignalAction, kSignals> /*actions*/) {}
  // True, with the actions, if there was a change.
  virtual bool CloseSignalActions(std::span<SignalAction, kSignals> /*actions*/) { return false; }
  // Makes the patched and express paths of this thread publish these values without a hand-off.
  struct Identity {
    int32_t pid, tid, ppid;
    uint32_t uid, euid, gid, egid;
  };
  virtual void Publish(const Identity& identity) = 0;
  // Changes ppid alone. From any thread.
  virtual void PublishParent(int32_t /*ppid*/) {}
  // Random bytes by which getrandom(2) may be answered without the kernel, erased as they are
  // given: who reads the thread's memory learns no more of what has been given than by reading
  // that. WantsRandom: few are left, and it has been asked before. While stopped.
  static constexpr size_t kOfferedRandom = 256;
  virtual bool WantsRandom() { return false; }
  virtual void OfferRandom(std::span<const std::byte, kOfferedRandom> /*bytes*/) {}
  // The descriptor for whose lane the call that is under way waits, or has waited; -1: none. The
  // guest may lie.
  virtual int LaneWaitFd() const { return -1; }
};

// What guest addresses are usable.
struct Limits {
  uint64_t min_address;           // lowest mappable address, vm.mmap_min_addr
  uint64_t max_address;           // one past the highest (below the stub's region)
  uint64_t vdso_base;             // where the vDSO ELF image stands, for AT_SYSINFO_EHDR; 0 if none
  uint64_t sigreturn_trampoline;  // unused by amd64 libc (SA_RESTORER), kept 0
};

// One guest address space: a stub process. Thread-safe. As UserMemory it works at any time, also
// while its threads run (process_vm_readv), and sees no writes that a Context still holds.
// Destroying it ends the stub, a moment later.
class AddressSpace : public base::UserMemory {
 public:
  virtual const Limits& limits() const = 0;
  // A stopped context for a new thread; it exists in the host once order::CloneThread is done.
  virtual base::Result<std::unique_ptr<Context>> PrepareThread() = 0;
  // An address space for a fork of this one, empty until order::Fork is done by a thread of this.
  virtual base::Result<std::unique_ptr<AddressSpace>> PrepareFork() = 0;
  // The first context (the caller takes it; once): after NewAddressSpace at once, after PrepareFork
  // when order::Fork is done.
  virtual std::unique_ptr<Context> TakeMainContext() = 0;
  // As order::LeaveText, where nothing has been mapped yet.
  virtual void LeaveText() {}
  // The host's view of this address space's resident pages in bytes.
  virtual int64_t ResidentBytes() const = 0;  // -1: the platform cannot tell
  virtual int host_pid() const = 0;
  // Ends the host process of this address space, for a thread that no longer answers interrupts:
  // every context of it that runs traps with kGone, and so does each that is resumed later. From
  // any thread; does not wait.
  virtual void Kill() = 0;
  // Ranges [begin, end) inside limits() that the platform uses itself, to be left alone when a hole
  // is searched. A guest that asks for such an address (MAP_FIXED, brk, a segment of a program)
  // gets it: the order is carried out, and the platform does without.
  virtual std::vector<std::pair<uint64_t, uint64_t>> ReservedRanges() const { return {}; }
  // Credentials have changed: what the platform has mapped for Context::WriteFromFile goes, and
  // what stands at FileBeginAt, since the process might not open those files any more.
  virtual void DropFileWindows() {}

  // Stream lanes (platform/stream_lane.h), which the platform answers reads and writes by without
  // the kernel. The memory of `arena` is mapped on the way of one of this space's threads into the
  // guest. False: it will not be, since another one is there or for good; HasLanes: it is.
  virtual bool MapLanes(const base::Ref<base::HostFd>& /*arena*/) { return false; }
  virtual bool HasLanes(const base::Ref<base::HostFd>& /*arena*/) const { return false; }
  // No descriptor leads to a lane, and no epoll instance or file is known.
  virtual void ClearLanes() {}
  // It goes again, in the same way: the process is no longer the equal of those that share it.
  virtual void DropLanes() {}
  // Descriptor `fd` of the threads that have lanes (Context::SetLaneOwner) reads from and writes to
  // the lanes of these names; 0: none. It is no epoll instance's any more.
  virtual void SetLaneOfFd(int /*fd*/, uint64_t /*in*/, uint64_t /*out*/) {}
  // Place `index` (below kLaneEpolls) for an epoll instance that the platform answers calls about
  // (platform/lane_epoll.h), which the guest may write in. Null: there are none.
  virtual LaneEpoll* LaneEpollAt(uint32_t /*index*/) { return nullptr; }
  // What the platform knows of the regular file that descriptor `fd` leads to
  // (platform/file_lane.h), which the guest may write in. Null: it can know nothing.
  virtual FileLane* FileLaneAt(int /*fd*/) { return nullptr; }
  // Where the first bytes of such files are to be put, at `place` (below kFileBegins). Empty: the
  // platform takes none.
  virtual std::span<std::byte> FileBeginAt(uint32_t /*place*/) { return {}; }

  // The same for a table of paths, which is mapped read-only; `table` is sealed against more than
  // that. MayMapPaths: false if none will ever be.
  virtual bool MayMapPaths() const { return false; }
  virtual bool MapPaths(const base::Ref<base::HostFd>& /*table*/) { return false; }
  virtual bool HasPaths(const base::Ref<base::HostFd>& /*table*/) const { return false; }
  virtual void DropPaths() {}
  // For the threads whose descriptors are `owner`'s (Context::SetFdPlaces), a name that is given
  // once: `fd` leads to what has this number in tables of paths; kPathNowhere: that is not known.
  virtual void SetPlaceOfFd(int /*fd*/, uint64_t /*owner*/, uint64_t /*place*/) {}
};

struct Options {
  // Each memory call and clone of a stub waits for the sentry's word that it was ordered. Where the
  // host cannot put calls to the sentry, the platform does not start then.
  bool strict = false;
  bool patch = true;     // patch system call sites
  bool lanes = true;     // AddressSpace::MapLanes
  int64_t spin_ns = -1;  // -1: learned; 0: never spin
  int pool_size = 2;     // stubs kept ready
};

class Platform {
 public:
  virtual ~Platform() = default;
  virtual const char* name() const = 0;
  // From now on stubs are kept ready. Called once, when this process has its final root: a process
  // that the host clones while pivot_root(2) moves everybody can be left behind in the old root.
  virtual void StartPool() {}
  // Adds the host calls that this side makes from now on to the caller's filter, a scmp_filter_ctx.
  // Returns 0, or the negative errno of libseccomp.
  virtual int AllowHostCalls(void* /*filter*/) const { return 0; }
  // A fresh, empty address space (from the pool), with its stopped main context.
  virtual base::Result<std::unique_ptr<AddressSpace>> NewAddressSpace() = 0;

  // Numbers of the calls that Lanes::kAll lets through; futex(2) is not among them.
  virtual std::span<const int> LaneCalls() const = 0;
  // Numbers of those that SetThreadCalls lets through.
  virtual std::span<const int> ThreadCalls() const { return {}; }

  // Files of this device (FileIdentity::dev) are not coming back: drops what is kept of them.
  virtual void ForgetFiles(uint64_t /*dev*/) {}

  // Calls OnTrap for each context that has handed off since; returns how many. One thread at a
  // time polls (the scheduler sees to it). Costs nanoseconds when nothing has happened.
  virtual size_t Poll() = 0;
  // True if it is worth to go on polling rather than to call Wait (guest threads run, cores free).
  virtual bool ShouldSpin() = 0;
  // Blocks the polling thread until a context hands off (OnTrap is called in here too, so look at
  // the run queue after it), Wake is called, or CLOCK_MONOTONIC reaches deadline_ns (INT64_MAX:
  // none).
  virtual void Wait(int64_t deadline_ns) = 0;
  // Ends a Wait that is under way or about to begin. Any thread.
  virtual void Wake() = 0;
};

// Starts the zygote (from the embedded image) and makes the systrap platform. Called once, before
// the sentry confines itself. Errors: what the host refused, with a line in `why`.
base::Result<std::unique_ptr<Platform>> CreateSystrap(const Options& options, std::string* why);
// The same for the ptrace platform, which needs no seccomp of the host: a thread of this process
// traces the stubs. Slower where a call is not patched or a stub makes host calls.
base::Result<std::unique_ptr<Platform>> CreatePtrace(const Options& options, std::string* why);

// The names of all platforms, the best first.
inline constexpr const char* kPlatforms[] = {"systrap", "ptrace"};
// Makes the platform of that name, or for "auto" the first that this host can do. `why` says then
// why those before it, or all, cannot be done.
base::Result<std::unique_ptr<Platform>> Create(std::string_view name, const Options& options,
                                               std::string* why);

// Whether Options::strict is possible here, tried out in a child process. Else the error of
// seccomp(2).
base::Status ProbeStrict();

}  // namespace platform
