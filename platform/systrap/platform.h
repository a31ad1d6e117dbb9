// The systrap platform: stubs trapped by seccomp's SIGSYS, reached through mailboxes. And the
// ptrace platform, which is the same with another trap.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "platform/host_calls.h"
#include "platform/mailbox.h"
#include "platform/platform.h"
#include "platform/ptrace/tracer.h"
#include "platform/systrap/call_gate.h"
#include "platform/systrap/chores.h"
#include "platform/systrap/machine.h"
#include "platform/systrap/shared_text.h"
#include "platform/systrap/stub_process.h"
#include "platform/systrap/zygote.h"
#include "sentry/base/host_fd.h"

namespace platform {

class SystrapAddressSpace;
class ThreadContext;

class SystrapPlatform final : public Platform {
 public:
  // Who tells the guest's calls from the stub's own: the host's seccomp, or a tracer of ours.
  enum class Trapping { kSeccomp, kPtrace };
  SystrapPlatform(const Options& options, Trapping trapping)
      : options_(options), trapping_(trapping) {}
  ~SystrapPlatform() override;

  base::Status Start(std::string* why);

  const char* name() const override {
    return trapping_ == Trapping::kPtrace ? "ptrace" : "systrap";
  }
  std::span<const int> LaneCalls() const override { return kLaneCalls; }
  std::span<const int> ThreadCalls() const override { return kThreadCalls; }
  void StartPool() override;
  void ForgetFiles(uint64_t dev) override { texts_.Forget(dev); }
  int AllowHostCalls(void* filter) const override {
    return platform::AllowHostCalls(filter, trapping_ == Trapping::kPtrace);
  }
  base::Result<std::unique_ptr<AddressSpace>> NewAddressSpace() override;
  size_t Poll() override;
  bool ShouldSpin() override;
  void Wait(int64_t deadline_ns) override;
  void Wake() override;

  const Machine& machine() const { return machine_; }
  // Sites are patched. (Without FSGSBASE an island cannot tell whose GS it meets.)
  CallGate& gate() { return gate_; }
  bool strict() const { return options_.strict; }
  bool lanes() const { return options_.lanes; }
  // Slots from here on can get no descriptors in strict mode: the host's limit is too low.
  uint32_t ordered_fds() const { return ordered_fds_; }
  TextCache& texts() { return texts_; }
  bool patching() const { return options_.patch && machine_.has_fsgsbase; }

  // ---- For contexts and processes ----

  void AddContext(ThreadContext* context);
  void RemoveContext(ThreadContext* context);
  // A context has been resumed: the poller is to look at it.
  void NoteResume(ThreadContext* context);
  // Its trap is set and is to be delivered by the next Poll.
  void Post(ThreadContext* context);
  // The host thread of a running context is gone.
  void NoteGone(ThreadContext* context);
  // The process `pid`, forked from `parent`, belongs to `child`.
  base::Status AdoptFork(SystrapAddressSpace* child, StubProcess* parent, int pid)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  // A fork ordered of `process` has ended without a child that could be claimed. The keeper looks
  // in a while whether there is one nevertheless. `doubt`: see StubProcess::doubt.
  void Suspect(StubProcess* process, uint32_t doubt);
  Chores& chores() { return chores_; }
  // Has the keeper look what is to be done.
  void KickKeeper();
  // The poller means to spin, and as far as it knows there is a core besides its own for each guest
  // thread.
  bool HasFreeCore() const { return free_core_.load(std::memory_order_relaxed); }
  // A guest thread has been woken on the caller's processor.
  void NoteWokenHere() { look_now_.store(true, std::memory_order_relaxed); }
  template <typename F>
  void UnderPollLock(F f) {
    absl::MutexLock lock(&poll_mu_);
    f();
  }
  // To state where the poll lock is held.
  void AssertPolling() const ABSL_ASSERT_EXCLUSIVE_LOCK(poll_mu_) { poll_mu_.AssertHeld(); }

  // Whether one more thread of any process may be parked; it counts until EndParks.
  bool ReservePark() {
    if (parks_.fetch_add(1) < kMaxParks) return true;
    EndParks(1);
    return false;
  }
  void EndParks(uint32_t count) { parks_.fetch_sub(count); }

 private:
  static constexpr uint32_t kMaxParks = 32;  // the host's limit on processes leaves room for them
  static constexpr size_t kHot = 16;
  static constexpr uint32_t kMaxCredit = 16;

  // The keeper: a thread that starts the zygote, keeps the pool filled, and reaps. It lives as long
  // as the platform, since the host kills the zygote's clones when the thread that made it ends.
  void KeeperMain(base::Status* started, std::string* why, absl::Notification* done);
  void FillPool();
  void RunKeeper();
  base::Result<base::Ref<StubProcess>> MakeProcess();
  // The claimed process `pid` becomes that of `process`, and is watched.
  base::Status Adopt(const base::Ref<StubProcess>& process, int pid);
  void ReapOne(StubProcess* process);
  int64_t LookAfterStrays();
  struct Suspicion;
  bool IsSuspect(Suspicion* suspicion);

  size_t PollLocked(bool full) ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  void ScanLocked(bool full) ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  void TakePostedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  void DeliverLocked(ThreadContext* context) ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  void TakeLocked(ThreadContext* context) ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  base::Status MapShared(std::string* why);
  void AddContextLocked(ThreadContext* context) ABSL_EXCLUSIVE_LOCKS_REQUIRED(poll_mu_);
  void PublishCpu();
  bool Decide();
  bool WasPreempted();
  // Guest threads that use a core now, by what they do with it. Those beyond the hot list are taken
  // to compute.
  struct Load {
    uint32_t calling = 0, computing = 0;
    uint32_t awaiting = 0;  // of those that call: they cannot run before our core is free
    uint32_t queued = 0;    // of those: they were woken on it, and still have not begun to run
  };
  Load CountRunning(uint64_t now, size_t* delivered);
  void AllowStubSpin(bool allowed);

  const Options options_;
  const Trapping trapping_;
  Machine machine_;
  TextCache texts_;  // outlives the processes
  Limits limits_{};
  std::unique_ptr<Tracer> tracer_;  // outlives the zygote
  Zygote zygote_;
  CallGate gate_;  // stops before the listener goes
  uint32_t ordered_fds_ = 0;
  base::UniqueFd shared_fd_;
  Shared* shared_ = nullptr;

  std::atomic<uint32_t> parks_{0};
  Chores chores_{this};  // outlives what it buries
  // Of stubs that the zygote has made, which keeps nothing of them.
  const base::Ref<SpareShells> spare_shells_ = base::MakeRef<SpareShells>();

  std::thread keeper_;
  base::UniqueFd epoll_fd_, kick_fd_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> pool_started_{false};

  absl::Mutex pool_mu_;
  std::vector<base::Ref<StubProcess>> pool_ ABSL_GUARDED_BY(pool_mu_);

  // Processes whose pidfd the keeper watches.
  absl::Mutex watch_mu_;
  std::vector<base::Ref<StubProcess>> watched_ ABSL_GUARDED_BY(watch_mu_);
  // Those that may have made processes which they did not report, and when they are looked at.
  struct Suspicion {
    base::Ref<StubProcess> process;
    int64_t due_ns;
    int looks = 0;
  };
  std::vector<Suspicion> suspects_ ABSL_GUARDED_BY(watch_mu_);
  // Those in whose groups are processes that have been killed and not reaped yet.
  std::vector<base::Ref<StubProcess>> haunted_ ABSL_GUARDED_BY(watch_mu_);

  // Held by the poller, and by who adds or removes contexts. Taken before every other lock here.
  absl::Mutex poll_mu_;
  std::vector<StubProcess*> processes_ ABSL_GUARDED_BY(poll_mu_);  // those with contexts
  size_t delivered_ ABSL_GUARDED_BY(poll_mu_) = 0;
  uint32_t poll_count_ ABSL_GUARDED_BY(poll_mu_) = 0;
  // Contexts whose request word the poller looks at directly; the others are found by their bits.
  std::array<std::atomic<ThreadContext*>, kHot> hot_{};
  std::atomic<size_t> hot_limit_{0};   // places in use are below this
  std::atomic<bool> overflow_{false};  // a running context is not among the hot ones

  absl::Mutex posted_mu_;
  struct Posted {
    ThreadContext* context;
    bool gone;
  };
  std::vector<Posted> posted_ ABSL_GUARDED_BY(posted_mu_);
  std::vector<base::Ref<StubProcess>> died_ ABSL_GUARDED_BY(posted_mu_);
  std::atomic<bool> has_posted_{false};

  std::atomic<bool> wake_pending_{false};

  uint32_t polls_since_chore_ = 0;  // of the polling thread
  bool leaves_core_ = false;        // Decide: guest threads wait for the poller's core
  std::atomic<bool> free_core_{false};
  std::atomic<bool> look_now_{false};  // Decide is to be asked at once

  // Learned spinning; touched by the polling thread alone.
  bool spinning_ = false;  // the last answer of ShouldSpin
  uint32_t spin_calls_ = 0;
  size_t seen_ = 0;               // delivered_ at the last look at the clock
  uint64_t last_look_ = 0;        // ticks
  uint64_t idle_since_ = 0;       // ticks: since when nothing has come in
  uint32_t credit_ = kMaxCredit;  // earned by events that came soon, lost by those that did not
  bool idle_look_ = false;        // nothing has come since the look before
  uint64_t no_spin_until_ = 0;
  uint64_t backoff_ = 0;
  uint32_t probes_ = 0;
  int64_t switches_ = 0;  // involuntary ones of the thread that polled last
};

}  // namespace platform
