// Lets a stub make the calls that the zygote's filter puts to the sentry, when it has been ordered
// to: clone, and in strict mode every call about its memory.
#pragma once

#include <linux/seccomp.h>

#include <array>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "platform/mailbox.h"
#include "sentry/base/host_fd.h"
#include "sentry/base/ref.h"
#include "sentry/base/result.h"

namespace platform {

// A host call that a thread of a stub is to make.
struct OrderedCall {
  uint32_t nr;
  std::array<uint64_t, 6> args{};  // as many as the call has count
  // What becomes the stub's descriptor `fd` before the call goes on; null: nothing.
  base::Ref<base::HostFd> file;
  int fd = -1;
};

// Appends the host calls with which the stub carries out `entry` in slot `index`: all that are put
// to the sentry. In strict mode `file` is what a descriptor of the entry stands for.
void AppendOrderedCalls(const OrderEntry& entry, uint32_t index, bool strict,
                        base::Ref<base::HostFd> file, std::vector<OrderedCall>* calls);

// Answers the notifications of the zygote's filter on a thread of its own. What is asked for is in
// registers alone, which the host has copied when the call began and which the caller, who waits,
// cannot change: so a call that was looked at here is the one that goes on. Nothing of it points to
// memory that would be looked at later. (A descriptor is a number whose meaning others of the
// process could change; but only the sentry opens descriptors in a strict stub, and each thread has
// one number.) Thread-safe.
class CallGate {
 public:
  CallGate() = default;
  ~CallGate() { Stop(); }
  CallGate(const CallGate&) = delete;
  CallGate& operator=(const CallGate&) = delete;

  // `listener` stays the caller's and open until Stop.
  void Start(int listener);
  void Stop();

  // The thread `tid` of the stub `process` may make these calls, each once and in this order; some
  // may be left out. What was expected of it before, is not any more. A clone may be asked for more
  // often: one that a signal interrupts, or a stop by the host, begins anew, and nothing here shows
  // whether one before has come to its end.
  void Expect(int tid, int process, std::vector<OrderedCall> calls);
  // None are expected any more. Returns how much more often a clone was asked for than expected.
  uint32_t Forget(int tid);

  // For a tracer, which has no listener: whether the thread may make this call now. Not in strict
  // mode.
  bool Admit(int tid, const seccomp_data& data);

  // ---- Strict mode: the call with which a new process maps its mailbox ----

  // A child that `parent` is about to make may map its mailbox from its descriptor `fd`, once.
  void ExpectBirth(int parent, int fd);
  // There is no such child.
  void CancelBirth(int parent, int fd);
  // Claims the child (StubProcess::Claim); if it has not mapped its mailbox yet, it still may.
  base::Status Claim(int pid, int parent, int fd);
  // The process is about to be reaped.
  void ForgetProcess(int pid);

 private:
  struct Allowance {
    int process = 0;
    std::vector<OrderedCall> calls;
    size_t next = 0;
    uint32_t clones_expected = 0, clones_asked = 0;
  };
  // Of the children of one process that it has not reported yet.
  struct Births {
    std::vector<int> fds;   // those from which a mailbox may be mapped
    std::vector<int> born;  // who has mapped one
  };

  void Run();
  void AnswerOne();
  bool Install(uint64_t id, const OrderedCall& call);
  bool Take(int tid, const seccomp_data& data, OrderedCall* call);
  bool TakeOrdered(int tid, const seccomp_data& data, OrderedCall* call)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool TakeBirth(int pid, const seccomp_data& data) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  int listener_ = -1;
  base::UniqueFd stop_fd_;
  std::thread thread_;

  absl::Mutex mu_;
  absl::flat_hash_map<int, Allowance> allowed_ ABSL_GUARDED_BY(mu_);  // by thread
  absl::flat_hash_map<int, Births> births_ ABSL_GUARDED_BY(mu_);      // by parent
  // Claimed processes that have not mapped their mailbox yet, and the descriptor.
  absl::flat_hash_map<int, int> unborn_ ABSL_GUARDED_BY(mu_);
};

}  // namespace platform
