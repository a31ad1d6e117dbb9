// The thread that stands in for seccomp: it traces the stubs and looks at each of their calls.
#pragma once

#include <linux/seccomp.h>
#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/notification.h"
#include "platform/ptrace/call_filter.h"
#include "sentry/base/result.h"

namespace platform {

class CallGate;

// Traces the zygote and, as the host attaches what a tracee makes, every stub from its first
// instruction on. Each call stops before it begins, and is judged by registers that nobody can
// change meanwhile. One of the stub's own that the filters admit is made. Any other is not: the
// guest's continues in the stub's code, as from a patched site; the rest raises SIGSYS as seccomp
// would. Signals pass as they are. The host kills all tracees when this thread ends.
//
// How the host is to stop a thread at its next call must be said when it goes on, and each way is
// dear for the calls that the other is for (see Mode). So it is guessed, by what came last time.
class Tracer {
 public:
  // `zygote_filter` holds for the zygote, and with `stub_filter` for all others; what a filter puts
  // to the sentry (SECCOMP_RET_USER_NOTIF) is decided by `gate`, which outlives the stubs. A stub
  // that waits for an answer has `doorbell` rung for it (Shared::sleeping).
  Tracer(std::span<const uint64_t> zygote_filter, std::span<const uint64_t> stub_filter,
         CallGate* gate, uint32_t* doorbell);
  // Waits until every tracee has ended: to be called when they are about to.
  ~Tracer();
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  // When this returns, no call of `zygote` escapes any more. `entry`: where a stub takes a call of
  // the guest (ZygoteHello::traced_entry). On an error `why` says which step failed.
  base::Status Start(int zygote, uint64_t entry, std::string* why);

 private:
  enum class Mode : uint8_t {
    // PTRACE_SYSEMU: one stop for a call that is not made; else two more, to have it begin anew.
    kSkip,
    // PTRACE_SYSCALL: one stop to let the call be made, and one more before the next call can be
    // stopped at in this mode again.
    kMake,
  };
  enum Kind : uint8_t { kGuests, kOwn };
  struct Tracee {
    Mode mode = Mode::kSkip;
    Kind last = kGuests;             // of its calls
    Kind next[2] = {kOwn, kGuests};  // what came after a call of each kind, the last time
    uint32_t raised_arch = 0;        // not 0: a SIGSYS of ours is on its way
    seccomp_data raised{};
  };
  struct Stop {
    pid_t tid;
    int status;
  };

  void Run(base::Status* seized, absl::Notification* done);
  bool WaitForStops();
  void TakeStops();
  void OnEnd(pid_t tid);
  void Handle(const Stop& stop);
  void HandleSignal(pid_t tid, Tracee* tracee, int signo);
  void HandleCall(pid_t tid, Tracee* tracee);
  bool Admit(pid_t tid, Tracee* tracee, const seccomp_data& call, uint32_t verdict);
  void RingFor(const seccomp_data& call) const;
  bool EnterStub(pid_t tid, const seccomp_data& call);
  void Raise(pid_t tid, Tracee* tracee, const seccomp_data& call);
  // What the filters say of the call, with the error that it is to get (SECCOMP_RET_*).
  uint32_t Judge(pid_t tid, const seccomp_data& call) const;
  static void Guess(Tracee* tracee, Kind kind);
  static void Continue(pid_t tid, const Tracee& tracee, int signo = 0);

  const CallFilter zygote_filter_, stub_filter_;
  CallGate* const gate_;
  uint32_t* const doorbell_;
  pid_t zygote_ = 0;
  uint64_t entry_ = 0;
  absl::Notification* zygote_stopped_ = nullptr;  // until it is under way
  std::thread thread_;

  // Of the thread alone.
  absl::flat_hash_map<pid_t, Tracee> tracees_;
  std::vector<Stop> stops_;
  uint32_t since_round_ = 0;
};

}  // namespace platform
