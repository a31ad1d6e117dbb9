// ptrace(2) as the kernel's other parts see it: what a traced task is, its stops, who traces whom.
// Follows Linux's kernel/ptrace.c and the parts of kernel/signal.c that know of tracers. The
// requests themselves are in sentry/syscalls/ptrace.cc.
#pragma once

#include <linux/ptrace.h>
#include <signal.h>

#include <array>
#include <cstdint>
#include <functional>
#include <span>

#include "sentry/auth/credentials.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/kernel/namespaces.h"
#include "sentry/kernel/signal.h"
#include "sentry/kernel/thread_group.h"
#include "sentry/mm/memory_manager.h"

namespace sentry {

class Task;
struct CloneArgs;

// What Task::trace_flags() holds of a task that is traced; 0 of one that is not. Above the first
// two bits stand the options: bit n of PTRACE_SETOPTIONS, which for n > 0 asks for event n (Linux:
// PT_PTRACED, PT_SEIZED, PT_EVENT_FLAG).
inline constexpr uint32_t kTraced = 1, kTraceSeized = 2;
inline constexpr int kTraceOptionShift = 3;
inline constexpr uint32_t kTraceOptions = 0xff | PTRACE_O_EXITKILL;  // PTRACE_O_MASK
constexpr uint32_t TraceOption(uint32_t option) { return option << kTraceOptionShift; }

// What Task::syscall_work() asks for at a system call (Linux: SYSCALL_WORK_*).
inline constexpr uint32_t kWorkSeccomp = 1, kWorkTrace = 2, kWorkEmulate = 4, kWorkStep = 8;
inline constexpr uint32_t kWorkOfTracer = kWorkTrace | kWorkEmulate | kWorkStep;

// A task in the role of a tracee. Made when it is first traced, kept until it ends. Guarded by the
// signal mutex of its process, but for what is said.
struct Tracee {
  // Null: nobody traces it now. Changed under Kernel::task_mutex() too, read under that.
  Task* tracer = nullptr;
  base::Ref<const Credentials> tracer_creds;  // as they were when it attached; as `tracer`

  // Stops to come (Linux: JOBCTL_TRAP_STOP, JOBCTL_TRAP_NOTIFY).
  bool trap_stop = false, trap_notify = false;
  // The stop at hand.
  bool stopped = false;
  bool resumed = false;       // the tracer has ended it
  bool listening = false;     // PTRACE_LISTEN
  bool frozen = false;        // the tracer looks at it: it stays, even if killed
  bool killed = false;        // with its namespace: ends even the stop of its exit
  int wait_code = 0;          // what wait(2) tells of the stop; 0: has been told
  int resume_signal = 0;      // what the tracer sends it on with
  siginfo_t* info = nullptr;  // of the stop; null: a group stop without PTRACE_SEIZE
  uint64_t message = 0;       // PTRACE_GETEVENTMSG
  // What the stopped task's fiber is to do for the tracer.
  const std::function<void()>* job = nullptr;
  fiber::WaitQueue queue;  // woken at every change of the above

  // A thread that has ended, and waits to be waited for. Under Kernel::task_mutex().
  bool exited = false;
  int exited_status = 0;

  // Its own, and the tracer's while it is frozen.
  bool forced_tf = false;              // the trap flag is ours, not the guest's
  bool in_lane = false;                // a call is being answered in a lane
  uint64_t lane_nr = 0;                // which
  const void* left_text = nullptr;     // the memory whose text the platform leaves alone
  std::array<uint64_t, 8> debugreg{};  // as far as there are any: nothing can be enabled
};

// Functions without a remark are for the tracee's own fiber.
class Ptrace {
 public:
  // --- stops (stop.cc) ---
  // A signal was taken: the tracer decides. False if nothing is left of it; else `*info` may be of
  // another signal (Linux: ptrace_signal).
  static bool SignalStop(Task& t, siginfo_t* info);
  // Has to stop for the group's stop or for PTRACE_INTERRUPT. Under the signal mutex.
  static bool TrapPending(const Task& t);
  static void TrapStop(Task& t);  // Linux: do_jobctl_trap
  // Stops with PTRACE_EVENT_* if the tracer wants to know.
  static void Event(Task& t, int event, uint64_t message);
  static bool EventEnabled(const Task& t, int event);
  // With the id of `pid` as the tracer sees it.
  static void PidEvent(Task& t, int event, const Pid& pid);
  // exec has succeeded; `old_tid`: the thread's id before, from TidForTracer.
  static void ExecEvent(Task& t, uint64_t old_tid);
  static uint64_t TidForTracer(Task& t);
  static void ExitEvent(Task& t);
  // Before a call is made, if syscall_work() asks for something of a tracer's. False: it is not to
  // be made. The call may be another one afterwards.
  static bool EnterCall(Task& t, uint32_t work);
  static void LeaveCall(Task& t);
  // A call goes on in a lane, with a trap at its end; that has come. False: it was none.
  static bool LaneEnded(Task& t);
  // The handler's frame is made: a step ends at its first instruction.
  static void FrameMade(Task& t);
  // The trap flag is set for a step, or taken back. Stepping: whether a step is under way.
  static void Arm(Task& t);
  static bool Disarm(Task& t);

  // --- who traces whom (attach.cc) ---
  static base::Status Attach(Task& tracer, Task& t, bool seize, uint32_t options);
  static base::Status TraceMe(Task& t);
  static base::Status CheckTracer(const Task& tracer, const Task& t);  // ESRCH
  static base::Status Interrupt(Task& t);                              // EIO
  // PTRACE_EVENT_FORK, _VFORK, _CLONE, or 0.
  static int CloneEvent(const Task& parent, const CloneArgs& args);
  // The child is known to nobody so far. Under Kernel::task_mutex().
  static void LinkClone(Task& parent, Task& child, const CloneArgs& args);
  // Under Kernel::task_mutex(). Nobody traces `t` from now on: it goes on, if it was in a stop,
  // with what the stop was about or `signal` (-1: the former). What is let go of goes to `later`.
  static void Unlink(Task& t, int signal, Deferred* later);
  // The tracer has let go: the same, and the parent of a zombie is told that it may have it.
  static void Detach(Task& t, int signal, Deferred* later);
  // Its tracees go on, or end. Under Kernel::task_mutex().
  static void ReleaseTracees(Task& dying, Deferred* later);
  // A thread other than the leader has ended. Under Kernel::task_mutex().
  static void NoteThreadExit(Task& t);
  // The tracer's side of ThreadGroup::NotifyExit. Under Kernel::task_mutex().
  static void NotifyTracerOfExit(ThreadGroup& group);
  // Under Kernel::task_mutex(): who traces it is of another process than its parent.
  static bool IsReparented(const Task& t);
  // [any] The tracer's id in `ns`, or 0.
  static int TracerIn(const Task& t, const PidNamespace& ns);
  // [any] Its tracer has not CAP_SYS_PTRACE over `ns` (Linux: ptracer_capable).
  static bool TracerIsWeak(const Task& t, const UserNamespace& ns);
  // Under the signal mutex: a stop to come, or one that PTRACE_LISTEN has prolonged, is told of a
  // change of the group's (Linux: ptrace_trap_notify).
  static void TrapNotify(Task& t);
  // Under the signal mutex: its namespace ends, and does not wait for its tracer.
  static void EndExitStop(Task& t);

  // --- waiting (wait.cc) ---
  // wait(2) of `waiter`, for tracees. `*any`: there is one to wait for. Under Kernel::task_mutex().
  static bool TryWait(Task& waiter, const WaitOptions& w, WaitResult* result, bool* any,
                      Deferred* later);

  // --- memory (memory.cc) ---
  // Access by `current` to memory that may be another's, where the protection does not count if
  // `current` can have a thread of that memory see to it: its own, or that of a tracee in a stop.
  // Bytes done; EIO.
  static base::Result<size_t> ReadMemory(Task& current, MemoryManager& mm, uint64_t addr,
                                         std::span<std::byte> dst);
  static base::Result<size_t> WriteMemory(Task& current, MemoryManager& mm, uint64_t addr,
                                          std::span<const std::byte> src);

 private:
  friend class StoppedTracee;
  enum class Kind { kSignal, kGroup, kOther, kExit };
  static int Stop(Task& t, Kind kind, int code, siginfo_t* info, uint64_t message);
  static int Notify(Task& t, Kind kind, int signo, int code, uint64_t message);
  static void CallStop(Task& t, uint64_t message);
  static bool IsKilled(const Task& t, Kind kind);
  static void BeforeStop(Task& t);
  static void AfterStop(Task& t);
  static void AwaitResume(Task& t, Kind kind);
  static void TellTracer(Task& t, int code, int status);
  static void Link(Task& t, Task& tracer, uint32_t flags, base::Ref<const Credentials> creds);
  static bool WaitForOne(Task& waiter, Task& t, const WaitOptions& w, WaitResult* result,
                         Deferred* later);
};

// A tracee that stays in its stop as long as this exists, for the tracer's fiber.
class StoppedTracee {
 public:
  // ESRCH unless `tracer` traces `t` and it is in a stop (Linux: ptrace_check_attach).
  static base::Result<StoppedTracee> Freeze(Task& tracer, base::Ref<Task> t);
  StoppedTracee(StoppedTracee&& other) = default;
  ~StoppedTracee();

  Task& task() const { return *task_; }
  Tracee& state() const;
  // Has its fiber do something, and waits for that.
  void Run(const std::function<void()>& job) const;
  // Ends the stop: `work` of kWorkOfTracer, `signal` as the tracer says.
  void Resume(uint32_t work, int signal);
  void Listen();
  void SetOptions(uint32_t options);

 private:
  explicit StoppedTracee(base::Ref<Task> t) : task_(std::move(t)) {}
  base::Ref<Task> task_;
};

}  // namespace sentry
