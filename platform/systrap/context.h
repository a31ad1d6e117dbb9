// One guest thread of the systrap platform.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "platform/mailbox.h"
#include "platform/parked_thread.h"
#include "platform/platform.h"
#include "platform/systrap/stub_process.h"
#include "sentry/base/ref.h"

namespace platform {

class SystrapAddressSpace;

// States: stopped, or running from Resume's end until its trap is taken by the poller. The owner
// uses the object while it is stopped, the poller while it is running; Interrupt alone comes from
// anywhere. A forked child is unborn at first, which for its owner is stopped: until its stub has
// reported that it has its own mailbox, nothing is sent to it, and Resume waits for that.
class ThreadContext final : public Context, public ParkedThread {
 public:
  // Takes over slot `index`, which the caller has allocated.
  ThreadContext(base::Ref<StubProcess> process, AddressSpace* space, uint32_t index);
  ~ThreadContext() override;

  void set_listener(TrapListener* listener) override;
  Regs& regs() override {
    if (rest_in_slot_) LoadRest();
    return regs_;
  }
  const Call& call() override { return call_; }
  LastCall PeekCall() const override;
  void SetResult(uint64_t value) override { regs_.rax = value; }
  void RereadCall() override;
  const Trap& trap() const override { return trap_; }
  AddressSpace& address_space() override { return *space_; }
  void QueueOrder(Order order) override { orders_.push_back(std::move(order)); }
  void Resume(ResumeMode mode) override;
  void Interrupt() override;
  bool WaitsInFutex() const override;
  int LaneWaitFd() const override;
  size_t fpu_frame_size() const override;
  std::span<const std::byte> saved_fpu() const override;
  int64_t CpuTimeNs() const override { return process_->CpuTimeNs(); }
  bool WakenBy(Context& maker) override;
  int host_tid() const override { return tid_.load(std::memory_order_relaxed); }
  base::Status FlushWrites() override;
  // The thread carries out what was queued first, if it takes no descriptors; nobody is told how.
  void Exit() override;
  // While stopped: goes to another address space of the same process, where nothing is mapped.
  void MoveTo(AddressSpace* space);
  void SetLanes(Lanes lanes) override {
    __atomic_store_n(&slot_->lanes_off, static_cast<uint32_t>(lanes), __ATOMIC_SEQ_CST);
  }
  void SetLaneOwner(uint32_t owner) override {
    __atomic_store_n(&slot_->lane_owner, owner, __ATOMIC_SEQ_CST);
  }
  void SetThreadCalls(bool may) override {
    __atomic_store_n(&slot_->thread_calls, may ? 1u : 0u, __ATOMIC_SEQ_CST);
  }
  ThreadWords PeekThreadWords() const override;
  void ForgetThreadWords() override {
    __atomic_store_n(&slot_->words_changed, 0u, __ATOMIC_SEQ_CST);
  }
  void SetPathPlace(uint64_t place) override {
    __atomic_store_n(&slot_->path_place, place, __ATOMIC_SEQ_CST);
  }
  void SetFdPlaces(uint64_t owner) override {
    __atomic_store_n(&slot_->fd_places, owner, __ATOMIC_SEQ_CST);
  }
  void AnswerInLane(int nr, int64_t remaining_ns, bool then_trap) override {
    regs_.rax = static_cast<uint64_t>(nr);
    in_lane_ = true;
    lane_traps_ = then_trap;
    lane_remaining_ns_ = remaining_ns;
  }
  void StampNextTrap(bool on) override { slot_->stamp = on ? 1 : 0; }
  uint64_t trapped_at() const override {
    return __atomic_load_n(&slot_->trapped_at, __ATOMIC_RELAXED);
  }
  uint64_t resumed_at() const override {
    return __atomic_load_n(&slot_->resumed_at, __ATOMIC_RELAXED);
  }
  void Publish(const Identity& identity) override;
  void PublishParent(int32_t ppid) override {
    __atomic_store_n(&slot_->ppid, ppid, __ATOMIC_RELAXED);
  }
  void SettleRegs() override;
  bool WantsRandom() override;
  void OfferRandom(std::span<const std::byte, kOfferedRandom> bytes) override;
  void OpenSignalMask(uint64_t mask, const SignalStack& stack) override;
  uint64_t CloseSignalMask() override;
  uint64_t SignalMask() const override;
  void OpenSignalActions(std::span<const SignalAction, kSignals> actions) override;
  bool CloseSignalActions(std::span<SignalAction, kSignals> actions) override;
  bool SignalMaskChanged() const override { return mask_changed_; }
  base::Result<size_t> ReadPartial(uint64_t addr, std::span<std::byte> dst) override;
  base::Result<size_t> ReadSome(uint64_t addr, std::span<std::byte> dst) override;
  base::Result<size_t> WritePartial(uint64_t addr, std::span<const std::byte> src) override;
  size_t WriteFromFile(uint64_t addr, const base::Ref<base::FileSource>& source, uint64_t offset,
                       size_t length) override;

  // ---- For the platform, under its poll lock ----

  bool running() const { return (state_.load(std::memory_order_acquire) & kRunning) != 0; }
  // Something is to come from the stub.
  bool expected() const {
    return (state_.load(std::memory_order_acquire) & (kRunning | kUnborn)) != 0;
  }
  // The stub has answered the round that is under way.
  bool HasRequest() const {
    return expected() && __atomic_load_n(&slot_->request.seq, __ATOMIC_ACQUIRE) == seq_;
  }
  // While running: ticks at `now` since the poller first saw the round that is under way.
  uint64_t RunsSince(uint64_t now) {
    if (std::exchange(seen_seq_, seq_) != seq_) seen_at_ = now;
    return now - seen_at_;
  }
  // The round that is under way began with a wake-up on the processor of who gave the answer, so
  // that the guest runs when that thread sleeps.
  bool woken_here() const { return woken_here_.load(std::memory_order_relaxed) == seq_; }
  // The stub has been sent to sleep, and not begun to run since.
  bool asleep() const { return __atomic_load_n(&slot_->sleeping, __ATOMIC_RELAXED) != 0; }
  // Takes the request. True if the listener is to be told; false if the round goes on inside the
  // platform.
  bool Take();
  // The process has died: becomes kGone if it was running.
  bool TakeDeath();
  // The same if it was not: its listener is told.
  void NoteDeath();
  void Deliver();
  StubProcess& process() const { return *process_; }
  // The host thread exists (first thread of a process, or a clone).
  void Start(int tid);
  // It does already, and waits to be this one.
  void StartParked(int tid) {
    parked_ = true;
    Start(tid);
  }
  // A forked child is unborn from here on.
  void AwaitBirth();
  // Ends the running state without telling the listener.
  void Stop();
  bool posted() const { return posted_; }
  uint32_t index() const { return index_; }

  int hot_index = -1;  // place in the platform's hot list

 private:
  friend class SystrapPlatform;
  enum State : uint32_t { kStopped = 0, kRunning = 1, kInterrupted = 2, kUnborn = 4 };

  // The first round after Resume.
  void BeginRounds();
  // Encodes the next orders that fit and publishes the answer. Goes with a new seq_, which the
  // poller must not see together with an old request.
  void StartRound();
  struct Batch;
  base::Result<uint32_t> Announce(Batch* batch);
  bool Encode(const Order& order, Batch* batch);
  uint32_t EncodeLast();
  bool EncodeFpu(const Order& order, Batch* batch, OrderEntry* entry);
  bool EncodePlain(const Order& order, OrderEntry* entry) const;
  base::Status Check(const Order& order) const;
  struct AnswerHead;
  uint32_t EntryFlags();
  // Publishes the round's answer with what is to be copied out.
  void Answer(const AnswerHead& head);
  // Has the stub map the windows that the next copies need, and unmap those that nobody does, in a
  // round before all others, and what there is to do about lanes. False if there is nothing to do.
  bool ChangeWindows();
  void ChangeLanes(Batch* batch);
  bool ChangeMap(Batch* batch, LaneMap& map, uint64_t addr, uint64_t size, int prot);
  // The round that had copies from windows has been answered. `failed`: by that they could not all
  // be made; they are left for FlushWrites.
  void ReleaseWindows(bool failed);
  void EndWindowRound(bool good);
  void UnpinCopies();
  struct FileCopy;
  base::Status CopyFromFile(const CopyEntry& entry, const FileCopy& file);
  void SendAnswer(const AnswerHead& head, uint32_t copy_out_count);
  // Hands the context over to the poller; returns the state before. A hostile stub may have written
  // the next request already, so this comes when nothing of the round is left to do here but to
  // publish it in the slot, with what has been read before.
  uint32_t BeginRunning();
  void AddInternal(Batch* batch);
  void AddPatch(Batch* batch);
  // `file`: what entry.fd stands for.
  void AddEntry(Batch* batch, const OrderEntry& entry, base::Ref<base::HostFd> file);
  void LoadCopyIn();
  size_t ReadCopied(uint64_t addr, std::span<std::byte> dst);
  bool OverlapsPending(uint64_t addr, size_t size) const;
  bool BufferWrite(uint64_t addr, std::span<const std::byte> src);
  void TakeCall(const RequestHead& head);
  // The registers of a call: at first those alone that the request tells.
  void LoadCall();
  void LoadRegs();
  void LoadRest();
  void StoreRegs();
  bool OnlyRaxChanged() const;
  uint64_t OrderResult(size_t order) const;
  bool OrdersFinished();
  bool ContinueOrders();
  bool EndBirth(bool good);
  bool FinishClones();
  void ForgetCalls();
  void EndForks(bool claimed);
  void FailOrder(size_t index, int error);
  bool Distrust(const char* why);
  // Makes the poller deliver trap_ without a round.
  void Post();

  const base::Ref<StubProcess> process_;
  AddressSpace* space_;
  const uint32_t index_;
  Slot* const slot_;
  TrapListener* listener_ = nullptr;  // changed under the poll lock
  Regs regs_{};
  Regs slot_regs_{};  // what the slot holds, as far as the guest is honest
  Call call_;
  bool rest_in_slot_ = false;  // of regs_ only those of call() are loaded yet
  Trap trap_{};
  std::atomic<uint32_t> state_{kStopped};
  std::atomic<int> tid_{0};
  uint32_t seq_ = 0;
  void WakeStub();

  uint64_t here_at_ = 0;      // ticks: when the thread slept where it got its answer last
  uint32_t here_streak_ = 0;  // how often that was so, each soon after the one before
  std::atomic<uint32_t> woken_here_{0};  // the round of which that holds
  uint32_t seen_seq_ = 0;                // of RunsSince
  uint64_t seen_at_ = 0;
  std::atomic<bool> posted_{false};
  std::atomic<bool> exited_{false};
  ResumeMode mode_ = ResumeMode::kGuest;
  bool parked_ = false;  // its host thread was there before it
  uint32_t wakes_ = 0;   // the slot of which it is the maker (ParkedThread)

  std::vector<Order> orders_;
  size_t batch_begin_ = 0, batch_end_ = 0;  // orders of the round under way
  int refused_ = 0;                         // errno of order batch_end_, which was not sent
  std::vector<uint64_t> results_;
  uint32_t entry_of_first_ = 0;          // entry of order batch_begin_ in the slot
  std::vector<InternalOrder> internal_;  // orders of the platform's own, before all others

  uint64_t trapped_rip_ = 0;  // where the last call came from
  bool direct_call_ = false;  // it came from a patched site
  bool patch_wanted_ = false;
  bool mask_changed_ = false;  // the last request told so
  bool asked_random_ = false;
  bool in_lane_ = false;  // of AnswerInLane
  bool lane_traps_ = false;
  int64_t lane_remaining_ns_ = -1;
  uint32_t saved_fpu_at_ = 0;  // in the slot's out area

  // What the stub has copied in at the last trap, loaded from the slot at the first need.
  std::vector<CopyEntry> copy_in_;
  uint16_t copy_in_count_ = 0;
  bool copy_in_loaded_ = true;
  // Writes that the stub is to copy out.
  std::vector<CopyEntry> copy_out_;
  uint32_t out_used_ = 0;
  // Those of them whose bytes are a file's, in order; kept with the whole list until the stub has
  // reported.
  struct FileCopy {
    base::Ref<base::FileSource> source;
    uint64_t offset;
    uint32_t window;
    bool map;  // the window is to be mapped first
  };
  std::vector<FileCopy> file_copies_;
  std::vector<CopyEntry> sent_copies_;
  std::vector<uint32_t> changed_windows_;  // pinned during the round that unmaps them
  bool changes_windows_ = false;           // that round, or one that maps, is under way
  bool changes_lanes_ = false;             // and maps or unmaps the lanes
  bool changes_paths_ = false;             // and the table of paths

  // Of an unborn child, under the poll lock: it has been resumed.
  bool resumed_unborn_ = false;
  bool stillborn_ = false;      // its process is not what it should be
  bool expects_calls_ = false;  // the gate lets the stub make calls of the round under way
};

}  // namespace platform
