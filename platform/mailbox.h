// The memory that the sentry and the stubs share, and the protocol they speak through it. Compiled
// into both; freestanding.
//
// One memory file per guest address space (the mailbox) is mapped by its stub and by the sentry
// only: a header and kMaxSlots slots, one per guest thread. One more file, written by the sentry
// and mapped read-only in every stub, holds the doorbell and what stubs must know of the machine.
//
// The guest owns its stub's memory, so the sentry treats every word of a mailbox as hostile: it
// reads a value once into memory of its own and checks it there.
//
// A round: the sentry writes an answer and then `answer_seq`; the stub carries it out, runs the
// guest until the next trap, writes the request and then its `seq = answer_seq`, sets its bit
// in the header's `ready` words and, if the doorbell says that the sentry sleeps, wakes it. The
// sentry alone counts rounds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "platform/fd_lane.h"
#include "platform/file_lane.h"
#include "platform/lane_epoll.h"
#include "platform/path_lane.h"
#include "platform/stream_lane.h"

namespace platform {

// ---- Where things stand in a stub's address space -------------------------------------------

inline constexpr uint64_t kPageSize = 4096;
// The stub's region: the last 4 GiB of the 47-bit space. Everything below is the guest's.
inline constexpr uint64_t kRegionBase = 0x7fff'0000'0000;
inline constexpr uint64_t kRegionEnd = 0x7fff'ffff'f000;
inline constexpr uint64_t kStubBase = kRegionBase;  // the stub's own image
inline constexpr uint64_t kStubTextMax = 0x4'0000;  // its text lies in the first 256 KiB
inline constexpr uint64_t kStubMax = 0x10'0000;
// In the same 2 MiB as the image, so that one page of the page table serves all.
inline constexpr uint64_t kSharedBase = kRegionBase + 0x18'0000;  // struct Shared, read-only
inline constexpr uint64_t kVvarBase = kRegionBase + 0x19'0000;    // vvar pages, then the vDSO
inline constexpr uint64_t kVvarMax = 0x2'0000;
static_assert(kVvarBase + kVvarMax <= kRegionBase + 0x20'0000);
// Pieces of files that the stub copies from when the guest reads them.
inline constexpr uint64_t kFileWindowBase = kRegionBase + 0x1000'0000;
inline constexpr uint64_t kFileWindowSize = 0x80'0000;
inline constexpr uint32_t kFileWindows = 32;
inline constexpr uint64_t kFileWindowsEnd = kFileWindowBase + kFileWindows * kFileWindowSize;
inline constexpr uint64_t kMailboxBase = kRegionBase + 0x4000'0000;
static_assert(kFileWindowsEnd <= kMailboxBase);

// Streams that processes like this one share (stream_lane.h).
inline constexpr uint64_t kLaneBase = kRegionBase + 0x8000'0000;
// What look-ups of paths give (path_lane.h), read-only.
inline constexpr uint64_t kPathBase = kRegionBase + 0xc000'0000;
static_assert(kLaneBase + kLaneArenaSize <= kPathBase && kPathBase + kPathTableSize <= kRegionEnd);

inline constexpr uint32_t kMaxSlots = 8192;
inline constexpr uint64_t kSlotSize = 0x1'0000;
inline constexpr uint64_t kSlotStackEnd = kSlotSize - 64;  // where a thread's stack begins
inline constexpr uint32_t kHeaderSlots = 6;                // places of slots that the header takes
inline constexpr uint64_t kMailboxSize = (kMaxSlots + kHeaderSlots) * kSlotSize;
inline constexpr int kMailboxShift = 30;  // the mailbox lies in one aligned GiB
static_assert(kMailboxBase % (1ull << kMailboxShift) == 0 &&
              kMailboxSize < (1ull << kMailboxShift));

// ---- Patched sites
// --------------------------------------------------------------------------------
//
// The call at a site becomes `jmp *kJumpTable[i]`, seven bytes: ff 24 25 and the entry's address,
// an absolute address of 32 bits. The table stands where the last two of these bytes are those of
// `syscall`, 0f 05. So `mov $nr,%eax; syscall` is patched by changing the five bytes of the mov
// alone, and a thread between the two instructions is still right. The seven bytes of
// `mov $nr,%rax` become two prefixes without effect, cs and REX.W, and the jump behind them.
//
// The table is the same in every stub; its entries lead to the stub's islands, which put the site's
// number into rcx. Where a site returns to stands in the mailbox, so that no code is ever written.

inline constexpr uint64_t kJumpTable = 0x050f'0000;
inline constexpr uint32_t kMaxSites = 4096;
inline constexpr uint64_t kJumpTableSize = kMaxSites * sizeof(uint64_t);
inline constexpr uint64_t kIslandSize = 16;

// Numbers from here on serve the form with the comparison. The upper half of each form's numbers is
// for sites of text that processes share, where a number means the same site in all of them.
inline constexpr uint32_t kFirstCompareSite = kMaxSites / 2;
inline constexpr uint32_t kFirstSharedSite = kMaxSites / 4;
inline constexpr uint32_t kFirstSharedCompareSite = kFirstCompareSite + kFirstSharedSite;

enum SiteForm : uint32_t {
  // mov $nr,%eax (or %rax); syscall. Patched from the mov.
  kSiteMov = 0,
  // syscall; cmp $-4095,%rax (or -4096). Patched from the syscall; seven of eight bytes change.
  kSiteCompare4095 = 1,
  kSiteCompare4096 = 2,
};

struct Site {
  uint64_t return_address;  // behind the syscall instruction
  uint32_t nr;              // kSiteMov
  SiteForm form;
};

// ---- The shared read-only file ----------------------------------------------------------------

inline constexpr size_t kMaxFilter = 512;
inline constexpr size_t kMaxZygoteFilter = 64;

struct Shared {
  // Doorbell: 1 while the sentry's poller sleeps in FUTEX_WAIT on this word.
  alignas(64) uint32_t sleeping;
  // How long a stub may spin for an answer before it sleeps, in TSC ticks. 0: not at all.
  alignas(64) uint32_t spin_ticks;
  // The processor on which the poller sleeps, or woke up last.
  uint32_t poller_cpu;
  // Of the machine; constant after start.
  alignas(kPageSize) uint32_t has_fsgsbase;
  uint32_t xsave_size;  // bytes of an XSAVE image of all enabled user features; 0 without XSAVE
  uint64_t xfeatures;   // XCR0
  uint32_t mxcsr_mask;
  uint32_t filter_length;
  uint32_t pkru_offset;  // of PKRU in an XSAVE image; xsave_size if there is none
  uint32_t strict;       // calls about memory go to the sentry, and it opens descriptors with them
  uint32_t traced;       // the sentry traces the stubs; their filters stand with it
  uint64_t filter[kMaxFilter];  // struct sock_filter
  // The zygote's own filter, which its clones inherit; [1]: with calls that go to the sentry.
  uint32_t zygote_filter_length;
  uint64_t zygote_filter[2][kMaxZygoteFilter];
};
inline constexpr uint64_t kSharedSize = 4 * kPageSize;
static_assert(sizeof(Shared) <= kSharedSize);

// ---- Slots ------------------------------------------------------------------------------------

// What a stub reports.
enum class RequestKind : uint8_t {
  kReady = 1,  // a forked child has its own mailbox now
  kSyscall,
  kFault,
  kInterrupt,
  kOrdersDone,
  kPatchHint,    // a call answered here keeps coming by SIGSYS: its site is worth patching
  kOrderFailed,  // order_index (kCopyOutIndex: the copy-out) and order_error tell; of a copy-out
                 // EIO: a window could not be read
};
inline constexpr uint32_t kCopyOutIndex = 0xffff'ffff;

enum RequestFlag : uint8_t {
  kRequestDirect = 1,            // from a patched site: kModeDirect
  kRequestFutexInterrupted = 2,  // a wait answered here was interrupted; remaining_ns tells
  kRequestMaskChanged = 4,       // sigmask is not what the sentry has set
  kRequestLaneDone = 8,     // the call was answered by a stream lane, which is to be told of it
  kRequestLaneWaited = 16,  // it has waited for one, and is now the sentry's; remaining_ns tells
};

// The first word of a request.
struct RequestHead {
  uint32_t seq;  // polled by the sentry: the round that the request answers
  RequestKind kind;
  uint8_t flags;  // RequestFlag
  uint16_t copy_in_count;
};
static_assert(sizeof(RequestHead) == sizeof(uint64_t));

// What an answer says.
enum AnswerFlag : uint32_t {
  kAnswerRegs = 1,        // load every register from the slot; else only rax, from answer_rax
  kAnswerOrdersOnly = 2,  // report kOrdersDone and do not enter the guest
  kAnswerExit = 4,        // the thread ends once it has carried out the orders
  kAnswerLane = 8,  // the call whose number is in rax is to be answered here, as if it came now
  kAnswerRemaining = 16,  // with it: remaining_ns is the timeout of a relative futex wait
  kAnswerLaneTraps = 32,  // with it: kInterrupt is reported when the call is answered
  kAnswerPark = 64,       // with kAnswerExit: the thread waits for another use, with `parked` set
};

enum class OrderOp : uint32_t {
  kMmap = 1,     // a: addr, b: length, c: prot, d: flags, e: offset, fd: index in the message or -1
  kMunmap,       // a, b
  kMprotect,     // a, b, c: prot
  kMadvise,      // a, b, c: advice
  kMremap,       // a: old, b: old length, c: new (old: grows in place), d: new length
  kSaveFpu,      // a
  kRestoreFpu,   // a
  kWrite,        // a: addr, b: length, c: offset in the slot's out area
  kFutexWake,    // a: addr, b: count, c: private
  kCloneThread,  // a: slot index; result: host thread id
  kWakeThread,   // a: slot index of a parked thread, which is given the caller's FPU state. Never
                 // fails.
  kPatch,  // a: first byte to change, b: new bytes, c: how many (5 to 7), d: old bytes, without
           // which nothing is done. Never fails.
  kCompareExchange,  // a: addr, b: expected, c: desired; result: what it held
  kRseq,             // a: addr, b: length, c: flags, d: signature
  kMembarrier,       // a: command, b: flags, c: processor
  kFork,             // fd: index of the mailbox; its socket follows. result: host process id
};

struct OrderEntry {
  OrderOp op;
  int32_t fd;
  uint64_t a, b, c, d, e;
  uint64_t result;
  uint64_t pad;
};
static_assert(sizeof(OrderEntry) == 64);

// Bytes copied between guest memory and the slot's areas.
struct CopyEntry {
  uint64_t addr;
  uint32_t length;
  uint32_t offset;  // in the in or the out area; with kFromWindow, from kFileWindowBase
};
inline constexpr uint32_t kFromWindow = 1u << 31;
static_assert(kFileWindows * kFileWindowSize < kFromWindow);

inline constexpr uint32_t kMaxOrders = 32;
inline constexpr uint32_t kMaxOrderFds = 16;
inline constexpr uint32_t kMaxCopies = 12;    // out
inline constexpr uint32_t kMaxCopiesIn = 48;  // an exec has many strings
inline constexpr uint32_t kCopyInSize = 8192;
inline constexpr uint32_t kCopyOutSize = 8192;
inline constexpr uint32_t kRandomSize = 256;

// What lanes.cc answers, futex(2) aside: a guest's seccomp filter is asked about each before it may
// be.
inline constexpr int kLaneCalls[] = {13,  14,  24,  39,  96,  102, 104, 107,
                                     108, 110, 186, 201, 228, 309, 318};

// What thread_calls.cc answers: the same, but a filter that asks about them closes them alone.
inline constexpr int kThreadCalls[] = {15, 158, 218, 273, 334};

// What is answered by stream lanes, which threads that a filter or a tracer looks at do not have.
inline constexpr int kStreamCalls[] = {0, 1, 7, 19, 20, 44, 45, 232, 233, 271, 281};

// The same for those that are answered by lanes of regular files alone.
inline constexpr int kFileCalls[] = {8, 17};

// The same for those that are answered from the table of paths.
inline constexpr int kPathCalls[] = {2, 4, 5, 6, 21, 89, 257, 262, 267, 269, 332, 439};

// The same for those about descriptors alone (fd_lane.h).
inline constexpr int kFdCalls[] = {3};

// Calls that were answered here after a SIGSYS, by where they came from.
struct LaneHits {
  uint64_t rip;
  uint64_t count;
};
inline constexpr uint32_t kLaneHits = 16;
inline constexpr uint64_t kHitsBeforePatch = 4;  // a patch costs about as much as so many signals

// How the guest's state is held while its thread is in the stub.
enum StubMode : uint32_t {
  kModeDirect = 0,  // registers in the slot, FPU state in the CPU
  kModeFrame = 1,   // registers and FPU state in the host's signal frame at `frame`
};

inline constexpr uint64_t kMaskOpen = 1ull << 8;  // that of SIGKILL, which no mask has
inline constexpr uint64_t kActionsOpen = kMaskOpen;
inline constexpr uint64_t kUnblockableSignals = 1ull << 8 | 1ull << 18;

// Of a slot's thread that has ended and stays, to be another one.
enum ParkState : uint32_t { kNotParked = 0, kParked = 1, kReleased = 2 };

// Bits of Slot::words_changed.
enum ThreadWord : uint32_t { kWordClearChildTid = 1, kWordRobustList = 2, kWordRseq = 4 };

struct SignalEntry {  // struct sigaction of rt_sigaction(2)
  uint64_t handler, flags, restorer, mask;
};
inline constexpr uint32_t kSignalCount = 64;

// Each line that changes hands costs a transfer between cores, so a call takes as few as it can;
// and what stands in a line that the other side polls is written right before the polled word,
// since an earlier write would bring the line here only for the poller to take it away again.
struct Slot {
  // Lines 0 and 1: the guest's registers as a call leaves them. The sentry looks at them if it must
  // know more of the guest than its call.
  alignas(64) uint64_t rax;
  uint64_t rdi, rsi, rdx, r10, r8, r9, rip;
  uint64_t rsp, rbx, rbp, r12, r13, r14, r15;
  // Of a futex wait that was interrupted, or a call that has waited for a lane, -1: without a
  // timeout; with kAnswerRemaining, of one to come.
  int64_t remaining_ns;
  // Line 2: the request, with all that most calls need.
  RequestHead request;
  uint64_t call_nr;
  uint64_t call_args[6];
  // Line 3: what else the guest consists of; faults and failed orders.
  uint64_t eflags, rcx, r11, fs_base, gs_base;
  uint32_t signo;
  int32_t si_code;
  uint32_t order_index;
  int32_t order_error;

  // Line 4: the answer, written by the sentry; the stub polls answer_seq.
  alignas(64) uint32_t answer_seq;
  uint32_t answer_flags;
  uint64_t answer_rax;
  uint32_t order_count;
  uint32_t copy_out_count;
  uint32_t fd_ticket;  // turn in which this batch takes its descriptors from the socket
  uint32_t fd_count;   // descriptors of this batch; 0: none, and no turn
  // Line 5: set by the sentry before it sends the interrupt signal.
  alignas(64) uint32_t interrupt;

  // Line 6: written by the stub when it is slow anyway.
  alignas(64) uint32_t sleeping;  // the stub waits for answer_seq in FUTEX_WAIT
  uint32_t in_futex;              // the guest waits natively: in futex(2), or for a lane
  uint32_t host_tid;   // cleared by the host when the thread is gone (CLONE_CHILD_CLEARTID)
  uint32_t parked;     // ParkState; all else is the sentry's to clear while it is kParked
  uint32_t cpu;        // the processor on which it went to sleep last
  uint32_t rseq_held;  // the host has an area of this thread's for rseq(2)
  uint64_t fault_addr, trapno, error_code;

  // Line 7: the stub's own.
  alignas(64) uint64_t self;
  uint32_t gs_owned;  // the guest uses GS; its value is in gs_base
  StubMode mode;
  uint32_t copied_in;          // copies of the call that is to be reported
  uint32_t futex_interrupted;  // what kRequestFutexInterrupted and kRequestMaskChanged will say
  uint32_t mask_changed;
  uint64_t frame;      // ucontext in kModeFrame
  uint32_t spin_debt;  // learned: whether it pays to spin for an answer
  uint32_t spin_misses;
  uint32_t woke_elsewhere;  // waits until it is believed again that the poller wakes where it slept
  uint32_t step;            // a single-step trap is owed to the guest
  uint32_t forked;          // a child that was made a moment ago waits for a core
  uint32_t restore_all;     // the last answer has changed more than rax
  uint32_t saved_flags;     // of a patched call: OF in al, the others in ah
  uint32_t site_form;
  uint64_t call_flags;   // of a patched call, for r11
  uint32_t traced_call;  // a call that the tracer has sent here: as one from a patched site, but
                         // from a syscall instruction
  // The guest's signal mask with kMaskOpen, if it may be changed here; else 0. Changed by
  // compare-and-exchange, since the sentry may close it at any moment.
  uint64_t sigmask;
  // Of kRequestLaneDone: what the call returns, and which lane it was.
  int64_t lane_result;
  uint64_t lane_name;
  uint32_t lane_wrote;   // it was written to
  uint32_t lane_done;    // what kRequestLaneDone will say
  uint32_t lane_waited;  // what kRequestLaneWaited will say
  // The descriptor, plus one, for whose lane the call at hand waits or has waited; 0: none. While
  // it stands here, whoever closes the descriptor keeps its description for that call.
  uint32_t lane_wait;
  uint32_t wait_debt;  // as spin_debt, of waiting for a lane
  uint32_t wait_misses;

  // From here: identity, written by the sentry. Forging it deceives only the forger.
  alignas(64) int32_t pid;
  int32_t tid, ppid;
  uint32_t uid, euid, gid, egid;
  uint32_t has_identity;
  uint32_t lanes_off;  // 1: every call but futex(2) is to reach the sentry; 2: every call
  uint32_t stamp;      // the next trap is to be stamped: when it came, and when its answer did
  uint64_t trapped_at, resumed_at;
  // With what this thread locks stream lanes; 0: it has none. The descriptors in the header are
  // its.
  uint32_t lane_owner;
  // The name of the place of its working directory in the table of paths; 0: it uses none.
  uint64_t path_place;
  // Which of the places of descriptors in the header are its, and whose descriptors it may close
  // (FdCloses::owner); 0: none.
  uint64_t fd_places;
  // The calls of kThreadCalls may be answered here.
  uint32_t thread_calls;
  // What the thread has set by them, and which of it (ThreadWord) since the sentry looked last.
  uint32_t words_changed;
  uint64_t clear_child_tid, robust_list, rseq_addr;
  uint32_t rseq_length, rseq_signature;
  // The CPU time of the host's thread when it became this one.
  int64_t cpu_base_ns;

  // The process's signal actions, where they may be changed here: kActionsOpen, and for each signal
  // a bit that tells in which of the two tables its action stands. The other is written before the
  // bit changes by compare-and-exchange, so that the sentry may close it at any moment.
  alignas(64) uint64_t actions_word;
  uint32_t actions_changed;
  uint64_t copy_fault;  // the stub's own: where the last copy that failed met its fault
  // The thread's signal stack while the mask is open; size 0: none.
  uint64_t alt_stack_sp, alt_stack_size;
  uint32_t alt_stack_flags;
  uint32_t random_left;  // bytes of `random` that may be given yet, from its begin

  alignas(64) LaneHits lane_hits[kLaneHits];
  alignas(64) CopyEntry copy_in[kMaxCopiesIn];
  CopyEntry copy_out[kMaxCopies];
  SignalEntry actions0[kSignalCount];

  alignas(kPageSize) OrderEntry orders[kMaxOrders];
  SignalEntry actions1[kSignalCount];
  alignas(kPageSize) unsigned char random[kRandomSize];
  unsigned char in_area[kCopyInSize];
  unsigned char out_area[kCopyOutSize];
  // The stub's stack, which is the thread's signal stack too.
  unsigned char stack[kSlotSize - 2 * kPageSize - kRandomSize - kCopyInSize - kCopyOutSize];
};
static_assert(sizeof(Slot) == kSlotSize);
static_assert(offsetof(Slot, request) == 128 && offsetof(Slot, eflags) == 192 &&
              offsetof(Slot, answer_seq) == 256);
static_assert(offsetof(Slot, orders) == kPageSize);

inline constexpr uint32_t kReadyWords = kMaxSlots / 64;

struct LaneFd {
  uint64_t in, out;  // what it reads from and writes to
};
inline constexpr uint32_t kLaneFds = 1024;

// How many of the address space's threads wait natively for private futex words, by a hash of the
// words' addresses: a wake-up where nobody waits needs no call of the host. Written by stubs alone.
inline constexpr uint32_t kFutexCounts = 256;
struct FutexWaits {
  uint32_t count[kFutexCounts];
  uint32_t moved;  // waiters have been moved by the host: no count tells where they are
};

struct MailboxHeader {
  alignas(64) uint64_t ready[kReadyWords];  // a bit per slot: has handed off
  alignas(64) uint32_t fd_turn;             // whose turn it is at the socket
  uint32_t fd_waiters;
  int32_t socket;  // the stub's descriptor
  // A number of the sentry's by which it knows that a process has mapped this mailbox.
  alignas(64) uint64_t nonce[2];
  alignas(64) uint64_t patching;  // address whose first byte is int3 for a moment
  // What the windows at kFileWindowBase show; changed by the sentry at any time.
  alignas(64) ShownWindow windows[kFileWindows];
  // Which descriptors the stub may close, and has closed.
  FdCloses closes;
  alignas(64) FutexWaits futex_waits;
  alignas(kPageSize) Site sites[kMaxSites];
  // The stream lanes that descriptors lead to, by LaneName; changed by the sentry at any time.
  alignas(kPageSize) LaneFd lane_fds[kLaneFds];
  alignas(kPageSize) LaneEpoll lane_epolls[kLaneEpolls];
  // What is known of the regular files that descriptors lead to; changed by the sentry at any time.
  alignas(kPageSize) FileLane files[kFileLanes];
  unsigned char file_begins[kFileBegins][kFileBeginSize];
  // Changed by the sentry at any time.
  alignas(kPageSize) FdPlace fd_places[kPlaceFds];
  alignas(kPageSize) FdAttr fd_attrs[kAttrFds];
};
static_assert(sizeof(MailboxHeader) <= kHeaderSlots * kSlotSize);
static_assert(offsetof(MailboxHeader, sites) == kPageSize);
inline constexpr uint64_t kSitesAddress = kMailboxBase + offsetof(MailboxHeader, sites);
static_assert(sizeof(Site) == 16);

inline constexpr uint64_t SlotOffset(uint32_t index) {
  return (index + uint64_t{kHeaderSlots}) * kSlotSize;
}
inline constexpr uint64_t SlotAddress(uint32_t index) { return kMailboxBase + SlotOffset(index); }

// ---- Descriptors in strict mode ---------------------------------------------------------------
//
// A strict stub receives none by its socket, which it closes at the start. The sentry opens one in
// it while it waits for the answer to the call that needs it, at the number of the thread's own.

inline constexpr int kFirstOrderedFd = 16;
inline constexpr int OrderedFd(uint32_t slot) { return kFirstOrderedFd + static_cast<int>(slot); }

// ---- The zygote's messages ----------------------------------------------------------------------

struct ZygoteHello {      // comes with the listener of the call gate, if there is one
  uint64_t vdso_base;     // 0: the vDSO could not be moved
  uint64_t traced_entry;  // where the tracer has a stub take a call of the guest
  int32_t error;
  int32_t listener_error;  // why the host has granted no listener; 0 with one
};
// What a new stub gets its mailbox as: the zygote's lowest free number.
inline constexpr int kNewMailboxFd = 1;
struct ZygoteRequest {  // comes with two descriptors: the mailbox and the stub's socket
  uint32_t slot;
};
struct ZygoteReply {
  int32_t pid;  // or -errno
};

// ---- Host calls that both sides must agree on -------------------------------------------------

// SIGUSR1: not a real-time signal, since those queue up and may be refused.
inline constexpr int kInterruptSignal = 10;
// CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | CHILD_SETTID | CHILD_CLEARTID
inline constexpr uint64_t kThreadCloneFlags =
    0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x1000000 | 0x200000;
// CLONE_PARENT | CHILD_CLEARTID, SIGCHLD
inline constexpr uint64_t kForkCloneFlags = 0x8000 | 0x200000 | 17;
// What the zygote itself uses, and no stub may: CLONE_CHILD_SETTID besides.
inline constexpr uint64_t kZygoteCloneFlags = kForkCloneFlags | 0x1000000;

}  // namespace platform
