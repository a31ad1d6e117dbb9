// epoll(7). Follows fs/eventpoll.c.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "sentry/base/result.h"
#include "sentry/fiber/mutex.h"
#include "sentry/fiber/wait_queue.h"
#include "sentry/fs/anon/anon.h"
#include "sentry/fs/epoll/lane_watches.h"
#include "sentry/vfs/fd_table.h"
#include "sentry/vfs/lanes/lane_partner.h"

namespace sentry {

// struct epoll_event as the system call has it (packed).
struct EpollEvent {
  uint32_t events;
  uint64_t data;
} __attribute__((packed));
static_assert(sizeof(EpollEvent) == 12);

// An epoll instance. It holds no references to the files it watches; FileDescription::WatchRelease
// tells it when one goes.
class EventPoll : public AnonFile, public LaneWatcher, public LaneObserver {
 public:
  EventPoll(Vfs& vfs, uint32_t flags);
  static EventPoll* From(FileDescription& file) { return dynamic_cast<EventPoll*>(&file); }

  // epoll_ctl(2); `fd` is a part of the key, as in Linux.
  base::Status Add(int fd, const base::Ref<FileDescription>& file, const EpollEvent& event);
  base::Status Modify(int fd, FileDescription& file, const EpollEvent& event);
  base::Status Remove(int fd, FileDescription& file);
  // kcmp(2): which file is watched as `fd`; of several the one with this number. Only to compare;
  // null: there is none.
  const FileDescription* Target(int fd, uint32_t number);

  // epoll_wait(2): waits for the first event until `deadline_ns` (CLOCK_MONOTONIC; 0: does not
  // wait) and hands up to `max` to `emit`, which copies them out; when that fails they stay ready.
  // Returns their number; EINTR, or what emit says. Costs are by what is ready, not by what is
  // watched.
  using Emit = std::function<base::Status(std::span<const EpollEvent>)>;
  base::Result<size_t> Wait(size_t max, int64_t deadline_ns, const Emit& emit);

  uint32_t Readiness() override;
  fiber::WaitQueue* wait_queue() override {
    CloseLanes();  // who waits there is to be told of everything
    return &queue_;
  }
  void WatchEdges(uint32_t wish = platform::kWish) override;
  // A descriptor that was watched for a file whose next readiness lanes might tell without the
  // sentry; once. -1: there is none.
  int TakeWanting() { return wanting_.exchange(-1, std::memory_order_relaxed); }
  bool BindWatches(int fd, const base::Ref<LaneBinding>& binding) override;
  void TakeLaneChanges() override;
  bool WatchesPartners() override;
  std::string FdInfo() const override;

 private:
  class Item;
  struct Key {
    FileDescription* file;
    int fd;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  class Registry;

  ~EventPoll() override = default;
  void OnZeroRefs() override;
  // Called by Item's waiter: puts it on the ready list and wakes who waits here. True: so did
  // somebody in the process.
  bool MarkReady(Item& item);
  // Of a watch that begins or has been changed: what is true already is news.
  void ReportNow(Item& item);
  Item* PopReady();
  void PushReady(Item& item);
  void DropReady(Item& item);
  bool HasReady() const;
  size_t ready_count() const;
  // Looks at ready items; takes up to `max` events. Level-triggered ones stay on the list.
  base::Result<size_t> Collect(size_t max, const Emit& emit);
  // A new item for key.file, which the caller keeps alive and which waits at `queue` (null:
  // nowhere).
  Item& Insert(const Key& key, EpollEvent event, fiber::WaitQueue* queue)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(Key key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void OnFileRelease(FileDescription& file);
  // Longest chain of instances below this one; *loop if `sought` is among them.
  int DepthBelow(const EventPoll* sought, int depth, bool* loop);
  // Longest chain of instances that watch this one.
  int DepthAbove(int depth);

  // --- epoll_lanes.cc ---
  // A wait that is under way: nobody but the sentry looks.
  class LaneWait {
   public:
    explicit LaneWait(EventPoll& poll);
    ~LaneWait();
    // What comes from now on wakes who waits.
    void Arm();

   private:
    EventPoll& poll_;
  };
  // Takes over what the process has changed.
  void SyncLanes() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Apply(const LaneWatches::Change& change, FdTable* table)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddFromLane(const LaneWatches::Change& change, base::Ref<FileDescription> file, bool in_lane)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Finds out which of the items that the process looks after are ready, and has the sentry told of
  // the others' next events; and which items each of them looks after.
  void LookAtLanes();
  // Who is to be told of what comes by lanes: who waits here; or the sentry at once, for those that
  // watch the instance itself.
  platform::LaneWish WishForLanes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is true of an item that is in_lane, if it is to be told; it counts as told.
  uint32_t TakeFromLane(Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What is wanted of an item, by whom it is looked after.
  uint32_t WantedNow(const Item& item) const;
  void SetEvents(Item& item, uint32_t events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Were it ready, the process would not find out by itself.
  static bool NeedsSentry(const Item& item);
  bool ServedByLane(const Item& item, FdTable* table) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Promote(FdTable* table) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetInLane(Item& item, bool in_lane) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteAdded(Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteModified(Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteErased(Item& item) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateSentryReady();
  // For good.
  void CloseLanes();

  mutable fiber::Mutex mutex_;  // the interest list
  std::map<Key, base::Ref<Item>> items_ ABSL_GUARDED_BY(mutex_);
  mutable absl::Mutex ready_mutex_;  // taken in wait queue callbacks: a leaf
  // The ready list, linked through the items.
  Item* ready_head_ ABSL_GUARDED_BY(ready_mutex_) = nullptr;
  Item* ready_tail_ ABSL_GUARDED_BY(ready_mutex_) = nullptr;
  size_t ready_count_ ABSL_GUARDED_BY(ready_mutex_) = 0;
  fiber::WaitQueue queue_;

  // What the process at whose descriptor this is does by itself. Once there, it stays.
  std::unique_ptr<LaneWatches> lane_watches_ ABSL_GUARDED_BY(mutex_);
  std::atomic<LaneWatches*> lanes_{nullptr};
  std::map<int, Item*> lane_items_
      ABSL_GUARDED_BY(mutex_);                // those that are in_lane, by descriptor
  size_t looks_ ABSL_GUARDED_BY(mutex_) = 0;  // since the last Promote
  std::atomic<int> waits_{0};
  std::atomic<bool> lanes_closed_{false};
  std::atomic<int> wanting_{-1};
};

}  // namespace sentry
