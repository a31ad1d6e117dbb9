// The parts of the stub and how they call one another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "platform/lane_waits.h"
#include "platform/mailbox.h"

namespace platform::stub {

// ---- Host signal frame (arch/x86/include/uapi/asm/{ucontext,sigcontext}.h) ----

struct SigContext {
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip;
  uint64_t eflags;
  uint16_t cs, gs, fs, ss;
  uint64_t err, trapno, oldmask, cr2;
  uint64_t fpstate;
  uint64_t reserved[8];
};
struct UContext {
  uint64_t flags, link;
  uint64_t stack_sp;
  int32_t stack_flags;
  uint64_t stack_size;
  SigContext mc;
  uint64_t mask;
};
struct SigInfo {
  int32_t signo, error, code, pad;
  uint64_t addr;    // faults; SIGSYS: the address after the call
  int32_t syscall;  // SIGSYS
  uint32_t arch;    // SIGSYS
};

// Everything is one image: no reference goes through a table of addresses.
#pragma GCC visibility push(hidden)

extern "C" {

// ---- entry.cc (assembly) ----

// The handler of every host signal of the stub.
void StubSignalEntry(int signo, SigInfo* info, UContext* uc);
// Takes a call of the guest that the tracer has sent here.
void StubTracedCall();
// Enters the guest with the registers of the slot that GS points to; does not return. `fast`: all
// but rax, rcx, rip and the flags are in place... (see entry.cc)
[[noreturn]] void StubEnterGuest(Slot* slot);
// Makes the slot's stack the calling thread's signal stack, by a return from a signal: a stub has
// no other call for that. On that very stack, which is none for signals yet. The FPU state is lost.
void StubSetSignalStack(Slot* slot);
// Starts a host thread on `slot`; returns clone's result.
long StubCloneThread(Slot* slot);
// Forks; the child maps `mailbox_fd` over the mailbox and calls StubForkChild.
long StubFork(Slot* slot, int mailbox_fd, int socket_fd, int old_socket_fd);
// Copies `n` bytes, either side being guest memory; returns how many were not copied because of a
// fault.
size_t StubCopy(void* dst, const void* src, size_t n);
// XSAVE / XRSTOR at `image` (64-byte aligned); false if a fault stopped it.
bool StubXsave(void* image, uint64_t features);
bool StubXrstor(const void* image, uint64_t features);
// Copies a string of at most `n` bytes; returns how many, the NUL included. Less than `n` without a
// NUL at the end: a fault.
size_t StubCopyString(void* dst, const void* src, size_t n);
// futex(2), unless the slot's interrupt flag is set before the host has
// it: then -EINTR. The interrupt signal ends a wait with -EINTR.
long StubFutex(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, Slot* slot);
// lock cmpxchg of a guest's word; -1 after a fault, else what it held.
long StubCompareExchange(uint64_t addr, uint32_t expected, uint32_t desired);
extern const char kStubCopyFault[], kStubCopyFixup[];
extern const char kStubXsaveFault[], kStubXrstorFault[], kStubXFixup[];
extern const char kSigreturnBegin[], kSigreturnEnd[];
extern const char kEnterBegin[], kEnterEnd[];
extern const char kFastBegin[], kFastEnd[];
extern const char kQuickMovBegin[], kQuickMovEnd[];
extern const char kQuickCompareBegin[], kQuickCompareEnd[];
extern const char kFutexBegin[], kFutexEnd[];
extern const char kStubStringFault[], kStubStringFixup[];
extern const char kStubExchangeFault[], kStubExchangeFixup[];
extern const char kForeignGs[];  // a patched call of a thread whose GS is the guest's
extern const char kIslands[];

// ---- trap.cc ----

// Handles a host signal. Returns true if the frame leads into the guest, so that the interrupt flag
// must be looked at on the way.
bool StubHandleSignal(int signo, SigInfo* info, UContext* uc, Slot* slot);
// The way into the guest found the interrupt flag set: hands off (frame and direct mode).
void StubInterruptedFrame(UContext* uc, Slot* slot);
void StubInterruptedDirect(Slot* slot);
void StubInterruptedCall(Slot* slot);
// A call from a patched site. Returns false if only rax has changed.
bool StubDirectCall(Slot* slot, uint64_t flags, uint32_t saved_flags);
// First code of a new host thread, on its slot's stack.
[[noreturn]] void StubThreadMain(Slot* slot);
// The same for the first one of a stub that the zygote has made.
[[noreturn]] void StubFirstThreadMain(Slot* slot);
// First code of a forked child, on its slot's stack in its own mailbox.
[[noreturn]] void StubForkChild(Slot* slot, int mailbox_fd, int socket_fd, int old_socket_fd);

}  // extern "C"

// ---- trap.cc ----

// Reports `kind` and does what the answers say until the guest is to be entered; the slot then
// holds its registers.
void HandOff(Slot* slot, RequestKind kind);
// How much of the time that a spin may take is worth it.
enum class Patience { kNone, kLittle, kAll };
// Whether the sentry's poller is to be woken if it sleeps.
enum class Bell { kRing, kLeave };
// Waits for the answer to round `seq` (its answer_seq is another).
void AwaitAnswer(Slot* slot, uint32_t seq, Patience patience, Bell bell);

// ---- lanes.cc: calls answered here ----

// Handlers by system call number. One that serves sets the slot's rax and returns true; one that
// declines (or is missing) leaves the call to the sentry.
bool TryLane(Slot* slot);
// The same whether lanes are open or not, on the sentry's order. `remaining_ns` as in
// platform::Context::AnswerInLane.
bool RunLane(Slot* slot, int64_t remaining_ns);
// ---- futex.cc ----

// A handler as those of lanes.cc.
bool Futex(Slot* slot);
// FUTEX_WAIT or FUTEX_WAIT_BITSET with the guest's own arguments; `relative`: of the former, of
// which `given` ns are left if that is not negative. An interrupt is reported to the sentry, which
// ends or restarts the call as Linux would: then false.
bool FutexWaitLane(Slot* slot, bool relative, int64_t given);
// A requeue that wakes those it should move: they look at their word again. With `expected`, only
// if the word holds that. `wake_op`: FUTEX_WAKE, private or not.
long RequeueByWaking(uint64_t word, uint64_t target, int32_t wake, int32_t requeue,
                     const uint32_t* expected, uint32_t wake_op);
// While it lives, a wait for `word` by the operation `op` counts, so that a wake-up knows of it.
class CountedFutexWait {
 public:
  CountedFutexWait(uint64_t word, uint32_t op);
  ~CountedFutexWait();
  CountedFutexWait(const CountedFutexWait&) = delete;
  CountedFutexWait& operator=(const CountedFutexWait&) = delete;

 private:
  uint32_t* count_;  // null: not a private word
};
// Before the host moves waiters to another word.
void TellFutexWaitersMove();

// ---- futex2.cc ----

// futex_wake(2), futex_wait(2), futex_requeue(2): only on the sentry's order. False: a wait was
// interrupted.
inline constexpr uint64_t kFutex2First = 454, kFutex2Last = 456;
bool Futex2(Slot* slot);

// ---- thread_calls.cc: calls that concern the caller's thread alone ----

// As the handlers of lanes.cc. SigReturn sets every register of the slot, and restore_all.
bool SigReturn(Slot* slot);
bool ArchPrctl(Slot* slot);
bool SetTidAddress(Slot* slot);
bool SetRobustList(Slot* slot);
bool RegisterRseq(Slot* slot);

// ---- waits.cc: waiting without the sentry ----

// Spinning while another core is likely to bring what is waited for: SpinAgain tells, before each
// look, whether to take it. EndSpin learns from the outcome.
struct Spin {
  uint64_t begin = 0;
  uint32_t looks = 0;
};
bool SpinAgain(Slot* slot, Spin* spin);
void EndSpin(Slot* slot, const Spin& spin, bool found);
// Sleeps on a word of the lanes that all stubs of the domain share, at most `timeout_ns` (negative:
// without end). Woken may mean nothing.
enum class Wake { kWoken, kTimeout, kInterrupted };
Wake SleepOn(Slot* slot, const uint32_t* word, uint32_t value, int64_t timeout_ns);
int64_t MonotonicNs();
// The arena's words, and how to wake those who sleep on them or on a word of a lane.
struct StubWaker {
  uint32_t* sleepers = reinterpret_cast<uint32_t*>(kLaneBase + kLaneSleepersAt);
  void Wake(const uint32_t* word) const;
};
// The call waits for the lane of descriptor `fd` from here on; it does until it is answered.
void BeginLaneWait(Slot* slot, uint64_t fd);
// False, for it to be returned: the call goes on with the sentry.
bool LeaveLaneWait(Slot* slot, int64_t remaining_ns);

// Of descriptors < kLaneFds: to which lane one leads (WatchedLane), and what is true of it if that
// is the one of this name.
uint64_t NameOfFd(uint32_t fd);
LaneState LookAtFd(uint32_t fd, uint64_t name);
// What comes by the lanes of `fd`, or goes, touches the word of `wish`.
void ArmFd(uint32_t fd, bool in, bool out, LaneWish wish);
// Sleeps until the word, which was `value`, is touched.
Wake AwaitTouch(Slot* slot, uint32_t* word, uint32_t value, int64_t timeout_ns);
// Waits for several lanes. look() tells how many events there are, -1: only the sentry can tell;
// arm() has those who bring them touch the word, or returns false. The same as look(); -1 also if
// the wait goes on in the sentry, for `*remaining_ns` (negative: without end).
template <typename Arm, typename Look>
int WaitForTouch(Slot* slot, uint32_t* word, int64_t timeout_ns, int64_t* remaining_ns, Arm arm,
                 Look look) {
  const int64_t begin = timeout_ns > 0 ? MonotonicNs() : 0;
  *remaining_ns = timeout_ns;
  for (;;) {
    const uint32_t value = AddLaneWaiter(word, kStubLooks);
    if (!arm()) return -1;
    const int n = look();
    if (n != 0) return n;
    const bool longer = *remaining_ns < 0 || *remaining_ns > kMostLaneSleepNs;
    const Wake wake = AwaitTouch(slot, word, value, longer ? kMostLaneSleepNs : *remaining_ns);
    if (timeout_ns > 0) *remaining_ns = timeout_ns - (MonotonicNs() - begin);
    if (timeout_ns > 0 && *remaining_ns < 0) *remaining_ns = 0;
    if (wake == Wake::kInterrupted) return -1;
    const int found = look();
    if (found != 0 || *remaining_ns == 0) return found;
    if (wake == Wake::kTimeout && longer) return -1;
  }
}

// ---- polls.cc: poll(2) of files with lanes ----
bool StreamPoll(Slot* slot);
bool StreamPpoll(Slot* slot);

// ---- streams.cc: calls answered by stream lanes ----

// As the handlers of lanes.cc. What was done and is to be told to the sentry is declined with
// lane_done set.
bool StreamRead(Slot* slot);
bool StreamWrite(Slot* slot);
bool StreamReadv(Slot* slot);
bool StreamWritev(Slot* slot);
bool StreamSendto(Slot* slot);
bool StreamRecvfrom(Slot* slot);

// ---- files.cc: calls on regular files ----
bool FileRead(Slot* slot);
bool FilePread(Slot* slot);
bool FileLseek(Slot* slot);
bool FileClose(Slot* slot);

// ---- epoll.cc: calls on epoll instances that watch such streams ----
bool StreamEpollCtl(Slot* slot);
bool StreamEpollWait(Slot* slot);
bool StreamEpollPwait(Slot* slot);

// ---- paths.cc: look-ups that the table of paths answers ----
bool PathOpen(Slot* slot);
bool PathOpenat(Slot* slot);
bool PathStat(Slot* slot);
bool PathFstat(Slot* slot);
bool PathLstat(Slot* slot);
bool PathNewfstatat(Slot* slot);
bool PathStatx(Slot* slot);
bool PathAccess(Slot* slot);
bool PathFaccessat(Slot* slot);
bool PathFaccessat2(Slot* slot);
bool PathReadlink(Slot* slot);
bool PathReadlinkat(Slot* slot);

// ---- copy_in.cc ----

// Copies what the call's arguments point to into the slot, as far as its shape tells and room
// lasts.
void CopyIn(Slot* slot);

// ---- orders.cc ----

// Carries out the answer's orders. Returns false after one that failed (index and error in the
// slot).
bool RunOrders(Slot* slot, uint32_t count, uint32_t fd_count);
// Carries out those with which a thread ends, whether they fail or not; they take no descriptors.
void RunLastOrders(Slot* slot, uint32_t count);
// rseq(2) of the calling thread.
long HostRseq(Slot* slot, uint64_t addr, uint64_t length, uint64_t flags, uint64_t signature);
// Copies the answer's pending writes out to the guest. 0; EFAULT, or EIO if a file's window could
// not be read.
int RunCopyOut(Slot* slot, uint32_t count);

// ---- fpu.cc ----

// Writes the guest's FPU state to guest memory as a signal frame holds it. 0 or -errno.
long SaveFpu(Slot* slot, uint64_t addr);
// Loads it from there; addr 0: the initial state.
long RestoreFpu(Slot* slot, uint64_t addr);
// Loads the guest's FPU state into the CPU, so that a clone inherits it.
void LoadFpuForClone(Slot* slot);
// The same for a parked thread: leaves the state with the slot `to`, and takes it from there.
void GiveFpu(Slot* slot, Slot* to);
void TakeFpu(Slot* slot);

#pragma GCC visibility pop

}  // namespace platform::stub
